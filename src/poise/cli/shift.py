"""``poise shift``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from poise.cli.options import (
    Batch,
    Device,
    Dtype,
    DtypeName,
    Json,
    Layer,
    MaxNewTokens,
    OnOtherModel,
    OutFolder,
    Questions,
    Rollouts,
    Seed,
    Temperature,
    Vectors,
)
from poise.cli.work import load_model, working
from poise.errors import InvalidArgument

if TYPE_CHECKING:
    from rich.table import Table

    from poise.shift.report import Capability, Shift, ShiftReport
    from poise.statistics.estimates import Estimate

__all__ = [
    "MEASURED",
    "Abilities",
    "AbilityLimit",
    "Amount",
    "Job",
    "JudgeOrNone",
    "Machine",
    "figure",
    "measure_now",
    "shift",
    "show_measured",
]

MEASURED = "What is measured"

Base = Annotated[
    str,
    typer.Option(
        "--base",
        metavar="M",
        help="The model before fine-tuning, on which the vectors were computed.",
        show_default=False,
    ),
]
TunedModels = Annotated[
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
Abilities = Annotated[
    list[str] | None,
    typer.Option(
        "--capability",
        metavar="WHAT",
        help="perplexity=DATA, NAME=FILE.jsonl (question, choices, answer), NAME-cloze=FILE.jsonl for small models, a "
        "task that lm-eval knows, or a task's .yaml. Several add up.",
        rich_help_panel=MEASURED,
    ),
]
AbilityLimit = Annotated[
    int | None,
    typer.Option(
        "--capability-limit",
        metavar="N",
        min=1,
        help="Most rows of each, drawn at random; of lm-eval's own tasks the first.",
        rich_help_panel=MEASURED,
    ),
]
Screened = Annotated[
    list[Path] | None,
    typer.Option(
        "--screened",
        metavar="DIR",
        file_okay=False,
        help="What poise screen wrote of the training data, to show the prediction beside: once for each --tuned.",
        rich_help_panel=MEASURED,
    ),
]


@dataclass(frozen=True)
class Amount:
    """How many answers, how long, and how they are drawn."""

    questions: int
    rollouts: int
    max_new_tokens: int
    temperature: float
    seed: int
    batch: int


@dataclass(frozen=True)
class Machine:
    """How the models run, and whether on vectors of another one."""

    dtype: DtypeName
    device: str
    other: bool


@dataclass(frozen=True)
class Job:
    """What the options of a command that measures say; see each option."""

    base: str
    tuned: list[str]
    vectors: list[Path]
    out: Path
    judge: str
    capability: list[str]
    limit: int | None
    layer: int | None
    amount: Amount
    machine: Machine


def shift(
    base: Base,
    tuned: TunedModels,
    vector: Vectors,
    out: OutFolder,
    judge: JudgeOrNone = "exemplars",
    capability: Abilities = None,
    capability_limit: AbilityLimit = None,
    screened: Screened = None,
    layer: Layer = None,
    questions: Questions = 20,
    rollouts: Rollouts = 3,
    max_new_tokens: MaxNewTokens = 96,
    temperature: Temperature = 0.7,
    seed: Seed = 0,
    allow_other_model: OnOtherModel = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
    batch: Batch = 32,
    as_json: Json = False,
) -> None:
    """Say what fine-tuning did to a model's character.

    Base and tuned model are read on every trait's evaluation questions, answer them, and are scored by a judge;
    differences are paired by question.

    Interrupt it when you like; the same command goes on where it stopped.
    """
    from poise.cli import facts

    amount = Amount(questions, rollouts, max_new_tokens, temperature, seed, batch)
    machine = Machine(dtype, device, allow_other_model)
    job = Job(base, tuned, vector, out, judge, capability or [], capability_limit, layer, amount, machine)
    done = measure_now(job, screened)
    if as_json:
        facts.print_json(_facts(done, out))
    else:
        show_measured(done, out)


def measure_now(job: Job, screened: list[Path] | None = None) -> ShiftReport:
    """Measure, and write ``shift.json`` and ``report.html``."""
    if screened and len(screened) != len(job.tuned):
        raise InvalidArgument(
            f"{len(screened)} --screened for {len(job.tuned)} --tuned; give one for each, in their order."
        )
    with working():
        from poise import vector as vectors
        from poise.report.shift import check_extra, write_shift
        from poise.shift import report as measured
        from poise.shift.capability import parse
        from poise.shift.measure import Plan, Tuned, measure, read_screened

        check_extra()
        plan = Plan(
            judge=None if job.judge == "none" else job.judge,
            layer=job.layer,
            allow_other_model=job.machine.other,
            abilities=tuple(parse(text, limit=job.limit, seed=job.amount.seed) for text in job.capability),
            **asdict(job.amount),
        )
        said = [read_screened(folder) for folder in screened] if screened else [{}] * len(job.tuned)
        done = measure(
            job.base,
            [Tuned(source, predicted=predicted) for source, predicted in zip(job.tuned, said, strict=True)],
            [vectors.load(path) for path in job.vectors],
            plan,
            folder=job.out / ".run",
            load=lambda name: load_model(name, job.machine.dtype, job.machine.device),
        )
        measured.save(done, job.out / "shift.json")
        write_shift(done, job.out / "report.html")
    return done


def _facts(done: ShiftReport, out: Path) -> dict[str, Any]:
    """All figures without the single changes behind them, which ``shift.json`` has."""
    changes = {"__all__": {"changes"}}
    units = {"__all__": {"units_before", "units_after", "weights"}}
    left_out: Any = {"matrix": changes, "judged": changes, "capability": units, "samples": True}
    shown = done.model_dump(mode="json", exclude={"asked": True, "tuned": {"__all__": left_out}})
    return {"out": str(out), "shift": str(out / "shift.json"), "report": str(out / "report.html"), **shown}


def show_measured(done: ShiftReport, out: Path) -> None:
    """Shifts, scores and capabilities as tables, and where the report lies."""
    from rich import box
    from rich.table import Table

    from poise.cli import render

    parts: list[Any] = []
    for tuned in done.tuned:
        parts += [f"{tuned.name} against {done.base}", _shifts(tuned, done)]
        if counting := [j for j in tuned.judged if not j.why_unusable]:
            judged = Table("Judged", "Before", "After", "Change", box=box.SIMPLE_HEAD, pad_edge=False)
            for j in counting:
                judged.add_row(j.trait, *(figure(f) for f in (j.before, j.after, j.change)))
            parts.append(judged)
        if tuned.capability:
            able = Table("Capability", "Before", "After", "Change", box=box.SIMPLE_HEAD, pad_edge=False)
            for one in tuned.capability:
                digits = 2 if one.kind == "perplexity" else 3
                able.add_row(one.name, figure(one.before, digits), figure(one.after, digits), _change(one))
            parts.append(able)
        parts += [*_remarks(tuned), *tuned.notes, ""]
    n = sorted({len(a.questions) for a in done.asked})
    parts += [
        f"n: {' or '.join(map(str, n))} questions read a trait{_answered(done)}. Brackets hold 95 % intervals.",
        "",
        str(out / "shift.json"),
        str(out / "report.html"),
    ]
    render.show(parts)


def _shifts(tuned: Shift, done: ShiftReport) -> Table:
    from rich import box
    from rich.table import Table

    table = Table("Trait", "Layer", "Shift", "In ‖v‖", box=box.SIMPLE_HEAD, pad_edge=False)
    if tuned.predicted:
        table.add_column("Predicted")
    for d in done.directions:
        cell = tuned.cell(d.trait)
        moved = cell.shift if cell else None
        share = "–" if moved is None or moved.value is None or not d.norm else f"{moved.value / d.norm:+.0%}"
        said = [figure(tuned.predicted.get(d.trait), 2)] if tuned.predicted else []
        table.add_row(d.trait, f"{d.layer} of {d.layers}", figure(moved, 2), share, *said)
    return table


def _answered(done: ShiftReport) -> str:
    asked = sorted({a.judged for a in done.asked})
    return f", {' or '.join(map(str, asked))} answered {done.rollouts} times" if any(asked) else ""


def _remarks(tuned: Shift) -> list[str]:
    """What the scores do not say by themselves."""
    out = [f"{j.trait}: scores do not count, because {j.why_unusable}." for j in tuned.judged if j.why_unusable]
    for j in tuned.judged:
        if lost := j.missing_before + j.missing_after:
            why = ", ".join(f"{n} {reason}" for reason, n in j.reasons.items())
            out.append(f"{j.trait}: {lost} of {2 * j.answers} answers have no score ({why}).")
    coherent = [f"{j.trait} {figure(j.coherence_before)} → {figure(j.coherence_after)}" for j in tuned.judged]
    return [*out, *([f"Coherence: {'; '.join(coherent)}."] if coherent else [])]


def _change(of: Capability) -> str:
    return f"× {figure(of.change, 3)}" if of.kind == "perplexity" else f"lost {figure(of.change, 3)}"


def figure(of: Estimate | None, digits: int = 1) -> str:
    """``1.5 [1.2, 1.8]``."""
    if of is None or of.value is None:
        return "–"
    if of.low is None or of.high is None:
        return f"{of.value:.{digits}f}"
    return f"{of.value:.{digits}f} [{of.low:.{digits}f}, {of.high:.{digits}f}]"
