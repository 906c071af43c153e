"""Prompts that are given back with their own log-probabilities, as ``echo`` asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from poise.engine.detokenizer import Detokenizer
from poise.engine.prompt_scores import TextScores
from poise.model import Encoded, Model
from poise.model.token_text import token_text

__all__ = ["EchoedPrompt", "echoed_logprobs", "echoed_prompt"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class EchoedPrompt:
    """A prompt as its answer begins with it. T: its tokens.

    Attributes:
        ids: Tokens of the prompt [T].
        text: Prompt as it was sent, or what its tokens read.
        offsets: Character of ``text`` at which each token begins [T].
    """

    ids: tuple[int, ...]
    text: str
    offsets: tuple[int, ...]


def echoed_prompt(prompt: str | Sequence[int], encoded: Encoded, model: Model) -> EchoedPrompt:
    """A prompt and where its tokens are in it.

    Args:
        prompt: Prompt as it was sent.
        encoded: Its tokens.
        model: Model whose tokenizer made them.
    """
    if isinstance(prompt, str) and model.tokenizer.is_fast:
        spans = model.tokenizer(prompt, return_offsets_mapping=True)["offset_mapping"]
        if len(spans) == len(encoded.ids):
            return EchoedPrompt(ids=encoded.ids, text=prompt, offsets=_starts(spans))
    detokenizer = Detokenizer(model.tokenizer, special=True)
    for token in encoded.ids:
        detokenizer.add(token)
    detokenizer.finish()
    offsets, at = [], 0
    for piece, begins in zip(detokenizer.pieces, detokenizer.begins(0, len(detokenizer.pieces)), strict=True):
        offsets.append(at + begins)
        at += len(piece)
    return EchoedPrompt(ids=encoded.ids, text=detokenizer.text, offsets=tuple(offsets))


def _starts(spans: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Where tokens begin; one that a tokenizer adds, at no character, begins where the one before it ends."""
    out, end = [], 0
    for first, last in spans:
        out.append(first if last > first else end)
        end = max(end, last)
    return tuple(out)


def echoed_logprobs(echo: EchoedPrompt, scores: TextScores, model: Model) -> dict[str, Any]:
    """The ``logprobs`` of a prompt's tokens; of the first one nothing says how likely it is."""
    texts: dict[int, str] = {}

    def text(token: int) -> str:
        if token not in texts:
            texts[token] = token_text(model.tokenizer, token)
        return texts[token]

    tops = zip(scores.top_ids.tolist(), scores.top_logprobs.tolist(), strict=True)
    top = [[(text(i), value) for i, value in zip(ids, values, strict=True)] for ids, values in tops]
    return {
        "tokens": [text(token) for token in echo.ids],
        "token_logprobs": [None, *scores.logprobs.tolist()],
        "top_logprobs": [None, *top],
        "text_offset": list(echo.offsets),
    }
