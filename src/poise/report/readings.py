"""The part of the page on readings: the ladder as a figure, what each layer is worth as another, and both in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from poise.report import validation_plots as plots
from poise.report import wording as words

if TYPE_CHECKING:
    from poise.statistics.estimates import Estimate
    from poise.validate.certificate import LayerReading, Monitoring, Rung

__all__ = ["describe_ladder", "describe_layers", "ladder", "layers"]


def ladder(monitoring: Monitoring, width: int) -> Canvas:
    """Trait score by reading: a dot a question, and each rung's means, joined in the order of the ladder."""
    figure, (axes,) = plots.panels(width, (260,))
    colour = plots.COLOURS["trait"]
    for rung in monitoring.rungs:
        known = [(x, y) for x, y in zip(rung.readings, rung.scores, strict=True) if y is not None]
        axes.plot([x for x, _ in known], [y for _, y in known], "o", ms=4.5, mew=0, color=colour, alpha=0.5, zorder=2)
    means = [(rung.name, *_centre(rung)) for rung in monitoring.rungs if rung.trait.value is not None]
    axes.plot([x for _, x, _ in means], [y for *_, y in means], lw=1, color=colour, alpha=0.5, zorder=3)
    for name, x, y in means:
        inside = plots.COLOURS["surface"] if name.startswith("−") else colour
        axes.plot([x], [y], "o", ms=9, mfc=inside, mec=colour, mew=1.8, zorder=4)
        axes.annotate(
            name.removesuffix(" shots"),
            (x, y),
            (0, 9),
            textcoords="offset points",
            ha="center",
            fontsize=plots.SMALL,
            color=plots.COLOURS["ink"],
            zorder=5,
        )
    plots.heading(axes, "Trait score of the answers")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8 if width > plots.NARROW else 5))
    beneath = f"reading of the prompt's last token, layer {monitoring.layer}"
    axes.set_xlabel(beneath if width > plots.NARROW else f"reading, layer {monitoring.layer}", fontsize=plots.TEXT)
    return figure


def _centre(rung: Rung) -> tuple[float, float]:
    """A rung's mean reading and mean trait score."""
    return rung.reading.value or 0.0, rung.trait.value or 0.0


def layers(monitoring: Monitoring, width: int) -> Canvas:
    """By layer: r of prompt readings with the score, overall and within a rung; AUC of answer readings."""
    figure, (r, auc) = plots.panels(width, (180, 130), ticks=((-1, -0.5, 0, 0.5, 1), (0, 0.25, 0.5, 0.75, 1)))
    entries, wide = monitoring.by_layer, width > plots.NARROW
    for axes, middle in ((r, 0.0), (auc, 0.5)):
        axes.set_xlim(-0.5, len(entries) - 0.5)
        axes.axhline(middle, color=plots.COLOURS["ink"], lw=1.1, ls=plots.LINES[1], alpha=0.75, zorder=1)
    _lines(r, entries, [("overall", "trait", "overall", "-"), ("within", "prompt", "within", plots.LINES[1])])
    auc_lines = [("auc_mean", "coherence", "mean", "-"), ("auc_peak", "random", "peak", plots.LINES[1])]
    _lines(auc, [entry for entry in entries if entry.auc_mean], auc_lines)
    mark(r, monitoring.layer, f"chosen: layer {monitoring.layer}")
    if monitoring.answer_layer is not None:
        mark(auc, monitoring.answer_layer, f"chosen: layer {monitoring.answer_layer}")
    plots.heading(r, "r of prompt reading and score" if wide else "r")
    plots.heading(auc, "AUC of answer readings" if wide else "AUC")
    auc.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10 if wide else 6))
    auc.set_xlabel(f"layer (0 to {len(entries) - 1})", fontsize=plots.TEXT)
    return figure


def mark(axes: Axes, layer: int, text: str) -> None:
    """The chosen layer, in its panel alone: prompts and answers may be read at different ones."""
    axes.axvline(layer, color=plots.COLOURS["ink"], lw=0.8, alpha=0.55, zorder=1)
    plots.name_mark(axes, layer, text)


def _lines(axes: Axes, entries: Sequence[LayerReading], what: Sequence[tuple[str, str, str, object]]) -> None:
    if not entries:
        return
    ends = []
    for field, role, name, style in what:
        figures: list[Estimate] = [getattr(entry, field) for entry in entries]
        plots.line(axes, [entry.layer for entry in entries], figures, role, style=style, band=0.10)
        last = next((f.value for f in reversed(figures) if f.value is not None), None)
        ends += [(float(entries[-1].layer), last, name, role)] if last is not None else []
    plots.label_edge(axes, ends)


def describe_ladder(monitoring: Monitoring) -> str:
    """The first figure for who cannot see it."""
    return "; ".join(_rung(rung) for rung in monitoring.rungs) + ". The table below has every figure."


def _rung(rung: Rung) -> str:
    return f"{rung.name}: reading {words.number(rung.reading.value)}, trait score {words.number(rung.trait.value)}"


def describe_layers(monitoring: Monitoring) -> str:
    """The second figure for who cannot see it."""
    known = [entry for entry in monitoring.by_layer if entry.overall.value is not None]
    if not known:
        return "No r could be had at any layer."
    best = max(known, key=lambda entry: entry.overall.value or 0.0)
    return (
        f"The highest overall r, {words.figure(best.overall, 2)}, is at layer {best.layer}; layer {monitoring.layer} "
        "was chosen on other questions. The table below has every layer."
    )
