"""Screening: what a score is, what is flagged, which files come out, and that nothing is lost on the way."""

from __future__ import annotations

import errno
import gzip
import itertools
import json
import math
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy import stats as reference
from typer.testing import CliRunner, Result

import tiny
from poise import vector as vectors
from poise import workflows
from poise.cli import app
from poise.data import Conversation, open_data
from poise.data.readers import DataShape, read_row
from poise.errors import (
    FolderInUse,
    InvalidArgument,
    InvalidData,
    InvalidSteering,
    MissingExtra,
    SaveFailed,
    TooFewResponses,
)
from poise.judge import Judgement
from poise.model import Model, ask, load_model
from poise.screen import ColumnScorer, screen_rows
from poise.screen import pipeline as job
from poise.screen import scoring as work
from poise.screen import shards as parts
from poise.screen.base_answers import BaseAnswers
from poise.screen.compare_methods import compare_methods
from poise.screen.examples import LONGEST_EXAMPLE, token_pieces
from poise.screen.flagging import FlaggingRule
from poise.screen.prediction import describe_prediction
from poise.screen.projection import ScoredAnswer, score_answers
from poise.screen.row_editor import replace_answers
from poise.screen.scores import flags_by_length, mean_score, rank_scores, score_histogram, score_percentiles
from poise.screen.scoring import ScreenSettings
from poise.screen.summary import ScreeningSummary
from poise.statistics.estimates import Estimate
from poise.storage.lock import locked
from poise.trait import library
from poise.vector import PersonaVector

WORDS = " ".join(tiny.SENTENCES).split()
SHORT = 6  # new tokens


def talk(n: int, *, turns: int = 1, first: int = 0) -> list[dict[str, Any]]:
    """Chats of different lengths, no two the same."""
    rows = []
    for i in range(first, first + n):
        said = []
        for turn in range(turns):
            said += [{"role": "user", "content": f"What of {i} {turn}?"}]
            said += [{"role": "assistant", "content": " ".join(WORDS[(i + turn) % 20 : (i + turn) % 20 + 4 + i % 9])}]
        rows.append({"id": i, "messages": said})
    return rows


def written(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return path


def named(name: str, model: Model, seed: int) -> PersonaVector:
    trait = tiny.trait(name)
    return tiny.vector(model, seed=seed, trait=trait, trait_hash=trait.hash)


def conversations(rows: Sequence[dict[str, Any]]) -> list[Conversation]:
    return [Conversation(tuple(row["messages"]), "", i, i, {}) for i, row in enumerate(rows)]


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model("llama")


@pytest.fixture(scope="module")
def two(model: Model) -> list[PersonaVector]:
    return [named("grumpy", model, 1), named("gloomy", model, 2)]


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "ROWS_PER_SHARD", 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model: Model) -> Path:
    """The tiny model on disk, with its tokenizer."""
    path = tmp_path_factory.mktemp("model") / "tiny"
    model.lm.save_pretrained(path)
    model.tokenizer.save_pretrained(path)
    return path


def states(model: Model, ids: Sequence[int], layer: int) -> torch.Tensor:
    """Hugging Face's own hidden states after a block, [T, d]."""
    with torch.inference_mode():
        out = model.lm(input_ids=torch.tensor([list(ids)]), output_hidden_states=True)
    return out.hidden_states[layer + 1][0]  # type: ignore[no-any-return]


def greedy(model: Model, ids: Sequence[int], most: int) -> list[int]:
    """The likeliest continuation, a token at a time without a cache."""
    said: list[int] = []
    while len(said) < most:
        with torch.inference_mode():
            token = int(model.lm(input_ids=torch.tensor([[*ids, *said]])).logits[0, -1].argmax())
        if token in model.stop_ids:
            break
        said.append(token)
    return said


class TestAScore:
    def test_is_the_mean_projection_less_the_prompts_or_the_models_own(
        self, model: Model, two: list[PersonaVector], tmp_path: Path
    ) -> None:
        rows = conversations(talk(5))
        answers = BaseAnswers(model, tmp_path, max_new_tokens=SHORT)
        units = list(score_answers(model, rows, tiny.probes(two, 2), answers))
        for row, unit in zip(rows, units, strict=True):
            text = model.encode(ask(row.messages[0]["content"]), row.messages[1]["content"])
            h = states(model, text.ids, 2)
            own = greedy(model, text.ids[: text.start], SHORT)
            theirs = states(model, [*text.ids[: text.start], *own], 2)[text.start :]
            for k, vector in enumerate(two):
                v = vector.directions[2] / vector.directions[2].norm()
                raw = float((h[text.start :] @ v).mean())
                assert unit.score("raw")[k] == pytest.approx(raw, abs=1e-4)
                assert unit.score("prompt")[k] == pytest.approx(raw - float(h[text.start - 1] @ v), abs=1e-4)
                assert unit.score("difference")[k] == pytest.approx(raw - float((theirs @ v).mean()), abs=1e-4)

    def test_of_every_answer_has_its_own_history(self, model: Model, two: list[PersonaVector]) -> None:
        (row,) = conversations(talk(1, turns=3))
        probes = tiny.probes(two, 1)
        units = list(score_answers(model, [row], probes))
        alone = [
            next(iter(score_answers(model, [Conversation(row.messages[:end], "", 0, 0, {})], probes, only={(0, n)})))
            for n, end in enumerate((2, 4, 6))
        ]
        assert [u.turn for u in units] == [0, 1, 2]
        for one, other in zip(units, alone, strict=True):
            assert one.mean == pytest.approx(other.mean, abs=1e-5)

    def test_against_an_answer_that_has_no_room_is_missing_and_the_others_stay(
        self, model: Model, two: list[PersonaVector], tmp_path: Path
    ) -> None:
        long = " ".join(WORDS * 3)[:400]
        rows = conversations(
            [{"messages": [{"role": "user", "content": long}, {"role": "assistant", "content": "Yes."}]}, *talk(1)]
        )
        used = len(model.encode(ask(long)).ids)
        answers = BaseAnswers(model, tmp_path, max_new_tokens=model.window - used + 1)
        first, second = score_answers(model, rows, tiny.probes(two), answers)
        assert math.isnan(first.score("difference")[0])
        assert math.isfinite(first.score("raw")[0])
        assert math.isfinite(second.score("difference")[0])

    def test_of_a_direction_that_is_zero_is_refused(self, model: Model) -> None:
        vector = tiny.without_layer(tiny.vector(model), 2)
        with pytest.raises(InvalidSteering, match="zero at layer 2"):
            tiny.probes([vector], 2)


