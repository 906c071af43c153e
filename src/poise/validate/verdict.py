"""From measured scores to a verdict: what speaks against the vector, what is not sure yet, or what carries it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from poise.statistics.estimates import LEAST_UNITS, Estimate, StatisticArray, bootstrap, spearman
from poise.validate.certificate import JudgeFacts, Point, RandomSearch
from poise.validate.random_control import LARGEST_P, NEEDED_SEARCHES

__all__ = ["LEAST_QUESTIONS", "Evidence", "decide", "monotone", "objections", "usable_doses"]

LEAST_QUESTIONS = LEAST_UNITS  # reported on (docs/statistics.md)
Verdict = Literal["induced", "indicative", "not-induced"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What the verdict is made from. q: reporting questions.

    Attributes:
        rise: Trait score at the chosen dose minus unsteered.
        margin: Trait score at the chosen dose minus that along random directions there, averaged over draws.
        curve: Fraction of the chosen dose, from −1 to 1 → trait scores [q].
        coherence: At the chosen dose.
        floor: Coherence must not fall below it.
        judge: An unusable judge cannot certify.
        search: Random directions that chose layer and dose for themselves; ``None`` where none did.
    """

    rise: Estimate
    margin: Estimate
    curve: Mapping[float, StatisticArray]
    coherence: Estimate
    floor: float
    judge: JudgeFacts
    search: RandomSearch | None = None


def decide(evidence: Evidence) -> tuple[Verdict, tuple[str, ...]]:
    """``induced`` only if nothing speaks against it and nothing is missing; otherwise every reason that does."""
    if against := objections(evidence):
        return "not-induced", tuple(against)
    if doubts := _doubts(evidence):
        return "indicative", tuple(doubts)
    return "induced", (
        f"the trait score rises with the dose: Spearman {monotone(evidence.curve)}",
        f"the trait score at the chosen dose is above the unsteered one: rise in points {evidence.rise}",
        f"the vector beats random directions of its norm: margin in points {evidence.margin}",
        *(_beaten(evidence.search) if evidence.search else ()),
        f"the text holds: coherence {evidence.coherence} at the chosen dose, floor {evidence.floor:.0f}",
    )


def _beaten(search: RandomSearch) -> tuple[str]:
    highest = (
        "none of them with coherent text"
        if search.highest is None
        else f"the highest rose by {search.highest:.1f} points"
    )
    many = f"{len(search.rises)} random directions that chose layer and dose as it did"
    return (f"it beats {many}: {highest} (p = {search.p:.3f})",)


def objections(evidence: Evidence) -> list[str]:
    """All that speaks against the vector."""
    slope, rise, margin, coherence = monotone(evidence.curve), evidence.rise, evidence.margin, evidence.coherence
    against = []
    if not evidence.judge.usable:
        why = evidence.judge.why_unusable or f"the judge {evidence.judge.name} is unusable"
        against.append(f"{why}, so no score of it counts")
    if not slope.above(0):
        against.append(f"the trait score does not rise with the dose: Spearman {slope}")
    if not rise.above(0):
        against.append(f"the trait score at the chosen dose is not above the unsteered one: rise in points {rise}")
    if not margin.above(0):
        against.append(f"the vector does not beat random directions of its norm: margin in points {margin}")
    search = evidence.search
    if search is not None and search.as_high > max(_allowed(search), 0):
        against.append(
            f"the vector does not beat random directions that chose layer and dose as it did: {search.as_high} of "
            f"{len(search.rises)} rose as far (p = {search.p:.2f})"
        )
    if coherence.value is None or coherence.value < evidence.floor:
        against.append(f"the text breaks: coherence {coherence} at the chosen dose, floor {evidence.floor:.0f}")
    return against


def _doubts(evidence: Evidence) -> list[str]:
    """What a verdict lacks though nothing speaks against the vector."""
    doubts, search, coherence = [], evidence.search, evidence.coherence
    if search is None:
        doubts.append(
            "this is a first look: no random direction was given the vector's freedom to choose layer and dose"
        )
    elif search.p > LARGEST_P:
        doubts.append(
            f"{len(search.rises)} random directions that chose layer and dose as it did are too few to tell (p = "
            f"{search.p:.2f}); {NEEDED_SEARCHES} are enough"
        )
    if evidence.rise.n < LEAST_QUESTIONS:
        doubts.append(
            f"a verdict needs {LEAST_QUESTIONS} questions to report on, and there are {evidence.rise.n}; ask "
            f"{2 * LEAST_QUESTIONS}, of which every other one reports"
        )
    if coherence.low is None or coherence.low < evidence.floor:
        doubts.append(
            f"the text may break: the interval of coherence at the chosen dose, {coherence}, includes the floor of "
            f"{evidence.floor:.0f}"
        )
    return doubts


def _allowed(search: RandomSearch) -> int:
    """How many random directions may rise as far as the vector for p to be small enough."""
    return int(LARGEST_P * (len(search.rises) + 1)) - 1


def monotone(curve: Mapping[float, StatisticArray]) -> Estimate:
    """Spearman of dose and mean trait score over the curve's points, bootstrapped by question."""
    doses = np.array(sorted(curve))
    scores = np.stack([curve[d] for d in doses.tolist()])  # [doses, q]
    scores = scores[:, ~np.isnan(scores).any(axis=0)]
    if scores.shape[1] == 0:
        return Estimate(value=None, low=None, high=None, n=0)
    return bootstrap(lambda i: spearman(doses, scores[:, i].mean(axis=-1).T), scores.shape[1], width=len(doses))


def usable_doses(curve: Sequence[Point], floor: float) -> tuple[float, float]:
    """The widest range of doses around zero whose every measured point kept coherence at the floor or above."""

    def reach(points: Sequence[Point]) -> float:
        last = 0.0
        for point in points:
            if point.coherence.value is None or point.coherence.value < floor:
                break
            last = point.dose
        return last

    below = [p for p in reversed(curve) if p.dose < 0]
    return reach(below), reach([p for p in curve if p.dose > 0])
