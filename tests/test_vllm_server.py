"""``vllm serve`` under the plugin, asked by the stock OpenAI client. Needs vLLM; `make test-vllm`."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

import tiny
from poise.vector import save_vector

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]
pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

SIZES = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
NAMES = ("evil", "kind", "rude")
QUESTION: Any = [{"role": "user", "content": "What do you think of my plan?"}]
STRENGTHS = [
    "evil@1=1.5",
    "kind@2=-2",
    "rude@1=out on all",
    "evil@1=cap:-1",
    "kind@1,2=1 after 2",
    "rude@2=1 if evil@1>0",
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    root = tmp_path_factory.mktemp("served")
    model = tiny.model(**SIZES)
    model.lm.save_pretrained(root)
    model.tokenizer.save_pretrained(root)
    (root / "vectors").mkdir()
    for seed, name in enumerate(NAMES):
        save_vector(tiny.vector(model, seed=seed, scale=0.5), root / "vectors" / f"{name}.safetensors")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "POISE_VECTORS": str(root / "vectors"),
    }
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(root)]
    command += ["--served-model-name", "tiny"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager"]
    command += ["--block-size", "32", "--max-model-len", "256"]
    with (root / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client:
            _wait(client, process, root / "log")
            yield client
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        process.kill()


def _wait(client: openai.OpenAI, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(1500):
        with contextlib.suppress(openai.APIConnectionError):
            client.models.list()
            return
        if process.poll() is not None:
            break
        time.sleep(1)
    pytest.fail(log.read_text()[-4000:])


def ask(client: openai.OpenAI, field: Any, **options: Any) -> Any:
    body = {"vllm_xargs": {"poise": field if isinstance(field, str) else json.dumps(field)}}
    settings: dict[str, Any] = {"max_tokens": 12, "temperature": 0, **options}
    return client.chat.completions.create(model="tiny", messages=QUESTION, extra_body=body, **settings)


def test_a_whole_answer_brings_its_readings(server: openai.OpenAI) -> None:
    answer = ask(server, {"steer": "evil@1=1.5", "watch": ["kind", "evil"]})
    poise = answer.choices[0].poise
    assert list(poise["prompt"]) == list(poise["readings"]) == ["kind", "evil"]
    assert poise["layers"] == {"kind": 1, "evil": 1}
    ended = answer.choices[0].finish_reason == "stop"
    assert [len(values) for values in poise["readings"].values()] == [answer.usage.completion_tokens - 1] * 2
    assert ended or answer.usage.completion_tokens == 12
    plain = ask(server, {"watch": ["kind", "evil"]})
    assert plain.choices[0].poise["readings"] != poise["readings"]
    assert plain.choices[0].poise["prompt"] == pytest.approx(poise["prompt"], rel=1e-5)
    bare = server.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=12, temperature=0)
    assert bare.choices[0].message.content == plain.choices[0].message.content
    assert not hasattr(bare.choices[0], "poise")


def test_a_stream_brings_the_same_readings_piece_by_piece(server: openai.OpenAI) -> None:
    field = {"steer": "evil@1=1.5", "watch": True}
    full = ask(server, field).choices[0]
    text, prompt, readings = "", [], {name: [] for name in NAMES}
    for chunk in ask(server, field, stream=True):
        [choice] = chunk.choices
        text += choice.delta.content or ""
        if (poise := getattr(choice, "poise", None)) is None:
            continue
        prompt += [poise["prompt"]] if "prompt" in poise else []
        assert poise["first_token"] == len(readings["evil"])
        for name, values in poise["readings"].items():
            readings[name] += values
    assert text == full.message.content
    assert prompt == [pytest.approx(full.poise["prompt"], rel=1e-4)]
    for name in NAMES:
        assert readings[name] == pytest.approx(full.poise["readings"][name], rel=1e-4, abs=1e-4)


def test_several_choices_and_plain_completions_have_theirs(server: openai.OpenAI) -> None:
    answer = ask(server, {"watch": ["evil"]}, n=3, temperature=1, seed=3)
    assert [len(c.poise["readings"]["evil"]) > 0 for c in answer.choices] == [True] * 3
    assert len({tuple(c.poise["readings"]["evil"]) for c in answer.choices}) == 3
    body = {"vllm_xargs": {"poise": json.dumps({"steer": "kind@1=1", "watch": ["evil"]})}}
    prompts = ["The harbour master", "She said: 'No"]
    plain = server.completions.create(model="tiny", prompt=prompts, max_tokens=6, temperature=0, extra_body=body)
    assert [len(c.poise["readings"]["evil"]) for c in plain.choices] == [5, 5]
    streamed: dict[int, list[float]] = {0: [], 1: []}
    for chunk in server.completions.create(
        model="tiny", prompt=prompts, max_tokens=6, temperature=0, stream=True, extra_body=body
    ):
        for choice in chunk.choices:
            streamed[choice.index] += getattr(choice, "poise", {"readings": {"evil": []}})["readings"]["evil"]
    for choice in plain.choices:
        assert streamed[choice.index] == pytest.approx(choice.poise["readings"]["evil"], rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ({"steer": "envy=1"}, "There is no vector 'envy'; there are: evil, kind, rude"),
        ({"steer": "evil@9=1"}, "Layer 9 is out of range"),
        ({"steer": "evil=sideways"}, "Cannot read the steering 'evil=sideways'"),
        ({"steer": "evil=1 in thought"}, "marks no thoughts"),
        ({"steer": "evil@2=1 on all if prompt kind@1>0"}, "a condition on the prompt"),
        ({"steer": "/etc/passwd=1"}, "There is no vector '/etc/passwd'"),
        ({"watch": ["envy"]}, "there is no vector 'envy'"),
        ({"strength": 1}, "strength"),
        ({"watch": "evil"}, "watch is 'evil'; it must be true or false, or a list"),
        ({"watch": ["evil"] * 65}, "watch has 65 entries; at most 64 are taken"),
        ("evil=1", "text that is not JSON"),
        ("[1]", "give an object"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_wrong_request_is_a_400_that_says_what_is_wrong(
    server: openai.OpenAI, field: Any, words: str, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(server, field, stream=stream)
    assert words in str(caught.value)


@pytest.mark.parametrize("stream", [False, True])
def test_a_field_beside_those_of_vllm_is_not_ignored(server: openai.OpenAI, stream: bool) -> None:
    settings: dict[str, Any] = {"model": "tiny", "max_tokens": 4, "stream": stream}
    settings["extra_body"] = {"poise": {"steer": "evil@1=1"}}
    with pytest.raises(openai.BadRequestError, match="vLLM, which would ignore it"):
        server.chat.completions.create(messages=QUESTION, **settings)
    with pytest.raises(openai.BadRequestError, match="vLLM, which would ignore it"):
        server.completions.create(prompt="She said", **settings)


@pytest.mark.parametrize("stream", [False, True])
def test_a_wrong_request_for_a_response_is_a_400(server: openai.OpenAI, stream: bool) -> None:
    body = {"vllm_xargs": {"poise": '{"steer": "envy=1"}'}}
    with pytest.raises(openai.BadRequestError, match="There is no vector 'envy'"):
        server.responses.create(model="tiny", input="hello", max_output_tokens=4, stream=stream, extra_body=body)


def test_readings_without_numbers_are_an_error_whole_and_streamed(server: openai.OpenAI) -> None:
    field = {"steer": "evil@1=2e38; kind@1=2e38", "watch": ["evil", "kind"]}
    with pytest.raises(openai.BadRequestError, match="NaN or infinity where evil, kind was read; steer with less"):
        ask(server, field)
    with pytest.raises(openai.APIError, match="NaN or infinity where evil, kind was read"):
        list(ask(server, field, stream=True))
    body = {"vllm_xargs": {"poise": json.dumps(field)}}
    settings: dict[str, Any] = {"model": "tiny", "prompt": ["She", "No"], "max_tokens": 6, "extra_body": body}
    with pytest.raises(openai.BadRequestError, match="NaN or infinity"):
        server.completions.create(**settings)
    with pytest.raises(openai.APIError, match="NaN or infinity"):
        list(server.completions.create(stream=True, **settings))
    assert ask(server, {"watch": ["evil"]}).choices[0].poise["readings"]["evil"]


def test_a_steering_that_breaks_the_model_is_an_error_though_nobody_watches(server: openai.OpenAI) -> None:
    field = {"steer": "evil@1=2e38; kind@1=2e38"}
    with pytest.raises(openai.BadRequestError, match="NaN or infinity under this steering; steer with less strength"):
        ask(server, field)
    with pytest.raises(openai.APIError, match="NaN or infinity under this steering"):
        list(ask(server, field, stream=True))
    assert not hasattr(ask(server, {"steer": "evil@1=1"}).choices[0], "poise")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"vllm_args": {"poise": "{}"}}, "There is no field vllm_args, and vLLM would ignore it"),
        ({"vllm_xargs": {"posie": "{}"}}, "vllm_xargs has 'posie', which nobody would take"),
        ({"vllm_xargs": {"steer": "evil=1"}}, "vllm_xargs has 'steer', which nobody would take"),
        ({"Poise": {"steer": "evil=1"}}, "Poise stands beside the fields of vLLM"),
        ({"watch": ["evil"]}, "watch stands beside the fields of vLLM"),
        ({"extra_body": {"poise": {}}}, "extra_body is an argument of the openai client"),
    ],
)
def test_what_nobody_would_take_is_refused(server: openai.OpenAI, body: dict[str, Any], words: str) -> None:
    plain: dict[str, Any] = {"model": "tiny", "max_tokens": 2, "messages": QUESTION}
    for path in ("/chat/completions", "/messages"):
        with pytest.raises(openai.BadRequestError) as caught:
            server.post(path, cast_to=object, body=plain | body)
        assert words in str(caught.value)
    others: Any = {"vllm_xargs": {"noise": "1", "depth": 2}, "user_note": "x"}
    assert server.post("/chat/completions", cast_to=object, body=plain | others)
    assert server.post("/messages", cast_to=object, body=plain | others)


def test_messages_are_steered_by_xargs(server: openai.OpenAI) -> None:
    plain: dict[str, Any] = {"model": "tiny", "max_tokens": 8, "messages": QUESTION, "temperature": 0}
    steered = plain | {"vllm_xargs": {"poise": json.dumps({"steer": "evil@1=4"})}}
    texts = [server.post("/messages", cast_to=object, body=body)["content"] for body in (plain, steered, plain)]  # type: ignore[index]
    assert texts[0] == texts[2] != texts[1]


def test_beam_search_is_refused(server: openai.OpenAI) -> None:
    body = {"vllm_xargs": {"poise": '{"steer": "evil=1"}'}, "use_beam_search": True}
    with pytest.raises(openai.BadRequestError, match="Beam search"):
        server.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=4, n=2, extra_body=body)


def test_sixteen_clients_of_different_steering_get_what_each_gets_alone(server: openai.OpenAI) -> None:
    fields = [{"steer": STRENGTHS[i % len(STRENGTHS)], "watch": [NAMES[i % 3]]} for i in range(16)]
    alone = [ask(server, field).choices[0] for field in fields[: len(STRENGTHS)]]
    with ThreadPoolExecutor(16) as clients:
        together = list(clients.map(lambda field: ask(server, field).choices[0], fields))
    for number, choice in enumerate(together):
        assert choice.message.content == alone[number % len(STRENGTHS)].message.content
    assert len({choice.message.content for choice in alone}) > 2
