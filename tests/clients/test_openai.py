"""The ``openai`` package for Python."""

from __future__ import annotations

import json
from typing import Any, Literal

import openai
import pydantic
import pytest
from asked import MESSAGES, TOO_LONG, TOOL

pytestmark = pytest.mark.clients
FIELDS: dict[str, Any] = {"model": "poise-test", "messages": MESSAGES, "max_tokens": 120, "seed": 1}


class Boat(pydantic.BaseModel):
    kind: Literal["sail", "steam"]
    masts: Literal[1, 2, 3]


@pytest.fixture(scope="module")
def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


def test_answers_plain_and_streamed(client: openai.OpenAI) -> None:
    plain = client.chat.completions.create(**FIELDS).choices[0].message.content
    chunks = client.chat.completions.create(**FIELDS, stream=True)
    assert plain
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == plain


def test_calls_tools_and_takes_their_results(client: openai.OpenAI) -> None:
    held = {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}
    choice = client.chat.completions.create(**FIELDS, **held).choices[0]
    assert choice.finish_reason == "tool_calls"
    [call] = choice.message.tool_calls
    assert json.loads(call.function.arguments)["city"] in ("Rome", "Oslo")
    with client.chat.completions.stream(**FIELDS, **held) as stream:
        streamed = stream.get_final_completion().choices[0].message.tool_calls[0]
    assert streamed.function.arguments == call.function.arguments
    turns = [*MESSAGES, choice.message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    assert client.chat.completions.create(**(FIELDS | {"messages": turns}), tools=[TOOL]).choices


def test_parses_what_fits_a_schema(client: openai.OpenAI) -> None:
    parsed = client.chat.completions.parse(**FIELDS, response_format=Boat).choices[0].message.parsed
    assert isinstance(parsed, Boat)


def test_steers_by_its_extra_body(client: openai.OpenAI) -> None:
    poise = {"steer": "up=0.4", "watch": ["up"]}
    choice = client.chat.completions.create(**FIELDS, extra_body={"poise": poise}).choices[0]
    assert choice.model_extra["poise"]["readings"]["up"]


def test_tells_faults_apart(client: openai.OpenAI, limited: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**(FIELDS | {"messages": TOO_LONG}))
    assert caught.value.code == "context_length_exceeded"
    wrong = openai.OpenAI(base_url=f"{limited}/v1", api_key="wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        wrong.models.list()
