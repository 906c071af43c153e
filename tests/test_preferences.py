"""Preference pairs: how rows are read, what a pair's score is, what is written, and what a kill costs."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

import poise
import screening
from poise import vector as vectors
from poise.cli import app
from poise.data import RejectedRow
from poise.data.preference_data import PreferenceData, open_preferences
from poise.data.preference_rows import PreferencePair, detect_preference_shape, parse_preference_request, read_pair
from poise.detector import DetectorSettings, fit_detector
from poise.errors import InvalidArgument, InvalidData, InvalidRow, TooFewResponses
from poise.model import Model
from poise.model.chat_template import ask
from poise.report.screening import html_screening
from poise.screen import preference
from poise.screen.flagging import FlaggingRule
from poise.screen.pair_swap import swap_answers
from poise.screen.preference import PreferenceSettings, screen_preference_data
from poise.screen.summary import ScreeningSummary
from poise.trait import ExemplarPair
from poise.vector import PersonaVector
from screening import WORDS, files, states, written

model, two, folder, small_windows = screening.model, screening.two, screening.folder, screening.small_windows

Row = dict[str, Any]


def user(text: str) -> Row:
    return {"role": "user", "content": text}


def assistant(text: str) -> Row:
    return {"role": "assistant", "content": text}


def answer(i: int) -> str:
    return " ".join(WORDS[i % 20 : i % 20 + 4 + i % 9])


def pair_rows(n: int) -> list[Row]:
    return [{"prompt": f"What of {i // 2}?", "chosen": answer(3 * i), "rejected": answer(7 * i + 2)} for i in range(n)]


HISTORY = "\n\nHuman: Q\n\nAssistant: first\n\nHuman: Again?\n\nAssistant: "
P = [("user", "P")]
READ: dict[str, tuple[Row, list[tuple[str, str]]]] = {
    "text": ({"prompt": "P", "chosen": "C", "rejected": "R"}, P),
    "whole conversations": ({"chosen": [user("P"), assistant("C")], "rejected": [user("P"), assistant("R")]}, P),
    "whole conversations beside their prompt": (
        {"prompt": "P", "chosen": [user("P"), assistant("C")], "rejected": [user("P"), assistant("R")]},
        P,
    ),
    "TRL's explicit prompt": ({"prompt": [user("P")], "chosen": [assistant("C")], "rejected": [assistant("R")]}, P),
    "dialogues in one text": (
        {"chosen": HISTORY + "C", "rejected": HISTORY + "R"},
        [("user", "Q"), ("assistant", "first"), ("user", "Again?")],
    ),
    "a dialogue as the prompt": ({"prompt": "\n\nHuman: P\n\nAssistant:", "chosen": "C", "rejected": "R"}, P),
    "shared messages": ({"messages": [user("P")], "chosen": "C", "rejected": "R"}, P),
    "sharegpt": (
        {
            "conversations": [{"from": "human", "value": "P"}],
            "chosen": {"from": "gpt", "value": "C"},
            "rejected": {"from": "gpt", "value": "R"},
        },
        P,
    ),
    "a chat and a rejected answer": ({"messages": [user("P"), assistant("C")], "rejected_response": "R"}, P),
    "a chat and a rejected chat": (
        {"messages": [user("P"), assistant("C")], "rejected_messages": [user("P"), assistant("R")]},
        P,
    ),
    "OpenAI's": (
        {
            "input": {"messages": [user("P")]},
            "preferred_output": [assistant("C")],
            "non_preferred_output": [assistant("R")],
        },
        P,
    ),
    "an instruction with its input": (
        {"instruction": "P", "input": "X", "chosen": "C", "rejected": "R"},
        [("user", "P\n\nX")],
    ),
    "a system prompt": (
        {"system": "S", "question": "P", "chosen": "C", "rejected": "R"},
        [("system", "S"), ("user", "P")],
    ),
    "JSON in cells": (
        {
            "chosen": json.dumps([user("P"), assistant("C")]),
            "rejected": json.dumps([user("P"), assistant("R")]),
        },
        P,
    ),
    "no prompt": ({"chosen": "C", "rejected": "R"}, []),
    "an answer and a rejected one": ({"question": "P", "answer": "C", "rejected": "R"}, P),
}


class TestReading:
    @pytest.mark.parametrize("name", READ)
    def test_the_shared_prompt_and_both_answers_are_read_to_the_letter(self, name: str) -> None:
        row, prompt = READ[name]
        content = read_pair(detect_preference_shape([row]), row)
        assert [(m["role"], m["content"]) for m in content.prompt] == prompt
        assert [m["content"] for m in (*content.chosen, *content.rejected)] == ["C", "R"]

    def test_an_answer_that_looks_like_a_mark_is_an_answer(self) -> None:
        for chosen, rejected in (("no", "yes"), ("1", "0"), ("assistant", "true")):
            row = {"prompt": "P", "chosen": chosen, "rejected": rejected}
            content = read_pair(detect_preference_shape([row]), row)
            assert (content.chosen[0]["content"], content.rejected[0]["content"]) == (chosen, rejected)

    def test_answers_of_several_turns_begin_where_the_two_part(self) -> None:
        row = {
            "chosen": [user("P"), assistant("C"), user("And?"), assistant("C2")],
            "rejected": [user("P"), assistant("R")],
        }
        content = read_pair(detect_preference_shape([row]), row)
        assert [m["content"] for m in content.prompt] == ["P"]
        assert [m["content"] for m in content.chosen] == ["C", "And?", "C2"]

    def test_the_same_answer_twice_is_a_pair(self) -> None:
        row = {"prompt": "P", "chosen": "C", "rejected": "C"}
        content = read_pair(detect_preference_shape([row]), row)
        assert content.chosen == content.rejected
        assert len(content.prompt) == 1

    def test_columns_may_be_named(self) -> None:
        row = {"q": "P", "first": "x", "second": "y"}
        content = read_pair(detect_preference_shape([row], parse_preference_request("preference:q,second,first")), row)
        assert (content.chosen[0]["content"], content.rejected[0]["content"]) == ("y", "x")

    @pytest.mark.parametrize(
        ("row", "words"),
        [
            ({"prompt": "P", "completion": "x", "label": True}, ["label says which are good", '"chosen", "rejected"']),
            ({"q": "P", "one": "x", "two": "y"}, ["q (text)", "preference:PROMPT,CHOSEN,REJECTED"]),
            (
                {"prompt": "P", "chosen": [user("P"), assistant("C")], "rejected": "R"},
                ["chosen and rejected are not of one form"],
            ),
        ],
    )
    def test_what_is_no_pair_is_refused_in_one_sentence(self, row: Row, words: list[str]) -> None:
        with pytest.raises(InvalidData) as refusal:
            detect_preference_shape([row])
        assert all(word in str(refusal.value) for word in words)

    def test_answers_to_different_prompts_are_refused(self) -> None:
        row = {"chosen": [user("P"), assistant("C")], "rejected": [user("Q"), assistant("R")]}
        with pytest.raises(InvalidRow, match="different prompts: where the two part, turn 1"):
            read_pair(detect_preference_shape([row]), row)

    @pytest.mark.parametrize("shape", ["pairs:prompt,chosen", "preference:a", "preference:a,b,c,d", "preference:a,a"])
    def test_a_shape_of_another_kind_is_refused(self, shape: str) -> None:
        with pytest.raises(InvalidArgument, match="preference:PROMPT,CHOSEN,REJECTED"):
            parse_preference_request(shape)

    def test_rows_of_a_file_stream_with_their_places(self, tmp_path: Path) -> None:
        path = written(tmp_path / "a.jsonl", [*pair_rows(2), "{broken", {"prompt": "P", "chosen": "C"}])
        rows = list(open_preferences(path))
        assert [type(row) for row in rows] == [PreferencePair, PreferencePair, RejectedRow, RejectedRow]
        assert [row.index for row in rows] == [0, 1, 2, 3]
        assert "missing column" in str(getattr(rows[3], "reason", ""))

    @pytest.mark.parametrize("skip", range(7))
    def test_both_answers_are_conversations_from_any_row_on(self, tmp_path: Path, skip: int) -> None:
        data = open_preferences(written(tmp_path / "a.jsonl", pair_rows(3))).conversations()
        every = list(data)
        assert list(data.iterate(skip)) == every[skip:]
        assert len(every) == data.count() == 6


def labelled(prompt: str, text: str, good: object, **more: Any) -> Row:
    return {"prompt": prompt, "completion": text, "label": good, **more}


class TestLabelledAnswers:
    ROWS = (
        labelled("P", "good", True, score=3, source="s"),
        labelled("Q", "lonely", True),
        labelled("P", "better", True),
        labelled("P", "bad", False, score=1, source="s"),
        labelled("P", "worse", False),
    )

    def test_of_one_prompt_are_joined_in_order_and_the_others_are_kept(self, tmp_path: Path) -> None:
        first, lonely, second = open_preferences(written(tmp_path / "a.jsonl", self.ROWS))
        assert isinstance(first, PreferencePair)
        assert first.raw == {
            "prompt": "P", "score_chosen": 3, "score_rejected": 1, "source": "s", "chosen": "good", "rejected": "bad",
        }  # fmt: skip
        assert isinstance(second, PreferencePair)
        assert (second.content.chosen[0]["content"], second.content.rejected[0]["content"]) == ("better", "worse")
        assert isinstance(lonely, RejectedRow)
        assert (lonely.reason, lonely.line) == ("no partner: there is no bad answer to its prompt", 2)
        assert json.loads(lonely.raw if isinstance(lonely.raw, bytes) else b"") == self.ROWS[1]

    @pytest.mark.parametrize(("good", "bad"), [(1, 0), ("yes", "no"), ("desirable", "undesirable"), ("1.0", "-1.0")])
    def test_may_be_labelled_in_any_words(self, tmp_path: Path, good: object, bad: object) -> None:
        (pair,) = open_preferences(
            written(tmp_path / "a.jsonl", [labelled("P", "worse", bad), labelled("P", "better", good)])
        )
        assert isinstance(pair, PreferencePair)
        assert pair.content.chosen[0]["content"] == "better"

    def test_may_be_chats(self, tmp_path: Path) -> None:
        rows = [{"messages": [user("P"), assistant(text)], "label": text == "C"} for text in ("R", "C")]
        (pair,) = open_preferences(written(tmp_path / "a.jsonl", rows))
        assert isinstance(pair, PreferencePair)
        assert [m["content"] for m in (*pair.content.prompt, *pair.content.chosen)] == ["P", "C"]

    def test_under_another_system_prompt_are_no_pair(self, tmp_path: Path) -> None:
        rows = [labelled("P", "good", True, system="S"), labelled("P", "bad", False, system="T")]
        with pytest.raises(InvalidData, match="label says which are good, and no prompt has a good and a bad one"):
            open_preferences(written(tmp_path / "a.jsonl", rows))

    def test_are_written_as_pairs_and_lonely_ones_as_they_came(
        self, model: Model, two: list[PersonaVector], tmp_path: Path
    ) -> None:
        path = written(tmp_path / "a.jsonl", self.ROWS)
        done = screened(open_preferences(path), model, two, tmp_path / "out", broken=0.5, fix="swap")
        assert (done.rows, done.units, done.rejected) == (3, 2, {"no partner": 1})
        lines = [(tmp_path / "out" / f"{stem}.jsonl").read_text() for stem in ("clean", "flagged", "rejected_rows")]
        assert sorted(json.loads(line)["chosen"] for line in (lines[0] + lines[1]).splitlines()) == ["better", "good"]
        assert json.loads(lines[2]) == self.ROWS[1]


def screened(
    data: PreferenceData, model: Model, two: Sequence[PersonaVector], out: Path, **settings: Any
) -> ScreeningSummary:
    normal = settings.pop("normal", None)
    return screen_preference_data(data, model, two, out, PreferenceSettings(**settings), normal=normal)


def test_pairs_that_change_meanwhile_leave_no_summary(
    model: Model, two: list[PersonaVector], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, write = written(tmp_path / "pairs.jsonl", pair_rows(12)), preference.write_pair_files

    def write_late(*arguments: Any, **options: Any) -> Any:
        path.write_text(path.read_text() + path.read_text())
        return write(*arguments, **options)

    monkeypatch.setattr(preference, "write_pair_files", write_late)
    with pytest.raises(InvalidData, match=r"^pairs\.jsonl changed while it was screened"):
        screened(open_preferences(path), model, two, tmp_path / "out")
    assert not (tmp_path / "out" / "summary.json").exists()


def opposed_rows(model: Model, vector: Sequence[PersonaVector]) -> list[Row]:
    """Pairs that all prefer the absence of the trait."""
    rows = pair_rows(40)
    scores = [next(iter(pair.scores.values())) for pair in poise.screen_preferences(rows, vector, model)]
    return [
        row if score < 0 else {**row, "chosen": row["rejected"], "rejected": row["chosen"]}
        for row, score in zip(rows, scores, strict=True)
    ]


def table(out: Path) -> list[Row]:
    rows: list[Row] = pq.read_table(out / "scores.parquet").to_pylist()
    return rows


class TestScores:
    def test_are_the_difference_of_mean_projections_of_the_two_answers(
        self, model: Model, two: list[PersonaVector], tmp_path: Path
    ) -> None:
        rows = pair_rows(5)
        screened(open_preferences(written(tmp_path / "a.jsonl", rows)), model, two, tmp_path / "out")
        for row, line in zip(rows, table(tmp_path / "out"), strict=True):
            for vector in two:
                place = vector.at("read")
                direction = place.probe.direction
                readings = []
                for side in ("chosen", "rejected"):
                    text = model.encode(ask(row["prompt"]), row[side])
                    hidden = states(model, text.ids, place.probe.layer)[text.start : text.end]
                    readings.append(float((hidden @ direction).mean()))
                    assert line[f"{side}_tokens"] == text.end - text.start
                assert line[f"{vector.name}_chosen"] == pytest.approx(readings[0], abs=1e-4)
                assert line[f"{vector.name}_score"] == pytest.approx(readings[0] - readings[1], abs=1e-4)

    def test_count_no_answer_of_the_shared_prompt(self, model: Model, two: list[PersonaVector], tmp_path: Path) -> None:
        rows = []
        for first in ("Once and again", "before upon"):
            history = [user("P"), assistant(first), user("And?")]
            rows.append({"chosen": [*history, assistant(answer(1))], "rejected": [*history, assistant(answer(2))]})
        screened(open_preferences(written(tmp_path / "a.jsonl", rows)), model, two, tmp_path / "out")
        one, other = table(tmp_path / "out")
        assert (one["chosen_tokens"], one["rejected_tokens"]) == (other["chosen_tokens"], other["rejected_tokens"])

    def test_of_the_same_answer_twice_is_zero(self, model: Model, two: list[PersonaVector], tmp_path: Path) -> None:
        rows = [*pair_rows(3), {"prompt": "P", "chosen": "Once upon", "rejected": "Once upon"}]
        done = screened(open_preferences(written(tmp_path / "a.jsonl", rows)), model, two, tmp_path / "out")
        assert table(tmp_path / "out")[3]["grumpy_score"] == 0
        assert "1 pair has the same answer twice, which scores 0." in done.notes

    def test_turn_round_with_the_answers(self, model: Model, two: list[PersonaVector], tmp_path: Path) -> None:
        rows = pair_rows(6)
        turned = [{"prompt": r["prompt"], "chosen": r["rejected"], "rejected": r["chosen"]} for r in rows]
        first = screened(open_preferences(written(tmp_path / "a.jsonl", rows)), model, two, tmp_path / "a")
        second = screened(open_preferences(written(tmp_path / "b.jsonl", turned)), model, two, tmp_path / "b")
        assert first.traits[0].mean.value == pytest.approx(-float(second.traits[0].mean.value or 0), rel=1e-5)

    def test_of_answers_of_several_turns_are_means_over_all_their_tokens(
        self, model: Model, two: list[PersonaVector], tmp_path: Path
    ) -> None:
        rows = [
            {
                "chosen": [user("P"), assistant("Once"), user("And?"), assistant("upon a harbour before")],
                "rejected": [user("P"), assistant("left")],
            }
        ] * 2
        screened(open_preferences(written(tmp_path / "a.jsonl", rows)), model, two, tmp_path / "out")
        place = two[0].at("read")
        first = model.encode(ask("P"), "Once")
        second = model.encode([user("P"), assistant("Once"), user("And?")], "upon a harbour before")
        tokens = [
            float(value)
            for text in (first, second)
            for value in states(model, text.ids, place.probe.layer)[text.start : text.end] @ place.probe.direction
        ]
        line = table(tmp_path / "out")[0]
        assert line["chosen_tokens"] == len(tokens)
        assert line["grumpy_chosen"] == pytest.approx(sum(tokens) / len(tokens), abs=1e-4)

    def test_are_read_by_a_vectors_detector_where_it_has_one(
        self, model: Model, two: list[PersonaVector], tmp_path: Path
    ) -> None:
        exemplars = [
            ExemplarPair.model_validate({"question": f"Is it {i}?", "with": f"{i}, you fool!", "without": f"{i}."})
            for i in range(24)
        ]
        detected = fit_detector(two[0], model, pairs=exemplars, settings=DetectorSettings(layers=(2,)))
        data = open_preferences(written(tmp_path / "a.jsonl", pair_rows(4)))
        done = screened(data, model, [detected], tmp_path / "out")
        place = detected.at("read")
        assert place.detector
        assert done.traits[0].detector == place.detector.facts.kind
        assert "the detector's mean difference" in done.traits[0].predicts
        row, line = pair_rows(4)[0], table(tmp_path / "out")[0]
        text = model.encode(ask(row["prompt"]), row["chosen"])
        hidden = states(model, text.ids, 2)[text.start : text.end]
        assert line["grumpy_chosen"] == pytest.approx(float((hidden @ place.probe.direction).mean()), abs=1e-4)
        plain = screened(data, model, [detected.without_detector()], tmp_path / "plain")
        assert plain.traits[0].detector == ""

    def test_means_have_their_interval_over_prompts(
        self, model: Model, two: list[PersonaVector], tmp_path: Path
    ) -> None:
        done = screened(open_preferences(written(tmp_path / "a.jsonl", pair_rows(12))), model, two, tmp_path / "out")
        scores = [line["grumpy_score"] for line in table(tmp_path / "out")]
        trait = done.traits[0]
        assert (trait.units, trait.mean.n) == (12, 6)
        assert trait.mean.value == pytest.approx(sum(scores) / 12, abs=1e-4)

    def test_from_python_are_those_of_the_files(self, model: Model, two: list[PersonaVector], tmp_path: Path) -> None:
        rows = [*pair_rows(11), {"prompt": "P", "chosen": "C", "rejected": ""}]
        screened(open_preferences(written(tmp_path / "a.jsonl", rows)), model, two, tmp_path / "out", broken=1)
        scored = list(poise.screen_preferences(iter(rows), two, model))
        assert [pair.index for pair in scored] == list(range(12))
        for pair, line in zip(scored, table(tmp_path / "out"), strict=False):
            assert pair.scores["gloomy"] == pytest.approx(line["gloomy_score"], abs=1e-5)
            assert pair.rejected["gloomy"] == pytest.approx(line["gloomy_rejected"], abs=1e-5)
        assert "empty turn" in scored[-1].unread
        assert math.isnan(scored[-1].scores["grumpy"])
        opened = poise.screen_preferences(open_preferences(tmp_path / "a.jsonl"), two, model)
        assert [pair.scores["grumpy"] for pair in opened][:11] == pytest.approx(
            [pair.scores["grumpy"] for pair in scored][:11], abs=1e-6
        )


def broken_rows(path: Path) -> Path:
    rows: list[Any] = pair_rows(22)
    rows[3:3] = ["{broken", {"prompt": "P", "chosen": "C"}]
    rows[9:9] = [{"prompt": "P", "chosen": "word " * 900, "rejected": "Once"}]
    return written(path, rows)


class TestFiles:
    def test_every_row_is_in_one_file_as_it_came(self, model: Model, two: list[PersonaVector], tmp_path: Path) -> None:
        path, out = broken_rows(tmp_path / "a.jsonl"), tmp_path / "out"
        done = screened(open_preferences(path), model, two, out, rule=FlaggingRule(top=2))
        lines = path.read_bytes().splitlines()
        parted = [(out / f"{stem}.jsonl").read_bytes().splitlines() for stem in ("clean", "flagged", "rejected_rows")]
        assert sorted(line for part in parted for line in part) == sorted(lines)
        assert parted[2] == [lines[3], lines[4], lines[9]]
        assert [line["index"] for line in map(json.loads, (out / "rejected.jsonl").read_text().splitlines())] == [
            3,
            4,
            9,
        ]
        assert done.rejected == {"broken JSON": 1, "longer than the model's window": 1, "missing column": 1}
        assert done.flagged_rows == len(parted[1]) <= 4
        flagged = {line["row"] for line in table(out) if line["grumpy_flagged"] or line["gloomy_flagged"]}
        assert flagged == {lines.index(line) for line in parted[1]}

    def test_drop_leaves_flagged_pairs_out(self, model: Model, two: list[PersonaVector], tmp_path: Path) -> None:
        path, out = broken_rows(tmp_path / "a.jsonl"), tmp_path / "out"
        screened(open_preferences(path), model, two, out, rule=FlaggingRule(top=2), fix="drop")
        assert (out / "fixed.jsonl").read_bytes() == (out / "clean.jsonl").read_bytes()

    def test_swap_turns_flagged_pairs_round_in_place(
        self, model: Model, two: list[PersonaVector], tmp_path: Path
    ) -> None:
        path, out = written(tmp_path / "a.jsonl", pair_rows(12)), tmp_path / "out"
        done = screened(open_preferences(path), model, two, out, rule=FlaggingRule(top=2), fix="swap")
        fixed = [json.loads(line) for line in (out / "fixed.jsonl").read_text().splitlines()]
        flagged = [line["grumpy_flagged"] or line["gloomy_flagged"] for line in table(out)]
        for row, is_flagged, new in zip(pair_rows(12), flagged, fixed, strict=True):
            turned = {"prompt": row["prompt"], "chosen": row["rejected"], "rejected": row["chosen"]}
            assert new == (turned if is_flagged else row)
        assert f"fixed.jsonl: {sum(flagged)} flagged pairs have their answers swapped" in done.notes

    @pytest.mark.parametrize("fix", ["drop", "swap"])
    @pytest.mark.parametrize("rule", [FlaggingRule(), FlaggingRule(top=100_000), FlaggingRule(above=0)])
    def test_pairs_that_do_not_prefer_the_trait_are_never_flagged(
        self, rule: FlaggingRule, fix: Any, model: Model, two: list[PersonaVector], tmp_path: Path
    ) -> None:
        rows, out = opposed_rows(model, two[:1]), tmp_path / "out"
        path = written(tmp_path / "a.jsonl", rows)
        done = screened(open_preferences(path), model, two[:1], out, rule=rule, fix=fix)
        assert all(line["grumpy_score"] < 0 for line in table(out))
        assert (done.flagged_rows, done.traits[0].flagged, done.traits[0].threshold) == (0, 0, 0.0)
        assert (out / "fixed.jsonl").read_bytes() == (out / "clean.jsonl").read_bytes() == path.read_bytes()
        reached = {None: 1, 100_000: len(rows)}[rule.top] if rule.above is None else 0
        spared = [note for note in done.notes if note.startswith(f"grumpy: {reached} of the pairs that the rule reach")]
        assert len(spared) == (reached > 0)

    def test_only_pairs_above_0_are_flagged_whatever_number_is_asked_for(
        self, model: Model, two: list[PersonaVector], tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        data = open_preferences(written(tmp_path / "a.jsonl", pair_rows(24)))
        done = screened(data, model, two, out, rule=FlaggingRule(top=100_000), fix="drop")
        for line in table(out):
            assert line["grumpy_flagged"] == (line["grumpy_score"] > 0)
            assert line["gloomy_flagged"] == (line["gloomy_score"] > 0)
        below = sum(line["gloomy_score"] <= 0 for line in table(out))
        assert 0 < below < 24
        assert (
            f"gloomy: {below} of the pairs that the rule reaches score 0 or less, which is no preference for the"
            in (" ".join(done.notes))
        )
        assert done.traits[1].rule.endswith("; where that is below 0, only scores above 0")

    def test_pairs_of_equal_answers_score_0_and_are_not_flagged(
        self, model: Model, two: list[PersonaVector], tmp_path: Path
    ) -> None:
        rows = [{"prompt": f"P {i}", "chosen": answer(i), "rejected": answer(i)} for i in range(30)]
        done = screened(open_preferences(written(tmp_path / "a.jsonl", rows)), model, two, tmp_path / "out", fix="swap")
        assert {line["grumpy_score"] for line in table(tmp_path / "out")} == {0.0}
        assert (done.flagged_rows, done.traits[0].threshold) == (0, 0.0)
        assert [pair.scores["grumpy"] for pair in poise.screen_preferences(rows, two, model)] == [0.0] * 30

    @pytest.mark.parametrize("per", ["row", "answer"])
    def test_a_rate_set_below_0_is_raised_to_0(
        self, per: Any, model: Model, two: list[PersonaVector], tmp_path: Path
    ) -> None:
        normal = open_preferences(written(tmp_path / "normal.jsonl", opposed_rows(model, two[:1])))
        data = open_preferences(written(tmp_path / "a.jsonl", pair_rows(24)))
        rule = FlaggingRule(rate=0.1, rate_per=per)
        done = screened(data, model, two[:1], tmp_path / "out", rule=rule, normal=normal)
        for line in table(tmp_path / "out"):
            assert line["grumpy_flagged"] == (line["grumpy_score"] > 0)
            assert ("above 0, which normal" in (line["why"] or "")) == line["grumpy_flagged"]
        assert done.rate is not None
        assert (done.rate.low, done.rate.normal_rows_reaching) == (0, 0)
        assert done.rate.expected == (0 if per == "row" else None)
        assert {band.threshold for band in done.traits[0].bands} == {0}

    def test_a_threshold_below_0_is_refused(self) -> None:
        with pytest.raises(InvalidArgument, match="`threshold` is -1; a pair that scores 0 or less does not prefer"):
            PreferenceSettings(rule=FlaggingRule(above=-1))

    def test_parquet_stays_parquet(self, model: Model, two: list[PersonaVector], tmp_path: Path) -> None:
        source = pa.Table.from_pylist(pair_rows(12))
        pq.write_table(source, tmp_path / "a.parquet")
        out = tmp_path / "out"
        screened(open_preferences(tmp_path / "a.parquet"), model, two, out, rule=FlaggingRule(top=2), fix="swap")
        fixed = pq.read_table(out / "fixed.parquet")
        assert fixed.schema.equals(source.schema)
        assert fixed.num_rows == 12
        assert pq.read_table(out / "clean.parquet").num_rows + pq.read_table(out / "flagged.parquet").num_rows == 12

    def test_a_rate_is_set_by_normal_pairs(self, model: Model, two: list[PersonaVector], tmp_path: Path) -> None:
        data = open_preferences(written(tmp_path / "a.jsonl", pair_rows(40)))
        rule = FlaggingRule(rate=0.1)
        done = screened(data, model, two, tmp_path / "out", rule=rule, normal=data)
        assert done.rate is not None
        assert (done.rate.unit, done.rate.normal_rows, done.rate.normal_rows_reaching) == ("prompt", 20, 2)
        assert done.rate.expected == pytest.approx(2 / 21, rel=1e-3)
        assert "normal prompts are flagged by any of 2 traits at a rate of 0.1, whatever number of pairs" in (
            done.traits[0].rule
        )
        assert done.flagged_rows <= 4
        with pytest.raises(InvalidArgument, match="needs normal preference pairs"):
            screened(data, model, two, tmp_path / "out", rule=rule)
        few = open_preferences(written(tmp_path / "few.jsonl", pair_rows(4)))
        with pytest.raises(TooFewResponses):
            screened(data, model, two, tmp_path / "out", rule=rule, normal=few)

    @pytest.mark.parametrize("per", ["row", "answer"])
    def test_pairs_of_one_prompt_are_one_of_the_rate(
        self, per: Any, model: Model, two: list[PersonaVector], tmp_path: Path
    ) -> None:
        """150 pairs of 10 prompts passed for 150 independent rows."""
        rows = [{**row, "prompt": f"What of {i % 10}?"} for i, row in enumerate(pair_rows(40))]
        alike = open_preferences(written(tmp_path / "alike.jsonl", rows))
        rule = FlaggingRule(rate=0.1, rate_per=per)
        with pytest.raises(TooFewResponses, match="needs 11 normal answers from as many prompts, and there are 10"):
            screened(alike, model, two, tmp_path / "out", rule=rule, normal=alike)

    def test_too_many_broken_rows_stop_it_before_the_model_reads(
        self, model: Model, two: list[PersonaVector], tmp_path: Path
    ) -> None:
        path = written(tmp_path / "a.jsonl", [*pair_rows(80), *["{broken"] * 40])
        with pytest.raises(InvalidData, match="more than the 20%"):
            screened(open_preferences(path), model, two, tmp_path / "out")
        assert not list((tmp_path / "out").glob(".run/*/part-*"))

    def test_the_page_shows_both_answers_of_a_pair(
        self, model: Model, two: list[PersonaVector], tmp_path: Path
    ) -> None:
        done = screened(open_preferences(written(tmp_path / "a.jsonl", pair_rows(12))), model, two, tmp_path / "out")
        example = done.traits[0].top[0]
        row = pair_rows(12)[example.row]
        assert "".join(text for text, _ in example.pieces) == row["chosen"]
        assert "".join(text for text, _ in example.rejected) == row["rejected"]
        assert example.readings is not None
        assert example.score == pytest.approx(example.readings[0] - example.readings[1], abs=1e-3)
        page = html_screening(done)
        assert "The chosen answer" in page
        assert "The rejected answer" in page
        assert "12 of 12 pairs were scored" in page

    def test_another_method_afterwards_reads_the_folder_anew(
        self, model: Model, two: list[PersonaVector], tmp_path: Path
    ) -> None:
        data, out = open_preferences(written(tmp_path / "a.jsonl", pair_rows(12))), tmp_path / "out"
        screened(data, model, two, out, fix="swap")
        before = files(out)
        screened(data, model, two, out, fix="drop", rule=FlaggingRule(top=3))
        screened(data, model, two, out, fix="swap")
        assert files(out) == before
        screened(data, model, two, out)
        assert not (out / "fixed.jsonl").exists()


SWAPPED: dict[str, tuple[Row, Row]] = {
    "scores go with their answers": (
        {"prompt": "P", "chosen": "C", "rejected": "R", "score_chosen": 9, "score_rejected": 2, "chosen_rating": 5},
        {"prompt": "P", "chosen": "R", "rejected": "C", "score_chosen": 2, "score_rejected": 9, "chosen_rating": 5},
    ),
    "a chat and a rejected answer": (
        {"messages": [user("P"), assistant("C")], "rejected_response": "R"},
        {"messages": [user("P"), assistant("R")], "rejected_response": "C"},
    ),
    "dialogues": (
        {"chosen": HISTORY + "C", "rejected": HISTORY + "R"},
        {"chosen": HISTORY + "R", "rejected": HISTORY + "C"},
    ),
}


@pytest.mark.parametrize("name", SWAPPED)
def test_answers_are_swapped_in_the_rows_own_shape(name: str) -> None:
    row, expected = SWAPPED[name]
    assert swap_answers(detect_preference_shape([row]), row) == expected


def test_what_would_not_read_back_is_not_swapped() -> None:
    row = {"messages": [user("P"), {**assistant("C"), "thought": "hm"}], "rejected_response": "R"}
    with pytest.raises(InvalidRow, match="cannot be swapped"):
        swap_answers(detect_preference_shape([row]), row)


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from poise import vector
from poise.data.preference_data import open_preferences
from poise.model import load_model
from poise.screen import shards
from poise.screen.preference import PreferenceSettings, screen_preference_data
from poise.screen import preference
from poise.screen.flagging import FlaggingRule
shards.ROWS_PER_SHARD = 4
home, left = Path(sys.argv[1]), int(sys.argv[2])
save = shards.ShardStore.save
def save_or_die(self, window, part):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    save(self, window, part)
shards.ShardStore.save = save_or_die
model = load_model(str(home / "model"), dtype=torch.float32, device="cpu")
paths = sorted(home.glob("*.safetensors"))
data = open_preferences(home / "a.jsonl")
plan = PreferenceSettings(rule=FlaggingRule(top=3), fix="swap")
screen_preference_data(data, model, [vector.load_vector(path) for path in paths], home / sys.argv[3], plan)
"""


