"""``poise gate``."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from poise.cli.contexts import (
    ContextData,
    ContextOptions,
    ContextShare,
    ContextTexts,
    ExtractAgain,
    MostContexts,
    format_estimate,
    show_inputs,
)
from poise.cli.options import (
    BatchOption,
    Device,
    Dtype,
    Force,
    Json,
    LayerOption,
    MaxNewTokens,
    OnOtherModel,
    QuestionsOption,
    Rollouts,
    Seed,
    ShowOption,
    Temperature,
)
from poise.cli.shift import (
    MEASURED_PANEL,
    CapabilityLimit,
    CapabilityTexts,
    DeviceOptions,
    GenerationOptions,
    JudgeOrNone,
    MeasurementOptions,
    measure_now,
)
from poise.cli.work import load_model, note, working
from poise.errors import InvalidArgument, InvalidData, SaveFailed

if TYPE_CHECKING:
    from poise.screen.projection import ScoringMethod
    from poise.shift.limits import GateResult, ShiftLimits

__all__ = ["gate_command"]

MeasuredFile = Annotated[
    Path | None,
    typer.Option("--measured", metavar="JSON", dir_okay=False, help="A shift.json, instead of measuring now."),
]


LimitsFile = Annotated[
    Path, typer.Argument(metavar="LIMITS.yaml", dir_okay=False, help="The limits.", show_default=False)
]
BaseOrNone = Annotated[str | None, typer.Option("--base", metavar="M", help="The model before fine-tuning.")]
TunedOrNone = Annotated[
    list[str] | None,
    typer.Option("--tuned", metavar="M2", help="The model after it: a folder, a hub id, or a PEFT adapter folder."),
]
VectorsOrNone = Annotated[
    list[Path] | None, typer.Option("--vector", metavar="FILE", dir_okay=False, help="Once for each trait.")
]
OutOrNone = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", metavar="DIR", file_okay=False, help="The folder for what is measured, gate.md and gate.xml."
    ),
]
TrainingData = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        metavar="DATA",
        help="The training data, to hold what screening predicts of them against the limits; without --tuned, before "
        "any training. Several add up.",
    ),
]
ScreeningMethod = Annotated[
    Literal["difference", "prompt"],
    typer.Option(
        "--method", help="How --data are screened; limits hold for one method.", rich_help_panel=MEASURED_PANEL
    ),
]
SummaryFile = Annotated[
    Path | None,
    typer.Option("--summary", metavar="FILE", dir_okay=False, help="Write the summary there, in Markdown."),
]
JunitFile = Annotated[
    Path | None, typer.Option("--junit", metavar="FILE", dir_okay=False, help="Write JUnit XML there.")
]


def gate_command(
    limits: LimitsFile,
    measured: MeasuredFile = None,
    base: BaseOrNone = None,
    tuned: TunedOrNone = None,
    vector: VectorsOrNone = None,
    out: OutOrNone = None,
    data: TrainingData = None,
    show: ShowOption = None,
    summary: SummaryFile = None,
    junit: JunitFile = None,
    judge: JudgeOrNone = "exemplars",
    capability: CapabilityTexts = None,
    capability_limit: CapabilityLimit = None,
    method: ScreeningMethod = "difference",
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
    """Hold what fine-tuning did, or its data would do, against limits: exit code 0 if all are kept, else 1.

    A limit is kept when the whole interval lies within it, broken when the whole interval lies beyond, and else unsure;
    unsure fails unless the limits say otherwise. What is missing, or measured on fewer units than min_n, fails always.

    In GitHub Actions the summary is also added to the page of the job.
    """
    context_options = ContextOptions(data=contexts or [], texts=context or [], share=context_share, most=most_contexts)
    if show is not None:
        _show_data(data or [], capability or [], context_options, base, show, seed=seed, as_json=as_json)
        return
    checked = _read_limits(limits)
    inputs = _named_paths([limits, measured, base], vector, data, tuned, capability, context_options.files)
    summary, junit = _check_outputs(summary, junit, out, inputs, force=force)
    if measured is not None:
        result = _check_measured(measured, checked, alone=not (base or tuned or vector or data))
    else:
        base, vector, out = _check_named(base, vector, out, work=tuned or data)
        how: dict[str, Any] = {"judge": judge, "extract_again": extract_again, "layer": layer, "force": force}
        amount = {"questions": questions, "rollouts": rollouts, "max_new_tokens": max_new_tokens, "batch": batch}
        options = MeasurementOptions(
            base=base,
            tuned=tuned or [],
            vectors=vector,
            out=out,
            capability=capability or [],
            capability_limit=capability_limit,
            generation=GenerationOptions(temperature=temperature, seed=seed, **amount),
            device=DeviceOptions(dtype=dtype, device=device, allow_other_model=allow_other_model),
            contexts=context_options,
            **how,
        )
        result = _measure_and_check(options, checked, data or [], method)
    _finish(result, summary, junit, as_json=as_json)


def _read_limits(path: Path) -> ShiftLimits:
    from poise.shift.limits import read_limits

    return read_limits(path)


def _named_paths(*options: Iterable[str | Path | None] | None) -> list[Path]:
    """Files, data, models and capability sets as paths; some may be names of something else."""
    names = [str(name) for option in options for name in option or () if name]
    return [Path(name.removeprefix(f"{name.partition('=')[0]}=")).expanduser() for name in names]


def _check_named(
    base: str | None, vectors: list[Path] | None, out: Path | None, *, work: list[str] | None
) -> tuple[str, list[Path], Path]:
    """What measuring needs, if all of it is named."""
    if base and vectors and out and work:
        return base, vectors, out
    raise InvalidArgument(
        "Give --measured shift.json, or --base, --vector, --out and --tuned, --data or both to measure now."
    )


def _show_data(
    data: list[str],
    capability: list[str],
    contexts: ContextOptions,
    model: str | None,
    n: int,
    *,
    seed: int,
    as_json: bool,
) -> None:
    """The answers that screening and perplexity would read, and the contexts under which questions would be asked."""
    from poise.data import open_data

    texts = [text.partition("=")[2] for text in capability if text.startswith("perplexity=")]
    if not data and not texts and not contexts.chosen:
        raise InvalidArgument(
            "A gate reads conversations with --data and --contexts, and for perplexity; name some, or perplexity=DATA "
            "with --capability."
        )
    opened = [open_data(data)] if data else []
    opened += [open_data([source]) for source in texts]
    show_inputs(contexts, opened, model, n, seed=seed, as_json=as_json)


def _finish(result: GateResult, summary: Path | None, junit: Path | None, *, as_json: bool) -> None:
    """Write and show the result, and end with its exit code."""
    from poise.cli import facts

    _write_summaries(result, summary, junit)
    if as_json:
        facts.print_json(_gate_json(result))
    else:
        _show_gate(result)
    if not result.passed:
        raise typer.Exit(1)


def _check_outputs(
    summary: Path | None, junit: Path | None, out: Path | None, inputs: list[Path], *, force: bool
) -> tuple[Path | None, Path | None]:
    """The files for people and machines, checked before any measurement to be such as can be written."""
    from poise.shift.limits import JUNIT_BEGINS, MARKDOWN_BEGINS
    from poise.storage.output import check_output, same_file

    if out:
        summary, junit = summary or out / "gate.md", junit or out / "gate.xml"
    if summary and junit and same_file(summary, junit):
        raise InvalidArgument(f"{summary} is both `summary` and `junit`; name two files.")
    for path, begins in ((summary, MARKDOWN_BEGINS), (junit, JUNIT_BEGINS)):
        if path is not None:
            check_output(path, inputs=inputs, loss=partial(_foreign_summary, begins), force=force)
    return summary, junit


def _foreign_summary(begins: str, path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(len(begins.encode()))
    return "" if start in (b"", begins.encode()) else "something that `poise gate` did not write"


def _check_measured(measured: Path, limits: ShiftLimits, *, alone: bool) -> GateResult:
    """Check what an earlier run measured."""
    from poise.shift.limits import gate
    from poise.shift.report import load_report

    if not alone:
        raise InvalidArgument("Give --measured, or --base, --vector and --tuned or --data to measure; not both.")
    return gate(load_report(measured), limits)


def _measure_and_check(
    options: MeasurementOptions, limits: ShiftLimits, data: list[str], method: ScoringMethod
) -> GateResult:
    """Screen the data, measure the tuned models, and check both against the limits."""
    with working():
        from poise import vector as vectors
        from poise.shift import gate, gate_predictions, parse_capability, read_predictions
        from poise.shift.limits import check_limits_are_measured
        from poise.vector.algebra import check_distinct

        opened = [vectors.load_vector(path) for path in options.vectors]
        check_distinct(opened)
        names = [vector.name for vector in opened]
        tasks = [parse_capability(text).name for text in options.capability]
        judged, tuned, screened = options.judge != "none", bool(options.tuned), bool(data)
        measured = {"judged": judged, "tuned": tuned, "screened": screened, "contexts": options.contexts.chosen}
        check_limits_are_measured(limits, names, tasks, **measured)
    folder = _screen_data(options, limits, data, method) if data else None
    if folder and not options.tuned:
        return gate_predictions(", ".join(data), read_predictions(folder), limits)
    return gate(measure_now(options, [folder] * len(options.tuned) if folder else None), limits)


def _screen_data(options: MeasurementOptions, limits: ShiftLimits, data: list[str], method: ScoringMethod) -> Path:
    """Screen as ``poise screen`` does, and return the folder."""
    from poise.data import open_data

    dataset = open_data(data)
    note(dataset.how)
    with working():
        from poise.screen.scoring import ScreenSettings
        from poise.workflows import screen_files

        plan = ScreenSettings(
            method=method,
            layer=options.layer,
            max_new_tokens=options.generation.max_new_tokens,
            batch=options.generation.batch,
            seed=options.generation.seed,
            broken=limits.missing,
        )
        model = partial(load_model, options.base, options.device.dtype, options.device.device)
        out, name = options.out / "screened", ", ".join(data)
        allowed: dict[str, Any] = {"allow_other_model": options.device.allow_other_model, "force": options.force}
        screening = screen_files(dataset, options.vectors, model, out, plan, name=name, **allowed)
    if screening.lost > limits.missing:
        raise InvalidData(
            f"{screening.lost:.0%} of {name} has no score, more than the {limits.missing:.0%} that `missing` allows; "
            f"see {out / 'summary.json'}, fix the data, or allow more."
        )
    return out


def _write_summaries(result: GateResult, summary: Path | None, junit: Path | None) -> None:
    """Write the summaries for people and machines; GitHub's is appended to its page."""
    from poise.shift.limits import junit_xml, markdown_summary
    from poise.storage.atomic_write import saving

    for path, text in ((summary, markdown_summary(result)), (junit, junit_xml(result))):
        if path is not None:
            with saving(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
    if page := os.environ.get("GITHUB_STEP_SUMMARY"):
        try:
            with Path(page).open("a", encoding="utf-8") as file:
                file.write(markdown_summary(result))
        except OSError as error:
            raise SaveFailed(f"Cannot add to GITHUB_STEP_SUMMARY ({page}): {error.strerror or error}.") from error


def _gate_json(result: GateResult) -> dict[str, Any]:
    return {
        "passed": result.passed,
        "checks": [
            {
                "tuned": c.tuned,
                "limit_of": c.limit_of,
                "limit": c.limit.most,
                "least": c.limit.least,
                "measured": c.measured and c.measured.model_dump(),
                "outcome": c.outcome,
                "passed": c.passed,
                "words": c.explanation,
            }
            for c in result.checks
        ],
    }


def _show_gate(result: GateResult) -> None:
    from rich.text import Text

    from poise.cli import render

    failed = sum(not c.passed for c in result.checks)
    head = "passed" if result.passed else f"failed: {failed} of {len(result.checks)} limits"
    lines: list[Any] = [f"gate {head}"]
    for c in result.checks:
        style = "" if c.passed else "bold"
        measured = "–" if c.measured is None else format_estimate(c.measured, 3)
        text = f"  {c.tuned}  {c.limit_of} {measured}, {c.limit}: {c.explanation}"
        lines.append(Text.assemble((c.outcome, style), text))
    render.show(lines)
    if not result.passed:
        note("Fix what failed by other data, another fine-tune or other limits; see docs/shift.md.")
