"""Thresholds keep the false-alarm rate that they promise, or are refused."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats as reference

from poise.errors import InvalidArgument, TooFewResponses
from poise.statistics.conformal import (
    bands,
    check_enough,
    exact_interval,
    needed,
    rate_interval,
    threshold,
)


class TestAThreshold:
    def test_is_the_kth_highest_of_n_where_k_is_the_rate_of_n_plus_1(self) -> None:
        found = threshold(np.arange(199.0), 0.05)
        assert (found.value, found.answers) == (189.0, 199)  # k = 10: nine are above it
        assert (found.low, found.high) == pytest.approx(reference.beta.interval(0.95, 10, 190))

    @pytest.mark.parametrize("draw", [np.random.Generator.standard_normal, np.random.Generator.standard_exponential])
    def test_keeps_its_rate_on_new_answers_and_its_interval_covers_it(self, draw: Any) -> None:
        rng, law = np.random.default_rng(0), reference.norm if "normal" in str(draw) else reference.expon
        found = [threshold(draw(rng, 300), 0.02) for _ in range(1000)]
        true = np.array([law.sf(f.value) for f in found])
        assert true.mean() == pytest.approx(6 / 301, abs=4 * true.std() / 1000**0.5)
        covered = np.mean([f.low <= t <= f.high for f, t in zip(found, true, strict=True)])
        assert covered == pytest.approx(0.95, abs=0.025)

    def test_of_equal_answers_is_what_they_all_are(self) -> None:
        assert threshold([1.0] * 150, 0.01).value == 1.0

    def test_counts_conversations_and_not_their_answers(self) -> None:
        x = np.random.default_rng(0).normal(size=1000)
        alone, shared = threshold(x, 0.05), threshold(x, 0.05, conversations=[i // 10 for i in range(1000)])
        assert shared.value == alone.value
        assert (shared.answers, shared.conversations) == (1000, 100)
        assert (shared.low, shared.high) == rate_interval(5, 100)

    @pytest.mark.parametrize("likeness", [0.0, 0.5, 0.95])
    @pytest.mark.parametrize("shape", ["one giant", "a tenth of fifty", "ten each", "long tail"])
    def test_keeps_its_rate_and_interval_however_many_answers_a_conversation_has(
        self, shape: str, likeness: float
    ) -> None:
        """Of an answer of a conversation to come; ``likeness`` is the correlation within a conversation."""
        rng, talks, rate = np.random.default_rng(3), 200, 0.03
        sizes = {
            "one giant": [700, *[1] * (talks - 1)],
            "a tenth of fifty": [50] * 20 + [1] * (talks - 20),
            "ten each": [10] * talks,
            "long tail": [max(1, talks // i) for i in range(1, talks + 1)],
        }[shape]
        talk = np.repeat(np.arange(talks), sizes)
        set_at = []
        for _ in range(1000):
            common = rng.normal(size=talks)[talk]
            x = likeness**0.5 * common + (1 - likeness) ** 0.5 * rng.normal(size=len(talk))
            set_at.append(threshold(x, rate, conversations=talk.tolist()))
        true = reference.norm.sf([one.value for one in set_at])
        assert np.mean([one.low <= t <= one.high for one, t in zip(set_at, true, strict=True)]) >= 0.93
        assert true.mean() == pytest.approx(rate, rel=0.15)

    def test_of_unequal_conversations_is_what_k_of_them_reach(self) -> None:
        """Six of 120 at 5 %: one of two answers counts as two halves, those of the giant as nothing much."""
        x = [100.0, 99.0, *np.arange(98.0, -20.0, -1.0), *[50.0] * 1000]
        talk = ["pair", "pair", *range(118), *["giant"] * 1000]
        assert threshold(x, 0.05, conversations=talk).value == 94.0  # 100 and 99 make one; 98 to 94 five more
        assert threshold(x, 0.05).value == 50.0

    def test_refuses_a_rate_that_the_answers_cannot_bear_and_says_how_many_can(self) -> None:
        with pytest.raises(TooFewResponses, match=r"rate of 0.01 needs 122 .* there are 80; bring more rows"):
            threshold(np.arange(80.0), 0.01)

    @pytest.mark.parametrize("rate", [0.2, 0.05, 0.01, 0.001])
    def test_needs_the_fewest_that_have_one_answer_above_and_an_interval_up_to_thrice_the_rate(
        self, rate: float
    ) -> None:
        def bears(n: int) -> bool:
            k = math.floor((n + 1) * rate + 1e-9)
            return k >= 1 and reference.beta.ppf(0.975, k, n + 1 - k) <= 3 * rate

        n = needed(rate)
        assert bears(n)
        assert not any(bears(m) for m in range(1, n))
        for more in range(n, 5 * n, max(1, n // 50)):
            check_enough(more, rate)

    @pytest.mark.parametrize("rate", [0, -0.1, 0.5, 1, float("nan")])
    def test_refuses_what_is_no_rate(self, rate: float) -> None:
        with pytest.raises(InvalidArgument, match=r"above 0 and below 0\.5"):
            threshold(np.arange(1000.0), rate)

    def test_has_the_beta_quantiles_of_a_reference(self) -> None:
        for k, n in [(1, 99), (5, 504), (300, 319), (50, 5000), (1, 1)]:
            expected = tuple(reference.beta.ppf([0.025, 0.975], k, n + 1 - k))
            assert rate_interval(k, n) == pytest.approx(expected, abs=1e-12)

    @pytest.mark.parametrize("alarms", [0, 1, 7, 199, 200])
    def test_is_checked_by_clopper_and_pearson(self, alarms: int) -> None:
        theirs = reference.binomtest(alarms, 200).proportion_ci(method="exact")
        assert exact_interval(alarms, 200) == pytest.approx((theirs.low, theirs.high), abs=1e-9)

    def test_of_no_answers_knows_nothing(self) -> None:
        assert exact_interval(0, 0) == (0.0, 1.0)
        for empty in (lambda: threshold([], 0.1), lambda: bands([], [], 0.1)):
            with pytest.raises(TooFewResponses, match="there are 0"):
                empty()


class TestBands:
    def test_keep_the_rate_at_every_size_where_one_threshold_does_not(self) -> None:
        """Readings are means over a few numbers or over many; the true rate of each threshold is known."""
        rng, rate = np.random.default_rng(0), 0.05
        true: dict[str, list[float]] = {"bands": [], "one": []}
        for _ in range(200):
            sizes = rng.integers(1, 200, 400)
            x = rng.normal(size=400) / np.sqrt(sizes)
            found = bands(x, sizes, rate)
            small = np.arange(found[0].smallest, found[0].largest + 1)
            for name, value in (("bands", found[0].threshold.value), ("one", threshold(x, rate).value)):
                true[name].append(float(reference.norm.sf(value * np.sqrt(small)).mean()))
        assert np.mean(true["bands"]) == pytest.approx(rate, abs=0.006)
        assert np.mean(true["one"]) > 0.2

    def test_are_as_many_as_can_bear_the_rate_and_at_most_ten(self) -> None:
        def counts(n: int, rate: float) -> list[int]:
            return [band.threshold.answers for band in bands(np.arange(float(n)), np.arange(n), rate)]

        assert counts(1000, 0.05) == [100] * 10
        assert counts(200, 0.05) == [23] * 7 + [39]  # 23 is the fewest; the last takes what is left
        assert counts(300, 0.05) == [39] * 6 + [66]  # 30 to 38 would promise far less than the rate
        assert counts(30, 0.05) == [30]
        assert counts(200, 0.01) == [200]

    def test_hold_a_threshold_of_their_own_answers(self) -> None:
        rng = np.random.default_rng(1)
        x, sizes = rng.normal(size=500), rng.integers(1, 300, 500)
        found = bands(x, sizes, 0.1)
        assert found[0].smallest == sizes.min()
        assert found[-1].largest == sizes.max()
        for band, after in itertools.pairwise(found):
            assert after.smallest == band.largest + 1
        for band in found:
            own = (sizes >= band.smallest) & (sizes <= band.largest)
            assert band.threshold == threshold(x[own], 0.1)

    def test_keep_answers_of_one_size_together(self) -> None:
        assert len(bands(np.arange(300.0), np.full(300, 7), 0.05)) == 1
        found = bands(np.arange(300.0), np.repeat([1, 2, 3], 100), 0.05)
        assert [(b.smallest, b.largest, b.threshold.answers) for b in found] == [(1, 1, 100), (2, 2, 100), (3, 3, 100)]

    def test_count_conversations_and_not_their_answers(self) -> None:
        talk = np.arange(1000) // 10  # ten answers each, of like size
        found = bands(np.random.default_rng(2).normal(size=1000), np.arange(1000), 0.05, conversations=talk.tolist())
        assert all(band.threshold.conversations >= 23 for band in found)
        assert len(found) == 4

    def test_are_refused_where_all_answers_together_cannot_bear_the_rate(self) -> None:
        with pytest.raises(TooFewResponses, match="needs 122"):
            bands(np.arange(80.0), np.arange(80), 0.01)
