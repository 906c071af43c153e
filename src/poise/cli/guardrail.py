"""``poise guardrail draft``, ``check``, ``fit`` and ``publish``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from poise.cli.given_texts import given_text
from poise.cli.monitor import DataShapeOption
from poise.cli.options import Device, Dtype, Force, Json, ModelName, Seed
from poise.cli.work import load_model, note, working
from poise.errors import InvalidArgument, UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from poise.guardrail.automated_reasoning import ReasonedAnswer
    from poise.guardrail.guard_file import FittedGuard
    from poise.guardrail.reasoning_rule import ReasoningRule
    from poise.model import Model

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Keep things out of a model, and out of its answers.")
GuardrailFile = Annotated[
    Path, typer.Argument(metavar="FILE", dir_okay=False, help="The guardrail's YAML, or what `fit` made of it.")
]
GuardrailYAML = Annotated[Path, typer.Argument(metavar="FILE", dir_okay=False, help="The guardrail's YAML.")]


@app.callback()
def guardrail() -> None:
    """Keep things out of a model, and out of its answers."""


@app.command("draft")
def draft_topic(
    sentence: Annotated[
        str,
        typer.Argument(metavar="SENTENCE", help="What is not to be talked about, in your words.", show_default=False),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="FILE", dir_okay=False, help="The YAML to write.", show_default=False),
    ],
    model: Annotated[
        str,
        typer.Option(
            "--model", metavar="NAME", help="Who writes, as the server calls it; a strong one.", show_default=False
        ),
    ],
    name: Annotated[
        str | None, typer.Option("--name", metavar="N", help="Of the guardrail; otherwise the topic's.")
    ] = None,
    force: Force = False,
) -> None:
    """Write a guardrail with a denied topic from one sentence: definition, messages, examples and near misses.

    Any OpenAI-compatible server does it: OPENAI_BASE_URL says where, OPENAI_API_KEY lets in.
    """
    from poise.guardrail import draft as drafting
    from poise.storage.output import check_output

    check_output(out, loss=lambda existing: drafting.NOT_THIS_DRAFT, force=force)  # before the endpoint is paid
    with working():
        drafted = drafting.draft_guardrail(sentence, model=model, name=name)
    try:
        drafting.write_guardrail(drafted, out, force=force)
    except UserError:
        typer.echo(drafting.guardrail_yaml(drafted), nl=False)  # paid for
        raise
    typer.echo(out)
    note(f"{drafted.name} is written. Read it, then: poise guardrail fit {out} --model M --normal TALK --out G")


@app.command("check")
def check_texts(
    file: GuardrailFile,
    text: Annotated[
        list[str], typer.Argument(metavar="TEXT|FILE…", help="Texts, or files with a text each; - for stdin.")
    ],
    source: Annotated[
        Literal["input", "output"], typer.Option("--source", help="Prompts, or answers.", show_default=True)
    ] = "input",
    full: Annotated[bool, typer.Option("--full", help="List topics and content that were not found, too.")] = False,
    matches: Annotated[
        bool, typer.Option("--matches", help="Say what matched: secrets then stand in what is printed.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="M", help="Model that a fitted guardrail's detectors read.", show_default=False
        ),
    ] = None,
    question: Annotated[
        str, typer.Option("--question", help="What was asked, where the guardrail reasons about answers.")
    ] = "",
    dtype: Dtype = "auto",
    device: Device = "auto",
) -> None:
    """Check texts, and print as JSON what the guardrail finds in them and does to them."""
    from poise.cli import facts

    with working():
        from poise.guardrail import GuardedText, apply_guardrail, checker_of, load_guardrail
        from poise.guardrail.guard_file import is_guard_file, load_guard

        fitted = load_guard(file) if is_guard_file(file) else None
        checker = checker_of(fitted.guardrail if fitted else load_guardrail(file))
        rule = checker.guardrail.reasoning if source == "output" else None
        texts = [GuardedText(_text(each), ("guard_content",)) for each in text]
        texts += [GuardedText(question, ("query",))] if question else []
        reader = reason = None
        loaded = load_model(model, dtype, device) if model is not None and (fitted or rule) else None
        if fitted and loaded:
            from poise.guardrail.activation import ActivationReader

            reader = ActivationReader(fitted, loaded)
        elif model is not None and not rule:
            raise InvalidArgument(f"{file} has no detectors for a `model` to be read with; fit it first.")
        if rule and (loaded or rule.writer != "served"):
            reason = _answer_reader(rule, loaded)
        answer = apply_guardrail(
            checker,
            texts,
            "INPUT" if source == "input" else "OUTPUT",
            full=full,
            show_matches=matches,
            activations=reader,
            reason=reason,
        )
        for line in checker.notes:
            note(line)
        _say_what_was_left_out(checker.guardrail.needs_model and not reader, bool(fitted), bool(rule and not reason))
    facts.print_json(answer)


def _say_what_was_left_out(activations: bool, fitted: bool, reasoning: bool) -> None:
    if activations:
        how = "give --model" if fitted else "fit the guardrail with `poise guardrail fit`, and give --model"
        note(f"Topics and content are read in a model's activations, and were not looked at; {how}.")
    if reasoning:
        note("Answers are reasoned about with a model, and were not; give --model, or an endpoint as `writer`.")


def _answer_reader(rule: ReasoningRule, model: Model | None) -> Callable[[str, str], ReasonedAnswer]:
    """What reasons about an answer, with the loaded model or an endpoint for the writer."""
    from poise.guardrail.automated_reasoning import AnswerReasoner
    from poise.reasoning import EndpointFactWriter, LocalFactWriter

    write = LocalFactWriter(model) if model and rule.writer == "served" else EndpointFactWriter(rule.writer[9:])
    reasoner = AnswerReasoner(rule)
    return lambda question, answer: reasoner(question, answer, write)


def _text(argument: str) -> str:
    """A text itself, or that of a file."""
    path = Path(argument)
    try:
        is_file = path.is_file()
    except (OSError, ValueError):  # too long for a name, or with a sign that none has
        is_file = False
    if is_file:
        return given_text(f"@{argument}")
    return given_text("-") if argument == "-" else argument


@app.command("publish")
def publish(
    file: GuardrailFile,
    folder: Annotated[
        Path,
        typer.Option("--to", metavar="DIR", file_okay=False, help="Folder of NAME/VERSION, which `poise serve` takes."),
    ] = Path("guardrails"),
    as_json: Json = False,
) -> None:
    """Write a guardrail as its next number, which nothing writes over."""
    from poise.cli import facts

    with working():
        from poise.guardrail.versions import publish_guardrail

        path, new = publish_guardrail(file, folder)
    if as_json:
        facts.print_json({"name": path.parent.name, "version": int(path.stem), "file": str(path), "new": new})
    elif new:
        note(f"Written: {path}. Next: poise serve --model M --guardrail {folder}")
    else:
        note(f"Nothing has changed since version {path.stem}, {path}.")


@app.command("fit")
def fit_guardrail(
    file: GuardrailYAML,
    model: ModelName,
    normal: Annotated[
        list[str],
        typer.Option("--normal", metavar="DATA", help="Ordinary conversations that thresholds are set on."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="F", dir_okay=False, help="File to write.")],
    rate: Annotated[
        float, typer.Option("--rate", metavar="R", help="Ordinary texts that each rule may stop, as a share.")
    ] = 0.01,
    layer: Annotated[
        int | None,
        typer.Option("--layer", metavar="I", min=0, help="Read there; at 0.6 of the depth unless said."),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", min=1, help="Most conversations, drawn at random.")
    ] = 2000,
    shape: DataShapeOption = "auto",
    seed: Seed = 0,
    dtype: Dtype = "auto",
    device: Device = "auto",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Fit detectors for topics and content to a model, with a promised rate of false alarms."""
    with working():
        from poise.guardrail.fitting import GuardFitSettings
        from poise.workflows import fit_guard_file

        fitted = fit_guard_file(
            file,
            partial(load_model, model, dtype, device),
            normal,
            GuardFitSettings(rate=rate, layer=layer, limit=limit, seed=seed),
            out=out,
            shape=shape,
            force=force,
        )
    _print_fit(fitted, out, as_json=as_json)


def _print_fit(fitted: FittedGuard, out: Path, *, as_json: bool) -> None:
    from poise.cli import facts, render

    if as_json:
        facts.print_json({"out": str(out), **fitted.header.model_dump(mode="json", exclude={"guardrail", "model"})})
        return
    render.show([_detector_table(fitted)])
    note(f"Written to {out}. Next: poise serve --model {fitted.header.model.name} --guardrail {out}")


def _detector_table(fitted: FittedGuard) -> Any:
    """Each detector with its figures, on examples that its fit did not see."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("Rule", "Way", "AUC", "Recall", "Beside it", "Promised rate", "Set on"):
        table.add_column(name, no_wrap=name == "Rule")
    for d in fitted.header.detectors:
        f, p = d.figures, d.point
        table.add_row(
            d.rule,
            d.source.lower(),
            f"{f.auc:.2f} [{f.auc_low:.2f}, {f.auc_high:.2f}]",
            f"{f.recall:.2f} [{f.recall_low:.2f}, {f.recall_high:.2f}] of {f.examples}",
            f"{f.near_alarms} of {f.near_misses}",
            f"{p.rate:.2g} [{p.low:.2g}, {p.high:.2g}]",
            f"{p.n:,}",
        )
    return table
