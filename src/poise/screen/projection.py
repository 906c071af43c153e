"""Answers to projections, the core loop: one forward pass a text for all traits, no head, no cache, no layer too many.

A row's score for a trait is ``raw``, the mean projection of its answer y on v̂; ``prompt``, that minus the projection of
the last prompt token, which foretells the model's own answer; or ``difference``, that minus the mean projection of the
model's own answer y′: the projection difference of Chen et al. 2025, section 6.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from poise.activations import Probe, project_each
from poise.data import AnswerPart, Conversation, Turn, turns
from poise.errors import InvalidArgument
from poise.model import Encoded, Model
from poise.model.spans import AnswerSpan, RowSpans, UnreadAnswer, answer_spans_together
from poise.screen.base_answers import BaseAnswers
from poise.screen.reading_cache import ReadingNumbers, WindowCache, text_key, unknown

__all__ = ["SCORING_METHODS", "ScoredAnswer", "ScoringMethod", "check_part", "score_answers"]

ScoringMethod = Literal["difference", "prompt", "raw"]
SCORING_METHODS: tuple[ScoringMethod, ...] = ("difference", "prompt", "raw")


def check_part(part: AnswerPart, method: ScoringMethod, *, fix: bool = False) -> None:
    """Refuse parts of answers that cannot be compared with what the model writes in their place.

    Raises:
        InvalidArgument: thoughts, where the model's own replies are scored or put into rows; or an unknown part.
    """
    if part not in (parts := get_args(AnswerPart)):
        raise InvalidArgument(f"There is no part {part!r} of an answer; `part` is one of {', '.join(parts)}.")
    if part != "reply" and (method == "difference" or fix):
        what = "`fix` replaces" if fix else "`method` difference compares"
        raise InvalidArgument(
            f"`part` is {part}, and {what} replies with the model's own, which are written with its thinking switched "
            "off; screen thoughts by `method` prompt or raw, without `fix`."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredAnswer:
    """One assistant turn, scored. k: traits.

    Attributes:
        index: Its conversation's place in the data set.
        turn: Which of the conversation's answers, from 0.
        tokens: Length of the answer.
        cut: Whether earlier turns were left out to fit the model's window.
        unread: Why there is no score; empty where there is one.
        mean: [k] mean projection of the answer.
        last: [k] projection of the last prompt token.
        base_mean: [k] mean projection of the model's own answer, NaN where it has none; ``None`` unless requested.
    """

    index: int
    turn: int
    tokens: int
    cut: bool
    unread: str
    mean: tuple[float, ...]
    last: tuple[float, ...]
    base_mean: tuple[float, ...] | None = None

    def score(self, method: ScoringMethod) -> tuple[float, ...]:
        """[k] by that method; NaN where it could not be had."""
        if method == "raw":
            return self.mean
        less = self.last if method == "prompt" else self.base_mean or (float("nan"),) * len(self.mean)
        return tuple(a - b for a, b in zip(self.mean, less, strict=True))


def score_answers(
    model: Model,
    rows: Iterable[Conversation],
    probes: Sequence[Probe],
    answers: BaseAnswers | None = None,
    only: Collection[tuple[int, int]] | None = None,
    cache: WindowCache | None = None,
    spans: Sequence[RowSpans] | None = None,
) -> Iterator[ScoredAnswer]:
    """Every answer of every conversation, in order.

    All rows are held and batched together by length: give a window of the data at a time. The same rows give the same
    numbers, to the last bit; equal texts have equal numbers.

    Args:
        model: The base model.
        rows: Conversations of one window.
        probes: k of them.
        answers: Gives y′; its projections become ``ScoredAnswer.base_mean``.
        only: These answers alone, each a row's index and a turn.
        cache: What was read before; without, the numbers are those of these rows alone.
        spans: Spans of each row's answers, as ``answer_spans_together`` gives them; found here unless given.
    """
    with_turns = [(row, turns(row)) for row in rows]
    if spans is None:
        spans = answer_spans_together(model, [row_turns for _, row_turns in with_turns])
    placed = [
        (row, turn, place)
        for (row, row_turns), row_spans in zip(with_turns, spans, strict=True)
        for turn, place in zip(row_turns, row_spans, strict=True)
        if only is None or (row.index, place.turn) in only
    ]
    places = [place for _, _, place in placed if isinstance(place, AnswerSpan)]
    read = iter(read_answers(model, [place.text for place in places], probes, cache))
    turn_places = [(turn, place) for _, turn, place in placed if isinstance(place, AnswerSpan)]
    answered = _score_base_answers(model, turn_places, probes, answers, cache) if answers else None
    nothing = (float("nan"),) * len(probes)
    for row, _, place in placed:
        if isinstance(place, UnreadAnswer):
            yield ScoredAnswer(
                index=row.index, turn=place.turn, tokens=0, cut=False, unread=place.reason, mean=nothing, last=nothing
            )
            continue
        numbers, text = next(read), place.text
        mine = next(answered) if answered else None
        if numbers is None:
            yield ScoredAnswer(
                index=row.index,
                turn=place.turn,
                tokens=0,
                cut=place.cut,
                unread="the model gave NaN or infinity",
                mean=nothing,
                last=nothing,
            )
            continue
        yield ScoredAnswer(
            index=row.index,
            turn=place.turn,
            tokens=text.end - text.start,
            cut=place.cut,
            unread="",
            mean=tuple(numbers[:, 0].tolist()),
            last=tuple(numbers[:, 1].tolist()),
            base_mean=mine,
        )


def read_answers(
    model: Model, texts: Sequence[Encoded], probes: Sequence[Probe], cache: WindowCache | None = None
) -> list[ReadingNumbers | None]:
    """Mean projection of each text's answer and projection of its last prompt token: float32 [k, 2] a text.

    Equal texts are read once. With a cache, only what it does not know is read, and added to it.

    Returns:
        ``None`` for a text that the model breaks on.
    """
    keys = [text_key(text) for text in texts]
    unique: dict[bytes, Encoded] = {}
    for key, text in zip(keys, texts, strict=True):
        unique.setdefault(key, text)
    known = cache.load(list(unique)) if cache else {}
    new = {key: text for key, text in unique.items() if key not in known or np.isnan(known[key]).any()}
    columns = unknown((known.get(key) for key in new), len(probes))
    passes = list(dict.fromkeys(text.ids for text in new.values()))
    states = project_each(model, [Encoded(ids, 0, len(ids)) for ids in passes], [probes[k] for k in columns])
    by_pass = dict(zip(passes, states, strict=True))
    added = {}
    for key, text in new.items():
        values = by_pass[text.ids]
        if values is None:
            known.pop(key, None)
            continue
        before = known.get(key, np.full((len(probes), 2), np.nan, dtype=np.float32))
        fresh = np.full_like(before, np.nan)
        for k, column in zip(columns, values.T.contiguous(), strict=True):
            if np.isnan(before[k, 0]):
                fresh[k] = column[text.start : text.end].mean().item(), column[text.last_prompt].item()
        added[key], known[key] = fresh, np.where(np.isnan(before), fresh, before)
    if cache and added:
        cache.save(added)
    return [known.get(key) for key in keys]


def _score_base_answers(
    model: Model,
    placed: Sequence[tuple[Turn, AnswerSpan]],
    probes: Sequence[Probe],
    answers: BaseAnswers,
    cache: WindowCache | None,
) -> Iterator[tuple[float, ...]]:
    """[k] mean projections of the model's own answers; NaN where there is no room for one, or it is empty."""
    prompts = [answers.prompt_for(turn, place) for turn, place in placed]
    base_answers = iter(answers.generate([prompt for prompt in prompts if prompt]))
    texts = [next(base_answers) if prompt else None for prompt in prompts]
    read = iter(read_answers(model, [text for text in texts if text and text.end > text.start], probes, cache))
    for text in texts:
        numbers = next(read) if text and text.end > text.start else None
        yield (float("nan"),) * len(probes) if numbers is None else tuple(numbers[:, 0].tolist())
