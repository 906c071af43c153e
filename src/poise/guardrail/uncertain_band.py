"""Two thresholds around a detector's own, between which a judge is asked, and how often that is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from poise.guardrail.guard_file import OperatingPoint, UncertainBand
from poise.guardrail.judge_settings import HIGHEST_RATE
from poise.statistics.conformal import exact_interval, threshold

__all__ = ["operating_point", "uncertain_band"]


def operating_point(talk: ArrayLike, rate: float) -> OperatingPoint:
    """A threshold on readings of ordinary talk, with the rate that it promises.

    Raises:
        TooFewResponses: so few readings cannot promise this rate; says how many can.
    """
    point = threshold(talk, min(rate, HIGHEST_RATE))
    return OperatingPoint(value=point.value, rate=point.rate, low=point.low, high=point.high, n=point.answers)


def uncertain_band(
    talk: ArrayLike, rates: Sequence[float], examples: ArrayLike, near_misses: ArrayLike
) -> UncertainBand:
    """The band between two rates, the lower one first.

    Args:
        talk: Readings of ordinary talk that the fit did not see.
        rates: Rate of its upper threshold, and that of its lower one, at the rule's strength.
        examples: Held-out readings of the rule's examples.
        near_misses: And of the texts beside them.
    """
    acts, asks = (operating_point(talk, rate) for rate in rates)

    def inside(values: ArrayLike) -> int:
        x = np.asarray(values)
        return int(((x > asks.value) & (x <= acts.value)).sum())

    n = len(np.asarray(talk))
    low, high = exact_interval(inside(talk), n)
    return UncertainBand(
        asks=asks,
        acts=acts,
        judged=inside(talk) / n,
        judged_low=low,
        judged_high=high,
        judged_examples=inside(examples),
        judged_near_misses=inside(near_misses),
    )