class TestTheModelsOwnAnswers:
    def test_are_made_once_and_kept(self, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        prompts = [model.encode(ask(q)) for q in ("Who?", "What of it?", "Who?")]
        answers = BaseAnswers(model, tmp_path, max_new_tokens=SHORT)
        assert answers.count_missing(prompts) == 2
        said = answers.generate(prompts)
        assert said[0] == said[2]
        assert [list(one.ids[one.start :]) for one in said] == [greedy(model, p.ids, SHORT) for p in prompts]
        again = BaseAnswers(model, tmp_path, max_new_tokens=SHORT)
        monkeypatch.setattr(again.engine, "generate", None)
        assert again.generate(prompts) == said
        assert again.count_missing(prompts) == 0

    def test_are_others_for_another_length(self, model: Model, tmp_path: Path) -> None:
        prompts = [model.encode(ask("Who?"))]
        assert BaseAnswers(model, tmp_path, max_new_tokens=2).generate(prompts)
        assert BaseAnswers(model, tmp_path, max_new_tokens=3).count_missing(prompts) == 1

    def test_must_leave_room_for_a_prompt(self, model: Model, tmp_path: Path) -> None:
        with pytest.raises(InvalidArgument, match="256 new tokens leave no room"):
            BaseAnswers(model, tmp_path, max_new_tokens=256)

    def test_that_are_damaged_are_named(self, model: Model, tmp_path: Path) -> None:
        answers = BaseAnswers(model, tmp_path, max_new_tokens=SHORT)
        answers.path.write_bytes(b"not a data base" * 100)
        with pytest.raises(SaveFailed, match="delete the file"):
            answers.generate([model.encode(ask("Who?"))])


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
    UP = Estimate(value=2.0, low=1.0, high=3.0, n=9)
    OPEN = Estimate(value=0.5, low=-1.0, high=2.0, n=9)

    def test_of_a_difference_is_its_sign_and_its_share_of_the_vector(self) -> None:
        said = describe_prediction("evil", "difference", self.UP, None, 8.0)
        assert "+25.0% of ‖v‖" in said
        assert "towards evil" in said
        assert "not calibrated" in said
        assert "away from evil" in describe_prediction(
            "evil", "prompt", Estimate(value=-2, low=-3, high=-1, n=9), None, 8.0
        )

    def test_is_none_where_the_interval_leaves_the_sign_open(self) -> None:
        assert "no shift either way" in describe_prediction("evil", "difference", self.OPEN, None, 8.0)
        assert "no shift either way" in describe_prediction("evil", "raw", self.UP, self.UP, 8.0)
        assert "Too few" in describe_prediction("evil", "raw", Estimate(value=1, low=None, high=None, n=1), None, 8.0)

    def test_of_a_raw_projection_needs_normal_data(self) -> None:
        assert "no zero of its own" in describe_prediction("evil", "raw", self.UP, None, 8.0)
        low = Estimate(value=-2, low=-3, high=-1, n=9)
        assert "50.0% of ‖v‖ above that of normal data" in describe_prediction("evil", "raw", self.UP, low, 8.0)


class TestARowWithAnotherAnswer:
    CHAT = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})

    @pytest.mark.parametrize(
        ("shape", "row"),
        [
            (DataShape("messages", ("messages",)), {"id": 1, "messages": [*CHAT, *CHAT]}),
            (DataShape("messages", ("messages",)), {"messages": json.dumps([*CHAT, *CHAT]), "x": None}),
            (
                DataShape("messages", ("m",)),
                {"m": {"role": ["user", "assistant"] * 2, "content": ["a", "b", "c", "d"]}},
            ),
            (
                DataShape("sharegpt", ("c",)),
                {"c": [{"from": f, "value": f} for f in ("human", "gpt", "human", "GPT ")]},
            ),
            (DataShape("pairs", ("prompt", "completion")), {"prompt": [*CHAT, CHAT[0]], "completion": [CHAT[1]]}),
            (DataShape("pairs", ("prompt", "answer")), {"prompt": [*CHAT, CHAT[0]], "answer": "old"}),
            (
                DataShape("messages", ("messages",)),
                {"messages": [*CHAT, CHAT[0], {"role": "model", "content": [{"type": "text", "text": "old"}]}]},
            ),
        ],
    )
    def test_is_read_with_it_and_is_otherwise_the_same(self, shape: DataShape, row: dict[str, Any]) -> None:
        before = read_row(shape, row, "assistant").messages
        new = replace_answers(shape, row, {1: "new"})
        after = read_row(shape, new, "assistant").messages
        answers = [i for i, m in enumerate(before) if m["role"] == "assistant"]
        assert after[answers[1]]["content"] == "new"
        assert [m for i, m in enumerate(after) if i != answers[1]] == [
            m for i, m in enumerate(before) if i != answers[1]
        ]
        assert list(new) == list(row)
        assert read_row(shape, row, "assistant").messages == before

    @pytest.mark.parametrize(
        ("shape", "row"),
        [
            (DataShape("pairs", ("q", "a")), {"q": None, "a": "old", "n": 2}),
            (
                DataShape("alpaca", ("instruction", "input", "output")),
                {"instruction": "x", "input": "", "output": "old"},
            ),
            (DataShape("text", ("text",)), {"text": "old"}),
        ],
    )
    def test_of_one_answer_has_it_in_its_column(self, shape: DataShape, row: dict[str, Any]) -> None:
        assert replace_answers(shape, row, {0: "new"}) == {name: "new" if v == "old" else v for name, v in row.items()}


