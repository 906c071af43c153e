"""``poise gate``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from poise.cli.options import (
    Batch,
    Device,
    Dtype,
    Json,
    Layer,
    MaxNewTokens,
    OnOtherModel,
    Questions,
    Rollouts,
    Seed,
    Temperature,
)
from poise.cli.shift import MEASURED, Abilities, AbilityLimit, Amount, Job, JudgeOrNone, Machine, figure, measure_now
from poise.cli.work import load_model, note, working
from poise.errors import InvalidArgument, InvalidData, SaveFailed

if TYPE_CHECKING:
    from poise.screen.projection import Method
    from poise.shift.gate import Gated, Limits

__all__ = ["gate"]

Measured = Annotated[
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
Data = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        metavar="DATA",
        help="The training data, to hold what screening predicts of them against the limits; without --tuned, before "
        "any training. Several add up.",
    ),
]
How = Annotated[
    Literal["difference", "prompt"],
    typer.Option("--method", help="How --data are screened; limits hold for one method.", rich_help_panel=MEASURED),
]
Summary = Annotated[
    Path | None,
    typer.Option("--summary", metavar="FILE", dir_okay=False, help="Write the summary there, in Markdown."),
]
Junit = Annotated[Path | None, typer.Option("--junit", metavar="FILE", dir_okay=False, help="Write JUnit XML there.")]


def gate(
    limits: LimitsFile,
    measured: Measured = None,
    base: BaseOrNone = None,
    tuned: TunedOrNone = None,
    vector: VectorsOrNone = None,
    out: OutOrNone = None,
    data: Data = None,
    summary: Summary = None,
    junit: Junit = None,
    judge: JudgeOrNone = "exemplars",
    capability: Abilities = None,
    capability_limit: AbilityLimit = None,
    method: How = "difference",
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
    """Hold what fine-tuning did, or its data would do, against limits: exit code 0 if all are kept, else 1.

    A limit is kept when the whole interval lies within it, broken when the whole interval lies beyond, and else unsure;
    unsure fails unless the limits say otherwise. What is missing fails always.

    In GitHub Actions the summary is also added to the page of the job.
    """
    from poise.cli import facts
    from poise.shift import gate as gates
    from poise.shift import report as reports

    wanted = gates.read_limits(limits)
    if measured is not None:
        if base or tuned or vector or data:
            raise InvalidArgument(
                "Give --measured, or --base, --vector and --tuned or --data to measure now; not both."
            )
        done = gates.gate(reports.load(measured), wanted)
    elif not (base and vector and out and (tuned or data)):
        raise InvalidArgument(
            "Give --measured shift.json, or --base, --vector, --out and --tuned, --data or both to measure now."
        )
    else:
        amount = Amount(questions, rollouts, max_new_tokens, temperature, seed, batch)
        machine = Machine(dtype, device, allow_other_model)
        job = Job(base, tuned or [], vector, out, judge, capability or [], capability_limit, layer, amount, machine)
        done = _measure(job, wanted, data or [], method)
    _keep(done, summary or (out / "gate.md" if out else None), junit or (out / "gate.xml" if out else None))
    if as_json:
        facts.print_json(_gate_facts(done))
    else:
        _show_gate(done)
    if not done.passed:
        raise typer.Exit(1)


def _measure(job: Job, wanted: Limits, data: list[str], method: Method) -> Gated:
    """Screen the data, measure the tuned models, and hold both against the limits."""
    with working():
        from poise import vector as vectors
        from poise.shift import gate as gates
        from poise.shift.capability import parse
        from poise.shift.measure import read_screened

        names = [vectors.load(path).name for path in job.vectors]
        abilities = [parse(text).name for text in job.capability]
        judged, tuned, screened = job.judge != "none", bool(job.tuned), bool(data)
        gates.check_plan(wanted, names, abilities, judged=judged, tuned=tuned, screened=screened)
    folder = _screen(job, wanted, data, method) if data else None
    if folder and not job.tuned:
        return gates.gate_data(", ".join(data), read_screened(folder), wanted)
    return gates.gate(measure_now(job, [folder] * len(job.tuned) if folder else None), wanted)


def _screen(job: Job, wanted: Limits, data: list[str], method: Method) -> Path:
    """Do as ``poise screen`` does; the folder."""
    from poise.data import open_data

    opened = open_data(data)
    note(opened.how)
    with working():
        from poise import workflows as recipes
        from poise.screen.scoring import Plan

        plan = Plan(
            method,
            layer=job.layer,
            max_new_tokens=job.amount.max_new_tokens,
            batch=job.amount.batch,
            seed=job.amount.seed,
            broken=wanted.missing,
        )
        model = load_model(job.base, job.machine.dtype, job.machine.device)
        out, name = job.out / "screened", ", ".join(data)
        done = recipes.screen_files(
            opened, job.vectors, model, out, plan, name=name, allow_other_model=job.machine.other
        )
    if done.lost > wanted.missing:
        raise InvalidData(
            f"{done.lost:.0%} of {name} has no score, more than the {wanted.missing:.0%} that `missing` allows; see "
            f"{out / 'summary.json'}, mend the data, or allow more."
        )
    return out


def _keep(done: Gated, summary: Path | None, junit: Path | None) -> None:
    """Files for people and machines; what GitHub shows is appended to, as it asks."""
    from poise.shift import gate as gates
    from poise.storage.atomic_write import saving

    for path, text in ((summary, gates.markdown(done)), (junit, gates.junit(done))):
        if path is not None:
            with saving(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
    if page := os.environ.get("GITHUB_STEP_SUMMARY"):
        try:
            with Path(page).open("a", encoding="utf-8") as file:
                file.write(gates.markdown(done))
        except OSError as error:
            raise SaveFailed(f"Cannot add to GITHUB_STEP_SUMMARY ({page}): {error.strerror or error}.") from error


def _gate_facts(done: Gated) -> dict[str, Any]:
    return {
        "passed": done.passed,
        "checks": [
            {
                "tuned": c.tuned,
                "limit_of": c.what,
                "limit": c.limit,
                "measured": c.found and c.found.model_dump(),
                "outcome": c.outcome,
                "passed": c.passed,
                "words": c.words,
            }
            for c in done.checks
        ],
    }


def _show_gate(done: Gated) -> None:
    from rich.text import Text

    from poise.cli import render

    failed = sum(not c.passed for c in done.checks)
    head = "passed" if done.passed else f"failed: {failed} of {len(done.checks)} limits"
    lines: list[Any] = [f"gate {head}"]
    for c in done.checks:
        style = "" if c.passed else "bold"
        found = "–" if c.found is None else figure(c.found, 3)
        lines.append(
            Text.assemble((c.outcome, style), f"  {c.tuned}  {c.what} {found}, at most {c.limit:g}: {c.words}")
        )
    render.show(lines)
    if not done.passed:
        note("What failed is to be mended by other data, another fine-tune or other limits; see docs/shift.md.")
