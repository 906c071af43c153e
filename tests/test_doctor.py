"""``poise doctor``: what is found in a model, what works with it and what does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import test_model_checks
import tiny
from poise.cli import app
from poise.model import wrap
from poise.model.diagnosis import ModelDiagnosis, diagnose


def findings(diagnosis: ModelDiagnosis) -> dict[str, bool | None]:
    return {finding.name: finding.works for finding in diagnosis.findings}


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_everything_works_with_an_ordinary_transformer(architecture: str) -> None:
    diagnosis = diagnose(tiny.model(architecture))
    assert diagnosis.works, diagnosis.findings
    assert (diagnosis.layers, diagnosis.width, diagnosis.thinking) == (tiny.L, tiny.D, "none")
    assert set(findings(diagnosis).values()) == {True}


@pytest.mark.parametrize(
    ("kind", "fails"),
    [
        ("mamba", ["generating: rows of different lengths share a batch"]),
        ("mamba2", []),
        (
            "xlstm",
            ["generating: cached steps equal one uncached pass", "generating: rows of different lengths share a batch"],
        ),
    ],
)
def test_what_does_not_work_is_named(kind: str, fails: list[str]) -> None:
    diagnosis = diagnose(test_model_checks.model(kind))
    assert [name for name, works in findings(diagnosis).items() if works is False] == fails


def test_a_template_that_loses_words_fails() -> None:
    tokenizer = tiny.PreTrainedTokenizerFast(tokenizer_object=tiny.chatml().backend_tokenizer, eos_token="<|im_end|>")
    tokenizer.chat_template = "<|im_start|>{{ messages[0]['content'] }}<|im_end|>\n"
    diagnosis = diagnose(wrap(tiny.lm(), tokenizer, name="tiny"))
    failed = [f for f in diagnosis.findings if f.works is False]
    assert [f.name for f in failed] == ["template: keeps every turn's words"]
    assert "leaves out the words of turn 2" in failed[0].detail


class TestTheCommand:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        tiny.lm().save_pretrained(tmp_path)
        tiny.chatml().save_pretrained(tmp_path)
        return tmp_path

    def test_prints_one_object(self, folder: Path) -> None:
        done = CliRunner().invoke(app, ["doctor", str(folder), "--dtype", "float32", "--device", "cpu", "--json"])
        assert done.exit_code == 0, done.output
        facts = json.loads(done.stdout)
        assert (facts["works"], facts["layers"], facts["model_type"]) == (True, tiny.L, "llama")

    def test_says_it_in_lines(self, folder: Path) -> None:
        done = CliRunner().invoke(app, ["doctor", str(folder), "--dtype", "float32", "--device", "cpu"])
        assert done.exit_code == 0, done.output
        assert "4 of LlamaDecoderLayer, layers 0 to 3" in done.stdout
        assert "FAILS" not in done.stdout
