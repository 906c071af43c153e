"""Charts for drift where readings hardly vary, or where rare ones are far from all others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats as reference

from poise.errors import InvalidArgument, TooFewResponses
from poise.statistics.cusum import average_run_length, fit_cusum


@pytest.mark.parametrize("other", [1.0, -1.0])
def test_one_other_answer_among_equal_ones_sets_no_chart(other: float) -> None:
    """It claimed a run of 1,475 answers where 300 are the truth, or of 1,000,000 above a limit of 0."""
    with pytest.raises(
        TooFewResponses, match=r"one of 300 conversations alone makes 100% of it; .* 3,000 conversations"
    ):
        fit_cusum([0.0] * 299 + [other])


def test_a_reading_that_is_no_number_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="1 of 300 readings are NaN or infinite"):
        fit_cusum([*np.random.default_rng(0).normal(size=299), np.nan])


def test_readings_that_were_seen_raise_no_alarm_more_often_than_asked() -> None:
    """What three equal outliers do to the sum is counted, whatever tail is fitted."""
    chart = fit_cusum([0.0] * 297 + [1.0] * 3)
    assert chart is not None
    true = average_run_length(
        lambda z: np.where(chart.mean + chart.sd * z >= 1, 1.0, np.where(chart.mean + chart.sd * z >= 0, 0.99, 0.0)),
        chart.k,
        chart.h,
    )
    assert true >= 1000
    assert chart.low <= true


def test_the_interval_knows_of_outliers_that_were_not_seen() -> None:
    """None among 300 may be 3.7 of 300: the run length may be 82 answers, and no more is promised."""
    chart = fit_cusum(np.random.default_rng(0).normal(size=300))
    assert chart is not None
    assert chart.low == pytest.approx(1 / reference.beta(1, 300).ppf(0.975))


def test_the_run_length_with_rare_spikes_is_inside_the_interval() -> None:
    """One reading in 200 at +8: 13 of 17 charts ran shorter than the lower end of their interval."""
    rng = np.random.default_rng(1)
    true: list[float] = []
    low: list[float] = []
    while len(true) < 5:
        readings = rng.normal(size=300) + 8 * (rng.random(300) < 0.005)
        try:
            chart = fit_cusum(readings)
        except TooFewResponses:
            continue
        assert chart is not None
        mean, sd = chart.mean, chart.sd

        def spiked(z: Any, mean: float = mean, sd: float = sd) -> Any:
            return 0.995 * reference.norm.cdf(mean + sd * z) + 0.005 * reference.norm.cdf(mean + sd * z - 8)

        true.append(average_run_length(spiked, chart.k, chart.h))
        low.append(chart.low)
    assert np.all(np.array(low) <= np.array(true))
