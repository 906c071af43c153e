"""What the vLLM plugin does in a flat batch is what our engine does, however prompts are cut and computed again.

vLLM itself is not needed here: a transformers model runs the passes, one request at a time or several one after another
in a flat batch, and the plugin's work is called at each block's output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

import tiny
from poise.activations import Probe
from poise.engine import Generation, SamplingParams
from poise.engine.static import LocalEngine
from poise.model import Model
from poise.model.hooks import rewrite
from poise.steer import Steering
from poise.vllm import block_work
from poise.vllm.passes import PassPiece, PassPlan, RequestState
from poise.vllm.programs import compile_steering
from random_steering import random_probes, random_steering

TOKENS = 7
GREEDY = SamplingParams(max_new_tokens=TOKENS, temperature=0)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def llama() -> Model:
    return tiny.model()


Cuts = Callable[[int, int], Sequence[int]]
CUTS: dict[str, Cuts] = {
    "token by token": lambda prompt, total: [prompt, *range(prompt + 1, total + 1)],
    "in chunks of 3": lambda prompt, total: [*range(3, prompt, 3), *range(prompt, total + 1)],
    "computed again in the middle": lambda prompt, total: [
        prompt,
        prompt + 1,
        prompt + 2,
        -(prompt + 2),
        *range(prompt + 3, total + 1),
    ],
}


def in_passes(model: Model, ids: Sequence[int], state: RequestState, cuts: Cuts) -> tuple[list[int], torch.Tensor]:
    """Greedy decoding by passes that end at these positions; a negative one computes all of it again from the start."""
    said, at, cache = list(ids), 0, None
    readings: dict[int, torch.Tensor] = {}
    for end in cuts(len(ids), len(ids) + TOKENS - 1):
        if end < 0:
            at, cache, end = 0, None, -end
        piece = PassPiece(state=state, row=0, count=end - at, start=at)
        plan = PassPlan([piece], end - at, CPU)

        def change(layer: int, h: torch.Tensor, plan: PassPlan = plan) -> torch.Tensor:
            flat = h[0].clone()
            block_work.work_at_layer(plan, layer, flat, None)
            return flat.unsqueeze(0)

        with torch.no_grad(), rewrite(model, change, list(range(model.layers))):
            out = model.lm(torch.tensor([said[at:end]]), past_key_values=cache, use_cache=True)
        cache, at = out.past_key_values, end
        for _, values in plan.finish():
            first = max(piece.start, len(ids) - 1)
            readings |= {first + n: row for n, row in enumerate(values)}
        if end == len(said):
            said.append(int(out.logits[0, -1].argmax()))
    return said[len(ids) :], torch.stack([readings[position] for position in sorted(readings)])


def reference(model: Model, prompt: Any, steering: Steering | None, probes: list[Probe]) -> Generation:
    [answer] = LocalEngine(model).generate([prompt], GREEDY, steering=[steering], probes=probes)
    return answer


def check(model: Model, seed: int, cuts: Cuts) -> None:
    steering, probes = random_steering(seed, model), random_probes(seed, model)
    prompt = tiny.prompts(model, 5)[seed % 5]
    expected = reference(model, prompt, steering, probes)
    assert len(expected.ids) == TOKENS
    state = RequestState(program=compile_steering(steering, probes), prompt=len(prompt.ids))
    ids, readings = in_passes(model, prompt.ids, state, cuts)
    assert tuple(ids) == expected.ids, steering
    assert expected.readings is not None
    torch.testing.assert_close(readings, expected.readings[:-1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("seed", range(40))
def test_a_request_is_steered_and_read_as_by_our_engine(llama: Model, seed: int, cuts: str) -> None:
    check(llama, seed, CUTS[cuts])
