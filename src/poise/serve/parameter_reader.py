"""The arguments of one call, read while they come: as JSON whichever way they are written."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from poise.model.tool_format import ToolCallFormat
from poise.model.tool_parameters import ParameterFormat
from poise.serve.offered_tools import ToolParameter

__all__ = ["JSONScanner", "ParameterReader"]

SCALAR = re.compile(r"[^\s,)\]}\"]+(?=[\s,)\]}])")


class JSONScanner:
    """Finds the end of a JSON object or text that comes in pieces: arguments are held to be one.

    Attributes:
        done: Whether the end has come.
    """

    def __init__(self) -> None:
        self.done = False
        self._depth = 0
        self._quoted = self._escaped = False

    def take(self, text: str) -> tuple[int, str]:
        """How much of a next piece belongs to it, and that."""
        for place, character in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._quoted:
                self._escaped = character == "\\"
                self._quoted = character != '"'
                self.done = not (self._quoted or self._depth)
            elif character == '"':
                self._quoted = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                self.done = not self._depth
            if self.done:
                return place + 1, text[: place + 1]
        return len(text), text


class ParameterReader:
    """Arguments that are written one at a time, as JSON.

    Args:
        call_format: How calls are written.
        form: How arguments are.
        parameters: The tool's, by their names.

    Attributes:
        done: Whether the end of the arguments has come.
    """

    def __init__(
        self, call_format: ToolCallFormat, form: ParameterFormat, parameters: Mapping[str, ToolParameter]
    ) -> None:
        self.done = False
        self.form, self.parameters = form, parameters
        self._after = [text for text in (call_format.closing, call_format.between) if text is not None]
        self._parameter: ToolParameter | None = None  # whose value comes
        self._begun = False  # whether a part of the text that is its value has been given out
        self._count = 0

    def take(self, text: str) -> tuple[int, str]:
        """How much of what has come has been read, and what that adds to the arguments.

        Args:
            text: All that has come and has not been read yet.
        """
        at, written = 0, ""
        while not self.done:
            parameter = self._parameter
            length, piece = self._value(text[at:]) if parameter else self._name_or_end(text[at:])
            at, written = at + length, written + piece
            if not length and self._parameter is parameter:
                break
        return at, written

    def _name_or_end(self, text: str) -> tuple[int, str]:
        form = self.form
        lead = form.more if self._count else form.first
        ending = form.end if self._count else form.bare
        if lead.startswith(text) and len(text) < len(lead):
            return 0, ""
        if text.startswith(lead):
            end = text.find(form.assign, len(lead))
            parameter = self.parameters.get(text[len(lead) : end]) if end >= 0 else None
            if parameter is not None:
                key = json.dumps(parameter.name, ensure_ascii=False)
                self._parameter, self._begun = parameter, False
                self._count += 1
                return end + len(form.assign), ("{" if self._count == 1 else ", ") + key + ": "
        if any(text.startswith(ending + after) for after in self._after):
            self.done = True
            return len(ending), "}" if self._count else "{}"
        return 0, ""

    def _value(self, text: str) -> tuple[int, str]:
        """A value, or of a text as much as is certain."""
        parameter, form = self._parameter, self.form
        if parameter is None:
            return 0, ""
        if not form.stop:
            end = _value_end(text)
            if not end:
                return 0, ""
            self._parameter = None
            return end, parameter.json_value(text[:end], form)
        end = text.find(form.stop)
        if not parameter.is_text:
            if end < 0:
                return 0, ""
            self._parameter = None
            return end, parameter.json_value(text[:end], form)
        certain = end if end >= 0 else len(text) - _held_back(text, form.stop)
        piece = ('"' if not self._begun and (certain or end >= 0) else "") + json.dumps(
            text[:certain], ensure_ascii=False
        )[1:-1]
        self._begun = self._begun or bool(piece)
        if end >= 0:
            self._parameter = None
            piece += '"'
        return certain, piece


def _value_end(text: str) -> int:
    """Where a value ends that ends by itself; 0 where it may go on."""
    if text[:1] in ('"', "{", "["):
        scanner = JSONScanner()
        end, _ = scanner.take(text)
        return end if scanner.done else 0
    scalar = SCALAR.match(text)
    return scalar.end() if scalar else 0


def _held_back(text: str, stop: str) -> int:
    """How many characters at the end of a text may be the beginning of the mark at which it ends."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
