"""Rows that say again what others say buy no promise: a text counts once, in screening's normal data and in alarms."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats as reference

import screening
from poise.data import Conversation, data_from_rows, describe_repeats, repeated_conversations
from poise.errors import InvalidArgument, SaveFailed, TooFewResponses
from poise.judge import Judgement
from poise.model import Model
from poise.monitor.calibrate import CalibrationSettings, calibrate_alarms
from poise.screen.flagging import FlaggingRule
from poise.screen.judge_cascade import draw_strata, estimate_cascade
from poise.screen.judge_review import review_answers
from poise.screen.scores import AnswerScores
from poise.screen.summary import PromisedRate
from poise.storage.journal import Journal
from poise.vector import PersonaVector
from screening import run, talk, written

model, two = screening.model, screening.two


def chat(*texts: str, system: str = "") -> dict[str, Any]:
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return {"messages": [{"role": "system", "content": system}] * bool(system) + turns}


def repeats_of(*rows: dict[str, Any]) -> dict[int, int]:
    return repeated_conversations(row for row in data_from_rows(rows) if isinstance(row, Conversation))


def test_equal_conversations_and_beginnings_of_others_are_repeats() -> None:
    assert repeats_of(
        chat("Hi", "Hello"),
        chat("Hi", "Hello", "And?", "Well"),
        chat("Hi", "Hello", "Why?", "So", "Then?", "Now"),
        chat("Hi", "Hello", "And?", "Well"),
        chat("Hi ", "  Hello\n"),
        chat("Hi", "Hallo"),
        chat("Hi", "Hello", system="Be brief."),
        chat("Hi", "Hello", "Bye"),
    ) == {0: 2, 3: 1, 4: 2, 7: 2}


def test_whatever_else_a_row_has_is_not_its_text() -> None:
    rows = [chat("Hi", "Hello") | {"id": i} for i in range(3)]
    assert repeats_of(*rows) == {1: 0, 2: 0}
    rows[2]["tools"] = [{"type": "function", "function": {"name": "look_up", "parameters": {}}}]
    assert repeats_of(*rows) == {1: 0}


def test_repeats_are_counted_in_words() -> None:
    assert describe_repeats(0, 9) == ""
    assert describe_repeats(1, 9) == "1 of 9 rows repeats another one or the beginning of one, and counts no further"
    assert describe_repeats(1200, 2400) == (
        "1,200 of 2,400 rows repeat other ones or their beginnings, and count no further"
    )


class TestScreening:
    def test_refuses_a_rate_that_the_distinct_rows_cannot_promise(
        self, model: Model, two: list[PersonaVector], tmp_path: Path
    ) -> None:
        normal = written(tmp_path / "normal.jsonl", [*talk(20), *talk(20)])
        with pytest.raises(TooFewResponses, match=r"there are 20 \(20 more repeat them or their beginnings\)"):
            run(normal, model, two, tmp_path / "out", rule=FlaggingRule(rate=0.05), normal=normal)

    @pytest.mark.parametrize("per", ["row", "answer"])
    def test_is_that_of_the_distinct_rows(
        self, per: Any, model: Model, two: list[PersonaVector], tmp_path: Path
    ) -> None:
        rows = talk(60, turns=2)
        data, rule = written(tmp_path / "data.jsonl", talk(20, first=200)), FlaggingRule(rate=0.1, rate_per=per)
        once = run(data, model, two, tmp_path / "a", rule=rule, normal=written(tmp_path / "once.jsonl", rows))
        begun = [{**row, "messages": row["messages"][:2]} for row in rows[:5]]
        again = written(tmp_path / "again.jsonl", [*rows, *rows, *begun])
        twice = run(data, model, two, tmp_path / "b", rule=rule, normal=again)
        assert once.rate is not None
        assert twice.rate == once.rate.model_copy(update={"normal_rows_repeated": 65})
        assert [trait.rule for trait in twice.traits] == [trait.rule for trait in once.traits]
        assert [trait.normal for trait in twice.traits] == [trait.normal for trait in once.traits]
        assert "Normal data: 65 of 125 rows repeat other ones or their beginnings, and count no further." in twice.notes


def test_the_rule_and_its_figures_have_one_source() -> None:
    """Fewer blocks than traits: ``summary.json`` and the page counted all 244 rows where half of them set it."""
    scores = np.random.default_rng(0).normal(size=(244, 3)).astype(np.float32)
    normal = AnswerScores(
        index=np.arange(0, 488, 2),
        turn=np.zeros(244, np.int32),
        tokens=np.full(244, 9, np.int32),
        cut=np.zeros(244, np.bool_),
        scores=scores,
        unread={},
        rejected=frozenset(),
        kinds=Counter(),
        rows=244,
    )
    thresholds = FlaggingRule(rate=0.01).thresholds_for(normal, normal)
    low, high = reference.beta(1, 122).ppf([0.025, 0.975])
    assert thresholds.promise == PromisedRate(
        rate=0.01,
        per="row",
        expected=0.00813,
        low=float(f"{low:.4g}"),
        high=float(f"{high:.4g}"),
        normal_rows=122,
        normal_rows_reaching=1,
    )
    assert {cut.rule for cut in thresholds.cuts} == {
        "normal rows are flagged by any of 3 traits at a rate of 0.01, whatever number of answers they have: set on "
        "122 normal rows (122 more measured the traits' spreads), all lengths together, which makes it 0.00813 on "
        "average and puts the true rate between 0.000208 and 0.0298 (95 %)"
    }


class TestAlarms:
    def settings(self, rate: float, by: str | None = None) -> CalibrationSettings:
        return CalibrationSettings(rates=(rate,), read_given_answers=True, by=by)

    def test_are_refused_where_only_repeats_would_do(self, model: Model, two: list[PersonaVector]) -> None:
        with pytest.raises(TooFewResponses, match=r"needs 23 .* there are 20 \(20 more repeat them"):
            calibrate_alarms([*talk(20), *talk(20)], model, two, self.settings(0.05))

    def test_are_those_of_the_distinct_rows(self, model: Model, two: list[PersonaVector]) -> None:
        rows = talk(110, turns=2)
        once = calibrate_alarms(rows, model, two, self.settings(0.1))
        begun = [{**row, "messages": row["messages"][:2]} for row in rows]
        twice = calibrate_alarms([*rows, *rows, *begun], model, two, self.settings(0.1))
        for a, b in zip(once.vectors, twice.vectors, strict=True):
            assert b.header.drift == a.header.drift is not None
            assert [one.threshold for one in b.header.alarms] == [one.threshold for one in a.header.alarms]
            assert {one.n_conversations for one in b.header.alarms} == {110}
        assert twice.reference.left_out == {"repeat another conversation or its beginning": 220}

    def test_count_a_text_of_two_topics_once_and_read_it_for_each(self, model: Model, two: list[PersonaVector]) -> None:
        rows = [row | {"topic": topic} for topic in ("a", "b") for row in talk(30)]
        done = calibrate_alarms(rows, model, two, self.settings(0.1, by="topic"))
        counts = {one.topic: one.n_conversations for one in done.vectors[0].header.alarms}
        assert counts == {None: 30, "a": 30, "b": 30}

    def test_of_own_answers_count_prompts_before_anything_is_generated(
        self, model: Model, two: list[PersonaVector]
    ) -> None:
        rows = [chat("What is it?")] * 40
        with pytest.raises(TooFewResponses, match=r"there are 1 \(39 more repeat"):
            calibrate_alarms(rows, model, two, CalibrationSettings(rates=(0.1,)))


class TestJudges:
    def test_are_asked_of_equal_answers_once_within_a_batch_too(self, two: list[PersonaVector]) -> None:
        seen: list[tuple[str, str]] = []

        class Counting:
            name = "counting"

            def __call__(self, questions: Any, answers: Any) -> list[Judgement]:
                seen.extend(zip(questions, answers, strict=True))
                return [Judgement(score=float(len(answer))) for answer in answers]

        texts = ["Aye", "No", "Aye", "Aye", "Never", "No"]
        answers = {
            i: SimpleNamespace(question="Well?", turn=SimpleNamespace(text=text)) for i, text in enumerate(texts)
        }
        review = review_answers(Counting(), two[0], answers, Journal(None))  # type: ignore[arg-type]
        assert seen == [("Well?", "Aye"), ("Well?", "No"), ("Well?", "Never")]
        assert review.scores == {0: 3, 1: 2, 2: 3, 3: 3, 4: 5, 5: 2}

    def test_budget_buys_different_texts(self) -> None:
        """Fifty copies of the highest answer took the whole of the top."""
        above = np.concatenate([np.full(50, 9.0), -np.arange(1.0, 101.0)])
        texts = np.concatenate([np.zeros(50, np.int64), np.arange(1, 101)])
        flagged = above > -20
        strata = draw_strata(above, flagged, 40, seed=(0, 0), texts=texts)
        top = strata[0]
        assert len(top.places) == len(top.drawn) == 69
        assert sum(len(np.unique(texts[one.drawn])) for one in strata) == 40
        assert sorted(np.concatenate([one.places for one in strata]).tolist()) == list(range(150))

    def test_estimates_stay_right_where_a_text_is_half_of_a_stratum(self) -> None:
        above = -np.arange(400.0)
        texts = np.concatenate([np.arange(200), np.full(200, 999)])
        above[200:] = -1000.0
        flagged, present, inside = np.zeros(400, np.bool_), [], 0
        for seed in range(200):
            strata = draw_strata(above, flagged, 60, seed=(seed,), texts=texts)
            drawn = [int(i) for one in strata for i in one.drawn]
            assert len(np.unique(texts[drawn])) <= 60
            cascade = estimate_cascade(strata, flagged, {i: 100.0 * (texts[i] % 2 == 1) for i in drawn})
            estimate = cascade.present
            assert estimate.value is not None
            assert estimate.low is not None
            assert estimate.high is not None
            present.append(estimate.value)
            inside += estimate.low <= 300 <= estimate.high
        assert np.mean(present) == pytest.approx(300, abs=6)
        assert inside >= 184


class TestKeptFiles:
    @pytest.mark.parametrize("pattern", ["*/part-*.npz", "*/job", "reach-*.json"])
    @pytest.mark.parametrize("damage", ["half", "empty", "junk"])
    def test_that_are_damaged_are_made_again(
        self, pattern: str, damage: str, model: Model, two: list[PersonaVector], tmp_path: Path
    ) -> None:
        data, out = written(tmp_path / "a.jsonl", talk(20)), tmp_path / "out"
        before = run(data, model, two, out, rule=FlaggingRule(top=3))
        for path in (out / ".run").glob(pattern):
            content = path.read_bytes()
            path.write_bytes({"half": content[: len(content) // 2], "empty": b"", "junk": b"\x00\xffjunk" * 20}[damage])
        assert run(data, model, two, out, rule=FlaggingRule(top=3)) == before

    def test_that_are_damaged_inside_say_what_to_do(
        self, model: Model, two: list[PersonaVector], tmp_path: Path
    ) -> None:
        data, out = written(tmp_path / "a.jsonl", talk(20)), tmp_path / "out"
        run(data, model, two, out, rule=FlaggingRule(top=3))
        path = min((out / ".run").glob("*/part-*.npz"))
        content = bytearray(path.read_bytes())
        content[100:400] = bytes(300)
        path.write_bytes(content)
        with pytest.raises(SaveFailed, match=r"part-00000000.npz: .*; the file is damaged; move it away"):
            run(data, model, two, out, rule=FlaggingRule(top=3))


class TestSettings:
    def test_a_rate_that_is_given_twice_is_refused(self) -> None:
        with pytest.raises(InvalidArgument, match=r"The rate 0\.05 is given twice"):
            CalibrationSettings(rates=(0.05, 0.01, 0.05))

    def test_what_a_rate_is_of_needs_a_rate(self) -> None:
        with pytest.raises(InvalidArgument, match="`rate_per` is answer, and no rate is asked for"):
            FlaggingRule(top=3, rate_per="answer")

    def test_data_among_their_normal_data_are_warned_of(
        self, model: Model, two: list[PersonaVector], tmp_path: Path
    ) -> None:
        data, copy = (written(tmp_path / name, talk(30)) for name in ("a.jsonl", "b.jsonl"))
        for normal in (data, copy):
            done = run(data, model, two, tmp_path / "out", rule=FlaggingRule(rate=0.1), normal=normal)
            assert any("The data are among the normal data" in note for note in done.notes)
        other = written(tmp_path / "c.jsonl", talk(30, first=100))
        done = run(data, model, two, tmp_path / "out", rule=FlaggingRule(rate=0.1), normal=other)
        assert not any("among the normal data" in note for note in done.notes)
