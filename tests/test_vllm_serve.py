"""``poise serve --engine vllm`` gives what the server on transformers gives. Needs vLLM; `make test-vllm`."""

from __future__ import annotations

import itertools
import json
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import httpx
import openai
import pytest
import torch
import yaml

import serving
import thinking
import tiny
from poise.activations import Probe
from poise.engine import GenerationRequest, SamplingParams
from poise.engine.continuous import ContinuousEngine
from poise.engine.sequence import Sequence
from poise.engine.static import LocalEngine
from poise.errors import InvalidArgument, NonFiniteActivation
from poise.model import Encoded, Model, wrap
from poise.model.parts import Part
from poise.serve.server import RunningServer, ServedEngine, ServerOptions, make_server, on_vllm
from poise.steer import Steering, SteeringExpression
from poise.vector import PersonaVector, save_vector
from poise.vllm import answer_rows
from poise.vllm.answer_rows import AnswerRow
from poise.vllm.programs import RequestProgram, SteeringWork
from poise.vllm.step_engine import VllmStepEngine
from preemptions import count_preemptions
from serving import eventually

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]
pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

SIZES = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
QUESTION: Any = [{"role": "user", "content": "Where do the boats go?"}]
STEERS = [
    None,
    "up@1=0.5",
    "down@2=-0.5",
    "up@1=out on all",
    "up@2=cap:0",
    "down@1,2=0.3 after 2",
    "down@2=0.4 if up@1>0",
    "up@1=0.4 if prompt down@1<9",
    "up@0=clamp:1 on prompt; down@2=floor:2 first 4",
]
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "WARNING",
}


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model(**SIZES)


@pytest.fixture(scope="module")
def engine(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedEngine]:
    folder = tmp_path_factory.mktemp("served")
    model.lm.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    os.environ.update(ENVIRONMENT)
    os.environ.pop("POISE_VECTORS", None)
    settings = {"enforce_eager": True, "max_model_len": 256, "block_size": 32}
    served = on_vllm(str(folder), batch=16, dtype=torch.float32, settings=settings)
    yield served
    served.close()


@contextmanager
def running(
    engine: ServedEngine, vectors: dict[str, PersonaVector], **options: Any
) -> Iterator[tuple[str, RunningServer]]:
    """A server on the engine, which outlives it."""
    settings = ServerOptions(port=0, **({"name": "tiny-llama", "grace": 1.0} | options))
    server = make_server(replace(engine, close=lambda: None), vectors, settings)
    address = server.start()
    try:
        yield address, server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def vectors(model: Model) -> dict[str, PersonaVector]:
    return serving.vectors(model)


@pytest.fixture(scope="module")
def servers(
    engine: ServedEngine, model: Model, vectors: dict[str, PersonaVector], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str]]:
    """Addresses of a server on vLLM, and of one on transformers."""
    policy = serving.uploading(tmp_path_factory.mktemp("rules"))
    with (
        running(engine, vectors, policy=policy) as (address, _),
        serving.running(model, vectors, policy=policy) as (ours, _),
    ):
        yield address, ours


def chat(address: str, **changes: Any) -> Any:
    body = {"model": "tiny-llama", "messages": QUESTION, "max_tokens": 24, "temperature": 0, **changes}
    answer = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def poise_field(steer: str | None) -> dict[str, Any]:
    return {"steer": steer, "watch": True} if steer else {"watch": True}


def assert_alike(one: Any, other: Any) -> None:
    """Equal, with numbers within a thousandth of what is usual here."""
    if isinstance(other, dict):
        assert one.keys() == other.keys()
        for key in other.keys() - {"id", "created"}:
            assert_alike(one[key], other[key])
    elif isinstance(other, list):
        assert len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            assert_alike(mine, theirs)
    elif isinstance(other, float):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-3)
    else:
        assert one == other


@pytest.mark.parametrize("steer", STEERS)
def test_a_chat_is_answered_as_on_transformers(servers: tuple[str, str], steer: str | None) -> None:
    options: dict[str, Any] = {"poise": poise_field(steer), "logprobs": True, "top_logprobs": 3}
    answer, ours = (chat(address, **options) for address in servers)
    for reply in (answer, ours):  # a prompt may have been kept by one and not by the other
        reply["usage"]["prompt_tokens_details"].pop("cached_tokens")
    assert_alike(answer, ours)
    assert len(answer["choices"][0]["poise"]["readings"]["up"]) == 24


