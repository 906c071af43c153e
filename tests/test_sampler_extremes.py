"""Temperatures and top_p that are too small for the numbers of the model."""

from __future__ import annotations

import pytest
import torch

from poise.engine import SamplingParams
from poise.engine.sampler import sample_tokens

LOGITS = torch.tensor([[1.0, 40.0, 39.0, -torch.inf, 2.0]]).repeat(3, 1)
DRAWS = [0.0, 0.5, 1 - 2**-53]


@pytest.mark.parametrize("temperature", [1e-5, 1e-19, 1e-21, 1e-37, 1e-39, 1e-45, 1e-320, 5e-324])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_almost_no_temperature_takes_the_likeliest(temperature: float, top_p: float) -> None:
    samplings = [SamplingParams(temperature=temperature, top_p=top_p)] * 3
    assert sample_tokens(LOGITS, samplings, DRAWS).tolist() == [1, 1, 1]


@pytest.mark.parametrize("top_p", [1e-9, 1e-39, 1e-45, 1e-320, 5e-324])
def test_almost_no_top_p_takes_the_likeliest(top_p: float) -> None:
    samplings = [SamplingParams(temperature=2.0, top_p=top_p)] * 3
    assert sample_tokens(LOGITS, samplings, DRAWS).tolist() == [1, 1, 1]


@pytest.mark.parametrize("temperature", [1e29, 1e39, 1e308])
def test_any_heat_leaves_out_what_is_ruled_out(temperature: float) -> None:
    samplings = [SamplingParams(temperature=temperature)] * 40
    tokens = sample_tokens(LOGITS[:1].repeat(40, 1), samplings, [n / 40 for n in range(40)]).tolist()
    assert set(tokens) == {0, 1, 2, 4}
