"""What refusals say: the field as its route has it, the limit, and what is left of the key's own."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import serving
import tiny
import tool_templates

NAME = "tiny-llama"
ASK = [{"role": "user", "content": "What is the weather in Rome?"}]
CALL = {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"}
BAD_NAME = "use up to 64 letters, digits, dots, hyphens and underscores"
LIMITS = {"limits": [{"requests": 50, "seconds": 60}], "most_dose": 3}


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    policy = tmp_path_factory.mktemp("policy") / "policy.yaml"
    policy.write_text(json.dumps({"default": {**LIMITS, "limits": [{"requests": 500, "seconds": 60}]}}))
    model = tiny.model(tokenizer=tool_templates.tokenizer("hermes"), max_position_embeddings=2048)
    with (
        serving.running(model, policy=policy) as (address, _),
        httpx.Client(base_url=f"{address}/v1", timeout=60) as client,
    ):
        yield client


def refusal(http: httpx.Client, path: str, fields: dict[str, Any]) -> tuple[str, str]:
    answer = http.post(path, json={"model": NAME, **fields})
    assert answer.status_code == 400, answer.text
    return answer.json()["error"]["param"], answer.json()["error"]["message"]


class TestResponsesNameTheirOwnFields:
    @pytest.mark.parametrize(
        ("fields", "param", "message"),
        [
            ({"input": [*ASK, {**CALL, "name": "a b"}]}, "input.1.name", f"is 'a b'; {BAD_NAME}."),
            ({"input": [*ASK, {**CALL, "name": "a" * 65}]}, "input.1.name", "has 65 characters; at most 64 are taken."),
            ({"input": [*ASK, {"type": "function_call"}]}, "input.1.call_id", "is missing."),
            (
                {"input": [*ASK, {**CALL, "call_id": "a" * 201}]},
                "input.1.call_id",
                "has 201 characters; at most 200 are taken.",
            ),
            ({"input": "x", "tools": [{"type": "function", "name": "a b"}]}, "tools.0.name", f"is 'a b'; {BAD_NAME}."),
            (
                {"input": "x", "tool_choice": {"type": "function", "name": "a b"}},
                "tool_choice.name",
                f"is 'a b'; {BAD_NAME}.",
            ),
            (
                {"input": "x", "text": {"format": {"type": "json_schema", "name": "a" * 65, "schema": {}}}},
                "text.format.name",
                "has 65 characters; at most 64 are taken.",
            ),
            (
                {"input": "x", "text": {"format": {"type": "json_schema", "name": "a"}}},
                "text.format.schema",
                "is missing.",
            ),
            (
                {"input": [*ASK, CALL, {"type": "function_call_output", "call_id": "b", "output": ""}]},
                "input.2.call_id",
                "is 'b', a call that no item before it has.",
            ),
            (
                {"input": [{"type": "computer_call"}]},
                "input.0",
                "is of the type 'computer_call'; the types are 'message', 'function_call', 'function_call_output', "
                "'reasoning', 'item_reference'.",
            ),
            (
                {"input": "x", "tools": [{"type": "function", "name": "f"}] * 2},
                "tools",
                "has two functions named 'f'; give each a name of its own.",
            ),
        ],
    )
    def test_by_place(self, http: httpx.Client, fields: dict[str, Any], param: str, message: str) -> None:
        assert refusal(http, "/responses", fields) == (param, f"{param} {message}")

    def test_where_only_the_chat_underneath_finds_the_fault(self, http: httpx.Client) -> None:
        schema = {"type": "json_schema", "name": "s", "schema": {"uniqueItems": True, "type": "array"}}
        assert refusal(http, "/responses", {"input": "x", "text": {"format": schema}})[0] == "text.format.schema"
        calls = [{**CALL, "call_id": str(n)} for n in range(129)]
        param, message = refusal(http, "/responses", {"input": [*ASK, *calls]})
        assert (param, message) == ("input", "input has 129 entries; at most 128 are taken.")


class TestChatsNameTheirFields:
    @pytest.mark.parametrize(
        ("fields", "param", "message"),
        [
            ({"stop": "x" * 300}, "stop", "has 300 characters; at most 200 are taken."),
            ({"stop": ["x", "x" * 300]}, "stop.1", "has 300 characters; at most 200 are taken."),
            ({"stop": ["x"] * 17}, "stop", "has 17 entries; at most 16 are taken."),
            ({"stop": 5}, "stop", "is 5; it must be text, or a list."),
            ({"poise": {"watch": "evil"}}, "poise.watch", "is 'evil'; it must be true or false, or a list."),
            ({"poise": {"watch": ["evil"] * 65}}, "poise.watch", "has 65 entries; at most 64 are taken."),
            ({"poise": {"steer": 5}}, "poise.steer", "is 5; it must be text, or a mapping of settings."),
            ({"metadata": {"k": "x" * 513}}, "metadata.k", "has 513 characters; at most 512 are taken."),
            ({"metadata": {str(n): "x" for n in range(17)}}, "metadata", "has 17 entries; at most 16 are taken."),
            (
                {"response_format": {"type": "xml"}},
                "response_format",
                "is of the type 'xml'; the types are 'text', 'json_object', 'json_schema'.",
            ),
            (
                {"tool_choice": {"type": "function", "function": {"name": "a b"}}},
                "tool_choice.function.name",
                f"is 'a b'; {BAD_NAME}.",
            ),
            ({"tool_choice": "maybe"}, "tool_choice", "is 'maybe'; it must be 'none', 'auto' or 'required'."),
            ({"tool_choice": {"type": "x"}}, "tool_choice.type", "is 'x'; it must be 'function'."),
            ({"response_format": {}}, "response_format", "lacks its 'type', which says what it is."),
            (
                {"response_format": {"type": "json_schema", "json_schema": {"name": "n" * 65, "schema": {}}}},
                "response_format.json_schema.name",
                "has 65 characters; at most 64 are taken.",
            ),
            ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "is missing."),
            (
                {"tools": [{"type": "function", "function": {"name": "ä"}}]},
                "tools.0.function.name",
                f"is 'ä'; {BAD_NAME}.",
            ),
        ],
    )
    def test_with_the_limit(self, http: httpx.Client, fields: dict[str, Any], param: str, message: str) -> None:
        assert refusal(http, "/chat/completions", {"messages": ASK, **fields}) == (param, f"{param} {message}")

    def test_and_the_name_of_an_entry_that_is_too_long(self, http: httpx.Client) -> None:
        param, message = refusal(http, "/chat/completions", {"messages": ASK, "metadata": {"k" * 201: "v"}})
        assert param == "metadata"
        assert message == "metadata: the name 'kkkkkkkkkkkk...kkkkkkkkkkkkk' has 201 characters; at most 200 are taken."

    def test_and_prompts_and_texts_that_are_too_many_or_none(self, http: httpx.Client) -> None:
        assert refusal(http, "/completions", {"prompt": ["x"] * 65}) == (
            "prompt",
            "prompt has 65 entries; at most 64 are taken.",
        )
        for value, words in (("", "is empty."), (["x"] * 2049, "has 2049 entries; at most 2048 are taken.")):
            assert refusal(http, "/embeddings", {"input": value}) == ("input", f"input {words}")
        assert refusal(http, "/embeddings", {"input": []})[1] == "input is []; it must be a list of at least 1."

    def test_and_a_dose_that_differs_from_the_most(self, http: httpx.Client) -> None:
        param, message = refusal(http, "/chat/completions", {"messages": ASK, "poise": {"steer": "up@1=300.1%"}})
        assert param == "poise.steer"
        assert "comes to a dose of 3.001 in all" in message
        assert "more than the 3 allowed here" in message


class TestWhatIsCounted:
    @pytest.mark.parametrize("path", ["chat/completions", "completions", "responses", "embeddings"])
    def test_is_told_in_refusals_too(self, tmp_path: Path, path: str) -> None:
        policy = tmp_path / "policy.yaml"
        policy.write_text(json.dumps({"default": LIMITS}))
        with serving.running(policy=policy) as (address, _):
            for left in (49, 48):
                answer = httpx.post(f"{address}/v1/{path}", json={"model": NAME})
                assert answer.status_code == 400
                assert answer.headers["x-ratelimit-remaining-requests"] == str(left)
                assert answer.headers["x-ratelimit-limit-requests"] == "50"


class TestACompressedBody:
    @pytest.mark.parametrize("coding", ["gzip", "br", "gzip, identity"])
    def test_is_refused_as_such(self, http: httpx.Client, coding: str) -> None:
        body = gzip.compress(json.dumps({"model": NAME, "messages": ASK}).encode())
        headers = {"content-type": "application/json", "content-encoding": coding}
        answer = http.post("/chat/completions", content=body, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (415, "content_encoding")
        assert f"compressed ({coding}), which is not taken; send it without" in answer.json()["error"]["message"]

    def test_is_none_that_says_it_is_as_it_is(self, http: httpx.Client) -> None:
        body = {"model": NAME, "messages": ASK, "max_tokens": 1}
        assert http.post("/chat/completions", json=body, headers={"content-encoding": "Identity"}).status_code == 200


def test_a_long_name_of_a_model_is_repeated_in_part(http: httpx.Client) -> None:
    for answer in (
        http.get(f"/models/{'m' * 3000}"),
        http.post("/completions", json={"model": "m" * 99_999, "prompt": "x"}),
    ):
        assert answer.status_code in (400, 404)
        assert len(answer.text) < 1000


class TestHead:
    @pytest.mark.parametrize(
        "path",
        [
            "models",
            f"models/{NAME}",
            "../healthz",
            "../readyz",
            "../metrics",
            "poise/vectors",
            "poise/readings",
            "../openapi.json",
            "models/none",
        ],
    )
    def test_answers_as_get_does_without_a_body(self, http: httpx.Client, path: str) -> None:
        address = str(http.base_url.join(path))
        head, get = http.head(address), http.get(address)
        assert (head.status_code, head.content) == (get.status_code, b"")
        assert head.headers["content-type"] == get.headers["content-type"]

    def test_is_told_beside_get(self, http: httpx.Client) -> None:
        answer = http.put("/models")
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")
        assert http.head("/chat/completions").status_code == 405