class TestAnswers:
    def test_end_at_stop_strings_as_on_transformers(self, servers: tuple[str, str]) -> None:
        text = chat(servers[1])["choices"][0]["message"]["content"]
        stop = text[len(text) // 2 :][:3]
        answer, ours = (chat(address, stop=[stop], poise={"watch": True})["choices"] for address in servers)
        assert answer[0]["finish_reason"] == "stop"
        assert stop not in answer[0]["message"]["content"]
        assert_alike(answer, ours)

    def test_are_held_to_a_schema_as_on_transformers(self, servers: tuple[str, str]) -> None:
        schema = {
            "type": "object",
            "properties": {"where": {"enum": ["out", "home"]}, "count": {"type": "integer", "maximum": 9}},
            "required": ["where", "count"],
            "additionalProperties": False,
        }
        shape = {"type": "json_schema", "json_schema": {"name": "trip", "schema": schema, "strict": True}}
        answer, ours = (
            chat(address, max_tokens=100, response_format=shape, poise=poise_field("up@1=0.5"))["choices"]
            for address in servers
        )
        assert json.loads(answer[0]["message"]["content"])["where"] in ("out", "home")
        assert_alike(answer, ours)

    def test_are_drawn_again_by_the_same_seed(self, servers: tuple[str, str]) -> None:
        options = {"temperature": 1.5, "seed": 7, "n": 2, "max_tokens": 12}
        texts = [[c["message"]["content"] for c in chat(servers[0], **options)["choices"]] for _ in range(2)]
        assert texts[0] == texts[1]
        assert texts[0][0] != texts[0][1]
        assert texts[0] != [c["message"]["content"] for c in chat(servers[0], **(options | {"seed": 8}))["choices"]]

    def test_of_sixteen_clients_are_what_each_gets_alone(self, servers: tuple[str, str]) -> None:
        fields = [poise_field(STEERS[i % len(STEERS)]) for i in range(16)]
        alone = [chat(servers[1], poise=field)["choices"] for field in fields[: len(STEERS)]]
        with ThreadPoolExecutor(16) as clients:
            together = list(clients.map(lambda field: chat(servers[0], poise=field)["choices"], fields))
        for number, choices in enumerate(together):
            assert_alike(choices, alone[number % len(STEERS)])
        assert len({choices[0]["message"]["content"] for choices in alone}) > 4

    def test_of_other_lengths_and_prompts_share_batches(self, servers: tuple[str, str]) -> None:
        texts = [sentence * times for sentence in tiny.SENTENCES[:4] for times in (1, 2)]
        requests = [
            {"messages": [{"role": "user", "content": text}], "max_tokens": 5 + 9 * n, "poise": poise_field(STEERS[n])}
            for n, text in enumerate(texts)
        ]
        with ThreadPoolExecutor(8) as clients:
            answers = list(clients.map(lambda request: chat(servers[0], **request)["choices"], requests))
        for answer, request in zip(answers, requests, strict=True):
            assert_alike(answer, chat(servers[1], **request)["choices"])


class TestTheOpenAIClient:
    @pytest.fixture
    def client(self, servers: tuple[str, str]) -> Iterator[openai.OpenAI]:
        with openai.OpenAI(base_url=f"{servers[0]}/v1", api_key="none", max_retries=0) as client:
            yield client

    def test_streams_what_it_gets_whole(self, client: openai.OpenAI, servers: tuple[str, str]) -> None:
        options: dict[str, Any] = {
            "model": "tiny-llama",
            "messages": QUESTION,
            "max_tokens": 16,
            "temperature": 0,
            "extra_body": {"poise": poise_field("up@1=0.5")},
        }
        [complete] = client.chat.completions.create(**options).choices
        chunks = list(client.chat.completions.create(stream=True, **options))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        fields: list[Any] = [chunk.choices[0].model_dump()["poise"] for chunk in chunks]
        expected: Any = complete.model_dump()["poise"]
        assert text == complete.message.content
        assert [token for field in fields for token in field.get("tokens", ())] == expected["tokens"]
        streamed = [value for field in fields for value in field.get("readings", {}).get("up", ())]
        assert streamed == pytest.approx(expected["readings"]["up"], rel=1e-4, abs=1e-4)
        assert fields[-1]["summary"]["up"] == pytest.approx(expected["summary"]["up"], rel=1e-4)

    @pytest.mark.parametrize(
        ("changes", "words", "param"),
        [
            ({"extra_body": {"poise": {"steer": "envy=10%"}}}, "envy", "poise.steer"),
            (
                {"extra_body": {"poise": {"steer": "up@1=0.3 on all if prompt up@1>0"}}},
                "steer the response on that condition",
                "poise.steer",
            ),
            ({"max_tokens": 300}, "maximum context length is 255 tokens", "messages"),
            ({"extra_body": {"top_k": 3}}, "top_k is not supported", "top_k"),
        ],
    )
    def test_is_told_what_cannot_be_done(
        self, client: openai.OpenAI, changes: dict[str, Any], words: str, param: str
    ) -> None:
        with pytest.raises(openai.BadRequestError, match=words) as caught:
            client.chat.completions.create(**({"model": "tiny-llama", "messages": QUESTION, "max_tokens": 4} | changes))
        assert caught.value.param == param

    def test_gets_responses(self, client: openai.OpenAI, servers: tuple[str, str]) -> None:
        options: dict[str, Any] = {
            "model": "tiny-llama",
            "input": "Where do the boats go?",
            "max_output_tokens": 16,
            "temperature": 0,
            "extra_body": {"poise": poise_field("up@1=0.5")},
        }
        with openai.OpenAI(base_url=f"{servers[1]}/v1", api_key="none", max_retries=0) as ours:
            assert client.responses.create(**options).output_text == ours.responses.create(**options).output_text

    def test_is_told_that_prompts_are_not_scored(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.BadRequestError, match="Prompts are not scored by this server") as caught:
            client.completions.create(model="tiny-llama", prompt="boats", echo=True, logprobs=1, max_tokens=0)
        assert caught.value.param == "echo"
        text = client.completions.create(model="tiny-llama", prompt="boats", echo=True, max_tokens=2).choices[0].text
        assert text.startswith("boats")


def test_a_client_that_goes_away_frees_its_request(engine: ServedEngine, vectors: dict[str, PersonaVector]) -> None:
    with running(engine, vectors) as (address, server):
        body = {"model": "tiny-llama", "messages": QUESTION, "max_tokens": 200, "stream": True}
        with httpx.stream("POST", f"{address}/v1/chat/completions", json=body, timeout=60) as stream:
            next(stream.iter_lines())
        eventually(lambda: server.service.scheduler.idle)
        assert (engine.steps.running, engine.steps.waiting) == (0, 0)
        assert not engine.steps._core.scheduler.requests  # type: ignore[attr-defined] # vLLM's own
        assert chat(address, max_tokens=3)["usage"]["completion_tokens"] == 3


def test_a_server_that_ends_lets_its_answers_end(engine: ServedEngine, vectors: dict[str, PersonaVector]) -> None:
    lines: list[str] = []
    body = {"model": "tiny-llama", "messages": QUESTION, "max_tokens": 100, "stream": True}

    def listen(address: str) -> None:
        with httpx.stream("POST", f"{address}/v1/chat/completions", json=body, timeout=60) as stream:
            lines.extend(stream.iter_lines())

    with running(engine, vectors, grace=30.0) as (address, server):
        client = threading.Thread(target=listen, args=(address,))
        client.start()
        eventually(lambda: engine.steps.running)
        server.service.scheduler.drain()
        refused = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=10)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        assert httpx.get(f"{address}/readyz", timeout=10).status_code == 503
        assert httpx.get(f"{address}/healthz", timeout=10).status_code == 200
    client.join()
    assert lines[-2:] == ["data: [DONE]", ""]
    assert (engine.steps.running, engine.steps.waiting) == (0, 0)


