"""Drift along a run: the share of ordinary runs with an alarm is what was promised, on either side."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from poise.errors import InvalidArgument, TooFewResponses
from poise.monitor import RunChart, RunCusum, fit_run_chart
from poise.monitor.run_chart import DriftSide


def ordinary(n: int, steps: int, seed: int) -> NDArray[np.float64]:
    """Runs whose steps are alike: half of the variance is the run's own, and steps lean on the one before."""
    draw = np.random.default_rng(seed)
    out = np.zeros((n, steps))
    for step in range(steps):
        out[:, step] = 0.6 * (out[:, step - 1] if step else 0) + draw.standard_normal(n)
    return 3.0 + 0.5 * (out + draw.standard_normal((n, 1)))


def alarmed(chart: RunChart, runs: NDArray[np.float64]) -> NDArray[np.bool_]:
    def has_alarm(run: NDArray[np.float64]) -> bool:
        cusum = RunCusum(chart)
        return sum(cusum.see(float(reading)) for reading in run) > 0

    return np.array([has_alarm(run) for run in runs])


class TestAChart:
    @pytest.mark.parametrize("side", ["above", "below"])
    def test_keeps_its_rate_a_run_where_steps_are_alike(self, side: DriftSide) -> None:
        rates = []
        for seed in range(20):
            chart = fit_run_chart(ordinary(180, 60, seed), rate=0.05, side=side)
            rates.append(alarmed(chart, ordinary(100, 60, 1000 + seed)).mean())
        assert (chart.runs, chart.steps, chart.rate, chart.side) == (120, 60, 0.05, side)
        assert 0.03 < np.mean(rates) < 0.07

    def test_sees_a_shift_within_a_few_steps(self) -> None:
        drifting = ordinary(100, 30, 7)
        drifting[:, 10:] += 2.0
        upper, lower = (fit_run_chart(ordinary(180, 30, 1), side=side) for side in ("above", "below"))
        assert alarmed(upper, drifting).mean() > 0.9
        assert alarmed(lower, drifting).mean() < 0.1

    def test_is_the_arithmetic_of_page(self) -> None:
        cusum = RunCusum(RunChart(mean=1.0, sd=2.0, k=0.5, h=2.0))
        assert [cusum.see(x) for x in (3.0, 1.0, 5.0)] == [False, False, False]
        assert cusum.s == pytest.approx(0.5 - 0.5 + 1.5)
        assert not cusum.see(float("nan"))
        assert cusum.s == pytest.approx(1.5)
        assert cusum.see(5.0)
        assert cusum.s == 0.0

    def test_below_mirrors_above(self) -> None:
        above, below = (RunChart(mean=0.0, sd=1.0, h=4.0, side=side) for side in ("above", "below"))
        assert above.sum_after(1.0, 2.0) == below.sum_after(1.0, -2.0) == (2.5, False)

    def test_refuses_too_few_runs_and_those_that_do_not_vary(self) -> None:
        with pytest.raises(TooFewResponses, match="One run of 3 sets mean and spread"):
            fit_run_chart(ordinary(30, 10, 0), rate=0.01)
        with pytest.raises(InvalidArgument, match="all the same"):
            fit_run_chart([[1.0, 1.0]] * 300)
        with pytest.raises(InvalidArgument, match="rate is 2"):
            fit_run_chart([], rate=2)

    def test_leaves_missing_readings_out(self) -> None:
        rows = ordinary(150, 10, 3)
        holed = [np.insert(run, 4, np.nan) for run in rows]
        assert fit_run_chart(holed) == fit_run_chart(rows)
