"""Slow drift: a one-sided CUSUM of standardised readings, with a stated average run length.

S ← max(0, S + z − k), alarm and restart at S > h (Page 1954). The average run length is the mean number of normal
answers from a fresh start to a false alarm; it is computed by the Markov chain of Brook and Evans (1972, Biometrika
59, 539) from the readings' own distribution, not from a normal one, with a tail beyond the highest of them. Answers
are taken to be independent, each of a conversation to come. Numbers only; knows no models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from poise.errors import InvalidArgument, TooFewResponses
from poise.statistics.estimates import Indices, group_sizes
from poise.statistics.tails import ReadingsArray, TailedDistribution, fit_tail

__all__ = [
    "DEFAULT_RUN_LENGTH",
    "FEWEST_CONVERSATIONS",
    "CusumChart",
    "average_run_length",
    "cusum_step",
    "empirical_distribution",
    "fit_cusum",
]

DEFAULT_RUN_LENGTH = 1000.0  # normal answers to a false alarm, on average
ALLOWANCE = 0.5  # k: tuned to a shift of one standard deviation
FEWEST_CONVERSATIONS = 100  # a mean and a spread from fewer make a chart that promises nothing
CAUTION = 0.1  # of all calibrations may have a shorter run length than is asked for
FARTHEST_BELOW = 20.0  # the interval's lower end may at worst be this many times shorter than the asked run length
WIDENING = 5.0  # errors are larger than those of resampling by 1 + this / √n, which understates them in small samples
MOST_OF_SPREAD = 0.5  # of the variance may be one conversation's
SIGHTINGS = 10  # of a reading tell how often it comes
LONGEST_RUN = 1000.0  # times the asked run length; a longer run is without end
STATES = 150
COARSE_STATES = 50  # where two run lengths are compared
ARL_DRAWS = 150


Distribution = Callable[[ReadingsArray], ReadingsArray]  # values to P(z ≤ value)


@dataclass(frozen=True, slots=True, kw_only=True)
class CusumChart:
    """A CUSUM set on normal answers.

    Attributes:
        mean: Mean of normal readings.
        sd: Their standard deviation.
        k: Allowance, in standard deviations.
        h: Alarm above this sum, in standard deviations.
        arl: Average run length by estimate, which is longer than what was asked for: ``h`` is cautious.
        low: Lower end of its 95 % interval, over calibrations on as many conversations.
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
    """The CUSUM that gives a false alarm every ``arl`` normal answers or more rarely; ``None`` if readings do not vary.

    The limit is such that nine calibrations of ten run at least ``arl`` answers (Gandy and Kvaløy 2013, Scandinavian
    Journal of Statistics 40, 647); the fewer the conversations and the heavier the tail, the higher it is.

    Args:
        readings: [n] of normal answers.
        arl: Average run length.
        k: Allowance, in standard deviations.
        conversations: Which conversation each answer came from; default, each from its own. Conversations weigh the
            same and are resampled as they are.

    Raises:
        InvalidArgument: a reading is NaN or infinite.
        TooFewResponses: so few conversations of so heavy a tail say nothing about so rare an event, or one conversation
            alone makes most of the spread; says how many may.
    """
    x = np.asarray(readings, dtype=float)
    if missing := int(np.sum(~np.isfinite(x))):
        raise InvalidArgument(f"{missing:,} of {len(x):,} readings are NaN or infinite; leave these answers out.")
    if len(x) < 2 or np.ptp(x) == 0:
        return None
    talk, sizes = group_sizes(len(x), conversations)
    count = len(sizes)
    if count < FEWEST_CONVERSATIONS:
        raise TooFewResponses(
            f"A chart for drift needs normal answers from {FEWEST_CONVERSATIONS} conversations, and there are {count}; "
            "bring more rows."
        )
    errors = _RunLengthErrors(x, talk, sizes, k, LONGEST_RUN * arl)
    normal, sd = errors.normal, errors.normal.sd * math.sqrt(count / (count - 1))
    widening = 1 + WIDENING / math.sqrt(count)
    caution = widening * float(np.quantile(errors.at(_limit(normal, k, arl)), CAUTION))
    h = max(_limit(normal, k, arl * math.exp(-min(0.0, caution))), _limit(normal, k, arl, normal.observed))
    low, high = widening * np.quantile(errors.at(h), [0.025, 0.975])
    estimate = min(
        errors.run_length(each, normal.mean, normal.sd, h, states=STATES) for each in (normal, normal.observed)
    )
    highest = estimate * math.exp(high)
    chart = CusumChart(
        mean=normal.mean,
        sd=sd,
        k=k,
        h=h * normal.sd / sd,
        arl=estimate,
        low=max(estimate * math.exp(low), 1.0),
        high=highest if highest < errors.longest else math.inf,
    )
    if chart.low * FARTHEST_BELOW < arl:
        wanted = math.ceil(count * (math.log(arl / chart.low) / math.log(FARTHEST_BELOW)) ** 2)
        raise TooFewResponses(
            f"A chart for drift with a false alarm every {arl:,.0f} answers needs about {wanted:,} conversations of "
            f"readings as widely spread as these, and there are {count:,}, which leave it between {chart.low:,.0f} and "
            f"{chart.high:,.0f}; bring more rows."
        )
    _check_spread(x, talk, sizes)
    return replace(chart, low=min(chart.low, _shortest_by_outliers(x, talk, sizes, chart)))


