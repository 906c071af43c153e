"""Runs of agents on models that are served in this process: calls that fit their tools, and readings at every step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import serving
import tiny
import tool_templates
from poise.agent import AgentLimits, AgentSettings, ServedModel, ToolsFile, open_tools, replay_run, run_agent
from poise.agent.records import read_records
from poise.settings import check_settings
from poise.vector.vector_file import save_vector


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("poise.agent.loop.FIRST_PAUSE_SECONDS", 0.0)


@pytest.mark.parametrize("style", ["hermes", "llama", "mistral"])
def test_a_random_model_is_held_to_calls_that_fit_and_is_read_at_every_answer(style: str, tmp_path: Path) -> None:
    model = tiny.model(tokenizer=tool_templates.tokenizer(style), max_position_embeddings=16384)
    files = {}
    for name, vector in serving.vectors(model).items():
        files[name] = tmp_path / f"{name}.safetensors"
        save_vector(vector, files[name])
    served = ServedModel(model, files)
    limits = AgentLimits(steps=5, answer_tokens=80, retries=6)
    settings = check_settings({"calculator": False, "files": {"folder": "files", "write": True}}, ToolsFile)
    try:
        with open_tools(settings, tmp_path) as tools:
            run_agent("a goal", served, tools, tmp_path / "run", AgentSettings(limits=limits, approve=frozenset()))
    finally:
        served.close()
    answers = [row for row in read_records(tmp_path / "run") if row["kind"] == "model"]
    assert len(answers) > 2
    assert all(set(row["readings"]) == set(files) for row in answers)
    calls = [call for row in answers for call in row["calls"]]
    assert calls, "words were followed by a call that the server insisted on"
    assert {call["name"] for call in calls} <= {*tools, "finish"}
    ended = [call for row in answers if not row["cut"] for call in row["calls"]]
    assert all(isinstance(json.loads(call["arguments"]), dict) for call in ended)
    assert {gauge.trait for gauge in replay_run(tmp_path / "run").gauges} == set(files)
