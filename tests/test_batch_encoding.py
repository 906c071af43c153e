"""Many conversations through the tokenizer together: the same spans as one after another, in far fewer tokens."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

import tiny
from poise.data import Conversation, Message, Turn, turns
from poise.model import ask
from poise.model.batch_encoding import encode_together, turn_mark
from poise.model.spans import AnswerSpan, TextModel, UnreadAnswer, answer_spans, answer_spans_together
from poise.model.tokenizing import ModelTokenizer

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TOKENIZERS = {"chatml": tiny.chatml, "gemma": tiny.gemma, "llama3": tiny.llama3, "plain": tiny.plain}
WORDS = [
    "",
    "yes",
    "Hello there, how are you?",
    "\n\n",
    "  so it goes  on",
    "日本語",
    "e\u0301",
    "<|im_end|>",
    "<bos>",
    "!",
]


def text_model(name: str, window: int) -> ModelTokenizer:
    return ModelTokenizer(name=name, tokenizer=TOKENIZERS[name](), window=window, stop_ids=frozenset())


@pytest.fixture(scope="module")
def one_by_one() -> Iterator[Callable[[TextModel, Sequence[Turn], Any], list[AnswerSpan | UnreadAnswer]]]:
    """Every answer's place as it was found before there were batches: text by text, each tokenised whole."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        import tokenizing

        yield tokenizing.one_by_one


class CountingTokenizer:
    """A tokenizer that counts the characters it is given."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.characters = tokenizer, 0

    def __call__(self, texts: list[str], **options: Any) -> Any:
        self.characters += sum(map(len, texts))
        return self.tokenizer(texts, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)


words = st.lists(st.sampled_from(WORDS) | st.text(max_size=5), max_size=5).map(" ".join)


@st.composite
def talks(draw: st.DrawFn) -> Conversation:
    messages: list[Message] = [{"role": "system", "content": draw(words)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 12))):
        for role in draw(st.sampled_from([("user", "assistant"), ("user", "user", "assistant"), ("assistant",)])):
            message: Message = {"role": role, "content": draw(words)}
            if role == "assistant" and draw(st.integers(0, 3)) == 0:
                message["thought"] = draw(words)
            messages.append(message)
    return Conversation(messages=tuple(messages), file="", row=0, index=0, raw=b"")


class TestConversationsTogether:
    @pytest.mark.parametrize("template", TOKENIZERS)
    @pytest.mark.parametrize("part", ["reply", "thought", "both"])
    @settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
    @given(rows=st.lists(talks(), min_size=1, max_size=4), window=st.integers(20, 300))
    def test_have_the_spans_that_they_have_one_by_one(
        self, one_by_one: Any, template: str, part: Any, rows: list[Conversation], window: int
    ) -> None:
        model = text_model(template, window)
        asked = [turns(row) for row in rows]
        together = answer_spans_together(model, asked, part=part)
        assert together == [one_by_one(model, row, part) for row in asked]
        assert together == [answer_spans(model, row, part=part) for row in asked]

    def test_tokenise_each_turn_a_few_times_however_long_the_conversation(self) -> None:
        model = text_model("chatml", 120)
        counts = {}
        for exchanges in (20, 40, 80):
            messages: list[Message] = []
            for number in range(exchanges):
                messages += [
                    {"role": "user", "content": f"What do you think of plan {number}?"},
                    {"role": "assistant", "content": f"Honestly, I would not do {number}."},
                ]
            row = Conversation(messages=tuple(messages), file="", row=0, index=0, raw=b"")
            tokenizer = CountingTokenizer(model.tokenizer)
            spans = answer_spans(replace(model, tokenizer=tokenizer), turns(row))
            assert all(isinstance(span, AnswerSpan) for span in spans)
            assert sum(span.cut for span in spans if isinstance(span, AnswerSpan)) > exchanges / 2
            counts[exchanges] = tokenizer.characters / sum(len(m["content"]) for m in messages)
        assert max(counts.values()) < 4
        assert counts[80] < counts[20] * 1.1

    def test_stop_when_they_are_told_to(self) -> None:
        model = text_model("chatml", 100)
        row = Conversation(
            messages=(*ask("Why?"), {"role": "assistant", "content": "So."}), file="", row=0, index=0, raw=b""
        )
        with pytest.raises(CancelledError):
            answer_spans_together(model, [turns(row)] * 3, stopped=lambda: True)


class TestThePiecesOfAText:
    @pytest.mark.parametrize("template", ["chatml", "gemma", "llama3"])
    @settings(max_examples=150)
    @given(texts=st.lists(st.lists(st.sampled_from(WORDS) | st.text(max_size=4) | st.sampled_from(
        ["<|im_start|>", "<start_of_turn>", "<|eot_id|>", "<|im_end|>\n", " <|im_end|>", "<|", "|>", "<bos>"]
    ), max_size=9).map("".join), min_size=2, max_size=6))  # fmt: skip
    def test_have_the_tokens_that_they_have_in_it(self, template: str, texts: list[str]) -> None:
        tokenizer = TOKENIZERS[template]()

        def steps() -> Any:
            encoded = []
            for text in texts:
                ids, offsets = yield text
                encoded.append((list(ids), [tuple(span) for span in offsets]))
            return encoded

        for encoded in encode_together(tokenizer, [steps(), steps()]):
            for text, (ids, offsets) in zip(texts, encoded, strict=True):
                out = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
                assert ids == out["input_ids"]
                assert offsets == out["offset_mapping"]

    def test_begin_at_special_tokens_that_do_not_depend_on_what_is_before_them(self) -> None:
        tokenizer = copy.deepcopy(tiny.chatml())
        mark = turn_mark(tokenizer)
        assert mark
        assert mark.findall("a<|im_end|>b<|im_start|>") == ["<|im_end|>", "<|im_start|>"]
        tokenizer.add_special_tokens({"additional_special_tokens": [
            AddedToken("<turn>", lstrip=True, special=True), "|<", "<<|im_end|>", "<good>",
        ]})  # fmt: skip
        mark = turn_mark(tokenizer)
        assert mark
        assert [mark.search(text) is not None for text in ("<turn>", "<|im_start|>", "<|im_end|>", "<good>")] == [
            False, False, False, False,
        ]  # fmt: skip
