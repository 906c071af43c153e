"""The few statistics that Poise reports, each with its interval.

Means, ratios, rates and AUC have the intervals of ``intervals``, which hold at small n. Correlations and κ have
percentile bootstraps with a seed, which are too short below some twenty units: they are shown, and no verdict rests on
one of them alone. All draws are computed at once: a statistic takes arrays whose last axis is the units, so that scipy
ranks every draw in one call. Pearson's r and κ stay by hand: scipy's r also
computes a p-value, warns at every draw that is constant and takes ten times as long, and scikit-learn's κ and AUC take
one pair of raters at a time, where a bootstrap has thousands. Light at its top, so that every room may use it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import field_validator

from poise.settings import FrozenModel
from poise.statistics.intervals import auc_interval, bounded_interval, mean_interval, ratio_interval

__all__ = [
    "LEAST_UNITS",
    "Estimate",
    "Statistic",
    "auc",
    "auc_estimate",
    "bootstrap",
    "bootstrap_all",
    "bootstrap_interval",
    "bounded_estimate",
    "each_draw",
    "group_sizes",
    "grouped_auc_estimate",
    "kappa",
    "mean_estimate",
    "of_groups",
    "pearson",
    "ranks",
    "ratio_estimate",
    "score_change_estimate",
    "spearman",
]

StatisticArray = NDArray[np.float64]
Indices = NDArray[np.int64]
Statistic = Callable[[Indices], StatisticArray]
"""From the indices of resampled units, int64 [draws, n], to a value a draw, [draws], or k of them, [draws, k]."""

LEAST_UNITS = 10  # of a verdict or a direction in words: from ten on intervals cover what they promise

_SLICE = 2**21  # numbers held at once


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

    @property
    def too_few(self) -> str:
        """Why what is stated in words on it is only indicative; empty where there are units enough."""
        return "" if self.n >= LEAST_UNITS else f"n = {self.n}, and a verdict takes {LEAST_UNITS}"

    def above(self, bound: float) -> bool:
        """Whether the whole interval lies above ``bound``; without an interval it does not."""
        return self.low is not None and self.low > bound

    def __str__(self) -> str:
        return f"{self:.2f}, n={self.n}"

    def __format__(self, spec: str) -> str:
        """``f"{estimate:.3f}"`` is ``1.234 [1.100, 1.400]``, and says in words what there is not."""
        if not spec:
            return str(self)
        if self.value is None:
            return "no value"
        if self.low is None or self.high is None:
            return f"{self.value:{spec}} (no interval)"
        return f"{self.value:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


NOTHING = Estimate(value=None, low=None, high=None, n=0)


def bootstrap(
    statistic: Statistic, n: int, *, seed: int = 0, draws: int = 2000, level: float = 0.95, width: int = 1
) -> Estimate:
    """Percentile bootstrap of a statistic over n exchangeable units.

    Args:
        statistic: From indices int64 [draws, n] of resampled units to [draws]; NaN draws are left out.
        n: Units, e.g. questions. Resample what is independent, not what is convenient.
        seed: Seed of the resampling.
        draws: Resamples.
        level: Coverage of the interval.
        width: Numbers that the statistic looks up for each drawn unit; bounds the memory.
    """
    if n == 0:
        return NOTHING
    value = float(statistic(np.arange(n)[None])[0])
    low, high = bootstrap_interval(statistic, n, seed=seed, draws=draws, level=level, width=width)
    return Estimate.of(value, low, high, n)


def bootstrap_all(
    statistic: Statistic, n: int, *, seed: int = 0, draws: int = 2000, level: float = 0.95, width: int = 1
) -> list[Estimate]:
    """``bootstrap`` of k statistics that share each resample; ``statistic`` gives [draws, k]."""
    if n == 0:
        return []
    values = statistic(np.arange(n)[None])[0]
    drawn = _resampled(statistic, n, seed, draws, width)
    return [Estimate.of(float(v), *_percentiles(drawn[:, k], level), n) for k, v in enumerate(values)]


def bootstrap_interval(
    statistic: Statistic, n: int, *, seed: int = 0, draws: int = 2000, level: float = 0.95, width: int = 1
) -> tuple[float, float]:
    """The ends of ``bootstrap``'s interval, unrounded; NaN where fewer than two units or no finite draw give none."""
    if n < 2:
        return math.nan, math.nan
    return _percentiles(_resampled(statistic, n, seed, draws, width), level)


