"""A distribution as observed, and above its highest values as far as a few of them can tell.

Events that are rarer than one in n never show in n readings, and their rate is what a run length is made of. Above a
high quantile the readings get a generalised Pareto tail (Pickands 1975, Annals of Statistics 3, 119), fitted by
L-moments (Hosking and Wallis 1987, Technometrics 29, 339) and drawn towards a moderately heavy one, because a dozen
values say little about a shape. Numbers only; knows no models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["ReadingsArray", "TailedDistribution", "fit_tail"]

TAIL_SHARE = 0.12  # of the readings are the tail's
USUAL_SHAPE = 0.3  # as of t with three degrees of freedom; 0 is exponential
SHAPE_WEIGHT = 50.0  # readings of the tail that the usual shape is worth: it varies with a spread of about 0.2
TAIL_SHAPES = (-0.5, 0.8)

ReadingsArray = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TailedDistribution:
    """P(x ≤ value): the observed steps below ``start``, a generalised Pareto tail above.

    Attributes:
        values: Readings [n], lowest first.
        cumulative: Share of them up to each, [n].
        mean: Their mean.
        sd: Their standard deviation.
        start: Reading at which the tail begins.
        share: Share of readings above ``start``.
        excess: Mean of what the readings of the tail exceed ``start`` by; 0 where there is no tail.
        shape: The tail's shape.
        readings: How many readings the tail was fitted on, those of large weight counted as one.
    """

    values: ReadingsArray
    cumulative: ReadingsArray
    mean: float
    sd: float
    start: float
    share: float
    excess: float
    shape: float
    readings: float

    @property
    def shape_error(self) -> float:
        """Standard error of the shape."""
        return math.sqrt(2 / (self.readings + SHAPE_WEIGHT))

    def with_shape(self, shape: float) -> TailedDistribution:
        """The same with another tail of the same mean excess."""
        return replace(self, shape=min(max(shape, TAIL_SHAPES[0]), TAIL_SHAPES[1]))

    def observed(self, at: ReadingsArray) -> ReadingsArray:
        """P(x ≤ value) for each value, as observed, without the tail."""
        place = np.searchsorted(self.values, at, side="right")
        return np.where(place > 0, self.cumulative[np.maximum(place - 1, 0)], 0.0)

    def __call__(self, at: ReadingsArray) -> ReadingsArray:
        """P(x ≤ value) for each value."""
        observed = self.observed(at)
        if self.excess <= 0:
            return observed
        ratio = np.maximum(at - self.start, 0.0) / (self.excess * (1 - self.shape))
        if abs(self.shape) < 1e-6:
            beyond = np.exp(-ratio)
        else:
            beyond = np.maximum(1 + self.shape * ratio, 1e-300) ** (-1 / self.shape)
        return np.where(at > self.start, 1 - self.share * np.minimum(beyond, 1.0), observed)


def fit_tail(values: ReadingsArray, weights: ReadingsArray) -> TailedDistribution:
    """The distribution of readings of unequal weight.

    Args:
        values: [n], lowest first.
        weights: [n], 0 for what is left out.
    """
    share = weights / weights.sum()
    cumulative = np.minimum(np.cumsum(share), 1.0)
    cumulative[-1] = 1.0
    mean = float(values @ share)
    start = min(int(np.searchsorted(cumulative, 1 - TAIL_SHARE)), len(values) - 1)
    above, weight = values[start + 1 :] - values[start], share[start + 1 :]
    total = weight.sum()
    excess = shape = readings = 0.0
    if total > 0 and (excess := float(above @ weight / total)) > 0:
        weight = weight / total
        spread = float((2 * np.cumsum(weight) - weight - 1) * above @ weight)
        readings = float(1 / (weight @ weight))
        shape = 2 - excess / spread if spread > 0 else 0.0
        shape = (readings * shape + SHAPE_WEIGHT * USUAL_SHAPE) / (readings + SHAPE_WEIGHT)
    return TailedDistribution(
        values=values,
        cumulative=cumulative,
        mean=mean,
        sd=float(np.sqrt((values - mean) ** 2 @ share)),
        start=float(values[start]),
        share=float(total),
        excess=excess,
        shape=min(max(shape, TAIL_SHAPES[0]), TAIL_SHAPES[1]),
        readings=readings,
    )
