"""Streamed answers that leave at once: what ends them, and what has left by then."""

from __future__ import annotations

import json
import random
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

import serving
import thinking
import tiny
from poise.errors import InvalidSettings
from poise.guardrail import checker_of, load_guardrail
from poise.guardrail.observed import ObservedText
from poise.model import wrap
from test_serve_guardrail import chat, chunks, planted, said

GUARD = """\
name: bank
streaming: asynchronous
messages: {output: "Not that."}
words: {custom: [rival bank, {text: grey fog, action: NONE}]}
sensitive:
  types: [TYPES]
  regexes: [{name: ticket, pattern: 'TCK-[0-9]{6,12}'}]
""".replace(
    "TYPES",
    ", ".join(
        f"{{type: {kind}, action: BLOCK}}"
        for kind in (
            "EMAIL",
            "US_SOCIAL_SECURITY_NUMBER",
            "CREDIT_DEBIT_CARD_NUMBER",
            "PHONE",
            "PASSWORD",
            "INTERNATIONAL_BANK_ACCOUNT_NUMBER",
            "AWS_ACCESS_KEY",
        )
    ),
)


@pytest.fixture
def guard_file(tmp_path: Path) -> Path:
    path = tmp_path / "bank.yaml"
    path.write_text(GUARD)
    return path


class TestObservedText:
    def test_reports_a_match_once_and_when_it_can_be_nothing_else(self, guard_file: Path) -> None:
        checker, text = checker_of(load_guardrail(guard_file)), ObservedText()

        def look(*, last: bool = False) -> list[tuple[str, int]]:
            left = text.unchecked(last=last)
            return [(f.rule, text.gone(left, f)) for f in text.take(left, checker.find(left.text, "OUTPUT"))]

        text.add("Go to a rival bank")
        assert look() == []  # it may become a rival banker
        text.add(", and then home")
        assert look() == [("rival bank", 10)]
        assert look(last=True) == []
        text.add(" past a rival bank")
        assert look(last=True) == [("rival bank", 10)]

    def test_finds_the_same_however_the_text_comes(self, guard_file: Path) -> None:
        checker, draw = checker_of(load_guardrail(guard_file)), random.Random(3)
        whole = " ".join(f"So it was said. {planted(draw)[0]} And so on and on, to the tide." for _ in range(40))
        expected = [(f.rule, whole[f.start : f.end]) for f in checker.find(whole, "OUTPUT")]
        text, found, place = ObservedText(), list[tuple[str, str]](), 0
        while place < len(whole):
            step = draw.randint(1, 9)
            text.add(whole[place : place + step])
            place += step
            if text.is_due or place >= len(whole):
                left = text.unchecked(last=place >= len(whole))
                new = text.take(left, checker.find(left.text, "OUTPUT"))
                found += [(f.rule, left.text[f.start : f.end]) for f in new]
        assert found == expected


class TestTheFile:
    def test_with_rules_that_mask_answers_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "a.yaml"
        path.write_text(GUARD.replace("{type: EMAIL, action: BLOCK}", "EMAIL"))
        with pytest.raises(InvalidSettings, match="line 2: streaming is asynchronous, and EMAIL would be masked"):
            load_guardrail(path)


ANSWERS = {
    1: "Before all else: a rival bank is better. " + "And so it goes on to the harbour. " * 20,
    2: "A grey fog came in over the harbour.",
    3: "<think>\nA rival bank, then. But no.\n</think>\n\nI will not tell.",
}


def test_answers_leave_at_once_and_end_on_a_match(guard_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = wrap(tiny.lm(max_position_embeddings=1024), thinking.tokenizer("qwen3"), name="tiny-qwen3")
    thinking.script(monkeypatch, model, ANSWERS)
    with (
        serving.running(model, given={}, guardrail=guard_file) as (address, _),
        httpx.Client(base_url=address, timeout=120) as http,
    ):
        events = chunks(chat(http, "Hello", stream=True, max_tokens=800))
        text, last = said(events), events[-1]["choices"][0]
        assert text.endswith("Not that.")
        assert ANSWERS[1].startswith(text.removesuffix("Not that."))
        assert (last["finish_reason"], len(text) < len(ANSWERS[1])) == ("content_filter", True)
        [fact] = last["poise"]["guardrail"]
        assert (fact["rule"], fact["action"], fact["left"]) == ("rival bank", "BLOCK", len("rival bank"))
        events = chunks(chat(http, "Hello", seed=2, stream=True))
        assert said(events) == ANSWERS[2]
        assert events[-1]["choices"][0]["poise"]["guardrail"][0]["action"] == "NONE"
        events = chunks(chat(http, "Hello", seed=3, stream=True, reasoning_effort="high"))
        assert events[-1]["choices"][0]["finish_reason"] == "content_filter"
        whole = chat(http, "Hello", max_tokens=800).json()["choices"][0]
        assert whole["message"]["content"] == "Not that."  # nobody reads it before its end


@pytest.mark.parametrize("count", [32, pytest.param(1024, marks=pytest.mark.slow)])
def test_what_has_left_of_planted_secrets_is_said(
    guard_file: Path, monkeypatch: pytest.MonkeyPatch, count: int, record_property: Any
) -> None:
    """One a text: that it leaks is what this way of streaming is, and nothing comes after the end."""
    draw = random.Random(19)
    model = wrap(tiny.lm(max_position_embeddings=1024), thinking.tokenizer("qwen3"), name="tiny-qwen3")
    answers, secrets = {}, {}
    for number in range(count):
        sentence, secrets[number] = planted(draw)
        before = "Boats came in. " * draw.randint(0, 9)
        answers[number] = f"{before}{sentence} " + "It rains on the harbour, and so on. " * 8
    thinking.script(monkeypatch, model, answers)
    with (
        serving.running(model, given={}, guardrail=guard_file, batch=64, queue=2000) as (address, _),
        httpx.Client(base_url=address, timeout=600) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        more = {"n": 16, "stream": True, "max_tokens": 700}
        streams = list(pool.map(lambda first: chunks(chat(client, "Hello", seed=first, **more)), range(0, count, 16)))
    left, after = [], []
    for number, answer in answers.items():
        events = streams[number // 16]
        text = said(events, index=number % 16)
        assert text.endswith("Not that.")
        came = text.removesuffix("Not that.")
        assert answer.startswith(came)
        [last] = [c for e in events for c in e["choices"] if c["index"] == number % 16 and c["finish_reason"]]
        facts = [fact for fact in last["poise"]["guardrail"] if fact["action"] == "BLOCK"]
        place = answer.index(secrets[number])
        left.append(max(0, min(len(came) - place, len(secrets[number]))))
        after.append(len(came) - place - len(secrets[number]))
        assert any(fact["left"] for fact in facts)
    figures = {
        "secrets": count,
        "characters": sum(map(len, secrets.values())),
        "left": sum(left),
        "whole": sum(each == len(secrets[n]) for n, each in enumerate(left)),
        "after": (statistics.median(after), max(after)),
    }
    record_property("left", json.dumps(figures))
    print(figures)
    assert figures["left"] > 0
