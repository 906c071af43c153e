"""The worst context beside the mean of all, with intervals that allow for there being several.

Bonferroni: each of m contexts has an interval of confidence 1 − (1 − c) / m, so that all of them hold at once with
confidence c, and what is said of the context that stands out is not said because there were many to choose from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from poise.shift.report import (
    ContextExtreme,
    ContextMeasure,
    ContextShift,
    ContextSummary,
    FloatArray,
    JudgedChange,
    OptionalFloats,
    ShiftCell,
    estimate_mean,
    estimate_score_change,
)
from poise.statistics.estimates import Estimate

__all__ = [
    "ContextChange",
    "context_changes",
    "judged_change",
    "shift_change",
    "simultaneous_level",
    "summarise_contexts",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextChange:
    """One measure of one trait under one context.

    Attributes:
        context: Name of the context; empty for the questions alone.
        changes: Question by question; empty where they count as missing.
        before: Judged scores before, which bound how far an unseen question may change; ``None`` of a shift.
        why_missing: Why nothing counts; empty where something does.
    """

    context: str
    changes: OptionalFloats = ()
    before: Estimate | None = None
    why_missing: str = ""

    def estimate(self, level: float) -> Estimate:
        """The mean change with its interval."""
        if self.before is None:
            return estimate_mean(self.changes, level=level)
        return estimate_score_change(self.changes, self.before, level=level)


def simultaneous_level(level: float, contexts: int) -> float:
    """Confidence of each interval of so many, such that all hold at once with ``level``."""
    return 1 - (1 - level) / max(contexts, 1)


def context_changes(
    contexts: Sequence[ContextShift], trait: str, measure: ContextMeasure, *, missing: float = 1.0
) -> list[ContextChange]:
    """One measure of one trait under every context.

    Args:
        contexts: All contexts of one tuned model.
        trait: The trait.
        measure: Shift or judged score.
        missing: Largest share of prompts or answers that may be without a value.
    """
    out = []
    for context in contexts:
        if context.why_missing:
            out.append(ContextChange(context=context.context, why_missing=context.why_missing))
        elif measure == "shift":
            out.append(shift_change(context.context, context.cell(trait), missing))
        else:
            out.append(judged_change(context.context, context.scores(trait), missing))
    return out


def shift_change(context: str, cell: ShiftCell | None, missing: float = 1.0) -> ContextChange:
    """The shift of a trait's own questions, or why it counts as missing."""
    if cell is None:
        return ContextChange(context=context, why_missing="no vector of this trait was measured")
    lost = sum(change is None for change in cell.changes)
    if lost > missing * len(cell.changes):
        return ContextChange(context=context, why_missing=f"{lost} of {len(cell.changes)} prompts have no reading")
    return ContextChange(context=context, changes=cell.changes)


def judged_change(context: str, judged: JudgedChange | None, missing: float = 1.0) -> ContextChange:
    """The change of a judge's score, or why it counts as missing."""
    why = ""
    if judged is None:
        return ContextChange(context=context, why_missing="no answer was judged")
    lost = max(judged.missing_before, judged.missing_after)
    if judged.why_unusable:
        why = f"its scores do not count: {judged.why_unusable}"
    elif lost > missing * judged.answers:
        why = f"{lost} of {judged.answers} answers have no score"
    if why:
        return ContextChange(context=context, why_missing=why)
    return ContextChange(context=context, changes=judged.changes, before=judged.before)


def summarise_contexts(
    matrix: Sequence[ShiftCell], judged: Sequence[JudgedChange], contexts: Sequence[ContextShift]
) -> tuple[ContextSummary, ...]:
    """Mean, highest and lowest context of every trait, by shift and by judged score where they were measured.

    Args:
        matrix: Shifts of the questions without a context.
        judged: Judged changes of the questions without a context.
        contexts: What changed under each context.
    """
    shifts = [(cell.asked, shift_change("", cell)) for cell in matrix if cell.asked == cell.direction]
    scores = [(change.trait, judged_change("", change)) for change in judged]
    summaries = [
        _summarise(trait, "shift", plain, context_changes(contexts, trait, "shift")) for trait, plain in shifts
    ]
    summaries += [
        _summarise(trait, "judged", plain, context_changes(contexts, trait, "judged"))
        for trait, plain in scores
        if not plain.why_missing
    ]
    return tuple(summary for summary in summaries if summary)


def _summarise(
    trait: str, measure: ContextMeasure, plain: ContextChange, contexts: Sequence[ContextChange]
) -> ContextSummary | None:
    level = simultaneous_level(0.95, len(contexts))
    measured = [(c, e) for c in contexts if not c.why_missing and (e := c.estimate(level)).value is not None]
    if not measured:
        return None
    by_value = sorted(measured, key=lambda pair: pair[1].value or 0.0)
    return ContextSummary(
        trait=trait,
        measure=measure,
        contexts=len(measured),
        mean=_mean_change([c for c, _ in measured]),
        worst=_extreme(*by_value[-1], plain, level),
        lowest=_extreme(*by_value[0], plain, level),
    )


def _extreme(context: ContextChange, change: Estimate, plain: ContextChange, level: float) -> ContextExtreme:
    differences = _as_array(context.changes) - _as_array(plain.changes)
    return ContextExtreme(context=context.context, change=change, beyond_plain=estimate_mean(differences, level=level))


def _mean_change(contexts: Sequence[ContextChange]) -> Estimate:
    """Mean over contexts, question by question; a question without a value under one of them has none."""
    means = np.mean([_as_array(context.changes) for context in contexts], axis=0)
    starts = [context.before for context in contexts if context.before is not None]
    if not starts:
        return estimate_mean(means)
    lows, highs = ([e for start in starts if (e := getattr(start, end)) is not None] for end in ("low", "high"))
    widest = Estimate(value=None, low=min(lows, default=None), high=max(highs, default=None), n=starts[0].n)
    return estimate_score_change(means, widest)


def _as_array(changes: OptionalFloats) -> FloatArray:
    return np.array([math.nan if change is None else change for change in changes], dtype=float)
