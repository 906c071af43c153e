"""The figures of a screening: scores beside normal data, and the two means on one axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from poise.report.validation_plots import COLOURS, NARROW
from poise.report.wording import number

if TYPE_CHECKING:
    from poise.screen.summary import TraitSummary
    from poise.statistics.estimates import Estimate

__all__ = ["ZEROS", "densities", "means"]

Floats = NDArray[np.float64]
TEXT, SMALL = 13, 12
SIDE = 8  # pixels left and right of a panel
ZEROS = {
    "difference": "0: the model’s own answers",
    "prompt": "0: the prompt’s last token",
    "preference": "0: both answers alike",
}


def densities(trait: TraitSummary, width: int, digits: int, unit: str = "answer") -> Canvas:
    """Scores of the data as an area and of normal data as a dashed outline, each of area one; threshold and top rows.

    Args:
        trait: With edges and counts.
        width: Of the figure in pixels.
        digits: Of the threshold.
        unit: What has a score.
    """
    wide = width > NARROW
    figure, axes = _panel(width, 210, head=44 if wide else 66)
    joined = _joined(trait)
    edges = np.array(trait.edges)[[*range(0, len(trait.counts), joined), -1]]
    n = sum(trait.counts)
    _area(axes, _density(trait.counts, n, edges, joined), edges, "trait")
    if trait.flagged:
        flagged = _density(trait.flagged_counts, n, edges, joined)
        _area(
            axes, np.where(flagged > 0, flagged, np.nan), edges, "prompt", hatch="////"
        )  # no line where there is none
    if trait.normal_counts and sum(trait.normal_counts):
        usual = _density(trait.normal_counts, sum(trait.normal_counts), edges, joined)
        axes.stairs(usual, edges, color=COLOURS["ink"], lw=1.6, ls=(0, (4, 2)), zorder=4)
    scores = [shown.score for shown in trait.top]
    axes.plot(scores, [-0.035] * len(scores), "|", ms=9, mew=1.4, color=COLOURS["ink"], zorder=5, clip_on=False,
              transform=axes.get_xaxis_transform())  # fmt: skip
    thresholds = [band.threshold for band in trait.bands] or [x for x in (trait.threshold,) if x is not None]
    _limits(axes, edges, thresholds, digits)
    _legend(axes, trait, wide)
    axes.tick_params(axis="x", pad=15)
    _scale(axes, width)
    axes.set_xlabel(f"score of {'an' if unit == 'answer' else 'a'} {unit}", fontsize=TEXT, labelpad=6)
    return figure


def means(trait: TraitSummary, method: str, width: int, digits: int) -> Canvas:
    """Means of the data and of normal data with their intervals on one axis; zero where it means something."""
    rows: list[tuple[str, Estimate, str]] = [("data", trait.mean, "trait")]
    if trait.normal is not None:
        rows.append(("normal data", trait.normal, "ink"))
    figure, axes = _panel(width, 46 * len(rows), head=26 if method in ZEROS else 6)
    ends = [x for _, f, _ in rows for x in (f.value, f.low, f.high) if x is not None]
    ends += [0.0] if method in ZEROS else []
    low, high = min(ends), max(ends)
    room = (high - low or 1.0) * 0.06
    axes.set_xlim(low - room, high + room)
    axes.set_ylim(len(rows) - 0.45, -0.75)
    for at, (name, found, role) in enumerate(rows):
        colour = COLOURS[role]
        if found.low is not None and found.high is not None:
            axes.plot([found.low, found.high], [at, at], lw=2.2, color=colour, marker="|", ms=11, mew=1.8, zorder=3)
        if found.value is not None:
            filled = role == "trait"
            axes.plot([found.value], [at], "o" if filled else "D", ms=9 if filled else 7.5, mec=colour, mew=1.8,
                      mfc=colour if filled else COLOURS["surface"], zorder=4)  # fmt: skip
            side, x = _side(axes, found.value)
            axes.text(x, at - 0.3, f"{name} {number(found.value, digits)}", fontsize=SMALL, color=COLOURS["ink"],
                      ha=side, va="bottom", zorder=5)  # fmt: skip
    if method in ZEROS:
        axes.axvline(0, color=COLOURS["ink"], lw=1.1, ls=(0, (1, 1.5)), zorder=2)
        _name(axes, 0, ZEROS[method])
    axes.yaxis.set_visible(False)
    _scale(axes, width)
    axes.set_xlabel("mean score", fontsize=TEXT)
    return figure


def _panel(width: int, height: int, *, head: int) -> tuple[Canvas, Axes]:
    """One panel placed in pixels, so that no layout depends on a font."""
    foot = 56
    whole = head + height + foot
    figure = Canvas(figsize=(width / 72, whole / 72), dpi=72)
    axes = figure.add_axes((SIDE / width, foot / whole, (width - 2 * SIDE) / width, height / whole))
    axes.set_facecolor("none")
    axes.yaxis.set_visible(False)
    axes.tick_params(length=0, labelsize=TEXT - 0.5, colors=COLOURS["muted"], pad=5)
    axes.xaxis.label.set_color(COLOURS["ink"])
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(COLOURS["muted"])
    return figure, axes


def _joined(trait: TraitSummary) -> int:
    """How many bins to draw as one: few answers in many bins show noise (Rice's rule, and 16 at least)."""
    n = min(sum(counts) for counts in (trait.counts, trait.normal_counts) if counts)
    return max(1, int(len(trait.counts) / max(16.0, 2 * n ** (1 / 3))))


def _density(counts: Sequence[int], n: int, edges: Floats, joined: int) -> Floats:
    sums: Floats = np.add.reduceat(np.array(counts, dtype=float), range(0, len(counts), joined))
    share: Floats = sums / (max(n, 1) * np.maximum(np.diff(edges), 1e-12))
    return share


def _limits(axes: Axes, edges: Floats, thresholds: Sequence[float], digits: int) -> None:
    """Room for all scores, and for thresholds where they do not lie so far off that they would squash them."""
    left, right = float(edges[0]), float(edges[-1])
    far = (right - left) / 2
    near = [x for x in thresholds if left - far <= x <= right + far]
    ends = [left, right, *near]
    room = 0.02 * (max(ends) - min(ends))
    axes.set_xlim(min(ends) - room, max(ends) + room)
    axes.set_ylim(bottom=0)
    if not thresholds:
        return
    low, high = number(min(thresholds), digits), number(max(thresholds), digits)
    named = f"threshold {low}" if len(thresholds) == 1 else f"thresholds {low} to {high}, by length"
    for x in near:
        axes.axvline(x, color=COLOURS["ink"], lw=1.1 if len(thresholds) == 1 else 0.7, zorder=5)
    if near:
        _name(axes, (min(near) + max(near)) / 2, named)
    elif thresholds[0] > right:
        _name(axes, max(ends) + room, f"{named} →")
    else:
        _name(axes, min(ends) - room, f"← {named}")


def _area(axes: Axes, heights: Floats, edges: Floats, role: str, hatch: str | None = None) -> None:
    if len(heights) == 0 or edges[-1] <= edges[0]:
        return
    colour = COLOURS[role]
    axes.stairs(heights, edges, fill=True, color=colour, alpha=0.22, lw=0, zorder=2)
    if hatch:
        axes.stairs(heights, edges, fill=True, facecolor="none", edgecolor=colour, hatch=hatch, lw=0, zorder=2)
    axes.stairs(heights, edges, color=colour, lw=1.6, zorder=3)


def _legend(axes: Axes, trait: TraitSummary, wide: bool) -> None:
    """What is drawn how, above the panel and out of the way of every bar."""
    height = axes.get_position().height * axes.figure.get_figheight() * 72  # type: ignore[union-attr]
    span = axes.get_position().width * axes.figure.get_figwidth() * 72  # type: ignore[union-attr]
    entries: list[tuple[str, str, Any]] = [(f"data, n = {sum(trait.counts):,}", "trait", "-")]
    if trait.normal_counts:
        entries.append((f"normal data, n = {sum(trait.normal_counts):,}", "ink", (0, (4, 2))))
    for i, (text, role, style) in enumerate(entries):
        x, y = (210 * i, 32) if wide else (0, 54 - 20 * i)
        place: dict[str, Any] = {"transform": axes.transAxes, "clip_on": False}
        axes.plot([x / span, (x + 26) / span], [1 + y / height] * 2, ls=style, lw=1.8, color=COLOURS[role], **place)
        axes.text((x + 34) / span, 1 + y / height, text, fontsize=SMALL, color=COLOURS["ink"], va="center", **place)


def _name(axes: Axes, x: float, text: str) -> None:
    """The name of a vertical mark, above the panel, kept inside the figure."""
    side, at = _side(axes, x)
    axes.text(at, 1.02, text, fontsize=SMALL, color=COLOURS["ink"], ha=side, va="bottom",
              transform=axes.get_xaxis_transform())  # fmt: skip


def _side(axes: Axes, x: float) -> tuple[str, float]:
    """How to set a text at x so that it stays within the panel."""
    low, high = axes.get_xlim()
    share = (x - low) / (high - low)
    pixels = axes.get_position().width * axes.figure.get_figwidth() * 72  # type: ignore[union-attr]
    edge = 100 / pixels
    return ("left", x) if share < edge else ("right", x) if share > 1 - edge else ("center", x)


def _scale(axes: Axes, width: int) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10 if width > NARROW else 5, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}".replace("-", "−")))
