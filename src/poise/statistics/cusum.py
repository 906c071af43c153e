"""Slow drift: a one-sided CUSUM of standardised readings, with a stated average run length.

S ← max(0, S + z − k), alarm and restart at S > h (Page 1954). The average run length is the mean number of normal
answers from a fresh start to a false alarm; it is computed by the Markov chain of Brook and Evans (1972, Biometrika
59, 539) from the readings' own distribution, not from a normal one. Numbers only; knows no models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from poise.statistics.estimates import bootstrap_interval, each_draw

__all__ = [
    "DEFAULT_RUN_LENGTH",
    "CusumChart",
    "average_run_length",
    "cusum_step",
    "empirical_distribution",
    "fit_cusum",
]

DEFAULT_RUN_LENGTH = 1000.0  # normal answers to a false alarm, on average
ALLOWANCE = 0.5  # k: tuned to a shift of one standard deviation
STATES = 150
ARL_DRAWS = 200

ReadingsArray = NDArray[np.floating[Any]]
Distribution = Callable[[ReadingsArray], ReadingsArray]  # values to P(z ≤ value)


@dataclass(frozen=True, slots=True, kw_only=True)
class CusumChart:
    """A CUSUM set on normal answers.

    Attributes:
        mean: Mean of normal readings.
        sd: Their standard deviation.
        k: Allowance, in standard deviations.
        h: Alarm above this sum, in standard deviations.
        arl: Average run length on the answers that it was set on.
        low: Lower end of its 95 % interval, resampled by conversation.
        high: Upper end.
    """

    mean: float
    sd: float
    k: float
    h: float
    arl: float
    low: float
    high: float


def cusum_step(s: float, reading: float, *, mean: float, sd: float, k: float, h: float) -> tuple[float, bool]:
    """The sum after one more reading, and whether it raises the alarm; begin again from 0 after one."""
    s = max(0.0, s + (reading - mean) / sd - k)
    return s, s > h


def fit_cusum(
    readings: ArrayLike,
    *,
    arl: float = DEFAULT_RUN_LENGTH,
    k: float = ALLOWANCE,
    conversations: Sequence[object] | None = None,
) -> CusumChart | None:
    """The CUSUM that gives a false alarm every ``arl`` normal answers; ``None`` where readings do not vary.

    Args:
        readings: [n] of normal answers.
        arl: Average run length.
        k: Allowance, in standard deviations.
        conversations: Which conversation each answer came from, for the interval; default, each from its own.
    """
    x = np.asarray(readings, dtype=float)
    if len(x) < 2 or np.ptp(x) == 0:
        return None
    mean, sd = float(x.mean()), float(x.std(ddof=1))
    z = (x - mean) / sd
    h = _limit(z, k, arl)
    groups = _grouped(z, conversations)
    redrawn = each_draw(
        lambda draw: average_run_length(empirical_distribution(np.concatenate([groups[g] for g in draw])), k, h)
    )
    low, high = bootstrap_interval(redrawn, len(groups), draws=ARL_DRAWS)
    if math.isnan(low):  # a single conversation
        low, high = 1.0, math.inf
    return CusumChart(
        mean=mean,
        sd=sd,
        k=k,
        h=h,
        arl=average_run_length(empirical_distribution(z), k, h),
        low=max(low, 1.0),
        high=high,
    )


def _limit(z: ReadingsArray, k: float, arl: float) -> float:
    """The lowest h whose average run length is at least ``arl``."""
    distribution = empirical_distribution(z)
    low, high = 0.0, 1.0
    while average_run_length(distribution, k, high) < arl:
        low, high = high, 2 * high
    while high - low > 1e-4 * high:
        h = (low + high) / 2
        low, high = (h, high) if average_run_length(distribution, k, h) < arl else (low, h)
    return high


def average_run_length(distribution: Distribution, k: float, h: float, *, states: int = STATES) -> float:
    """Average run length from S = 0, by a Markov chain over ``states`` equal steps of [0, h].

    Args:
        distribution: P(z ≤ value) of one standardised reading.
        k: Allowance.
        h: Limit.
        states: More are finer; the error falls with their square.
    """
    width = 2 * h / (2 * states - 1)  # the state 0 is half as wide: it holds S = 0 and what rounds to it
    at = np.arange(states)
    edges = np.arange(-states + 1, states + 1) * width - width / 2 + k
    below = distribution(edges)  # from state i to j or lower: z ≤ (j − i + ½) width + k
    upper = below[(at[None, :] - at[:, None]) + states]
    lower = below[(at[None, :] - at[:, None]) + states - 1]
    lower[:, 0] = 0.0
    try:
        runs = np.linalg.solve(np.eye(states) - (upper - lower), np.ones(states))
    except np.linalg.LinAlgError:
        return math.inf
    return float(runs[0]) if 1 <= runs[0] < 1e15 else math.inf


def empirical_distribution(values: ArrayLike) -> Distribution:
    """P(z ≤ value) as observed."""
    x = np.sort(np.asarray(values, dtype=float))
    return lambda at: np.asarray(np.searchsorted(x, at, side="right") / len(x), dtype=float)


def _grouped(z: ReadingsArray, conversations: Sequence[object] | None) -> list[ReadingsArray]:
    if conversations is None:
        return [z[i : i + 1] for i in range(len(z))]
    places: dict[object, list[int]] = {}
    for i, conversation in enumerate(conversations):
        places.setdefault(conversation, []).append(i)
    return [z[rows] for rows in places.values()]
