"""The few statistics that Poise reports, each with its interval.

Numpy and pydantic only, so that every room may use it. All intervals are percentile bootstraps with a seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import field_validator

from poise.settings import FrozenModel

__all__ = [
    "Estimate",
    "auc",
    "auc_estimate",
    "bootstrap",
    "bootstrap_interval",
    "kappa",
    "mean_estimate",
    "pearson",
    "ranks",
    "spearman",
]

Array = NDArray[np.float64]


class Estimate(FrozenModel):
    """A statistic with its 95 % interval, or ``None`` where there was nothing to measure or no interval.

    Anything that is not finite becomes ``None``, also when read from a file, so that missing is never zero and an
    estimate equals the one that comes back from its file.

    Attributes:
        value: The statistic over all units.
        low: Lower end of its interval.
        high: Upper end of its interval.
        n: Number of independent units that were resampled.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int

    @field_validator("value", "low", "high", mode="before")
    @classmethod
    def _none_if_not_finite(cls, number: object) -> object:
        return None if isinstance(number, float) and not math.isfinite(number) else number

    @classmethod
    def of(cls, value: float, low: float, high: float, n: int) -> Estimate:
        """The numbers to six decimals, as files hold them."""
        return cls(value=round(value, 6), low=round(low, 6), high=round(high, 6), n=n)

    def above(self, bound: float) -> bool:
        """Whether the whole interval lies above ``bound``; without an interval it does not."""
        return self.low is not None and self.low > bound

    def __str__(self) -> str:
        if self.value is None:
            return f"no value, n={self.n}"
        if self.low is None or self.high is None:
            return f"{self.value:.2f} (no interval), n={self.n}"
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}], n={self.n}"


def bootstrap(
    statistic: Callable[[NDArray[np.int64]], float], n: int, *, seed: int = 0, draws: int = 2000, level: float = 0.95
) -> Estimate:
    """Percentile bootstrap of a statistic over n exchangeable units.

    Args:
        statistic: From indices int64 [n] of resampled units to a number; NaN draws are left out.
        n: Units, e.g. questions. Resample what is independent, not what is convenient.
        seed: Of the resampling.
        draws: Resamples.
        level: Coverage of the interval.
    """
    value = float(statistic(np.arange(n)))
    return Estimate.of(value, *bootstrap_interval(statistic, n, seed=seed, draws=draws, level=level), n)


def bootstrap_interval(
    statistic: Callable[[NDArray[np.int64]], float], n: int, *, seed: int = 0, draws: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """The ends of ``bootstrap``'s interval, unrounded; NaN where fewer than two units or no finite draw give none."""
    if n < 2:
        return math.nan, math.nan
    rng = np.random.default_rng(seed)
    drawn = np.array([statistic(rng.integers(0, n, n)) for _ in range(draws)])
    drawn = drawn[np.isfinite(drawn)]
    if len(drawn) == 0:
        return math.nan, math.nan
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_estimate(values: ArrayLike, *, seed: int = 0) -> Estimate:
    """Mean of independent values with its bootstrap interval."""
    x = np.asarray(values, dtype=float)
    return bootstrap(lambda i: float(x[i].mean()) if len(i) else float("nan"), len(x), seed=seed)


def ranks(values: ArrayLike) -> Array:
    """Ranks from 1, ties shared."""
    x = np.asarray(values, dtype=float)
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse], dtype=float)


def pearson(x: ArrayLike, y: ArrayLike) -> float:
    """Correlation coefficient; NaN where a side is constant."""
    a, b = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 0 else float("nan")


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Rank correlation; NaN where a side is constant."""
    return pearson(ranks(x), ranks(y))


def auc(scores: ArrayLike, labels: Sequence[bool] | NDArray[np.bool_]) -> float:
    """Chance that a positive scores above a negative, ties half; NaN where a class is empty."""
    positive = np.asarray(labels, dtype=bool)
    n1, n0 = int(positive.sum()), int((~positive).sum())
    if n1 == 0 or n0 == 0:
        return float("nan")
    return float((ranks(scores)[positive].sum() - n1 * (n1 + 1) / 2) / (n1 * n0))


def auc_estimate(positive: ArrayLike, negative: ArrayLike, *, seed: int = 0) -> Estimate:
    """AUC of matched pairs, resampled by pair.

    Args:
        positive: Scores [n] of the sides with the trait.
        negative: Scores [n] of the sides without it, row i answering the same question.
        seed: Of the resampling.
    """
    p, q = np.asarray(positive, dtype=float), np.asarray(negative, dtype=float)
    labels = np.repeat([True, False], len(p))
    return bootstrap(lambda i: auc(np.concatenate([p[i], q[i]]), labels), len(p), seed=seed)


def kappa(a: Sequence[bool], b: Sequence[bool]) -> float:
    """Cohen's κ of two yes/no raters; NaN where chance agreement is certain."""
    x, y = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    chance = float(x.mean() * y.mean() + (1 - x.mean()) * (1 - y.mean()))
    return (float((x == y).mean()) - chance) / (1 - chance) if chance < 1 else float("nan")
