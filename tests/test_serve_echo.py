"""Prompts given back with their log-probabilities, as lm-eval and other scorers of texts ask for them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
import torch

import serving
import tiny
from poise.engine.prompt_scores import PromptScoring
from poise.errors import InvalidArgument, InvalidSteering, NonFiniteActivation
from poise.model import Model
from poise.serve import planning, prompt_scorer
from poise.serve.server import RunningServer
from poise.steer import Steering, SteeringExpression, apply_steering

NAME = "tiny-llama"
TEXT = "The boats go out at five, naïve 🚣 and 日本 in the fog."


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model()


@pytest.fixture(scope="module")
def server(model: Model) -> Iterator[tuple[str, RunningServer]]:
    with serving.running(model) as running:
        yield running


def post(address: str, **fields: Any) -> httpx.Response:
    body = {"model": NAME, "temperature": 0, **fields}
    return httpx.post(f"{address}/v1/completions", json=body, timeout=60)


def complete(address: str, **fields: Any) -> dict[str, Any]:
    answer = post(address, **fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


def hooked_logprobs(model: Model, ids: list[int], steer: str = "") -> torch.Tensor:
    """Log-probabilities [T - 1, vocabulary] of Hugging Face's model under our hooks, steered at every token."""
    context: Any = contextlib.nullcontext()
    if steer:
        steering = SteeringExpression.parse(steer).steering(serving.vectors(model))
        context = apply_steering(model, [Steering(tuple(replace(t, phase="all") for t in steering.terms))])
    with torch.inference_mode(), context:
        return model.lm(torch.tensor([ids])).logits[0, :-1].float().log_softmax(-1)


