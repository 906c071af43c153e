"""Drift over a run of many answers: a CUSUM whose false alarms are promised a run, not an answer.

The chart of a vector file (``poise.statistics.cusum``) takes answers to be independent, and the steps of one run are
not: they go on with one history. Here runs are what is exchangeable. Mean and spread come from one part of ordinary
runs; each of the others is charted, its highest sum is one number, and the limit is the threshold of these numbers
(``poise.statistics.conformal``). So at most the promised share of ordinary runs to come has an alarm at all, as long as
they are no longer than those were, however alike the steps of a run are. Numbers only; knows no models.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from poise.errors import InvalidArgument, TooFewResponses
from poise.settings import Settings
from poise.statistics.conformal import check_enough, check_rate, threshold
from poise.statistics.cusum import cusum_step

__all__ = ["DriftSide", "RunChart", "RunCusum", "fit_run_chart"]

DriftSide = Literal["above", "below"]
SCALE_SHARE = 3  # one run of so many sets mean and spread, the others the limit
ALLOWANCE_OF_RUNS = 0.5  # k: tuned to a shift of one standard deviation
UNLIMITED = 1e308


class RunChart(Settings):
    """A one-sided CUSUM over the steps of a run: S ← max(0, S ± (x − mean) / sd − k), alarm and restart at S > h."""

    mean: float = Field(allow_inf_nan=False, description="Mean reading of a step of ordinary runs.")
    sd: float = Field(gt=0, allow_inf_nan=False, description="Standard deviation of these.")
    k: float = Field(ALLOWANCE_OF_RUNS, ge=0, allow_inf_nan=False, description="Allowance, in standard deviations.")
    h: float = Field(ge=0, allow_inf_nan=False, description="Limit, in standard deviations.")
    side: DriftSide = Field("above", description="Drift that raises the alarm; below, of a trait that is to stay.")
    rate: float | None = Field(None, description="Share of ordinary runs with an alarm that is promised.")
    low: float | None = Field(None, description="Lower end of the 95 % interval of the share that it has.")
    high: float | None = Field(None, description="Upper end.")
    runs: int | None = Field(None, description="Ordinary runs that the limit was set on.")
    steps: int | None = Field(None, description="Steps of the longest of them; the promise ends there.")

    def sum_after(self, s: float, reading: float) -> tuple[float, bool]:
        """The sum after one more reading, and whether it raises the alarm."""
        sign = 1.0 if self.side == "above" else -1.0
        return cusum_step(s, sign * reading, mean=sign * self.mean, sd=self.sd, k=self.k, h=self.h)


class RunCusum:
    """The chart of one trait along one run.

    Args:
        chart: Its limit.
        s: Sum to go on from.

    Attributes:
        s: The sum; 0 again after an alarm.
    """

    def __init__(self, chart: RunChart, s: float = 0.0) -> None:
        self.chart, self.s = chart, s

    def see(self, reading: float) -> bool:
        """Take in the reading of a step; whether it raises the alarm. A missing one (NaN) changes nothing."""
        if not math.isfinite(reading):
            return False
        self.s, alarm = self.chart.sum_after(self.s, reading)
        if alarm:
            self.s = 0.0
        return alarm


def fit_run_chart(
    runs: Iterable[Sequence[float]], *, rate: float = 0.05, side: DriftSide = "above", k: float = ALLOWANCE_OF_RUNS
) -> RunChart:
    """A chart with at most a share ``rate`` of false alarms a run.

    Args:
        runs: Ordinary runs as readings of their steps, in order; of a persona that is to stay, runs with it. NaN is
            left out.
        rate: Share of ordinary runs to come that may have an alarm.
        side: Drift that raises the alarm.
        k: Allowance, in standard deviations.

    Raises:
        InvalidArgument: a rate that is no rate, or readings that do not vary.
        TooFewResponses: so few runs cannot promise the rate; says how many can.
    """
    check_rate(rate)
    rows = [x[np.isfinite(x)] for x in (np.asarray(run, dtype=float) for run in runs)]
    rows = [x for x in rows if len(x)]
    scale, charted = rows[::SCALE_SHARE], [x for n, x in enumerate(rows) if n % SCALE_SHARE]
    try:
        check_enough(len(charted), rate, unit="runs")
    except TooFewResponses as error:
        text = f"{error} One run of {SCALE_SHARE} sets mean and spread, and the others the limit."
        raise TooFewResponses(text) from error
    weights = np.concatenate([np.full(len(x), 1 / len(x)) for x in scale])
    values = np.concatenate(scale)
    mean = float(np.average(values, weights=weights))
    sd = float(np.sqrt(np.average((values - mean) ** 2, weights=weights)))
    if not sd > 0:
        raise InvalidArgument("The readings of these runs are all the same, which makes no chart; bring other runs.")
    free = RunChart(mean=mean, sd=sd, k=k, h=UNLIMITED, side=side)
    limit = threshold([_highest_sum(free, x) for x in charted], rate)
    return RunChart(
        mean=mean,
        sd=sd,
        k=k,
        h=max(limit.value, 0.0),
        side=side,
        rate=rate,
        low=round(limit.low, 6),
        high=round(limit.high, 6),
        runs=limit.answers,
        steps=max(map(len, charted)),
    )


def _highest_sum(chart: RunChart, readings: Sequence[float]) -> float:
    s, highest = 0.0, 0.0
    for reading in readings:
        s, _ = chart.sum_after(s, reading)
        highest = max(highest, s)
    return highest
