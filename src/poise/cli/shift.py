"""``poise shift``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from poise.cli.contexts import (
    ContextData,
    ContextOptions,
    ContextShare,
    ContextTexts,
    ExtractAgain,
    MostContexts,
    context_tables,
    direction_table,
    find_all_contexts,
    format_estimate,
    show_inputs,
)
from poise.cli.options import (
    BatchOption,
    Device,
    Dtype,
    DtypeName,
    Force,
    Json,
    LayerOption,
    MaxNewTokens,
    OnOtherModel,
    OutFolder,
    QuestionsOption,
    Rollouts,
    Seed,
    ShowOption,
    Temperature,
    VectorsOption,
)
from poise.cli.work import load_model, working
from poise.errors import InvalidArgument

if TYPE_CHECKING:
    from rich.table import Table

    from poise.shift.report import CapabilityChange, ModelShift, ShiftReport

__all__ = [
    "MEASURED_PANEL",
    "CapabilityLimit",
    "CapabilityTexts",
    "DeviceOptions",
    "GenerationOptions",
    "JudgeOrNone",
    "MeasurementOptions",
    "measure_now",
    "shift_command",
    "show_shift",
]

MEASURED_PANEL = "What is measured"

BaseModelName = Annotated[
    str,
    typer.Option(
        "--base",
        metavar="M",
        help="The model before fine-tuning, on which the vectors were computed.",
        show_default=False,
    ),
]
TunedModelNames = Annotated[
    list[str],
    typer.Option(
        "--tuned",
        metavar="M2",
        help="The model after it: a folder, a hub id, or a PEFT adapter folder. Once for each.",
        show_default=False,
    ),
]
JudgeOrNone = Annotated[
    str,
    typer.Option(
        "--judge",
        metavar="J",
        help="Who scores answers: exemplars, model:NAME or endpoint:NAME (OPENAI_BASE_URL); none for no answers.",
    ),
]
CapabilityTexts = Annotated[
    list[str] | None,
    typer.Option(
        "--capability",
        metavar="WHAT",
        help="perplexity=DATA, NAME=FILE.jsonl (question, choices, answer), NAME-cloze=FILE.jsonl for small models, a "
        "task that lm-eval knows, or a task's .yaml. Several add up.",
        rich_help_panel=MEASURED_PANEL,
    ),
]
CapabilityLimit = Annotated[
    int | None,
    typer.Option(
        "--capability-limit",
        metavar="N",
        min=1,
        help="Most rows of each, drawn at random; of lm-eval's own tasks the first.",
        rich_help_panel=MEASURED_PANEL,
    ),
]
ScreenedFolders = Annotated[
    list[Path] | None,
    typer.Option(
        "--screened",
        metavar="DIR",
        file_okay=False,
        help="What poise screen wrote of the training data, to show the prediction beside: once for each --tuned.",
        rich_help_panel=MEASURED_PANEL,
    ),
]


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How many answers are generated, how long, and how they are sampled."""

    questions: int
    rollouts: int
    max_new_tokens: int
    temperature: float
    seed: int
    batch: int


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """How models are loaded, and whether vectors of another one are allowed."""

    dtype: DtypeName
    device: str
    allow_other_model: bool


@dataclass(frozen=True, kw_only=True)
class MeasurementOptions:
    """Options of a command that measures; see each option."""

    base: str
    tuned: list[str]
    vectors: list[Path]
    out: Path
    judge: str
    capability: list[str]
    capability_limit: int | None
    layer: int | None
    generation: GenerationOptions
    device: DeviceOptions
    contexts: ContextOptions
    extract_again: bool
    force: bool


