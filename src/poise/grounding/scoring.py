"""An answer against its source and its query, sentence by sentence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from poise.arguments import check_type
from poise.data import Message
from poise.errors import InvalidArgument
from poise.grounding.facts import FactIndex, MissingFacts, content_words
from poise.grounding.likelihood import AnswerLogprobs, answer_logprobs
from poise.grounding.score import grounding_score, mean_of, relevance_score
from poise.grounding.sentences import Span, split_passages, split_sentences
from poise.model import Model

__all__ = ["Grounding", "SentenceGrounding", "ground"]

MOST_APART = 8
"""Passages that are read by themselves, those with most words in common with the answer."""
WORDS_IN_NATS = 4.0  # what all of a sentence's words in a passage weigh, beside its gain
SPARE_TOKENS = 64  # for the marks of the chat


@dataclass(frozen=True, slots=True, kw_only=True)
class SentenceGrounding:
    """One sentence of an answer.

    Attributes:
        start: First character in the answer.
        end: Character after its last.
        text: The sentence.
        score: How well the source carries it, from 0 to 1.
        passage: Index of the passage that has its words and makes it likeliest; ``None`` where none does.
        missing: Numbers, names and quotations that the source does not have.
        features: What the score is made of, by the names of ``GROUNDING_FEATURES``.
    """

    start: int
    end: int
    text: str
    score: float
    passage: int | None
    missing: MissingFacts
    features: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grounding:
    """An answer against its source.

    Attributes:
        sentences: The answer's sentences, in order.
        passages: Passages of the source, which sentences point to.
        relevance: How much likelier the query makes the answer, from 0 to 1; ``None`` without a query.
        unread: Indices of passages that were left out, since the model's window does not hold them all.
        tokens: Tokens of the answer.
    """

    sentences: tuple[SentenceGrounding, ...]
    passages: tuple[str, ...]
    relevance: float | None
    unread: tuple[int, ...]
    tokens: int

    @property
    def score(self) -> float:
        """The lowest score of a sentence; 1 where the answer has none."""
        return min((sentence.score for sentence in self.sentences), default=1.0)


def ground(
    model: Model,
    source: str | Sequence[str],
    query: str,
    answer: str,
    *,
    history: Sequence[Message] = (),
    passages: bool = True,
    between: Callable[[Callable[[], Any]], Any] = lambda work: work(),
) -> Grounding:
    """Score each sentence of an answer by how well a source carries it.

    The model reads the answer after source and query, without the source, without the query and, where the source has
    several passages, after up to ``MOST_APART`` of them by themselves.

    Args:
        model: Any; it need not be the one that answered.
        source: A text, which is split at its paragraphs, or its passages.
        query: What was asked; may be empty.
        answer: What was answered.
        history: Turns before the query, oldest first.
        passages: Whether to find the passage that carries each sentence, which takes a pass for each.
        between: Runs a pass of the model where it may run; by default here and now.

    Raises:
        InvalidArgument: there is no source or no answer, or query and answer do not fit the model's window.
    """
    check_type("model", model, Model, "a Model, as load_model(name) gives")
    parts = split_passages(source) if isinstance(source, str) else [part for part in source if part.strip()]
    if not parts:
        raise InvalidArgument("The source is empty; give the text that the answer is to rest on.")
    if not answer.strip():
        raise InvalidArgument("The answer is empty; give the text that is to be checked.")
    ranked = _by_overlap(parts, f"{query}\n{answer}")
    places = _fitting(model, parts, ranked, query, answer, history)
    read = [parts[place] for place in places]
    apart: list[int] = []
    if passages and len(read) > 1:
        apart = sorted(places.index(place) for place in [p for p in ranked if p in places][:MOST_APART])
    logprobs = answer_logprobs(model, read, query, answer, apart=apart, history=history, between=between)
    beside = "\n".join([query, *(str(turn["content"]) for turn in history)])
    index = FactIndex("\n".join(parts), beside)
    each = [FactIndex(passage) for passage in read]
    sentences = [_sentence_grounding(span, answer, logprobs, index, each, places) for span in split_sentences(answer)]
    relevance = relevance_score(mean_of(logprobs.grounded - logprobs.without_query)) if query.strip() else None
    return Grounding(
        sentences=tuple(sentences),
        passages=tuple(parts),
        relevance=relevance,
        unread=tuple(place for place in range(len(parts)) if place not in places),
        tokens=len(logprobs.places),
    )


def _sentence_grounding(
    span: Span,
    answer: str,
    logprobs: AnswerLogprobs,
    index: FactIndex,
    each: Sequence[FactIndex],
    places: Sequence[int],
) -> SentenceGrounding:
    text = answer[span[0] : span[1]]
    tokens = logprobs.of(span)
    grounded, bare = logprobs.grounded[tokens], logprobs.without_source[tokens]
    missing = index.missing(text)
    features = {
        "lift": mean_of(grounded - bare),
        "logprob": mean_of(grounded),
        "weakest": float(np.nanmin(grounded)) if len(grounded) else 0.0,
        "missing": float(missing.count > 0),
        "overlap": index.share(text),
    }
    return SentenceGrounding(
        start=span[0],
        end=span[1],
        text=text,
        score=grounding_score(features),
        passage=_carrier(logprobs, tokens, places, features["lift"], [one.share(text) for one in each]),
        missing=missing,
        features=features,
    )


def _carrier(
    logprobs: AnswerLogprobs, tokens: np.ndarray, places: Sequence[int], lift: float, shares: Sequence[float]
) -> int | None:
    """The passage that has most of a sentence's words and makes it likeliest, if it makes it likelier at all."""
    if len(places) == 1:
        return places[0] if lift > 0 else None
    alone = [row[tokens] - logprobs.without_source[tokens] for row in logprobs.passages]
    gains = [mean_of(row) if np.isfinite(row).any() else -np.inf for row in alone]
    best = int(np.argmax([gain + WORDS_IN_NATS * share for gain, share in zip(gains, shares, strict=True)]))
    return places[best] if gains[best] > 0 or shares[best] == 1 else None


def _by_overlap(passages: Sequence[str], text: str) -> list[int]:
    """Passages by the words that they have in common with a text, rare ones counting more; most in common first."""
    words = [set(content_words(passage)) for passage in passages]
    wanted = set(content_words(text))
    weight = {word: 1 / sum(word in each for each in words) for each in words for word in each & wanted}
    scores = [sum(weight[word] for word in each & wanted) for each in words]
    return sorted(range(len(passages)), key=lambda place: -scores[place])


def _fitting(
    model: Model, passages: Sequence[str], ranked: Sequence[int], query: str, answer: str, history: Sequence[Message]
) -> list[int]:
    """Passages that fit the model's window together, those with most in common with the answer first, in order."""

    def tokens(text: str) -> int:
        return len(model.tokenizer(text, add_special_tokens=False)["input_ids"])

    room = model.window - SPARE_TOKENS - tokens("\n".join([query, answer, *(str(turn["content"]) for turn in history)]))
    chosen: list[int] = []
    for place in ranked:
        room -= tokens(passages[place]) + 2
        if room < 0 and chosen:
            break
        chosen.append(place)
    return sorted(chosen)
