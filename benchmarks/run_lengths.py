"""Do charts for drift run as long as they say, and do alarms keep their rate? Prints Markdown.

    python benchmarks/run_lengths.py [--times 200] [--talks 100 300 1000] [--processes 1]

Normal answers are drawn from a distribution that is known, so that what a chart or a threshold truly does is computed
and not counted: standard normal, lognormal (σ = 1) and Student's t with three degrees of freedom. Conversations have
one answer each, five each, or one of them has three in four of all answers; answers of one are correlated by .4 before
they are brought to the distribution. Uses only what 0.1.0 has too, so that `PYTHONPATH=OLD/src` prints the figures of
an older checkout.
"""

from __future__ import annotations

import argparse
import math
from concurrent.futures import ProcessPoolExecutor
from itertools import product

import numpy as np
from scipy import stats

from poise.errors import TooFewResponses
from poise.statistics.conformal import threshold
from poise.statistics.cusum import average_run_length, fit_cusum

LAWS = {"normal": stats.norm(), "lognormal": stats.lognorm(1), "t, 3 df": stats.t(3)}
LIKENESS = 0.4
RATE = 0.03


def sizes(shape: str, talks: int) -> list[int]:
    return {
        "one each": [1] * talks,
        "five each": [5] * talks,
        "one giant": [3 * talks, *[1] * (talks - 1)],
    }[shape]


SHAPES = ("one each", "five each", "one giant")


def drawn(rng: np.random.Generator, law: str, shape: str, talks: int) -> tuple[np.ndarray, list[int]]:
    talk = np.repeat(np.arange(talks), sizes(shape, talks))
    common, apart = rng.normal(size=talks)[talk], rng.normal(size=len(talk))
    z = apart if shape == "one each" else LIKENESS**0.5 * common + (1 - LIKENESS) ** 0.5 * apart
    return LAWS[law].ppf(stats.norm.cdf(z)), talk.tolist()


def charts(job: tuple[str, str, int, int]) -> str:
    """A row of the table of run lengths."""
    law, shape, talks, times = job
    rng, refused, limits = np.random.default_rng(0), 0, []
    true, low, high = [], [], []
    for _ in range(times):
        x, talk = drawn(rng, law, shape, talks)
        try:
            chart = fit_cusum(x, conversations=talk)
        except TooFewResponses:
            refused += 1
            continue
        mean, sd = chart.mean, chart.sd
        true.append(average_run_length(lambda z, m=mean, s=sd: LAWS[law].cdf(m + s * z), chart.k, chart.h))
        low.append(chart.low)
        high.append(chart.high)
        limits.append(chart.h)
    t, lo, hi = np.array(true), np.array(low), np.array(high)
    head = f"| {law} | {talks:,} | {shape} | {refused} of {times} |"
    if not len(t):
        return f"{head} – | – | – | – | – |"
    middle = np.median(t)
    return (
        f"{head} {100 * np.mean((lo <= t) & (t <= hi)):.0f} | {100 * np.mean(t < lo):.0f} | "
        f"{np.quantile(t, 0.1):,.0f} | {middle:,.0f} | {np.median(limits):.1f} |"
    )


def alarms(job: tuple[str, int, int]) -> str:
    """A row of the table of alarms; ranks alone matter, so that one distribution stands for all."""
    shape, talks, times = job
    rng, true, covered = np.random.default_rng(0), [], []
    for _ in range(times):
        x, talk = drawn(rng, "normal", shape, talks)
        try:
            set_at = threshold(x, RATE, conversations=talk)
        except TooFewResponses:
            return f"| {talks:,} | {shape} | refused | |"
        true.append(stats.norm.sf(set_at.value))
        covered.append(set_at.low <= true[-1] <= set_at.high)
    return f"| {talks:,} | {shape} | {100 * np.mean(true):.1f} | {100 * np.mean(covered):.0f} |"


def main(times: int, talks: list[int], processes: int, laws: list[str]) -> None:
    with ProcessPoolExecutor(processes) as pool:
        error = 100 * math.sqrt(0.95 * 0.05 / times)
        print(f"{times} calibrations a row (standard error of a coverage of 95 %: {error:.1f}).\n")
        print(
            "| readings | conversations | answers | refused | covered, % | below, % | true, lowest 10 % | median | h |"
        )
        print("|---|---|---|---|---|---|---|---|---|")
        for row in pool.map(charts, [(law, shape, n, times) for law, n, shape in product(laws, talks, SHAPES)]):
            print(row, flush=True)
        print(f"\nAlarms of {RATE:.0%}.\n\n| conversations | answers | true rate, % | covered, % |\n|---|---|---|---|")
        for row in pool.map(alarms, [(shape, n, 5 * times) for n, shape in product(talks, SHAPES)]):
            print(row, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=200, help="calibrations a row")
    parser.add_argument("--talks", type=int, nargs="+", default=[100, 300, 1000], help="conversations")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--laws", nargs="+", default=list(LAWS), choices=list(LAWS))
    options = parser.parse_args()
    main(options.times, options.talks, options.processes, options.laws)
