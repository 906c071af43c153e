"""How much likelier a source and a query make each token of an answer, under one model.

The answer is read four times and more: after source and query, after the query alone, after the source alone, and
after each passage with the query. T: tokens of the answer, P: passages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poise.data import Message
from poise.errors import InvalidArgument
from poise.grounding.sentences import Span
from poise.model import Encoded, Model
from poise.model.chat_template import place_answer, render_checked
from poise.model.logprobs import token_logprobs

__all__ = ["AnswerLogprobs", "answer_logprobs", "grounded_prompt"]

TokenValues = NDArray[np.float64]
NOTHING_ASKED = "Go on."


@dataclass(frozen=True, slots=True)
class AnswerLogprobs:
    """Log-probabilities of an answer's tokens, in nats.

    Attributes:
        places: Characters of the answer that each token covers [T].
        grounded: After source and query [T].
        without_source: After the query alone [T].
        without_query: After the source alone [T].
        passages: After each passage and the query [P, T]; NaN where it was not read by itself.
    """

    places: tuple[Span, ...]
    grounded: TokenValues
    without_source: TokenValues
    without_query: TokenValues
    passages: TokenValues

    def of(self, span: Span) -> NDArray[np.bool_]:
        """Which tokens a part of the answer has [T]."""
        return np.array([start < span[1] and end > span[0] for start, end in self.places], dtype=bool)


def answer_logprobs(
    model: Model,
    passages: Sequence[str],
    query: str,
    answer: str,
    *,
    apart: Sequence[int] = (),
    history: Sequence[Message] = (),
    between: Callable[[Callable[[], Any]], Any] = lambda work: work(),
) -> AnswerLogprobs:
    """Read an answer with and without its source.

    Args:
        model: Reads it.
        passages: Passages of the source, in order.
        query: What was asked; may be empty.
        answer: What was answered.
        apart: Passages that are read by themselves too.
        history: Turns before.
        between: Runs a pass of the model; by default here and now.

    Raises:
        InvalidArgument: it does not fit the model's window.
    """
    sources = ["\n\n".join(passages), "", *(passages[place] for place in apart)]
    queries = [query] * len(sources)
    texts, places = [], []
    for source, asked in zip([*sources, sources[0]], [*queries, ""], strict=True):
        text, covered = _encode_answer(model, grounded_prompt(source, asked, history), answer)
        texts.append(text)
        places.append(covered)
    if len(texts[0].ids) > model.window:
        raise InvalidArgument(
            f"Source, query and answer have {len(texts[0].ids):,} tokens, and the window of {model.name} is "
            f"{model.window:,}; give the passages alone that the answer may rest on."
        )
    values = [
        _on(places[0], covered, row.double().numpy())
        for covered, row in zip(places, token_logprobs(model, texts, between=between), strict=True)
    ]
    alone = np.full((len(passages), len(places[0])), np.nan)
    for place, row in zip(apart, values[2:-1], strict=True):
        alone[place] = row
    return AnswerLogprobs(tuple(places[0]), values[0], values[1], values[-1], alone)


def grounded_prompt(source: str, query: str, history: Sequence[Message] = ()) -> list[Message]:
    """Turns that ask a query about a source; without one of them, what is left."""
    parts = [f"Source:\n{source}"] if source else []
    parts += [query] if query.strip() else []
    return [*history, {"role": "user", "content": "\n\n".join(parts) or NOTHING_ASKED}]


def _encode_answer(model: Model, prompt: Sequence[Message], answer: str) -> tuple[Encoded, list[Span]]:
    """The text's ids, and the characters of the answer that its tokens cover."""
    rendered = render_checked(model.tokenizer, prompt, answer)
    out = model.tokenizer(rendered.text, add_special_tokens=False, return_offsets_mapping=True)
    text = place_answer(rendered, out["input_ids"], out["offset_mapping"])
    begins = len(rendered.text) - len(answer)
    return text, [(start - begins, end - begins) for start, end in out["offset_mapping"][text.start : text.end]]


def _on(places: Sequence[Span], covered: Sequence[Span], values: TokenValues) -> TokenValues:
    """Values of tokens that cover the same characters; a first token may be merged with what stands before it."""
    if list(places) == list(covered):
        return values
    by_end = {end: value for (_, end), value in zip(covered, values, strict=True)}
    return np.array([by_end.get(end, np.nan) for _, end in places])
