"""A rate of rows: of normal rows no more are flagged than was asked for, whatever they hold and are read for."""

from __future__ import annotations

from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats as reference

import tiny
from poise.data import Conversation, open_data
from poise.errors import InvalidArgument, TooFewResponses
from poise.screen import screen_rows
from poise.screen.flagging import FlaggingRule
from poise.screen.scores import AnswerScores
from poise.statistics.row_rates import RowThresholds, row_thresholds
from screening import named

BACKGROUND = Path(__file__).parents[2] / "shared" / "data" / "background_chat"
Drawn = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]


def rows_of(rng: np.random.Generator, n: int, answers: int, traits: int) -> Drawn:
    """Readings, lengths and rows: heavy tails, traits that go together, scales from 0.01 to 100, wide where short."""
    row = np.repeat(np.arange(n), rng.integers(1, answers + 1, n))
    size = np.maximum(1, np.exp(rng.normal(4, 1, len(row)))).astype(int)
    shared = rng.normal(size=(n, 1))[row]
    table = (shared + rng.standard_t(2, size=(len(row), traits))) / np.sqrt(size)[:, None]
    return (table * np.logspace(-2, 2, traits)).astype(np.float32), size, row


def flagged_rows(thresholds: RowThresholds, drawn: Drawn) -> NDArray[np.bool_]:
    table, size, row = drawn
    flags = np.zeros(row.max() + 1, dtype=bool)
    for column, bands in zip(table.T, thresholds.bands, strict=True):
        limits = np.array([band.threshold.value for band in bands])
        flags[row[column > limits[np.searchsorted([band.largest for band in bands[:-1]], size)]]] = True
    return flags


def as_scores(drawn: Drawn) -> AnswerScores:
    table, size, row = drawn
    return AnswerScores(
        index=row.astype(np.int64),
        turn=np.zeros(len(row), np.int32),
        tokens=size.astype(np.int32),
        cut=np.zeros(len(row), bool),
        scores=table.astype(np.float32),
        unread={},
        rejected=frozenset(),
        kinds=Counter(),
        rows=int(row.max()) + 1,
    )


@pytest.mark.parametrize(("answers", "traits"), [(1, 1), (5, 3), (10, 4), (3, 10)])
@pytest.mark.parametrize(("rate", "n"), [(0.05, 100), (0.05, 400), (0.01, 152), (0.01, 1000)])
def test_a_rate_of_rows_is_kept_for_any_number_of_answers_and_traits(
    rate: float, n: int, answers: int, traits: int
) -> None:
    rng = np.random.default_rng([n, answers, traits])
    n *= 2 if int((n + 1) * rate + 1e-9) < traits else 1
    halved = int((n + 1) * rate + 1e-9) < traits  # half of the rows then measure the traits' spreads
    shares, inside = [], 0
    for _ in range(80):
        thresholds = row_thresholds(*rows_of(rng, n, answers, traits), rate)
        share = flagged_rows(thresholds, rows_of(rng, 2000, answers, traits)).mean()
        shares.append(share)
        inside += thresholds.low - 0.002 <= share <= thresholds.high + 0.002
    cut = (n + 1) // 2 if halved else n
    expected = int((cut + 1) * rate + 1e-9) / (cut + 1)
    assert thresholds.rows == cut
    error = np.std(shares) / np.sqrt(len(shares))
    assert thresholds.expected == pytest.approx(expected)
    assert abs(np.mean(shares) - expected) < max(4 * error, 0.1 * rate)
    assert np.mean(shares) <= rate + max(3 * error, 0.05 * rate)
    assert inside >= 0.88 * len(shares)  # of 95 %, with blocks of the bands' edges and the 2,000 rows' own spread


