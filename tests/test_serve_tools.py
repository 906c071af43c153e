"""Tools over HTTP with the ``openai`` client: offered, called, streamed, answered, refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import openai
import pytest

import serving
import tiny
import tool_templates
from tool_templates import CLOCK, WEATHER

ASK: list[Any] = [{"role": "user", "content": "What is the weather in Rome?"}]
TOOLS = [WEATHER, CLOCK]
PARAMETERS = WEATHER["function"]["parameters"]
STYLES = [*tool_templates.STYLES, "coder", "pythonic"]


@pytest.fixture(scope="module")
def clients() -> Iterator[dict[str, openai.OpenAI]]:
    made: dict[str, openai.OpenAI] = {}
    with serving.contextlib.ExitStack() as stack:
        for style in STYLES:
            model = tiny.model(tokenizer=tool_templates.tokenizer(style), max_position_embeddings=2048)
            address, _ = stack.enter_context(serving.running(model))
            made[style] = stack.enter_context(openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0))
        yield made


def ask(client: openai.OpenAI, **more: Any) -> Any:
    fields: dict[str, Any] = {"model": "tiny-llama", "messages": ASK, "tools": TOOLS, "max_tokens": 200, "seed": 3}
    return client.chat.completions.create(**(fields | more))


def check_calls(calls: Any) -> None:
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOLS}
    for call in calls:
        jsonschema.validate(json.loads(call.function.arguments), schemas[call.function.name])


def collected(chunks: Any) -> tuple[str, list[dict[str, str]], str]:
    """What a stream adds up to, with its pieces of calls put together by their index."""
    text, calls, finish = "", list[dict[str, str]](), ""
    for chunk in chunks:
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
            for delta in choice.delta.tool_calls or []:
                if delta.index == len(calls):
                    assert delta.id
                    assert delta.type == "function"
                    calls.append({"name": delta.function.name, "arguments": ""})
                else:
                    assert delta.id is None
                calls[delta.index]["arguments"] += delta.function.arguments
    return text, calls, finish


@pytest.mark.parametrize("style", STYLES)
class TestACall:
    @pytest.mark.parametrize("temperature", [0, 1.3])
    def test_that_is_required_fits_the_tool(
        self, clients: dict[str, openai.OpenAI], style: str, temperature: float
    ) -> None:
        answer = ask(clients[style], tool_choice="required", parallel_tool_calls=False, temperature=temperature)
        [choice] = answer.choices
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
        assert len(choice.message.tool_calls) == 1
        check_calls(choice.message.tool_calls)

    @pytest.mark.parametrize("name", ["get_weather", "tell_time"])
    def test_of_a_tool_by_name_is_of_that(self, clients: dict[str, openai.OpenAI], style: str, name: str) -> None:
        chosen = {"type": "function", "function": {"name": name}}
        for choice in (chosen, {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [chosen]}}):
            once = {} if choice is chosen else {"parallel_tool_calls": False}
            [call] = ask(clients[style], tool_choice=choice, **once).choices[0].message.tool_calls
            assert call.function.name == name
            check_calls([call])

    def test_streams_what_it_would_be(self, clients: dict[str, openai.OpenAI], style: str) -> None:
        fields: dict[str, Any] = {"tool_choice": "required", "temperature": 1.0, "parallel_tool_calls": False}
        message = ask(clients[style], **fields).choices[0].message
        text, calls, finish = collected(ask(clients[style], stream=True, **fields))
        assert (text, finish) == ("", "tool_calls")
        assert calls == [{"name": c.function.name, "arguments": c.function.arguments} for c in message.tool_calls]

    def test_that_is_cut_says_so(self, clients: dict[str, openai.OpenAI], style: str) -> None:
        choice = ask(clients[style], tool_choice="required", max_tokens=45).choices[0]
        assert choice.finish_reason == "length"

    def test_goes_back_with_its_result(self, clients: dict[str, openai.OpenAI], style: str) -> None:
        message = ask(clients[style], tool_choice="required", parallel_tool_calls=False).choices[0].message
        [call] = message.tool_calls
        turns = [*ASK, message.model_dump(exclude_none=True), {"role": "tool", "tool_call_id": call.id, "content": "5"}]
        answer = ask(clients[style], messages=turns, tool_choice="none", max_tokens=5)
        assert answer.choices[0].message.tool_calls is None
        foreign = [
            *ASK,
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": "call_of_another_server_0001",
                        "type": "function",
                        "function": {"name": "tell_time", "arguments": '{"utc": true}'},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "call_of_another_server_0001", "content": "[5]"},
        ]
        assert ask(clients[style], messages=foreign, max_tokens=5).choices[0].finish_reason in ("length", "stop")

    def test_that_may_be_is_words_or_a_call(self, clients: dict[str, openai.OpenAI], style: str) -> None:
        for seed in range(6):
            choice = ask(clients[style], seed=seed, temperature=1.0, max_tokens=30).choices[0]
            check_calls(call for call in choice.message.tool_calls or [] if choice.finish_reason == "tool_calls")
            streamed = collected(ask(clients[style], seed=seed, temperature=1.0, max_tokens=30, stream=True))
            assert streamed[0] == (choice.message.content or "")
            assert streamed[2] == choice.finish_reason

    def test_has_its_tokens_told_apart(self, clients: dict[str, openai.OpenAI], style: str) -> None:
        fields: dict[str, Any] = {"tool_choice": "required", "extra_body": {"poise": {"watch": ["up"]}}}
        poise = ask(clients[style], **fields).choices[0].model_extra["poise"]
        assert set(poise["parts"]) == {"tool_call"}
        assert len(poise["readings"]["up"]) == len(poise["tokens"]) == len(poise["parts"])
        streamed: dict[str, list[Any]] = {"tokens": [], "parts": []}
        for chunk in ask(clients[style], stream=True, **fields):
            piece = chunk.choices[0].model_extra["poise"]
            for name, values in streamed.items():
                values += piece.get(name, [])
        assert streamed == {"tokens": poise["tokens"], "parts": poise["parts"]}


class TestARefusal:
    def test_of_tools_names_the_template(self) -> None:
        with (
            serving.running(tiny.model()) as (address, _),
            openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client,
        ):
            with pytest.raises(openai.BadRequestError, match="chat template has no tools") as caught:
                ask(client)
            assert (caught.value.param, caught.value.code) == ("tools", "tools_unsupported")
            assert ask(client, tool_choice="none", max_tokens=2).choices[0].message.content is not None
            turns = [
                *ASK,
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
                },
                {"role": "tool", "tool_call_id": "a", "content": "x"},
            ]
            with pytest.raises(openai.BadRequestError, match="calls of earlier turns"):
                ask(client, tools=[], messages=turns)

    @pytest.mark.parametrize(
        ("fields", "match"),
        [
            ({"tool_choice": {"type": "function", "function": {"name": "nothing"}}}, "'nothing', which is not among"),
            ({"tool_choice": "required", "tools": []}, "there are no tools"),
            ({"tools": [CLOCK, CLOCK]}, "two functions named 'tell_time'"),
            ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools.0"),
            (
                {"messages": [*ASK, {"role": "tool", "content": "5", "tool_call_id": "x"}]},
                "tool_call_id is 'x', a call",
            ),
            ({"messages": [*ASK, {"role": "tool", "content": "5"}]}, "tool_call_id is missing"),
            ({"messages": [*ASK, {"role": "assistant", "content": None}]}, "content is missing"),
            (
                {
                    "tools": [
                        {
                            "type": "function",
                            "function": {
                                "name": "f",
                                "strict": True,
                                "parameters": {
                                    "type": "object",
                                    "properties": {"a": {"type": "array", "uniqueItems": True}},
                                },
                            },
                        }
                    ]
                },
                "The tool f: .*uniqueItems at properties.a",
            ),
        ],
        ids=["name", "none", "twice", "kind", "answer", "id", "content", "schema"],
    )
    def test_says_what_is_wrong(self, clients: dict[str, openai.OpenAI], fields: dict[str, Any], match: str) -> None:
        with pytest.raises(openai.BadRequestError, match=match):
            ask(clients["hermes"], **fields)


class TestSixteenClients:
    """Each with steering of its own, tools and schemas, gets what it would get alone."""

    STEERINGS = ("", "up=0.3", "up=-0.4", "down=0.3", "up=out", "up=cap:0.5", "up=0.3 first 4", "down=-0.2")

    def fields(self, number: int) -> dict[str, Any]:
        forms: list[dict[str, Any]] = [
            {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False},
            {"tools": TOOLS},
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": PARAMETERS}}},
            {},
        ]
        steer = self.STEERINGS[number % len(self.STEERINGS)]
        own = {"temperature": [0, 1.2][number % 2], "seed": number, "max_tokens": 30 + number}
        return {**forms[number // 4], **own, "extra_body": {"poise": {"steer": steer, "watch": True}}}

    def get(self, client: openai.OpenAI, number: int) -> Any:
        fields: dict[str, Any] = {"model": "tiny-llama", "messages": ASK} | self.fields(number)
        choice = client.chat.completions.create(**fields).choices[0]
        calls = [(call.function.name, call.function.arguments) for call in choice.message.tool_calls or []]
        poise = choice.model_extra["poise"]
        return (choice.message.content, calls, choice.finish_reason, poise["parts"]), poise["readings"]

    def test_get_what_they_would_get_alone(self, clients: dict[str, openai.OpenAI]) -> None:
        client = clients["hermes"]
        alone = [self.get(client, number) for number in range(16)]
        with ThreadPoolExecutor(16) as pool:
            together = list(pool.map(lambda number: self.get(client, number), range(16)))
        assert [answer for answer, _ in together] == [answer for answer, _ in alone]
        for (_, ours), (_, theirs) in zip(together, alone, strict=True):
            for name, values in ours.items():
                assert values == pytest.approx(theirs[name], abs=1e-3)
