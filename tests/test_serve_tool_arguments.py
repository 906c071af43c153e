"""Arguments of calls over HTTP: always an object, and of complete characters alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

import serving
import tiny
import tool_templates

NAME = "tiny-llama"
ASK = [{"role": "user", "content": "What is the weather in Rome?"}]
HALF = '{"\\ud800": 1}'
DEFINITIONS = {"P": {"type": "object", "properties": {"a": {"type": "boolean"}}}, "I": {"type": "integer"}}


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    model = tiny.model(tokenizer=tool_templates.tokenizer("hermes"), max_position_embeddings=2048)
    with serving.running(model) as (address, _), httpx.Client(base_url=f"{address}/v1", timeout=60) as client:
        yield client


def fault(http: httpx.Client, path: str, body: dict[str, Any]) -> tuple[int, str, str]:
    answer = http.post(path, content=json.dumps({"model": NAME, **body}), headers={"content-type": "application/json"})
    error = answer.json()["error"]
    return answer.status_code, error["param"], error["message"]


def turns(arguments: str) -> list[dict[str, Any]]:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return [
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a", "content": "x"},
    ]


class TestHalvesOfCharacters:
    @pytest.mark.parametrize("arguments", [HALF, '{"a": ["\\uDFFF"]}', '[{"a": "\\ud800\\u0041"}]'])
    def test_in_the_arguments_of_a_call_are_refused_where_they_stand(self, http: httpx.Client, arguments: str) -> None:
        words = "half of a character (a lone surrogate)."
        place = "messages.1.tool_calls.0.function.arguments"
        refusal = fault(http, "/chat/completions", {"messages": turns(arguments)})
        assert refusal == (400, place, f"{place}: {words}")
        call = {"type": "function_call", "call_id": "a", "name": "f", "arguments": arguments}
        refusal = fault(http, "/responses", {"input": [*ASK, call]})
        assert refusal == (400, "input.1.arguments", f"input.1.arguments: {words}")

    @pytest.mark.parametrize(
        "arguments", ['{"a": "\\ud83d\\ude00"}', '{"a": "\\\\ud800"}', '{"a": \\ud800', '{"a": "😀"}']
    )
    def test_are_not_seen_in_what_is_complete_or_shown_as_it_is(self, http: httpx.Client, arguments: str) -> None:
        answer = http.post("/chat/completions", json={"model": NAME, "messages": turns(arguments), "max_tokens": 2})
        assert answer.status_code == 200, answer.text

    @pytest.mark.parametrize(
        ("parameters", "place"),
        [
            ({"type": "object", "description": "\ud800"}, "parameters.description"),
            ({"properties": {"\udfff": {}}}, "parameters.properties"),
            ({"enum": ["a", {"b": ["\ud83d"]}]}, "parameters.enum.1.b.0"),
        ],
    )
    def test_in_what_no_field_describes_are_refused(
        self, http: httpx.Client, parameters: dict[str, Any], place: str
    ) -> None:
        function = {"name": "f", "parameters": parameters}
        for choice in ("none", "auto"):
            tools = {"tools": [{"type": "function", **function}], "tool_choice": choice}
            status, param, message = fault(http, "/responses", {"input": "x", **tools})
            assert (status, param) == (400, f"tools.0.{place}")
            assert message == f"tools.0.{place}: half of a character (a lone surrogate)."
            tools = {"tools": [{"type": "function", "function": function}], "tool_choice": choice}
            status, param, _ = fault(http, "/chat/completions", {"messages": ASK, **tools})
            assert (status, param) == (400, f"tools.0.function.{place}")
        schema = {"type": "json_schema", "name": "s", "schema": parameters}
        status, param, _ = fault(http, "/responses", {"input": "x", "text": {"format": schema}})
        assert (status, param) == (400, "text.format.schema" + place.removeprefix("parameters"))

    def test_of_a_steering_expression_are_refused(self, http: httpx.Client) -> None:
        steer = {"terms": [{"name": "\ud800", "amount": 1}]}
        assert fault(http, "/responses", {"input": "x", "poise": {"steer": steer}})[0] == 400

    def test_a_body_is_read_as_utf_8_alone(self, http: httpx.Client) -> None:
        body = json.dumps({"model": NAME, "messages": ASK}).encode("utf-16-le")
        answer = http.post("/chat/completions", content=body, headers={"content-type": "application/json"})
        assert answer.json()["error"]["code"] == "invalid_json"


@pytest.mark.parametrize("style", tool_templates.STYLES)
class TestArgumentsAreAnObject:
    """Whatever the parameters leave open: no template has another form, and no client expects one."""

    def test_where_the_schema_does_not_say_so(self, style: str) -> None:
        model = tiny.model(tokenizer=tool_templates.tokenizer(style), max_position_embeddings=2048)
        open_schemas: list[dict[str, Any]] = [
            {"properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False},
            {"type": ["object", "null"], "properties": {"a": {"type": "boolean"}}, "additionalProperties": False},
            {"anyOf": [{"type": "integer"}, {**DEFINITIONS["P"], "additionalProperties": False}]},
            {"enum": ["x{", {"a": 1}, 5]},
            {"const": {"a": "}]"}},
            {"$defs": DEFINITIONS, "$ref": "#/$defs/P"},
            {"description": "Anything.", "maxProperties": 1},
        ]
        with serving.running(model) as (address, _), httpx.Client(base_url=f"{address}/v1", timeout=60) as http:
            for parameters in open_schemas:
                function = {"name": "f", "parameters": parameters}
                body = {"model": NAME, "messages": ASK, "max_tokens": 300, "tool_choice": "required", "seed": 2}
                body |= {"tools": [{"type": "function", "function": function}], "parallel_tool_calls": False}
                answer = http.post("/chat/completions", json=body).json()
                choice = answer["choices"][0]
                [call] = choice["message"]["tool_calls"]
                assert call["function"]["arguments"][0] == "{"
                if choice["finish_reason"] != "length":
                    assert isinstance(json.loads(call["function"]["arguments"]), dict)
                    assert choice["message"]["content"] is None


class TestParametersThatExcludeObjects:
    @pytest.mark.parametrize("strict", [False, True])
    @pytest.mark.parametrize(
        ("parameters", "keyword"),
        [
            ({"type": "integer"}, "type"),
            ({"type": ["string", "null"]}, "type"),
            ({"enum": ["x{", "y"]}, "enum"),
            ({"const": None}, "const"),
            ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "anyOf"),
            ({"allOf": [{"type": "array"}]}, "allOf"),
            ({"$defs": DEFINITIONS, "$ref": "#/$defs/I"}, "$ref"),
        ],
    )
    def test_are_refused_by_name(
        self, http: httpx.Client, parameters: dict[str, Any], keyword: str, strict: bool
    ) -> None:
        for name in ("good", "f"):
            shown = {"name": name, "parameters": parameters, "strict": strict}
        tools = [{"type": "function", "function": {"name": "good"}}, {"type": "function", "function": shown}]
        status, param, message = fault(http, "/chat/completions", {"messages": ASK, "tools": tools})
        assert (status, param) == (400, "tools")
        assert message == (
            f"The tool f: no JSON object fits its parameters because of their keyword {keyword}, and arguments are "
            "always one; write what the function takes as properties of an object."
        )
