"""The figure of a shift report: every trait's shift with its interval, and what was predicted of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.figure import Figure as Canvas

from poise.report.screening_plots import SMALL, TEXT, _name, _panel, _scale, _side
from poise.report.validation_plots import COLOURS
from poise.report.wording import number

if TYPE_CHECKING:
    from poise.shift.report import TraitDirection
    from poise.statistics.estimates import Estimate

__all__ = ["shifts"]

ROW = 50  # pixels a trait


def shifts(rows: Sequence[tuple[TraitDirection, Estimate, Estimate | None]], width: int) -> Canvas:
    """A line a trait, in mean differences of its own direction, so that traits compare: ● measured, ◇ predicted."""
    figure, axes = _panel(width, ROW * len(rows), head=30)
    scaled = [
        [None if x is None or not d.norm else x / d.norm for x in (f.value, f.low, f.high, p.value if p else None)]
        for d, f, p in rows
    ]
    ends = [0.0, *(x for row in scaled for x in row if x is not None)]
    low, high = min(ends), max(ends)
    room = (high - low or 1.0) * 0.06
    axes.set_xlim(low - room, high + room)
    axes.set_ylim(len(rows) - 0.45, -0.75)
    axes.axvline(0, color=COLOURS["ink"], lw=1.1, ls=(0, (1, 1.5)), zorder=2)
    _name(axes, 0, "0: no shift")
    for at, ((direction, _, _), (value, below, above, predicted)) in enumerate(zip(rows, scaled, strict=True)):
        colour = COLOURS["trait"]
        if below is not None and above is not None:
            axes.plot([below, above], [at, at], lw=2.2, color=colour, marker="|", ms=11, mew=1.8, zorder=3)
        if predicted is not None:
            axes.plot([predicted], [at], "D", ms=7.5, mec=COLOURS["prompt"], mfc=COLOURS["surface"], mew=1.8, zorder=4)
        if value is not None:
            axes.plot([value], [at], "o", ms=9, mec=colour, mfc=colour, zorder=5)
            side, x = _side(axes, value)
            text = f"{direction.trait} {number(value, 2, signed=True)}"
            axes.text(x, at - 0.3, text, fontsize=SMALL, color=COLOURS["ink"], ha=side, va="bottom", zorder=6)
    _scale(axes, width)
    axes.set_xlabel("shift, in mean differences ‖v‖ (◇ predicted)", fontsize=TEXT)
    return figure
