"""The figures of a comparison: accuracy of each arm, and how far each moves the traits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from poise.report.screening_plots import SMALL, TEXT, _name, _panel, _scale, _side
from poise.report.validation_plots import COLOURS
from poise.report.wording import number

if TYPE_CHECKING:
    from poise.comparison.result import ArmResult
    from poise.statistics.estimates import Estimate

__all__ = ["accuracies", "movements"]

LINE = 48  # pixels an arm


def accuracies(arms: Sequence[ArmResult], width: int) -> Canvas:
    """A line an arm: share of right answers with its interval, and a small mark for each training run."""
    figure, axes = _panel(width, LINE * len(arms), head=10)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(len(arms) - 0.45, -0.75)
    base = arms[0].accuracy.value
    if base is not None:
        axes.axvline(base, color=COLOURS["ink"], lw=1.1, ls=(0, (1, 1.5)), zorder=2)
    for at, arm in enumerate(arms):
        colour = COLOURS["trait"] if at else COLOURS["ink"]
        axes.plot(arm.accuracy_by_run, [at] * len(arm.accuracy_by_run), "|", ms=9, mew=1.2, color=COLOURS["muted"])
        _arm_mark(axes, at, arm.accuracy, arm.title, colour, 1.0)
    _scale(axes, width)
    axes.set_xlabel("share of right answers (dotted: base)", fontsize=TEXT)
    return figure


def movements(arms: Sequence[ArmResult], width: int) -> Canvas:
    """A line an arm and trait: its shift from the base in mean differences of the trait's direction."""
    rows = [(arm, trait) for arm in arms for trait in arm.traits]
    figure, axes = _panel(width, LINE * len(rows), head=30)
    ends = [0.0]
    for _, trait in rows:
        ends += [
            x / (trait.norm or 1.0) for x in (trait.shift.low, trait.shift.high, trait.shift.value) if x is not None
        ]
    room = (max(ends) - min(ends) or 1.0) * 0.06
    axes.set_xlim(min(ends) - room, max(ends) + room)
    axes.set_ylim(len(rows) - 0.45, -0.75)
    axes.axvline(0, color=COLOURS["ink"], lw=1.1, ls=(0, (1, 1.5)), zorder=2)
    _name(axes, 0, "0: the base")
    for at, (arm, trait) in enumerate(rows):
        _arm_mark(axes, at, trait.shift, f"{arm.title}: {trait.trait}", COLOURS["prompt"], trait.norm or 1.0)
    _scale(axes, width)
    axes.set_xlabel("shift from the base, in mean differences ‖v‖", fontsize=TEXT)
    return figure


def _arm_mark(axes: Axes, at: int, figure: Estimate, name: str, colour: str, unit: float) -> None:
    """A value, its interval and its name."""
    if figure.value is None:
        axes.text(axes.get_xlim()[0], at, f"{name}: not measured", fontsize=SMALL, color=COLOURS["muted"], va="center")
        return
    value = figure.value / unit
    if figure.low is not None and figure.high is not None:
        ends = [figure.low / unit, figure.high / unit]
        axes.plot(ends, [at, at], lw=2.2, color=colour, marker="|", ms=11, mew=1.8, zorder=3)
    axes.plot([value], [at], "o", ms=9, mec=colour, mfc=colour, zorder=5)
    side, x = _side(axes, value)
    text = f"{name} {number(value, 2)}"
    axes.text(x, at - 0.3, text, fontsize=SMALL, color=COLOURS["ink"], ha=side, va="bottom", zorder=6)
