"""What is flagged, and the figures and predictions drawn from scores."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import numpy as np
import pytest
from scipy import stats as reference

from poise.errors import (
    InvalidArgument,
    TooFewResponses,
)
from poise.screen.flagging import FlaggingRule
from poise.screen.prediction import describe_prediction, describe_preference
from poise.screen.scores import flags_by_length, mean_score, rank_scores, score_histogram, score_percentiles
from poise.statistics.estimates import Estimate


def floats(*values: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.array(values, dtype=np.float32)


def like(scores: np.ndarray[Any, Any], tokens: int = 9) -> np.ndarray[Any, np.dtype[np.int32]]:
    """As many lengths, all the same."""
    return np.full(len(scores), tokens, dtype=np.int32)


class TestARule:
    def test_without_a_word_flags_the_highest_hundredth(self) -> None:
        scores = np.arange(1000, dtype=np.float32)
        cut = FlaggingRule().threshold_for(scores)
        assert np.flatnonzero(cut.flags(scores, like(scores))).tolist() == list(range(990, 1000))
        assert "1 %" in cut.rule

    def test_flags_the_highest_and_their_equals(self) -> None:
        scores = floats(1, 5, 5, 2, math.nan)
        assert FlaggingRule(top=1).threshold_for(scores).flags(scores, like(scores)).tolist() == [
            False,
            True,
            True,
            False,
            False,
        ]
        assert FlaggingRule(top=3).threshold_for(scores).flags(scores, like(scores)).sum() == 3
        assert FlaggingRule(top=99).threshold_for(scores).flags(scores, like(scores)).sum() == 4

    def test_flags_what_is_above_a_number(self) -> None:
        scores = floats(1, 2, 3, math.nan)
        assert FlaggingRule(above=2).threshold_for(scores).flags(scores, like(scores)).tolist() == [
            False,
            False,
            True,
            False,
        ]

    def test_flags_what_so_few_normal_answers_pass(self) -> None:
        normal = np.random.default_rng(0).normal(size=2000).astype(np.float32)
        cut = FlaggingRule(rate=0.05).threshold_for(floats(0), normal, [7] * 2000, range(2000))
        assert np.mean(normal > cut.threshold) == pytest.approx(0.05, abs=0.001)
        assert "2,000 conversations" in cut.rule

    def test_has_a_threshold_for_each_length(self) -> None:
        rng = np.random.default_rng(0)
        tokens = rng.integers(1, 101, 2000)
        normal = (rng.normal(size=2000) / np.sqrt(tokens)).astype(np.float32)
        cut = FlaggingRule(rate=0.05).threshold_for(floats(0), normal, tokens.tolist(), range(2000))
        assert cut.threshold is None
        assert len(cut.bands) == 9  # ten, but for equal lengths, which stay together
        asked = np.array([1, 5, 50, 100, 4000], dtype=np.int32)
        limits = cut.limits(asked)
        assert (np.diff(limits) <= 0).all()
        assert limits[-1] == limits[-2]  # beyond all normal lengths the nearest band holds
        assert cut.flags(limits, asked).tolist() == [False] * 5
        assert cut.flags(np.nextafter(limits, np.float32(9)), asked).all()
        assert "normal answers of 1 to " in cut.reason(1)
        assert f"above {limits[2]:.4g}, which" in cut.reason(50)
        assert re.search(r"9 bands of length, each set on 2\d\d or more of 2,000 normal answers", cut.rule)

    def test_cannot_promise_a_rate_on_few_normal_answers(self) -> None:
        with pytest.raises(TooFewResponses, match="bring more rows"):
            FlaggingRule(rate=0.01).threshold_for(floats(0), floats(*range(50)), range(50), range(50))

    def test_flags_nothing_where_there_is_no_score(self) -> None:
        assert not FlaggingRule().threshold_for(floats(math.nan)).flags(floats(math.nan), like(floats(0))).any()

    @pytest.mark.parametrize(
        ("said", "complaint"),
        [
            ({"rate": 0.01, "top": 5}, "--rate and --top each say"),
            ({"rate": 0.7}, "rate is 0.7"),
            ({"top": 0}, "at least 1"),
            ({"above": math.nan}, "must be a number"),
        ],
    )
    def test_that_makes_no_sense_is_refused(self, said: dict[str, Any], complaint: str) -> None:
        with pytest.raises(InvalidArgument, match=complaint):
            FlaggingRule(**said)


class TestFigures:
    SCORES = floats(3, 1, math.nan, 2, 3, -1)

    def test_rank_from_the_highest_and_leave_out_what_is_missing(self) -> None:
        known = self.SCORES[np.isfinite(self.SCORES)]
        expected = reference.rankdata(-known, method="min")
        assert rank_scores(self.SCORES)[np.isfinite(self.SCORES)].tolist() == expected.tolist()
        assert rank_scores(self.SCORES)[2] == 0

    def test_give_the_share_that_is_lower(self) -> None:
        known = self.SCORES[np.isfinite(self.SCORES)]
        expected = [reference.percentileofscore(known, x, kind="strict") for x in known]
        assert score_percentiles(self.SCORES)[np.isfinite(self.SCORES)].tolist() == pytest.approx(expected)
        assert np.isnan(score_percentiles(self.SCORES)[2])

    def test_of_a_mean_count_conversations_and_not_their_answers(self) -> None:
        rng = np.random.default_rng(0)
        by_row = rng.normal(size=300)
        scores = np.repeat(by_row, 10).astype(np.float32)
        found = mean_score(scores, np.repeat(np.arange(300), 10))
        assert found.n == 300
        assert found.value == pytest.approx(by_row.mean(), abs=1e-5)
        assert found.low is not None
        assert found.high is not None
        half = 1.96 * by_row.std() / math.sqrt(300)
        assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.1)

    def test_of_a_mean_of_many_conversations_have_the_same_interval(self) -> None:
        values = np.random.default_rng(1).normal(size=50_000).astype(np.float32)
        found = mean_score(values, np.arange(50_000))
        assert found.n == 50_000
        assert found.low is not None
        assert found.high is not None
        assert (found.high - found.low) / 2 == pytest.approx(1.96 / math.sqrt(50_000), rel=0.1)

    def test_of_nothing_are_missing(self) -> None:
        assert mean_score(floats(math.nan), np.zeros(1, np.int64)) == Estimate(value=None, low=None, high=None, n=0)
        assert score_histogram(floats(math.nan), None) == ([], [], None)
        assert flags_by_length(np.zeros(1, np.int32), floats(math.nan), np.zeros(1, bool)) == []

    def test_count_every_answer_once_in_the_histogram(self) -> None:
        edges, counts, usual = score_histogram(self.SCORES, floats(0, 9))
        assert (edges[0], edges[-1]) == (-1, 9)
        assert sum(counts) == 5
        assert usual is not None
        assert sum(usual) == 2

    def test_by_length_are_tenths_with_equal_lengths_together(self) -> None:
        tokens = np.array([*range(100), *([200] * 50)], np.int32)
        flagged = tokens > 150
        tenths = flags_by_length(tokens, tokens.astype(np.float32), flagged)
        assert sum(t.units for t in tenths) == 150
        assert [t.flagged for t in tenths if t.longest == 200] == [50]
        assert all(t.flagged == 0 for t in tenths if t.longest < 150)
        assert all(a.longest < b.shortest for a, b in itertools.pairwise(tenths))


class TestAPrediction:
    UP = Estimate(value=2.0, low=1.0, high=3.0, n=10)
    OPEN = Estimate(value=0.5, low=-1.0, high=2.0, n=10)
    THIN = Estimate(value=2.0, low=1.0, high=3.0, n=9)

    def test_of_a_difference_is_its_sign_and_its_share_of_the_vector(self) -> None:
        said = describe_prediction("evil", "difference", self.UP, None, 8.0)
        assert "+25.0% of ‖v‖" in said
        assert "towards evil" in said
        assert "not calibrated" in said
        assert "away from evil" in describe_prediction(
            "evil", "prompt", Estimate(value=-2, low=-3, high=-1, n=10), None, 8.0
        )

    def test_of_few_rows_is_only_indicative(self) -> None:
        words = "which is only indicative of a shift towards evil: n = 9, and a verdict takes 10."
        assert describe_prediction("evil", "difference", self.THIN, None, 8.0) == f"The mean is +25.0% of ‖v‖, {words}"
        low = Estimate(value=-2, low=-3, high=-1, n=10)
        assert describe_prediction("evil", "raw", self.THIN, low, 8.0).endswith(words)
        thin_normal = low.model_copy(update={"n": 9})
        assert describe_prediction("evil", "raw", self.UP, thin_normal, 8.0).endswith(words)
        assert "should push" not in describe_prediction("evil", "raw", self.UP, thin_normal, 8.0)

    def test_of_few_preference_pairs_is_only_indicative(self) -> None:
        assert describe_preference("evil", self.THIN.model_copy(update={"n": 3}), 8.0) == (
            "The mean is +25.0% of ‖v‖ [+12.5%, +37.5%], which is only indicative of a push towards evil: n = 3, and a "
            "verdict takes 10."
        )
        assert "should push the model towards evil" in describe_preference("evil", self.UP, 8.0)

    def test_is_none_where_the_interval_leaves_the_sign_open(self) -> None:
        assert "no shift either way" in describe_prediction("evil", "difference", self.OPEN, None, 8.0)
        assert "no shift either way" in describe_prediction("evil", "raw", self.UP, self.UP, 8.0)
        assert "Too few" in describe_prediction("evil", "raw", Estimate(value=1, low=None, high=None, n=1), None, 8.0)

    def test_of_a_raw_projection_needs_normal_data(self) -> None:
        assert "no zero of its own" in describe_prediction("evil", "raw", self.UP, None, 8.0)
        low = Estimate(value=-2, low=-3, high=-1, n=10)
        assert "50.0% of ‖v‖ above that of normal data" in describe_prediction("evil", "raw", self.UP, low, 8.0)
