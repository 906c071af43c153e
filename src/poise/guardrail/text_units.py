"""Parts of a text that the sentence encoder reads one by one; a rule's reading of a text is that of its highest part.

An answer is cut into units as it is written, so that what is read of it does not depend on how it comes: a unit ends
with the first sentence or line that makes it long enough, and where there is none, at a space. Prompts are cut the same
way into parts that are as long as the encoder can read: most are one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from poise.guardrail.readings import ReadPlace

__all__ = ["UNIT_LENGTHS", "UnitLengths", "UnitSplitter", "text_units"]

UNIT_END = re.compile(r"[.!?…][\"'”’)\]]*\s|[。！？\n]")


@dataclass(frozen=True, slots=True)
class UnitLengths:
    """How long parts are.

    Attributes:
        least: Characters from which on a part ends with a sentence or line.
        most: Characters at which it ends in any case.
    """

    least: int
    most: int


UNIT_LENGTHS: dict[ReadPlace, UnitLengths] = {"prompt": UnitLengths(800, 1000), "answer": UnitLengths(60, 240)}
"""What prompts and answers are cut into."""


class UnitSplitter:
    """Cuts one text as it comes.

    Args:
        lengths: How long its parts are.
    """

    def __init__(self, lengths: UnitLengths) -> None:
        self._lengths = lengths
        self._text = ""

    def add(self, text: str) -> list[str]:
        """Take in what comes next, and give the parts that are complete."""
        self._text += text
        units, start = [], 0
        while (end := self._end_of_unit(start)) is not None:
            units.append(self._text[start:end])
            start = end
        self._text = self._text[start:]
        return _readable(units)

    def end(self) -> list[str]:
        """What is left where nothing follows; nothing or one part."""
        left, self._text = self._text, ""
        return _readable([left])

    def _end_of_unit(self, start: int) -> int | None:
        least, most = start + self._lengths.least, start + self._lengths.most
        if len(self._text) < least:
            return None
        for match in UNIT_END.finditer(self._text, start, min(most, len(self._text))):
            if match.end() >= least:
                return match.end()
        if len(self._text) < most:
            return None
        space = max(self._text.rfind(" ", least, most), self._text.rfind("\t", least, most))
        return space + 1 if space >= 0 else most


def _readable(units: Sequence[str]) -> list[str]:
    return [stripped for unit in units if (stripped := unit.strip())]


def text_units(text: str, place: Literal["prompt", "answer"] | ReadPlace) -> list[str]:
    """All parts of a text; none of one without any letter.

    Args:
        text: The text.
        place: Prompt or answer.
    """
    splitter = UnitSplitter(UNIT_LENGTHS[place])
    return [*splitter.add(text), *splitter.end()]
