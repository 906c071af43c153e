"""What a killed run leaves behind, and how it goes on from there."""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny
from poise.contrast import Response, ResponseRequest, ResponseStore
from poise.engine import Generation, SamplingParams
from poise.engine.static import LocalEngine
from poise.errors import SaveFailed
from poise.judge import Judgement
from poise.model import Model
from poise.steer import Steering
from poise.storage.atomic_write import saving
from poise.storage.content_hash import content_key
from poise.storage.journal import Journal

FULL = OSError(errno.ENOSPC, "No space left on device")
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


class TestAJournal:
    @given(rows=st.dictionaries(st.text(), json_values, max_size=5))
    def test_gives_back_what_was_appended(self, rows: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
        path = tmp_path_factory.mktemp("journal") / "rows.jsonl"
        Journal(path).append(rows.items())
        again = Journal(path)
        assert {key: again[key] for key in rows} == rows
        assert len(again) == len(rows)

    def test_keeps_half_a_character_that_an_endpoint_sent(self, tmp_path: Path) -> None:
        Journal(tmp_path / "rows.jsonl").append([(content_key(answer="\ud83d"), "\ud83d")])
        assert Journal(tmp_path / "rows.jsonl")[content_key(answer="\ud83d")] == "\ud83d"

    @pytest.mark.parametrize("cut", range(1, 20))
    def test_drops_a_last_line_cut_short_and_goes_on_after_the_one_before(self, tmp_path: Path, cut: int) -> None:
        path = tmp_path / "rows.jsonl"
        Journal(path).append([("a", "ä"), ("b", ["long enough to be cut"])])
        path.write_bytes(path.read_bytes()[:-cut])
        journal = Journal(path)
        assert "a" in journal
        assert "b" not in journal
        journal.append([("c", 3)])
        assert [line[:9] for line in path.read_text().splitlines()] == ['{"key": "', '{"key": "']
        assert {key: Journal(path)[key] for key in "ac"} == {"a": "ä", "c": 3}

    def test_survives_a_line_of_rubbish(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.jsonl"
        path.write_bytes(b'{"key": "a", "value": 1}\nrubbish \xff\n[]\n{"key": "b", "value": 2}\n')
        assert (Journal(path)["a"], Journal(path)["b"], len(Journal(path))) == (1, 2, 2)

    def test_takes_the_later_of_two_values(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path / "rows.jsonl")
        journal.append([("a", 1)])
        journal.append([("a", 2)])
        assert Journal(tmp_path / "rows.jsonl")["a"] == 2

    def test_without_a_path_keeps_everything_in_memory(self) -> None:
        journal = Journal(None)
        journal.append([("a", 1)])
        assert journal["a"] == 1

    def test_on_a_full_disk_says_so_and_keeps_what_was_there(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        journal = Journal(tmp_path / "rows.jsonl")
        journal.append([("a", 1)])

        def full(*args: Any) -> None:
            raise FULL

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(SaveFailed, match=r"Cannot write to .*rows\.jsonl: No space left"):
            journal.append([("b", 2)])
        assert "b" not in journal
        monkeypatch.undo()
        assert Journal(tmp_path / "rows.jsonl")["a"] == 1

    def test_where_no_folder_can_be_says_so(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(SaveFailed, match="Cannot open the run folder"):
            Journal(tmp_path / "file" / "rows.jsonl")

    def test_outlives_a_process_that_is_killed(self, tmp_path: Path) -> None:
        program = (
            "import sys, time; from pathlib import Path; from poise.storage.journal import Journal\n"
            "Journal(Path(sys.argv[1])).append([('a', 1)]); print('written', flush=True); time.sleep(60)"
        )
        command = [sys.executable, "-c", program, str(tmp_path / "rows.jsonl")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "written\n"
            process.send_signal(signal.SIGKILL)
        assert Journal(tmp_path / "rows.jsonl")["a"] == 1


class TestAKey:
    def test_depends_on_content_and_not_on_order(self) -> None:
        assert content_key(a=1, b=["x"]) == content_key(b=["x"], a=1)
        assert len({content_key(a=1), content_key(a=1.5), content_key(a="1"), content_key(b=1), content_key()}) == 5


class TestSaving:
    def test_puts_a_whole_file_in_place_with_ordinary_rights(self, tmp_path: Path) -> None:
        with saving(tmp_path / "new" / "file.txt") as temporary:
            temporary.write_text("whole")
            assert not (tmp_path / "new" / "file.txt").exists()
        (tmp_path / "plain").write_text("")
        assert (tmp_path / "new" / "file.txt").read_text() == "whole"
        assert (tmp_path / "new" / "file.txt").stat().st_mode == (tmp_path / "plain").stat().st_mode

    @pytest.mark.parametrize(("error", "becomes"), [(FULL, SaveFailed), (KeyboardInterrupt(), KeyboardInterrupt)])
    def test_that_fails_leaves_the_old_file_and_nothing_else(
        self, tmp_path: Path, error: BaseException, becomes: type[BaseException]
    ) -> None:
        (tmp_path / "file.txt").write_text("old")

        def fail(temporary: Path) -> None:
            temporary.write_text("half")
            raise error

        with pytest.raises(becomes), saving(tmp_path / "file.txt") as temporary:
            fail(temporary)
        assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]
        assert (tmp_path / "file.txt").read_text() == "old"


class Killed(BaseException):
    """As if the power went."""


class Counting(LocalEngine):
    """An engine that counts its batches and dies before a given one."""

    def __init__(self, model: Model, *, batch: int = 3, dies_before: int | None = None) -> None:
        super().__init__(model, batch=batch)
        self.batches = 0
        self.dies_before = dies_before

    def generate(self, prompts: Any, sampling: Any, **options: Any) -> list[Generation]:
        if self.batches == self.dies_before:
            raise Killed
        self.batches += 1
        return super().generate(prompts, sampling, **options)


def same(found: Sequence[Response], expected: Sequence[Response]) -> bool:
    plain = [[dataclasses.replace(a, mean=None) for a in answers] for answers in (found, expected)]
    means = zip(found, expected, strict=True)
    return plain[0] == plain[1] and all(
        (a.mean is None and b.mean is None) or torch.equal(a.mean.nan_to_num(), b.mean.nan_to_num())  # type: ignore[union-attr]
        for a, b in means
    )


@pytest.fixture(scope="module")
def llama() -> Model:
    """A model that often stops."""
    return dataclasses.replace(tiny.model(), stop_ids=frozenset(range(0, 512, 9)))


class TestARun:
    sampling = SamplingParams(max_new_tokens=6)

    @pytest.fixture
    def asks(self, llama: Model) -> list[ResponseRequest]:
        steering = Steering.add(tiny.vector(llama), coef=2.0, layer=1)
        words = " ".join(tiny.SENTENCES).split()
        return [
            ResponseRequest(
                question=" ".join(words[i : 2 * i + 2]),
                system="Be brief." if i % 2 else None,
                steering=steering if i % 3 else None,
                seed=i,
            )
            for i in range(10)
        ]

    def answer(
        self, folder: Path | None, engine: LocalEngine, asks: list[ResponseRequest], keep_means: bool = True
    ) -> list[Response]:
        return ResponseStore(folder).answer(
            engine, engine.model, asks, self.sampling, what="Testing", keep_means=keep_means
        )

    @pytest.mark.parametrize("keep_means", [True, False])
    @pytest.mark.parametrize("after", [0, 1, 3])
    def test_that_is_killed_and_resumed_gives_the_answers_of_an_unbroken_one(
        self, llama: Model, asks: list[ResponseRequest], tmp_path: Path, after: int, keep_means: bool
    ) -> None:
        unbroken = self.answer(None, Counting(llama), asks, keep_means)
        with pytest.raises(Killed):
            self.answer(tmp_path, Counting(llama, dies_before=after), asks, keep_means)
        rest = Counting(llama)
        assert same(self.answer(tmp_path, rest, asks, keep_means), unbroken)
        assert rest.batches == 4 - after, "what was finished is not done again"
        done = Counting(llama, dies_before=0)
        assert same(self.answer(tmp_path, done, asks, keep_means), unbroken)

    @pytest.mark.parametrize("torn", ["answers.jsonl", "means"])
    def test_does_a_batch_again_that_was_torn(
        self, llama: Model, asks: list[ResponseRequest], tmp_path: Path, torn: str
    ) -> None:
        unbroken = self.answer(tmp_path, Counting(llama, batch=4), asks)
        path = tmp_path / torn if torn.endswith("l") else min((tmp_path / torn).iterdir())
        path.write_bytes(path.read_bytes()[:-30])
        again = Counting(llama, batch=4)
        assert same(self.answer(tmp_path, again, asks), unbroken)
        assert again.batches == 1

    def test_knows_an_answer_by_all_that_determines_it(
        self, llama: Model, asks: list[ResponseRequest], tmp_path: Path
    ) -> None:
        [first, *_] = [a for a in asks if a.steering]
        self.answer(tmp_path, Counting(llama), [first])
        other = Steering.add(tiny.vector(llama, seed=1), coef=2.0, layer=1)
        for changed in (
            dataclasses.replace(first, question="Another?"),
            dataclasses.replace(first, system="Be long."),
            dataclasses.replace(first, seed=99),
            dataclasses.replace(first, steering=None),
            dataclasses.replace(first, steering=other),
            dataclasses.replace(first, steering=Steering.add(tiny.vector(llama), coef=2.5, layer=1)),
            dataclasses.replace(first, steering=Steering.add(tiny.vector(llama), coef=2.0, layer=2)),
            dataclasses.replace(first, steering=Steering.add(tiny.vector(llama), coef=2.0, layer=1, phase="all")),
        ):
            with pytest.raises(Killed):
                self.answer(tmp_path, Counting(llama, dies_before=0), [changed])
        with pytest.raises(Killed):
            self.answer(
                tmp_path, Counting(tiny.model(seed=1), dies_before=0), [dataclasses.replace(first, steering=None)]
            )
        self.answer(tmp_path, Counting(llama, dies_before=0), [first])

    @pytest.mark.parametrize("batch", [2, 5])
    def test_gives_each_answer_its_own_mean_also_when_batches_have_changed(
        self, llama: Model, asks: list[ResponseRequest], tmp_path: Path, batch: int
    ) -> None:
        self.answer(tmp_path, Counting(llama), asks)
        found = self.answer(tmp_path, Counting(llama, batch=batch), asks)
        expected = self.answer(None, Counting(llama), asks)
        for a, b in zip(found, expected, strict=True):
            assert a.text == b.text
            assert a.mean is not None
            assert b.mean is not None
            torch.testing.assert_close(a.mean, b.mean, rtol=0, atol=1e-4, equal_nan=True)

    def test_carries_prompt_and_answer_as_one_text_to_read(self, llama: Model, asks: list[ResponseRequest]) -> None:
        for asked, answer in zip(asks, self.answer(None, Counting(llama), asks), strict=True):
            prompt = llama.encode([*([{"role": "system", "content": asked.system}] if asked.system else []),
                                   {"role": "user", "content": asked.question}])  # fmt: skip
            assert answer.encoded.ids[: answer.encoded.start] == prompt.ids
            said = answer.encoded.ids[answer.encoded.start : answer.encoded.end]
            assert llama.tokenizer.decode(said, skip_special_tokens=True) == answer.text

    def test_uses_one_random_stream_for_all_ways_of_steering_a_question(self, llama: Model) -> None:
        weak = Steering.add(tiny.vector(llama, scale=1e-9), coef=1.0, layer=1)
        plain, steered, other = self.answer(
            None,
            Counting(llama),
            [
                ResponseRequest(question="Why?"),
                ResponseRequest(question="Why?", steering=weak),
                ResponseRequest(question="Why?", seed=1),
            ],
        )
        assert plain.text == steered.text != other.text

    def test_keeps_judgements_with_their_reasons_and_asks_only_for_what_is_missing(self, tmp_path: Path) -> None:
        asked: list[str] = []

        class Judge:
            name = "by length"

            def __call__(self, questions: Sequence[str], answers: Sequence[str]) -> list[Judgement]:
                asked.extend(answers)
                return [Judgement(float(len(a))) if a else Judgement(None, "empty answer") for a in answers]

        encoded: Any = None
        answers = [Response(question="Why?", text=text, encoded=encoded) for text in ("because", "", "so", "because")]
        expected = [Judgement(7.0), Judgement(None, "empty answer"), Judgement(2.0), Judgement(7.0)]
        for _ in range(2):
            assert ResponseStore(tmp_path).judge(Judge(), answers, scope="trait", what="Judging") == expected
        assert sorted(asked) == ["", "because", "so"]
        ResponseStore(tmp_path).judge(Judge(), answers[:1], scope="another trait", what="Judging")
        assert asked[-1] == "because", "scores are shared within a scope only"

    def test_loses_at_most_one_batch_of_judgements(self, tmp_path: Path) -> None:
        encoded: Any = None
        answers = [Response(question="Why?", text=str(i), encoded=encoded) for i in range(150)]

        def dying(batches: int) -> Any:
            calls: Iterator[None] = iter([None] * batches)

            class Judge:
                name = "dying"

                def __call__(self, questions: Sequence[str], answers: Sequence[str]) -> list[Judgement]:
                    if next(calls, 0) is not None:
                        raise Killed
                    return [Judgement(float(a) / 2) for a in answers]

            return Judge()

        with pytest.raises(Killed):
            ResponseStore(tmp_path).judge(dying(2), answers, scope="", what="Judging")
        resumed = ResponseStore(tmp_path).judge(dying(1), answers, scope="", what="Judging")
        assert [j.score for j in resumed] == [i / 2 for i in range(150)]
