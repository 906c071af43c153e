"""Offline vLLM under the plugin gives the tokens and the readings of our engine. Needs vLLM; `make test-vllm`."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from poise.activations import Probe
from poise.engine import SamplingParams
from poise.engine.static import LocalEngine
from poise.model import Encoded, Model
from poise.steer import SteeringExpression
from poise.steer.operators import LEVELED, OPERATORS
from poise.vector import PersonaVector, save_vector

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]
vllm = pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

TOKENS = 16
NAMES = ("evil", "kind", "rude", "sly")
SIZES = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
}


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model(**SIZES)


@pytest.fixture(scope="module")
def vectors(model: Model) -> dict[str, PersonaVector]:
    return {name: tiny.vector(model, seed=seed, scale=0.5) for seed, name in enumerate(NAMES)}


@pytest.fixture(scope="module")
def folder(model: Model, vectors: dict[str, PersonaVector], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model, and one in it with the vectors."""
    root = tmp_path_factory.mktemp("served")
    model.lm.save_pretrained(root)
    model.tokenizer.save_pretrained(root)
    (root / "vectors").mkdir()
    for name, vector in vectors.items():
        save_vector(vector, root / "vectors" / f"{name}.safetensors")
    os.environ.update(ENVIRONMENT, POISE_VECTORS=str(root / "vectors"))
    return root


def make_engine(folder: Path, **changes: Any) -> Any:
    options = {"dtype": "float32", "enforce_eager": True, "block_size": 32, "max_model_len": 256, **changes}
    return vllm.LLM(model=str(folder), **options)


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[Any]:
    engine = make_engine(folder)
    yield engine
    engine.llm_engine.engine_core.shutdown()


def random_expression(draw: random.Random, layers: int) -> str | None:
    """Some terms as users write them."""
    if draw.random() < 0.1:
        return None
    terms = [_random_term(draw, layers) for _ in range(draw.randint(1, 3))]
    return "; ".join([*terms, *(["orthogonal"] if draw.random() < 0.2 else [])])


def _random_term(draw: random.Random, layers: int) -> str:
    operation = draw.choice(list(OPERATORS))
    first = draw.randrange(layers)
    at = f"{first}" if draw.random() < 0.6 else ",".join(map(str, sorted({first, draw.randrange(first, layers)})))
    strength = f"{draw.uniform(-1, 1):.3f}"
    if operation == "add" and draw.random() < 0.2:
        at, first = "increments", 0
    if operation == "project_out":
        strength = "out"
    elif operation in LEVELED:
        strength = f"{operation}:{strength}"
    phase = draw.choice(["response", "response", "prompt", "all"])
    text = f"{draw.choice(NAMES)}@{at}={strength}" + ("" if phase == "response" else f" on {phase}")
    if phase == "response" and draw.random() < 0.3:
        text += draw.choice([" first 4", " after 3", " tokens 2-9"])
    if draw.random() < 0.4:
        on_prompt = phase == "response" and draw.random() < 0.5
        layer = draw.randrange(layers) if on_prompt else draw.randint(0, first)
        sign = draw.choice("<>")
        text += f" if {'prompt ' if on_prompt else ''}{draw.choice(NAMES)}@{layer}{sign}{draw.uniform(-1, 1):.3f}"
    return text


def fields(n: int, model: Model, seed: int) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    return [
        {"steer": random_expression(draw, model.layers), "watch": draw.sample(NAMES, draw.randint(0, len(NAMES)))}
        for _ in range(n)
    ]


def parameters(field: dict[str, Any], **changes: Any) -> Any:
    return vllm.SamplingParams(temperature=0, max_tokens=TOKENS, extra_args={"poise": field}, **changes)


def check_parity(
    llm: Any,
    model: Model,
    vectors: dict[str, PersonaVector],
    requests: Sequence[dict[str, Any]],
    prompts: Sequence[Any],
) -> None:
    """Tokens equal, and readings within a thousandth of the largest of them."""
    outputs = llm.generate(
        [{"prompt_token_ids": list(prompt.ids)} for prompt in prompts],
        [parameters(f) for f in requests],
        use_tqdm=False,
    )
    steerings = [SteeringExpression.parse(f["steer"]).steering(vectors) if f["steer"] else None for f in requests]
    probes: list[list[Probe]] = [[vectors[name].at("read").probe for name in f["watch"]] for f in requests]
    answers = LocalEngine(model).generate(
        list(prompts), SamplingParams(max_new_tokens=TOKENS, temperature=0), steering=steerings, probes=probes
    )
    for field, output, answer in zip(requests, outputs, answers, strict=True):
        [completion] = output.outputs
        assert tuple(completion.token_ids)[: len(answer.ids)] == answer.ids, field
        if not field["watch"]:
            assert completion.poise is None
            continue
        assert completion.poise.names == tuple(field["watch"])
        assert answer.readings is not None
        values = torch.from_numpy(completion.poise.values)
        assert len(values) == len(completion.token_ids)  # the last prompt token, and all tokens but the last
        expected = answer.readings[: len(values)]
        torch.testing.assert_close(values, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def varied_prompts(model: Model, n: int) -> list[Encoded]:
    """Prompts of many lengths, many of them with a long beginning in common."""
    texts = [text.ids[: 20 + 7 * i] for i, text in enumerate(tiny.texts(model, 16))]
    shared = max((text.ids for text in tiny.texts(model, 16)), key=len)[:70]
    prompts = [texts[i % 16] if i % 3 else (*shared, *texts[i % 5][:9]) for i in range(n)]
    return [Encoded(ids, len(ids), len(ids)) for ids in prompts]


def test_requests_in_shared_batches_are_steered_and_read_as_by_our_engine(
    llm: Any, model: Model, vectors: dict[str, PersonaVector]
) -> None:
    check_parity(llm, model, vectors, fields(200, model, seed=1), varied_prompts(model, 200))
