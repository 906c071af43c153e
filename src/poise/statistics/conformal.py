"""Thresholds that promise a false-alarm rate, whatever the distribution of the readings.

With a threshold at the k-th highest of n normal answers, the chance that one more normal answer reads above it is
k / (n + 1) on average, and over repeated calibrations it is distributed as Beta(k, n + 1 − k): order statistics
of exchangeable answers, as in split conformal prediction (Vovk 2012, arXiv:1209.2673). Where readings go with the size
of what is read, a threshold for each band of sizes keeps the rate in every band (the same paper's Mondrian predictors).

Answers of one conversation are alike, so that conversations are what is exchangeable. Each weighs the same, however
many answers it has: the threshold is the value that k of n conversations reach, one answer of m counting as 1 / m of a
conversation (Lee, Barber and Willett 2023, arXiv:2306.06342), and the promise is of an answer of a conversation to
come. Numbers only; knows no models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from poise.errors import InvalidArgument, TooFewResponses
from poise.statistics.estimates import group_sizes

__all__ = [
    "Band",
    "Threshold",
    "bands",
    "check_enough",
    "check_rate",
    "exact_interval",
    "needed",
    "rank_of_threshold",
    "rate_interval",
    "threshold",
]

LOOSEST = 3.0  # the true rate may at worst be this many times the asked one, at the interval's upper end
MOST_BANDS = 10  # bands; more would make each threshold noisier for little
WORTH = 0.8  # of the asked rate is what a band's k / (n + 1) should reach


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """A value that normal readings exceed at a given rate.

    Attributes:
        value: An alarm is raised by a reading above it.
        rate: The false-alarm rate that was asked for.
        low: Lower end of the 95 % interval of the rate that it has.
        high: Upper end.
        answers: Normal answers that it was set on.
        conversations: How many independent conversations they came from; the interval counts these.
    """

    value: float
    rate: float
    low: float
    high: float
    answers: int
    conversations: int


def threshold(readings: ArrayLike, rate: float, *, conversations: Sequence[object] | None = None) -> Threshold:
    """The value that at most a share ``rate`` of normal answers to come will read above.

    Args:
        readings: [n] of normal answers.
        rate: False alarms an answer, e.g. 0.01.
        conversations: Which conversation each answer came from; default, each from its own. Conversations weigh the
            same, so that no long one sets the threshold alone, and the interval counts them.

    Raises:
        InvalidArgument: ``rate`` is not between 0 and 0.5.
        TooFewResponses: so few conversations cannot promise this rate; says how many can.
    """
    check_rate(rate)
    x = np.asarray(readings, dtype=float)
    talk, sizes = group_sizes(len(x), conversations)
    independent = len(sizes)
    check_enough(independent, rate)
    k = rank_of_threshold(independent, rate)
    low, high = rate_interval(k, independent)
    highest = np.argsort(-x, kind="stable")
    reached = np.cumsum(1 / sizes[talk[highest]])  # conversations at or above each answer
    return Threshold(
        value=float(x[highest[np.searchsorted(reached, k + 1e-9, side="right") - 1]]),
        rate=rate,
        low=low,
        high=high,
        answers=len(x),
        conversations=independent,
    )


@dataclass(frozen=True, slots=True)
class Band:
    """A threshold for answers of like size.

    Attributes:
        smallest: Smallest size among the normal answers that it was set on, or one more than the largest of the band
            below.
        largest: Largest size among the normal answers that it was set on.
        threshold: Threshold for answers of these sizes.
    """

    smallest: int
    largest: int
    threshold: Threshold


def bands(
    readings: ArrayLike, sizes: ArrayLike, rate: float, *, conversations: Sequence[object] | None = None
) -> tuple[Band, ...]:
    """A threshold for each band of sizes, smallest first, that keeps ``rate`` among the answers of that band.

    As many bands as the conversations can bear, ten at most, and one where they can bear no more. Answers of one size
    lie in one band. The promise ends with the sizes of the normal answers.

    Args:
        readings: [n] of normal answers.
        sizes: [n] whole numbers, e.g. tokens.
        rate: False alarms an answer of any one band.
        conversations: Which conversation each answer came from; default, each from its own.

    Raises:
        InvalidArgument: ``rate`` is not between 0 and 0.5.
        TooFewResponses: so few conversations cannot promise this rate in a single band; says how many can.
    """
    x, size = np.asarray(readings, dtype=float), np.asarray(sizes)
    check_rate(rate)
    talk, sizes_of_talk = group_sizes(len(x), conversations)
    check_enough(len(sizes_of_talk), rate)
    order = np.argsort(size, kind="stable")
    ends = _ends(size[order], talk[order], rate)
    done: list[Band] = []
    for first, last in zip([0, *ends[:-1]], ends, strict=True):
        members = order[first:last]
        smallest = done[-1].largest + 1 if done else int(size[members[0]])
        set_at = threshold(x[members], rate, conversations=talk[members].tolist())
        done.append(Band(smallest, int(size[members[-1]]), set_at))
    return tuple(done)


def _ends(size: NDArray[np.int64], talk: NDArray[np.int64], rate: float) -> list[int]:
    """Where each band ends among answers sorted by size: as soon as it has enough, the last one with what is left."""
    enough = needed(rate)
    least = max(enough, math.ceil(len(size) / MOST_BANDS))
    while rank_of_threshold(least, rate) < WORTH * rate * (least + 1):
        least += 1
    ends, seen = [0], set[int]()
    for i, one in enumerate(talk.tolist(), 1):
        seen.add(one)
        if len(seen) >= enough and i - ends[-1] >= least and (i == len(size) or size[i] > size[i - 1]):
            ends.append(i)
            seen.clear()
    return [*ends[1:-1], len(size)]


def check_rate(rate: float) -> float:
    """The rate itself, or an error that names the range."""
    if not 0 < rate < 0.5:
        raise InvalidArgument(
            f"rate is {rate}; it must be above 0 and below 0.5, e.g. 0.01 for one answer in a hundred."
        )
    return rate


def check_enough(
    conversations: int, rate: float, note: str = "", *, repeats: int = 0, unit: str = "conversations"
) -> None:
    """Refuse a rate that so few conversations cannot promise.

    Args:
        conversations: How many there are, each once.
        rate: Rate that is asked for.
        note: Added to what is said then.
        repeats: How many more say again what these say.
        unit: What is counted, in the plural.

    Raises:
        TooFewResponses: says how many can.
    """
    if not _supports(conversations, rate):
        again = f" ({repeats} more repeat them or their beginnings)" if repeats else ""
        raise TooFewResponses(
            f"A false-alarm rate of {rate:.4g} needs {needed(rate)} normal answers from as many {unit}, and "
            f"there are {conversations}{again}; bring more rows or ask for a higher `rate`."
            + (f" {note}" if note else "")
        )


def needed(rate: float) -> int:
    """Fewest conversations that can promise a rate: one answer above, and an interval up to three times the rate."""
    n = math.ceil(1 / rate) - 1
    while not _supports(n, rate):
        n += 1
    return n


def _supports(n: int, rate: float) -> bool:
    k = rank_of_threshold(n, rate)
    return k >= 1 and rate_interval(k, n)[1] <= LOOSEST * rate


def rank_of_threshold(n: int, rate: float) -> int:
    """k: the threshold is the k-th highest of n."""
    return math.floor((n + 1) * rate + 1e-9)


def rate_interval(k: int, n: int) -> tuple[float, float]:
    """95 % interval of the true rate above the k-th highest of n exchangeable values: of Beta(k, n + 1 − k)."""
    from scipy.special import betaincinv  # beta.ppf without the machinery of scipy.stats: this is called in loops

    return float(betaincinv(k, n + 1 - k, 0.025)), float(betaincinv(k, n + 1 - k, 0.975))


def exact_interval(alarms: int, n: int) -> tuple[float, float]:
    """Clopper and Pearson's 95 % interval of a rate that showed in ``alarms`` of n answers; all of 0 to 1 for none."""
    from scipy.stats import binomtest

    if n == 0:
        return 0.0, 1.0
    ends = binomtest(alarms, n).proportion_ci(confidence_level=0.95, method="exact")
    return float(ends.low), float(ends.high)
