"""What a shift report shows of training-like prompts: all traits by all contexts, and what stands out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from poise.report.tinted import plain
from poise.report.wording import number
from poise.shift.worst_context import context_changes, judged_change, shift_change, simultaneous_level

if TYPE_CHECKING:
    from poise.shift.report import ContextMeasure, ContextSummary, ModelShift, ShiftReport
    from poise.shift.worst_context import ContextChange
    from poise.statistics.estimates import Estimate

__all__ = ["ContextTable", "heat_tables", "hidden_traits"]

DEEPEST_COLOUR = 45  # percent of the colour in the cell that changed most; more would make its text hard to read
LEAST_HEAT = {"shift": 0.1, "judged": 10.0}  # mean differences and points below which even the most is pale
MEASURES: tuple[tuple[ContextMeasure, str, int], ...] = (("shift", "Shift", 2), ("judged", "Judged change", 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatCell:
    """One trait under one context.

    Attributes:
        estimate: The mean change; ``None`` where it was not measured.
        heat: Depth of its colour in percent, below 0 of the colour of falls.
        worst: Whether it is the highest of its trait.
        why_missing: Why there is no figure.
    """

    estimate: Estimate | None
    heat: int
    worst: bool
    why_missing: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextTable:
    """One measure of all traits under all contexts, the questions without one first and the mean of all last."""

    measure: ContextMeasure
    title: str
    digits: int
    traits: tuple[str, ...]
    rows: tuple[tuple[str, tuple[HeatCell, ...]], ...]


def heat_tables(tuned: ModelShift, report: ShiftReport) -> tuple[ContextTable, ...]:
    """A table of shifts and, where answers were judged, one of scores."""
    tables = [_context_table(tuned, report, *measure) for measure in MEASURES] if tuned.contexts else []
    return tuple(table for table in tables if table.traits)


def _context_table(
    tuned: ModelShift, report: ShiftReport, measure: ContextMeasure, title: str, digits: int
) -> ContextTable:
    norms = {d.trait: d.norm if measure == "shift" else 1.0 for d in report.directions}
    judged = {j.trait: j for j in tuned.judged}
    traits = [trait for trait in norms if measure == "shift" or trait in judged]
    level = simultaneous_level(0.95, len(tuned.contexts))
    columns: list[list[tuple[Estimate | None, str]]] = []
    for trait in traits:
        alone = shift_change("", tuned.cell(trait)) if measure == "shift" else judged_change("", judged[trait])
        under = context_changes(tuned.contexts, trait, measure)
        summary = next((s for s in tuned.under_contexts if (s.trait, s.measure) == (trait, measure)), None)
        mean = (summary.mean if summary else None, "" if summary else "no context was measured")
        columns.append([_figure(alone, 0.95), *(_figure(change, level) for change in under), mean])
    sizes = [
        abs(e.value or 0.0) / (norms[trait] or 1.0)
        for trait, column in zip(traits, columns, strict=True)
        for e, _ in column
        if e is not None
    ]
    scale = max([LEAST_HEAT[measure], *sizes])
    cells = [_heat_column(column, (norms[trait] or 1.0) * scale) for trait, column in zip(traits, columns, strict=True)]
    names = ["no context", *(plain(c.context, 120) for c in tuned.contexts), "mean of the contexts"]
    rows = tuple((name, tuple(column[i] for column in cells)) for i, name in enumerate(names))
    return ContextTable(measure=measure, title=title, digits=digits, traits=tuple(traits), rows=rows)


def _figure(change: ContextChange, level: float) -> tuple[Estimate | None, str]:
    return (None, change.why_missing) if change.why_missing else (change.estimate(level), "")


def _heat_column(column: Sequence[tuple[Estimate | None, str]], scale: float) -> list[HeatCell]:
    """The cells of a trait; ``scale`` is the change of the deepest colour."""
    values = [e.value if e is not None and e.value is not None else None for e, _ in column]
    under = [value for value in values[1:-1] if value is not None]
    highest = max(under) if under else None
    return [
        HeatCell(
            estimate=estimate,
            heat=0 if value is None else round(max(-1, min(1, value / scale)) * DEEPEST_COLOUR),
            worst=0 < place < len(column) - 1 and value is not None and value == highest,
            why_missing=why,
        )
        for place, ((estimate, why), value) in enumerate(zip(column, values, strict=True))
    ]


def hidden_traits(tuned: ModelShift) -> list[str]:
    """A sentence for each trait that moves farther towards itself under a context than without, by its interval."""
    return [_hidden(s) for s in tuned.under_contexts if (low := s.worst.beyond_plain.low) is not None and low > 0]


def _hidden(summary: ContextSummary) -> str:
    digits = 2 if summary.measure == "shift" else 1
    what = "shift" if summary.measure == "shift" else "judged change"
    beyond = summary.worst.beyond_plain
    interval = f"[{number(beyond.low, digits)}, {number(beyond.high, digits)}]"
    return (
        f"{summary.trait}: the {what} under {plain(summary.worst.context, 120)} is {number(beyond.value, digits)} "
        f"{interval} above that without a context, "
        f"{f'which is only indicative: {beyond.too_few}' if beyond.too_few else f'n = {beyond.n}'}."
    )
