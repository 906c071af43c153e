"""The figures: inline SVG that follows the page's colours and keeps its text, or a PNG.

Drawn with matplotlib's objects, never with pyplot. One unit of a figure is one CSS pixel, so that text
keeps its size; a page carries each figure twice, for wide and for narrow screens.
"""

from __future__ import annotations

import io
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from poise.report.wording import chosen, dose, number, plain

if TYPE_CHECKING:
    from poise.statistics.estimates import Estimate
    from poise.validate.certificate import Certificate, Point

__all__ = [
    "COLOURS",
    "NARROW",
    "WIDE",
    "dose_curve",
    "heading",
    "label_edge",
    "layer_sweep",
    "line",
    "name_mark",
    "panels",
    "png",
    "svg",
]

COLOURS = {
    "ink": "#22262b",
    "muted": "#5d646c",
    "rule": "#e2dfd8",
    "surface": "#fdfcfa",
    "trait": "#2a5fa9",
    "coherence": "#20776a",
    "random": "#77617f",
    "prompt": "#9a5b0b",
}
"""Light colours by role; the page's style sheet has the same names, for light and for dark."""

WIDE, NARROW, LEFT = 920, 344, 34
TEXT, SMALL = 13, 12
Label = tuple[float, float, str, str]
"""Where its line begins, its value, its text, its role."""
LINES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))


def dose_curve(certificate: Certificate, width: int, *, title: str = "") -> Canvas:
    """Trait score and coherence by dose, with intervals, controls at the chosen dose and the coherence floor."""
    head = 58 if title else 0
    figure, (trait, coherence) = panels(width, (250, 130), head=head)
    points = sorted(certificate.curve, key=lambda p: p.dose)
    doses = [p.dose for p in points]
    first, last = min(doses, default=0.0), max(doses, default=0.0)
    room = (last - first) * 0.04 or 0.1
    for axes in (trait, coherence):
        axes.set_xlim(first - room, last + room)
        axes.axvline(certificate.dose, color=COLOURS["ink"], lw=0.8, alpha=0.55, zorder=1)
    _controls(trait, certificate, width)
    line(trait, doses, [p.trait for p in points], "trait")
    low, high = certificate.usable_doses
    if high > low:
        coherence.axvspan(low, high, color=COLOURS["coherence"], alpha=0.07, lw=0, zorder=0)
    line(coherence, doses, [p.coherence for p in points], "coherence")
    _random(coherence, certificate.dose, certificate.random.coherence, [_floor(coherence, certificate)], width)
    if point := chosen(certificate):
        ring(trait, point.dose, point.trait, "trait")
        ring(coherence, point.dose, point.coherence, "coherence")
    name_mark(trait, certificate.dose, f"chosen dose {dose(certificate.dose)}")
    heading(trait, "Trait score")
    heading(coherence, "Coherence")
    coherence.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10]))  # 2.5 is no whole per cent
    coherence.xaxis.set_major_formatter(lambda tick, _: dose(tick))
    coherence.set_xlabel("dose (share of the mean activation norm)" if width > NARROW else "dose", fontsize=TEXT)
    if title:
        height = figure.get_figheight() * 72
        figure.text(
            LEFT / width, 1 - 38 / height, title, fontsize=17, fontweight="bold", color=COLOURS["ink"], va="center"
        )
    return figure


def layer_sweep(certificate: Certificate, width: int) -> Canvas:
    """Trait score and coherence by layer: a line for each dose tried at several layers, dots for the rest."""
    figure, (trait, coherence) = panels(width, (200, 130))
    by_dose: defaultdict[float, list[Point]] = defaultdict(list)
    for point in certificate.sweep:
        by_dose[round(point.dose, 4)].append(point)
    lines = [sorted(ps, key=lambda p: p.layer) for _, ps in sorted(by_dose.items()) if len({p.layer for p in ps}) > 1]
    dots = [p for ps in by_dose.values() if len({p.layer for p in ps}) == 1 for p in ps]
    for axes, role in ((trait, "trait"), (coherence, "coherence")):
        axes.set_xlim(-0.5, certificate.layers - 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10 if width > NARROW else 6))
        axes.axvline(certificate.layer, color=COLOURS["ink"], lw=0.8, alpha=0.55, zorder=1)
        for style, points in zip(LINES * len(lines), lines, strict=False):
            line(axes, [p.layer for p in points], [getattr(p, role) for p in points], role, style=style, band=0.10)
        for point in dots:
            if (value := getattr(point, role).value) is not None:
                axes.plot(
                    [point.layer], [value], "D", ms=4, mfc=COLOURS["surface"], mec=COLOURS[role], mew=1.1, zorder=4
                )
        for point in certificate.sweep:
            if point.layer == certificate.layer and abs(point.dose - certificate.dose) < 5e-4:
                ring(axes, point.layer, getattr(point, role), role)
        ends = [
            (points[-1].layer, getattr(points[-1], role).value, f"dose {dose(points[-1].dose)}") for points in lines
        ]
        floor = [_floor(axes, certificate)] if role == "coherence" else []
        label_edge(axes, floor + [(x, y, text, role) for x, y, text in ends if y is not None])
    name_mark(trait, certificate.layer, f"chosen: layer {certificate.layer}, dose {dose(certificate.dose)}")
    heading(trait, "Trait score")
    heading(coherence, "Coherence")
    last = certificate.layers - 1
    coherence.set_xlabel(
        f"layer (0 to {last}; output of decoder block)" if width > NARROW else f"layer (0 to {last})", fontsize=TEXT
    )
    return figure


