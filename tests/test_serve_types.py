"""Bodies of ``poise serve`` against OpenAI's own types, which its client does not check by itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openai.types import Completion, ErrorObject, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

import serving
import tiny

NAME = "tiny-llama"
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Where do the boats go?"}]}
TEXT: dict[str, Any] = {"prompt": ["The boats", "The sea"]}
STEERED: dict[str, Any] = {"poise": {"steer": "up=0.3", "watch": True}}
CASES: list[dict[str, Any]] = [{}, {"n": 2, "temperature": 1.0}, STEERED]


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with serving.running(tiny.model()) as (address, _), httpx.Client(base_url=f"{address}/v1", timeout=60) as client:
        yield client


def post(http: httpx.Client, path: str, **body: Any) -> httpx.Response:
    return http.post(path, json={"model": NAME, "max_tokens": 4, "temperature": 0} | body)


def streamed(response: httpx.Response) -> list[dict[str, Any]]:
    """Bodies of all events but the one that ends the stream."""
    events = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    assert events.pop() == "[DONE]"
    return [json.loads(event) for event in events]


def check(openai_type: type[BaseModel], body: dict[str, Any]) -> None:
    """Validate a body with no value converted to another type."""
    openai_type.model_validate_json(json.dumps(body), strict=True)


class TestBodies:
    @pytest.mark.parametrize("options", [*CASES, {"logprobs": True, "top_logprobs": 2}])
    def test_of_chats_are_openais(self, http: httpx.Client, options: dict[str, Any]) -> None:
        check(ChatCompletion, post(http, "/chat/completions", **CHAT, **options).json())
        usage = {"stream_options": {"include_usage": True}}
        chunks = streamed(post(http, "/chat/completions", **CHAT, **options, stream=True, **usage))
        assert len(chunks) > 4
        for chunk in chunks:
            check(ChatCompletionChunk, chunk)

    @pytest.mark.parametrize("options", [*CASES, {"logprobs": 2}])
    def test_of_completions_are_openais(self, http: httpx.Client, options: dict[str, Any]) -> None:
        check(Completion, post(http, "/completions", **TEXT, **options).json())
        chunks = streamed(post(http, "/completions", **TEXT, **options, stream=True))
        assert len(chunks) > 4
        for chunk in chunks:
            for choice in chunk["choices"]:  # OpenAI streams null until the end, which its own type leaves out
                choice["finish_reason"] = choice["finish_reason"] or "stop"
            check(Completion, chunk)

    def test_of_models_are_openais(self, http: httpx.Client) -> None:
        listed = http.get("/models").json()
        assert listed["object"] == "list"
        for entry in [*listed["data"], http.get(f"/models/{NAME}").json()]:
            check(Model, entry)

    @pytest.mark.parametrize(
        ("body", "status"),
        [
            ({"model": "gpt-5", **CHAT}, 404),
            ({"messages": 5}, 400),
            ({**CHAT, "temperature": -1}, 400),
            ({**CHAT, "poise": {"watch": ["sideways"]}}, 404),
        ],
    )
    def test_of_errors_are_openais(self, http: httpx.Client, body: dict[str, Any], status: int) -> None:
        response = post(http, "/chat/completions", **body)
        assert (response.status_code, list(response.json())) == (status, ["error"])
        check(ErrorObject, response.json()["error"])