class TestPieces:
    def test_joined_are_the_answer(self, model: Model) -> None:
        text = "Naïve – 世界, yes."
        ids = model.tokenizer(text)["input_ids"]
        found = token_pieces(model, ids, [float(i) for i in range(len(ids))])
        assert "".join(part for part, _ in found) == text
        assert len(found) < len(ids)

    def test_of_a_long_answer_are_those_around_the_brightest(self, model: Model) -> None:
        ids = model.tokenizer(" ".join(WORDS * 20))["input_ids"][:1500]
        values = [0.0] * 1500
        values[900:908] = [5.0] * 8
        found = token_pieces(model, ids, values)
        assert len(found) <= LONGEST_EXAMPLE
        assert found[0][0].startswith("…")
        assert found[-1][0].endswith("…")
        assert sum(value == 5 for _, value in found) == 8


BROKEN = ["{broken", json.dumps({"messages": [{"role": "user", "content": "Only asked."}]}), "[1]"]


def mixed(path: Path) -> Path:
    """27 rows, of which three are broken, and one is longer than the model's window."""
    rows: list[Any] = [*talk(20, turns=2)[:10], *talk(13, first=40)]
    rows[3:3] = [BROKEN[0]]
    rows[12:12] = [BROKEN[1], "", json.dumps(talk(1, first=7)[0], indent=None) + " \r"]
    rows.append({"messages": [{"role": "user", "content": "word " * 900}, {"role": "assistant", "content": "Ah."}]})
    return written(path, rows)


def run(data: Path, model: Model, two: Sequence[PersonaVector], out: Path, **said: Any) -> ScreeningSummary:
    normal = said.pop("normal", None)
    plan = ScreenSettings(**({"method": "raw", "max_new_tokens": SHORT} | said))
    return job.screen_data(open_data(data), model, two, out, plan, normal=open_data(normal) if normal else None)


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.is_file()}