def svg(figure: Canvas, name: str, title: str, description: str) -> str:
    """A figure as an ``<svg>`` element for the middle of a page.

    Args:
        figure: Drawn in ``COLOURS``, which become the page's own.
        name: Prefix of its ids; unique in the page.
        title: What a screen reader calls it.
        description: What it shows, for who cannot see it.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(
            buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    body = buffer.getvalue()
    body = body[body.index("<svg") :]
    body = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r"(<g) id=\"[^\"]*\"", r"\1", body).replace("xlink:href=", "href=")
    for role, colour in COLOURS.items():
        body = body.replace(colour, "currentColor" if role == "ink" else f"var(--{role})")
    size = figure.get_size_inches() * 72
    head = (
        f'<svg class="{name.rpartition("-")[2]}" viewBox="0 0 {size[0]:.0f} {size[1]:.0f}" role="img" '
        f'aria-labelledby="{name}-title {name}-desc"><title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-desc">{escape(description)}</desc>'
    )
    return head + re.sub(r"\n\s*", "\n", body[body.index(">") + 1 :]).strip()


def png(certificate: Certificate, title: str) -> bytes:
    """The dose curve on a light background, at twice the size of a screen's pixels."""
    buffer = io.BytesIO()
    figure = dose_curve(certificate, WIDE, title=title)
    figure.savefig(buffer, format="png", dpi=144, facecolor=COLOURS["surface"], metadata={"Software": None})
    return buffer.getvalue()


