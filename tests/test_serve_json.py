"""``response_format`` with the ``openai`` client: JSON of a schema or any, steered, streamed, cut, refused."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import jsonschema
import openai
import pydantic
import pytest

import serving
import tiny
import tool_templates

ASK: list[Any] = [{"role": "user", "content": "Who is it?"}]
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "mood": {"enum": ["calm", "wild"]},
    },
    "required": ["name", "age", "mood"],
    "additionalProperties": False,
}


class Boat(pydantic.BaseModel):
    kind: Literal["sail", "steam"]
    masts: int = pydantic.Field(ge=0, le=9)


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    model = tiny.model(tokenizer=tool_templates.tokenizer("hermes"), max_position_embeddings=2048)
    with (
        serving.running(model) as (address, _),
        openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as made,
    ):
        yield made


def schema_format(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}


def ask(client: openai.OpenAI, **more: Any) -> Any:
    fields: dict[str, Any] = {"model": "tiny-llama", "messages": ASK, "max_tokens": 400, "seed": 1}
    return client.chat.completions.create(**(fields | more))


class TestASchema:
    @pytest.mark.parametrize("steer", ["", "up=0.4", "down=-0.3 first 4"])
    @pytest.mark.parametrize("temperature", [0, 1.5])
    def test_is_what_the_answer_fits_however_it_is_steered(
        self, client: openai.OpenAI, steer: str, temperature: float
    ) -> None:
        poise = {"steer": steer, "watch": ["up"]}
        answer = ask(
            client,
            response_format=schema_format(PERSON),
            temperature=temperature,
            n=2,
            extra_body={"poise": poise},
        )
        for choice in answer.choices:
            jsonschema.validate(json.loads(choice.message.content), PERSON)
            assert choice.finish_reason == "stop"
            told = choice.model_extra["poise"]
            assert len(told["readings"]["up"]) == len(told["tokens"]) > 0
            assert "".join(told["tokens"]) == choice.message.content

    def test_streams_what_it_would_be(self, client: openai.OpenAI) -> None:
        fields = {"response_format": schema_format(PERSON), "temperature": 1.0}
        text = "".join(c.choices[0].delta.content or "" for c in ask(client, stream=True, **fields))
        assert text == ask(client, **fields).choices[0].message.content

    def test_may_be_one_of_several_that_differ_in_a_constant(self, client: openai.OpenAI) -> None:
        def vessel(kind: str, field: str) -> dict[str, Any]:
            fields = {"kind": {"const": kind}, field: {"enum": [1, 2]}}
            return {"type": "object", "properties": fields, "required": [*fields], "additionalProperties": False}

        branches = [{"$ref": "#/$defs/Sail"}, {"$ref": "#/$defs/Steam"}]
        defined = {"Sail": vessel("sail", "masts"), "Steam": vessel("steam", "funnels")}
        union = {"oneOf": branches, "discriminator": {"propertyName": "kind"}, "$defs": defined}
        kinds = set()
        for seed in range(6):
            answer = ask(client, response_format=schema_format(union), temperature=1.5, seed=seed).choices[0]
            jsonschema.validate(json.loads(answer.message.content), union)
            kinds.add(json.loads(answer.message.content)["kind"])
        assert kinds == {"sail", "steam"}

    def test_is_parsed_by_the_client(self, client: openai.OpenAI) -> None:
        answer = client.chat.completions.parse(
            model="tiny-llama", messages=ASK, response_format=Boat, max_tokens=100, seed=2
        )
        assert isinstance(answer.choices[0].message.parsed, Boat)

    def test_that_is_cut_is_told_by_the_client(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.LengthFinishReasonError):
            client.chat.completions.parse(model="tiny-llama", messages=ASK, response_format=Boat, max_tokens=4, seed=2)

    def test_goes_with_tools(self, client: openai.OpenAI) -> None:
        for seed in range(6):
            answer = ask(
                client,
                tools=[tool_templates.CLOCK],
                parallel_tool_calls=False,
                response_format=schema_format(PERSON),
                seed=seed,
            ).choices[0]
            if answer.finish_reason == "stop":
                jsonschema.validate(json.loads(answer.message.content), PERSON)
            else:
                assert answer.message.tool_calls[0].function.name == "tell_time"

    def test_leaves_the_rows_beside_it_as_they_are(self, client: openai.OpenAI) -> None:
        alone = ask(client, temperature=1.0, max_tokens=20).choices[0].message.content

        def get(number: int) -> str:
            held = {"response_format": schema_format(PERSON)} if number % 2 else {}
            return str(ask(client, temperature=1.0, max_tokens=20, **held).choices[0].message.content)

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(get, range(8)))
        assert set(answers[::2]) == {alone}
        assert len(set(answers[1::2])) == 1


class TestAnObject:
    def test_is_one(self, client: openai.OpenAI) -> None:
        for seed in range(3):
            choice = ask(client, response_format={"type": "json_object"}, seed=seed, temperature=0.3).choices[0]
            assert choice.message.content.startswith("{")
            if choice.finish_reason == "stop":
                assert isinstance(json.loads(choice.message.content), dict)


REFUSED: list[tuple[Any, str]] = [
    ({"type": "array", "uniqueItems": True}, "its keyword uniqueItems: "),
    ({"oneOf": [{"type": "integer"}, {"minimum": 2}]}, "its keyword oneOf: "),
    ({"type": "object", "properties": {"a": {"not": {"const": 1}}}}, "its keyword not at properties.a: "),
    ({"type": "object", "properties": {"a": {"type": "string", "pattern": "(?=x)"}}}, "pattern at properties.a: "),
    ({"type": "text"}, "its keyword type: Invalid type"),
    ({"$ref": "https://example.com/s.json"}, r"its keyword \$ref: "),
    ({"if": {}, "then": {}, "type": "object"}, "if"),
    ({"type": "string", "minLength": 3, "maxLength": 2}, "its keyword m..Length: Unsatisfiable"),
    ({"enum": ["x" * 70_000]}, "at most 65536 are taken"),
    (
        {"allOf": [{"type": "string", "pattern": f".*{n}a.*{n}b"} for n in range(30)]},
        "30 parts that have to hold at once",
    ),
]


class TestARefusal:
    @pytest.mark.parametrize(("schema", "words"), REFUSED, ids=lambda value: str(value)[:30])
    def test_names_the_keyword(self, client: openai.OpenAI, schema: Any, words: str) -> None:
        with pytest.raises(openai.BadRequestError, match=words) as caught:
            ask(client, response_format=schema_format(schema))
        assert caught.value.code == "invalid_schema"
        assert caught.value.param == "response_format.json_schema.schema"

    @pytest.mark.parametrize(
        "held", [{"type": "grammar"}, {"type": "json_schema"}, {"type": "json_schema", "json_schema": {"name": "x"}}]
    )
    def test_of_a_format_that_is_none_names_the_field(self, client: openai.OpenAI, held: Any) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            ask(client, response_format=held)
        assert str(caught.value.param).startswith("response_format")

    def test_keeps_nobody_waiting(self, client: openai.OpenAI) -> None:
        hard = {"type": "object", "properties": {f"property_{n}": {"type": "string"} for n in range(1500)}}
        with ThreadPoolExecutor(1) as pool:
            busy = pool.submit(ask, client, response_format=schema_format(hard), max_tokens=1)
            while not busy.done():
                client.models.list()
                time.sleep(0.01)
        assert busy.result().choices[0].finish_reason == "length"
