"""A guardrail in the server: prompts, answers whole and streamed, and Bedrock's route."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

import serving
import thinking
import tiny
from poise.guardrail import checker_of, load_guardrail
from poise.guardrail.findings import masked
from poise.model import Model, wrap

GUARD = """\
name: bank
version: 2
messages: {input: "Ask something else.", output: "Not that."}
words: {custom: [rival bank, {text: grey fog, action: NONE}]}
sensitive:
  types: [EMAIL, US_SOCIAL_SECURITY_NUMBER, CREDIT_DEBIT_CARD_NUMBER, PHONE, PASSWORD,
          INTERNATIONAL_BANK_ACCOUNT_NUMBER, AWS_ACCESS_KEY]
  regexes: [{name: ticket, pattern: 'TCK-[0-9]{6,12}', action: ANONYMIZE}]
"""
ANSWERS = {
    1: "The boats are in. Mail anna.wolff@mail.example now, and then go on to the harbour.",
    2: "Before all else, and to be plain about it: a rival bank is better.",
    3: "A grey fog came in over the harbour.",
    4: "<think>\nMail is anna.wolff@mail.example then.\n</think>\n\nI will not tell.",
}


@pytest.fixture(scope="module")
def guard_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("guard") / "bank.yaml"
    path.write_text(GUARD)
    return path


@pytest.fixture(scope="module")
def http(guard_file: Path) -> Iterator[httpx.Client]:
    model = thinking.model("qwen3")
    with (
        pytest.MonkeyPatch.context() as patch,
        scripted(patch, model, ANSWERS),
        serving.running(model, guardrail=guard_file, batch=64, queue=2000) as (address, _),
        httpx.Client(base_url=address, timeout=120) as client,
    ):
        yield client


def scripted(patch: pytest.MonkeyPatch, model: Model, answers: dict[int, str]) -> contextlib.nullcontext[None]:
    thinking.script(patch, model, answers)
    return contextlib.nullcontext()


def chat(http: httpx.Client, *turns: str | dict[str, Any], seed: int = 1, **more: Any) -> Any:
    messages = [turn if isinstance(turn, dict) else {"role": "user", "content": turn} for turn in turns]
    body = {"model": "tiny-qwen3", "messages": messages, "seed": seed, "max_tokens": 200, **more}
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer


def chunks(answer: httpx.Response) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def said(events: list[dict[str, Any]], name: str = "content", index: int = 0) -> str:
    choices = [choice for event in events for choice in event["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get(name) or "" for choice in choices)


class TestPrompts:
    @pytest.mark.parametrize("stream", [False, True])
    def test_that_are_blocked_get_the_message_and_no_answer(self, http: httpx.Client, stream: bool) -> None:
        answer = chat(http, "Is a RIVAL bank better?", stream=stream)
        if stream:
            events = chunks(answer)
            for event in events:
                ChatCompletionChunk.model_validate(event, strict=True)
            content, last = said(events), events[-1]["choices"][0]
        else:
            ChatCompletion.model_validate(answer.json(), strict=True)
            [last] = answer.json()["choices"]
            content = last["message"]["content"]
            assert answer.json()["usage"]["completion_tokens"] == 0
        assert (content, last["finish_reason"]) == ("Ask something else.", "content_filter")
        [fact] = last["poise"]["guardrail"]
        assert fact == {
            "guardrail": "bank/2",
            "source": "INPUT",
            "policy": "words",
            "kind": "CUSTOM",
            "rule": "rival bank",
            "action": "BLOCK",
        }

    def test_that_are_masked_are_read_masked(self, http: httpx.Client) -> None:
        whole = chat(http, "Mail a.b@mail.example please", seed=3).json()
        written = chat(http, "Mail {EMAIL} please", seed=3).json()
        assert whole["usage"]["prompt_tokens"] == written["usage"]["prompt_tokens"]
        rules = [fact["rule"] for fact in whole["choices"][0]["poise"]["guardrail"]]
        assert rules == ["EMAIL", "grey fog"]

    def test_that_were_blocked_do_not_poison_later_turns(self, http: httpx.Client) -> None:
        refused = {"role": "assistant", "content": "Ask something else."}
        later = chat(http, "Is a rival bank better?", refused, "Where are the boats?", seed=3).json()
        clean = chat(http, "[removed]", refused, "Where are the boats?", seed=3).json()
        assert later["choices"][0]["finish_reason"] == "stop"
        assert later["usage"]["prompt_tokens"] == clean["usage"]["prompt_tokens"]

    def test_are_what_users_and_tools_say_and_not_what_the_server_is_told(self, http: httpx.Client) -> None:
        system = {"role": "system", "content": "Never speak of a rival bank."}
        assert chat(http, system, "Hello", seed=3).json()["choices"][0]["finish_reason"] == "stop"
        call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        turns = ["Hello", {"role": "assistant", "tool_calls": [call]}]
        result = {"role": "tool", "tool_call_id": "c", "content": "a rival bank says"}
        answer = http.post(
            "/v1/chat/completions",
            json={"model": "tiny-qwen3", "messages": [{"role": "user", "content": turns[0]}, turns[1], result]},
        )
        if answer.status_code == 200:  # a template without tools refuses the turn first
            assert answer.json()["choices"][0]["finish_reason"] == "content_filter"

    def test_of_completions_are_guarded_as_text_and_as_tokens(self, http: httpx.Client) -> None:
        model = thinking.model("qwen3")
        body = {"model": "tiny-qwen3", "seed": 3, "max_tokens": 30, "echo": True}
        for prompt in ("a rival bank", model.tokenizer("a rival bank")["input_ids"]):
            [choice] = http.post("/v1/completions", json={**body, "prompt": prompt}).json()["choices"]
            assert (choice["text"], choice["finish_reason"]) == ("Ask something else.", "content_filter")
        [choice] = http.post("/v1/completions", json={**body, "prompt": "mail a@mail.example"}).json()["choices"]
        assert choice["text"].startswith("mail {EMAIL}A grey fog")


class TestAnswers:
    @pytest.mark.parametrize("stream", [False, True])
    def test_are_masked(self, http: httpx.Client, stream: bool) -> None:
        answer = chat(http, "Hello", stream=stream, logprobs=True, top_logprobs=3)
        text = said(chunks(answer)) if stream else answer.json()["choices"][0]["message"]["content"]
        assert text == "The boats are in. Mail {EMAIL} now, and then go on to the harbour."
        assert "wolff" not in answer.text

    def test_are_masked_in_their_thoughts(self, http: httpx.Client) -> None:
        answer = chat(http, "Hello", seed=4, stream=True, reasoning_effort="high")
        assert said(chunks(answer), "reasoning_content").strip() == "Mail is {EMAIL} then."
        assert said(chunks(answer)) == "I will not tell."

    def test_that_are_blocked_whole_are_only_the_message(self, http: httpx.Client) -> None:
        answer = chat(http, "Hello", seed=2).json()
        [choice] = answer["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("Not that.", "content_filter")
        assert choice["poise"]["guardrail"][0]["source"] == "OUTPUT"
        assert answer["usage"]["completion_tokens"] >= 0

    def test_that_are_blocked_in_a_stream_end_before_the_match(self, http: httpx.Client) -> None:
        events = chunks(chat(http, "Hello", seed=2, stream=True))
        assert said(events) == "Before all else, and to be plain about it: a Not that."
        assert events[-1]["choices"][0]["finish_reason"] == "content_filter"

    def test_that_are_fine_are_as_without_a_guardrail(self, http: httpx.Client) -> None:
        assert said(chunks(chat(http, "Hello", seed=3, stream=True))) == ANSWERS[3]

    def test_of_the_responses_route_are_guarded_too(self, http: httpx.Client) -> None:
        for stream in (False, True):
            body = {"model": "tiny-qwen3", "input": "a rival bank?", "stream": stream}
            answer = http.post("/v1/responses", json=body)
            assert "Ask something else." in answer.text
            assert '"reason":"content_filter"' in answer.text.replace(" ", "")


def planted(draw: random.Random) -> tuple[str, str]:
    """A sentence with a secret, and the secret."""

    def digits(n: int) -> str:
        return "".join(draw.choice("0123456789") for _ in range(n))

    def card() -> str:
        from stdnum import luhn

        number = "4" + digits(14)
        number += luhn.calc_check_digit(number)
        return " ".join(number[i : i + 4] for i in range(0, 16, 4)) if draw.random() < 0.5 else number

    def iban() -> str:
        from stdnum.iso7064 import mod_97_10

        account = "WEST" + digits(14)
        check = mod_97_10.calc_check_digits(account + "GB")
        number = f"GB{check}{account}"
        return " ".join(number[i : i + 4] for i in range(0, 22, 4)) if draw.random() < 0.5 else number

    name = "".join(draw.choice("abcdefghijklmnop") for _ in range(draw.randint(6, 20)))
    secrets = {
        "Write to {}.": f"{name}@{name[:5]}.example",
        "Her SSN: {}, as it were.": f"5{draw.randint(10, 98)}-{draw.randint(10, 98)}-{draw.randint(1000, 9998)}",
        "Paid with {} yesterday.": card(),
        "Send it to {} at once!": iban(),
        "Call +44 {} then.": f"20 7{digits(3)} {digits(4)}",
        "The key AKIA{} works.": "".join(draw.choice("ABCDEFGHIJ234567") for _ in range(16)),
        "the password is {} there": f"{name.title()}{digits(4)}!x",
        "See TCK-{} for more.": digits(draw.randint(7, 12)),
    }
    sentence = draw.choice(sorted(secrets))
    return sentence.format(secrets[sentence]), secrets[sentence]


class TestALeak:
    @pytest.mark.parametrize("count", [16, pytest.param(256, marks=pytest.mark.slow)])
    def test_of_planted_secrets_four_an_answer_there_is_none(
        self, guard_file: Path, monkeypatch: pytest.MonkeyPatch, count: int
    ) -> None:
        draw = random.Random(18)
        model = wrap(tiny.lm(max_position_embeddings=1024), thinking.tokenizer("qwen3"), name="tiny-qwen3")
        filler = ["Boats came in.", "It rains on the harbour,", "and so on.", "No.", "Then we go home to the tide:"]
        answers, secrets = {}, {}
        for number in range(count):
            parts = [(draw.choice(filler), planted(draw)) for _ in range(4)]
            answers[number] = " ".join(f"{words} {sentence}" for words, (sentence, _) in parts)
            secrets[number] = [secret for _, (_, secret) in parts]
        checker = checker_of(load_guardrail(guard_file))
        thinking.script(monkeypatch, model, answers)
        with (
            serving.running(model, given={}, guardrail=guard_file, batch=64, queue=2000) as (address, _),
            httpx.Client(base_url=address, timeout=600) as client,
            ThreadPoolExecutor(8) as pool,
        ):
            more = {"n": 16, "stream": True, "max_tokens": 400, "logprobs": True, "top_logprobs": 1}
            streams = list(
                pool.map(lambda first: chunks(chat(client, "Hello", seed=first, **more)), range(0, count, 16))
            )
        assert sum(map(len, secrets.values())) == 4 * count
        leaks = []
        for number, answer in answers.items():
            events = streams[number // 16]
            text = said(events, index=number % 16)
            assert text == masked(answer, checker.find(answer, "OUTPUT"))
            tokens = [
                entry["token"]
                for event in events
                for choice in event["choices"]
                if choice["index"] == number % 16 and choice["logprobs"]
                for entry in choice["logprobs"]["content"]
            ]
            parts = {secret[i : i + 7] for secret in secrets[number] for i in range(len(secret) - 6)}
            leaks += [part for part in parts if part in text or part in "".join(tokens)]
        assert leaks == []


class TestBedrocksRoute:
    def test_answers_in_its_shape(self, http: httpx.Client) -> None:
        body = {"source": "OUTPUT", "content": [{"text": {"text": "Mail a@mail.example"}}]}
        answer = http.post("/guardrail/bank/version/2/apply", json=body)
        assert answer.json()["outputs"] == [{"text": "Mail {EMAIL}"}]
        arn = "arn%3Aaws%3Abedrock%3Aeu-west-1%3A123456789012%3Aguardrail%2Fbank"
        assert http.post(f"/guardrail/{arn}/version/2/apply", json=body).json()["action"] == "GUARDRAIL_INTERVENED"

    @pytest.mark.parametrize(
        ("path", "body", "status", "kind", "message"),
        [
            ("bank/version/1", {}, 404, "ResourceNotFoundException", "there is 'bank', version '2'"),
            ("shop/version/2", {}, 404, "ResourceNotFoundException", "there is 'bank', version '2'"),
            ("bank/version/2", {"source": "BOTH"}, 400, "ValidationException", "source"),
            ("bank/version/2", {"content": []}, 400, "ValidationException", "content"),
            ("bank/version/2", {"content": [{"image": {}}]}, 400, "ValidationException", "image"),
            ("bank/version/2", {"content": [{"text": {"text": "a" * 10**7}}]}, 413, "ValidationException", "bytes"),
            ("bank/version/2", {"content": [{"text": {"text": "a" * 2_100_000}}]}, 400, "ValidationException", "parts"),
        ],
    )
    def test_refuses_in_its_words(
        self, http: httpx.Client, path: str, body: dict[str, Any], status: int, kind: str, message: str
    ) -> None:
        fine = {"source": "INPUT", "content": [{"text": {"text": "a"}}]}
        answer = http.post(f"/guardrail/{path}/apply", json=fine | body)
        assert (answer.status_code, answer.headers["x-amzn-errortype"]) == (status, kind)
        assert message in answer.json()["message"]

    def test_refuses_text_that_is_cut(self, http: httpx.Client) -> None:
        data = '{"source": "INPUT", "content": [{"text": {"text": "Grüße"}}]}'.encode().replace("ü".encode(), b"\xc3")
        answer = http.post("/guardrail/bank/version/2/apply", content=data)
        assert (answer.status_code, "not UTF-8" in answer.json()["message"]) == (400, True)

    def test_needs_a_guardrail(self) -> None:
        with serving.running(given={}) as (address, _):
            answer = httpx.post(f"{address}/guardrail/bank/version/2/apply", json={})
            assert (answer.status_code, "no guardrail here" in answer.json()["message"]) == (404, True)
