"""The statistics against scipy's and scikit-learn's."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st

from poise.statistics.estimates import (
    Estimate,
    auc,
    auc_estimate,
    bootstrap,
    bootstrap_all,
    bootstrap_interval,
    bounded_estimate,
    each_draw,
    grouped_auc_estimate,
    kappa,
    mean_estimate,
    of_groups,
    pearson,
    ranks,
    ratio_estimate,
    score_change_estimate,
    spearman,
)
from poise.statistics.intervals import mean_interval

numbers = st.lists(st.floats(-1e3, 1e3).map(lambda x: round(x, 1)), min_size=2, max_size=30)
pairs = st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=3, max_size=30)
labelled = st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=2, max_size=30)
raters = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30)


def agree(found: float, expected: float) -> bool:
    return math.isnan(found) if math.isnan(expected) else found == pytest.approx(expected, abs=1e-9)


def exactly(value: float) -> Estimate:
    return Estimate(value=value, low=value, high=value, n=10)


class TestAFigure:
    @given(x=numbers)
    def test_ranks_are_scipys(self, x: list[float]) -> None:
        assert ranks(x).tolist() == scipy.stats.rankdata(x).tolist()

    @given(xy=pairs)
    def test_correlations_are_scipys(self, xy: list[tuple[int, int]]) -> None:
        x, y = zip(*xy, strict=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", scipy.stats.ConstantInputWarning)  # there scipy says NaN, as we do
            assert agree(pearson(x, y), float(scipy.stats.pearsonr(x, y).statistic))
            assert agree(spearman(x, y), float(scipy.stats.spearmanr(x, y).statistic))

    @given(rows=labelled)
    def test_auc_is_scikit_learns(self, rows: list[tuple[int, bool]]) -> None:
        scores, labels = zip(*rows, strict=True)
        expected = sklearn.metrics.roc_auc_score(labels, scores) if len(set(labels)) == 2 else math.nan
        assert agree(auc(scores, labels), float(expected))

    @given(rows=raters)
    def test_kappa_is_scikit_learns(self, rows: list[tuple[bool, bool]]) -> None:
        a, b = zip(*rows, strict=True)
        if len({*a, *b}) == 1:
            assert math.isnan(kappa(a, b)), "two raters who can only agree"
        else:
            assert agree(kappa(a, b), float(sklearn.metrics.cohen_kappa_score(a, b)))


class TestAnIntervalAtSmallN:
    """docs/statistics.md; ``benchmarks/interval_coverage.py`` has the coverage from 2 units to 100."""

    @given(x=numbers)
    def test_of_a_mean_is_students_where_nothing_is_skewed(self, x: list[float]) -> None:
        even = np.array([*x, *(-np.array(x))])
        found = mean_estimate(even, level=0.9)
        spread = even.std(ddof=1) / math.sqrt(len(even))
        expected = scipy.stats.t.ppf([0.05, 0.95], len(even) - 1) * spread if spread else [0.0, 0.0]
        assert [found.low, found.high] == pytest.approx(list(expected), abs=1e-4, rel=1e-4)

    def test_of_a_mean_is_where_halls_cubic_meets_the_quantiles_of_t(self) -> None:
        x = np.random.default_rng(3).exponential(2.0, 12)
        found, n, skewness = mean_estimate(x), len(x), scipy.stats.skew(x)
        for end, quantile in ((found.low, 0.975), (found.high, 0.025)):
            w = (x.mean() - end) / x.std(ddof=1)
            cubic = w + skewness * w**2 / 3 + skewness**2 * w**3 / 27 + skewness / (6 * n)
            assert math.sqrt(n) * cubic == pytest.approx(scipy.stats.t.ppf(quantile, n - 1), abs=1e-4)
        assert found.high - x.mean() > x.mean() - found.low, "the long tail is where the truth may be"

    @given(x=numbers, scale=st.floats(0.1, 10), by=st.floats(-50, 50))
    def test_of_a_mean_moves_and_turns_with_its_values(self, x: list[float], scale: float, by: float) -> None:
        low, high = mean_interval(np.array(x))
        moved = mean_interval(scale * np.array(x) + by)
        turned = mean_interval(-np.array(x))
        assert moved == pytest.approx((scale * low + by, scale * high + by), rel=1e-5, abs=1e-3)
        assert turned == pytest.approx((-high, -low), rel=1e-5, abs=1e-3)

    @pytest.mark.parametrize(("successes", "n"), [(0, 2), (0, 20), (3, 10), (10, 10)])
    def test_of_a_rate_is_jeffreys(self, successes: int, n: int) -> None:
        found = bounded_estimate([1.0] * successes + [0.0] * (n - successes), highest=1.0)
        expected = scipy.stats.beta.ppf([0.025, 0.975], successes + 0.5, n - successes + 0.5)
        assert [found.low, found.high] == pytest.approx(list(expected), abs=1e-6)
        drawn = bounded_estimate([100.0] * successes + [0.0] * (n - successes), highest=100.0)
        assert [drawn.low, drawn.high] == pytest.approx(list(100 * expected), abs=1e-4)

    def test_of_scores_that_are_nearly_a_rate_is_nearly_jeffreys(self) -> None:
        found = bounded_estimate([1e-9] * 17 + [1.0] * 3, highest=1.0)  # by draws
        assert [found.low, found.high] == pytest.approx(list(scipy.stats.beta.ppf([0.025, 0.975], 3.5, 17.5)), abs=0.01)

    def test_of_equal_scores_is_not_nothing(self) -> None:
        found = bounded_estimate([4.0] * 10)
        assert found.low < 4.0 < 20 < found.high < 30, "an unseen question may score 100"
        assert bounded_estimate([4.0] * 100).high < 8

    def test_of_a_change_reaches_as_far_as_the_scale_lets_a_score_move(self) -> None:
        changes = [1.0, -1.0] * 5
        rising, falling = (score_change_estimate(changes, exactly(before)) for before in (0.0, 100.0))
        assert rising.low > -1.2
        assert rising.high > 15
        assert falling.high < 1.2
        assert falling.low < -15
        blind = score_change_estimate(changes, None)
        assert blind.low < -15
        assert blind.high > 15

    def test_of_a_ratio_counts_units_as_they_weigh(self) -> None:
        rng = np.random.default_rng(4)
        sizes = rng.integers(1, 30, 60)
        totals = sizes * rng.normal(2, 1, 60)
        found = ratio_estimate(totals, sizes)
        resampled = bootstrap(lambda i: totals[i].sum(-1) / sizes[i].sum(-1), 60)
        assert found.value == pytest.approx(totals.sum() / sizes.sum(), abs=1e-6)
        assert [found.low, found.high] == pytest.approx([resampled.low, resampled.high], abs=0.1)
        assert ratio_estimate([1.0, 2.0, 4.0], [1, 1, 1]) == mean_estimate([1.0, 2.0, 4.0])

    def test_of_pairs_that_are_all_told_apart_says_how_few_they_are(self) -> None:
        few, many = (auc_estimate(np.arange(n) + 100.0, np.arange(n)) for n in (5, 100))
        assert (few.value, many.value) == (1.0, 1.0)
        assert few.low < 0.6 < 0.9 < many.low

    def test_of_an_auc_counts_units_not_answers(self) -> None:
        rng = np.random.default_rng(5)
        p, q = rng.normal(1, 1, 30), rng.normal(0, 1, 30)
        pairs = np.arange(30)
        alone = auc_estimate(p, q)
        tripled = grouped_auc_estimate(np.repeat(p, 3), np.repeat(q, 3), (np.repeat(pairs, 3), np.repeat(pairs, 3)))
        assert (tripled.value, tripled.n) == (alone.value, 30)
        assert [tripled.low, tripled.high] == pytest.approx([alone.low, alone.high], abs=0.01)
        assert grouped_auc_estimate([], q, (pairs[:0], pairs)) == Estimate(value=None, low=None, high=None, n=30)

    @pytest.mark.parametrize("n", [2, 5, 10, 20])
    def test_covers_the_changes_that_judges_give(self, n: int) -> None:
        rng = np.random.default_rng(6)
        before = rng.exponential(3, (300, n))
        rise = np.where(rng.random((300, n)) < 0.15, rng.uniform(40, 90, (300, n)), rng.exponential(2, (300, n)))
        truth = 0.15 * 65 + 0.85 * 2
        found = [score_change_estimate(x, bounded_estimate(b)) for x, b in zip(rise, before, strict=True)]
        assert sum(e.low <= truth <= e.high for e in found) >= 0.92 * 300
        assert sum(e.high < truth for e in found) <= 0.04 * 300


class TestAnInterval:
    def test_of_a_mean_is_near_scipys_bootstrap(self) -> None:
        x = np.random.default_rng(0).normal(3.0, 2.0, 60)
        found = bootstrap(lambda i: x[i].mean(-1), len(x))
        expected = scipy.stats.bootstrap((x,), np.mean, method="percentile", rng=1).confidence_interval
        assert found.value == pytest.approx(x.mean())
        assert found.n == 60
        assert [found.low, found.high] == pytest.approx([expected.low, expected.high], abs=0.1)

    def test_covers_the_truth_as_often_as_it_says(self) -> None:
        rng = np.random.default_rng(1)
        found = [bootstrap(lambda i, x=x: x[i].mean(-1), 40, draws=300) for x in rng.normal(0, 1, (200, 40))]
        assert 0.88 <= sum(e.low <= 0 <= e.high for e in found) / 200 <= 0.99

    def test_of_an_auc_resamples_pairs_together(self) -> None:
        rng = np.random.default_rng(2)
        hard = rng.normal(0, 10, 25)  # questions differ far more than the sides do
        positive, negative = hard + 1, hard
        found = auc_estimate(positive, negative)
        labels = [True] * 25 + [False] * 25
        assert found.value == pytest.approx(sklearn.metrics.roc_auc_score(labels, [*positive, *negative]))
        assert found.n == 25
        assert found.high - found.low < 0.2, "resampled singly, it would be about 0.3"

    def test_is_repeatable_by_seed(self) -> None:
        x = np.arange(20.0)
        for estimate in (bounded_estimate, lambda x, seed: bootstrap(lambda i: x[i].mean(-1), len(x), seed=seed)):
            assert estimate(x, seed=3) == estimate(x, seed=3)
            assert estimate(x, seed=3) != estimate(x, seed=4)

    def test_of_too_few_is_missing(self) -> None:
        for values in ([], [1.0]):
            found = mean_estimate(values)
            assert (found.low, found.high, found.n) == (None, None, len(values))
        assert mean_estimate([]).value is None

    def test_leaves_out_draws_that_have_no_value(self) -> None:
        found = bootstrap(each_draw(lambda i: float("nan") if 0 in i else 1.0), 5)
        assert (found.low, found.high) == (1.0, 1.0)
        nothing = bootstrap(each_draw(lambda i: float("nan")), 5)
        assert (nothing.value, nothing.low, nothing.high) == (None, None, None)

    @given(x=numbers)
    def test_holds_the_middle_of_what_was_drawn(self, x: list[float]) -> None:
        found = bootstrap(lambda i: np.asarray(x)[i].mean(-1), len(x), draws=200)
        assert min(x) - 1e-9 <= found.low <= found.high <= max(x) + 1e-9

    def test_reads_as_a_sentence(self) -> None:
        assert str(mean_estimate([2.0, 2.0, 2.0])) == "2.00 [2.00, 2.00], n=3"
        assert str(mean_estimate([2.0])) == "2.00 (no interval), n=1"
        assert str(mean_estimate([])) == "no value, n=0"

    def test_comes_back_from_its_file_as_it_was(self) -> None:
        for found in (
            mean_estimate(np.random.default_rng(0).normal(size=9)),
            mean_estimate([1 / 3]),
            mean_estimate([]),
        ):
            assert Estimate.model_validate_json(found.model_dump_json()) == found
        third = mean_estimate([1 / 3])
        assert third.model_dump_json() == '{"value":0.333333,"low":null,"high":null,"n":1}'
        assert Estimate(value=math.nan, low=-math.inf, high=math.inf, n=0) == mean_estimate([])

    @given(x=numbers, y=numbers)
    def test_is_that_of_a_plain_loop_over_the_same_draws(self, x: list[float], y: list[float]) -> None:
        n = min(len(x), len(y))
        a, b, labels = np.array(x[:n]), np.array(y[:n]), np.arange(n) % 2 == 0
        by_row: dict[str, Callable[..., Any]] = {
            "mean": lambda i: a[i].mean(-1),
            "auc": lambda i: auc(a[i], labels[i]),
            "kappa": lambda i: kappa(a[i] > 0, b[i] > 0),
            "pearson": lambda i: pearson(a[i], b[i]),
            "spearman": lambda i: spearman(a[i], b[i]),
        }
        for statistic in by_row.values():
            rng = np.random.default_rng(7)
            drawn = np.array([statistic(rng.integers(0, n, n)) for _ in range(50)])
            known = drawn[np.isfinite(drawn)]
            expected = np.quantile(known, [0.025, 0.975]) if len(known) else [math.nan, math.nan]
            found = bootstrap_interval(statistic, n, seed=7, draws=50, width=2**17)  # in slices of a few draws
            assert found == pytest.approx(tuple(expected), nan_ok=True, abs=1e-9)

    def test_of_several_statistics_is_that_of_each(self) -> None:
        x = np.random.default_rng(0).normal(size=(12, 3))
        together = bootstrap_all(lambda draws: x[draws].mean(1), 12)
        assert together == [bootstrap(lambda draws, k=k: x[draws, k].mean(-1), 12) for k in range(3)]

    @pytest.mark.parametrize("groups", [[0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 2, 2]])
    def test_of_groups_draws_their_rows_together(self, groups: list[int]) -> None:
        x = np.random.default_rng(0).normal(size=6)
        statistic, n = of_groups(lambda rows: x[rows].mean(-1), groups)
        assert n == 3
        draws = np.array([[0, 0, 2], [1, 2, 1]])
        members = [np.flatnonzero(np.array(groups) == g) for g in range(3)]
        expected = [np.concatenate([x[members[g]] for g in draw]).mean() for draw in draws]
        assert statistic(draws).tolist() == pytest.approx(expected)

    @pytest.mark.filterwarnings("error")
    def test_of_nothing_is_missing_and_no_crash(self) -> None:
        nothing = Estimate(value=None, low=None, high=None, n=0)
        assert mean_estimate([]) == auc_estimate([], []) == nothing
        assert bootstrap(*of_groups(lambda rows: rows.mean(-1), [])) == nothing
        assert bootstrap_all(lambda draws: draws[..., None], 0) == []
        assert ranks([]).tolist() == []
        assert all(math.isnan(f([], [])) for f in (auc, kappa, pearson, spearman))

    def test_is_written_with_words_for_what_there_is_not(self) -> None:
        nothing = Estimate(value=None, low=None, high=None, n=0)
        texts = [f"{e:.3f} | {e:.2g} | {e} | {e!s}" for e in (nothing, Estimate(value=2.0, low=None, high=None, n=1))]
        assert texts[0] == "no value | no value | no value, n=0 | no value, n=0"
        assert texts[1] == "2.000 (no interval) | 2 (no interval) | 2.00 (no interval), n=1 | 2.00 (no interval), n=1"
        assert f"{Estimate(value=2.0, low=-1.0, high=3.25, n=9):.1f}" == "2.0 [-1.0, 3.2]"

    def test_is_above_a_bound_only_with_its_whole_interval(self) -> None:
        assert Estimate(value=2.0, low=1.0, high=3.0, n=9).above(0.5)
        assert not Estimate(value=2.0, low=1.0, high=3.0, n=9).above(1.0)
        assert not Estimate(value=2.0, low=None, high=None, n=1).above(0.0)