@pytest.mark.skipif(not BACKGROUND.is_dir(), reason="the shared data are not here")
@pytest.mark.parametrize("answers", [1, 4])
def test_a_rate_of_rows_is_kept_on_real_rows(answers: int) -> None:
    """Answers of five sources, read by a tiny model for three traits, in rows of one and of several answers."""
    model = tiny.model("llama")
    vectors = [named(name, model, seed) for seed, name in enumerate(("grumpy", "gloomy", "giddy"))]
    talks = [row.messages[:2] for row in open_data(BACKGROUND) if isinstance(row, Conversation)][::4]
    talks = [[one | {"content": one["content"][:60]} for one in talk] for talk in talks]
    rng = np.random.default_rng(0)
    talks = [talks[i] for i in rng.permutation(len(talks))]
    rows = [list(chain(*talks[i : i + answers])) for i in range(0, len(talks) - answers, answers)]
    scored = list(screen_rows([{"messages": row} for row in rows], vectors, model))
    units = [(unit.mean, unit.tokens, row.index) for row in scored for unit in row.units if not unit.unread]
    drawn = tuple(np.array(column) for column in zip(*units, strict=True))
    shares = []
    for _ in range(100):
        fit = rng.random(len(rows)) < 0.5
        inside = fit[drawn[2]]
        thresholds = row_thresholds(*(x[inside] for x in drawn), 0.1)
        flags = flagged_rows(thresholds, tuple(x[~inside] for x in drawn))  # type: ignore[arg-type]
        shares.append(flags.sum() / len(np.unique(drawn[2][~inside])))
    assert np.mean(shares) == pytest.approx(0.1, abs=0.015)


def test_a_rate_of_answers_flags_many_times_as_many_rows() -> None:
    """What a rate for each answer and trait did: the reason for a rate of rows."""
    rng = np.random.default_rng(0)
    normal, later = (as_scores(rows_of(rng, 2000, 10, 4)) for _ in range(2))
    shares = {}
    for per in ("row", "answer"):
        cuts = FlaggingRule(rate=0.05, rate_per=per).thresholds_for(later, normal).cuts  # type: ignore[arg-type]
        flags = np.any([c.flags(x, later.tokens) for c, x in zip(cuts, later.scores.T, strict=True)], axis=0)
        shares[per] = len(np.unique(later.index[flags])) / later.rows
    assert shares["row"] == pytest.approx(0.05, abs=0.012)
    assert shares["answer"] > 0.3


@pytest.mark.parametrize("n", [160, 1000, 3000])
def test_no_band_of_lengths_wastes_the_rate(n: int) -> None:
    """Bands share out what is asked for, so that the last one of few normal rows gets its part."""
    rng = np.random.default_rng(n)
    by_tenth = []
    for _ in range(40):
        thresholds = row_thresholds(*rows_of(rng, n, 1, 1), 0.01)
        drawn = rows_of(rng, 20_000, 1, 1)
        flags = flagged_rows(thresholds, drawn)
        largest = [band.largest for band in thresholds.bands[0][:-1]]
        which = np.searchsorted(largest, drawn[1])
        by_tenth.append([flags[which == band].mean() for band in range(len(largest) + 1)])
    expected = int((n + 1) * 0.01 + 1e-9) / (n + 1)
    if n == 1000:
        assert expected > 0.0099
    lengths = min(len(one) for one in by_tenth)
    means = np.mean([one[-1] for one in by_tenth]), np.mean([one[0] for one in by_tenth])
    assert lengths == min(10, int((n + 1) * 0.01))
    assert means == pytest.approx((expected, expected), rel=0.3)


def test_the_blocks_are_those_of_order_statistics_for_one_answer_and_one_trait() -> None:
    scores = np.random.default_rng(0).permutation(199).astype(np.float32)[:, None]
    thresholds = row_thresholds(scores, np.full(199, 7), np.arange(199), 0.05)
    assert [band.threshold.value for band in thresholds.bands[0]] == [189.0]  # the tenth highest
    assert (thresholds.low, thresholds.high) == pytest.approx(reference.beta(10, 190).ppf([0.025, 0.975]).tolist())
    assert thresholds.bands[0][0].threshold.low == pytest.approx(thresholds.low)


