"""Parity with our engine under torch.compile, in bfloat16 and with LoRA adapters. Needs vLLM; `make test-vllm`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tiny
from poise.engine import SamplingParams
from poise.engine.static import LocalEngine
from poise.model import Model, load_model, wrap
from poise.steer import SteeringExpression
from poise.vector import PersonaVector
from test_vllm_engine import (
    SIZES,
    TOKENS,
    check_parity,
    fields,
    folder,
    make_engine,
    model,
    parameters,
    varied_prompts,
    vectors,
)

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]
vllm = pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

__all__ = ["folder", "model", "vectors"]  # fixtures

NEAR_TIE = 0.15  # nats between two tokens that bfloat16 may rank either way
BFLOAT16_READINGS = 0.03  # of the largest reading


def test_compiled_graphs_give_what_our_engine_gives(
    folder: Path, model: Model, vectors: dict[str, PersonaVector]
) -> None:
    engine = make_engine(folder, enforce_eager=False)
    try:
        assert engine.llm_engine.vllm_config.compilation_config.mode.name != "NONE"
        check_parity(engine, model, vectors, fields(60, model, seed=11), varied_prompts(model, 60))
    finally:
        engine.llm_engine.engine_core.shutdown()


def test_bfloat16_differs_at_near_ties_alone(folder: Path, model: Model, vectors: dict[str, PersonaVector]) -> None:
    engine = make_engine(folder, dtype="bfloat16")
    half = load_model(str(folder), dtype=torch.bfloat16, device="cpu")
    requests, prompts = fields(60, model, seed=12), varied_prompts(model, 60)
    outputs = engine.generate(
        [{"prompt_token_ids": list(prompt.ids)} for prompt in prompts],
        [parameters(f, logprobs=20) for f in requests],
        use_tqdm=False,
    )
    engine.llm_engine.engine_core.shutdown()
    answers = LocalEngine(half, allow_other_model=True).generate(
        prompts,
        SamplingParams(max_new_tokens=TOKENS, temperature=0),
        steering=[SteeringExpression.parse(f["steer"]).steering(vectors) if f["steer"] else None for f in requests],
        probes=[[vectors[name].at("read").probe for name in f["watch"]] for f in requests],
    )
    gaps, errors, largest = [], [], 0.0
    for output, answer in zip(outputs, answers, strict=True):
        [completion] = output.outputs
        both = list(zip(completion.token_ids, answer.ids, strict=False))
        first = next((n for n, (token, ours) in enumerate(both) if token != ours), None)
        if first is not None:
            likely = {token: entry.logprob for token, entry in completion.logprobs[first].items()}
            gaps.append(likely[completion.token_ids[first]] - likely[answer.ids[first]])
        if completion.poise is None:
            continue
        assert answer.readings is not None
        values = torch.from_numpy(completion.poise.values)[: 1 + (len(both) if first is None else first)]
        expected = answer.readings[: len(values)]
        errors.append(float((values - expected).abs().max()))
        largest = max(largest, float(expected.abs().max()))
    assert max(gaps, default=0) < NEAR_TIE, sorted(gaps)
    assert max(errors) < BFLOAT16_READINGS * largest, (sorted(errors), largest)
    assert len(gaps) < len(requests) / 2


def test_requests_with_adapters_are_steered_and_read_as_the_adapted_model_is(
    folder: Path, model: Model, vectors: dict[str, PersonaVector], tmp_path: Path
) -> None:
    """Plain requests and those of an adapter share batches, and the same prompts a cache."""
    from vllm.lora.request import LoRARequest

    adapted = tiny.adapted(tiny.lm(**SIZES))
    adapted.save_pretrained(tmp_path)
    tuned = wrap(adapted, model.tokenizer, name="tuned")
    engine = make_engine(folder, enable_lora=True, max_lora_rank=8)
    requests, prompts = fields(24, model, seed=13), varied_prompts(model, 24)
    lora = LoRARequest("tuned", 1, str(tmp_path))
    try:
        for _ in range(2):
            check_parity(engine, tuned, vectors, requests, prompts, lora_request=[lora] * 24)
            check_parity(engine, model, vectors, requests, prompts)
    finally:
        engine.llm_engine.engine_core.shutdown()