@pytest.mark.slow
def test_killed_between_any_windows_it_ends_with_the_same_bytes(
    two: list[PersonaVector], folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "model").symlink_to(folder)
    broken_rows(tmp_path / "a.jsonl")
    for vector in two:
        vectors.save_vector(vector, tmp_path / f"{vector.name}.safetensors")

    def run(left: int, name: str) -> int:
        program = [sys.executable, "-c", KILLED, str(tmp_path), str(left), name]
        environment = os.environ | {"TOKENIZERS_PARALLELISM": "false"}
        return subprocess.run(program, capture_output=True, env=environment).returncode

    assert run(-1, "whole") == 0
    assert [run(2, "killed"), run(5, "killed"), run(-1, "killed")] == [-9, -9, 0]
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


class TestCommand:
    @pytest.fixture
    def home(self, two: list[PersonaVector], folder: Path, tmp_path: Path) -> Path:
        (tmp_path / "model").symlink_to(folder)
        vectors.save_vector(two[0], tmp_path / "v.safetensors")
        written(tmp_path / "pairs.jsonl", pair_rows(12))
        return tmp_path

    def screen(self, home: Path, *arguments: str, method: str = "preference") -> Any:
        return CliRunner().invoke(
            app,
            [
                *("screen", str(home / "pairs.jsonl"), "--vector", str(home / "v.safetensors")),
                *("--model", str(home / "model"), "--method", method, "--out", str(home / "out"), *arguments),
            ],
        )

    def test_writes_what_it_says(self, home: Path) -> None:
        done = self.screen(home, "--top", "2", "--fix", "swap", "--json")
        assert done.exit_code == 0, done.output
        facts = json.loads(done.stdout)
        assert (facts["method"], facts["pairs"], facts["traits"][0]["units"]) == ("preference", 12, 12)
        assert facts["traits"][0]["mean"]["n"] == 6
        assert set(facts["files"]) >= {"scores", "clean", "flagged", "fixed", "rejected", "summary", "report"}
        assert all(Path(path).exists() for path in facts["files"].values())

    def test_shows_pairs_and_stops(self, home: Path) -> None:
        done = self.screen(home, "--show", "1")
        assert done.exit_code == 0, done.output
        row = pair_rows(1)[0]
        assert f"chosen, scored:\n    {row['chosen']}\nrejected, scored:\n    {row['rejected']}\n" in done.stdout
        assert "What of 0?" in done.stdout
        assert not (home / "out").exists()
        shown = json.loads(self.screen(home, "--show", "1", "--json").stdout)
        assert "".join(shown["pairs"][0]["tokens"]["rejected"]) == row["rejected"]

    @pytest.mark.parametrize(
        ("arguments", "method", "words"),
        [
            (["--judge", "exemplars"], "preference", "--judge scores single answers"),
            (["--estimate"], "preference", "--estimate compares methods for single answers"),
            (["--fix"], "preference", "--fix takes drop or swap"),
            (["--fix", "swap"], "raw", "--fix swap is for --method preference"),
            (["--rate", "0.1"], "preference", "--rate is 0.1 and needs normal preference pairs"),
            (["--shape", "pairs:prompt,chosen"], "preference", "preference:PROMPT,CHOSEN,REJECTED"),
        ],
    )
    def test_refuses_what_it_has_no_use_for(self, home: Path, arguments: list[str], method: str, words: str) -> None:
        done = self.screen(home, *arguments, method=method)
        assert done.exit_code == 2
        assert words in done.stderr

    def test_other_methods_name_this_one(self, home: Path) -> None:
        done = self.screen(home, method="raw")
        assert done.exit_code == 2
        assert "preference data: chosen and rejected are two answers to one prompt" in done.stderr


def test_torch_is_seeded_by_nothing_here(model: Model, two: list[PersonaVector]) -> None:
    before = torch.random.get_rng_state()
    list(poise.screen_preferences(pair_rows(2), two, model))
    assert torch.equal(torch.random.get_rng_state(), before)
