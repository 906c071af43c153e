"""Answers to projections, the core loop: one forward pass a text for all traits, no head, no cache, no layer too many.

A row's score for a trait is ``raw``, the mean projection of its answer y on v̂; ``prompt``, that minus the projection of
the last prompt token, which foretells the model's own answer; or ``difference``, that minus the mean projection of the
model's own answer y′: the projection difference of Chen et al. 2025, section 6.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from poise.activations import Probe, project_each
from poise.data import AnswerPart, Conversation, Turn, turns
from poise.errors import InvalidArgument
from poise.model import Encoded, Model
from poise.model.spans import AnswerSpan, UnreadAnswer, answer_spans
from poise.screen.base_answers import BaseAnswers

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
) -> Iterator[ScoredAnswer]:
    """Every answer of every conversation, in order.

    All rows are held and batched together by length: give a window of the data at a time. The same rows give the same
    numbers, to the last bit.

    Args:
        model: The base model.
        rows: Conversations of one window.
        probes: k of them.
        answers: Gives y′; its projections become ``ScoredAnswer.base_mean``.
        only: These answers alone, each a row's index and a turn.
    """
    placed = [
        (row, turn, place)
        for row, row_turns in ((row, turns(row)) for row in rows)
        for turn, place in zip(row_turns, answer_spans(model, row_turns), strict=True)
        if only is None or (row.index, place.turn) in only
    ]
    unique_texts = {id(p.text.ids): p.text.ids for _, _, p in placed if isinstance(p, AnswerSpan)}
    read = dict(
        zip(
            unique_texts,
            project_each(model, [Encoded(ids, 0, len(ids)) for ids in unique_texts.values()], probes),
            strict=True,
        )
    )
    turn_places = [(turn, place) for _, turn, place in placed if isinstance(place, AnswerSpan)]
    answered = _score_base_answers(model, turn_places, probes, answers) if answers else None
    nothing = (float("nan"),) * len(probes)
    for row, _, place in placed:
        if isinstance(place, UnreadAnswer):
            yield ScoredAnswer(
                index=row.index, turn=place.turn, tokens=0, cut=False, unread=place.reason, mean=nothing, last=nothing
            )
            continue
        values, text = read[id(place.text.ids)], place.text
        mine = next(answered) if answered else None
        if values is None:
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
            mean=tuple(values[text.start : text.end].mean(0).tolist()),
            last=tuple(values[text.last_prompt].tolist()),
            base_mean=mine,
        )


def _score_base_answers(
    model: Model, placed: Sequence[tuple[Turn, AnswerSpan]], probes: Sequence[Probe], answers: BaseAnswers
) -> Iterator[tuple[float, ...]]:
    """[k] mean projections of the model's own answers; NaN where there is no room for one, or it is empty."""
    prompts = [answers.prompt_for(turn, place) for turn, place in placed]
    base_answers = iter(answers.generate([prompt for prompt in prompts if prompt]))
    texts = [next(base_answers) if prompt else None for prompt in prompts]
    unique = {text.ids: text for text in texts if text and text.end > text.start}
    read = dict(zip(unique, project_each(model, list(unique.values()), probes), strict=True))
    for text in texts:
        values = read.get(text.ids) if text else None
        if text is None or values is None:
            yield (float("nan"),) * len(probes)
        else:
            yield tuple(values[text.start : text.end].mean(0).tolist())
