"""An answer is the same whatever shares its batch: in float32 as far as tokens go, alone to the last bit."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch

import tiny
from poise.engine import GenerationRequest, SamplingParams
from poise.model import wrap


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import same_answer

    return same_answer


class TestAnAnswer:
    @pytest.mark.parametrize("temperature", [0.0, 0.8])
    def test_in_float32_is_the_same_together_and_alone(self, benchmark: ModuleType, temperature: float) -> None:
        model = tiny.model()
        requests = [
            GenerationRequest(prompt=prompt, sampling=SamplingParams(12, temperature), seed=n)
            for n, prompt in enumerate(tiny.prompts(model, 6))
        ]
        assert benchmark.compare(model, requests)[:2] == (0, 0)

    def test_in_bfloat16_is_the_same_each_time_that_it_is_alone(self, benchmark: ModuleType) -> None:
        low = wrap(tiny.lm("llama").to(torch.bfloat16), tiny.chatml(), name="tiny-llama")
        requests = [
            GenerationRequest(prompt=prompt, sampling=SamplingParams(12, 0.8), seed=n)
            for n, prompt in enumerate(tiny.prompts(low, 6))
        ]
        assert benchmark.compare(low, requests)[1] == 0
