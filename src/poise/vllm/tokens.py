"""Whether a model's answers have thoughts that are told apart by marks, and which part of an answer each token is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

from poise.engine.answer_parts import AnswerParts
from poise.model.parts import ThoughtMarks, TokenPart

__all__ = ["FollowedAnswer", "MarkedTokenizer", "marks_thoughts", "thoughts_of"]

_KNOWN: WeakKeyDictionary[Any, ThoughtMarks] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False, kw_only=True)
class MarkedTokenizer:
    """A tokenizer, with the marks of thoughts that it and its chat template have."""

    tokenizer: Any
    thought_marks: ThoughtMarks

    @classmethod
    def of(cls, tokenizer: Any) -> MarkedTokenizer:
        """Of a tokenizer of transformers."""
        if tokenizer not in _KNOWN:
            _KNOWN[tokenizer] = ThoughtMarks.of(tokenizer)
        return cls(tokenizer=tokenizer, thought_marks=_KNOWN[tokenizer])

    @property
    def thinks(self) -> bool:
        """Whether there is any mark."""
        marks = self.thought_marks
        return bool(marks.channels or marks.ids or marks.headers)


def thoughts_of(tokenizer: Any) -> Literal["none", "marked", "unknown"]:
    """Whether answers have thoughts: ``unknown`` for tokenizers that are none of transformers'."""
    if tokenizer is None:
        return "none"
    if not hasattr(tokenizer, "get_added_vocab"):
        return "unknown"
    return "marked" if MarkedTokenizer.of(tokenizer).thinks else "none"


def marks_thoughts(tokenizer: Any) -> bool:
    """Whether a tokenizer or its chat template has marks of thoughts, or nobody can tell."""
    return thoughts_of(tokenizer) != "none"


class FollowedAnswer:
    """The parts of an answer's tokens, each as it was known when the token came.

    Args:
        tokenizer: The model's.
        prompt: Tokens that the answer follows.

    Attributes:
        parts: Part of each token, with its place there.
    """

    def __init__(self, tokenizer: MarkedTokenizer, prompt: Sequence[int]) -> None:
        self.parts: list[tuple[TokenPart, int]] = []
        self._answer = AnswerParts(tokenizer, prompt)

    def catch_up(self, tokens: Sequence[int]) -> None:
        """Look at what has come by now: all tokens of the answer."""
        for token in tokens[len(self.parts) :]:
            self._answer.add(token)
            self.parts.append((self._answer.part, self._answer.place))

    @property
    def revision(self) -> int:
        """How often what was taken for a reply has turned out to be something else."""
        tracker = self._answer.tracker
        return tracker.revision + tracker.begins_marked
