"""Shared by the benchmarks: paired runs, ratios with intervals, texts."""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from poise.model import Encoded, Model, ask
from poise.statistics.estimates import Estimate, bootstrap
from poise.trait import library


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    gc.collect()
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def median_ratio(a: Sequence[float], b: Sequence[float]) -> Estimate:
    """Median of b/a over pairs, bootstrapped by pair: above 1 where b took longer."""
    ratios = np.array(b) / np.array(a)
    return bootstrap(lambda i: np.median(ratios[i], axis=-1), len(ratios))


def shown(ratio: Estimate) -> str:
    """With the three digits that ± 2 % takes."""
    return f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}], n={ratio.n} pairs"


def interleave(
    a: Callable[[], object], b: Callable[[], object], *, within: float = 0.02, least: int = 5, most: int = 60
) -> tuple[list[float], list[float], Estimate]:
    """Time a and b in turn, in alternating order, until the interval of the ratio is within ± ``within``."""
    a(), b()
    times: tuple[list[float], list[float]] = ([], [])
    ratio = Estimate.of(1, 0, 2, 0)
    while len(times[0]) < least or (ratio.high - ratio.low > 2 * within and len(times[0]) < most):
        for which in (0, 1) if len(times[0]) % 2 == 0 else (1, 0):
            times[which].append(seconds((a, b)[which]))
        ratio = median_ratio(*times)
    return *times, ratio


def stepwise(
    a: Callable[[], Iterator[object]],
    b: Callable[[], Iterator[object]],
    *,
    within: float = 0.02,
    least: int = 5,
    most: int = 60,
) -> tuple[list[float], list[float], Estimate]:
    """Two decoding runs advanced in turn, a step of one and a step of the other, so that both meet the same noise.

    A run's figure is its median step; the first step, which reads the prompt, is left out. The ratio is over runs, so
    that its interval knows that the steps of a run are alike.
    """
    times: tuple[list[float], list[float]] = ([], [])
    ratio = Estimate.of(1, 0, 2, 0)
    while len(times[0]) < least or (ratio.high - ratio.low > 2 * within and len(times[0]) < most):
        order = (0, 1) if len(times[0]) % 2 == 0 else (1, 0)
        runs = (a(), b())
        steps: tuple[list[float], list[float]] = ([], [])
        with contextlib.suppress(StopIteration):
            while True:
                for which in order:
                    began = time.perf_counter()
                    next(runs[which])
                    steps[which].append(time.perf_counter() - began)
        for which in (0, 1):
            times[which].append(statistics.median(steps[which][1:]))
        ratio = median_ratio(*times)
    return *times, ratio


def texts(model: Model, n: int) -> list[Encoded]:
    """Exemplar answers of the library's traits, both sides, in a fixed order."""
    pairs = [p for name in library.names() for p in library.load_trait(name).exemplars.all]
    sides = [(p.question, text) for p in pairs for text in (p.positive, p.negative)]
    return [model.encode(ask(q), text) for q, text in sides[:: max(1, len(sides) // n)][:n]]


def median(values: Sequence[float]) -> float:
    return statistics.median(values)
