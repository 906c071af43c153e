"""How many positions a server's cache holds: by bytes of the model and of the machine's memory."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner

import tiny
from poise.cli import app
from poise.engine.cache_memory import machine_memory, pass_positions, position_bytes, serving_positions
from poise.engine.kv_cache import SPARE_ROWS, RoomyLayer
from poise.model import Model
from poise.serve.served_engine import on_transformers

LARGE = 10**12


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mistral"])
def test_a_position_takes_what_a_filled_cache_takes(architecture: str) -> None:
    model = tiny.model(architecture)
    out = model.lm(torch.ones((1, 10), dtype=torch.long), use_cache=True)
    bytes_kept = sum(
        t.numel() * t.element_size() for layer in out.past_key_values.layers for t in (layer.keys, layer.values)
    )
    if architecture != "mistral":  # whose window leaves older positions out
        assert position_bytes(model) == bytes_kept // 10
    assert pass_positions(model) == sum(w.numel() * w.element_size() for w in model.lm.parameters()) // position_bytes(
        model
    )


def test_a_model_without_heads_has_no_positions_that_take_memory() -> None:
    config = AutoConfig.for_model("mamba", hidden_size=16, num_hidden_layers=2, vocab_size=50, state_size=4)
    model = dataclasses.replace(tiny.model(), lm=AutoModelForCausalLM.from_config(config).eval())
    assert position_bytes(model) == 1
    assert pass_positions(model) == sum(w.numel() * w.element_size() for w in model.lm.parameters())


def test_a_tenth_of_the_memory_holds_the_cache_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model()
    monkeypatch.setattr(type(model), "window", 100_000)
    each = position_bytes(model)

    def memory(number: int) -> None:
        monkeypatch.setattr("poise.engine.cache_memory.machine_memory", lambda: number)

    memory(10 * each * 40_000 + 9)
    assert serving_positions(model, 32) == 40_000
    memory(10 * each * 100)
    assert serving_positions(model, 32) == 16_384, "what any machine is asked to hold"
    memory(LARGE * each)
    assert serving_positions(model, 32) == 262_144
    assert serving_positions(model, 1) == 100_000, "more than full windows is of no use"
    memory(0)
    assert serving_positions(model, 32) == 16_384


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = machine_memory()
    limit = tmp_path / "memory.max"
    monkeypatch.setattr("poise.engine.cache_memory.CGROUP_LIMITS", (str(limit), str(tmp_path / "none")))
    limit.write_text("max\n")
    unlimited = machine_memory()
    limit.write_text("1000000\n")
    assert machine_memory() == 1_000_000
    assert unlimited >= whole > 1_000_000


def test_a_server_takes_the_number_that_it_is_given() -> None:
    model: Model = tiny.model()
    steps = on_transformers(model, batch=4, cache_tokens=777).steps
    assert getattr(steps, "budget", None) == 777
    assert getattr(on_transformers(model, batch=4).steps, "budget", None) == serving_positions(model, 4)


def test_the_command_says_how_vllm_is_told() -> None:
    result = CliRunner().invoke(app, ["serve", "--model", "m", "--engine", "vllm", "--cache-tokens", "100"])
    assert result.exit_code != 0
    assert "kv_cache_memory_bytes" in result.output


def test_a_caches_rooms_are_little_larger_than_what_they_hold() -> None:
    layer, states = RoomyLayer(), torch.ones((1, 2, 5, 4))
    layer.update(states, states)
    for row in range(1, 40):
        layer.join(states, states, torch.tensor([row]), row + 1)
        assert layer.keys.shape[0] == row + 1
        assert len(layer._keys) <= (row + 1) * (1 + 1 / SPARE_ROWS)
    assert bool((layer.keys == 1).all())
