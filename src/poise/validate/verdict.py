"""From measured scores to a verdict: four conditions, each with an interval, each with its own reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from poise.statistics.estimates import Estimate, StatisticArray, bootstrap, spearman
from poise.validate.certificate import JudgeFacts, Point
from poise.validate.conditions import over_questions

__all__ = ["Evidence", "decide", "monotone", "usable_doses"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What the verdict is made from. q: reporting questions.

    Attributes:
        rise: [q] trait score at the chosen dose minus unsteered.
        random_rise: [q] the same along random directions, averaged over draws.
        curve: Fraction of the chosen dose, from −1 to 1 → trait scores [q].
        coherence: At the chosen dose.
        floor: Coherence must not fall below it.
        judge: An unusable judge cannot certify.
    """

    rise: StatisticArray
    random_rise: StatisticArray
    curve: Mapping[float, StatisticArray]
    coherence: Estimate
    floor: float
    judge: JudgeFacts


def decide(evidence: Evidence) -> tuple[Literal["induced", "not-induced"], tuple[str, ...]]:
    """``induced`` only if nothing speaks against it; otherwise every reason that does."""
    slope = monotone(evidence.curve)
    margin = over_questions(evidence.rise - evidence.random_rise)
    against = []
    if not evidence.judge.usable:
        why = evidence.judge.why_unusable or f"the judge {evidence.judge.name} is unusable"
        against.append(f"{why}, so no score of it counts")
    if not slope.above(0):
        against.append(f"the trait score does not rise with the dose: Spearman {slope}")
    rise = over_questions(evidence.rise)
    if not rise.above(0):
        against.append(f"the trait score at the chosen dose is not above the unsteered one: rise in points {rise}")
    if not margin.above(0):
        against.append(f"the vector does not beat random directions of its norm: margin in points {margin}")
    if evidence.coherence.value is None or evidence.coherence.value < evidence.floor:
        against.append(
            f"the text breaks: coherence {evidence.coherence} at the chosen dose, floor {evidence.floor:.0f}"
        )
    if against:
        return "not-induced", tuple(against)
    return "induced", (
        f"the trait score rises with the dose: Spearman {slope}",
        f"the trait score at the chosen dose is above the unsteered one: rise in points {rise}",
        f"the vector beats random directions of its norm: margin in points {margin}",
        f"the text holds: coherence {evidence.coherence} at the chosen dose, floor {evidence.floor:.0f}",
    )


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
