"""What ``poise screen`` prints when it is done."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from poise.counting import counted
from poise.data.addresses import is_address

if TYPE_CHECKING:
    from poise.screen.compare_methods import MethodComparison
    from poise.screen.summary import ScreeningSummary, TraitSummary
    from poise.statistics.estimates import Estimate

__all__ = ["show_screening"]


def show_screening(result: MethodComparison | ScreeningSummary, out: str, *, as_json: bool) -> None:
    """Print what was screened into ``out``, a folder or an address, or how far the methods agree."""
    from poise.cli import facts
    from poise.screen.summary import ScreeningSummary

    if not isinstance(result, ScreeningSummary):
        if as_json:
            facts.print_json(result.model_dump(mode="json"))
        else:
            _show_comparison(result)
    elif as_json:
        facts.print_json(_summary_json(result, out))
    else:
        _show_summary(result, out)


def _summary_json(done: ScreeningSummary, out: str) -> dict[str, Any]:
    return {
        "out": out,
        "files": {PurePath(path).stem: path for path in _output_files(done, out)},
        "method": done.method,
        "rows": done.rows,
        ("pairs" if done.method == "preference" else "answers"): done.units,
        "rejected": done.rejected,
        "unread": done.unread,
        "omitted": done.omitted,
        "part": done.part,
        "cut": done.cut,
        "flagged_rows": done.flagged_rows,
        "rate": done.rate.model_dump(mode="json") if done.rate else None,
        "reach": [one.model_dump(mode="json") for one in done.reach],
        "traits": [
            t.model_dump(
                mode="json",
                include={
                    "trait",
                    "layer",
                    "units",
                    "flagged",
                    "threshold",
                    "bands",
                    "outside",
                    "rule",
                    "mean",
                    "normal",
                    "predicts",
                    "cascade",
                },
            )
            for t in done.traits
        ],
        "notes": list(done.notes),
    }


def _output_files(done: ScreeningSummary, out: str) -> list[str]:
    names = (*done.files, "summary.json", "report.html")
    if is_address(out):
        return [f"{out.rstrip('/')}/{name}" for name in names]
    return [str(path) for path in (Path(out) / name for name in names) if path.exists()]


def _show_summary(done: ScreeningSummary, out: str) -> None:
    from rich import box
    from rich.table import Table

    from poise.cli import render
    from poise.data import describe_left_out

    table = Table(box=box.SIMPLE_HEAD)
    for title in ("Trait", "Mean", "Normal", "Above", "Flagged"):
        table.add_column(title, no_wrap=title in ("Mean", "Normal"))
    for t in done.traits:
        table.add_row(
            t.trait,
            _estimate_cell(t.mean),
            _estimate_cell(t.normal),
            _threshold_cell(t),
            f"{t.flagged:,}",
        )
    rules: dict[str, str] = {}
    for t in done.traits:
        rules[t.rule] = f"{rules[t.rule]}, {t.trait}" if t.rule in rules else t.trait
    outside = max((t.outside for t in done.traits), default=0)
    lost = ", ".join(f"{n:,} {why}" for why, n in (done.rejected | done.unread).items())
    left_out = describe_left_out(done.omitted)
    unit = "pair" if done.method == "preference" else "answer"
    flagged = counted(done.flagged_rows, "row")
    render.show(
        [
            f"{counted(done.rows, 'row')}, {counted(done.units, unit)}, {flagged} flagged by {done.method}",
            table,
            *(f"{t.trait}, layer {t.layer} of {t.layers}: {t.predicts}" for t in done.traits),
            *(f"{names}, the rule: {rule}." for rule, names in rules.items()),
            *(
                [f"{outside:,} {unit}s are shorter or longer than any normal one; no rate is promised there."]
                if outside
                else []
            ),
            *([f"No score: {lost}."] if lost else []),
            *([f"Left out: {left_out}."] if left_out else []),
            *([f"{done.cut:,} {unit}s were read without their earliest turns."] if done.cut else []),
            *done.notes,
            "",
            *_output_files(done, out),
        ]
    )


def _show_comparison(tried: MethodComparison) -> None:
    from rich import box
    from rich.table import Table

    from poise.cli import render

    table = Table("Trait", "Method", "Rank correlation", "Same top 10 %", "Same top 1 %", box=box.SIMPLE_HEAD)
    means: dict[str, list[str]] = {}
    for one in tried.agreement:
        means.setdefault(one.trait, []).append(f"{one.method} {_estimate_cell(one.mean)}")
        if one.method != "difference":
            figures = (one.spearman, one.top_tenth, one.top_hundredth)
            table.add_row(one.trait, one.method, *(_estimate_cell(figure) for figure in figures))
    took = (f"{method} {'not timed' if s is None else _duration(s)}" for method, s in tried.seconds.items())
    render.show(
        [
            f"{tried.sampled:,} of {tried.answers:,} answers by each method. How the cheap ones agree with difference:",
            table,
            *(f"Mean of {trait}: {', '.join(shares)}" for trait, shares in means.items()),
            f"Time for all of the data here: {', '.join(took)}",
        ]
    )


def _threshold_cell(t: TraitSummary) -> str:
    """The threshold, or the range of those by length."""
    values = [band.threshold for band in t.bands] or [x for x in (t.threshold,) if x is not None]
    return " to ".join(dict.fromkeys(f"{x:.3g}" for x in (min(values), max(values)))) if values else "–"


def _estimate_cell(of: Estimate | None) -> str:
    if of is None or of.value is None:
        return "–"
    if of.low is None or of.high is None:
        return f"{of.value:.3g}"
    return f"{of.value:.3g} [{of.low:.2g}, {of.high:.2g}]"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