def _resampled(statistic: Statistic, n: int, seed: int, draws: int, width: int) -> StatisticArray:
    """The statistic of every resample, in slices that fit into memory; how it is sliced changes no draw."""
    rng = np.random.default_rng(seed)
    most = max(1, _SLICE // (n * width))
    sizes = [min(most, draws - start) for start in range(0, draws, most)]
    return np.concatenate([statistic(rng.integers(0, n, (size, n))) for size in sizes])


def _percentiles(drawn: StatisticArray, level: float) -> tuple[float, float]:
    finite = drawn[np.isfinite(drawn)]
    if not len(finite):
        return math.nan, math.nan
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def each_draw(statistic: Callable[[Indices], float]) -> Statistic:
    """For what can be computed of one resample at a time only: indices [n] to a number."""
    return lambda draws: np.array([statistic(draw) for draw in draws], dtype=float)


def of_groups(statistic: Statistic, groups: Sequence[int] | Indices) -> tuple[Statistic, int]:
    """A statistic of rows that are resampled in whole groups, and how many groups there are.

    Args:
        statistic: From indices of rows [draws, m] to [draws].
        groups: Group of each row, numbered from 0 without gaps.
    """
    labels = np.asarray(groups, dtype=np.int64)
    order = np.argsort(labels, kind="stable")
    rows = np.split(order, np.cumsum(np.bincount(labels))[:-1]) if len(labels) else []

    def of_unequal(draws: Indices) -> StatisticArray:
        return np.concatenate([statistic(np.concatenate([rows[g] for g in draw])[None]) for draw in draws])

    def of_equal(draws: Indices) -> StatisticArray:
        return statistic(np.stack(rows)[draws].reshape(len(draws), -1))

    return of_equal if len({len(group) for group in rows}) == 1 else of_unequal, len(rows)


def group_sizes(n: int, groups: Sequence[object] | None) -> tuple[Indices, Indices]:
    """Each of n rows' group [n], numbered in the order in which they appear, and the rows of each.

    Args:
        n: Rows.
        groups: What tells the groups apart, [n]; default, each row is a group.
    """
    if groups is None:
        return np.arange(n), np.ones(n, dtype=np.int64)
    numbers: dict[object, int] = {}
    labels = np.array([numbers.setdefault(group, len(numbers)) for group in groups], dtype=np.int64)
    return labels, np.bincount(labels, minlength=len(numbers))


def mean_estimate(values: ArrayLike, *, level: float = 0.95) -> Estimate:
    """Mean of independent values without bounds."""
    x = np.asarray(values, dtype=float)
    if not len(x):
        return NOTHING
    low, high = mean_interval(x, level=level)
    return Estimate.of(float(x.mean()), float(low), float(high), len(x))


def ratio_estimate(totals: ArrayLike, sizes: ArrayLike, *, level: float = 0.95) -> Estimate:
    """Σ totals / Σ sizes over independent units [n]."""
    total, size = np.asarray(totals, dtype=float), np.asarray(sizes, dtype=float)
    if not size.sum() > 0:
        return NOTHING
    return Estimate.of(float(total.sum() / size.sum()), *ratio_interval(total, size, level=level), len(total))


def bounded_estimate(
    values: ArrayLike, *, lowest: float = 0.0, highest: float = 100.0, level: float = 0.95, seed: int = 0
) -> Estimate:
    """Mean of independent values between two bounds, by default a judge's scores."""
    x = np.asarray(values, dtype=float)
    if not len(x):
        return NOTHING
    low, high = bounded_interval(x, lowest, highest, level=level, seed=seed)
    return Estimate.of(float(x.mean()), low, high, len(x))


def score_change_estimate(
    changes: ArrayLike, before: Estimate | None, *, highest: float = 100.0, level: float = 0.95, seed: int = 0
) -> Estimate:
    """Mean change of scores between 0 and ``highest`` over independent questions.

    Args:
        changes: After minus before [n].
        before: Scores before. An unseen question may fall to 0 from the upper end of their interval, or rise to
            ``highest`` from the lower one. ``None`` where they are not known.
        highest: Highest score.
        level: Coverage.
        seed: Seed of the weights.
    """
    lowest, most = -highest, highest
    if before is not None and before.low is not None and before.high is not None:
        lowest, most = -before.high, highest - before.low
    return bounded_estimate(changes, lowest=lowest, highest=most, level=level, seed=seed)


def ranks(values: ArrayLike) -> StatisticArray:
    """Ranks from 1 along the last axis, ties shared."""
    from scipy.stats import rankdata

    return np.asarray(rankdata(np.asarray(values, dtype=float), axis=-1), dtype=float)


def pearson(x: ArrayLike, y: ArrayLike) -> StatisticArray:
    """Correlation coefficient along the last axis; NaN where a side is constant or empty."""
    a, b = np.broadcast_arrays(np.asarray(x, dtype=float), np.asarray(y, dtype=float))
    if not a.shape[-1]:
        return np.full(a.shape[:-1], np.nan)[()]
    varied = (np.ptp(a, axis=-1) > 0) & (np.ptp(b, axis=-1) > 0)
    a, b = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
    size = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return _divided((a * b).sum(-1), np.where(varied, size, 0.0))


def spearman(x: ArrayLike, y: ArrayLike) -> StatisticArray:
    """Rank correlation along the last axis; NaN where a side is constant or empty."""
    return pearson(ranks(x), ranks(y))


def auc(scores: ArrayLike, labels: ArrayLike) -> StatisticArray:
    """Chance that a positive scores above a negative, ties half, along the last axis; NaN where a class is empty."""
    x, positive = np.broadcast_arrays(np.asarray(scores, dtype=float), np.asarray(labels, dtype=bool))
    n1 = positive.sum(-1)
    wins = (ranks(x) * positive).sum(-1) - n1 * (n1 + 1) / 2
    return _divided(wins, n1 * (x.shape[-1] - n1))


def auc_estimate(positive: ArrayLike, negative: ArrayLike, *, seed: int = 0) -> Estimate:
    """AUC of matched pairs, its interval by pair.

    Args:
        positive: Scores [n] of the sides with the trait.
        negative: Scores [n] of the sides without it, row i answering the same question.
        seed: Seed of the interval's weights.
    """
    pairs = np.arange(len(np.asarray(positive)))
    return grouped_auc_estimate(positive, negative, (pairs, pairs), seed=seed)


def grouped_auc_estimate(
    positive: ArrayLike, negative: ArrayLike, units: tuple[Indices, Indices], *, seed: int = 0
) -> Estimate:
    """AUC of answers of which several may be of one independent unit.

    Args:
        positive: Scores [p] of the positives.
        negative: Scores [q] of the negatives.
        units: Unit of each positive and of each negative, numbered from 0 without gaps.
        seed: Seed of the interval's weights.
    """
    p, q = np.asarray(positive, dtype=float), np.asarray(negative, dtype=float)
    n = len(np.unique(np.concatenate(units)))
    if not len(p) or not len(q):
        return Estimate(value=None, low=None, high=None, n=n)
    value = float(auc(np.concatenate([p, q]), np.arange(len(p) + len(q)) < len(p)))
    low, high = auc_interval(p, q, units, seed=seed)  # which no draw of weights brings to the ends, where all are told
    return Estimate.of(value, min(low, value), max(high, value), n)  # NaN stays: no number is less than it


def kappa(a: ArrayLike, b: ArrayLike) -> StatisticArray:
    """Cohen's κ of two yes/no raters along the last axis; NaN where chance agreement is certain or nobody rated."""
    x, y = np.broadcast_arrays(np.asarray(a, dtype=bool), np.asarray(b, dtype=bool))
    n = x.shape[-1]
    if not n:
        return np.full(x.shape[:-1], np.nan)[()]
    yes_x, yes_y = x.sum(-1), y.sum(-1)
    chance = yes_x * yes_y + (n - yes_x) * (n - yes_y)  # times n², so that it is exact
    return _divided((x == y).sum(-1) * n - chance, n * n - chance)


def _divided(a: StatisticArray, b: StatisticArray) -> StatisticArray:
    """NaN where ``b`` is not above 0."""
    known = np.asarray(b) > 0
    return np.where(known, a / np.where(known, b, 1), np.nan)[()]
