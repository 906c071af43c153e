"""``poise ask``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from poise.cli.knowledge import LabelOption, ModeOption, WhereOption, note_unknown_labels
from poise.cli.options import Device, Dtype, Json
from poise.cli.work import load_model, note, working
from poise.counting import counted

if TYPE_CHECKING:
    from poise.knowledge import GroundedAnswer, GroundingScores
    from poise.knowledge.answer_writers import AnswerWriter

__all__ = ["ask_command"]


def ask_command(
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What is asked.", show_default=False)],
    knowledge: Annotated[
        Path,
        typer.Option("--knowledge", metavar="KB", file_okay=False, help="Folder of a knowledge base."),
    ],
    model: Annotated[str, typer.Option("--model", metavar="M", help="A model, or endpoint:NAME (OPENAI_BASE_URL).")],
    top: Annotated[int, typer.Option("--top", metavar="N", min=1, help="Most passages in the prompt.")] = 6,
    mode: ModeOption = "hybrid",
    where: WhereOption = None,
    label: LabelOption = None,
    unsupported: Annotated[
        Literal["mark", "remove", "refuse"],
        typer.Option("--unsupported", help="What is done about sentences that the passages do not support."),
    ] = "mark",
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

        settings = AnswerSettings(
            top=top,
            mode=mode,
            where=ChunkFilter(paths=tuple(where or ()), labels=frozenset(label) if label else None),
            most_tokens=max_new_tokens,
            budget=budget,
            unsupported=unsupported,
            least=least,
        )
        opened = Knowledge(knowledge)
        writer, score = _answer_writer(model, dtype, device)
        note_unknown_labels(opened, label)
        answer = answer_question(opened, question, writer, settings, score=score)
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


def _show_answer(answer: GroundedAnswer) -> None:
    from poise.cli.render import plain_text

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
