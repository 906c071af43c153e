"""What a score is: projections, the model's own answers, and the pieces of an answer that is shown."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

import screening
import tiny
from poise import workflows
from poise.data import Conversation, open_data
from poise.errors import (
    InvalidArgument,
    InvalidSteering,
    SaveFailed,
)
from poise.model import Model, ask
from poise.screen import scoring as work
from poise.screen.base_answers import BaseAnswers
from poise.screen.examples import LONGEST_EXAMPLE, token_pieces
from poise.screen.projection import score_answers
from poise.vector import PersonaVector
from screening import SHORT, WORDS, conversations, greedy, states, talk, written

model, two, small_windows = screening.model, screening.two, screening.small_windows


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
            next(
                iter(
                    score_answers(
                        model,
                        [Conversation(messages=row.messages[:end], file="", row=0, index=0, raw={})],
                        probes,
                        only={(0, n)},
                    )
                )
            )
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
        answers.store.path.write_bytes(b"not a data base" * 100)
        with pytest.raises(SaveFailed, match="put a copy of it back, or move it aside"):
            answers.generate([model.encode(ask("Who?"))])


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
