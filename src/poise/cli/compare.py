"""``poise compare``."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from poise.cli.options import Force, Json
from poise.cli.work import working
from poise.counting import counted
from poise.errors import InvalidArgument

if TYPE_CHECKING:
    from rich.table import Table

    from poise.comparison import ArmResult, Comparison

__all__ = ["compare_command"]


def compare_command(
    task: Annotated[
        Path | None,
        typer.Argument(
            metavar="TASK.yaml", dir_okay=False, help="All settings; see docs/comparison.md.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="DIR", file_okay=False, help="The folder for the results.", show_default=False
        ),
    ] = None,
    example: Annotated[
        bool, typer.Option("--example", help="Print a file with all settings, commented, and stop.")
    ] = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Compare base, retrieval, fine-tuning and both on one task: accuracy, cost, and what each does to the character.

    Interrupt it when you like; the same command goes on where it was.
    """
    from poise.cli import facts

    if example:
        typer.echo(resources.files("poise.comparison").joinpath("example.yaml").read_text("utf-8"), nl=False)
        return
    if task is None or out is None:
        raise InvalidArgument(
            "Give a file of settings and a folder: poise compare TASK.yaml --out DIR; `poise compare --example` prints "
            "a file to begin with."
        )
    with working():
        from poise.comparison import ComparisonTask
        from poise.settings import located_faults, read_settings
        from poise.workflows import compare_arms

        settings = read_settings(task, ComparisonTask, check=ComparisonTask.faults)
        with located_faults(task, ComparisonTask):
            comparison = compare_arms(settings, out, inputs=(task,), force=force)
    if as_json:
        facts.print_json(_comparison_json(comparison, out))
    else:
        _print_comparison(comparison, out)


def _comparison_json(comparison: Comparison, out: Path) -> dict[str, Any]:
    """All figures without single answers, which ``result.json`` has."""
    arms: Any = {"__all__": {"answers"}}
    figures = comparison.model_dump(mode="json", exclude={"arms": arms, "samples": True, "settings": True})
    return {"out": str(out), "result": str(out / "result.json"), "report": str(out / "report.html"), **figures}


def _print_comparison(comparison: Comparison, out: Path) -> None:
    from poise.cli import render

    parts: list[Any] = [_accuracy_table(comparison)]
    if any(arm.citation_recall for arm in comparison.arms):
        parts.append(_citation_table(comparison))
    if comparison.arms[0].traits:
        parts.append(_character_table(comparison))
    parts.append(_cost_table(comparison))
    parts += _capability_lines(comparison)
    n = comparison.arms[0].accuracy.n
    seeds = f", {counted(len(comparison.seeds), 'training run')}" if comparison.seeds else ""
    parts += [f"n = {n} questions{seeds}. Brackets hold 95 % intervals.", ""]
    recommendation = comparison.recommendation
    parts += [f"Recommended: {recommendation.verdict}. {recommendation.sentence}"]
    parts += [f"  {reason}" for reason in (*recommendation.reasons, *recommendation.cautions)]
    parts += ["", str(out / "result.json"), str(out / "report.html")]
    render.show(parts)


def _arm_table(*columns: str) -> Table:
    from rich import box
    from rich.table import Table

    return Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)


def _arm_figure(estimate: Any, digits: int = 2) -> str:
    from poise.cli.contexts import format_estimate

    return "–" if estimate is None else format_estimate(estimate, digits)


def _accuracy_table(comparison: Comparison) -> Table:
    table = _arm_table("Arm", "Right", "Against the base", "Says it has none")
    for arm in comparison.arms:
        table.add_row(arm.title, _arm_figure(arm.accuracy), _arm_figure(arm.gain), _arm_figure(arm.refusals))
    return table


def _citation_table(comparison: Comparison) -> Table:
    table = _arm_table("Arm", "Citations right", "Sentences cited rightly", "Unsupported", "Document found")
    for arm in comparison.arms:
        if arm.citation_recall:
            figures = (arm.citation_precision, arm.citation_recall, arm.unsupported, arm.retrieved)
            table.add_row(arm.title, *map(_arm_figure, figures))
    return table


def _character_table(comparison: Comparison) -> Table:
    table = _arm_table("Arm", "Trait", "Shift", "In ‖v‖", "Judged")
    for arm in comparison.arms[1:]:
        for trait in arm.traits:
            value = trait.shift.value
            share = "–" if value is None or not trait.norm else f"{value / trait.norm:+.0%}"
            table.add_row(arm.title, trait.trait, _arm_figure(trait.shift), share, _arm_figure(trait.judged, 1))
    return table


def _cost_table(comparison: Comparison) -> Table:
    table = _arm_table("Arm", "Seconds an answer", "Tokens", "Of prompt", "Training")
    for arm in comparison.arms:
        figures = (_arm_figure(arm.seconds), _arm_figure(arm.tokens, 1), _arm_figure(arm.prompt_tokens, 0))
        table.add_row(arm.title, *figures, _training_words(arm))
    return table


def _training_words(arm: ArmResult) -> str:
    if arm.training is None:
        return "–"
    cost = arm.training
    return f"{cost.runs} × {cost.steps // cost.runs} steps, {cost.seconds:.0f} s, {cost.tokens:,} tokens"


def _capability_lines(comparison: Comparison) -> list[str]:
    return [
        f"{arm.title}, {ability.name}: {'after / before' if ability.kind == 'perplexity' else 'lost'} "
        + "; ".join(_arm_figure(change, 3) for change in ability.change)
        + f" (n = {ability.before.n})."
        for arm in comparison.arms
        for ability in arm.capability
    ]
