"""What version 0.1.0 wrote is read, and what it began is finished without doing any of it again.

The files were made by that version itself (``fixtures/make_v0_1_0.py``) on the tiny model that lies beside them.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from poise import vector as vectors
from poise.cli import app
from poise.engine.static import LocalEngine
from poise.screen import shards
from poise.serve.readings_db import Query, Store
from poise.shift import load_report
from poise.validate.certificate import Certificate

OLD = Path(__file__).parent / "fixtures" / "v0_1_0"
VECTOR = OLD / "impolite.safetensors"


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to work in, as the working directory: names of files are part of what a run is known by."""
    monkeypatch.chdir(shutil.copytree(OLD, tmp_path / "old"))
    return tmp_path / "old"


@pytest.fixture
def no_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    def generate(*_: Any, **__: Any) -> Any:
        raise AssertionError("the model was asked again for what 0.1.0 has kept")

    monkeypatch.setattr(LocalEngine, "generate", generate)


def run(*words: object) -> str:
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 0, done.output
    return done.stdout


MODEL = ("--model", OLD / "model", "--dtype", "float32", "--device", "cpu")
BUDGET = ("--questions", "4", "--rollouts", "1", "--max-new-tokens", "6")


def test_a_vector_keeps_its_certificate_and_its_alarms() -> None:
    vector = vectors.load(VECTOR)
    assert (vector.name, vector.layers, vector.width) == ("impolite", 4, 16)
    assert Certificate.model_validate(vector.header.certificate).judge.name == "exemplars"
    assert {alarm.reading for alarm in vector.header.alarms} == {"mean", "peak", "prompt"}
    assert vector.header.drift is not None


def test_a_vector_saved_again_is_the_same_file(tmp_path: Path) -> None:
    vectors.save(vectors.load(VECTOR), tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == VECTOR.read_bytes()


def test_a_certificate_is_read() -> None:
    text = (OLD / "certificate.json").read_text()
    assert json.loads(Certificate.model_validate_json(text).model_dump_json()) == json.loads(text)


def test_a_shift_report_is_read() -> None:
    report = load_report(OLD / "shift.json")
    assert json.loads(report.model_dump_json(by_alias=True)) == json.loads((OLD / "shift.json").read_text())


@pytest.mark.usefixtures("no_generation")
def test_an_extraction_goes_on_from_its_answers(old: Path) -> None:
    (old / "prompted.safetensors").unlink()
    run(
        "extract",
        "impolite",
        "--contrast",
        "prompted",
        "--out",
        old / "prompted.safetensors",
        "--temperature",
        "0.7",
        *MODEL,
        *BUDGET,
    )
    again, before = (vectors.load(path / "prompted.safetensors") for path in (old, OLD))
    assert again.directions.equal(before.directions)


@pytest.mark.usefixtures("no_generation")
def test_a_validation_goes_on_from_its_answers(old: Path) -> None:
    run("validate", old / "impolite.safetensors", "--out", old / "report", *MODEL, *BUDGET)
    again, before = (json.loads((f / "certificate.json").read_text()) for f in (old / "report", OLD))
    assert again["verdict"] == before["verdict"]
    assert [(p["dose"], p["trait"]["value"]) for p in again["curve"]] == [
        (p["dose"], p["trait"]["value"]) for p in before["curve"]
    ]


@pytest.mark.usefixtures("no_generation")
def test_a_screening_that_was_cut_off_ends_with_the_same_files(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "ROWS_PER_SHARD", 8)
    first = sorted((old / "half" / ".run").glob("*/part-*.npz"))
    assert len(first) == 2
    for shard in first:
        os.utime(shard, (0, 0))
    words = ("--vector", VECTOR, "--method", "difference", "--top", "5", "--max-new-tokens", "4")
    run("screen", "rows.jsonl", "--out", old / "half", *words, *MODEL)
    assert [shard.stat().st_mtime for shard in first] == [0, 0]
    assert len(list((old / "half" / ".run").glob("*/part-*.npz"))) == 5
    for name in ("clean.jsonl", "flagged.jsonl", "scores.parquet"):
        assert (old / "half" / name).read_bytes() == (OLD / "screened" / name).read_bytes(), name


def test_a_table_of_readings_that_was_cut_off_ends_with_the_same_bytes(old: Path) -> None:
    whole = (OLD / "readings.jsonl").read_bytes()
    (old / "readings.jsonl").write_bytes(whole[: len(whole) // 2])
    run("read", "rows.jsonl", "--vector", VECTOR, "--out", old / "readings.jsonl", *MODEL)
    assert (old / "readings.jsonl").read_bytes() == whole


def test_a_server_s_readings_are_shown(old: Path) -> None:
    store = Store(old / "readings.sqlite", keep_days=1e6)
    try:
        rows, _ = store.readings(Query())
    finally:
        store.close()
    assert [row["request"] for row in rows] == ["r4", "r3", "r2", "r1", "r0"]
