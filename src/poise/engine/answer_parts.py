"""The text of one static answer and the parts of its tokens, worked out only where there may be a thought."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, Protocol

from poise.engine.detokenizer import Detokenizer
from poise.model.parts import ThoughtMarks, TokenPart

__all__ = ["AnswerParts", "answer_parts"]


class MarksThoughts(Protocol):
    """What says where a thought begins and ends: a model, or its tokenizer with its marks."""

    @property
    def tokenizer(self) -> Any:
        """Tokenizer that answers are decoded by."""

    @property
    def thought_marks(self) -> ThoughtMarks:
        """How thoughts are marked."""


class AnswerParts:
    """Follows one answer. An answer that has begun as a reply costs a look at each token, no more.

    Args:
        model: The model that generates, or its tokenizer with its marks.
        prompt: Tokens that the answer follows.
    """

    def __init__(self, model: MarksThoughts, prompt: Sequence[int]) -> None:
        self.model, self.prompt = model, prompt
        self.tokens: list[int] = []
        self.tracker = model.thought_marks.tracker(model.tokenizer, prompt)
        self._detokenizer = Detokenizer(model.tokenizer)

    def add(self, token: int) -> None:
        """Add the next token."""
        self.tokens.append(token)
        if self.tracker.watching or self.model.thought_marks.may_mark(token):
            self.catch_up()

    def catch_up(self) -> None:
        """Look at all tokens so far."""
        for token in self.tokens[len(self._detokenizer.tokens) :]:
            self._detokenizer.add(token)
            self.tracker.add(token, self._detokenizer.pieces[-1])

    def finish(self) -> None:
        """The answer is complete."""
        if self.tracker.marked or self.tracker.watching:
            self.complete()

    def complete(self) -> None:
        """Settle every token's part and text."""
        self.catch_up()
        self._detokenizer.finish()
        pieces = self._detokenizer.pieces
        if pieces and pieces[-1] not in ("", self.tracker.pieces[-1]):  # the rest of a character
            self.tracker = self.model.thought_marks.tracker(self.model.tokenizer, self.prompt)
            for token, piece in zip(self.tokens, pieces, strict=True):
                self.tracker.add(token, piece)
        self.tracker.finish()

    @property
    def marked(self) -> bool:
        """Whether there is anything but a reply."""
        return self.tracker.marked

    @property
    def part(self) -> TokenPart:
        """Part of the newest token, as far as it is known."""
        return self.tracker.part if self.marked else "reply"

    @property
    def place(self) -> int:
        """Number of tokens of the newest one's part that stand before it."""
        unseen = len(self.tokens) - len(self._detokenizer.tokens)  # all of them reply
        return self.tracker.place + unseen if self.marked else len(self.tokens) - 1

    @property
    def parts(self) -> tuple[TokenPart, ...]:
        """Part of each token."""
        return tuple(self.tracker.parts if self.marked else ["reply" for _ in self.tokens])

    @property
    def text(self) -> str:
        """The answer, with the marks around its thought."""
        if self.marked:
            return "".join(self.tracker.pieces)
        return str(self.model.tokenizer.decode(self.tokens, skip_special_tokens=True))

    @property
    def thought(self) -> str:
        """What the model thought before its reply."""
        return self.tracker.thought if self.marked else ""

    @property
    def reply(self) -> str:
        """The answer without its thought."""
        return self.tracker.reply if self.marked else self.text

    @property
    def reply_span(self) -> tuple[int, int]:
        """The reply's tokens, from the first up to, not including, the last; none at the end where there is none.

        None either where a thought stands amid the reply: one span would mix them.
        """
        places = [place for place, part in enumerate(self.parts) if part == "reply"]
        return (places[0], places[-1] + 1) if places and not self.divided else (len(self.tokens), len(self.tokens))

    @property
    def divided(self) -> bool:
        """Whether a thought stands amid the reply."""
        runs = [part for part, _ in groupby(part for part in self.parts if part != "mark")]
        return runs.count("reply") > 1


def answer_parts(model: MarksThoughts, prompt: Sequence[int], ids: Sequence[int]) -> AnswerParts:
    """The parts of an answer that is complete, by its tokens."""
    parts = AnswerParts(model, prompt)
    for token in ids:
        parts.add(token)
    parts.finish()
    return parts
