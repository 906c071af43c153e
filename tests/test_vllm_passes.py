"""What the vLLM plugin does in a flat batch is what our engine does, however prompts are cut and computed again.

vLLM itself is not needed here: a transformers model runs the passes, one request at a time or several one after another
in a flat batch, and the plugin's work is called at each block's output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import tiny
from poise.activations import Probe
from poise.engine import Generation, GenerationRequest, SamplingParams
from poise.engine.continuous import ContinuousEngine
from poise.engine.static import LocalEngine
from poise.errors import HookDidNotFire, InvalidSteering
from poise.model import Model
from poise.model.hooks import rewrite
from poise.steer import Steering, SteeringExpression
from poise.vllm import block_work, programs
from poise.vllm.configuration import unsupported
from poise.vllm.passes import PassPiece, PassPlan, RequestState
from poise.vllm.programs import compile_steering
from poise.vllm.request import canonical_text, phase_keys
from poise.vllm.scheduling import steering_keys
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


def check_all(model: Model, seeds: Sequence[int], cuts: Cuts) -> None:
    for seed in seeds:
        check(model, seed, cuts)


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("seed", range(12))
def test_a_request_is_steered_and_read_as_by_our_engine(llama: Model, seed: int, cuts: str) -> None:
    check(llama, seed, CUTS[cuts])


class TestBrokenOnPurpose:
    """The comparison above notices what a fault would do."""

    def test_where_the_response_begins(self, llama: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        positions = programs.SteeringWork.positions
        late = lambda work, prompt, first, last: positions(work, prompt + 1, first, last)  # noqa: E731
        monkeypatch.setattr(programs.SteeringWork, "positions", late)
        with pytest.raises(AssertionError):
            check_all(llama, range(8), CUTS["in chunks of 3"])

    def test_a_layer_that_is_not_visited(self, llama: Model) -> None:
        state = RequestState(program=compile_steering(random_steering(1, llama), random_probes(1, llama)), prompt=2)
        plan = PassPlan([PassPiece(state=state, row=0, count=2, start=0)], 2, CPU)
        with pytest.raises(HookDidNotFire, match="without Poise's work at layer"):
            list(plan.finish())


def test_cached_tokens_are_told_apart_by_the_steering_of_their_phase() -> None:
    @dataclass
    class Request:
        field: str | None
        num_prompt_tokens: int = 40

        @property
        def sampling_params(self) -> Any:
            return SimpleNamespace(extra_args={"poise": self.field} if self.field else None)

    def keys(field: Any, first: int, last: int, prompt: int = 40) -> list[tuple[str, str]]:
        text = canonical_text(field) if field else None
        return steering_keys(Request(text, prompt), first, last, lambda text: phase_keys(text, "digest"))

    response, both = {"steer": "evil=1"}, {"steer": "evil=1 on all"}
    assert keys(None, 0, 32) == keys({"watch": True}, 0, 32) == keys(response, 0, 32) == []
    assert keys(both, 0, 32) == keys({"steer": "evil=1 on all", "watch": True}, 0, 32, prompt=99) != []
    assert keys(response, 32, 64) == keys({"steer": "evil=1.0"}, 32, 64) != []
    distinct = [
        keys(response, 32, 64),
        keys(response, 32, 64, prompt=41),  # the response begins elsewhere
        keys({"steer": "evil=2"}, 32, 64),
        keys({"steer": "evil=1 first 3"}, 32, 64),
        keys({"steer": "evil=1 if prompt kind>0"}, 32, 64),
        keys(both, 32, 64),
        keys({"steer": "evil=1 on prompt"}, 32, 64),
        keys(None, 32, 64),
    ]
    assert len({tuple(found) for found in distinct}) == len(distinct)


def test_every_configuration_that_cannot_be_right_is_named() -> None:
    def config(**changes: Any) -> Any:
        flat: dict[str, Any] = {
            "use_v2_model_runner": False,
            "speculative_config": None,
            "kv_transfer_config": None,
            "parallel_config.pipeline_parallel_size": 1,
            "parallel_config.tensor_parallel_size": 1,
            "parallel_config.data_parallel_size": 1,
            "compilation_config.cudagraph_mode": SimpleNamespace(name="PIECEWISE"),
            "aux_output_config.enabled": False,
            "cache_config.kv_sharing_fast_prefill": False,
            "scheduler_config.async_scheduling": False,
        } | {name.replace("__", "."): value for name, value in changes.items()}
        result = SimpleNamespace()
        for name, value in flat.items():
            group, _, key = name.rpartition(".")
            if group and not hasattr(result, group):
                setattr(result, group, SimpleNamespace())
            setattr(getattr(result, group) if group else result, key, value)
        return result

    assert unsupported(config()) == []
    changes: list[tuple[dict[str, Any], str]] = [
        ({"use_v2_model_runner": True}, "V2 model runner"),
        ({"speculative_config": object()}, "speculative"),
        ({"kv_transfer_config": object()}, "transfer"),
        ({"parallel_config__pipeline_parallel_size": 2}, "pipelines"),
        ({"parallel_config__tensor_parallel_size": 2}, "tensor"),
        ({"parallel_config__data_parallel_size": 2}, "data parallelism"),
        ({"compilation_config__cudagraph_mode": SimpleNamespace(name="FULL_AND_PIECEWISE")}, "CUDA graphs"),
        ({"aux_output_config__enabled": True}, "routed experts"),
        ({"cache_config__kv_sharing_fast_prefill": True}, "skip layers"),
        ({"scheduler_config__async_scheduling": True}, "asynchronous"),
    ]
    for change, words in changes:
        [fault] = unsupported(config(**change))
        assert words in fault
        assert "; " in fault  # and what to do


class TestRanges:
    """Which positions a work steers, of a prompt of 3 tokens and a response that thinks first."""

    PARTS = (("mark", 0), ("thought", 0), ("thought", 1), ("mark", 1), ("reply", 0), ("reply", 1), ("reply", 2))

    @pytest.mark.parametrize(
        ("changes", "positions"),
        [
            ({}, [7, 8, 9]),
            ({"part": "both"}, [3, 4, 5, 6, 7, 8, 9]),
            ({"part": "thought"}, [4, 5]),
            ({"part": "thought", "phase": "all"}, [0, 1, 2, 4, 5]),
            ({"phase": "all"}, [0, 1, 2, 7, 8, 9]),
            ({"phase": "prompt"}, [0, 1, 2]),
            ({"tokens": (1, None)}, [8, 9]),
            ({"tokens": (0, 2)}, [7, 8]),
            ({"part": "both", "tokens": (1, 3)}, [4, 5]),
            ({"since": 5}, [8, 9]),
            ({"part": "both", "since": 5}, [8, 9]),
            ({"part": "thought", "since": 2}, [5]),
        ],
    )
    def test_of_parts(self, changes: dict[str, Any], positions: list[int]) -> None:
        facts: dict[str, Any] = {"operation": "add", "phase": "response", "tokens": (0, None), "level": 0.0}
        work = programs.SteeringWork(**(facts | changes), directions={}, gate=None)
        parts: Any = self.PARTS
        ranges = work.ranges(3, 0, 10, parts)
        assert [position for first, last in ranges for position in range(first, last)] == positions
        for position in range(10):  # token by token
            assert bool(work.ranges(3, position, position + 1, parts)) == (position in positions)

    def test_without_parts_all_is_reply(self) -> None:
        facts: dict[str, Any] = {"operation": "add", "phase": "response", "tokens": (0, None), "level": 0.0}
        for part, ranges in (("reply", [(3, 9)]), ("both", [(3, 9)]), ("thought", [])):
            work = programs.SteeringWork(**facts, part=part, directions={}, gate=None)  # type: ignore[arg-type]
            assert work.ranges(3, 0, 9) == ranges


@pytest.mark.parametrize("cuts", ["in chunks of 3", "computed again in the middle"])
def test_what_is_added_to_a_running_request_begins_there(llama: Model, cuts: str) -> None:
    """A cap from the third token on, after steering and a condition that it began with: as our engine adds it."""
    vectors = [tiny.vector(llama, seed=seed) for seed in (1, 2)]
    began = Steering.add(vectors[0], coef=0.3, layer=1)
    cap = Steering.cap(vectors[1], level=-0.5, layer=1)
    [prompt] = tiny.prompts(llama, 1)
    probes = tuple(random_probes(3, llama))
    request = GenerationRequest(prompt=prompt, sampling=GREEDY, steering=began, probes=probes)
    engine = ContinuousEngine(llama)
    engine.add("one", request)
    expected: list[Any] = []
    while engine.running or engine.waiting:
        for output in engine.step():
            expected += [output.prompt_readings] if output.prompt_readings else []
            expected += [token.readings for token in output.tokens]
        if engine.running and engine._running[0].cached_tokens - len(prompt.ids) == 2:
            engine.steer("one", cap)
    program = compile_steering(began, probes)
    number = program.number
    program.extend(cap, 2)
    assert program.number != number
    state = RequestState(program=program, prompt=len(prompt.ids))
    _, readings = in_passes(llama, prompt.ids, state, CUTS[cuts])
    torch.testing.assert_close(readings, torch.tensor(expected[:-1]), rtol=1e-3, atol=1e-3)


def test_what_is_added_cannot_depend_on_the_prompt(llama: Model) -> None:
    condition = SteeringExpression.parse("up@1=0.3 if prompt up@1>0").steering({"up": tiny.vector(llama, seed=1)})
    with pytest.raises(InvalidSteering, match="The prompt has been read"):
        compile_steering(None).extend(condition, 2)
