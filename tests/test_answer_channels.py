"""Channels of an answer: one result whether its text comes at once or by the character, and what stands between."""

from __future__ import annotations

import random

import pytest

from poise.data.thoughts import AnswerSplitter, split_thought

MARKS = (
    "<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|return|>", "<|call|>", "<|constrain|>", "assistant",
    "analysis", "commentary", "final", " to=self", "to=functions.f", "<|start|>assistant",
    "<|channel|>final<|message|>", "<|channel|>analysis<|message|>", "<think>", "</think>",
    "<THINK>", "<think >", "[THINK]", "[/THINK]", "<|begin_of_solution|>",
    "<|end_of_solution|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>",
)  # fmt: skip
WORDS = (
    "Hm.", " ", "\n", "Well. ", "a", "to", "t", "as", "user", "`", '"', "(", "<", "<|", "|>", "json", "I think ", "so.",
    "fin", "the ",
)  # fmt: skip
HM = "<|channel|>analysis<|message|>Hm."
FINAL = "<|channel|>final<|message|>Hello."


def parts_of(pieces: list[str], *, channels: bool) -> tuple[list[tuple[str, str]], bool, bool]:
    """What each stretch is and its text, whether there are marks, and whether all is sure."""
    splitter, text = AnswerSplitter(channels=channels), "".join(pieces)
    for piece in pieces:
        splitter.add(piece)
    splitter.finish()
    stretches = [(one.part, text[one.start : one.end]) for one in splitter.stretches]
    return stretches, splitter.marked, not splitter.unsure


def test_are_one_result_however_the_text_comes() -> None:
    draws = random.Random(13)
    for _ in range(6000):
        text = "".join(draws.choice(MARKS if draws.random() < 0.6 else WORDS) for _ in range(draws.randrange(1, 10)))
        channels = draws.random() < 0.5
        at_once = parts_of([text], channels=channels)
        assert "".join(piece for _, piece in at_once[0]) == text
        assert parts_of(list(text), channels=channels) == at_once, text


@pytest.mark.parametrize(
    ("text", "thought", "reply"),
    [
        (f"{HM}<|end|>assistant{FINAL}", "Hm.", "Hello."),
        (f"{HM}<|end|>\nassistant{FINAL}", "Hm.", "Hello."),
        (f"{HM}<|end|>\n assistant {FINAL}", "Hm.", "Hello."),
        (f"{HM}<|end|>final<|message|>Hello.", "Hm.", "Hello."),
        (f"{HM}<|end|>analysis to=self<|message|>So.<|end|>{FINAL}", "Hm.\n\nSo.", "Hello."),
        (f"{HM}<|end|> Well. <|start|>assistant{FINAL}", "Hm.", "Well. Hello."),
        (f"{HM}<|end|>Well<|start|>assistant{FINAL}", "Hm.", "Well\n\nHello."),
        (f"{HM}<|end|>assistants say no.", "Hm.", "assistants say no."),
        (f"{HM}<|end|>assistant", "Hm.", "assistant"),
        (f"assistant{HM}<|end|><|start|>assistant{FINAL}", "Hm.", "Hello."),
        (f"assistant to=self{HM}<|end|><|start|>assistant{FINAL}", "Hm.", "Hello."),
        (f"to=self{HM}<|end|><|start|>assistant{FINAL}", "Hm.", "Hello."),
        (f"<|start|>assistant to=self{HM}<|end|><|start|>assistant{FINAL}", "Hm.", "Hello."),
        ("<|channel|>analysis to=self<|message|>Hm.<|end|><|start|>assistant" + FINAL, "Hm.", "Hello."),
        ("assistant to=self is a phrase", "", "assistant to=self is a phrase"),
        ("to be or not", "", "to be or not"),
        ("<think >Hm.</think>Four.", "Hm.", "Four."),
        ("<think >a <think>b</think> c</think>Four.", "a <think>b</think> c", "Four."),
        ("<｜think｜>Hm.<｜/think｜>Four.", "Hm.", "Four."),
    ],
)
def test_without_their_first_mark_and_words_between_are_told_apart(text: str, thought: str, reply: str) -> None:
    assert split_thought(text) == (thought, reply)
    stretches, _, _ = parts_of(list(text), channels=False)
    assert stretches == parts_of([text], channels=False)[0]