class TestAlarms:
    """What a policy does is done at the same token as on transformers."""

    @pytest.fixture(scope="class")
    def plain(self, servers: tuple[str, str]) -> list[float]:
        readings: list[float] = chat(servers[1], max_tokens=40, poise={"watch": True})["choices"][0]["poise"][
            "readings"
        ]["up"]
        return readings

    @pytest.mark.parametrize("action", ["note", "cap", "stop"])
    def test_act_as_on_transformers(
        self,
        engine: ServedEngine,
        model: Model,
        vectors: dict[str, PersonaVector],
        plain: list[float],
        tmp_path: Path,
        action: str,
    ) -> None:
        windows = [sum(plain[i : i + 8]) / 8 for i in range(len(plain) - 7)]
        threshold = sorted(windows[:12])[-2]
        alarmed = vectors | {"up": vectors["up"].with_alarms([serving.alarm(threshold=threshold)])}
        policy = tmp_path / "policy.yaml"
        policy.write_text(yaml.safe_dump({"default": {"on_alarm": action, "steer": "down@2=0.2"}}))
        options = {"max_tokens": 40, "poise": {"steer": "down@3=0.2", "watch": True}}
        with (
            running(engine, alarmed, policy=policy) as (address, _),
            serving.running(model, alarmed, policy=policy) as (ours, _),
        ):
            answers = [chat(each, **options)["choices"] for each in (address, ours)]
            assert [alert["action"] for alert in answers[1][0]["poise"]["alarms"]][:1] == [action]
            assert_alike(*answers)
            again = chat(address, **options)["choices"]
        assert_alike(again, answers[1])

    def test_that_cannot_be_kept_are_refused_at_the_start(
        self, engine: ServedEngine, vectors: dict[str, PersonaVector], tmp_path: Path
    ) -> None:
        policy = tmp_path / "policy.yaml"
        policy.write_text("default: {steer: up@1=0.2 on all if prompt up@1>0}")
        with pytest.raises(InvalidArgument, match=r"default\.steer is .* steer the response on that condition"):
            make_server(engine, vectors, ServerOptions(port=0, policy=policy))


