"""``poise serve`` as the unmodified ``openai`` client sees it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
import torch

import serving
import tiny
from poise.engine import SamplingParams
from poise.engine.static import LocalEngine
from poise.model import Model
from poise.model.token_text import text_bytes
from poise.monitor import summarize_projections
from poise.serve.server import RunningServer
from poise.steer import SteeringExpression

NAME = "tiny-llama"
ASK: list[Any] = [{"role": "user", "content": "Where do the boats go?"}]
STEERINGS = [
    "",
    "up=0.3",
    "up=-0.4",
    "down=0.3",
    "up=out",
    "up=cap:0.5",
    "up=0.3 first 4",
    "down=0.2 if prompt up@1>-100",
]


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model()


@pytest.fixture(scope="module")
def server(model: Model) -> Iterator[tuple[str, RunningServer]]:
    with serving.running(model) as found:
        yield found


@pytest.fixture(scope="module")
def client(server: tuple[str, RunningServer]) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server[0]}/v1", api_key="none", max_retries=0) as found:
        yield found


def alone(
    model: Model, messages: list[Any], steer: str = "", seed: int = 0, **sampling: Any
) -> tuple[str, torch.Tensor, str]:
    """What the engine says by itself, with the readings of both vectors and how it ended."""
    vectors = serving.vectors(model)
    [found] = LocalEngine(model).generate(
        [model.encode(messages)],
        SamplingParams(**({"max_new_tokens": 10, "temperature": 0} | sampling)),
        seeds=[seed],
        steering=SteeringExpression.parse(steer).steering(vectors) if steer else None,
        probes=tiny.probes(list(vectors.values())),
    )
    assert found.readings is not None
    return found.text, found.readings, found.finish


def ask(client: openai.OpenAI, **more: Any) -> Any:
    given: dict[str, Any] = {"model": NAME, "messages": ASK, "max_tokens": 10, "temperature": 0} | more
    return client.chat.completions.create(**given)


class TestModels:
    def test_are_listed_and_found_by_name(self, client: openai.OpenAI) -> None:
        assert [m.id for m in client.models.list()] == [NAME]
        assert client.models.retrieve(NAME).owned_by == "poise"

    def test_of_another_name_are_not_found(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.NotFoundError, match="no model 'gpt-5'"):
            client.models.retrieve("gpt-5")
        with pytest.raises(openai.NotFoundError) as caught:
            ask(client, model="gpt-5")
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


class TestAChat:
    def test_is_answered_as_the_engine_would(self, client: openai.OpenAI, model: Model) -> None:
        found = ask(client)
        text, _, finish = alone(model, ASK)
        assert (found.choices[0].message.content, found.choices[0].finish_reason) == (text, finish)
        assert found.choices[0].message.role == "assistant"
        assert found.usage.prompt_tokens == len(model.encode(ASK).ids)
        assert found.usage.completion_tokens == 10
        assert found.usage.total_tokens == found.usage.prompt_tokens + 10
        assert found.choices[0].model_extra == {}, "nothing of Poise for those who have not asked"

    def test_takes_system_and_assistant_turns_and_parts(self, client: openai.OpenAI, model: Model) -> None:
        turns = [{"role": "system", "content": "Be short."}, *ASK, {"role": "assistant", "content": "Out."}, *ASK]
        parts = [{"type": "text", "text": "Where do "}, {"type": "text", "text": "the boats go?"}]
        developer = [{"role": "developer", "content": "Be short."}, *turns[1:3], {"role": "user", "content": parts}]
        expected = alone(model, turns)[0]
        assert ask(client, messages=turns).choices[0].message.content == expected
        assert ask(client, messages=developer).choices[0].message.content == expected

    def test_streams_the_same(self, client: openai.OpenAI) -> None:
        chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
        assert chunks[0].choices[0].delta.role == "assistant"
        assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == ask(client).choices[0].message.content
        assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 2) + ["length"]
        again = list(ask(client, stream=True, stream_options={"include_usage": True}))
        assert (again[-1].choices, again[-1].usage) == ([], ask(client).usage)
        assert len({c.id for c in chunks}) == 1

    def test_draws_by_its_seed_temperature_and_top_p(self, client: openai.OpenAI, model: Model) -> None:
        options = {"temperature": 1.5, "top_p": 0.8, "seed": 7}
        expected = alone(model, ASK, seed=7, temperature=1.5, top_p=0.8)[0]
        assert ask(client, **options).choices[0].message.content == expected
        assert ask(client, **(options | {"seed": 8})).choices[0].message.content != expected
        unseeded = {ask(client, temperature=1.5).choices[0].message.content for _ in range(3)}
        assert len(unseeded) > 1

    def test_has_as_many_choices_as_are_asked_for(self, client: openai.OpenAI, model: Model) -> None:
        found = ask(client, n=3, temperature=1.0, seed=4)
        assert [c.index for c in found.choices] == [0, 1, 2]
        texts = [c.message.content for c in found.choices]
        assert texts == [alone(model, ASK, seed=4 + i, temperature=1.0)[0] for i in range(3)]
        streamed = ["", "", ""]
        for chunk in ask(client, n=3, temperature=1.0, seed=4, stream=True):
            streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
        assert streamed == texts

    @pytest.mark.parametrize("stream", [False, True])
    def test_ends_before_a_stop_string(self, client: openai.OpenAI, stream: bool) -> None:
        whole = ask(client).choices[0].message.content
        stop = next(c for c in whole[1:] if c.isascii())
        found = ask(client, stop=[stop, "never said"], stream=stream)
        if stream:
            chunks = list(found)
            text, finish = (
                "".join(c.choices[0].delta.content or "" for c in chunks),
                chunks[-1].choices[0].finish_reason,
            )
        else:
            text, finish = found.choices[0].message.content, found.choices[0].finish_reason
        assert (text, finish) == (whole[: whole.index(stop)], "stop")
        assert ask(client, stop=stop).choices[0].message.content == text

    def test_gives_log_probabilities(self, client: openai.OpenAI) -> None:
        content = ask(client, logprobs=True, top_logprobs=2).choices[0].logprobs.content
        assert len(content) == 10
        for token in content:
            assert token.logprob <= 0
            assert text_bytes(token.token) == bytes(token.bytes)
            assert (token.top_logprobs[0].token, token.top_logprobs[0].logprob) == (token.token, token.logprob)
            assert len(token.top_logprobs) == 2
        choice = ask(client, logprobs=True).choices[0]
        assert b"".join(bytes(t.bytes) for t in content).decode(errors="replace") == choice.message.content
        assert ask(client).choices[0].logprobs is None
        chunks = [c.choices[0].logprobs for c in ask(client, logprobs=True, stream=True)]
        streamed = [token for found in chunks if found for token in found.content]
        assert [t.logprob for t in streamed] == pytest.approx([t.logprob for t in content], abs=1e-5)

    def test_takes_the_newer_name_of_max_tokens(self, client: openai.OpenAI) -> None:
        found = client.chat.completions.create(model=NAME, messages=ASK, max_completion_tokens=3)
        assert found.usage is not None
        assert found.usage.completion_tokens <= 3


class TestACompletion:
    def test_continues_each_prompt_as_it_is(self, client: openai.OpenAI, model: Model) -> None:
        prompts = ["The boats", "A fox"]
        found = client.completions.create(model=NAME, prompt=prompts, max_tokens=6, temperature=0, logprobs=1)
        for prompt, choice in zip(prompts, found.choices, strict=True):
            ids = torch.tensor([model.tokenizer(prompt)["input_ids"]])
            out = model.lm.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=6,
                do_sample=False,
                eos_token_id=sorted(model.stop_ids),
                pad_token_id=0,
            )[0, ids.shape[1] :]
            assert choice.text == model.tokenizer.decode(out, skip_special_tokens=True)
            assert choice.logprobs is not None
            assert len(choice.logprobs.tokens or ()) == len(choice.logprobs.token_logprobs or ()) == len(out)

    @pytest.mark.parametrize("seed", range(4))
    def test_has_as_many_likeliest_tokens_as_are_asked_for_and_says_where_each_token_begins(
        self, client: openai.OpenAI, seed: int
    ) -> None:
        given: dict[str, Any] = {"model": NAME, "prompt": "The boats", "max_tokens": 24, "seed": seed, "logprobs": 5}
        whole = client.completions.create(**given).choices[0]
        assert whole.logprobs is not None
        assert [len(top) for top in whole.logprobs.top_logprobs or ()] == [5] * 24
        assert whole.logprobs.text_offset is not None
        places = [*whole.logprobs.text_offset, len(whole.text)]
        assert places == sorted(places)
        for token, first, last in zip(whole.logprobs.tokens or (), places, places[1:], strict=False):
            piece = whole.text[first:last]
            assert piece == "" or piece.endswith(token) or token.startswith("bytes:")
        chunks = [c.choices[0].logprobs for c in client.completions.create(**given, stream=True)]
        for name in ("tokens", "text_offset"):
            streamed = [value for chunk in chunks if chunk for value in getattr(chunk, name)]
            assert streamed == getattr(whole.logprobs, name), name

    def test_takes_token_ids(self, client: openai.OpenAI, model: Model) -> None:
        ids = model.tokenizer("The boats")["input_ids"]
        a, b = (
            client.completions.create(model=NAME, prompt=p, max_tokens=6, temperature=0) for p in ("The boats", ids)
        )
        assert a.choices[0].text == b.choices[0].text

    def test_streams(self, client: openai.OpenAI) -> None:
        given: dict[str, Any] = {"model": NAME, "prompt": "The boats", "max_tokens": 6, "temperature": 0}
        text = "".join(c.choices[0].text for c in client.completions.create(**given, stream=True))
        assert text == client.completions.create(**given).choices[0].text


class TestSteeringAndWatching:
    @pytest.mark.parametrize("steer", STEERINGS[1:])
    def test_give_what_the_engine_gives_alone(self, client: openai.OpenAI, model: Model, steer: str) -> None:
        text, readings, _ = alone(model, ASK, steer)
        found = ask(client, extra_body={"poise": {"steer": steer, "watch": True}}).choices[0]
        assert found.message.content == text
        told = found.poise
        assert told["steer"] == str(SteeringExpression.parse(steer))
        assert "".join(told["tokens"]) == text
        assert told["layers"] == {"up": 1, "down": 1}
        assert list(told["prompt"].values()) == pytest.approx(readings[0].tolist(), abs=1e-4)
        for column, name in enumerate(("up", "down")):
            assert told["readings"][name] == pytest.approx(readings[1:, column].tolist(), abs=1e-4)
            pushed = (told["push"][name] or {"response": 0.0})["response"]  # the summary is of what is said
            assert (pushed != 0) == (steer in ("up=0.3", "up=-0.4", "down=0.3"))
            assert told["summary"][name]["mean"] == pytest.approx(
                summarize_projections(readings).mean[column] - pushed, abs=1e-4
            )
            assert told["summary"][name]["peak"] == pytest.approx(
                summarize_projections(readings).peak[column] - pushed, abs=1e-4
            )

    def test_stream_the_prompts_reading_before_the_first_token(self, client: openai.OpenAI) -> None:
        body = {"poise": {"steer": "up=0.3", "watch": ["down"]}}
        whole = ask(client, extra_body=body).choices[0].poise
        told = [c.choices[0].poise for c in ask(client, extra_body=body, stream=True)]
        assert told[0]["prompt"] == pytest.approx(whole["prompt"], abs=1e-5)
        assert "tokens" not in told[0]
        readings = [value for one in told[1:-1] for value in one["readings"]["down"]]
        assert readings == pytest.approx(whole["readings"]["down"], abs=1e-5)
        assert told[-1]["summary"]["down"]["tokens"] == 10
        assert all(set(one.get("readings", {})) <= {"down"} for one in told)

    def test_take_steering_as_json_too(self, client: openai.OpenAI, model: Model) -> None:
        spec = {"terms": [{"vector": "up", "coef": 0.3, "layers": [1]}]}
        found = ask(client, extra_body={"poise": {"steer": spec}}).choices[0]
        assert found.message.content == alone(model, ASK, "up@1=0.3")[0]

    def test_warn_of_a_strength_that_nobody_has_certified(self, client: openai.OpenAI) -> None:
        [caution] = ask(client, extra_body={"poise": {"steer": "up=0.5"}}).choices[0].poise["cautions"]
        assert "is strong" in caution

    @pytest.mark.parametrize(
        "field",
        [
            {"steer": "   "},
            {"steer": ";"},
            {"steer": " ; ; "},
            {"steer": 5},
            {"steer": []},
            {"watch": [""]},
            {"watch": "up"},
            {"watch": 1},
            {"watch": [3]},
        ],
    )
    def test_that_say_nothing_or_are_of_a_wrong_type_are_bad_requests(
        self, client: openai.OpenAI, field: dict[str, Any]
    ) -> None:
        with pytest.raises(openai.BadRequestError) as error:
            ask(client, extra_body={"poise": field})
        assert str(dict(error.value.body or {})["message"]).endswith(".")  # type: ignore[call-overload]

    def test_of_an_empty_expression_do_nothing(self, client: openai.OpenAI) -> None:
        assert ask(client, extra_body={"poise": {"steer": "", "watch": True}}).choices[0].poise["steer"] is None

    @pytest.mark.parametrize(
        ("steer", "says"),
        [
            ("evil=1", "no vector 'evil'"),
            ("up=1e9", "more than the 3 allowed"),
            ("up=NaN", "Cannot read"),
            ("up", "Cannot read"),
            ("up@99=1", "out of range"),
            ({"terms": [{"vector": "up"}]}, "takes coef or dose"),
            ({"terms": [{"vector": "up", "coef": 1, "much": 2}]}, "much is not supported"),
        ],
    )
    def test_are_refused_by_the_field_where_they_make_no_sense(
        self, client: openai.OpenAI, steer: Any, says: str
    ) -> None:
        with pytest.raises(openai.BadRequestError, match=says) as caught:
            ask(client, extra_body={"poise": {"steer": steer}})
        assert str(caught.value.param).startswith("poise.steer")

    def test_do_not_know_a_vector_that_is_not_there(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.NotFoundError, match="there are: up, down"):
            ask(client, extra_body={"poise": {"watch": ["evil"]}})


class TestSixteenClientsAtOnce:
    def test_each_get_what_they_get_alone(self, server: tuple[str, RunningServer], model: Model) -> None:
        words = " ".join(tiny.SENTENCES).split()
        asked: list[tuple[list[Any], str, int]] = [
            ([{"role": "user", "content": " ".join(words[i : 2 * i + 2])}], STEERINGS[i % len(STEERINGS)], 6 + i)
            for i in range(16)
        ]
        expected = [alone(model, messages, steer, max_new_tokens=n)[0] for messages, steer, n in asked]

        def get(case: tuple[list[Any], str, int]) -> str:
            messages, steer, n = case
            body = {"poise": {"steer": steer, "watch": True}} if steer else {}
            with openai.OpenAI(base_url=f"{server[0]}/v1", api_key="none", max_retries=0) as client:
                chunks = ask(client, messages=messages, max_tokens=n, extra_body=body, stream=True)
                return "".join(c.choices[0].delta.content or "" for c in chunks)

        with ThreadPoolExecutor(16) as pool:
            for _ in range(2):
                assert list(pool.map(get, asked)) == expected


UNSUPPORTED: list[dict[str, Any]] = [
    {"tools": [{"type": "function", "function": {"name": "f"}}]},
    {"frequency_penalty": 0.5},
    {"presence_penalty": -1},
    {"logit_bias": {"5": 1}},
    {"modalities": ["audio"]},
    {"reasoning_effort": "low"},
]


class TestWhatIsNotSupported:
    @pytest.mark.parametrize("given", UNSUPPORTED, ids=lambda g: next(iter(g)))
    def test_is_refused_by_name(self, client: openai.OpenAI, given: dict[str, Any]) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            ask(client, **given)
        assert caught.value.param == next(iter(given))
        assert next(iter(given)) in caught.value.message
        assert caught.value.type == "invalid_request_error"

    def test_may_be_given_as_null_or_nought(self, client: openai.OpenAI) -> None:
        ask(client, frequency_penalty=0, presence_penalty=0, extra_body={"tools": None, "logit_bias": None})

    @pytest.mark.parametrize(
        ("given", "param"),
        [
            ({"temperature": 3}, "temperature"),
            ({"temperature": "1"}, "temperature"),
            ({"top_p": 0}, "top_p"),
            ({"n": 0}, "n"),
            ({"max_tokens": 0}, "max_tokens"),
            ({"max_tokens": 5000}, "messages"),
            ({"stop": [""]}, "stop"),
            ({"seed": 2**70}, "seed"),
            ({"messages": []}, "messages"),
            ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.tool_call_id"),
            ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "a"}]}, "messages.0.tool_call_id"),
            ({"messages": [{"role": "user", "content": "x", "tool_call_id": "a"}]}, "messages.0.tool_call_id"),
            ({"messages": [{"role": "x", "content": "x"}]}, "messages.0.role"),
            (
                {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
                "messages.0.content",
            ),
            ({"messages": [{"role": "user"}]}, "messages.0.content"),
            ({"top_logprobs": 2}, None),
            ({"stream_options": {"include_usage": True}}, None),
            ({"extra_body": {"poise": {"steered": "up=1"}}}, "poise.steered"),
        ],
        ids=lambda given: json.dumps(given)[:40],
    )
    def test_is_named_where_a_value_is_out_of_range(
        self, client: openai.OpenAI, given: dict[str, Any], param: str | None
    ) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            ask(client, **given)
        assert (caught.value.param or "").startswith(param or "")
        assert (param is None) == (caught.value.param is None)
        assert caught.value.message


class TestTheDescription:
    def test_has_every_route_and_no_other_error_than_ours(self, server: tuple[str, RunningServer]) -> None:
        found = httpx.get(f"{server[0]}/openapi.json").json()
        assert {"/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/poise/vectors"} <= set(found["paths"])
        assert not any("422" in o["responses"] for p in found["paths"].values() for o in p.values())
        assert "HTTPValidationError" not in json.dumps(found["paths"])

    def test_fits_the_answers(self, server: tuple[str, RunningServer]) -> None:
        from poise.serve import responses as replies

        body = {"model": NAME, "messages": ASK, "max_tokens": 3, "poise": {"watch": True}}
        replies.ChatCompletion.model_validate(httpx.post(f"{server[0]}/v1/chat/completions", json=body).json())
        body = {"model": NAME, "prompt": "a", "max_tokens": 3, "logprobs": 2}
        replies.Completion.model_validate(httpx.post(f"{server[0]}/v1/completions", json=body).json())
