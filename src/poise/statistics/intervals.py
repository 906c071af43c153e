"""Intervals that hold at small n, chosen by simulation: ``benchmarks/interval_coverage.py``, docs/statistics.md.

Three kinds of figure, three rules. Means of what has no bounds: Student's t after Hall's cubic transformation, which
takes out skewness (Hall 1992, JRSS B 54, 221). Means of what has bounds, such as a judge's scores and rates: a Bayesian
bootstrap (Rubin 1981, Annals of Statistics 9, 130) with half an unseen unit at either bound, because no sample shows
the rare high scores that it happened to miss; of zeros and ones it is Jeffreys' interval. AUC: the same with half an
unseen pair told apart and half a pair mistaken. Numbers only; light at its top.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["auc_interval", "bounded_interval", "mean_interval", "ratio_interval"]

FloatColumn = NDArray[np.float64]
DRAWS = 4000
NUMBERS_AT_ONCE = 2**21  # numbers held at once
HALF = 0.5  # of a unit, unseen, at either bound


def mean_interval(values: ArrayLike, *, level: float = 0.95) -> tuple[FloatColumn, FloatColumn]:
    """Ends of the interval of means along the last axis; NaN for fewer than two values."""
    from scipy.special import stdtrit

    x = np.asarray(values, dtype=float)
    n = x.shape[-1]
    if n < 2:
        missing = np.full(x.shape[:-1], np.nan)
        return missing[()], missing[()]
    mean, spread = x.mean(-1), x.std(-1, ddof=1)
    centred = x - mean[..., None]
    spread = np.where(np.ptp(x, axis=-1) > 0, spread, 0.0)  # what rounding leaves of a constant
    cubes = (centred**3).mean(-1)
    skewness = np.divide(cubes, x.std(-1) ** 3, out=np.zeros_like(cubes), where=spread > 0)
    t = float(stdtrit(n - 1, (1 + level) / 2))
    low, high = (mean - spread * _untransformed(skewness, sign * t, n) for sign in (1, -1))
    return low[()], high[()]


def _untransformed(skewness: FloatColumn, t: float, n: int) -> FloatColumn:
    """W with W + γW²/3 + γ²W³/27 + γ/6n = t / √n, (mean − μ) / s as it lies at the quantile t."""
    flat = np.abs(skewness) < 1e-6
    gamma = np.where(flat, 1.0, skewness)
    curved = 3 / gamma * (np.cbrt(1 + gamma * (t / math.sqrt(n) - gamma / (6 * n))) - 1)
    return np.where(flat, t / math.sqrt(n), curved)


def ratio_interval(totals: ArrayLike, sizes: ArrayLike, *, level: float = 0.95) -> tuple[float, float]:
    """Ends of the interval of Σ totals / Σ sizes over independent units [n], e.g. a mean over texts of unequal size.

    The ratio is as good as linear in its units, each of which moves it by (total − ratio · size) / mean size.
    """
    total, size = np.asarray(totals, dtype=float), np.asarray(sizes, dtype=float)
    if len(total) < 2 or not size.sum() > 0:
        return math.nan, math.nan
    ratio = total.sum() / size.sum()
    low, high = mean_interval(ratio + (total - ratio * size) / size.mean(), level=level)
    return float(low), float(high)


def bounded_interval(
    values: ArrayLike, lowest: float, highest: float, *, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Ends of the interval of the mean of values [n] that lie between two bounds; NaN for fewer than two values.

    Args:
        values: Independent values.
        lowest: What half an unseen unit has at worst; values may lie beyond it.
        highest: What half an unseen unit has at best.
        level: Coverage.
        seed: Seed of the weights.
    """
    x = np.asarray(values, dtype=float)
    if len(x) < 2:
        return math.nan, math.nan
    different, counts = np.unique(x, return_counts=True)
    if set(different) <= {lowest, highest}:
        return _rate_ends((x == highest).sum(), len(x), lowest, highest, level)
    points = np.concatenate([different, [lowest, highest]])
    shapes = np.concatenate([counts, [HALF, HALF]])
    means = [weights @ points for weights in _weights(shapes, seed)]
    return _quantile_ends(np.concatenate(means), level)


def _rate_ends(successes: int, n: int, lowest: float, highest: float, level: float) -> tuple[float, float]:
    """The same without draws: weights of zeros and ones are of a beta distribution."""
    from scipy.special import betaincinv

    shares = [betaincinv(successes + HALF, n - successes + HALF, (1 + sign * level) / 2) for sign in (-1, 1)]
    low, high = (lowest + (highest - lowest) * float(share) for share in shares)
    return low, high


def auc_interval(
    positive: ArrayLike,
    negative: ArrayLike,
    units: tuple[ArrayLike, ArrayLike],
    *,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Ends of the interval of an AUC; NaN for fewer than two units.

    Args:
        positive: Scores [p] of the positives.
        negative: Scores [q] of the negatives.
        units: Independent unit of each positive and of each negative, numbered from 0 without gaps.
        level: Coverage.
        seed: Seed of the weights.
    """
    p, q = np.asarray(positive, dtype=float), np.asarray(negative, dtype=float)
    of_p, of_q = (np.asarray(unit, dtype=np.int64) for unit in units)
    n = int(max(of_p.max(initial=-1), of_q.max(initial=-1))) + 1
    if n < 2 or not len(p) or not len(q):
        return math.nan, math.nan
    extra = np.array([n, n + 1])  # a pair told apart and one mistaken, each of as many answers as a unit has on average
    p, of_p, size_p = _with_units(p, [np.inf, -np.inf], of_p, extra)
    q, of_q, size_q = _with_units(q, [-np.inf, np.inf], of_q, extra)
    order = np.argsort(q, kind="stable")
    below, upto = (np.searchsorted(q[order], p, side=side) for side in ("left", "right"))
    drawn = []
    for weights in _weights(np.append(np.ones(n), [HALF, HALF]), seed):
        above = weights[:, of_p] * size_p
        lighter = np.cumsum(np.pad((weights[:, of_q] * size_q)[:, order], ((0, 0), (1, 0))), axis=1)
        wins = (above * (lighter[:, below] + lighter[:, upto])).sum(1) / 2
        drawn.append(wins / (above.sum(1) * lighter[:, -1]))
    return _quantile_ends(np.concatenate(drawn), level)


def _with_units(
    scores: FloatColumn, extremes: list[float], units: NDArray[np.int64], extra: NDArray[np.int64]
) -> tuple[FloatColumn, NDArray[np.int64], FloatColumn]:
    """Scores, their units and sizes, with two more units at the extremes."""
    size = len(scores) / len(np.unique(units))
    return np.append(scores, extremes), np.append(units, extra), np.append(np.ones(len(scores)), [size, size])


def _weights(shapes: FloatColumn, seed: int) -> list[FloatColumn]:
    """Dirichlet weights [draws, k], in slices that fit into memory; how they are sliced changes no draw."""
    rng = np.random.default_rng(seed)
    most = max(1, NUMBERS_AT_ONCE // (4 * len(shapes)))
    drawn = (rng.gamma(shapes, size=(min(most, DRAWS - first), len(shapes))) for first in range(0, DRAWS, most))
    return [gammas / gammas.sum(1, keepdims=True) for gammas in drawn]


def _quantile_ends(drawn: FloatColumn, level: float) -> tuple[float, float]:
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