def test_traits_of_different_scales_count_alike() -> None:
    rng = np.random.default_rng(1)
    scores = rng.normal(size=(999, 3)).astype(np.float32)
    rows, sizes = np.arange(999), np.full(999, 9)
    plain = row_thresholds(scores, sizes, rows, 0.05)
    scaled = row_thresholds(scores * np.array([1e-3, 1, 1e3]) + np.array([5, -5, 0]), sizes, rows, 0.05)
    for before, after in zip(plain.bands, scaled.bands, strict=True):
        assert before[0].threshold.low == after[0].threshold.low
    counts = [(scores[:, k] > bands[0].threshold.value).sum() for k, bands in enumerate(plain.bands)]
    assert max(counts) - min(counts) <= 3
    assert flagged_rows(plain, (scores, sizes, rows)).sum() <= 50


def test_a_row_that_is_high_for_every_trait_counts_once() -> None:
    scores = np.repeat(np.arange(999.0)[:, None], 5, axis=1)
    thresholds = row_thresholds(scores, np.full(999, 9), np.arange(999), 0.05)
    lowest = min(bands[0].threshold.value for bands in thresholds.bands)
    assert lowest == 949  # 50 of 1,000, as one trait would
    assert flagged_rows(thresholds, (scores, np.full(999, 9), np.arange(999))).sum() == 49


def test_fewer_blocks_than_traits_share_one_threshold_in_units_of_spread() -> None:
    rng = np.random.default_rng(2)
    scores = rng.normal(size=(300, 10)) * np.logspace(-2, 2, 10) + np.arange(10)
    thresholds = row_thresholds(scores, np.full(300, 9), np.arange(300), 0.01)
    values = np.array([bands[0].threshold.value for bands in thresholds.bands])
    middle, upper = np.quantile(scores[1::2], [0.5, 0.9], axis=0)
    standing = (values - middle) / (upper - middle)
    assert standing == pytest.approx(np.full(10, standing[0]))
    half = np.arange(150)
    assert flagged_rows(thresholds, (scores[::2], np.full(150, 9), half)).sum() == 0  # the highest row is the edge


def test_fewer_blocks_than_traits_keep_the_rate_where_the_spreads_are_hard_to_measure() -> None:
    """Readings near 0 but for one in eight: scaled by the very rows that they were cut on, 7 % were flagged."""
    rng = np.random.default_rng(5)

    def rare(n: int) -> Drawn:
        clear = rng.random((n, 7)) < 0.12
        return np.where(clear, 1 + rng.exponential(size=(n, 7)), 0.01 * rng.normal(size=(n, 7))), *fixed(n)

    shares, inside = [], 0
    for _ in range(120):
        thresholds = row_thresholds(*rare(120), 0.05)
        shares.append(flagged_rows(thresholds, rare(1000)).mean())
        inside += thresholds.low - 0.005 <= shares[-1] <= thresholds.high + 0.005
    assert np.mean(shares) == pytest.approx(thresholds.expected, abs=4 * np.std(shares) / len(shares) ** 0.5)
    assert inside >= 0.88 * len(shares)


def fixed(n: int) -> tuple[Any, Any]:
    return np.full(n, 9), np.arange(n)


def test_fewer_blocks_than_traits_need_twice_the_rows() -> None:
    with pytest.raises(TooFewResponses, match=r"150 normal rows for 10 traits .* Bring 243 rows, or screen"):
        row_thresholds(np.random.default_rng(0).normal(size=(150, 10)), *fixed(150), 0.01)


def test_answers_without_a_score_take_no_part() -> None:
    scores = np.concatenate([np.arange(300.0)[:, None], np.full((50, 1), np.nan)])
    thresholds = row_thresholds(scores, np.full(350, 9), np.arange(350), 0.05)
    assert thresholds.rows == 300


def test_too_few_rows_and_rates_that_make_no_sense_are_refused() -> None:
    many_answers = np.zeros((5000, 2)), np.full(5000, 9), np.arange(5000) // 100
    with pytest.raises(TooFewResponses, match="there are 50"):
        row_thresholds(*many_answers, 0.01)
    with pytest.raises(InvalidArgument, match=r"rate is 0\.7"):
        row_thresholds(*many_answers, 0.7)
    with pytest.raises(InvalidArgument, match="rate_per is 'rows'; it must be one of row, answer"):
        FlaggingRule(rate=0.05, rate_per="rows")  # type: ignore[arg-type]
