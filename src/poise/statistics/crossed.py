"""Means over questions that each of several training runs answered: two samples crossed, each with its own spread."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from poise.statistics.estimates import Estimate
from poise.statistics.intervals import bounded_interval, mean_interval

__all__ = ["crossed_estimate"]


def crossed_estimate(
    values: ArrayLike, *, bounds: tuple[float, float] | None = None, level: float = 0.95, seed: int = 0
) -> Estimate:
    """Mean over runs and questions, its interval for other questions and for other runs.

    The questions' means over runs have the interval of independent units. The runs are clusters: their means spread by
    Student's t with one degree of freedom fewer than runs, which is wide for two or three of them and says so. The two
    are joined as independent parts of the error, by the squares of their distances from the mean (Zou and Donner 2008,
    Statistics in Medicine 27, 1693). What both contain, the scatter of single answers, counts twice, so that the
    interval is rather too wide.

    Args:
        values: A row a run and a column a question [S, Q]; NaN where there is no value.
        bounds: Lowest and highest value of a question, e.g. 0 and 1 of right answers; ``None`` without bounds.
        level: Coverage.
        seed: Seed of the weights of bounded means.

    Returns:
        ``n`` is the number of questions that have a value in every run.
    """
    from scipy.special import stdtrit

    table = np.atleast_2d(np.asarray(values, dtype=float))
    table = table[:, ~np.isnan(table).any(axis=0)]
    runs, n = table.shape
    if not n:
        return Estimate(value=None, low=None, high=None, n=0)
    questions = table.mean(axis=0)
    mean = float(table.mean())
    if bounds is None:
        low, high = (float(end) for end in mean_interval(questions, level=level))
    else:
        low, high = bounded_interval(questions, *bounds, level=level, seed=seed)
    if runs > 1:
        spread = float(stdtrit(runs - 1, (1 + level) / 2) * table.mean(axis=1).std(ddof=1) / math.sqrt(runs))
        low, high = mean - math.hypot(mean - low, spread), mean + math.hypot(high - mean, spread)
    if bounds is not None:
        low, high = max(low, bounds[0]), min(high, bounds[1])
    return Estimate.of(mean, low, high, n)