def test_uploads_are_read_and_steered_with(servers: tuple[str, str], model: Model, tmp_path: Path) -> None:
    save_vector(tiny.vector(model, seed=5), tmp_path / "new.safetensors")
    data = (tmp_path / "new.safetensors").read_bytes()
    for address in servers:
        answer = httpx.post(f"{address}/v1/poise/vectors?name=new", content=data, timeout=60)
        assert answer.status_code == 201, answer.text
    answer, ours = (chat(address, poise=poise_field("new@1=0.4"))["choices"] for address in servers)
    assert answer[0]["poise"]["layers"]["new"] == 1
    assert_alike(answer, ours)
    for address in servers:
        assert httpx.delete(f"{address}/v1/poise/vectors/new", timeout=60).status_code < 300


def test_what_is_normal_is_read_through_vllm(servers: tuple[str, str]) -> None:
    listed = [httpx.get(f"{address}/v1/poise/vectors", timeout=60).json() for address in servers]
    assert_alike(*listed)


def test_machines_are_told_what_runs(servers: tuple[str, str]) -> None:
    metrics = httpx.get(f"{servers[0]}/metrics", timeout=60).text
    assert 'dtype="float32",engine="vllm",model="tiny-llama"' in metrics
    models = httpx.get(f"{servers[0]}/v1/models", timeout=60).json()["data"]
    assert models[0]["context_window"] == 255
    assert httpx.get(f"{servers[0]}/", timeout=60).status_code == 200


def run_alone(
    steps: Any, request: GenerationRequest, *, cap: Steering | None = None, after: int = 0
) -> tuple[list[int], list[tuple[float, ...]]]:
    """Tokens and readings of one answer, to which a cap may be added once so many of its tokens have been run."""
    steps.add("alone", request)
    sequence, values = None, list[tuple[float, ...]]()
    while steps.running or steps.waiting:
        outputs = steps.step()
        under_way = steps._running.values() if isinstance(steps, VllmStepEngine) else steps._running
        sequence = next((getattr(answer, "sequence", answer) for answer in under_way), sequence)
        for output in outputs:
            assert output.error is None
            values += [output.prompt_readings] if output.prompt_readings else []
            values += [token.readings for token in output.tokens]
        assert sequence is not None
        if cap and sequence.cached_tokens - len(request.prompt.ids) == after:
            steps.steer("alone", cap)
            cap = None
    assert sequence is not None
    return list(sequence.detokenizer.tokens), values