def panels(
    width: int, heights: Sequence[int], *, head: int = 0, ticks: Sequence[Sequence[float]] = ()
) -> tuple[Canvas, list[Axes]]:
    """Panels over one another with a shared axis, placed in pixels: no layout that depends on a font.

    Args:
        width: Of the figure.
        heights: Of the panels.
        head: Room above the first.
        ticks: Of each panel's vertical axis, which ends just beyond them; default the scale of scores.
    """
    left, right, gap, foot = LEFT, (150 if width > NARROW else 94), 58, 46
    height = head + sum(heights) + gap * len(heights) + foot
    figure = Canvas(figsize=(width / 72, height / 72), dpi=72)
    made: list[Axes] = []
    top = head
    for inner, marks in zip(heights, ticks or [(0, 25, 50, 75, 100)] * len(heights), strict=True):
        top += gap
        box = (left / width, 1 - (top + inner) / height, (width - left - right) / width, inner / height)
        axes = figure.add_axes(box, sharex=made[0] if made else None)
        top += inner
        axes.set_facecolor("none")
        rim = 0.02 * (marks[-1] - marks[0])
        axes.set_ylim(marks[0] - rim, marks[-1] + rim)
        axes.set_yticks(list(marks))
        axes.grid(axis="y", color=COLOURS["rule"], lw=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(length=0, labelsize=TEXT - 0.5, colors=COLOURS["muted"], pad=5)
        axes.xaxis.label.set_color(COLOURS["ink"])
        for side in ("top", "left", "right"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(COLOURS["muted"])
        made.append(axes)
    for axes in made[:-1]:
        axes.tick_params(labelbottom=False)
    return figure, made


def line(
    axes: Axes, x: Sequence[float], figures: Sequence[Estimate], role: str, *, style: Any = "-", band: float = 0.16
) -> None:
    """Means with 95 % intervals as a band and, so that a lone point shows it too, a thin bar; gaps where missing."""
    colour = COLOURS[role]
    value, low, high = ([_or_nan(getattr(f, part)) for f in figures] for part in ("value", "low", "high"))
    axes.fill_between(x, low, high, color=colour, alpha=band, lw=0, zorder=2)
    axes.vlines(x, low, high, color=colour, lw=1, alpha=0.45, zorder=2)
    axes.plot(x, value, ls=style, marker="o", ms=5.5, lw=1.9, color=colour, zorder=4)


def _controls(axes: Axes, certificate: Certificate, width: int) -> None:
    """Unsteered level, prompting and random directions as horizontal marks, named at the right edge."""
    edge = axes.get_xlim()[1]
    wide = width > NARROW
    labels: list[Label] = []
    lines: list[tuple[str, Estimate, str]] = []
    if point := plain(certificate):
        lines.append(("unsteered", point.trait, "muted"))
    if prompting := certificate.prompting:
        lines += [("prompt for", prompting.positive, "prompt"), ("prompt against", prompting.negative, "prompt")]
    for name, figure, role in lines:
        if figure.value is None:
            continue
        if role == "prompt" and figure.low is not None and figure.high is not None:
            axes.axhspan(figure.low, figure.high, color=COLOURS[role], alpha=0.08, lw=0, zorder=0)
        axes.axhline(figure.value, color=COLOURS[role], lw=1.2, ls=LINES[1] if role == "prompt" else LINES[2], zorder=1)
        labels.append((edge, figure.value, f"{name} {number(figure.value)}" if wide else name, role))
    _random(axes, certificate.dose, certificate.random.trait, labels, width)


def _random(axes: Axes, x: float, figure: Estimate, labels: list[Label], width: int) -> None:
    """Random directions: a short stroke at the chosen dose with its interval, led to its name among the others."""
    start, edge = axes.get_xlim()
    half = (edge - start) * 0.035
    colour = COLOURS["random"]
    if figure.value is not None:
        axes.plot([x - half, x + half], [figure.value] * 2, color=colour, lw=2.6, solid_capstyle="butt", zorder=3)
        axes.plot([x, edge], [figure.value] * 2, color=colour, lw=0.8, ls=LINES[2], zorder=1)
        name = f"random {number(figure.value)}" if width > NARROW else "random"
        labels = [*labels, (edge, figure.value, name, "random")]
        if figure.low is not None and figure.high is not None:
            axes.fill_between([x - half, x + half], figure.low, figure.high, color=colour, alpha=0.22, lw=0, zorder=3)
    label_edge(axes, labels)


def _floor(axes: Axes, certificate: Certificate) -> Label:
    floor = certificate.coherence_floor
    axes.axhline(floor, color=COLOURS["ink"], lw=1.1, ls=LINES[1], alpha=0.75, zorder=1)
    return axes.get_xlim()[1], floor, f"floor {number(floor, 0)}", "ink"


def ring(axes: Axes, x: float, figure: Estimate, role: str) -> None:
    """The choice, in every panel."""
    if figure.value is not None:
        axes.plot([x], [figure.value], "o", ms=12, mfc="none", mec=COLOURS[role], mew=1.8, zorder=5)


def label_edge(axes: Axes, labels: Iterable[Label]) -> None:
    """Names right of the panel, moved apart where they would cover one another, each with a line to its value."""
    ordered = sorted(labels, key=lambda label: label[1])
    height = axes.get_position().height * axes.figure.get_figheight() * 72  # type: ignore[union-attr]
    bottom, top = axes.get_ylim()
    span, rim = top - bottom, (top - bottom) / 52
    at = apart([y for _, y, _, _ in ordered], gap=15 / height * span, low=bottom + rim, high=top - rim)
    lowest, highest = axes.get_xlim()
    pixel = (highest - lowest) / (axes.get_position().width * axes.figure.get_figwidth() * 72)  # type: ignore[union-attr]
    for (x, y, text, role), place in zip(ordered, at, strict=True):
        axes.plot(
            [x + 2 * pixel, highest + 2 * pixel, highest + 11 * pixel],
            [y, y, place],
            color=COLOURS[role],
            lw=0.8,
            alpha=0.6,
            clip_on=False,
            zorder=1,
        )
        axes.text(highest + 14 * pixel, place, text, fontsize=SMALL, color=COLOURS[role], va="center", ha="left")


def apart(values: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """Places at least ``gap`` apart for ascending values, clusters centred on their means, within bounds."""
    clusters: list[list[float]] = []  # of values less their share of gaps: clusters whose means descend are one
    for i, value in enumerate(values):
        clusters.append([value - i * gap])
        while len(clusters) > 1 and _mean(clusters[-2]) >= _mean(clusters[-1]):
            last = clusters.pop()
            clusters[-1] += last
    flat = [_mean(cluster) for cluster in clusters for _ in cluster]
    top = high - gap * (len(values) - 1)
    return [max(min(base, top), low) + i * gap for i, base in enumerate(flat)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def name_mark(axes: Axes, x: float, text: str) -> None:
    """The name of a vertical mark, above the panel."""
    start, end = axes.get_xlim()
    side = "left" if (x - start) / (end - start) < 0.3 else "center"  # no room for half a name at the left edge
    bottom, top = axes.get_ylim()
    axes.text(x, top + 0.029 * (top - bottom), text, fontsize=SMALL, color=COLOURS["ink"], ha=side, va="bottom")


def heading(axes: Axes, text: str) -> None:
    """What a panel shows."""
    axes.set_title(text, loc="left", x=0, fontsize=TEXT, fontweight="bold", color=COLOURS["ink"], pad=28)


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
