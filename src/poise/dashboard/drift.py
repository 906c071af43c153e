"""Drift of what a source answers: charts that are set on its own ordinary answers, and how late they may be.

``poise.statistics.cusum`` sets the limit, so that ordinary answers raise a false alarm every so many or more rarely.
Two charts, upwards and downwards, share the promise. How late an alarm comes once readings have moved is simulated from
the same ordinary answers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from poise.errors import TooFewResponses
from poise.settings import FrozenModel
from poise.statistics.cusum import cusum_step, fit_cusum

__all__ = ["DriftChart", "DriftDelay", "DriftLimit", "DriftSums", "fit_drift"]

ChartSide = Literal["above", "below"]
SHIFTS = (1.0, 2.0)  # standard deviations
DELAY_DRAWS = 1000
MOST_DELAY_ANSWERS = 2000  # answers


class DriftDelay(FrozenModel):
    """How many answers after a shift the alarm comes: half of the times, and at most in 95 % of them."""

    shift: float = Field(description="In standard deviations of ordinary answers.")
    median: float
    most: float = Field(description="95th percentile.")


class DriftLimit(FrozenModel):
    """A one-sided CUSUM of one side: S ← max(0, S ± (x − mean) / sd − k), alarm and restart at S > h."""

    side: ChartSide
    mean: float
    sd: float = Field(gt=0)
    k: float
    h: float
    arl: float = Field(description="Ordinary answers to a false alarm, by estimate.")
    low: float = Field(description="Lower end of its 95 % interval.")
    delays: tuple[DriftDelay, ...] = ()

    def after(self, s: float, reading: float) -> tuple[float, bool]:
        """The sum after one more reading, and whether it raises the alarm."""
        sign = 1.0 if self.side == "above" else -1.0
        return cusum_step(s, sign * reading, mean=sign * self.mean, sd=self.sd, k=self.k, h=self.h)


class DriftChart(FrozenModel):
    """Charts of one reading of one trait, and the answers that they were set on."""

    limits: tuple[DriftLimit, ...]
    answers: int
    every: float = Field(description="Ordinary answers to a false alarm that were asked for.")

    @property
    def promise(self) -> str:
        """What it promises, in words."""
        delay = max((limit.delays[0].most for limit in self.limits if limit.delays), default=math.nan)
        return (
            f"set on {self.answers:,} answers; a false alarm every {self.every:,.0f} ordinary answers or more rarely; "
            f"a shift of one standard deviation is found within {delay:,.0f} answers in 95 % of cases"
        )


class DriftSums(FrozenModel):
    """Where the sums of a chart stand."""

    above: float = 0.0
    below: float = 0.0

    def after(self, chart: DriftChart, reading: float) -> tuple[DriftSums, ChartSide | None]:
        """The sums after one more answer, and the side that raised an alarm."""
        sums: dict[str, float] = {"above": self.above, "below": self.below}
        raised: ChartSide | None = None
        for limit in chart.limits:
            sums[limit.side], alarm = limit.after(sums[limit.side], reading)
            if alarm:
                raised, sums = limit.side, {"above": 0.0, "below": 0.0}
                break
        return DriftSums(**sums), raised


def fit_drift(readings: Sequence[float], *, every: float, side: Literal["above", "below", "both"]) -> DriftChart:
    """Charts with a false alarm every so many ordinary answers or more rarely.

    Args:
        readings: Readings of ordinary answers, each of a conversation of its own.
        every: Ordinary answers to a false alarm.
        side: Upwards, downwards, or both, which then have half of the false alarms each.

    Raises:
        TooFewResponses: so few answers cannot promise it, or they are all the same; says how many may.
    """
    sides: tuple[ChartSide, ...] = ("above", "below") if side == "both" else (side,)
    limits = []
    for one in sides:
        sign = 1.0 if one == "above" else -1.0
        values = sign * np.asarray(readings, dtype=float)
        chart = fit_cusum(values, arl=every * len(sides))
        if chart is None:
            raise TooFewResponses("The readings of these answers are all the same, which makes no chart.")
        limit = DriftLimit(
            side=one, mean=sign * chart.mean, sd=chart.sd, k=chart.k, h=chart.h, arl=min(chart.arl, 1e12), low=chart.low
        )
        limits.append(limit.model_copy(update={"delays": tuple(_delay(limit, values, shift) for shift in SHIFTS)}))
    return DriftChart(limits=tuple(limits), answers=len(readings), every=every)


def _delay(limit: DriftLimit, values: np.ndarray, shift: float) -> DriftDelay:
    """Answers until the alarm when every reading has moved, from a sum of 0; resampled from ordinary answers."""
    rng = np.random.default_rng(0)
    mean = limit.mean if limit.side == "above" else -limit.mean
    s, delays = np.zeros(DELAY_DRAWS), np.full(DELAY_DRAWS, float(MOST_DELAY_ANSWERS))
    running = np.ones(DELAY_DRAWS, dtype=bool)
    for number in range(1, MOST_DELAY_ANSWERS):
        z = (rng.choice(values, DELAY_DRAWS) - mean) / limit.sd + shift
        s = np.maximum(0.0, s + z - limit.k)
        crossed = running & (s > limit.h)
        delays[crossed] = number
        running &= ~crossed
        if not running.any():
            break
    median, most = np.quantile(delays, [0.5, 0.95])
    return DriftDelay(shift=shift, median=float(median), most=float(most))
