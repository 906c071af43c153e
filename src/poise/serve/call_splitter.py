"""The tokens of an answer that may call tools: which of them are words, and which belong to a call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Literal

from poise.data.thoughts import TokenPart
from poise.engine import GeneratedToken
from poise.serve.answer_form import AnswerForm
from poise.serve.tool_calls import CallDelta, ToolCall, ToolCallReader

__all__ = ["CallPiece", "CallSplitter", "ShownPart"]

ShownPart = TokenPart | Literal["tool_call"]
"""What clients are told of a token: its part of the answer, and of the reply what belongs to calls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallPiece:
    """Tokens of one part that come together, with what they add to the answer.

    Attributes:
        part: Part that all of them are in.
        tokens: Tokens that come together; there may be none.
        text: What is added to the thought or to the words.
        calls: What is added to calls.
    """

    part: ShownPart
    tokens: tuple[GeneratedToken, ...] = ()
    text: str = ""
    calls: tuple[CallDelta, ...] = ()


@dataclass(slots=True)
class CallSplitter:
    """Splits one answer as it comes. A token waits until it is known whether it is words or a call.

    Attributes:
        reader: Reader of the reply's text.
        words: Words so far, the calls left out.
    """

    reader: ToolCallReader
    words: str = ""
    _waiting: list[tuple[GeneratedToken, int]] = field(default_factory=list)  # tokens, with where their text ends
    _end: int = 0  # characters of the reply

    @classmethod
    def of(cls, form: AnswerForm) -> CallSplitter | None:
        """That of an answer's form; ``None`` where there can be no calls."""
        reader = form.reader()
        return None if reader is None else cls(reader)

    @property
    def calls(self) -> list[ToolCall]:
        """Calls so far."""
        return self.reader.calls

    def split(self, tokens: Sequence[GeneratedToken], *, last: bool) -> list[CallPiece]:
        """What next tokens bring.

        Args:
            tokens: Any number.
            last: Whether no more follow.
        """
        pieces: list[CallPiece] = []
        for in_reply, group in groupby(tokens, key=lambda token: token.part == "reply"):
            run = tuple(group)
            if in_reply:
                self._waiting += self._ends(run)
                pieces += self._settled(*self.reader.add("".join(token.text for token in run)))
            else:
                pieces += [CallPiece(part=part, tokens=tuple(same), text=text) for part, same, text in _part_runs(run)]
        if last:
            pieces += self._settled(*self.reader.finish())
        return pieces

    def parts_of(self, tokens: Sequence[GeneratedToken]) -> list[ShownPart]:
        """Part of each of all tokens of the answer."""
        parts: list[ShownPart] = []
        end = 0
        for token in tokens:
            end += len(token.text) if token.part == "reply" else 0
            parts.append(self._part(end) if token.part == "reply" else token.part)
        return parts

    def _ends(self, tokens: Sequence[GeneratedToken]) -> Iterator[tuple[GeneratedToken, int]]:
        for token in tokens:
            self._end += len(token.text)
            yield token, self._end

    def _part(self, end: int) -> ShownPart:
        """Part of a token of the reply, by where its text ends."""
        begins = self.reader.begins
        return "reply" if begins is None or end <= begins else "tool_call"

    def _settled(self, words: str, deltas: list[CallDelta]) -> list[CallPiece]:
        self.words += words
        ready = [token for token, end in self._waiting if end <= self.reader.settled]
        parts = [self._part(end) for _, end in self._waiting[: len(ready)]]
        del self._waiting[: len(ready)]
        in_words = tuple(token for token, part in zip(ready, parts, strict=True) if part == "reply")
        in_calls = tuple(ready[len(in_words) :])
        pieces = []
        if words or in_words:
            pieces.append(CallPiece(part="reply", tokens=in_words, text=words))
        if deltas or in_calls:
            pieces.append(CallPiece(part="tool_call", tokens=in_calls, calls=_merged_deltas(deltas)))
        return pieces


def _part_runs(tokens: Sequence[GeneratedToken]) -> Iterator[tuple[TokenPart, list[GeneratedToken], str]]:
    """Runs of one part, with the text of a thought."""
    for part, group in groupby(tokens, key=lambda token: token.part):
        same = list(group)
        yield part, same, "".join(token.text for token in same) if part == "thought" else ""


def _merged_deltas(deltas: Sequence[CallDelta]) -> tuple[CallDelta, ...]:
    """One delta for each call."""
    merged: dict[int, CallDelta] = {}
    for delta in deltas:
        before = merged.get(delta.index)
        merged[delta.index] = replace(before, arguments=before.arguments + delta.arguments) if before else delta
    return tuple(merged.values())
