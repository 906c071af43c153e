"""`--model ADAPTER_FOLDER`: every command reads, answers and measures what the adapter on its base would give."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from openai import OpenAI
from peft import LoraConfig, get_peft_model
from typer.testing import CliRunner

import tiny
from poise import vector as vectors
from poise.cli import app
from poise.model import load_model
from poise.model.merging import merge_adapter
from steered_passes import no_warnings

DETERMINISTIC = ("--temperature", "0", "--max-new-tokens", "8", "--dtype", "float32")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, an adapter that changes what it says, both in one model, data, and a vector of each model."""
    folder = tmp_path_factory.mktemp("adapter")
    model = tiny.model("llama")
    with no_warnings():
        model.lm.save_pretrained(folder / "base")
        model.tokenizer.save_pretrained(folder / "base")
        lm = get_peft_model(model.lm, LoraConfig(r=4, target_modules="all-linear"))
        torch.manual_seed(0)
        for name, weight in lm.named_parameters():
            if "lora_" in name:
                weight.data = weight.data + torch.randn_like(weight) * 0.3
        lm.peft_config["default"].base_model_name_or_path = str(folder / "base")
        lm.save_pretrained(folder / "adapter")
    merge_adapter(folder / "adapter", folder / "merged")
    for name in ("base", "adapter", "merged"):
        loaded = load_model(str(folder / name), dtype=torch.float32)
        vectors.save_vector(tiny.vector(loaded, seed=3), folder / f"{name}.safetensors")
    words = " ".join(tiny.SENTENCES).split()
    rows = [{"question": " ".join(words[i : i + 4]), "answer": " ".join(words[i + 4 : i + 8])} for i in range(30)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [{"question": f"Why {i}?", "positive": f"Bad {i}.", "negative": f"Good {i}."} for i in range(25)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return folder


def poise(*args: object, lines: str | None = None) -> str:
    done = CliRunner().invoke(app, [str(arg) for arg in args], input=lines, env={"COLUMNS": "200"})
    assert done.exit_code == 0, (done.exception, done.output)
    return done.stdout


def generated(home: Path, name: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    answers = poise("generate", "Who waits?", "And then?", "--model", home / name, *DETERMINISTIC, "--json")
    return [answer["text"] for answer in json.loads(answers)["answers"]]


def chatted(home: Path, name: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    shown = poise("chat", "--model", home / name, *DETERMINISTIC, lines="Who waits?\nAnd then?\n")
    return shown.splitlines()[1:]  # the first names the model


def served(home: Path, name: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    texts: list[str] = []

    def ask_and_stop(server: Any, *more: Any) -> None:
        address = server.start()
        try:
            with OpenAI(base_url=f"{address}/v1", api_key="none") as client:
                answer = client.chat.completions.create(
                    model=server.service.name,
                    messages=[{"role": "user", "content": "Who waits?"}],
                    temperature=0,
                    max_tokens=8,
                )
            texts.append(str(answer.choices[0].message.content))
        finally:
            server.stop()

    monkeypatch.setattr("poise.cli.serve._run", ask_and_stop)
    poise("serve", "--model", home / name, "--port", "0", "--dtype", "float32")
    return texts


def screened(home: Path, name: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    vector = home / f"{name}.safetensors"
    poise("screen", home / "rows.jsonl", "--vector", vector, "--model", home / name, "--method", "raw", "--out", out,
          "--dtype", "float32")  # fmt: skip
    (trait,) = json.loads((out / "summary.json").read_text())["traits"]
    return [trait["mean"], trait["edges"], trait["counts"]]


def extracted(home: Path, name: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    file = out.with_suffix(".safetensors")
    poise("extract", "grumpy", "--exemplars", home / "pairs.jsonl", "--model", home / name, "--out", file,
          "--dtype", "float32")  # fmt: skip
    return vectors.load_vector(file).directions


def shifted(home: Path, name: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    poise("shift", "--base", home / "base", "--tuned", home / name, "--vector", home / "base.safetensors", "--out", out,
          "--judge", "none", "--dtype", "float32", "--allow-other-model")  # fmt: skip
    (tuned,) = json.loads((out / "shift.json").read_text())["tuned"]
    return [cell["shift"]["value"] for cell in tuned["matrix"]]


def read(home: Path, name: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    file = out.with_suffix(".jsonl")
    poise("read", home / "rows.jsonl", "--vector", home / f"{name}.safetensors", "--model", home / name, "--out", file,
          "--dtype", "float32")  # fmt: skip
    return [json.loads(line) for line in file.read_text().splitlines()]


COMMANDS: dict[str, Callable[..., Any]] = {
    "generate": generated,
    "chat": chatted,
    "serve": served,
    "screen": screened,
    "extract": extracted,
    "shift": shifted,
    "read": read,
}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.allclose(one, other, atol=1e-4)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == pytest.approx(other, abs=1e-3)) if isinstance(one, float) else bool(one == other)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("command", COMMANDS)
def test_gives_what_base_and_adapter_in_one_model_give(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    results = {
        name: COMMANDS[command](home, name, tmp_path / name, monkeypatch) for name in ("base", "adapter", "merged")
    }
    assert same(results["adapter"], results["merged"])
    assert not same(results["adapter"], results["base"])
