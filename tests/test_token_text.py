"""Tokens by themselves as text: what OpenAI's log-probabilities are keyed by."""

from __future__ import annotations

from typing import Any

import pytest

import tiny
from poise.engine.detokenizer import Detokenizer
from poise.model.token_text import byte_starts, text_bytes, token_text

TEXTS = ["The harbour", "naïve — 30 %", "🦊 says: “no”", "日本語", "a\ufffdb", "bytes: no"]


def whole(tokenizer: Any, text: str) -> bytes:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return b"".join(text_bytes(token_text(tokenizer, i)) for i in ids)


class TestATokensText:
    @pytest.mark.parametrize("text", TEXTS)
    def test_has_the_bytes_that_make_up_the_text(self, text: str) -> None:
        assert whole(tiny.chatml(), text) == text.encode()
        assert whole(tiny.gemma(), text) in (text.encode(), b" " + text.encode())

    @pytest.mark.parametrize("tokenizer", [tiny.chatml, tiny.gemma, tiny.llama3, tiny.plain])
    def test_is_distinct_for_every_token(self, tokenizer: Any) -> None:
        loaded = tokenizer()
        texts = [token_text(loaded, i) for i in range(len(loaded))]
        twice = {t for t in texts if texts.count(t) > 1}
        assert all(len(t) == 1 and t.isascii() for t in twice), "a byte has a token beside the character's own"
        assert not any("\ufffd" in t for t in texts)

    def test_of_a_part_of_a_character_is_its_bytes(self) -> None:
        tokenizer = tiny.chatml()
        [first, *_] = tokenizer("🦊", add_special_tokens=False)["input_ids"]
        text = token_text(tokenizer, first)
        assert text.startswith("bytes:\\xf0")
        assert "🦊".encode().startswith(text_bytes(text))


@pytest.mark.parametrize(
    ("tokens", "text", "starts"),
    [
        ([b"a", b"\xf0", b"\x9f", b"\x98\x80", b"b"], "a\U0001f600b", [0, 1, 1, 1, 2]),
        ([b"\xf0", b"\x9f", b"x", b"y"], "\ufffdxy", [0, 0, 1, 2]),
        ([b"\xf0", b"\xf0", b"\xff", b"\x80", b"xy", b"z"], "\ufffd\ufffd\ufffd\ufffdxyz", [0, 1, 2, 3, 4, 6]),
        ([b"\xe6\x97", b"\xa5\xe6", b"\x9c\xac", b" "], "日本 ", [0, 0, 1, 2]),
        ([b"\xe6", b"", b"\xc3\xa9"], "\ufffdé", [0, 0, 1]),
        ([b"\xe6", b" experiment"], "\ufffd exp", [0, 1]),
        ([b" \xe6", b"x"], "\ufffdx", [0, 1]),
    ],
)
def test_bytes_begin_at_the_character_that_they_begin_or_go_on_with(
    tokens: list[bytes], text: str, starts: list[int]
) -> None:
    assert byte_starts(tokens, text) == starts


def test_tokens_after_an_incomplete_character_begin_after_it_however_they_are_released() -> None:
    tokenizer = tiny.chatml()
    [first, *_] = tokenizer("🦊", add_special_tokens=False)["input_ids"]
    plain = tokenizer("quiet", add_special_tokens=False)["input_ids"]
    special = tokenizer.all_special_ids[0]
    texts = Detokenizer(tokenizer)
    for token in (*plain, first, special, first, *plain):
        texts.add(token)
    texts.finish()
    begins = texts.begins(0, len(texts.tokens))
    assert texts.text == "quiet\ufffd\ufffdquiet"
    assert begins == [texts.begins(n, n + 1)[0] for n in range(len(begins))]
    at = len(plain)
    assert begins[at : at + 4] == [0, 0, 1, 2]