def shift_command(
    base: BaseModelName,
    tuned: TunedModelNames,
    vector: VectorsOption,
    out: OutFolder,
    show: ShowOption = None,
    judge: JudgeOrNone = "exemplars",
    capability: CapabilityTexts = None,
    capability_limit: CapabilityLimit = None,
    screened: ScreenedFolders = None,
    contexts: ContextData = None,
    context: ContextTexts = None,
    context_share: ContextShare = 0.02,
    most_contexts: MostContexts = 6,
    extract_again: ExtractAgain = False,
    layer: LayerOption = None,
    questions: QuestionsOption = 20,
    rollouts: Rollouts = 3,
    max_new_tokens: MaxNewTokens = 96,
    temperature: Temperature = 0.7,
    seed: Seed = 0,
    allow_other_model: OnOtherModel = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
    batch: BatchOption = 32,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Say what fine-tuning did to a model's character.

    Base and tuned model are read on every trait's evaluation questions, answer them, and are scored by a judge;
    differences are paired by question. With --contexts or --context the questions are also asked under prompts like
    those of the training data, behind which a trait may hide; each context costs as much as the questions alone.

    Interrupt it when you like; the same command goes on where it stopped.
    """
    context_options = ContextOptions(data=contexts or [], texts=context or [], share=context_share, most=most_contexts)
    if show is not None:
        _show_read_data(capability or [], context_options, base, show, seed=seed, as_json=as_json)
        return
    options = MeasurementOptions(
        base=base,
        tuned=tuned,
        vectors=vector,
        out=out,
        judge=judge,
        capability=capability or [],
        capability_limit=capability_limit,
        layer=layer,
        generation=GenerationOptions(
            questions=questions,
            rollouts=rollouts,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            batch=batch,
        ),
        device=DeviceOptions(dtype=dtype, device=device, allow_other_model=allow_other_model),
        contexts=context_options,
        extract_again=extract_again,
        force=force,
    )
    _print_report(measure_now(options, screened), out, as_json=as_json)


def _print_report(report: ShiftReport, out: Path, *, as_json: bool) -> None:
    from poise.cli import facts

    if as_json:
        facts.print_json(_shift_json(report, out))
    else:
        show_shift(report, out)


def _show_read_data(
    capability: list[str], contexts: ContextOptions, model: str | None, n: int, *, seed: int, as_json: bool
) -> None:
    """The contexts under which questions would be asked, and the answers whose perplexity would be measured."""
    from poise.data import open_data

    sources = [text.partition("=")[2] for text in capability if text.startswith("perplexity=")]
    if not sources and not contexts.chosen:
        raise InvalidArgument(
            "A shift reads data for perplexity and contexts; name some with perplexity=DATA or --contexts."
        )
    show_inputs(contexts, [open_data([source]) for source in sources], model, n, seed=seed, as_json=as_json)


def measure_now(options: MeasurementOptions, screened: list[Path] | None = None) -> ShiftReport:
    """Measure, and write ``shift.json`` and ``report.html``."""
    if screened and len(screened) != len(options.tuned):
        raise InvalidArgument(
            f"{len(screened)} --screened for {len(options.tuned)} --tuned; give one for each, in their order."
        )
    with working():
        from poise.model.loading import check_model_exists
        from poise.shift import ShiftSettings, TunedModel, parse_capability, read_predictions
        from poise.workflows import measure_shift_files

        seed, limit = options.generation.seed, options.capability_limit
        contexts, context_notes = find_all_contexts(options.contexts, seed)
        settings = ShiftSettings(
            judge=None if options.judge == "none" else options.judge,
            layer=options.layer,
            allow_other_model=options.device.allow_other_model,
            capability=tuple(parse_capability(text, limit=limit, seed=seed) for text in options.capability),
            contexts=contexts,
            context_notes=context_notes,
            extract_again=options.extract_again,
            **asdict(options.generation),
        )
        predictions = [read_predictions(path) for path in screened] if screened else [{}] * len(options.tuned)
        models = zip(options.tuned, predictions, strict=True)
        return measure_shift_files(
            options.base,
            [TunedModel(source=source, predicted=predicted) for source, predicted in models],
            options.vectors,
            options.out,
            settings,
            load=lambda name: load_model(name, options.device.dtype, options.device.device),
            check=check_model_exists,
            inputs=(*(screened or ()), *options.contexts.files),
            force=options.force,
        )


def _shift_json(report: ShiftReport, out: Path) -> dict[str, Any]:
    """All figures without the single changes behind them, which ``shift.json`` has."""
    changes = {"__all__": {"changes"}}
    units = {"__all__": {"units_before", "units_after", "weights"}}
    under = {"__all__": {"cells": changes, "judged": changes}}
    omitted: Any = {"matrix": changes, "judged": changes, "capability": units, "samples": True, "contexts": under}
    figures = report.model_dump(mode="json", exclude={"asked": True, "tuned": {"__all__": omitted}})
    return {"out": str(out), "shift": str(out / "shift.json"), "report": str(out / "report.html"), **figures}


def show_shift(report: ShiftReport, out: Path) -> None:
    """Shifts, scores and capability as tables, and where the report lies."""
    from rich import box
    from rich.table import Table

    from poise.cli import render
    from poise.data import describe_left_out

    parts: list[Any] = []
    for tuned in report.tuned:
        parts += [f"{tuned.name} against {report.base}", _shift_table(tuned, report)]
        if usable := [j for j in tuned.judged if not j.why_unusable]:
            judged = Table("Judged", "Before", "After", "Change", box=box.SIMPLE_HEAD, pad_edge=False)
            for j in usable:
                judged.add_row(j.trait, *(format_estimate(f) for f in (j.before, j.after, j.change)))
            parts.append(judged)
        if tuned.capability:
            capability = Table("Capability", "Before", "After", "Change", box=box.SIMPLE_HEAD, pad_edge=False)
            for change in tuned.capability:
                digits = 2 if change.kind == "perplexity" else 3
                sides = (format_estimate(side, digits) for side in (change.before, change.after))
                capability.add_row(change.name, *sides, _capability_change(change))
            parts.append(capability)
            parts += [f"{c.name}, left out: {describe_left_out(c.omitted)}." for c in tuned.capability if c.omitted]
        parts += [*context_tables(tuned, report), *direction_table(tuned), *_remarks(tuned), *tuned.notes, ""]
    n = sorted({len(a.questions) for a in report.asked})
    parts += [
        f"n: {' or '.join(map(str, n))} questions read a trait{_answer_counts(report)}. Brackets hold 95 % intervals.",
        "",
        str(out / "shift.json"),
        str(out / "report.html"),
    ]
    render.show(parts)


def _shift_table(tuned: ModelShift, report: ShiftReport) -> Table:
    from rich import box
    from rich.table import Table

    table = Table("Trait", "Layer", "Shift", "In ‖v‖", box=box.SIMPLE_HEAD, pad_edge=False)
    if tuned.predicted:
        table.add_column("Predicted")
    for d in report.directions:
        cell = tuned.cell(d.trait)
        moved = cell.shift if cell else None
        share = "–" if moved is None or moved.value is None or not d.norm else f"{moved.value / d.norm:+.0%}"
        predicted = [format_estimate(tuned.predicted.get(d.trait), 2)] if tuned.predicted else []
        table.add_row(d.trait, f"{d.layer} of {d.layers}", format_estimate(moved, 2), share, *predicted)
    return table


def _answer_counts(report: ShiftReport) -> str:
    answered = sorted({a.judged for a in report.asked})
    return f", {' or '.join(map(str, answered))} answered {report.rollouts} times" if any(answered) else ""


def _remarks(tuned: ModelShift) -> list[str]:
    """Notes that the scores need."""
    out = [f"{j.trait}: scores do not count, because {j.why_unusable}." for j in tuned.judged if j.why_unusable]
    for j in tuned.judged:
        if lost := j.missing_before + j.missing_after:
            why = ", ".join(f"{n} {reason}" for reason, n in j.reasons.items())
            out.append(f"{j.trait}: {lost} of {2 * j.answers} answers have no score ({why}).")
    coherent = []
    for j in tuned.judged:
        before, after = format_estimate(j.coherence_before), format_estimate(j.coherence_after)
        coherent.append(f"{j.trait} {before} → {after}")
    return [*out, *([f"Coherence: {'; '.join(coherent)}."] if coherent else [])]


def _capability_change(capability: CapabilityChange) -> str:
    change = format_estimate(capability.change, 3)
    return f"× {change}" if capability.kind == "perplexity" else f"lost {change}"
