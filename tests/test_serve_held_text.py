"""Alarms are heeded at the token that raises them, also while its text waits for more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

import serving
import tiny


class TestAnAlarmWhoseTextWaits:
    @pytest.mark.parametrize("action", ["cap", "stop"])
    @pytest.mark.parametrize("stop", [None, "zzzz"])
    def test_acts_from_the_next_token_on(self, tmp_path: Path, action: str, stop: str | None) -> None:
        model = tiny.model()
        letter = model.tokenizer("z" if stop else "é")["input_ids"][0]
        head = model.lm.get_output_embeddings()
        with torch.no_grad():
            head.weight.zero_()
        head.bias = torch.nn.Parameter(torch.zeros(head.weight.shape[0]).index_fill(0, torch.tensor([letter]), 9.0))
        up = tiny.vector(model, seed=1)
        given = {"up": up.with_alarms([serving.alarm(reading="peak", threshold=-50.0)])}
        body: dict[str, Any] = {
            "model": "tiny-llama",
            "messages": [{"role": "user", "content": "Where do the boats go?"}],
            "max_tokens": 20,
            "temperature": 0,
            "stop": ["z" * 60] if stop else None,
            "poise": {"watch": True},
        }
        (tmp_path / "rules.yaml").write_text(f"default: {{on_alarm: {action}, message: No.}}")
        with serving.running(model, given, policy=tmp_path / "rules.yaml") as (address, _):
            answer = httpx.post(f"{address}/v1/chat/completions", json=body).json()
        choice = answer["choices"][0]
        [alarm] = choice["poise"]["alarms"]
        assert (alarm["token"], alarm["action"]) == (8, action)
        readings = choice["poise"]["readings"]["up"]
        if action == "stop":
            assert choice["finish_reason"] == "content_filter"
            assert choice["message"]["content"] == ("z" * 7 if stop else "�" * 7) + "No."
            assert len(readings) == answer["usage"]["completion_tokens"] == 7
        else:
            assert len(readings) == 20
            assert min(readings[:8]) > -50
            assert max(readings[8:]) <= -50 + 1e-3
