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
from poise.activations import Probe, project_each
from poise.engine import SamplingParams
from poise.engine.static import LocalEngine
from poise.model import Encoded, Model
from poise.steer import SteeringExpression
from poise.steer.operators import LEVELED, OPERATORS
from poise.vector import PersonaVector, save_vector
from poise.vllm import passes, programs, scheduling
from random_steering import random_probes, random_steering

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]
vllm = pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

TOKENS = 16
NAMES = ("evil", "kind", "rude", "sly")
SIZES = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
SPECULATIVE = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3}
TRANSFER = {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}
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
    options = {"temperature": 0, "max_tokens": TOKENS, **changes}
    return vllm.SamplingParams(extra_args={"poise": field}, **options)


def check_parity(
    llm: Any,
    model: Model,
    vectors: dict[str, PersonaVector],
    requests: Sequence[dict[str, Any]],
    prompts: Sequence[Any],
    **options: Any,
) -> None:
    """Tokens equal, and readings within a thousandth of the largest of them."""
    outputs = llm.generate(
        [{"prompt_token_ids": list(prompt.ids)} for prompt in prompts],
        [parameters(f) for f in requests],
        use_tqdm=False,
        **options,
    )
    steerings = [SteeringExpression.parse(f["steer"]).steering(vectors) if f["steer"] else None for f in requests]
    probes: list[list[Probe]] = [[vectors[name].at("read").probe for name in f["watch"]] for f in requests]
    answers = LocalEngine(model, allow_other_model=True).generate(
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


class TestTheCache:
    def test_is_told_apart_by_steering_also_where_an_answer_becomes_a_prompt(
        self, llm: Any, model: Model, vectors: dict[str, PersonaVector]
    ) -> None:
        steers = ["evil@1=2 on all", None, "kind@1=out on prompt", "evil@1=2", "evil@0=-2 first 40", "rude@1=cap:-1"]
        requests = [{"steer": steer, "watch": ["evil"]} for steer in steers]
        [prompt] = varied_prompts(model, 1)
        for _ in range(2):
            check_parity(llm, model, vectors, requests, [prompt] * len(requests))
        [first] = llm.generate(
            {"prompt_token_ids": list(prompt.ids)}, parameters(requests[3], max_tokens=60), use_tqdm=False
        )
        ids = (*prompt.ids, *first.outputs[0].token_ids)
        second = Encoded(ids, len(ids), len(ids))
        check_parity(llm, model, vectors, requests, [second] * len(requests))

    def test_with_broken_keys_is_noticed(
        self, llm: Any, model: Model, vectors: dict[str, PersonaVector], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        llm.reset_prefix_cache()
        monkeypatch.setattr(scheduling, "steering_keys", lambda *arguments: [])
        requests = [{"steer": "evil@1=2 on all", "watch": ["evil"]}, {"steer": None, "watch": ["evil"]}]
        [prompt] = varied_prompts(model, 1)
        check_parity(llm, model, vectors, requests[:1], [prompt])
        with pytest.raises(AssertionError):
            check_parity(llm, model, vectors, requests[1:], [prompt])
        llm.reset_prefix_cache()


class TestBrokenOnPurpose:
    """What a fault in the plugin would look like: the comparison with our engine fails."""

    @pytest.fixture(autouse=True)
    def empty_cache(self, llm: Any) -> Iterator[None]:
        llm.reset_prefix_cache()
        yield
        llm.reset_prefix_cache()

    def test_the_rows_of_a_request(
        self, llm: Any, model: Model, vectors: dict[str, PersonaVector], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rows = passes.PassPiece.rows
        shifted = lambda piece, first, last: tuple(max(0, row - 1) for row in rows(piece, first, last))  # noqa: E731
        monkeypatch.setattr(passes.PassPiece, "rows", shifted)
        with pytest.raises(AssertionError):
            check_parity(llm, model, vectors, fields(12, model, seed=5), varied_prompts(model, 12))

    def test_where_the_response_begins(
        self, llm: Any, model: Model, vectors: dict[str, PersonaVector], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        positions = programs.SteeringWork.positions
        late = lambda work, prompt, first, last: positions(work, prompt + 1, first, last)  # noqa: E731
        monkeypatch.setattr(programs.SteeringWork, "positions", late)
        with pytest.raises(AssertionError):
            check_parity(llm, model, vectors, fields(12, model, seed=5), varied_prompts(model, 12))


def test_choices_of_one_request_have_readings_of_their_own(
    llm: Any, model: Model, vectors: dict[str, PersonaVector]
) -> None:
    [prompt] = varied_prompts(model, 1)
    field = {"steer": None, "watch": ["evil", "kind"]}
    inputs = {"prompt_token_ids": list(prompt.ids)}
    [output] = llm.generate(inputs, parameters(field, n=3, temperature=2, seed=1), use_tqdm=False)
    assert len({tuple(choice.token_ids) for choice in output.outputs}) == 3
    texts = [(*prompt.ids, *choice.token_ids[:-1]) for choice in output.outputs]
    probes = [vectors[name].at("read").probe for name in field["watch"]]
    read = project_each(model, [Encoded(ids, 0, len(ids)) for ids in texts], probes)
    for choice, values in zip(output.outputs, read, strict=True):
        assert values is not None
        expected = values[len(prompt.ids) - 1 :].cpu()
        torch.testing.assert_close(torch.from_numpy(choice.poise.values), expected, rtol=1e-3, atol=1e-3)


def test_a_request_that_is_aborted_leaves_nothing_behind(
    llm: Any, model: Model, vectors: dict[str, PersonaVector]
) -> None:
    prompts = varied_prompts(model, 4)
    field = {"steer": "evil@1=1", "watch": ["evil"]}
    for number, prompt in enumerate(prompts):
        llm.llm_engine.add_request(
            f"r{number}", {"prompt_token_ids": list(prompt.ids)}, parameters(field, max_tokens=40)
        )
    for _ in range(3):
        llm.llm_engine.step()
    llm.llm_engine.abort_request(["r1", "r2"])
    finished = {}
    while llm.llm_engine.has_unfinished_requests():
        finished |= {output.request_id: output for output in llm.llm_engine.step() if output.finished}
    assert sorted(finished) == ["r0", "r3"]
    check_parity(llm, model, vectors, [field] * 4, prompts)
    llm.llm_engine.step()
    runner = llm.llm_engine.model_executor.driver_worker.worker.model_runner
    assert len(runner.poise_requests) <= 4  # those that finished in the last step are dropped at the next


def test_prompts_in_chunks_and_answers_begun_again_come_out_the_same(
    folder: Path, model: Model, vectors: dict[str, PersonaVector], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.v1.core.sched.scheduler import Scheduler

    preempted = []
    preempt = Scheduler._preempt_request

    def count(self: Any, request: Any, *arguments: Any, **options: Any) -> Any:
        preempted.append(request.request_id)
        return preempt(self, request, *arguments, **options)

    monkeypatch.setattr(Scheduler, "_preempt_request", count)
    for caching in (True, False):
        preempted.clear()
        engine = make_engine(
            folder,
            max_num_batched_tokens=64,
            max_num_seqs=8,
            num_gpu_blocks_override=13,
            enable_prefix_caching=caching,
        )
        check_parity(engine, model, vectors, fields(60, model, seed=2), varied_prompts(model, 60))
        assert preempted
        engine.llm_engine.engine_core.shutdown()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3}},
            "speculative",
        ),
        ({"pipeline_parallel_size": 2}, "pipelines of several stages"),
        ({"tensor_parallel_size": 2}, "tensor parallelism"),
        (
            {"kv_transfer_config": {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}},
            "transfer of cached tokens",
        ),
    ],
)
def test_what_cannot_be_right_does_not_start(folder: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(Exception, match=words):
        make_engine(folder, **changes)


def test_the_engine_behind_our_protocol_gives_what_ours_gives(folder: Path, model: Model) -> None:
    from poise.vllm.engine import VllmEngine

    options = {"dtype": "float32", "enforce_eager": True, "block_size": 32, "max_model_len": 256}
    engine = VllmEngine(str(folder), **options)
    prompts = varied_prompts(model, 24)
    steering = [random_steering(seed, model) for seed in range(24)]
    probes = [random_probes(seed, model) for seed in range(24)]
    sampling = SamplingParams(max_new_tokens=TOKENS, temperature=0)
    answers = engine.generate(prompts, sampling, steering=steering, probes=probes, keep_means=True)
    expected = LocalEngine(model).generate(prompts, sampling, steering=steering, probes=probes, keep_means=True)
    for answer, ours in zip(answers, expected, strict=True):
        assert (answer.ids, answer.finish, answer.text) == (ours.ids, ours.finish, ours.text)
        for mine, theirs in ((answer.readings, ours.readings), (answer.mean, ours.mean)):
            assert mine is not None
            assert theirs is not None
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()), equal_nan=True)
    drawn = [engine.generate(prompts[:4], SamplingParams(8, 1.5), seeds=[5, 6, 7, 8]) for _ in range(2)]
    assert [answer.ids for answer in drawn[0]] == [answer.ids for answer in drawn[1]]
    assert engine.plan(prompts, sampling) == [list(range(24))]
