"""A server asks its engine what it can do: refusals before anything is loaded, at the start, and as 400s."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from typer.testing import CliRunner

import serving
import tiny
from poise.cli import app
from poise.engine.continuous import ContinuousEngine
from poise.errors import InvalidArgument, InvalidSteering
from poise.model import Model
from poise.serve.served_engine import ServedEngine, on_transformers
from poise.serve.server import RunningServer, ServerOptions, make_server
from poise.steer import Steering


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--engine", "vllm", "--normal", "talk.jsonl"], "`poise calibrate` on the vectors first"),
        (["--engine", "vllm", "--device", "cuda"], "leave --device out"),
        (["--engine", "vllm", "--engine-option", "max_model_len"], "write NAME=VALUE"),
        (["--engine", "vllm", "--engine-option", "dtype=half"], "dtype, which follows from the server's own"),
        (["--engine-option", "max_model_len=10"], "--engine-option is for vLLM"),
    ],
)
def test_a_command_that_cannot_be_run_is_refused(arguments: list[str], words: str, tmp_path: Path) -> None:
    talk = tmp_path / "talk.jsonl"
    talk.write_text('{"messages": [{"role": "user", "content": "Where do the boats go?"}]}\n')
    shown = [str(talk) if argument == "talk.jsonl" else argument for argument in arguments]
    result = CliRunner().invoke(app, ["serve", "--model", "nowhere", "--port", "0", *shown], env={"COLUMNS": "300"})
    assert result.exit_code == 2, result.output
    assert words in " ".join(result.output.split())


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_it_is_said_how_to_install_it() -> None:
    result = CliRunner().invoke(app, ["serve", "--model", "nowhere", "--port", "0", "--engine", "vllm"])
    assert result.exit_code != 0
    assert "pip install" in result.output


def cannot_steer(steering: Steering) -> None:
    if steering.terms:
        raise InvalidSteering("up is steered on all on a condition on the prompt; steer the response.")


@pytest.fixture
def limited(model: Model) -> ServedEngine:
    """An engine that steers nothing and scores no prompts."""
    return replace(on_transformers(model, batch=4), check_steering=cannot_steer, no_scores="No prompt is scored here.")


@pytest.fixture
def address(limited: ServedEngine, model: Model) -> Iterator[str]:
    server: RunningServer = make_server(limited, serving.vectors(model), ServerOptions(port=0, grace=1.0))
    yield server.start()
    server.stop()


def test_forced_steering_that_the_engine_cannot_do_is_refused_at_the_start(
    limited: ServedEngine, model: Model, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("default:\n  steer: up@1=0.2 on all\n")
    with pytest.raises(InvalidArgument, match=r"line 2: default\.steer is 'up@1=0\.2 on all': .* steer the response"):
        make_server(limited, serving.vectors(model), ServerOptions(port=0, policy=policy))


def test_prompts_that_the_engine_does_not_score_are_a_400_that_says_so(address: str) -> None:
    body: dict[str, Any] = {"model": "tiny-llama", "prompt": "boats", "echo": True, "max_tokens": 0}
    refused = httpx.post(f"{address}/v1/completions", json={**body, "logprobs": 1}, timeout=30)
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert (error["message"], error["param"], error["code"]) == ("No prompt is scored here.", "echo", "unsupported")
    assert httpx.post(f"{address}/v1/completions", json=body, timeout=30).json()["choices"][0]["text"] == "boats"


def test_texts_are_read_by_what_the_engine_gives(model: Model) -> None:
    """The readings that are normal, without which the page has no scale."""
    read = []

    def read_text(text: Any, probe: Any) -> Any:
        read.append(text)
        return torch.arange(len(text.ids)).float()

    engine = replace(on_transformers(model, batch=4), read_text=read_text)
    assert isinstance(engine.steps, ContinuousEngine)
    server = make_server(engine, serving.vectors(model), ServerOptions(port=0))
    normal = server.service.registry.entries["up"].normal
    assert read
    assert normal is not None
    values = [place for text in read[: len(read) // 2] for place in range(text.start, text.end)]
    assert normal.mean == pytest.approx(sum(values) / len(values))
