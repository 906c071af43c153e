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
    each_draw,
    kappa,
    mean_estimate,
    of_groups,
    pearson,
    ranks,
    spearman,
)

numbers = st.lists(st.floats(-1e3, 1e3).map(lambda x: round(x, 1)), min_size=2, max_size=30)
pairs = st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=3, max_size=30)
labelled = st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=2, max_size=30)
raters = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30)


def agree(found: float, expected: float) -> bool:
    return math.isnan(found) if math.isnan(expected) else found == pytest.approx(expected, abs=1e-9)


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


class TestAnInterval:
    def test_of_a_mean_is_near_scipys_bootstrap(self) -> None:
        x = np.random.default_rng(0).normal(3.0, 2.0, 60)
        found = mean_estimate(x)
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
        assert mean_estimate(x, seed=3) == mean_estimate(x, seed=3)
        assert mean_estimate(x, seed=3) != mean_estimate(x, seed=4)

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
        assert together == [mean_estimate(x[:, k]) for k in range(3)]

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

    def test_is_above_a_bound_only_with_its_whole_interval(self) -> None:
        assert Estimate(value=2.0, low=1.0, high=3.0, n=9).above(0.5)
        assert not Estimate(value=2.0, low=1.0, high=3.0, n=9).above(1.0)
        assert not Estimate(value=2.0, low=None, high=None, n=1).above(0.0)
