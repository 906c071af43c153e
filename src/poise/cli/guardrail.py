"""``poise guardrail draft``, ``check``, ``fit`` and ``publish``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from poise.cli.given_texts import given_text
from poise.cli.monitor import DataShapeOption
from poise.cli.options import Device, Dtype, Force, Json, Seed
from poise.cli.work import load_model, note, working
from poise.errors import InvalidArgument, UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from poise.guardrail import Guardrail
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
        list[str], typer.Argument(metavar="TEXT|FILE", help="Texts, or files with a text each; - for stdin.")
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
        str,
        typer.Option("--question", metavar="TEXT", help="What was asked, where an answer is checked for it."),
    ] = "",
    grounding_source: Annotated[
        list[str] | None,
        typer.Option(
            "--grounding-source", metavar="TEXT|FILE", help="What an answer is to rest on.", show_default=False
        ),
    ] = None,
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
        _check_answer_options(file, checker.guardrail, source, question, grounding_source or ())
        way: Literal["INPUT", "OUTPUT"] = "INPUT" if source == "input" else "OUTPUT"
        texts = [GuardedText(_text(each), ("guard_content",)) for each in text]
        texts += [GuardedText(question, ("query",))] if question else []
        texts += [GuardedText(_text(each), ("grounding_source",)) for each in grounding_source or ()]
        readers = _readers(
            file, checker.guardrail, fitted, way, partial(load_model, model, dtype, device) if model else None
        )
        answer = apply_guardrail(
            checker,
            texts,
            way,
            full=full,
            show_matches=matches,
            activations=readers.activations,
            reason=readers.reason,
            ground=readers.ground,
        )
        for line in [*checker.notes, *readers.left_out]:
            note(line)
    facts.print_json(answer)


def _check_answer_options(
    file: Path, guardrail: Guardrail, source: str, question: str, grounding_source: Sequence[str]
) -> None:
    """Refuse what is said about an answer where nothing looks at it."""
    options = [name for name, given in (("--question", question), ("--grounding-source", grounding_source)) if given]
    names = " and ".join(options)
    if options and source == "input":
        raise typer.BadParameter(f"{names} would do nothing for prompts; with answers, give --source output.")
    if grounding_source and not guardrail.grounding:
        raise typer.BadParameter(f"--grounding-source would do nothing: {file} has no `grounding`.")
    if question and not (guardrail.grounding or guardrail.reasoning):
        raise typer.BadParameter(f"--question would do nothing: {file} has neither `grounding` nor `reasoning`.")


@dataclass(frozen=True)
class _Readers:
    """What reads texts with a model, and what nothing reads."""

    activations: Any = None
    reason: Any = None
    ground: Any = None
    left_out: tuple[str, ...] = ()


def _readers(
    file: Path, guardrail: Guardrail, fitted: FittedGuard | None, way: str, load: Callable[[], Model] | None
) -> _Readers:
    """Readers for those policies that look at texts of this way; the model is loaded where one needs it."""
    from poise.guardrail.grounding_policy import grounding_reader
    from poise.guardrail.judging import judged_reader

    rule = guardrail.reasoning if way == "OUTPUT" else None
    grounds = bool(guardrail.grounding) and way == "OUTPUT"
    if load and not (fitted or rule or grounds):
        raise InvalidArgument(f"{file} has no detectors for a `model` to be read with; fit it first.")
    judge = guardrail.judge is not None and guardrail.judge.by == "served"
    model = load() if load and (guardrail.needs_model or judge or rule or grounds) else None
    left_out = []
    if guardrail.needs_fit and not fitted:
        left_out.append(
            "Topics and content are found by detectors, and were not looked at; fit the guardrail with `poise "
            "guardrail fit`."
        )
    elif guardrail.needs_model and not model:
        left_out.append(
            "Topics and content are read in a model's activations, and were not looked at; give --model."
            if not (fitted and fitted.encoder_detectors)
            else "Rules that are read in a model's activations were not looked at; give --model."
        )
    if rule and not model and rule.writer == "served":
        left_out.append(
            "Answers are reasoned about with a model, and were not; give --model, or an endpoint as `writer`."
        )
    if grounds and not model:
        left_out.append("Answers are scored over their source with a model, and were not; give --model.")
    return _Readers(
        activations=judged_reader(fitted, model) if fitted and (model or fitted.encoder_detectors) else None,
        reason=_answer_reader(rule, model) if rule and (model or rule.writer != "served") else None,
        ground=grounding_reader(model) if grounds and model else None,
        left_out=tuple(left_out),
    )


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
    normal: Annotated[
        list[str],
        typer.Option("--normal", metavar="DATA", help="Ordinary conversations that thresholds are set on."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="F", dir_okay=False, help="File to write.")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="M",
            help="Model that is to be guarded; needed unless all rules are `read_by: encoder`.",
            show_default=False,
        ),
    ] = None,
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
    """Fit detectors for topics and content, with a promised rate of false alarms."""
    with working():
        from poise.guardrail.fitting import GuardFitSettings
        from poise.workflows import fit_guard_file

        fitted = fit_guard_file(
            file,
            partial(load_model, model, dtype, device) if model else None,
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
    served = fitted.header.model.name if fitted.header.model else "M"
    any_model = "" if fitted.header.model else ", with any model: the sentence encoder reads all rules"
    note(f"Written to {out}{any_model}. Next: poise serve --model {served} --guardrail {out}")


def _detector_table(fitted: FittedGuard) -> Any:
    """Each detector with its figures, on examples that its fit did not see."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    judged = ("Judged",) if any(d.band for d in fitted.header.detectors) else ()
    by = ("By",) if fitted.encoder_detectors else ()
    for name in ("Rule", "Way", *by, "AUC", "Recall", "Beside it", "Promised rate", "Set on", *judged):
        table.add_column(name, no_wrap=name == "Rule")
    for d in fitted.header.detectors:
        f, p = d.figures, d.point
        table.add_row(
            d.rule,
            d.source.lower(),
            *(d.read_by for _ in by),
            f"{f.auc:.2f} [{f.auc_low:.2f}, {f.auc_high:.2f}]",
            f"{f.recall:.2f} [{f.recall_low:.2f}, {f.recall_high:.2f}] of {f.examples}",
            f"{f.near_alarms} of {f.near_misses}",
            f"{p.rate:.2g} [{p.low:.2g}, {p.high:.2g}]",
            f"{p.n:,}",
            *((f"{b.judged:.2g} [{b.judged_low:.2g}, {b.judged_high:.2g}]",) if (b := d.band) else ()),
        )
    return table