class TestACap:
    """One that begins within an answer, at the last token of a block of vLLM's cache, whose name is made before."""

    AFTER = 11

    @pytest.fixture
    def request_and_cap(self, model: Model, vectors: dict[str, PersonaVector]) -> tuple[GenerationRequest, Steering]:
        ids = tuple(5 + 7 * n % 50 for n in range(64 - 1 - self.AFTER))
        request = GenerationRequest(
            prompt=Encoded(ids, len(ids), len(ids)),
            sampling=SamplingParams(max_new_tokens=40, temperature=0),
            probes=(vectors["up"].at("read").probe,),
        )
        return request, Steering.cap(vectors["up"], layer=0, level=-20.0)

    def begin_and_go_on(
        self, steps: Any, model: Model, request: GenerationRequest, cap: Steering
    ) -> tuple[list[tuple[float, ...]], torch.Tensor]:
        """Readings of a second turn whose prompt ends in a capped answer, and what they are without any cache."""
        tokens, _ = run_alone(steps, request, cap=cap, after=self.AFTER)
        ids = (*request.prompt.ids, *tokens[: self.AFTER + 3])
        second = replace(request, prompt=Encoded(ids, len(ids), len(ids)), sampling=SamplingParams(4, 0))
        _, values = run_alone(steps, second)
        [expected] = LocalEngine(model).generate([second.prompt], second.sampling, probes=second.probes)
        assert expected.readings is not None
        return values, expected.readings

    def test_holds_from_the_next_token_on(
        self, engine: ServedEngine, model: Model, request_and_cap: tuple[GenerationRequest, Steering]
    ) -> None:
        request, cap = request_and_cap
        engine.steps._engine.reset_prefix_cache()  # type: ignore[attr-defined] # vLLM's own
        tokens, values = run_alone(engine.steps, request, cap=cap, after=self.AFTER)
        ours, expected = run_alone(ContinuousEngine(model), request, cap=cap, after=self.AFTER)
        assert tokens == ours
        torch.testing.assert_close(torch.tensor(values), torch.tensor(expected), rtol=1e-3, atol=1e-3)

    def test_is_told_apart_by_the_cache(
        self, engine: ServedEngine, model: Model, request_and_cap: tuple[GenerationRequest, Steering]
    ) -> None:
        engine.steps._engine.reset_prefix_cache()  # type: ignore[attr-defined]
        values, expected = self.begin_and_go_on(engine.steps, model, *request_and_cap)
        torch.testing.assert_close(torch.tensor(values), expected, rtol=1e-3, atol=1e-3)

    def test_without_new_names_of_blocks_is_noticed(
        self,
        engine: ServedEngine,
        model: Model,
        request_and_cap: tuple[GenerationRequest, Steering],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        engine.steps._engine.reset_prefix_cache()  # type: ignore[attr-defined]
        monkeypatch.setattr(VllmStepEngine, "_hash_again", lambda self, answer: None)
        values, expected = self.begin_and_go_on(engine.steps, model, *request_and_cap)
        with pytest.raises(AssertionError):
            torch.testing.assert_close(torch.tensor(values), expected, rtol=1e-3, atol=1e-3)
        engine.steps._engine.reset_prefix_cache()  # type: ignore[attr-defined]


def test_a_server_without_vectors_answers(engine: ServedEngine, servers: tuple[str, str]) -> None:
    with running(engine, {}) as (address, _):
        answer = chat(address)["choices"][0]
    assert answer["message"] == chat(servers[1])["choices"][0]["message"]
    assert "poise" not in answer


class TestTheEngine:
    @pytest.mark.parametrize("temperature", [0.7, 0.01, 0.003, 1e-10, 1e-25, 0.0])
    def test_draws_at_temperatures_that_vllm_would_raise(
        self, engine: ServedEngine, model: Model, temperature: float
    ) -> None:
        [prompt] = tiny.texts(model, 1)[:1]
        request = GenerationRequest(prompt=prompt, sampling=SamplingParams(8, temperature))
        row = AnswerRow(Sequence("cold", request, model))
        parameters = engine.steps._parameters(request, RequestProgram(), row)  # type: ignore[attr-defined]
        logits = torch.tensor([[1.0, -2.0, 0.5]])
        held = answer_rows.hold_rows({0: row}, logits.clone())
        if temperature < 1e-20:
            assert parameters.temperature == 0
            assert torch.equal(held, logits)
        else:
            torch.testing.assert_close(held / parameters.temperature, logits / temperature)

    def test_goes_on_after_a_pass_that_failed(
        self, engine: ServedEngine, vectors: dict[str, PersonaVector], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from poise.vllm import block_op

        with running(engine, vectors) as (address, _):
            with monkeypatch.context() as broken:

                def fail(*arguments: Any) -> None:
                    raise RuntimeError("out of memory")

                broken.setattr(block_op, "work_at_layer", fail)
                body = {"model": "tiny-llama", "messages": QUESTION, "max_tokens": 4}
                answer = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=60)
                assert (answer.status_code, answer.json()["error"]["code"]) == (500, "model_failed")
            assert chat(address, max_tokens=4)["usage"]["completion_tokens"] == 4

    def test_says_that_activations_broke(self, engine: ServedEngine, model: Model) -> None:
        [prompt] = tiny.texts(model, 1)[:1]
        vector = tiny.vector(model, seed=1)
        request = GenerationRequest(
            prompt=prompt,
            sampling=SamplingParams(max_new_tokens=8, temperature=0),
            steering=Steering.add(vector, layer=1, coef=3e38),
        )
        engine.steps.add("broken", request)
        outputs = []
        while engine.steps.running or engine.steps.waiting:
            outputs += engine.steps.step()
        assert isinstance(outputs[-1].error, NonFiniteActivation)
        assert len(outputs) <= 2


class TestSmallCacheAndThoughts:
    """A model that thinks, in a cache so small that answers are put aside, with prompts read in parts."""

    STEERS = (
        None,
        "up@1=0.5 in thought",
        "up@1=0.5",
        "up@1=0.5 in both",
        "down@2=out in thought after 3",
        "up@1=cap:0 first 5",
        "down@1=0.4 on all in thought",
        "down@1=0.4 on all in both; up@2=floor:1 if up@1>0",
    )

    @pytest.fixture(scope="class")
    def thinker(self) -> Model:
        return wrap(tiny.lm(**SIZES), thinking.tokenizer("qwen3"), name="tiny-thinker")

    @pytest.fixture(scope="class")
    def small(self, thinker: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
        folder = tmp_path_factory.mktemp("thinker")
        thinker.lm.save_pretrained(folder)
        thinker.tokenizer.save_pretrained(folder)
        os.environ.update(ENVIRONMENT)
        settings = {
            "max_model_len": 256,
            "block_size": 32,
            "max_num_batched_tokens": 64,
            "num_gpu_blocks_override": 13,
        }
        served = on_vllm(str(folder), batch=8, dtype=torch.float32, settings=settings)
        yield served.steps
        served.close()

    def requests(self, thinker: Model) -> list[GenerationRequest]:
        vectors = serving.vectors(thinker)
        probes = tuple(Probe(layer, vectors["up"].directions[layer]) for layer in (1, 3))
        requests = []
        for number in range(24):
            steer = self.STEERS[number % len(self.STEERS)]
            ids = tuple(5 + (7 * n + number) % 50 for n in range(20 + 5 * number))
            requests.append(
                GenerationRequest(
                    prompt=Encoded(ids, len(ids), len(ids)),
                    sampling=SamplingParams(max_new_tokens=70, temperature=1.0),
                    seed=number,
                    steering=SteeringExpression.parse(steer).steering(vectors) if steer else None,
                    probes=probes,
                )
            )
        return requests

    def scripts(self, thinker: Model) -> dict[int, list[int]]:
        """Answers by seed: most think first, one closes a thought that nothing opened, some reply at once."""
        said = [" ".join(tiny.SENTENCES[n % 6].split()[: 4 + n % 5]) for n in range(24)]
        texts = {
            n: f"<think>\n{said[n]}\n</think>\n\n{said[23 - n]}" if n % 5 else f"{said[n]} {said[23 - n]}"
            for n in range(24)
        }
        texts[7] = f"{said[1]}</think>{said[2]}"
        return {n: thinker.tokenizer(text, add_special_tokens=False)["input_ids"] for n, text in texts.items()}

    def compare(self, small: Any, thinker: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        """Both engines give the scripted answers, capped in the middle, with the same parts and readings."""
        scripts, requests = self.scripts(thinker), self.requests(thinker)
        thinking.script(monkeypatch, thinker, scripts)
        end = thinker.tokenizer.eos_token_id

        def forced(rows: dict[int, AnswerRow], logits: torch.Tensor) -> torch.Tensor:
            logits = logits.clone()
            for number, row in rows.items():
                script, place = scripts[row.sequence.request.seed], len(row.sequence.detokenizer.tokens)
                logits[number] = -torch.inf
                logits[number, script[place] if place < len(script) else end] = 0.0
            return logits

        monkeypatch.setattr(answer_rows, "hold_rows", forced)
        caps = {
            number: (Steering.cap(serving.vectors(thinker)["up"], layer=0, level=-1.0, part=part), 6)
            for number, part in zip(range(1, 24), itertools.cycle(get_args(Part)))
        }
        preempted = count_preemptions(monkeypatch)
        answers = run_together(small, requests, caps)
        assert preempted
        expected = run_together(ContinuousEngine(thinker), requests, caps)
        assert {part for tokens, _ in expected.values() for _, part in tokens} == {"mark", "thought", "reply"}
        for number in range(24):
            (tokens, values), (theirs, wanted) = answers[number], expected[number]
            assert tokens == theirs, number
            torch.testing.assert_close(torch.tensor(values), torch.tensor(wanted), rtol=1e-3, atol=1e-3)

    def test_give_what_our_engine_gives(self, small: Any, thinker: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        self.compare(small, thinker, monkeypatch)

    @pytest.mark.parametrize("fault", ["parts", "since"])
    def test_with_a_fault_are_noticed(
        self, small: Any, thinker: Model, monkeypatch: pytest.MonkeyPatch, fault: str
    ) -> None:
        """Where parts are not told apart, or a cap works on tokens that came before it once they are run again."""
        ranges = SteeringWork.ranges

        def broken(work: Any, prompt: int, first: int, last: int, parts: Any = None) -> list[tuple[int, int]]:
            wrong = replace(work, part="both") if fault == "parts" else replace(work, since=0)
            return ranges(wrong, prompt, first, last, parts)

        monkeypatch.setattr(SteeringWork, "ranges", broken)
        with pytest.raises(AssertionError, match="not close"):
            self.compare(small, thinker, monkeypatch)

    def test_keys_take_turns_and_share_nothing(self, small: Any, thinker: Model) -> None:
        [first, *_] = self.requests(thinker)
        short = replace(first, sampling=SamplingParams(4, 0), prompt=Encoded(tuple(range(5, 75)), 70, 70))
        for number in range(10):
            small.add(("ana", number), replace(short, client="ana"))
        small.add("ben", replace(short, client="ben"))
        began, reused = [], dict[Any, int]()
        while small.running or small.waiting:
            for output in small.step():
                if output.prompt_readings is not None:
                    began.append(output.key)
                    reused[output.key] = output.reused_tokens
        assert began.index("ben") <= 2
        assert reused["ben"] == 0
        assert max(reused.values()) == 64
        assert began[0] == ("ana", 0)


def run_together(
    steps: Any, requests: list[GenerationRequest], caps: dict[int, tuple[Steering, int]]
) -> dict[int, tuple[list[tuple[str, str]], list[tuple[float, ...]]]]:
    """Texts with parts, and readings, of answers that run together; caps begin after so many tokens of theirs."""
    for number, request in enumerate(requests):
        steps.add(number, request)
    answers: dict[int, tuple[list[tuple[str, str]], list[tuple[float, ...]]]] = {n: ([], []) for n in range(24)}
    caps = dict(caps)
    while steps.running or steps.waiting:
        for output in steps.step():
            assert output.error is None, output.error
            tokens, values = answers[output.key]
            values += [output.prompt_readings] if output.prompt_readings else []
            values += [token.readings for token in output.tokens]
            tokens += [(token.text, token.part) for token in output.tokens]
        under_way = steps._running.values() if isinstance(steps, VllmStepEngine) else steps._running
        for sequence in [getattr(answer, "sequence", answer) for answer in under_way]:
            cap, after = caps.get(sequence.key, (None, 0))
            if cap and sequence.cached_tokens - len(sequence.request.prompt.ids) == after:
                steps.steer(sequence.key, cap)
                del caps[sequence.key]
    assert not caps
    return answers
