"""``poise ask``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from poise.cli.knowledge import LabelOption, ModeOption, RerankOption, WhereOption, note_unknown_labels
from poise.cli.options import Device, Dtype, Json
from poise.cli.work import load_model, note, working
from poise.counting import counted

if TYPE_CHECKING:
    from poise.knowledge import GroundedAnswer, GroundingScores, TextReranker
    from poise.knowledge.answer_writers import AnswerWriter

__all__ = ["ask_command"]

_History = Annotated[
    Path | None,
    typer.Option(
        "--history",
        metavar="FILE",
        dir_okay=False,
        help="Conversation that the question follows, as JSON lines; question and answer are added to it.",
        show_default=False,
    ),
]
_FollowUp = Annotated[
    Literal["last", "join", "rewrite"],
    typer.Option(
        "--follow-up",
        help="What is looked for with --history: the last question; with the one before where it has few words; "
        "or as the model rewrites it.",
    ),
]
_Unsupported = Annotated[
    Literal["mark", "remove", "refuse"],
    typer.Option("--unsupported", help="What is done about sentences that the passages do not support."),
]


def ask_command(
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What is asked.", show_default=False)],
    knowledge: Annotated[
        Path,
        typer.Option("--knowledge", metavar="KB", file_okay=False, help="Folder of a knowledge base."),
    ],
    model: Annotated[str, typer.Option("--model", metavar="M", help="A model, or endpoint:NAME (OPENAI_BASE_URL).")],
    top: Annotated[int, typer.Option("--top", metavar="N", min=1, help="Most passages in the prompt.")] = 6,
    mode: ModeOption = "hybrid",
    rerank: RerankOption = None,
    where: WhereOption = None,
    label: LabelOption = None,
    history: _History = None,
    follow_up: _FollowUp = "join",
    unsupported: _Unsupported = "mark",
    least: Annotated[
        float, typer.Option("--least", metavar="X", help="Lowest score of a supported sentence, from 0 to 1.")
    ] = 0.5,
    budget: Annotated[
        int | None, typer.Option("--budget", metavar="N", help="Most tokens of the prompt.", show_default=False)
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", metavar="N", min=1, help="Longest answer.")] = 200,
    dtype: Dtype = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Answer a question from documents, with citations that are checked."""
    from poise.cli import facts

    with working():
        from poise.knowledge import AnswerSettings, ChunkFilter, Knowledge, answer_facts, answer_question
        from poise.knowledge.follow_ups import append_turns, read_turns

        settings = AnswerSettings(
            top=top,
            mode=mode,
            where=ChunkFilter(paths=tuple(where or ()), labels=frozenset(label) if label else None),
            follow_up=follow_up,
            most_tokens=max_new_tokens,
            budget=budget,
            unsupported=unsupported,
            least=least,
        )
        turns = read_turns(history) if history else []
        opened = Knowledge(knowledge)
        writer, score = _answer_writer(model, dtype, device)
        opened.reranker = _reranker(rerank, writer) if rerank else None
        note_unknown_labels(opened, label)
        answer = answer_question(opened, question, writer, settings, score=score, history=turns)
        if history:
            append_turns(history, question, answer.text)
    if as_json:
        facts.print_json({"model": model, **answer_facts(answer)})
        return
    _show_answer(answer)


def _answer_writer(model: str, dtype: Any, device: str) -> tuple[AnswerWriter, GroundingScores | None]:
    """What answers, and what measures how well the passages carry it: the same model, where it is here."""
    from poise.knowledge.answer_writers import EndpointAnswerWriter, LocalAnswerWriter
    from poise.knowledge.answering import model_scores

    if model.startswith("endpoint:"):
        return EndpointAnswerWriter(model.removeprefix("endpoint:")), None
    loaded = load_model(model, dtype, device)
    return LocalAnswerWriter(loaded), model_scores(loaded)


def _reranker(name: str, writer: AnswerWriter) -> TextReranker:
    """The reranker of a name; the model that answers is not loaded again."""
    from poise.knowledge import LocalAnswerWriter, text_reranker
    from poise.model import load_model

    same = writer.model if isinstance(writer, LocalAnswerWriter) else None
    return text_reranker(name, lambda other: same if same and same.name == other else load_model(other))


def _show_answer(answer: GroundedAnswer) -> None:
    from poise.cli.render import plain_text

    if answer.sought != answer.question:
        note(plain_text(f"Looked for: {' '.join(answer.sought.split())}"))
    typer.echo(plain_text(answer.text))
    if answer.sources:
        typer.echo("")
    for number in answer.sources:
        passage = answer.passages[number - 1]
        marks = f"  ! reads as an instruction: {', '.join(passage.marks)}" if passage.marks else ""
        typer.echo(plain_text(f"[{number}] {passage.place}{marks}"))
    for sentence in answer.sentences:
        if not sentence.supported:
            note(plain_text(f"unsupported: {sentence.text!r}: {sentence.problem}"))
    if answer.sentences:
        cited = sum(sentence.by_model for sentence in answer.sentences)
        note(
            f"Grounding {answer.grounding:.2f}, the lowest of {counted(len(answer.sentences), 'sentence')}; the model "
            f"cited passages for {cited} of {len(answer.sentences)}, others' were found by their words."
        )
    note(
        f"{counted(len(answer.passages), 'passage')}, {counted(answer.prompt_tokens, 'token')} of prompt, "
        f"{answer.tokens:,} of answer, "
        f"{answer.seconds:.1f} s."
    )
