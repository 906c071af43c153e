"""``/v1/responses`` as the ``openai`` client sees it: its own types, its events in order, and chats underneath."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

import serving
import thinking
import tiny
import tool_templates
from poise.serve.response_events import ResponseStream
from poise.serve.response_items import chat_messages
from poise.serve.response_requests import CreateResponse, as_chat
from thinking import ANSWERS, REPLY, THOUGHT

NAME = "tiny-llama"
ASK = "Where do the boats go?"
EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
MESSAGE_EVENTS = [
    *("response.output_item.added", "response.content_part.added", "response.output_text.delta"),
    *("response.output_text.done", "response.content_part.done", "response.output_item.done"),
]


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with serving.running(tiny.model()) as (address, _), httpx.Client(base_url=f"{address}/v1", timeout=60) as client:
        yield client


def respond(http: httpx.Client, **fields: Any) -> dict[str, Any]:
    body = {"model": NAME, "input": ASK, "max_output_tokens": 6, "temperature": 0} | fields
    answer = http.post("/responses", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def streamed(http: httpx.Client, **fields: Any) -> list[dict[str, Any]]:
    """Events of a stream, each under its own name and of OpenAI's types, numbered from 0."""
    body = {"model": NAME, "input": ASK, "max_output_tokens": 6, "temperature": 0, "stream": True} | fields
    answer = http.post("/responses", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = []
    for block in answer.text.strip().split("\n\n"):
        name, _, data = block.partition("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
        if "poise" not in events[-1]:
            EVENTS.validate_json(json.dumps(events[-1]), strict=True)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def chat(http: httpx.Client, messages: list[Any], **fields: Any) -> dict[str, Any]:
    body = {"model": NAME, "messages": messages, "max_tokens": 6, "temperature": 0} | fields
    return http.post("/chat/completions", json=body).json()


def without_ids(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**item, "id": None} for item in items]


class TestAResponse:
    @pytest.mark.parametrize(
        "fields",
        [
            {},
            {
                "instructions": "Be brief.",
                "metadata": {"a": "b"},
                "store": False,
                "user": "u",
                "truncation": "disabled",
            },
            {"include": ["message.output_text.logprobs"], "top_logprobs": 2},
            {"reasoning": {"summary": "auto"}, "text": {"format": {"type": "text"}, "verbosity": "medium"}},
            {"temperature": 0.7, "seed": 3, "top_p": 0.9, "tools": [], "parallel_tool_calls": False},
        ],
    )
    def test_is_of_openais_type_and_says_what_the_chat_says(self, http: httpx.Client, fields: dict[str, Any]) -> None:
        body = respond(http, **fields)
        parsed = Response.model_validate_json(json.dumps(body), strict=True)
        instructions = fields.get("instructions")
        messages = [*([{"role": "system", "content": instructions}] if instructions else [])]
        sampling = {name: fields[name] for name in ("temperature", "seed", "top_p") if name in fields}
        answer = chat(http, [*messages, {"role": "user", "content": ASK}], **sampling)
        assert parsed.output_text == answer["choices"][0]["message"]["content"]
        assert body["usage"]["input_tokens"] == answer["usage"]["prompt_tokens"]
        assert body["usage"]["total_tokens"] == answer["usage"]["total_tokens"]
        assert (body["status"], body["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
        assert body["output"][0]["status"] == "incomplete"
        assert body["instructions"] == instructions
        assert len(body["output"][0]["content"][0]["logprobs"]) == (6 if "top_logprobs" in fields else 0)
        assert body["metadata"] == fields.get("metadata", {})

    def test_is_complete_where_the_answer_ended(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = thinking.model("qwen3")
        thinking.script(monkeypatch, model, {6: REPLY})
        with serving.running(model) as (address, _), httpx.Client(base_url=f"{address}/v1", timeout=60) as http:
            body = respond(http, model="tiny-qwen3", seed=6, temperature=1, max_output_tokens=120)
        assert (body["status"], body["incomplete_details"]) == ("completed", None)
        assert body["output"][0]["content"][0]["text"] == REPLY

    def test_carries_steering_and_readings(self, http: httpx.Client) -> None:
        poise = {"steer": "up=0.3", "watch": True}
        body = respond(http, poise=poise)
        answer = chat(http, [{"role": "user", "content": ASK}], poise=poise)["choices"][0]
        assert body["output"][0]["content"][0]["text"] == answer["message"]["content"]
        assert body["poise"] == answer["poise"]
        events = streamed(http, poise=poise)
        assert events[-1]["response"]["poise"] == answer["poise"]
        deltas = [event["poise"] for event in events if event["type"] == "response.output_text.delta"]
        assert [r for poise in deltas for r in poise["readings"]["up"]] == answer["poise"]["readings"]["up"]


class TestAStream:
    @pytest.mark.parametrize("fields", [{}, {"include": ["message.output_text.logprobs"], "top_logprobs": 1}])
    def test_has_openais_events_in_order(self, http: httpx.Client, fields: dict[str, Any]) -> None:
        events, body = streamed(http, **fields), respond(http, **fields)
        names = [event["type"] for event in events]
        once = [name for place, name in enumerate(names) if name != (names[place - 1] if place else "")]
        assert once == ["response.created", "response.in_progress", *MESSAGE_EVENTS, "response.incomplete"]
        text = body["output"][0]["content"][0]["text"]
        assert "".join(event["delta"] for event in events if event["type"].endswith(".delta")) == text
        [done] = [event for event in events if event["type"] == "response.output_text.done"]
        assert done["text"] == text
        final = events[-1]["response"]
        assert without_ids(final["output"]) == without_ids(body["output"])
        assert events[-2]["item"] == final["output"][0]
        assert final["usage"] == body["usage"]
        items = {event["item_id"] for event in events if "item_id" in event}
        assert items == {final["output"][0]["id"]}

    def test_is_what_the_client_helper_builds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = thinking.model("qwen3")
        thinking.script(monkeypatch, model, {6: REPLY})
        with (
            serving.running(model) as (address, _),
            openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client,
        ):
            facts: Any = {"model": "tiny-qwen3", "input": ASK, "max_output_tokens": 120, "extra_body": {"seed": 6}}
            with client.responses.stream(**facts) as stream:
                for _ in stream:
                    pass
                final = stream.get_final_response()
        assert (final.status, final.output_text) == ("completed", REPLY)

    def test_that_fails_says_so(self) -> None:
        from poise.errors import RequestError

        body = CreateResponse(model="m", input="x")
        stream = ResponseStream({"id": "resp_1", "created": 1, "model": "m"}, body)
        events = stream.opening() + stream.failing(RequestError(504, "It took longer than allowed.", code="x"))
        for event in events:
            EVENTS.validate_json(json.dumps(event), strict=True)
        assert events[-1]["response"]["error"] == {"code": "server_error", "message": "It took longer than allowed."}
        assert events[-1]["response"]["status"] == "failed"


class TestThoughts:
    @pytest.mark.parametrize("family", ["qwen3", "r1", "harmony"])
    def test_are_items_of_their_own(self, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
        model = thinking.model(family)
        thinking.script(monkeypatch, model, {5: ANSWERS[family]})
        fields: dict[str, Any] = {
            "model": f"tiny-{family}",
            "seed": 5,
            "temperature": 1,
            "max_output_tokens": 120,
            "reasoning": {"effort": "high"},
        }
        with serving.running(model) as (address, _), httpx.Client(base_url=f"{address}/v1", timeout=60) as http:
            body, events = respond(http, **fields), streamed(http, **fields)
            later = respond(http, **fields, input=[{"role": "user", "content": ASK}, *body["output"], _user("Why?")])
        assert [item["type"] for item in body["output"]] == ["reasoning", "message"]
        assert body["output"][0]["content"] == [{"type": "reasoning_text", "text": THOUGHT}]
        assert body["output"][1]["content"][0]["text"] == REPLY
        assert body["usage"]["output_tokens_details"]["reasoning_tokens"] > 0
        assert later["usage"]["input_tokens"] > body["usage"]["input_tokens"]
        assert without_ids(events[-1]["response"]["output"]) == without_ids(body["output"])
        names = [event["type"] for event in events]
        assert names.index("response.reasoning_text.done") < names.index("response.output_text.delta")
        assert "".join(e["delta"] for e in events if e["type"] == "response.reasoning_text.delta") == THOUGHT

    def test_that_nothing_had_opened_are_thoughts_in_the_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = thinking.model("qwen3")
        thinking.script(monkeypatch, model, {5: ANSWERS["split"]})
        fields: dict[str, Any] = {"model": "tiny-qwen3", "seed": 5, "temperature": 1, "max_output_tokens": 120}
        with serving.running(model) as (address, _), httpx.Client(base_url=f"{address}/v1", timeout=60) as http:
            for more in ({}, {"poise": {"watch": True}}):
                body, events = respond(http, **fields, **more), streamed(http, **fields, **more)
                texts = [item["content"][0]["text"].strip() for item in events[-1]["response"]["output"]]
                assert texts == [item["content"][0]["text"].strip() for item in body["output"]] == [THOUGHT, REPLY]


def _user(text: str) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}


class TestItems:
    def test_of_one_answer_are_one_turn(self) -> None:
        items = [
            {"role": "developer", "content": "And kind."},
            _user("Look it up."),
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
            {
                "type": "message",
                "role": "assistant",
                "id": "m",
                "content": [{"type": "output_text", "text": "Looking."}],
            },
            {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}", "id": "fc_1"},
            {"type": "function_call", "call_id": "b", "name": "g", "arguments": "{}", "status": "completed"},
            {"type": "function_call_output", "call_id": "a", "output": "1"},
            {"type": "function_call_output", "call_id": "b", "output": [{"type": "input_text", "text": "2"}]},
            {"role": "assistant", "content": "It is 3."},
            _user("Thanks."),
        ]
        body = CreateResponse.model_validate({"model": "m", "input": items, "instructions": "Be brief."})
        calls = [
            {"id": name, "type": "function", "function": {"name": function, "arguments": "{}"}}
            for name, function in (("a", "f"), ("b", "g"))
        ]
        assert chat_messages(body.input, body.instructions) == [
            {"role": "system", "content": "Be brief.\n\nAnd kind."},
            {"role": "user", "content": "Look it up."},
            {"role": "assistant", "reasoning_content": "Hm.", "content": "Looking.", "tool_calls": calls},
            {"role": "tool", "tool_call_id": "a", "content": "1"},
            {"role": "tool", "tool_call_id": "b", "content": "2"},
            {"role": "assistant", "content": "It is 3."},
            {"role": "user", "content": "Thanks."},
        ]

    def test_give_the_same_prompt_as_a_chat(self, http: httpx.Client) -> None:
        turns = [("user", ASK), ("assistant", "Out."), ("user", "Why?")]
        items = [{"role": role, "content": text} for role, text in turns]
        assert (
            respond(http, input=items)["output"][0]["content"][0]["text"]
            == (chat(http, items)["choices"][0]["message"]["content"])
        )


class TestCalls:
    def test_are_streamed_under_openais_events(self) -> None:
        stream = ResponseStream({"id": "resp_1", "created": 1, "model": "m"}, CreateResponse(model="m", input="x"))
        function = {"name": "f", "arguments": ""}
        chunks: list[dict[str, Any]] = [
            {"content": "Let me see."},
            {"tool_calls": [{"index": 0, "id": "abc", "type": "function", "function": function}]},
            {"tool_calls": [{"index": 0, "function": {"arguments": '{"a"'}}]},
            {"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]},
            {
                "tool_calls": [
                    {"index": 1, "id": "def", "type": "function", "function": {"name": "g", "arguments": "{}"}}
                ]
            },
        ]
        usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
        usage |= {"completion_tokens_details": {"reasoning_tokens": 0}}  # type: ignore[dict-item]
        events = stream.opening()
        for delta in chunks:
            events += stream.take({"delta": delta, "logprobs": None})
        events += stream.ending("tool_calls", usage)
        for event in events:
            EVENTS.validate_json(json.dumps(event), strict=True)
        assert [event["type"].removeprefix("response.") for event in events[8:]] == [
            *("output_item.added", "function_call_arguments.delta", "function_call_arguments.delta"),
            *("function_call_arguments.done", "output_item.done"),
            *("output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"),
            "completed",
        ]
        output = events[-1]["response"]["output"]
        assert [item["type"] for item in output] == ["message", "function_call", "function_call"]
        assert (output[1]["call_id"], output[1]["name"], output[1]["arguments"]) == ("abc", "f", '{"a": 1}')
        assert [event["output_index"] for event in events if event["type"] == "response.output_item.done"] == [0, 1, 2]


WEATHER = {"type": "function", "strict": True, **tool_templates.WEATHER["function"]}
ENUM = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"], "additionalProperties": False}


@pytest.fixture(scope="module")
def tools_http() -> Iterator[httpx.Client]:
    model = tiny.model(tokenizer=tool_templates.tokenizer("hermes"), max_position_embeddings=2048)
    with serving.running(model) as (address, _), httpx.Client(base_url=f"{address}/v1", timeout=60) as client:
        yield client


class TestTools:
    @pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "get_weather"}])
    def test_are_called_and_answered(self, tools_http: httpx.Client, choice: Any) -> None:
        fields: dict[str, Any] = {"tools": [WEATHER], "tool_choice": choice, "parallel_tool_calls": False, "seed": 3}
        fields |= {"max_output_tokens": 200, "temperature": 1.0}
        body, events = respond(tools_http, **fields), streamed(tools_http, **fields)
        Response.model_validate_json(json.dumps(body), strict=True)
        [call] = body["output"]
        assert (call["type"], call["name"], body["status"]) == ("function_call", "get_weather", "completed")
        assert json.loads(call["arguments"]).keys() == {"city", "days"}
        [streamed_call] = events[-1]["response"]["output"]
        assert streamed_call["arguments"] == call["arguments"]
        assert events[-1]["type"] == "response.completed"
        names = [event["type"] for event in events]
        assert "response.function_call_arguments.delta" in names
        assert "response.output_text.delta" not in names
        result = {"type": "function_call_output", "call_id": call["call_id"], "output": "Sunny."}
        later = respond(tools_http, tools=[WEATHER], input=[{"role": "user", "content": ASK}, call, result])
        assert later["usage"]["input_tokens"] > body["usage"]["input_tokens"]

    def test_a_schema_is_held_to(self, tools_http: httpx.Client) -> None:
        form = {"type": "json_schema", "name": "s", "schema": ENUM, "strict": True}
        body = respond(tools_http, text={"format": form}, temperature=1.0, seed=2, max_output_tokens=100)
        Response.model_validate_json(json.dumps(body), strict=True)
        assert json.loads(body["output"][0]["content"][0]["text"])["a"] in ("x", "y")
        assert body["text"]["format"] == form

    def test_what_cannot_be_kept_to_is_named_as_here(self, http: httpx.Client) -> None:
        body = {"model": NAME, "input": ASK, "tools": [WEATHER]}
        error = http.post("/responses", json=body).json()["error"]
        assert (error["code"], error["param"]) == ("tools_unsupported", "tools")


class TestRefusals:
    @pytest.mark.parametrize(
        ("fields", "param", "words"),
        [
            ({"store": True}, "store", "store may only be false. Nothing is stored here"),
            ({"previous_response_id": "resp_1"}, "previous_response_id", "send the items of earlier turns in input"),
            ({"conversation": "conv_1"}, "conversation", "Nothing is stored"),
            ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input", "providerOptions.openai.store"),
            ({"background": True}, "background", "not supported"),
            ({"truncation": "auto"}, "truncation", "not supported"),
            ({"max_tool_calls": 3}, "max_tool_calls", "max_tool_calls is not supported here"),
            ({"input": [{"type": "computer_call"}]}, "input.0", "computer_call"),
            ({"tools": [{"type": "web_search"}]}, "tools.0.type", "tools"),
            ({"temperature": 3}, "temperature", "2"),
            ({"max_output_tokens": 10**6}, "input", "maximum context length"),
            ({"input": "fog " * 5000}, "input", "maximum context length"),
            ({"reasoning": {"effort": "high"}}, "reasoning.effort", "not supported by this model"),
            ({"poise": {"steer": "nobody=1"}}, "poise.steer", "nobody"),
        ],
    )
    def test_name_the_field(self, http: httpx.Client, fields: dict[str, Any], param: str, words: str) -> None:
        answer = http.post("/responses", json={"model": NAME, "input": ASK, **fields})
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        assert words in error["message"]
        assert error["param"] in (param, param.split(".")[0])

    def test_of_a_chat_are_in_the_words_of_a_response(self) -> None:
        body = CreateResponse(model="m", input="x", max_output_tokens=5)
        assert as_chat(body).max_new_tokens == 5
