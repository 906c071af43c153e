"""Full disks, kills at random moments and two runs at once: nothing is lost on the way."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import screening
from poise import vector as vectors
from poise.cli import app
from poise.data import open_data
from poise.errors import (
    FolderInUse,
    InvalidData,
    SaveFailed,
)
from poise.model import Model
from poise.screen import pipeline
from poise.screen.compare_methods import compare_methods
from poise.screen.flagging import FlaggingRule
from poise.screen.scoring import ScreenSettings
from poise.storage.lock import locked
from poise.vector import PersonaVector
from screening import SHORT, files, killed, mixed, run

model, two, folder, small_windows = screening.model, screening.two, screening.folder, screening.small_windows


class TestDataThatChangeMeanwhile:
    def test_leave_no_summary_and_are_screened_anew(
        self, model: Model, two: list[PersonaVector], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data, write = mixed(tmp_path / "rows.jsonl"), pipeline.write_screened_files

        def write_late(*arguments: Any, **options: Any) -> Any:
            data.write_text(data.read_text().replace("What of 1 0?", "What of X 0?"))
            return write(*arguments, **options)

        monkeypatch.setattr(pipeline, "write_screened_files", write_late)
        with pytest.raises(InvalidData, match=r"^rows\.jsonl changed while it was screened"):
            run(data, model, two, tmp_path / "out")
        assert not (tmp_path / "out" / "summary.json").exists()
        monkeypatch.setattr(pipeline, "write_screened_files", write)
        run(data, model, two, tmp_path / "out")
        run(data, model, two, tmp_path / "fresh")
        assert (tmp_path / "out" / "clean.jsonl").read_bytes() == (tmp_path / "fresh" / "clean.jsonl").read_bytes()
        again, fresh = (pq.read_table(tmp_path / name / "scores.parquet") for name in ("out", "fresh"))
        for column in again.column_names:
            values = fresh[column].to_pylist()
            scores = isinstance(values[0], float)  # texts that had been read stood in other batches
            assert again[column].to_pylist() == (pytest.approx(values, abs=1e-5) if scores else values), column

    def test_are_no_others_for_being_touched(
        self, model: Model, two: list[PersonaVector], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data, write = mixed(tmp_path / "rows.jsonl"), pipeline.write_screened_files

        def touch(*arguments: Any, **options: Any) -> Any:
            os.utime(data, ns=(1, 1))
            return write(*arguments, **options)

        monkeypatch.setattr(pipeline, "write_screened_files", touch)
        run(data, model, two, tmp_path / "out")
        assert (tmp_path / "out" / "summary.json").exists()


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
        data, write, written = mixed(tmp_path / "rows.jsonl"), Path.write_bytes, []

        def full(self: Path, content: bytes) -> int:
            if "part-" in self.name:
                if len(written) == fails_at:
                    raise OSError(errno.ENOSPC, "No space left on device")
                written.append(self)
            return write(self, content)

        monkeypatch.setattr(Path, "write_bytes", full)
        with pytest.raises(SaveFailed, match=r"No space left on device.*again"):
            run(data, model, two, tmp_path / "out")
        assert len(list((tmp_path / "out" / ".run").glob("*/part-*.npz"))) == fails_at
        monkeypatch.setattr(Path, "write_bytes", write)
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


@pytest.mark.slow
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


@pytest.mark.slow
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