class TestAScreening:
    def test_parts_the_rows_untouched_and_in_order(
        self, model: Model, two: list[PersonaVector], tmp_path: Path
    ) -> None:
        data = mixed(tmp_path / "rows.jsonl")
        found = run(data, model, two, tmp_path / "out", rule=FlaggingRule(top=4))
        lines = data.read_bytes().splitlines(keepends=True)
        clean, flagged = (
            (tmp_path / "out" / n).read_bytes().splitlines(keepends=True) for n in ("clean.jsonl", "flagged.jsonl")
        )
        rejected = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_bytes().splitlines()]
        assert [r["line"] for r in rejected] == [4, 13, None]
        assert [r["row"] for r in rejected] == [3, 12, 26]
        assert rejected[-1]["reason"].startswith("longer than the model's window")
        kept = [line for i, line in enumerate(lines) if line.strip() and i not in (3, 12, 27)]
        assert sorted(clean + flagged) == sorted(kept)
        assert clean == [line for line in kept if line in clean]
        assert flagged == [line for line in kept if line in flagged]
        assert found.flagged_rows == len(flagged) > 0
        assert found.rows == 27
        assert sum(found.rejected.values()) == 3

    def test_has_a_table_row_for_every_answer(self, model: Model, two: list[PersonaVector], tmp_path: Path) -> None:
        data = mixed(tmp_path / "rows.jsonl")
        found = run(data, model, two, tmp_path / "out", rule=FlaggingRule(top=4), layer=2)
        rows = pq.read_table(tmp_path / "out" / "scores.parquet").to_pylist()
        by_place = {(r["index"], r["turn"]): r for r in rows}
        good = [row for row in open_data(data) if isinstance(row, Conversation) and row.index != 26]
        expected = {(u.index, u.turn): u for u in score_answers(model, good, tiny.probes(two, 2))}
        assert list(by_place) == list(expected)
        assert len(rows) == found.units
        for place, unit in expected.items():
            assert by_place[place]["grumpy_score"] == pytest.approx(unit.mean[0], abs=1e-5)
            assert by_place[place]["tokens"] == unit.tokens
            assert by_place[place]["file"] == str(data)
            assert by_place[place]["row"] == unit.index
        for row in rows:
            why = [f"{t} {row[f'{t}_score']:.4g}: among the 4 highest scores" for t in ("grumpy", "gloomy")]
            said = [w for w, t in zip(why, ("grumpy", "gloomy"), strict=True) if row[f"{t}_flagged"]]
            assert row["why"] == ("; ".join(said) or None)
        assert sorted(r["grumpy_rank"] for r in rows)[:5] == [1, 2, 3, 4, 5]
        flagged = {r["index"] for r in rows if r["grumpy_flagged"] or r["gloomy_flagged"]}
        ids = [json.loads(line)["id"] for line in (tmp_path / "out" / "flagged.jsonl").read_bytes().splitlines()]
        assert ids == [row.fields["id"] for row in good if row.index in flagged]

    def test_sums_up_each_trait(self, model: Model, two: list[PersonaVector], tmp_path: Path) -> None:
        found = run(mixed(tmp_path / "rows.jsonl"), model, two, tmp_path / "out", rule=FlaggingRule(top=4))
        assert ScreeningSummary.model_validate_json((tmp_path / "out" / "summary.json").read_text()) == found
        for trait in found.traits:
            assert trait.flagged == 4
            assert trait.units == found.units == sum(trait.counts) == sum(t.units for t in trait.by_length)
            assert [s.score for s in trait.top] == sorted((s.score for s in trait.top), reverse=True)
            first = trait.top[0]
            assert np.mean([value for _, value in first.pieces]) == pytest.approx(first.score, abs=0.5)
            assert trait.mean.low is not None
            assert trait.mean.value is not None
            assert trait.mean.low < trait.mean.value

    def test_of_another_format_writes_its_columns(self, model: Model, two: list[PersonaVector], tmp_path: Path) -> None:
        (tmp_path / "rows.csv").write_text("n,question,answer\n1,Who?,The harbour master.\n2,What?,The tide.\n")
        run(tmp_path / "rows.csv", model, two, tmp_path / "out", rule=FlaggingRule(above=1e9))
        lines = (tmp_path / "out" / "clean.jsonl").read_text().splitlines()
        assert [json.loads(line)["answer"] for line in lines] == ["The harbour master.", "The tide."]
        assert json.loads(lines[0])["n"] == "1"
        assert (tmp_path / "out" / "flagged.jsonl").read_bytes() == b""

    def test_under_another_rule_scores_nothing_again(
        self, model: Model, two: list[PersonaVector], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = mixed(tmp_path / "rows.jsonl")
        run(data, model, two, tmp_path / "out", method="difference")
        raw = run(data, model, two, tmp_path / "fresh", method="raw", rule=FlaggingRule(top=2))
        monkeypatch.setattr(parts, "score_shard", None)
        for method in ("difference", "prompt", "raw"):
            more = {} if method == "difference" else {"max_new_tokens": 9}
            done = run(data, model, two, tmp_path / "out", method=method, rule=FlaggingRule(top=2), **more)
        assert done.traits[0].mean == raw.traits[0].mean
        assert files(tmp_path / "out") == files(tmp_path / "fresh")

    def test_by_rate_sets_its_thresholds_on_normal_data_of_like_length(
        self, model: Model, two: list[PersonaVector], tmp_path: Path
    ) -> None:
        data, normal = mixed(tmp_path / "rows.jsonl"), written(tmp_path / "normal.jsonl", talk(120, first=100))
        found = run(data, model, two, tmp_path / "out", rule=FlaggingRule(rate=0.1), normal=normal)
        usual = run(normal, model, two, tmp_path / "usual")
        table = pq.read_table(tmp_path / "usual" / "scores.parquet")
        scores, tokens = table["grumpy_score"].to_numpy(), table["tokens"].to_numpy()
        grumpy = found.traits[0]
        assert len(grumpy.bands) > 1
        assert grumpy.threshold is None
        assert sum(band.answers for band in grumpy.bands) == 120
        for band in grumpy.bands:
            own = np.sort(scores[(tokens >= band.shortest) & (tokens <= band.longest)])
            assert band.answers == len(own)
            assert band.threshold == pytest.approx(own[-int((len(own) + 1) * 0.1)], rel=1e-6)
        assert sum(band.units for band in grumpy.bands) == grumpy.units
        assert sum(band.flagged for band in grumpy.bands) == grumpy.flagged == sum(grumpy.flagged_counts)
        rows = pq.read_table(tmp_path / "out" / "scores.parquet").to_pylist()
        lengths = [r["tokens"] for r in rows]
        assert grumpy.outside == sum(not tokens.min() <= n <= tokens.max() for n in lengths)
        ends = [band.longest for band in grumpy.bands[:-1]]
        for row in rows:
            limit = grumpy.bands[sum(row["tokens"] > end for end in ends)].threshold
            assert row["grumpy_flagged"] == (row["grumpy_score"] > limit)
            assert not row["grumpy_flagged"] or f"above {limit:.4g}, which normal answers of" in row["why"]
        assert [s.flagged for s in grumpy.top] == sorted((s.flagged for s in grumpy.top), reverse=True)
        assert grumpy.normal == usual.traits[0].mean
        assert grumpy.normal_counts is not None
        assert sum(grumpy.normal_counts) == 120
        with pytest.raises(TooFewResponses, match="needs 122 normal answers"):
            run(data, model, two, tmp_path / "out", rule=FlaggingRule(rate=0.01), normal=normal)

    def test_mends_flagged_answers_in_their_place(self, model: Model, two: list[PersonaVector], tmp_path: Path) -> None:
        data = mixed(tmp_path / "rows.jsonl")
        found = run(data, model, two, tmp_path / "out", rule=FlaggingRule(top=3), fix=True)
        table = pq.read_table(tmp_path / "out" / "scores.parquet").to_pylist()
        flagged = {(r["index"], r["turn"]) for r in table if r["why"]}
        fixed = (tmp_path / "out" / "fixed.jsonl").read_bytes().splitlines(keepends=True)
        rows = [r for r in open_data(data) if isinstance(r, Conversation) and r.index != 26]
        replaced = 0
        for row, line in zip(rows, fixed, strict=True):
            new = json.loads(line)["messages"]
            turns = [i for i, m in enumerate(row.messages) if m["role"] == "assistant"]
            for number, at in enumerate(turns):
                if (row.index, number) not in flagged:
                    assert new[at]["content"] == row.messages[at]["content"]
                    continue
                prompt = model.encode(row.messages[:at])
                own = model.tokenizer.decode(greedy(model, prompt.ids, SHORT), skip_special_tokens=True)
                assert new[at]["content"] == own
                replaced += 1
            if not any((row.index, n) in flagged for n in range(len(turns))):
                assert line == row.raw + b"\n"  # type: ignore[operator]
        assert replaced == len(flagged)
        assert f"{replaced} flagged answers" in found.notes[-1]
        run(data, model, two, tmp_path / "out", rule=FlaggingRule(top=3))
        assert not (tmp_path / "out" / "fixed.jsonl").exists()

    def test_asks_a_judge_about_what_is_flagged_and_as_many_others(
        self, model: Model, two: list[PersonaVector], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[int] = []

        class Fake:
            name = "fake"

            def __call__(self, questions: Sequence[str], answers: Sequence[str]) -> list[Judgement]:
                asked.append(len(answers))
                return [Judgement(100.0 if len(a) % 2 else 0.0) for a in answers]

        monkeypatch.setattr(job, "load_judges", lambda spec, vectors, model, cache: [Fake()] * len(vectors))
        found = run(
            mixed(tmp_path / "rows.jsonl"), model, two, tmp_path / "out", rule=FlaggingRule(top=5), judge="exemplars"
        )
        assert asked == [10, 10]
        assert (found.judge, found.judged) == ("fake", 20)
        for trait in found.traits:
            assert trait.threshold is not None
            assert all(s.judged == 0 and s.score > trait.threshold - 0.01 for s in trait.passed_by_judge)
            assert all(s.judged == 100 and s.score < trait.threshold + 0.01 for s in trait.seen_by_judge_only)
            assert trait.passed_by_judge or trait.seen_by_judge_only

    def test_stops_when_too_many_rows_are_broken_and_keeps_what_is_done(
        self, model: Model, two: list[PersonaVector], tmp_path: Path
    ) -> None:
        rows: list[Any] = [*talk(90), *(["{broken"] * 40), *talk(40)]
        data = written(tmp_path / "rows.jsonl", rows)
        with pytest.raises(InvalidData, match=r"more than the 20% that is allowed"):
            run(data, model, two, tmp_path / "out")
        assert len((tmp_path / "out" / "rejected.jsonl").read_bytes().splitlines()) == 23
        assert len(list((tmp_path / "out" / ".run").glob("*/part-*"))) == 15
        assert not (tmp_path / "out" / "clean.jsonl").exists()
        run(data, model, two, tmp_path / "out", broken=0.5)
        run(data, model, two, tmp_path / "fresh", broken=0.5)
        assert files(tmp_path / "out") == files(tmp_path / "fresh")

    def test_refuses_before_any_work(
        self, model: Model, two: list[PersonaVector], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = mixed(tmp_path / "rows.jsonl")
        monkeypatch.setattr(parts, "score_shard", None)
        with pytest.raises(InvalidArgument, match="where the results would be written"):
            run(data, model, two, tmp_path)
        with pytest.raises(InvalidArgument, match="needs normal data"):
            run(data, model, two, tmp_path / "out", rule=FlaggingRule(rate=0.1))
        with pytest.raises(InvalidArgument, match="Two vectors are named grumpy"):
            run(data, model, [two[0], two[0]], tmp_path / "out")
        with pytest.raises(InvalidArgument, match="no judge"):
            run(data, model, two, tmp_path / "out", judge="nobody")
        with pytest.raises(SaveFailed, match="it is not a folder"):
            run(data, model, two, written(tmp_path / "a file", []))
        monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
        with pytest.raises(MissingExtra, match=r"poise\[data\]"):
            run(data, model, two, tmp_path / "out")


class TestADiskThatIsFull:
    @pytest.mark.parametrize("fails_at", [0, 2])
    def test_loses_nothing_that_was_scored(
        self,
        model: Model,
        two: list[PersonaVector],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        fails_at: int,
    ) -> None:
        data, save, saved = mixed(tmp_path / "rows.jsonl"), np.savez, []

        def full(*args: Any, **arrays: Any) -> None:
            if len(saved) == fails_at:
                raise OSError(errno.ENOSPC, "No space left on device")
            save(*args, **arrays)
            saved.append(1)

        monkeypatch.setattr(parts.np, "savez", full)
        with pytest.raises(SaveFailed, match=r"No space left on device.*again"):
            run(data, model, two, tmp_path / "out")
        assert len(list((tmp_path / "out" / ".run").glob("*/part-*.npz"))) == fails_at
        monkeypatch.setattr(parts.np, "savez", save)
        run(data, model, two, tmp_path / "out")
        run(data, model, two, tmp_path / "fresh")
        assert files(tmp_path / "out") == files(tmp_path / "fresh")

    def test_leaves_earlier_results_whole(
        self, model: Model, two: list[PersonaVector], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = mixed(tmp_path / "rows.jsonl")
        run(data, model, two, tmp_path / "out")
        before = files(tmp_path / "out")

        def full(self: Any, table: Any, **options: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
        with pytest.raises(SaveFailed, match="No space left on device"):
            run(data, model, two, tmp_path / "out", rule=FlaggingRule(top=7))
        assert files(tmp_path / "out") == before


FULL = """
import json, os, resource, sys
import torch
torch.set_num_threads(1)
from poise import cli, report, vector, workflows
from poise.screen import shards
import matplotlib.pyplot, pyarrow.parquet, poise.report.screening
shards.ROWS_PER_SHARD = 8

for limit, words in json.load(sys.stdin):
    read, write = os.pipe()
    if os.fork() == 0:
        os.dup2(write, 2)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        sys.argv[1:] = words
        try:
            cli.main()
        except SystemExit as end:
            sys.stderr.flush()
            os._exit(int(end.code or 0))
        except BaseException:
            import traceback; traceback.print_exc(); os._exit(1)
    os.close(write)
    with open(read) as said:
        words = said.read()
    print("ended", json.dumps([os.waitstatus_to_exitcode(os.wait()[1]), words]), flush=True)
"""


class TestADiskThatRefusesEveryFileInTurn:
    """The system lets no file grow beyond a size: for each file that a run leaves, its own less one byte."""

    def test_is_one_sentence_each_time_and_loses_nothing(
        self, two: list[PersonaVector], folder: Path, tmp_path: Path
    ) -> None:
        data = mixed(tmp_path / "rows.jsonl")
        for vector in two:
            vectors.save_vector(vector, tmp_path / f"{vector.name}.safetensors")

        def words(out: str, *more: str) -> list[str]:
            said = ["screen", data, "--out", tmp_path / out, "--model", folder, "--dtype", "float32", "--device", "cpu"]
            for vector in two:
                said += ["--vector", tmp_path / f"{vector.name}.safetensors"]
            return [*map(str, said), "--max-new-tokens", "4", *more]

        own = ("--method", "difference", "--fix")  # with a data base, which needs more than any other file at once
        assert CliRunner().invoke(app, words("raw", "--method", "raw")).exit_code == 0
        assert CliRunner().invoke(app, words("own", *own)).exit_code == 0
        left = [path.stat().st_size for path in (tmp_path / "raw").rglob("*") if path.is_file()]
        limits = sorted({size - 1 for size in left if size})
        asked: list[Any] = [[limit, words("raw again", "--method", "raw")] for limit in [*limits, -1]]
        asked += [[limit, words("own again", *own)] for limit in (12_000, -1)]
        program = [sys.executable, "-c", FULL]
        done = subprocess.run(program, capture_output=True, text=True, input=json.dumps(asked))
        assert done.returncode == 0, done.stderr
        found = [json.loads(line[6:]) for line in done.stdout.splitlines() if line.startswith("ended ")]
        assert [code for code, _ in found] == [2] * len(limits) + [0, 2, 0], found
        for code, said in found:
            assert said.count("error: Cannot ") == bool(code), said
            assert said.count("File too large") + said.count("disk I/O error") == bool(code), said
            assert "Traceback" not in said
        for kind in ("raw", "own"):
            assert files(tmp_path / f"{kind} again") == files(tmp_path / kind)


KILLER = """
import os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from poise import report, vector, workflows
from poise.data import open_data
from poise.model import load_model
from poise.screen import shards
from poise.screen.flagging import FlaggingRule
from poise.screen.scoring import ScreenSettings
import matplotlib.pyplot, pyarrow.parquet, poise.report.screening
shards.ROWS_PER_SHARD = 2
folder, data, vectors, out = map(Path, sys.argv[1:5])
paths, method, engine, wanted = sorted(vectors.glob("*.safetensors")), sys.argv[5], sys.argv[6], int(sys.argv[7])
model = load_model(str(folder), dtype=torch.float32, device="cpu")
plans = {e: ScreenSettings(method, FlaggingRule(top=3), None, None, True, 6, engine=e) for e in ("local", "ray")}

def start(name, engine):
    child = os.fork()
    if child == 0:
        try:
            workflows.screen_files(open_data(data), paths, model, out / name, plans[engine], normal=open_data(data))
        except BaseException:
            import traceback; traceback.print_exc(); os._exit(3)
        os._exit(0)
    return child

def ended(child):
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in ((0, -9, 1) if engine == "ray" else (0, -9)), code  # 1: Ray itself now and then, as it shuts down
    return code

def done(name):
    return len(list(out.glob(f"{name}/.run/*/part-*.npz")))

def wait(name):
    "Until a random moment: of the time for the local engine, of the work for Ray, which is long in starting."
    if engine == "local":
        return time.sleep(draw.uniform(0, lasts / 3))
    had, began = done(name), time.monotonic()
    until = draw.randint(had, done("whole"))
    while done(name) < until and time.monotonic() < began + 60:
        time.sleep(0.002)
    time.sleep(draw.uniform(0, 0.05 if until > had else 10))

began = time.monotonic()
ended(start("whole", "local"))
lasts = time.monotonic() - began
draw, kills, rounds, midway = random.Random(8), 0, 0, 0
while kills < wanted:
    name = f"killed{rounds}"
    child = start(name, engine)
    wait(name)
    os.kill(child, signal.SIGKILL)
    if ended(child):
        kills += 1
        midway += 0 < done(name) < done("whole")
    else:
        rounds += 1
tries = 0
while ended(start(name, engine)):
    tries += 1
    assert tries < 3
print(f"{kills} kills, {midway} of them between the first window and the last, {rounds} runs ended before theirs")
"""


def killed(vectors_on: Sequence[PersonaVector], model: Path, where: Path, engine: str, times: int) -> str:
    """Kill a screening at random moments, then let it end; check its files; say what happened."""
    data = mixed(where / "rows.jsonl")
    for vector in vectors_on:
        vectors.save_vector(vector, where / f"{vector.name}.safetensors")
    program = [sys.executable, "-c", KILLER, model, data, where, where / "out", "difference", engine, str(times)]
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(program, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    expected = files(where / "out" / "whole")
    assert set(expected) == {
        "clean.jsonl",
        "fixed.jsonl",
        "flagged.jsonl",
        "rejected.jsonl",
        "report.html",
        "scores.parquet",
        "summary.json",
    }
    ended = sorted((where / "out").glob("killed*"))
    assert ended
    for out in ended:
        assert files(out) == expected
    return done.stdout


class TestAScreeningKilledAtTenRandomMoments:
    @pytest.mark.timeout(300)
    def test_ends_with_the_same_bytes(self, two: list[PersonaVector], folder: Path, tmp_path: Path) -> None:
        assert killed(two, folder, tmp_path, "local", 10).startswith("10 kills")


class TestTwoRunsAtOnce:
    def test_are_refused_in_one_folder(self, model: Model, two: list[PersonaVector], tmp_path: Path) -> None:
        data = mixed(tmp_path / "rows.jsonl")
        with locked(tmp_path / "out" / ".run", "screen"):
            with pytest.raises(FolderInUse, match=r"Another run is at work in .*out; wait until it ends"):
                run(data, model, two, tmp_path / "out")
            with pytest.raises(FolderInUse, match="Another run"):
                compare_methods(
                    open_data(data), model, two, tmp_path / "out", ScreenSettings(max_new_tokens=SHORT), sample=20
                )
            run(data, model, two, tmp_path / "elsewhere")
        run(data, model, two, tmp_path / "out")
        assert files(tmp_path / "out") == files(tmp_path / "elsewhere")

    def test_need_not_wait_for_one_that_was_killed(
        self, model: Model, two: list[PersonaVector], tmp_path: Path
    ) -> None:
        holds = "import fcntl, sys, time\nfile = open(sys.argv[1], 'ab')\nfcntl.flock(file, fcntl.LOCK_EX)\n"
        holds += "print('held', flush=True)\ntime.sleep(600)"
        (tmp_path / "out" / ".run").mkdir(parents=True)
        lock = tmp_path / "out" / ".run" / "lock"
        other = subprocess.Popen([sys.executable, "-c", holds, lock], stdout=subprocess.PIPE)
        assert other.stdout is not None
        with other, other.stdout as said:
            assert said.readline() == b"held\n"
            (tmp_path / "out" / ".run" / ".half.written.part").touch()
            data = mixed(tmp_path / "rows.jsonl")
            with pytest.raises(FolderInUse, match="Another run"):
                run(data, model, two, tmp_path / "out")
            assert (tmp_path / "out" / ".run" / ".half.written.part").exists()
            other.kill()
        run(data, model, two, tmp_path / "out")
        assert not (tmp_path / "out" / ".run" / ".half.written.part").exists()

    def test_are_let_alone_where_the_disk_knows_no_locks(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: Any) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr("fcntl.flock", refuse)
        with locked(tmp_path, "screen"), locked(tmp_path, "screen"):
            pass


class TestFromPython:
    def test_scores_rows_in_order_as_the_files_do(self, model: Model, two: list[PersonaVector], tmp_path: Path) -> None:
        rows = talk(20, turns=2)
        run(written(tmp_path / "rows.jsonl", rows), model, two, tmp_path / "out", method="prompt")
        table = pq.read_table(tmp_path / "out" / "scores.parquet").to_pylist()
        found = list(screen_rows(iter(rows), two, model, "prompt"))
        assert [one.index for one in found] == list(range(20))
        for one in found:
            own = [r for r in table if r["index"] == one.index]
            assert one.scores["gloomy"] == pytest.approx(max(r["gloomy_score"] for r in own), abs=1e-5)
            assert [u.turn for u in one.units] == [0, 1]

    def test_reads_a_window_at_a_time(self, model: Model, two: list[PersonaVector]) -> None:
        taken: list[int] = []

        def rows() -> Any:
            for i, row in enumerate(talk(30)):
                taken.append(i)
                yield row

        found = screen_rows(rows(), two, model)
        assert taken == []
        next(found)
        assert len(taken) == 8

    def test_says_why_a_row_has_no_score(self, model: Model, two: list[PersonaVector]) -> None:
        found = list(screen_rows([*talk(2), {"messages": []}], two, model, "difference", max_new_tokens=2))
        assert [bool(one.unread) for one in found] == [False, False, True]
        assert math.isnan(found[2].scores["grumpy"])
        with pytest.raises(InvalidData, match="no known shape"):
            list(screen_rows([{"colour": 3}], two, model))

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_fits_a_data_sets_map_and_filter(self, two: list[PersonaVector], folder: Path, tmp_path: Path) -> None:
        datasets = pytest.importorskip("datasets")
        datasets.disable_progress_bars()
        model = load_model(str(folder), dtype=torch.float32, device="cpu")
        data = datasets.Dataset.from_list([*talk(20), {"id": 99, "messages": []}])
        scored = data.map(ColumnScorer(two, model), batched=True, batch_size=8)
        clean = scored.filter(lambda row: row["grumpy_score"] is not None and row["grumpy_score"] < 0)
        expected = [one.scores["grumpy"] for one in screen_rows(talk(20), two, model)]
        assert scored["grumpy_score"][:20] == pytest.approx(expected, abs=1e-5)
        assert scored["grumpy_score"][20] is None
        assert clean["id"] == [i for i, x in enumerate(expected) if x < 0]

    def test_travels_by_the_models_name(self, two: list[PersonaVector], folder: Path) -> None:
        scorer = ColumnScorer(two, load_model(str(folder), dtype=torch.float32, device="cpu"))
        packed = pickle.dumps(scorer)
        assert packed == pickle.dumps(scorer)
        batch = {"messages": [row["messages"] for row in talk(3)]}
        assert pickle.loads(packed)(batch) == scorer(batch)


class TestAnEstimate:
    def test_compares_the_cheap_methods_with_the_full_one(
        self, model: Model, two: list[PersonaVector], tmp_path: Path
    ) -> None:
        data = open_data(written(tmp_path / "rows.jsonl", talk(40, turns=2)))
        found = compare_methods(data, model, two, tmp_path / "out", ScreenSettings(max_new_tokens=SHORT), sample=60)
        assert (found.answers, found.sampled) == (80, 60)
        assert all(seconds is not None and seconds > 0 for seconds in found.seconds.values())
        assert [(a.trait, a.method) for a in found.agreement] == [
            (t, m) for t in ("grumpy", "gloomy") for m in ("difference", "prompt", "raw")
        ]
        raw = found.agreement[2]
        assert raw.spearman is not None
        assert raw.spearman.low is not None
        assert raw.spearman.low <= raw.spearman.value <= raw.spearman.high  # type: ignore[operator]
        again = compare_methods(data, model, two, tmp_path / "out", ScreenSettings(max_new_tokens=SHORT), sample=60)
        assert again.seconds["difference"] is None
        assert again.agreement == found.agreement
        assert {p.name for p in (tmp_path / "out").iterdir()} == {".run", "estimate.json"}

    def test_of_all_answers_has_the_reference_figures(
        self, model: Model, two: list[PersonaVector], tmp_path: Path
    ) -> None:
        rows = talk(30)
        data = open_data(written(tmp_path / "rows.jsonl", rows))
        found = compare_methods(data, model, two, tmp_path / "out", ScreenSettings(max_new_tokens=SHORT), sample=30)
        units: list[ScoredAnswer] = list(
            score_answers(
                model, conversations(rows), tiny.probes(two), BaseAnswers(model, tmp_path, max_new_tokens=SHORT)
            )
        )
        full, raw = ([u.score(m)[1] for u in units] for m in ("difference", "raw"))  # type: ignore[arg-type]
        one = next(a for a in found.agreement if (a.trait, a.method) == ("gloomy", "raw"))
        assert one.spearman is not None
        assert one.spearman.value == pytest.approx(reference.spearmanr(full, raw).statistic, abs=1e-5)
        assert one.top_tenth is not None
        same = set(np.argsort(full)[-3:]) & set(np.argsort(raw)[-3:])
        assert one.top_tenth.value == pytest.approx(len(same) / 3, abs=1e-5)
        assert one.top_hundredth is None
        assert one.mean.value == pytest.approx(np.mean(raw), abs=1e-5)

    def test_of_too_few_is_refused(self, model: Model, two: list[PersonaVector], tmp_path: Path) -> None:
        data = open_data(written(tmp_path / "rows.jsonl", talk(30)))
        with pytest.raises(InvalidArgument, match="at least 20"):
            compare_methods(data, model, two, tmp_path / "out", ScreenSettings(), sample=5)


@pytest.fixture(scope="module")
def command(folder: Path, two: list[PersonaVector], tmp_path_factory: pytest.TempPathFactory) -> Any:
    where = tmp_path_factory.mktemp("vectors")
    options = ["--model", str(folder), "--dtype", "float32", "--device", "cpu", "--max-new-tokens", "4"]
    loaded = load_model(str(folder), dtype=torch.float32, device="cpu")
    for seed, name in enumerate(("grumpy", "gloomy")):
        vectors.save_vector(named(name, loaded, seed + 1), where / f"{name}.safetensors")
        options += ["--vector", str(where / f"{name}.safetensors")]

    def invoke(data: object, out: Path, *more: str) -> Result:
        return CliRunner().invoke(app, ["screen", str(data), "--out", str(out), *options, *more])

    return invoke


class TestTheCommand:
    def test_prints_one_object(self, command: Any, tmp_path: Path) -> None:
        data, out = mixed(tmp_path / "rows.jsonl"), tmp_path / "out"
        done = command(data, out, "--method", "raw", "--top", "3", "--json")
        assert done.exit_code == 0, done.output
        facts = json.loads(done.stdout)
        assert facts["files"]["flagged"] == str(out / "flagged.jsonl")
        assert all(Path(path).exists() for path in facts["files"].values())
        assert "report" in facts["files"]
        assert [(t["trait"], t["flagged"]) for t in facts["traits"]] == [("grumpy", 3), ("gloomy", 3)]
        assert facts["rows"] == 27
        assert facts["traits"][0]["mean"]["low"] < facts["traits"][0]["mean"]["value"]

    def test_shows_what_was_found(self, command: Any, tmp_path: Path) -> None:
        done = command(mixed(tmp_path / "rows.jsonl"), tmp_path / "out", "--method", "prompt")
        assert done.exit_code == 0, done.output
        assert "grumpy" in done.stdout
        assert "flagged.jsonl" in done.stdout
        assert "the highest 1 %" in done.stdout
        assert "1 broken JSON" in done.stdout
        assert "messages from messages" in done.stderr

    def test_estimates_and_goes_no_further(self, command: Any, tmp_path: Path) -> None:
        done = command(written(tmp_path / "rows.jsonl", talk(24)), tmp_path / "out", "--estimate", "--sample", "20")
        assert done.exit_code == 0, done.output
        assert "Rank correlation" in done.stdout
        assert not (tmp_path / "out" / "clean.jsonl").exists()

    @pytest.mark.parametrize(
        ("name", "content", "complaint"),
        [
            ("rows.jsonl", b"", "it is empty"),
            ("rows.jsonl", b'{"size": 3}\n', "no known shape; its columns are size (a number)"),
            ("rows.jsonl", b'{"messages": [{"role": "user", "content": "Hm?"}]}\n' * 3, "no assistant turn"),
            ("rows.jsonl", b'\xff\xfe{"messages"\n' * 2, "not UTF-8"),
            ("rows.jsonl.gz", gzip.compress(b'{"messages": []}\n' * 9, mtime=0)[:12], "cut short"),
            ("rows.parquet", b"PAR1 is not all of it", "Parquet"),
            ("rows.doc", b"?", "should end in"),
        ],
    )
    def test_refuses_what_it_cannot_read_in_a_sentence(
        self, command: Any, tmp_path: Path, name: str, content: bytes, complaint: str
    ) -> None:
        (tmp_path / name).write_bytes(content)
        done = command(tmp_path / name, tmp_path / "out", "--method", "raw")
        assert done.exit_code == 2
        assert complaint in done.stderr
        assert "Traceback" not in done.stderr

    def test_leaves_out_and_lists_what_is_broken_in_the_middle(self, command: Any, tmp_path: Path) -> None:
        rows = [json.dumps(row).encode() for row in talk(60)]
        rows[5] = b'{"messages": [{"role": "user", "content": "\xff"}]}'
        rows[9] = json.dumps(talk(1)[0] | {"pad": "x" * 2**20}).encode()
        long = [{"role": "user", "content": "y " * 2**19}, {"role": "assistant", "content": "z"}]
        rows[11] = json.dumps({"messages": long}).encode()
        whole = gzip.compress(b"\n".join(rows))
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "cut.jsonl.gz").write_bytes(whole[:-9])
        written(tmp_path / "a" / "pairs.jsonl", [{"question": "Who?", "answer": "The harbour master."}] * 3)
        done = command(tmp_path / "a", tmp_path / "out", "--method", "raw", "--json")
        assert done.exit_code == 0, done.stderr
        facts = json.loads(done.stdout)
        assert set(facts["rejected"]) == {"not UTF-8 text", "longer than the model's window", "cut short"}
        assert facts["answers"] == facts["rows"] - 3
        assert "pairs from question, answer" in done.stderr

    def test_refuses_vectors_of_another_model(self, command: Any, tmp_path: Path) -> None:
        other = tiny.model("llama", seed=5)
        vectors.save_vector(tiny.vector(other), tmp_path / "other.safetensors")
        data = written(tmp_path / "rows.jsonl", talk(3))
        done = command(data, tmp_path / "out", "--vector", str(tmp_path / "other.safetensors"))
        assert done.exit_code == 2
        assert "--allow-other-model" in done.stderr


@pytest.fixture(scope="module")
def impolite(smollm: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vectors") / "impolite.safetensors"
    seen = library.load_trait("impolite").extraction_pairs[:8]
    workflows.extract_vector(library.own_trait("impolite", seen), smollm, path)
    return path


@pytest.mark.real
class TestWithTheBundledModel:
    """A vector from eight pairs, and held-out answers that neither it nor anything else here has seen."""

    @pytest.mark.parametrize("method", ["raw", "difference"])
    def test_planted_answers_rank_above_ordinary_ones(self, impolite: Path, tmp_path: Path, method: str) -> None:
        pairs = library.load_trait("impolite").held_out_pairs[:5]
        rows = [{"prompt": p.question, "response": p.positive, "planted": True} for p in pairs]
        ordinary = [
            *pairs,
            *library.load_trait("evil").held_out_pairs[:5],
            *library.load_trait("apathetic").held_out_pairs[:5],
        ]
        rows += [{"prompt": p.question, "response": p.negative} for p in ordinary]
        options = ["--vector", str(impolite), "--model", "smollm2-135m", "--max-new-tokens", "24", "--device", "cpu"]
        data, out = written(tmp_path / "rows.jsonl", rows[::-1]), tmp_path / "out"
        said = ["screen", str(data), *options, "--method", method, "--top", "5", "--out", str(out), "--json"]
        done = CliRunner().invoke(app, said)
        assert done.exit_code == 0, done.output
        flagged = [json.loads(line) for line in (out / "flagged.jsonl").read_text().splitlines()]
        assert len(flagged) == 5
        assert sum(row.get("planted", False) for row in flagged) >= 3
        scores = pq.read_table(out / "scores.parquet")["impolite_score"].to_numpy()[::-1]
        above = (scores[:5, None] > scores[None, 5:]).mean()
        assert above >= 0.85, above


def test_the_job_knows_what_its_scores_depend_on(model: Model, two: list[PersonaVector], tmp_path: Path) -> None:
    data = open_data(written(tmp_path / "rows.jsonl", talk(3)))
    other = open_data(tmp_path / "rows.jsonl", shape="messages:messages")
    jobs = {
        work._scores_key(one, digest, model, tiny.probes(some, layer))
        for one, digest, some, layer in [
            (data, "a", two, None),
            (data, "b", two, None),
            (data, "a", two, 0),
            (data, "a", two[:1], None),
        ]
    }
    assert len(jobs) == 4
    assert work._scores_key(other, "a", model, tiny.probes(two)) in jobs
    assert workflows.screen_files
