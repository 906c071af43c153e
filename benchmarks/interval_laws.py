"""The laws that ``interval_coverage.py`` chooses and reports intervals on; each says which of the two it serves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
Interval = tuple[Array, Array]
Rng = np.random.Generator


@dataclass(frozen=True, kw_only=True)
class Law:
    """A law of n independent units: ``draw`` gives [times, n] values, and the bounds [times, 1] of a unit unseen.

    No interval leaves the ``scale``.
    """

    name: str
    truth: float
    scale: tuple[float, float]
    draw: Callable[[Rng, tuple[int, int]], tuple[Array, Array, Array]]
    reports: bool


def line(name: str, truth: float, draw: Callable[[Rng, tuple[int, int]], Array], *, reports: bool) -> Law:
    """Values without bounds."""
    nothing = np.full((1, 1), np.nan)

    def drawn(rng: Rng, shape: tuple[int, int]) -> tuple[Array, Array, Array]:
        return draw(rng, shape), nothing, nothing

    return Law(name=name, truth=truth, scale=(-np.inf, np.inf), draw=drawn, reports=reports)


def bounded(
    name: str, truth: float, draw: Callable[[Rng, tuple[int, int]], Array], highest: float, *, reports: bool
) -> Law:
    """Scores from 0 to ``highest``."""

    def drawn(rng: Rng, shape: tuple[int, int]) -> tuple[Array, Array, Array]:
        ends = np.zeros((shape[0], 1))
        return draw(rng, shape), ends, ends + highest

    return Law(name=name, truth=truth, scale=(0, highest), draw=drawn, reports=reports)


def half_a_unit(x: Array, lowest: Array, highest: Array, rng: Rng, draws: int) -> Interval:
    """What the library ships for scores, with weights that the samples share."""
    weights = np.concatenate([rng.exponential(size=(x.shape[1], draws)), rng.gamma(0.5, size=(2, draws))])
    mixed = np.hstack([x, lowest, highest]) @ (weights / weights.sum(0))
    low, high = np.quantile(mixed, [0.025, 0.975], axis=1)
    return low, high


def change(name: str, draw: Callable[[Rng, tuple[int, int]], tuple[Array, Array]], *, reports: bool) -> Law:
    """Scores before and after, 0 to 100; an unseen question may fall to 0 or rise to 100 from the interval before."""

    def drawn(rng: Rng, shape: tuple[int, int]) -> tuple[Array, Array, Array]:
        before, after = draw(rng, shape)
        low, high = half_a_unit(before, np.zeros((len(before), 1)), np.full((len(before), 1), 100.0), rng, 1000)
        return after - before, -high[:, None], 100 - low[:, None]

    before, after = draw(np.random.default_rng(99), (1, 4_000_000))
    return Law(name=name, truth=float((after - before).mean()), scale=(-100, 100), draw=drawn, reports=reports)


def some(rng: Rng, shape: tuple[int, int], share: float, tail: Array, body: Array) -> Array:
    return np.where(rng.random(shape) < share, tail, body)


def slight(rng: Rng, shape: tuple[int, int]) -> Interval:
    """Fifteen questions in a hundred now get an answer with the trait, the others move by a point or two."""
    before = rng.exponential(3, shape)
    return before, np.clip(
        before + some(rng, shape, 0.15, rng.uniform(40, 90, shape), rng.exponential(2, shape)), 0, 100
    )


def uneven(rng: Rng, shape: tuple[int, int]) -> Interval:
    return 100 * rng.beta(0.4, 8, shape), 100 * rng.beta(0.4, 2.0, shape)


def rare(rng: Rng, shape: tuple[int, int]) -> Interval:
    before = rng.exponential(3, shape)
    return before, some(rng, shape, 0.1, rng.uniform(50, 100, shape), np.abs(before + rng.normal(0, 2, shape)))


def broad(rng: Rng, shape: tuple[int, int]) -> Interval:
    return 100 * rng.beta(0.4, 3, shape), 100 * rng.beta(0.5, 1.2, shape)


def healed(rng: Rng, shape: tuple[int, int]) -> Interval:
    """A vaccine: most questions had some of the trait, and have none."""
    return 100 * rng.beta(1.5, 1.5, shape), 100 * rng.beta(0.4, 6, shape)


def one_of(share: float) -> Callable[[Rng, tuple[int, int]], Array]:
    """Ones and zeros; the samples have as many of each count of ones as they should have, to the last one."""

    def drawn(rng: Rng, shape: tuple[int, int]) -> Array:
        times, n = shape
        ones = stats.binom.ppf((np.arange(times) + 0.5) / times, n, share)
        return (np.arange(n) < ones[:, None]).astype(float)

    return drawn


SHIFTS = (
    line("normal", 0.0, lambda rng, shape: rng.normal(0, 1, shape), reports=False),
    line("gamma, shape 0.5", 0.5, lambda rng, shape: rng.gamma(0.5, 1, shape), reports=False),
    line("exponential", 1.0, lambda rng, shape: rng.exponential(1, shape), reports=True),
    line("t, 4 df", 0.0, lambda rng, shape: rng.standard_t(4, shape), reports=True),
    line(
        "normal, one in ten by 4 SD", 0.4, lambda rng, shape: rng.normal(4 * (rng.random(shape) < 0.1), 1), reports=True
    ),
)
SCORES = (
    change("changes, 15 % answer anew", slight, reports=False),
    change("changes, skewed", uneven, reports=False),
    bounded("rate 0.5", 0.5, one_of(0.5), 1.0, reports=False),
    bounded("rate 0.1", 0.1, one_of(0.1), 1.0, reports=False),
    change("changes, 10 % answer anew", rare, reports=True),
    change("changes, broad", broad, reports=True),
    change("changes, a vaccine's", healed, reports=True),
    bounded("coherence, mean 75", 75.0, lambda rng, shape: 100 * rng.beta(3, 1, shape), 100.0, reports=True),
    bounded("rate 0.3", 0.3, one_of(0.3), 1.0, reports=True),
    bounded("rate 0.95", 0.95, one_of(0.95), 1.0, reports=True),
)


def matched(d: float, hard: float) -> Callable[[Rng, tuple[int, int]], tuple[Array, Array]]:
    """Scores of both sides of pairs, normal, ``d`` apart; questions differ by ``hard``."""

    def drawn(rng: Rng, shape: tuple[int, int]) -> Interval:
        question = rng.normal(0, 1, shape) * hard
        return question + d + rng.normal(size=shape), question + rng.normal(size=shape)

    return drawn


def mistaken(share: float) -> Callable[[Rng, tuple[int, int]], tuple[Array, Array]]:
    """Pairs far apart, of which some are told apart the wrong way."""

    def drawn(rng: Rng, shape: tuple[int, int]) -> Interval:
        p, q, wrong = rng.normal(6, 1, shape), rng.normal(0, 1, shape), rng.random(shape) < share
        return np.where(wrong, q, p), np.where(wrong, p, q)

    return drawn


PAIRS = (
    ("2 SD apart", matched(2, 0), False),
    ("15 % mistaken", mistaken(0.15), False),
    ("1 SD apart", matched(1, 0), True),
    ("3 SD apart", matched(3, 0), True),
    ("1 SD apart, questions differ by 3", matched(1, 3), True),
    ("5 % mistaken", mistaken(0.05), True),
)
