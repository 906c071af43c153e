"""Rows that a table or a training cannot use are kept as they came, beside the list that says why."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from poise.cli import app

OLD = Path(__file__).parent / "fixtures" / "v0_1_0"
PLACE = ["--model", "model", "--dtype", "float32", "--device", "cpu"]
GOOD = [json.dumps({"messages": [{"role": "user", "content": f"Q{n}?"}, {"role": "assistant", "content": "No."}]})
        for n in range(9)]  # fmt: skip
BAD = ['{"messages": [{"role": "narrator",   "content": "Once"}]}', '{"messages": [{"role": "user"']


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(OLD / "grumpy.safetensors", tmp_path)
    shutil.copytree(OLD / "model", tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    Path("data.jsonl").write_text("\n".join([GOOD[0], BAD[0], *GOOD[1:], BAD[1]]) + "\n")
    return tmp_path


def run(*arguments: Any, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def read(*more: str, data: str = "data.jsonl", code: int = 0) -> Any:
    return run("read", data, "--vector", "grumpy.safetensors", "--out", "t.jsonl", *PLACE, *more, code=code)


class TestATable:
    def test_keeps_them_to_the_byte(self, folder: Path) -> None:
        result = read()
        assert (folder / "t.jsonl.rejected_rows.jsonl").read_text().splitlines() == BAD
        listed = [json.loads(line) for line in (folder / "t.jsonl.rejected.jsonl").read_text().splitlines()]
        assert [row["index"] for row in listed] == [1, 10]
        assert "t.jsonl.rejected_rows.jsonl has them as they came." in result.stderr
        assert json.loads(read("--json").stdout)["rejected_rows"] == "t.jsonl.rejected_rows.jsonl"

    def test_can_be_made_of_them_once_they_are_mended(self, folder: Path) -> None:
        read()
        rows = folder / "t.jsonl.rejected_rows.jsonl"
        Path("mended.jsonl").write_text(rows.read_text().replace("narrator", "assistant").splitlines()[0] + "\n")
        facts = json.loads(read("--json", data="mended.jsonl").stdout)
        assert (facts["answers"], facts["rejected"], facts["rejected_rows"]) == (1, {}, None)
        assert not rows.exists(), "what an earlier table kept is not this one's"

    def test_of_parquet_keeps_them_as_parquet(self, folder: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table({"prompt": ["Q?"] * 6, "response": ["No.", "", *["Yes."] * 4], "id": range(6)})
        pq.write_table(table, "data.parquet")
        facts = json.loads(read("--json", data="data.parquet").stdout)
        assert facts["rejected_rows"] == "t.jsonl.rejected_rows.parquet"
        assert pq.read_table(facts["rejected_rows"]).equals(table.slice(1, 1))

    def test_writes_over_no_rows_that_it_did_not_keep(self, folder: Path) -> None:
        rows = folder / "t.jsonl.rejected_rows.jsonl"
        rows.write_text(BAD[0] + "\n")
        result = read(code=2)
        assert "t.jsonl.rejected_rows.jsonl exists and holds rows that no list beside it names" in " ".join(
            result.stderr.split()
        )
        assert rows.read_text() == BAD[0] + "\n"
        read("--force")
        assert rows.read_text().splitlines() == BAD


@pytest.mark.filterwarnings("ignore")  # of transformers, PEFT and the trainer
def test_a_training_keeps_them_to_the_byte(folder: Path) -> None:
    settings = "model: model\ndata: [data.jsonl]\nout: tuned\nmax_steps: 1\ndtype: float32\ndevice: cpu\nlora: {r: 1}\n"
    Path("train.yaml").write_text(settings)
    result = run("train", "train.yaml")
    assert (folder / "tuned" / "rejected_rows.jsonl").read_text().splitlines() == BAD
    assert [json.loads(line)["index"] for line in (folder / "tuned" / "rejected.jsonl").read_text().splitlines()] == [
        1,
        10,
    ]
    assert "2 rows could not be used: unknown role 1, broken JSON 1." in " ".join(result.stdout.split())
    assert ("tuned/rejected_rows.jsonl has them as they came, tuned/rejected.jsonl says why.") in " ".join(
        result.stderr.split()
    )
    facts = json.loads((folder / "tuned" / "train.json").read_text())["data"]
    assert (facts["rejected"], facts["rejected_rows"]) == ({"unknown role": 1, "broken JSON": 1}, "rejected_rows.jsonl")
