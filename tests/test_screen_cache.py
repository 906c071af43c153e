"""What was read once is not read again: texts that the model is given are counted, never seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import screening
import tiny
from poise import activations
from poise.data import open_data
from poise.errors import SaveFailed
from poise.model import Model
from poise.screen import shards as parts
from poise.screen import trait_summary
from poise.screen.projection import score_answers
from poise.screen.reading_cache import ReadingCache, WindowCache, text_key
from poise.screen.shards import ShardStore
from poise.vector import PersonaVector
from screening import conversations, named, run, talk, written

model, two, small_windows = screening.model, screening.two, screening.small_windows


@pytest.fixture(scope="module")
def three(model: Model, two: list[PersonaVector]) -> list[PersonaVector]:
    return [*two, named("giddy", model, 3)]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The length of every text that goes through the model's blocks to be scored; no examples are shown."""
    monkeypatch.setattr(trait_summary, "EXAMPLES_SHOWN", 0)
    texts: list[int] = []
    plain = activations.forward

    def forward(model: Model, batch: Any) -> None:
        texts.extend(last for _, last in batch.spans)
        plain(model, batch)

    monkeypatch.setattr(activations, "forward", forward)
    return texts


def columns(out: Path, *names: str) -> dict[str, list[Any]]:
    table = pq.read_table(out / "scores.parquet")
    return {name: table[name].to_pylist() for name in names or ("grumpy_score", "gloomy_score")}


