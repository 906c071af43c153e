"""What version 0.1.0 wrote is read, and what it began is finished without doing any of it again.

The files were made by that version itself (``fixtures/make_v0_1_0.py``) on the tiny model that lies beside them. Jobs
are resumed through the command line, whose commands and options do not change, and the model's forward passes are
counted beneath everything of ours.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
from transformers.models.llama.modeling_llama import LlamaModel
from typer.testing import CliRunner

from poise import vector as vectors
from poise.cli import app
from poise.serve.readings_db import ReadingsQuery, ReadingsStore
from poise.settings import read_settings
from poise.shift.report import load_report
from poise.train.config import TrainConfig
from poise.validate.certificate import Certificate

sys.path.insert(0, str(Path(__file__).parent / "fixtures"))
from make_v0_1_0 import COMMANDS, MODEL, PORT, TRAINING

OLD = Path(__file__).parent / "fixtures" / "v0_1_0"
FORWARDS: dict[str, int] = json.loads((OLD / "forwards.json").read_text())
ENDS: dict[str, Any] = json.loads((OLD / "ends.json").read_text())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to work in, as the working directory; no judge listens where 0.1.0 found one."""
    monkeypatch.chdir(shutil.copytree(OLD, tmp_path / "old"))
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{PORT}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    return tmp_path / "old"


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A mark for every forward pass but those that try the model out before work begins, which 0.1.0 did not."""
    passes: list[int] = []
    plain = LlamaModel.forward

    def forward(lm: Any, *args: Any, **kwargs: Any) -> Any:
        if not any(frame.filename.endswith(("self_check.py", "block_check.py")) for frame in traceback.extract_stack()):
            passes.append(1)
        return plain(lm, *args, **kwargs)

    monkeypatch.setattr(LlamaModel, "forward", forward)
    return passes


def resume(name: str, forwards: list[int]) -> dict[str, Any]:
    """The command that 0.1.0 was given, which may not take more of the model than 0.1.0 itself does."""
    result = CliRunner().invoke(app, [*COMMANDS[name], "--json"])
    assert result.exit_code == 0, result.output
    assert len(forwards) <= FORWARDS[name]
    return dict(json.loads(result.stdout))


def alike(value: Any, reference: Any, *, left_out: tuple[str, ...] = ()) -> bool:
    """Equal but for the last digits of numbers, which another processor may write otherwise."""
    if isinstance(reference, dict):
        keys = reference.keys() - set(left_out)
        return keys <= value.keys() and all(alike(value[k], reference[k], left_out=left_out) for k in keys)
    if isinstance(reference, list):
        pairs = zip(value, reference, strict=False)
        return len(value) == len(reference) and all(alike(a, b, left_out=left_out) for a, b in pairs)
    if isinstance(reference, float) and value is not None:
        return bool(value == pytest.approx(reference, rel=1e-3, abs=1e-3))
    return bool(value == reference)


class TestAVector:
    def test_keeps_its_certificate_its_alarms_and_its_drift_chart(self) -> None:
        vector = vectors.load_vector(OLD / "grumpy.safetensors")
        assert (vector.name, vector.layers, vector.width) == ("grumpy", 4, 32)
        certificate = Certificate.model_validate(vector.header.certificate)
        assert certificate.judge.name == "exemplars"
        assert certificate.monitoring is not None
        assert certificate.together is not None
        assert {alarm.reading for alarm in vector.header.alarms} == {"mean", "peak", "prompt"}
        assert vector.header.drift is not None

    @pytest.mark.parametrize("name", ["grumpy", "gloomy", "sour"])
    def test_saved_again_is_the_same_file(self, name: str, tmp_path: Path) -> None:
        old = OLD / f"{name}.safetensors"
        vectors.save_vector(vectors.load_vector(old), tmp_path / old.name)
        assert (tmp_path / old.name).read_bytes() == old.read_bytes()

    def test_steers_and_is_shown(self, folder: Path) -> None:
        for command in (
            ["show", "grumpy.safetensors", "--json"],
            ["generate", "Hm?", "--steer", "grumpy.safetensors=1", "--max-new-tokens", "2", *MODEL.split()],
        ):
            result = CliRunner().invoke(app, command)
            assert result.exit_code == 0, result.output


class TestAReport:
    def test_a_certificate_is_read(self) -> None:
        text = (OLD / "report" / "certificate.json").read_text()
        assert json.loads(Certificate.model_validate_json(text).model_dump_json()) == json.loads(text)

    @pytest.mark.parametrize("name", ["shift/shift.json", "tuned/shift.json"])
    def test_a_shift_is_read(self, name: str) -> None:
        report = load_report(OLD / name)
        assert json.loads(report.model_dump_json(by_alias=True)) == json.loads((OLD / name).read_text())

    def test_a_shift_passes_a_gate(self, folder: Path) -> None:
        result = CliRunner().invoke(app, ["gate", "limits.yaml", "--measured", "shift/shift.json", "--json"])
        assert result.exit_code in (0, 1), result.output
        assert json.loads(result.stdout)["checks"]

    def test_settings_of_a_training_are_read(self) -> None:
        config = read_settings(OLD / "train.yaml", TrainConfig)
        assert alike(json.loads(config.model_dump_json()), TRAINING)


class TestAJob:
    def test_an_extraction_asks_nobody_again(self, folder: Path, forwards: list[int]) -> None:
        (folder / "sour.safetensors").unlink()
        resume("extract", forwards)
        again, before = (vectors.load_vector(f / "sour.safetensors") for f in (folder, OLD))
        assert again.directions.allclose(before.directions, atol=1e-5)
        assert again.header.kept == before.header.kept

    def test_a_validation_is_done(self, folder: Path, forwards: list[int]) -> None:
        resume("validate", forwards)
        again, before = (json.loads((f / "report" / "certificate.json").read_text()) for f in (folder, OLD))
        intervals = ("low", "high")  # how they are computed may change; on two questions they are wider now
        assert alike(again, before, left_out=(*intervals, "reasons"))
        without = [{re.sub(r" \[[^]]*\]", "", reason) for reason in c["reasons"]} for c in (again, before)]
        assert without[0] >= without[1], "all that spoke against it still does"

    def test_a_calibration_is_done(self, folder: Path, forwards: list[int]) -> None:
        resume("calibrate", forwards)
        again, before = (vectors.load_vector(f / "grumpy.safetensors").header for f in (folder, OLD))
        assert alike(again.model_dump()["alarms"], before.model_dump()["alarms"])

    def test_a_table_that_was_cut_off_goes_on(self, folder: Path, forwards: list[int]) -> None:
        first = (folder / "table.jsonl.run" / "rows.jsonl").read_bytes()
        resume("read", forwards)
        table = (folder / "table.jsonl").read_bytes()
        assert table.startswith(first)
        lines = [json.loads(line) for line in table.splitlines()]
        assert len(lines) == 1100
        assert alike(lines[-20:], ENDS["table.jsonl"])

    def test_a_screening_is_done(self, folder: Path, forwards: list[int]) -> None:
        resume("screen", forwards)
        for name in ("clean.jsonl", "flagged.jsonl", "fixed.jsonl"):
            assert (folder / "screened" / name).read_bytes() == (OLD / "screened" / name).read_bytes(), name
        again, before = (json.loads((f / "screened" / "summary.json").read_text()) for f in (folder, OLD))
        assert alike(again, before, left_out=("low", "high"))

    def test_a_screening_that_was_cut_off_goes_on(self, folder: Path, forwards: list[int]) -> None:
        (shard,) = (folder / "half" / ".run").glob("*/part-*.npz")
        bytes_before = shard.read_bytes()
        resume("screen half", forwards)
        assert shard.read_bytes() == bytes_before
        assert len(list(shard.parent.glob("part-*.npz"))) == 2
        summary = json.loads((folder / "half" / "summary.json").read_text())
        assert alike(summary, ENDS["half/summary.json"], left_out=("low", "high", "predicts"))  # its words may change

    @pytest.mark.filterwarnings("ignore")  # of transformers, PEFT and the trainer
    def test_a_training_is_done(self, folder: Path, forwards: list[int]) -> None:
        adapter = (folder / "tuned" / "adapter" / "adapter_model.safetensors").read_bytes()
        resume("train", forwards)
        assert (folder / "tuned" / "adapter" / "adapter_model.safetensors").read_bytes() == adapter

    @pytest.mark.filterwarnings("ignore")
    def test_a_shift_is_done(self, folder: Path, forwards: list[int]) -> None:
        resume("shift", forwards)
        again, before = (json.loads((f / "shift" / "shift.json").read_text()) for f in (folder, OLD))
        assert alike(again, before, left_out=("low", "high"))


def test_a_servers_readings_are_shown(folder: Path) -> None:
    store = ReadingsStore(folder / "readings.sqlite", keep_days=100_000)
    try:
        rows, _ = store.readings(ReadingsQuery())
        alarmed, _ = store.readings(ReadingsQuery(alarmed=True))
    finally:
        store.close()
    assert [row["request"] for row in rows] == ["r2", "r1", "r0"]
    assert [row["alarms"][0]["threshold"] for row in alarmed] == [4.0]
