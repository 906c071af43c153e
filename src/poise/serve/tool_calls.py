"""Calls of tools in an answer, told apart from its words while it comes.

An answer with tools is held to its template's format, so that whatever follows the mark of a call is one: a name that
was offered, and arguments that fit its parameters. Only the end of the tokens can cut it short.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from poise.model.tool_format import CALL_ID_LENGTH, ID_PLACE, ToolCallFormat
from poise.serve.offered_tools import OfferedTool
from poise.serve.parameter_reader import JSONScanner, ParameterReader

__all__ = ["CallDelta", "ToolCall", "ToolCallReader"]


@dataclass(slots=True, kw_only=True)
class ToolCall:
    """A call as far as it has come.

    Attributes:
        id: Nine letters and digits, as Mistral's templates insist on: made here where the model writes none.
        name: Name of the tool.
        arguments: Arguments as JSON.
        complete: Whether all of its arguments have come.
    """

    id: str
    name: str = ""
    arguments: str = ""
    complete: bool = False

    @property
    def body(self) -> dict[str, Any]:
        """As an assistant's message has it."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclass(frozen=True, slots=True, kw_only=True)
class CallDelta:
    """What a piece of an answer adds to a call; the first one of a call has its id and name.

    Attributes:
        index: Which of the answer's calls, from 0.
        call: Call that it is a piece of.
        arguments: Text that is added to its arguments.
        first: Whether the call begins with it.
    """

    index: int
    call: ToolCall
    arguments: str
    first: bool

    @property
    def body(self) -> dict[str, Any]:
        """As a chunk has it."""
        if not self.first:
            return {"index": self.index, "function": {"arguments": self.arguments}}
        function = {"name": self.call.name, "arguments": self.arguments}
        return {"index": self.index, "id": self.call.id, "type": "function", "function": function}


class ToolCallReader:
    """Tells the calls of one answer from its words, in pieces of any length.

    Args:
        call_format: How calls are written.
        tools: The tools that may be called.

    Attributes:
        calls: Calls so far.
        begins: Character at which the first call begins, with the blanks before it; ``None`` while there is none.
        settled: Number of characters of which it is known whether they are words or a call.
    """

    def __init__(self, call_format: ToolCallFormat, tools: Sequence[OfferedTool]) -> None:
        self.format = call_format
        self.calls: list[ToolCall] = []
        self.begins: int | None = None
        self.settled = 0
        self._text = ""  # of the answer
        self._at = 0  # what of it has been read
        self._state: Literal["text", "name", "arguments", "after", "end"] = "text"
        self._scanner: JSONScanner | ParameterReader = JSONScanner()
        self._parameters = {
            tool.name: {each.name: each for each in tool.listed_parameters(form)}
            for tool in tools
            if (form := call_format.parameters)
        }

    def add(self, text: str) -> tuple[str, list[CallDelta]]:
        """The words and the pieces of calls that a next piece of the answer brings."""
        self._text += text
        return self._read(last=False)

    def finish(self) -> tuple[str, list[CallDelta]]:
        """No more follows: what may have become a call is words."""
        return self._read(last=True)

    def _read(self, *, last: bool) -> tuple[str, list[CallDelta]]:
        words, deltas = "", list[CallDelta]()
        if self._state == "text":
            words = self._read_words(last=last)
        while self._state != "text" and self._read_call(deltas):
            pass
        self.settled = self._at if self._state == "text" else len(self._text)
        return words, deltas

    def _read_words(self, *, last: bool) -> str:
        """Words up to a call, without the blanks before it."""
        trigger, opening = self.format.trigger, self.format.opening
        if not trigger:
            lead = self._text.lstrip()
            if not last and len(lead) < len(opening) and opening.startswith(lead):
                return ""
            place = len(self._text) - len(lead) if lead.startswith(opening) else -1
            begin, end = place, place + len(opening)
        else:
            place = self._text.find(trigger, self._at)
            begin = place
            end = place - opening.index(trigger) + len(opening) if place >= 0 else 0
        if place >= 0 and len(self._text) < end and not last:
            return self._words_until(len(self._text[:begin].rstrip()))
        if place >= 0 and self._text[begin:end].endswith(opening[-1:]) and len(self._text) >= end:
            words = self._words_until(len(self._text[:begin].rstrip()))
            self.begins, self._at, self._state = self._at, end, "name"
            return words
        until = len(self._text) if last else self._certain(trigger)
        return self._words_until(until)

    def _certain(self, trigger: str) -> int:
        """Up to where words are words, whatever follows."""
        held = max((n for n in range(1, len(trigger)) if self._text.endswith(trigger[:n])), default=0)
        return len(self._text[: len(self._text) - held].rstrip()) if trigger else len(self._text)

    def _words_until(self, end: int) -> str:
        words = self._text[self._at : max(end, self._at)]
        self._at = max(end, self._at)
        return words

    def _read_call(self, deltas: list[CallDelta]) -> bool:
        """Go on in a call; false where more text is needed."""
        if self._state == "name":
            head = self._call_head()
            if head is None:
                return False
            name, call_id, length = head
            call = ToolCall(id=call_id or new_call_id(), name=name)
            self.calls.append(call)
            self._at, self._state = self._at + length, "arguments"
            form = self.format.parameters
            self._scanner = (
                ParameterReader(self.format, form, self._parameters.get(name, {})) if form else JSONScanner()
            )
            deltas.append(CallDelta(index=len(self.calls) - 1, call=call, arguments="", first=True))
            return True
        if self._state == "arguments":
            length, piece = self._scanner.take(self._text[self._at :])
            self._at += length
            call = self.calls[-1]
            call.arguments += piece
            if piece:
                deltas.append(CallDelta(index=len(self.calls) - 1, call=call, arguments=piece, first=False))
            if self._scanner.done:
                call.complete, self._state = True, "after"
            return self._scanner.done
        between = self.format.between
        if self._state == "after" and between and self._text.startswith(between, self._at):
            self._at, self._state = self._at + len(between), "name"
            return True
        return False

    def _call_head(self) -> tuple[str, str, int] | None:
        """The name that stands next, an id behind it, and the length of both with marks; ``None`` while they come."""
        form = self.format.parameters
        if form is None:
            before, place, after = self.format.middle.partition(ID_PLACE)
            end = self._text.find(before, self._at)
            length = end - self._at + len(before + after) + (CALL_ID_LENGTH if place else 0)
            if end < 0 or len(self._text) < self._at + length:
                return None
            at = end + len(before)
            return self._text[self._at : end], self._text[at : at + CALL_ID_LENGTH] if place else "", length
        following = [text for text in (self.format.closing, self.format.between) if text is not None]
        leads = (form.first, *(form.bare + text for text in following))
        for name in self._parameters:
            if self._text.startswith(tuple(name + lead for lead in leads), self._at):
                return name, "", len(name)
        return None


def new_call_id() -> str:
    """Nine letters and digits."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(CALL_ID_LENGTH))
