"""Tokens by themselves as text: what OpenAI's log-probabilities are keyed by."""

from __future__ import annotations

from typing import Any

import pytest

import tiny
from poise.model.token_text import text_bytes, token_text

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
