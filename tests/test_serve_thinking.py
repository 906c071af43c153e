"""Thinking over the API: ``reasoning_content``, the switches that clients send, and alarms that count replies only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

import serving
import thinking
import tiny
from poise.data.thoughts import split_thought
from poise.vector import PersonaVector
from thinking import ANSWERS, REPLY, THOUGHT

ASK: list[Any] = [{"role": "user", "content": "Where do the boats go?"}]
ON: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": True}}


@pytest.fixture(params=["qwen3", "r1", "harmony"])
def family(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    return str(request.param)


@pytest.fixture
def client(family: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[openai.OpenAI]:
    model = thinking.model(family)
    thinking.script(monkeypatch, model, {5: ANSWERS[family], 6: REPLY})
    with (
        serving.running(model) as (address, _),
        openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as opened,
    ):
        yield opened


def ask(client: openai.OpenAI, family: str, **more: Any) -> Any:
    request: dict[str, Any] = {"model": f"tiny-{family}", "messages": ASK, "max_tokens": 120, "seed": 5} | more
    return client.chat.completions.create(**request)


def test_an_answer_has_its_thought_apart(client: openai.OpenAI, family: str) -> None:
    answer = ask(client, family, extra_body={**ON, "poise": {"watch": True}})
    message, told = answer.choices[0].message, answer.choices[0].poise
    assert (message.content, message.reasoning_content) == (REPLY, THOUGHT)
    assert answer.usage.completion_tokens_details.reasoning_tokens == told["parts"].count("thought") > 0
    assert len(told["tokens"]) == len(told["parts"]) == len(told["readings"]["up"]) == answer.usage.completion_tokens
    readings = [r for r, part in zip(told["readings"]["up"], told["parts"], strict=True) if part == "reply"]
    assert told["summary"]["up"]["mean"] == pytest.approx(sum(readings) / len(readings), abs=1e-4)
    assert told["summary"]["up"]["tokens"] == len(readings)


@pytest.mark.parametrize("watch", [False, True])
def test_a_stream_has_its_thought_apart(client: openai.OpenAI, family: str, watch: bool) -> None:
    body = {**ON, **({"poise": {"watch": True}} if watch else {})}
    chunks = list(ask(client, family, stream=True, stream_options={"include_usage": True}, extra_body=body))
    deltas = [chunk.choices[0].delta for chunk in chunks[:-1]]
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == THOUGHT
    assert "".join(delta.content or "" for delta in deltas) == REPLY
    assert chunks[-1].usage.completion_tokens_details.reasoning_tokens > 0


def test_without_thinking_there_is_none(client: openai.OpenAI, family: str) -> None:
    for more in (
        {},
        {"reasoning_effort": "none"},
        {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}},
    ):
        answer = ask(client, family, seed=6, **more)
        assert answer.choices[0].message.content == REPLY
        assert not hasattr(answer.choices[0].message, "reasoning_content")
        assert answer.usage.completion_tokens_details.reasoning_tokens == 0


def test_an_effort_switches_thinking_on(client: openai.OpenAI, family: str) -> None:
    assert ask(client, family, reasoning_effort="high").choices[0].message.reasoning_content == THOUGHT


def test_a_thought_that_is_sent_back_is_the_template_s_to_show(client: openai.OpenAI, family: str) -> None:
    earlier = {"role": "assistant", "content": "Out.", "reasoning_content": "They leave."}
    shown = ask(client, family, messages=[*ASK, earlier, *ASK], seed=6).usage.prompt_tokens
    plain = ask(client, family, messages=[*ASK, {"role": "assistant", "content": "Out."}, *ASK], seed=6)
    assert shown == plain.usage.prompt_tokens, "all three drop thoughts before the last question"


def test_two_switches_that_differ_are_refused(client: openai.OpenAI, family: str) -> None:
    with pytest.raises(openai.BadRequestError, match="thinking is switched on and off"):
        ask(client, family, reasoning_effort="none", extra_body=ON)
    with pytest.raises(openai.BadRequestError, match=r"chat_template_kwargs\.custom is not supported here"):
        ask(client, family, extra_body={"chat_template_kwargs": {"custom": 1}})


def test_a_template_without_a_switch_says_so() -> None:
    with (
        serving.running(tiny.model()) as (address, _),
        openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client,
        pytest.raises(openai.BadRequestError, match="has no switch for thinking"),
    ):
        ask(client, "llama", extra_body=ON)


MIXED = {
    11: ("Sure. <think>a</think>b", "a", "Sure. b"),
    12: ("<think>a</think>b<think>c</think>d", "a\n\nc", "b\n\nd"),
    13: ("<think>a<think>n</think> more</think>d", "a<think>n</think> more", "d"),
    14: ("so it is</think>d", "so it is", "d"),
    15: ("Say `<think>` and <b>x</b> < y", "", "Say `<think>` and <b>x</b> < y"),
    16: ("<THINK>a</THINK>b", "a", "b"),
    17: ("<seed:think>a</seed:think>b", "a", "b"),
}


@pytest.mark.parametrize("kind", ["qwen3", "split"])
def test_thoughts_anywhere_are_told_apart_as_they_are_in_data(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = thinking.model(kind)
    thinking.script(monkeypatch, model, {seed: text for seed, (text, _, _) in MIXED.items()})
    with (
        serving.running(model) as (address, _),
        openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client,
    ):
        for seed, (text, thought, reply) in MIXED.items():
            assert split_thought(text) == (thought, reply)
            body = {"poise": {"watch": True}}
            message = ask(client, kind, seed=seed, extra_body=body).choices[0].message
            assert (getattr(message, "reasoning_content", None) or "", message.content) == (thought, reply)
            deltas = [chunk.choices[0] for chunk in ask(client, kind, seed=seed, stream=True, extra_body=body)]
            taken_back = [n for n, choice in enumerate(deltas) if choice.poise.get("ends_unopened_thought")]
            begin = taken_back[-1] if taken_back else 0
            assert "".join(choice.delta.content or "" for choice in deltas[begin:]) == reply
            if not taken_back:
                streamed = "".join(getattr(choice.delta, "reasoning_content", None) or "" for choice in deltas)
                assert streamed == thought
            assert bool(taken_back) == (seed in (13, 14))


@pytest.mark.parametrize("family", ["qwen3"])
def test_alarms_count_the_reply_alone(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = thinking.model(family)
    thinking.script(monkeypatch, model, {5: ANSWERS[family], 6: "<think>\nThe boats go out and out and out"})
    vector: PersonaVector = tiny.vector(model, alarms=(serving.alarm(threshold=-1e6),))
    with (
        serving.running(model, {"up": vector}) as (address, _),
        openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client,
    ):
        body = {**ON, "poise": {"watch": True}}
        told = ask(client, family, extra_body=body).choices[0].poise
        [alarm] = told["alarms"]
        assert alarm["token"] == told["parts"].index("reply") + 8, "numbered in the answer, counted in the reply"
        told = ask(client, family, seed=6, extra_body=body).choices[0].poise
        assert (told["alarms"], told["summary"]["up"]["tokens"]) == ([], 0)