class TestScores:
    @pytest.mark.parametrize("steer", ["", "up=0.4", "up=cap:0.1", "up=0.3; down=-0.2"])
    @pytest.mark.parametrize("logprobs", [0, 1, 5])
    def test_are_those_of_hugging_faces_model_under_our_hooks(
        self, model: Model, server: tuple[str, RunningServer], steer: str, logprobs: int
    ) -> None:
        prompts = [list(range(5, 25)), [9], list(range(300, 340, 2))]
        poise = {"poise": {"steer": steer}} if steer else {}
        body = complete(server[0], prompt=prompts, echo=True, logprobs=logprobs, max_tokens=0, **poise)
        assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
        assert body["usage"]["completion_tokens"] == 0
        assert body["usage"]["prompt_tokens"] == 41
        for ids, choice in zip(prompts, body["choices"], strict=True):
            scores = choice["logprobs"]
            expected = hooked_logprobs(model, ids, steer if len(ids) > 1 else "")
            assert scores["token_logprobs"][0] is None
            assert scores["top_logprobs"][0] is None
            chosen = expected.gather(-1, torch.tensor(ids[1:]).unsqueeze(-1)).squeeze(-1)
            torch.testing.assert_close(torch.tensor(scores["token_logprobs"][1:]), chosen, rtol=0, atol=1e-4)
            assert choice["finish_reason"] == "length"
            for top, row in zip(scores["top_logprobs"][1:], expected, strict=True):
                best = row.topk(logprobs).values
                torch.testing.assert_close(torch.tensor(list(top.values())), best, rtol=0, atol=1e-4)

    def test_of_a_steered_text_differ_from_those_of_the_text_alone(self, server: tuple[str, RunningServer]) -> None:
        facts: dict[str, Any] = {"prompt": TEXT, "echo": True, "logprobs": 0, "max_tokens": 0}
        plain = complete(server[0], **facts)["choices"][0]["logprobs"]["token_logprobs"]
        steered = complete(server[0], **facts, poise={"steer": "up=0.4"})["choices"][0]["logprobs"]["token_logprobs"]
        assert max(abs(a - b) for a, b in zip(plain[1:], steered[1:], strict=True)) > 0.01

    def test_in_parts_are_those_at_once(self, model: Model) -> None:
        ids = list(range(3, 103))
        steering = Steering.add(serving.vectors(model)["up"], coef=0.3)
        for pass_tokens in (7, 64, 100, 500):
            scoring = PromptScoring(model, [ids, ids[:5]], steering=steering, top=2, pass_tokens=pass_tokens)
            while not scoring.done:
                scoring.advance()
            expected = hooked_logprobs(model, ids, "up=0.3")
            chosen = expected.gather(-1, torch.tensor(ids[1:]).unsqueeze(-1)).squeeze(-1)
            torch.testing.assert_close(scoring.scores[0].logprobs, chosen, rtol=0, atol=1e-4)
            assert scoring.scores[1].logprobs.shape == (4,)
            assert scoring.passes == {7: 16, 64: 3, 100: 2, 500: 1}[pass_tokens]

    def test_of_counted_tokens_need_the_text_at_once(self, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        up = serving.vectors(model)["up"]
        scheduled = SteeringExpression.parse("up=0.3 first 4").steering({"up": up})
        ids = list(range(3, 103))
        scoring = PromptScoring(model, [ids], steering=scheduled, pass_tokens=16)
        scoring.advance()
        assert scoring.done
        plain, steered = hooked_logprobs(model, ids), hooked_logprobs(model, ids, "up=0.3")
        chosen = torch.tensor(ids[1:]).unsqueeze(-1)
        torch.testing.assert_close(
            scoring.scores[0].logprobs[:4], steered.gather(-1, chosen).squeeze(-1)[:4], rtol=0, atol=1e-4
        )
        assert not torch.allclose(scoring.scores[0].logprobs[5:], steered.gather(-1, chosen).squeeze(-1)[5:], atol=1e-3)
        assert plain.shape == steered.shape
        monkeypatch.setattr("poise.engine.prompt_scores.WHOLE_CPU", 99)
        with pytest.raises(InvalidArgument, match=r"100 tokens cannot be scored in parts.*at most 99"):
            PromptScoring(model, [ids], steering=scheduled, pass_tokens=16)

    @pytest.mark.parametrize("steer", ["up=0.3 on prompt", "up=0.3 if prompt up@1>0"])
    def test_have_no_prompt_to_steer(self, model: Model, server: tuple[str, RunningServer], steer: str) -> None:
        answer = post(server[0], prompt=TEXT, echo=True, logprobs=0, max_tokens=0, poise={"steer": steer})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "poise.steer"
        assert "counts as response" in answer.json()["error"]["message"]
        with pytest.raises(InvalidSteering):
            PromptScoring(model, [[5, 6]], steering=SteeringExpression.parse(steer).steering(serving.vectors(model)))

    def test_that_are_not_finite_are_an_error(self) -> None:
        broken = tiny.model()
        broken.lm.lm_head.weight.data.fill_(float("nan"))
        scoring = PromptScoring(broken, [[5, 6]])
        with pytest.raises(NonFiniteActivation, match="steer with less"):
            scoring.advance()


class TestEcho:
    def test_offsets_are_where_tokens_begin_in_the_text(self, server: tuple[str, RunningServer]) -> None:
        for prompt in (TEXT, server[1].service.model.tokenizer(TEXT)["input_ids"]):
            choice = complete(server[0], prompt=prompt, echo=True, logprobs=1, max_tokens=3)["choices"][0]
            assert choice["text"].startswith(TEXT)
            scores = choice["logprobs"]
            assert len({len(values) for values in scores.values()}) == 1
            assert scores["text_offset"] == sorted(scores["text_offset"])
            joined = 0
            for token, offset in zip(scores["tokens"], scores["text_offset"], strict=True):
                if not token.startswith("bytes:"):
                    assert choice["text"][offset : offset + len(token)] == token
                    joined += 1
            assert joined > 5

    def test_without_logprobs_is_the_prompt_before_the_answer(self, server: tuple[str, RunningServer]) -> None:
        plain = complete(server[0], prompt=TEXT, max_tokens=5)["choices"][0]
        echoed = complete(server[0], prompt=TEXT, max_tokens=5, echo=True)["choices"][0]
        assert echoed["text"] == TEXT + plain["text"]
        assert echoed["logprobs"] is None

    def test_answers_with_the_same_tokens_as_without(self, server: tuple[str, RunningServer]) -> None:
        facts: dict[str, Any] = {"prompt": [TEXT, "Two"], "max_tokens": 5, "logprobs": 2, "n": 2, "seed": 3}
        plain = complete(server[0], **facts | {"temperature": 1})["choices"]
        echoed = complete(server[0], **facts | {"temperature": 1}, echo=True)["choices"]
        for without, with_echo in zip(plain, echoed, strict=True):
            prompt = TEXT if without["index"] < 2 else "Two"
            assert with_echo["text"] == prompt + without["text"]
            n = len(without["logprobs"]["tokens"])
            length = len(with_echo["logprobs"]["tokens"]) - n - (without["finish_reason"] == "stop")
            for name in ("tokens", "token_logprobs", "top_logprobs"):
                assert with_echo["logprobs"][name][length : length + n] == without["logprobs"][name]
            offsets = [len(prompt) + offset for offset in without["logprobs"]["text_offset"]]
            assert with_echo["logprobs"]["text_offset"][length : length + n] == offsets

    def test_keeps_the_token_that_ended_the_answer(self, model: Model, server: tuple[str, RunningServer]) -> None:
        """So that whoever takes the last entry off, as lm-eval does, never loses one of the prompt."""
        ids = next(
            [a, b]
            for a in range(3, 300)
            for b in (7, 11)
            if int(model.lm(torch.tensor([[a, b]])).logits[0, -1].argmax()) not in (a, b)
        )
        likeliest = int(model.lm(torch.tensor([ids])).logits[0, -1].argmax())
        with serving.running(replace_stop(model, likeliest)) as (address, _):
            choice = complete(address, prompt=ids, echo=True, logprobs=1, max_tokens=1)["choices"][0]
        assert choice["finish_reason"] == "stop"
        assert len(choice["logprobs"]["tokens"]) == 3
        assert choice["logprobs"]["token_logprobs"][-1] == max(choice["logprobs"]["top_logprobs"][-1].values())

    def test_streams(self, server: tuple[str, RunningServer]) -> None:
        facts: dict[str, Any] = {"prompt": TEXT, "echo": True, "logprobs": 1}
        for max_tokens in (0, 4):
            complete_choice = complete(server[0], **facts, max_tokens=max_tokens)["choices"][0]
            answer = post(server[0], **facts, max_tokens=max_tokens, stream=True)
            lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
            assert lines[-1] == "[DONE]"
            chunks = [json.loads(line)["choices"][0] for line in lines[:-1]]
            assert "".join(chunk["text"] for chunk in chunks) == complete_choice["text"]
            assert chunks[-1]["finish_reason"] == complete_choice["finish_reason"]
            for name, values in complete_choice["logprobs"].items():
                streamed = [value for chunk in chunks if chunk["logprobs"] for value in chunk["logprobs"][name]]
                assert streamed == values


def replace_stop(model: Model, token: int) -> Model:
    return replace(model, stop_ids=frozenset({token}))


class TestLimits:
    def test_no_tokens_without_echo(self, server: tuple[str, RunningServer]) -> None:
        answer = post(server[0], prompt=TEXT, max_tokens=0)
        assert answer.status_code == 400
        assert answer.json()["error"]["message"] == "The request: max_tokens may only be 0 with echo=true."
        answer = post(server[0], prompt=TEXT, max_tokens=0, echo=True, poise={"watch": True})
        assert answer.status_code == 400
        assert "poise.watch reads answers" in answer.json()["error"]["message"]

    def test_a_full_window_can_be_scored(self, model: Model, server: tuple[str, RunningServer]) -> None:
        ids = [5] * model.window
        facts: dict[str, Any] = {"prompt": ids, "echo": True, "logprobs": 0}
        scores = complete(server[0], **facts, max_tokens=0)["choices"][0]["logprobs"]
        assert len(scores["token_logprobs"]) == model.window
        assert post(server[0], **facts, max_tokens=1).json()["error"]["code"] == "context_length_exceeded"

    def test_tokens_of_one_request(self, server: tuple[str, RunningServer], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(planning, "MOST_SCORED", 10)
        answer = post(server[0], prompt=[[5] * 6, [6] * 5], echo=True, logprobs=0, max_tokens=0)
        assert answer.json()["error"]["code"] == "too_many_tokens"
        assert post(server[0], prompt=[[5] * 5, [6] * 5], echo=True, logprobs=0, max_tokens=0).status_code == 200

    def test_requests_at_once(self, server: tuple[str, RunningServer]) -> None:
        scorer = prompt_scorer.PromptScorer(server[1].service.scheduler, most=4)
        for _ in range(2):
            scorer.admit("a")
        with pytest.raises(Exception, match="2 of one key"):
            scorer.admit("a")
        scorer.admit("b")
        scorer.release("a")
        scorer.admit("a")

    def test_slots_are_given_back(self, server: tuple[str, RunningServer]) -> None:
        for _ in range(3):
            complete(server[0], prompt=TEXT, echo=True, logprobs=0, max_tokens=0)
        assert server[1].service.scorer._open.total() == 0