def _check_spread(x: ReadingsArray, talk: Indices, sizes: Indices) -> None:
    """Refuse readings whose spread is that of one conversation.

    Raises:
        TooFewResponses: nothing tells how often such readings come; says how many conversations may.
    """
    weights = 1 / (len(sizes) * sizes[talk])
    squares = np.bincount(talk, weights=weights * (x - weights @ x) ** 2)
    share = float(squares.max() / squares.sum())
    if share > MOST_OF_SPREAD:
        raise TooFewResponses(
            f"A chart for drift needs a spread that many readings share, and one of {len(sizes):,} conversations alone "
            f"makes {share:.0%} of it; how often such readings come cannot be told from one. "
            f"{SIGHTINGS * len(sizes):,} conversations would show about {SIGHTINGS} of them; bring more rows."
        )


def _shortest_by_outliers(x: ReadingsArray, talk: Indices, sizes: Indices, chart: CusumChart) -> float:
    """The lower end of the run length if outliers come as often as their count allows, each of them an alarm.

    Outliers are readings that take the sum half of the way to the limit at once. No tail that is fitted on the others
    tells of them; their share has an exact interval, which says of none seen among n that they may be 3.7 of n.
    """
    from scipy.special import betaincinv

    outliers = (x - chart.mean) / chart.sd > chart.k + chart.h / 2
    seen = float(np.sum(outliers / sizes[talk]))
    most = float(betaincinv(seen + 1, max(len(sizes) - seen, 1e-9), 0.975))
    return 1 / most


class _RunLengthErrors:
    """How far the run length of a chart may be from what its own answers say, by resampling conversations.

    A chart that is set on resampled answers runs otherwise on the answers themselves than on those that it was set on;
    so does the chart that was set on the answers, on those to come (Gandy and Kvaløy). What resampling cannot show is
    how heavy the tail is beyond the readings: each draw has the answers' own tail in another of the shapes that it may
    have.
    """

    def __init__(self, x: ReadingsArray, talk: Indices, sizes: Indices, k: float, longest: float) -> None:
        rng = np.random.default_rng(0)
        order = np.argsort(x, kind="stable")
        self.values, self.talk, count = x[order], talk[order], len(sizes)
        self.k, self.longest = k, longest
        self.weights = 1 / sizes[self.talk]
        self.normal = fit_tail(self.values, self.weights)
        self.draws = [np.bincount(rng.integers(0, count, count), minlength=count) for _ in range(ARL_DRAWS)]
        self.shapes = self.normal.shape + self.normal.shape_error * rng.standard_normal(ARL_DRAWS)

    def at(self, h: float) -> ReadingsArray:
        """Logarithms of true to estimated run length, [draws], of a limit of h standard deviations."""
        errors = []
        for draw, shape in zip(self.draws, self.shapes, strict=True):
            redrawn = fit_tail(self.values, self.weights * draw[self.talk])
            if redrawn.sd == 0:
                continue
            true = self.run_length(self.normal.with_shape(shape), redrawn.mean, redrawn.sd, h)
            errors.append(math.log(true / self.run_length(redrawn, redrawn.mean, redrawn.sd, h)))
        return np.array(errors)

    def run_length(
        self, distribution: Distribution, mean: float, sd: float, h: float, *, states: int = COARSE_STATES
    ) -> float:
        """Average run length of readings under a chart of this mean and spread, ``longest`` at most."""
        return min(average_run_length(lambda z: distribution(mean + sd * z), self.k, h, states=states), self.longest)


def _limit(normal: TailedDistribution, k: float, arl: float, readings: Distribution | None = None) -> float:
    """The lowest h whose average run length is at least ``arl``; default, of readings as ``normal`` has them."""
    readings = readings or normal

    def run(h: float) -> float:
        return average_run_length(lambda z: readings(normal.mean + normal.sd * z), k, h, states=COARSE_STATES)

    low, high = 0.0, 1.0
    while run(high) < arl:
        low, high = high, 2 * high
    while high - low > 1e-4 * high:
        h = (low + high) / 2
        low, high = (h, high) if run(h) < arl else (low, h)
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
