"""Log-probabilities of tokens in OpenAI's two shapes, of chats and of plain completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from poise.engine import GeneratedToken
from poise.model.token_text import text_bytes

__all__ = ["chat_logprobs", "raw_text", "text_logprobs", "with_distinct"]


def raw_text(token: GeneratedToken) -> str:
    """What a token adds to an answer whose thought is not set apart."""
    return token.text if token.piece is None else token.piece


def chat_logprobs(tokens: Sequence[GeneratedToken]) -> dict[str, Any]:
    """Of a chat's answer."""

    def entry(text: str, logprob: float | None) -> dict[str, Any]:
        return {"token": text, "logprob": logprob, "bytes": list(text_bytes(text))}

    content = [{**entry(t.decoded, t.logprob), "top_logprobs": [entry(*top) for top in t.top_logprobs]} for t in tokens]
    return {"content": content, "refusal": None}


def text_logprobs(tokens: Sequence[GeneratedToken], offset: int) -> dict[str, Any]:
    """Of a completion, whose first token begins at this character of its text."""
    offsets = []
    for token in tokens:
        offsets.append(offset + token.begins)
        offset += len(raw_text(token))
    return {
        "tokens": [t.decoded for t in tokens],
        "token_logprobs": [t.logprob for t in tokens],
        "top_logprobs": [_distinct(t.top_logprobs) for t in tokens],
        "text_offset": offsets,
    }


def with_distinct(logprobs: dict[str, Any]) -> dict[str, Any]:
    """With the likeliest tokens by their texts."""
    tops = [None if top is None else _distinct(top) for top in logprobs["top_logprobs"]]
    return {**logprobs, "top_logprobs": tops}


def _distinct(top: Sequence[tuple[str, float]]) -> dict[str, float]:
    """As many entries as there are tokens: of two with one text, the less likely gets its rank."""
    out: dict[str, float] = {}
    for rank, (text, logprob) in enumerate(top, start=1):
        out[text if text not in out else f"{text} (rank {rank})"] = logprob
    return out
