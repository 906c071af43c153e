"""``poise screen``: what it prints, what it refuses, and what it finds with the bundled model."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner, Result

import screening
import tiny
from poise import vector as vectors
from poise import workflows
from poise.cli import app
from poise.model import Model, load_model
from poise.trait import library
from poise.vector import PersonaVector
from screening import mixed, named, talk, written

model, two, folder, small_windows = screening.model, screening.two, screening.folder, screening.small_windows


@pytest.fixture(scope="module")
def command(folder: Path, two: list[PersonaVector], tmp_path_factory: pytest.TempPathFactory) -> Any:
    where = tmp_path_factory.mktemp("vectors")
    options = ["--model", str(folder), "--dtype", "float32", "--device", "cpu", "--max-new-tokens", "4"]
    loaded = load_model(str(folder), dtype=torch.float32, device="cpu")
    for seed, name in enumerate(("grumpy", "gloomy")):
        vectors.save_vector(named(name, loaded, seed + 1), where / f"{name}.safetensors")
        options += ["--vector", str(where / f"{name}.safetensors")]

    def invoke(data: object, out: Path, *more: str, stdin: bytes | None = None) -> Result:
        return CliRunner().invoke(app, ["screen", str(data), "--out", str(out), *options, *more], input=stdin)

    return invoke


class TestTheCommand:
    def test_prints_one_object(self, command: Any, tmp_path: Path) -> None:
        data, out = mixed(tmp_path / "rows.jsonl"), tmp_path / "out"
        done = command(data, out, "--method", "raw", "--top", "3", "--json")
        assert done.exit_code == 0, done.output
        facts = json.loads(done.stdout)
        assert facts["files"]["flagged"] == str(out / "flagged.jsonl")
        assert all(Path(path).exists() for path in facts["files"].values())
        assert "report" in facts["files"]
        assert [(t["trait"], t["flagged"]) for t in facts["traits"]] == [("grumpy", 3), ("gloomy", 3)]
        assert facts["rows"] == 27
        assert facts["traits"][0]["mean"]["low"] < facts["traits"][0]["mean"]["value"]

    def test_shows_what_was_found(self, command: Any, tmp_path: Path) -> None:
        done = command(mixed(tmp_path / "rows.jsonl"), tmp_path / "out", "--method", "prompt")
        assert done.exit_code == 0, done.output
        assert "grumpy" in done.stdout
        assert "flagged.jsonl" in done.stdout
        assert "the highest 1 %" in done.stdout
        assert "1 broken JSON" in done.stdout
        assert "messages from messages" in done.stderr

    def test_says_what_a_rate_is_a_share_of(self, command: Any, tmp_path: Path) -> None:
        data = str(written(tmp_path / "rows.jsonl", talk(60, turns=2)))
        for options, per in (([], "row"), (["--rate-per", "answer"], "answer")):
            out = tmp_path / "out"
            done = command(data, out, "--method", "raw", "--normal", data, "--rate", "0.1", "--json", *options)
            assert done.exit_code == 0, done.output
            rate = json.loads(done.stdout)["rate"]
            assert (rate["per"], rate["normal_rows"]) == (per, 60)
            assert json.loads((out / "summary.json").read_text())["rate"] == rate
            page = " ".join((out / "report.html").read_text().split()).replace("\N{NO-BREAK SPACE}", " ")
            assert (
                "The rate of 10.0 % is a share of normal answers" in page
                if per == "answer"
                else ("the rate of 10.0 % is a share of rows, over all answers and traits" in page)
            )
        shown = command(data, tmp_path / "out", "--method", "raw", "--normal", data, "--rate", "0.1")
        words = " ".join(shown.stdout.split())
        assert "the rule: normal rows are flagged by any of 2 traits at a rate of 0.1" in words

    def test_estimates_and_goes_no_further(self, command: Any, tmp_path: Path) -> None:
        done = command(written(tmp_path / "rows.jsonl", talk(24)), tmp_path / "out", "--estimate", "--sample", "20")
        assert done.exit_code == 0, done.output
        assert "Rank correlation" in done.stdout
        assert not (tmp_path / "out" / "clean.jsonl").exists()

    @pytest.mark.parametrize(
        ("name", "content", "complaint"),
        [
            ("rows.jsonl", b"", "it is empty"),
            ("rows.jsonl", b'{"size": 3}\n', "no known shape; its columns are size (a number)"),
            ("rows.jsonl", b'{"messages": [{"role": "user", "content": "Hm?"}]}\n' * 3, "no assistant turn"),
            ("rows.jsonl", b'\xff\xfe{"messages"\n' * 2, "not UTF-8"),
            ("rows.jsonl.gz", gzip.compress(b'{"messages": []}\n' * 9, mtime=0)[:12], "cut short"),
            ("rows.parquet", b"PAR1 is not all of it", "Parquet"),
            ("rows.doc", b"?", "should end in"),
        ],
    )
    def test_refuses_what_it_cannot_read_in_a_sentence(
        self, command: Any, tmp_path: Path, name: str, content: bytes, complaint: str
    ) -> None:
        (tmp_path / name).write_bytes(content)
        done = command(tmp_path / name, tmp_path / "out", "--method", "raw")
        assert done.exit_code == 2
        assert complaint in done.stderr
        assert "Traceback" not in done.stderr

    def test_leaves_out_and_lists_what_is_broken_in_the_middle(self, command: Any, tmp_path: Path) -> None:
        rows = [json.dumps(row).encode() for row in talk(60)]
        rows[5] = b'{"messages": [{"role": "user", "content": "\xff"}]}'
        rows[9] = json.dumps(talk(1)[0] | {"pad": "x" * 2**20}).encode()
        long = [{"role": "user", "content": "y " * 2**19}, {"role": "assistant", "content": "z"}]
        rows[11] = json.dumps({"messages": long}).encode()
        whole = gzip.compress(b"\n".join(rows))
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "cut.jsonl.gz").write_bytes(whole[:-9])
        written(tmp_path / "a" / "pairs.jsonl", [{"question": "Who?", "answer": "The harbour master."}] * 3)
        done = command(tmp_path / "a", tmp_path / "out", "--method", "raw", "--json")
        assert done.exit_code == 0, done.stderr
        facts = json.loads(done.stdout)
        assert set(facts["rejected"]) == {"not UTF-8 text", "longer than the model's window", "cut short"}
        assert facts["answers"] == facts["rows"] - 3
        assert "pairs from question, answer" in done.stderr

    def test_reads_standard_input_and_goes_on_where_it_is_piped_again(self, command: Any, tmp_path: Path) -> None:
        content = mixed(tmp_path / "rows.jsonl").read_bytes()
        results = []
        for _ in range(2):
            done = command("-", tmp_path / "out", "--method", "raw", "--top", "3", "--json", stdin=content)
            assert done.exit_code == 0, done.output
            results.append({path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()})
            assert len(list((tmp_path / "out" / ".run").glob("*/job"))) == 1, "scored once"
        assert results[0] == results[1]
        assert {json.loads(line)["file"] for line in results[0]["rejected.jsonl"].splitlines()} == {"stdin.jsonl"}
        facts = json.loads(done.stdout)
        assert facts["files"]["rejected_rows"] == str(tmp_path / "out" / "rejected_rows.jsonl")
        assert facts["notes"] == [
            "3 rows could not be read and are neither in clean.jsonl nor in flagged.jsonl: rejected_rows.jsonl has "
            "them as they came, rejected.jsonl says why."
        ]

    def test_refuses_to_fix_what_it_could_not_write_back(self, command: Any, tmp_path: Path) -> None:
        text = "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
        done = command(written(tmp_path / "rows.jsonl", [{"text": text}] * 3), tmp_path / "out", "--fix")
        assert done.exit_code == 2
        assert "keeps its chats as marked-up text in text, where no answer can be replaced" in " ".join(
            done.stderr.split()
        )

    def test_refuses_vectors_of_another_model(self, command: Any, tmp_path: Path) -> None:
        other = tiny.model("llama", seed=5)
        vectors.save_vector(tiny.vector(other), tmp_path / "other.safetensors")
        data = written(tmp_path / "rows.jsonl", talk(3))
        done = command(data, tmp_path / "out", "--vector", str(tmp_path / "other.safetensors"))
        assert done.exit_code == 2
        assert "--allow-other-model" in done.stderr


@pytest.fixture(scope="module")
def impolite(smollm: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vectors") / "impolite.safetensors"
    seen = library.load_trait("impolite").extraction_pairs[:8]
    workflows.extract_vector(library.own_trait("impolite", seen), smollm, path)
    return path


@pytest.mark.real
class TestWithTheBundledModel:
    """A vector from eight pairs, and held-out answers that neither it nor anything else here has seen."""

    @pytest.mark.parametrize("method", ["raw", "difference"])
    def test_planted_answers_rank_above_ordinary_ones(self, impolite: Path, tmp_path: Path, method: str) -> None:
        pairs = library.load_trait("impolite").held_out_pairs[:5]
        rows = [{"prompt": p.question, "response": p.positive, "planted": True} for p in pairs]
        ordinary = [
            *pairs,
            *library.load_trait("evil").held_out_pairs[:5],
            *library.load_trait("apathetic").held_out_pairs[:5],
        ]
        rows += [{"prompt": p.question, "response": p.negative} for p in ordinary]
        options = ["--vector", str(impolite), "--model", "smollm2-135m", "--max-new-tokens", "24", "--device", "cpu"]
        data, out = written(tmp_path / "rows.jsonl", rows[::-1]), tmp_path / "out"
        said = ["screen", str(data), *options, "--method", method, "--top", "5", "--out", str(out), "--json"]
        done = CliRunner().invoke(app, said)
        assert done.exit_code == 0, done.output
        flagged = [json.loads(line) for line in (out / "flagged.jsonl").read_text().splitlines()]
        assert len(flagged) == 5
        assert sum(row.get("planted", False) for row in flagged) >= 3
        scores = pq.read_table(out / "scores.parquet")["impolite_score"].to_numpy()[::-1]
        above = (scores[:5, None] > scores[None, 5:]).mean()
        assert above >= 0.85, above