class TestWhatIsReadAgain:
    def test_nothing_of_a_file_that_was_renamed(
        self, model: Model, two: list[PersonaVector], tmp_path: Path, read: list[int]
    ) -> None:
        rows = talk(20, turns=2)
        run(written(tmp_path / "a.jsonl", rows), model, two, tmp_path / "out")
        before, count = columns(tmp_path / "out"), len(read)
        assert count == 20, "a pass a row, for both of its answers"
        run(written(tmp_path / "b.jsonl", rows), model, two, tmp_path / "out")
        assert len(read) == count
        assert columns(tmp_path / "out") == before
        assert columns(tmp_path / "out", "file") == {"file": [str(tmp_path / "b.jsonl")] * 40}

    @pytest.mark.parametrize("place", ["end", "beginning", "middle"])
    def test_only_the_new_row_where_one_was_added(
        self, model: Model, two: list[PersonaVector], tmp_path: Path, read: list[int], place: str
    ) -> None:
        rows, new = talk(20), talk(1, first=300)
        run(written(tmp_path / "a.jsonl", rows), model, two, tmp_path / "out")
        before = columns(tmp_path / "out")["grumpy_score"]
        read.clear()
        at = {"end": 20, "beginning": 0, "middle": 9}[place]
        run(written(tmp_path / "a.jsonl", rows[:at] + new + rows[at:]), model, two, tmp_path / "out")
        assert len(read) == 1
        after = columns(tmp_path / "out")["grumpy_score"]
        assert after[:at] + after[at + 1 :] == before, "rows that were there keep their numbers to the last bit"

    def test_nothing_of_rows_in_another_order_or_taken_out(
        self, model: Model, two: list[PersonaVector], tmp_path: Path, read: list[int]
    ) -> None:
        rows = talk(20)
        run(written(tmp_path / "a.jsonl", rows), model, two, tmp_path / "out")
        before = columns(tmp_path / "out")["gloomy_score"]
        read.clear()
        run(written(tmp_path / "a.jsonl", rows[::-1]), model, two, tmp_path / "out")
        assert columns(tmp_path / "out")["gloomy_score"] == before[::-1]
        run(written(tmp_path / "a.jsonl", rows[3::2]), model, two, tmp_path / "out")
        assert columns(tmp_path / "out")["gloomy_score"] == before[3::2]
        assert read == []

    def test_each_text_once_for_a_trait_that_was_added_and_nothing_for_one_left_out(
        self, model: Model, two: list[PersonaVector], three: list[PersonaVector], tmp_path: Path, read: list[int]
    ) -> None:
        data = written(tmp_path / "a.jsonl", talk(20))
        run(data, model, two, tmp_path / "out")
        run(data, model, three, tmp_path / "fresh")
        before, fresh = columns(tmp_path / "out"), columns(tmp_path / "fresh", "grumpy_score", "giddy_score")
        read.clear()
        run(data, model, three, tmp_path / "out")
        assert len(read) == 20
        after = columns(tmp_path / "out", "grumpy_score", "gloomy_score", "giddy_score")
        assert {name: after[name] for name in before} == before
        assert {name: after[name] for name in fresh} == fresh, "to the last bit as in one run for all three"
        read.clear()
        run(data, model, [three[2], three[0]], tmp_path / "out")
        assert read == []
        assert columns(tmp_path / "out", "grumpy_score", "giddy_score") == fresh

    def test_of_a_new_trait_only_as_deep_as_it_is_read(
        self, model: Model, two: list[PersonaVector], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        deep, shallow = tiny.probes(two, 3)[0], tiny.probes(two, 1)[1]
        asked: list[list[int]] = []
        plain = activations.project

        def project(model: Model, texts: Any, probes: Any) -> Any:
            asked.append([probe.layer for probe in probes])
            return plain(model, texts, probes)

        monkeypatch.setattr(activations, "project", project)
        rows = conversations(talk(6))
        first = ReadingCache(tmp_path, "first", model, [deep])
        list(score_answers(model, rows, [deep], cache=WindowCache(first, 0)))
        second = ReadingCache(tmp_path, "second", model, [deep, shallow])
        list(score_answers(model, rows, [deep, shallow], cache=WindowCache(second, 0)))
        assert asked == [[3], [1]]

    def test_a_text_that_is_there_many_times_once(
        self, model: Model, two: list[PersonaVector], read: list[int]
    ) -> None:
        rows = talk(3) * 4
        scored = list(score_answers(model, conversations(rows), tiny.probes(two)))
        assert len(read) == 3
        for i in range(3):
            assert len({(unit.mean, unit.last) for unit in scored[i::3]}) == 1

    def test_own_answers_that_are_equal_once(
        self, model: Model, two: list[PersonaVector], tmp_path: Path, read: list[int]
    ) -> None:
        data = written(tmp_path / "a.jsonl", talk(6))
        run(data, model, two, tmp_path / "out", method="difference")
        before = columns(tmp_path / "out")
        read.clear()
        run(written(tmp_path / "b.jsonl", talk(6) + talk(6)), model, two, tmp_path / "out", method="difference")
        after = columns(tmp_path / "out")
        assert after["grumpy_score"] == before["grumpy_score"] * 2
        assert read == []


class TestNumbers:
    def test_of_a_direction_do_not_depend_on_the_others_that_are_read(self, model: Model) -> None:
        rows = conversations(talk(12))
        probes = tiny.probes([named(f"t{i}", model, i) for i in range(19)], 2)
        alone = [list(score_answers(model, rows, [probe])) for probe in probes]
        for count in (2, 8, 9, 19):
            together = list(score_answers(model, rows, probes[:count]))
            for k in range(count):
                assert [(u.mean[k], u.last[k]) for u in together] == [(u.mean[0], u.last[0]) for u in alone[k]]

    def test_are_the_same_after_a_run_that_was_cut_off_whatever_was_read_meanwhile(
        self, model: Model, two: list[PersonaVector], tmp_path: Path
    ) -> None:
        """Between the two halves of a job another one reads the rest of its texts, in other batches."""
        probes = tiny.probes(two)
        data = open_data(written(tmp_path / "a.jsonl", talk(24)))
        other = open_data(written(tmp_path / "b.jsonl", talk(24)[::-1]))

        def job(folder: Path, data: Any, name: str, windows: int = 9) -> ShardStore:
            store = ShardStore(folder / name, name)
            shards = parts.score_shards(store, data, model, probes, cache=ReadingCache(folder, name, model, probes))
            for _, _shard in zip(range(windows), shards, strict=False):
                pass
            return store

        expected = job(tmp_path / "fresh", data, "a")
        job(tmp_path / "out", data, "a", windows=1)
        job(tmp_path / "out", other, "b")
        resumed = job(tmp_path / "out", data, "a")
        for before, after in zip(expected, resumed, strict=True):
            assert np.array_equal(before.mean, after.mean)
            assert np.array_equal(before.last, after.last)

    def test_of_a_text_are_those_of_its_first_window_whichever_was_done_first(
        self, model: Model, two: list[PersonaVector], tmp_path: Path
    ) -> None:
        cache = ReadingCache(tmp_path, "a", model, tiny.probes(two))
        numbers = [np.full((2, 2), value, dtype=np.float32) for value in (5, 3, 7)]
        for part, one in zip((5, 3, 7), numbers, strict=True):
            WindowCache(cache, part).save({b"k": one})
        later = ReadingCache(tmp_path, "b", model, tiny.probes(two)[::-1])
        assert later.load([b"k", b"other"]).keys() == {b"k"}
        assert np.array_equal(later.load([b"k"])[b"k"], numbers[1])

    def test_of_other_tokens_spans_directions_and_models_are_apart(
        self, model: Model, two: list[PersonaVector], tmp_path: Path
    ) -> None:
        text = model.encode([{"role": "user", "content": "What?"}], "This.")
        assert text_key(text) == text_key(model.encode([{"role": "user", "content": "What?"}], "This."))
        other = model.encode([{"role": "user", "content": "What?"}], "That.")
        longer = type(text)(text.ids, text.start, text.end - 1)
        assert len({text_key(text), text_key(other), text_key(longer)}) == 3
        probes = tiny.probes(two)
        cache = ReadingCache(tmp_path, "a", model, probes[:1])
        cache.save(0, {b"k": np.ones((1, 2), dtype=np.float32)})
        known = ReadingCache(tmp_path, "b", model, probes).load([b"k"])[b"k"]
        assert known[0].tolist() == [1, 1]
        assert np.isnan(known[1]).all()
        assert ReadingCache(tmp_path, "c", tiny.model("llama", seed=5), probes).path != cache.path

    def test_that_cannot_be_read_are_told_of_in_a_sentence(
        self, model: Model, two: list[PersonaVector], tmp_path: Path
    ) -> None:
        data = written(tmp_path / "a.jsonl", talk(4))
        run(data, model, two, tmp_path / "out")
        (readings,) = (tmp_path / "out" / ".run").glob("readings-*.sqlite")
        readings.write_bytes(b"no database, and long enough to be looked at" * 99)
        with pytest.raises(SaveFailed, match=r"Cannot use the kept readings .* put a copy of it back, or move"):
            run(written(tmp_path / "a.jsonl", talk(5)), model, two, tmp_path / "out")
        readings.unlink()
        run(data, model, two, tmp_path / "out")
