"""``poise gate``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from poise.cli.options import Batch, Device, Dtype, Json, MaxNewTokens, Questions, Rollouts, Seed, Temperature
from poise.cli.shift import Abilities, AbilityLimit, JudgeOrNone, Layer, figure, measure_now
from poise.cli.work import note
from poise.errors import InvalidOption, SaveFailed

if TYPE_CHECKING:
    from poise.vaccinate.gate import Gated

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
    summary: Summary = None,
    junit: Junit = None,
    judge: JudgeOrNone = "exemplars",
    capability: Abilities = None,
    capability_limit: AbilityLimit = None,
    layer: Layer = None,
    questions: Questions = 20,
    rollouts: Rollouts = 3,
    max_new_tokens: MaxNewTokens = 96,
    temperature: Temperature = 0.7,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    device: Device = "auto",
    batch: Batch = 32,
    as_json: Json = False,
) -> None:
    """Hold what fine-tuning did against limits: exit code 0 if all are kept, else 1.

    A limit is kept when the whole interval lies within it, broken when the whole interval lies beyond, and else unsure;
    unsure fails unless the limits say otherwise. What is missing fails always.

    In GitHub Actions the summary is also added to the page of the job.
    """
    from poise.cli import facts
    from poise.vaccinate import gate as gates
    from poise.vaccinate import measured as reports

    wanted = gates.read_limits(limits)
    if measured is not None:
        if base or tuned or vector:
            raise InvalidOption("Give --measured, or --base, --tuned and --vector to measure now; not both.")
        report = reports.load(measured)
    else:
        if not (base and tuned and vector and out):
            raise InvalidOption("Give --measured shift.json, or --base, --tuned, --vector and --out to measure now.")
        report = measure_now(
            base,
            tuned,
            vector,
            out,
            judge=judge,
            capability=capability,
            limit=capability_limit,
            screened=None,
            layer=layer,
            amount=(questions, rollouts, max_new_tokens, temperature, seed, batch),
            dtype=dtype,
            device=device,
            limits=wanted,
        )
    done = gates.gate(report, wanted)
    _keep(done, summary or (out / "gate.md" if out else None), junit or (out / "gate.xml" if out else None))
    if as_json:
        facts.print_json(_gate_facts(done))
    else:
        _show_gate(done)
    if not done.passed:
        raise typer.Exit(1)


def _keep(done: Gated, summary: Path | None, junit: Path | None) -> None:
    """Files for people and machines; what GitHub shows is appended to, as it asks."""
    from poise.journal import saving
    from poise.vaccinate import gate as gates

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
        note("What failed is to be mended by another fine-tune, or by other limits; see docs/shift.md.")
