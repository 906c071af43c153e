"""Screening on Ray: the local engine's files, whatever happens to the workers."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import signal
import socket
import sqlite3
import sys
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from poise.activations import Probe
from poise.data import DataSet, open_data
from poise.data.unread_rows import decode_rows, without_files
from poise.errors import InvalidArgument, MissingExtra
from poise.model import Model, load_model
from poise.screen import driver_disk
from poise.screen import ray_backend as ray
from poise.screen import shards as parts
from poise.screen.base_answers import BaseAnswers
from poise.screen.driver_disk import DriverDisk, DriverFiles
from poise.screen.flagging import FlaggingRule
from poise.screen.preference import PreferenceSettings
from poise.screen.reading_cache import ReadingCache
from poise.screen.scoring import ScreenSettings
from poise.screen.shards import Shard, ShardStore
from screening import killed

ROWS, WINDOW = 30, 8
TWO = [(1, "grumpy"), (2, "gloomy")]

on_ray = [
    pytest.mark.real,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Ray's own, of its own defaults
]


@pytest.fixture
def model(tmp_path: Path) -> Model:
    made = tiny.model()
    made.lm.save_pretrained(tmp_path / "model")
    made.tokenizer.save_pretrained(tmp_path / "model")
    return load_model(str(tmp_path / "model"), dtype=torch.float32, device="cpu")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataSet:
    monkeypatch.setattr(parts, "ROWS_PER_SHARD", WINDOW)
    words = " ".join(tiny.SENTENCES).split()
    rows = [{"prompt": f"What of {i}?", "response": " ".join(words[i % 20 : i % 20 + 3 + i % 7])} for i in range(ROWS)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]) + "{broken\n")
    return open_data(tmp_path / "rows.jsonl")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    import ray

    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def probes(model: Model) -> list[Probe]:
    drawn = torch.randn((3, model.width), generator=torch.Generator().manual_seed(0))
    return [Probe(layer, direction) for layer, direction in zip((0, 2, 2), drawn, strict=True)]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("part-*"))}


def local(folder: Path, data: DataSet, model: Model, answers: BaseAnswers | None = None) -> dict[str, bytes]:
    for _ in parts.score_shards(ShardStore(folder, "job"), data, model, probes(model), answers):
        pass
    return files(folder)


@pytest.mark.usefixtures("cluster")
class TestOnRay:
    pytestmark = on_ray

    def test_gives_the_local_files_bit_for_bit_in_order(self, data: DataSet, model: Model, tmp_path: Path) -> None:
        own = [BaseAnswers(model, tmp_path / engine, max_new_tokens=3) for engine in ("local", "ray")]
        expected = local(tmp_path / "a", data, model, own[0])
        found: list[Shard] = list(
            ray.score_shards_on_ray(ShardStore(tmp_path / "b", "job"), data, model, probes(model), own[1], workers=2)
        )
        assert [int(part.index[0]) for part in found] == [0, 8, 16, 24]
        assert sum(part.rows for part in found) == ROWS
        assert files(tmp_path / "b") == expected

    def test_reads_only_what_the_local_engine_would(self, data: DataSet, model: Model, tmp_path: Path) -> None:
        """After a run of some of the rows in another order: files as the local engine's, with the readings of that."""
        lines = (tmp_path / "rows.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / "some.jsonl").write_text("".join(lines[17:3:-2]))
        some, found = open_data(tmp_path / "some.jsonl"), []
        for folder in (tmp_path / "a", tmp_path / "b"):
            caches = [ReadingCache(folder, job, model, probes(model)) for job in ("some", "job")]
            list(parts.score_shards(ShardStore(folder / "some", "some"), some, model, probes(model), cache=caches[0]))
            store = ShardStore(folder / "all", "job")
            if folder.name == "a":
                list(parts.score_shards(store, data, model, probes(model), cache=caches[1]))
            else:
                list(ray.score_shards_on_ray(store, data, model, probes(model), workers=2, cache=caches[1]))
            found.append(files(folder / "all"))
            with sqlite3.connect(caches[1].path) as db:
                assert db.execute("SELECT count(*), count(DISTINCT text) FROM readings").fetchone() == (29, 29)
        assert found[0] == found[1]

    def test_loses_nothing_when_a_worker_is_killed(self, data: DataSet, model: Model, tmp_path: Path) -> None:
        expected = local(tmp_path / "a", data, model)
        driver, killed, read = os.getpid(), tmp_path / "killed", data.parts[0].read

        def deadly(skip: int) -> Generator[Any, None, int]:
            """Kills the first worker that reads row 20; goes to the workers by value, since it is nested."""
            rows = read(skip)
            while True:
                try:
                    item = next(rows)
                except StopIteration as end:
                    return int(end.value)
                if item[0] == 20 and os.getpid() != driver and not killed.exists():
                    killed.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                yield item

        dangerous = replace(data, parts=(replace(data.parts[0], read=deadly),))
        for _ in ray.score_shards_on_ray(ShardStore(tmp_path / "b", "job"), dangerous, model, probes(model), workers=2):
            pass
        assert killed.exists()
        assert files(tmp_path / "b") == expected

    def test_scores_only_what_is_missing(self, data: DataSet, model: Model, tmp_path: Path) -> None:
        expected = local(tmp_path / "a", data, model)
        (tmp_path / "a" / "part-00000002.npz").unlink()
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").glob("part-*")}
        assert (
            len(list(ray.score_shards_on_ray(ShardStore(tmp_path / "a", "job"), data, model, probes(model), workers=1)))
            == 4
        )
        assert files(tmp_path / "a") == expected
        assert {path: path.stat().st_mtime_ns for path in before} == before

    def test_refuses_workers_that_find_another_model(self, data: DataSet, model: Model, tmp_path: Path) -> None:
        tiny.lm(seed=1).save_pretrained(tmp_path / "model")
        with pytest.raises(InvalidArgument, match="another model under the name"):
            list(ray.score_shards_on_ray(ShardStore(tmp_path / "b", "job"), data, model, probes(model), workers=1))


class TestARunOnRayKilledAtRandomMoments:
    """Once; ``POISE_KILLS=10`` for ten times. The driver alone is killed, and its cluster has to notice."""

    pytestmark = on_ray

    @pytest.mark.timeout(900)
    def test_ends_with_the_bytes_of_a_local_one(self, model: Model, tmp_path: Path) -> None:
        two = [tiny.vector(model, seed=seed, trait=(t := tiny.trait(name)), trait_hash=t.hash) for seed, name in TWO]
        times = int(os.environ.get("POISE_KILLS", "1"))
        said = killed(two, tmp_path / "model", tmp_path, "ray", times)
        assert said.startswith(f"{times} kills")


class TestAnAddress:
    """Of a cluster that is not there, or that nothing would be done with."""

    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
    def test_where_nothing_listens_is_told_at_once(self, host: str) -> None:
        joined: list[Any] = []
        library = SimpleNamespace(init=lambda *arguments, **options: joined.append(arguments))
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))  # nothing else takes the port meanwhile, and nothing listens there
            with pytest.raises(InvalidArgument, match=r"where no Ray cluster can be joined: .* HOST:PORT of the head"):
                ray._join(library, f"{host}:{closed.getsockname()[1]}")
        assert not joined
        with socket.create_server(("127.0.0.1", 0)) as head:
            address = f"127.0.0.1:{head.getsockname()[1]}"
            ray._join(library, address)
        ray._join(library, "auto")
        assert joined == [(address,), ("auto",)]

    @pytest.mark.parametrize("settings", [ScreenSettings, PreferenceSettings])
    def test_without_the_engine_is_refused(self, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        method = {"method": "raw"} if settings is ScreenSettings else {}
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        with pytest.raises(InvalidArgument, match="`engine` is local, which joins no cluster; say `engine` ray"):
            settings(**method, rule=FlaggingRule(top=3), ray_address="auto")
        assert settings(**method, rule=FlaggingRule(top=3), ray_address="auto", engine="ray").ray_address == "auto"
        monkeypatch.setenv("RAY_ADDRESS", "head:6379")  # meant for others, maybe
        assert settings(**method, rule=FlaggingRule(top=3), ray_address="head:6379").engine == "local"


class TestWithoutRay:
    def test_says_how_to_get_it(
        self, data: DataSet, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "ray", None)
        with pytest.raises(
            MissingExtra, match=r"^The engine ray needs Ray; in a checkout of Poise run pip install -e '\.\[scale\]'"
        ):
            list(ray.score_shards_on_ray(ShardStore(tmp_path / "b", "job"), data, model, probes(model)))


class TestTheDriversDisk:
    """What runs beside the driver, run here."""

    def disk(self, data: DataSet, folder: Path, missing: range = range(4)) -> DriverDisk:
        files = DriverFiles(
            data=data,
            parts=folder,
            job="job",
            window=WINDOW,
            missing=frozenset(missing),
            readings=None,
            answers=None,
            folder=Path.cwd(),
        )
        return DriverDisk(files)

    def test_gives_the_rows_of_any_window(self, data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(driver_disk, "_living_nodes", set)
        disk, expected = self.disk(data, tmp_path / "b"), list(data)
        for window in (1, 3, 0, 2, 3):
            sent = disk.begin(window, "node")
            assert sent is not None
            rows = decode_rows(without_files(data), pickle.loads(pickle.dumps(sent)))
            assert [(row.index, row.file, row.row) for row in rows] == [
                (row.index, row.file, row.row) for row in expected[8 * window : 8 * window + 8]
            ]
            assert [getattr(row, "messages", None) or row.reason for row in rows] == [
                getattr(row, "messages", None) or row.reason for row in expected[8 * window : 8 * window + 8]
            ]

    def test_holds_the_rows_of_windows_at_work_alone(
        self, data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(driver_disk, "_living_nodes", set)
        disk = self.disk(data, tmp_path / "b")
        disk.begin(2, "node")
        assert set(disk.at_work) == {2}
        disk.begin(0, "node")
        for window in (2, 0):
            content = (tmp_path / "content").with_suffix(".npz")
            np.savez(content, words=np.array("{}"))
            disk.finish(window, content.read_bytes())
        assert disk.begin(2, "node") is None
        assert not disk.at_work

    def test_ends_a_run_whose_workers_die_over_one_window_but_not_one_whose_machines_do(
        self, data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(driver_disk, "_living_nodes", lambda: {"up"})
        disk = self.disk(data, tmp_path / "b")
        for _ in range(10):
            disk.begin(1, "gone")
        for _ in range(3):
            disk.begin(1, "up")
        with pytest.raises(InvalidArgument, match=r"^3 workers died over rows 8 to 15, most likely out of memory"):
            disk.begin(1, "up")
