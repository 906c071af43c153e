"""An answer that leaves as it comes, looked at beside it: what is found ends it, and may have left by then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from poise.guardrail.findings import GuardFinding

__all__ = ["LeftText", "ObservedText"]

LOOKED_BACK = 336  # characters before the new ones: what a synchronous check sees before the text that it decides on
NEW_CHARACTERS = 48  # that come between two checks


@dataclass(frozen=True, slots=True)
class LeftText:
    """The end of a text that has left, as it is to be checked.

    Attributes:
        text: The characters that are looked at.
        start: Place of the first of them in the answer.
        last: Whether nothing follows.
    """

    text: str
    start: int
    last: bool


class ObservedText:
    """A part of an answer, of which all that came has left."""

    def __init__(self) -> None:
        self._text = ""  # from what may still be looked back on
        self._dropped = 0  # characters before it
        self._checked = 0  # place in the answer up to which it has been looked at
        self._reported: set[tuple[int, str, str]] = set()

    @property
    def length(self) -> int:
        """Characters that have left."""
        return self._dropped + len(self._text)

    @property
    def is_due(self) -> bool:
        """Whether so much is new that it should be looked at."""
        return self.length - self._checked >= NEW_CHARACTERS

    def add(self, text: str) -> None:
        """Take in what leaves."""
        self._text += text

    def unchecked(self, *, last: bool = False) -> LeftText:
        """What is to be looked at now."""
        left = LeftText(self._text, self._dropped, last)
        self._checked = self.length
        return left

    def take(self, left: LeftText, findings: Sequence[GuardFinding]) -> list[GuardFinding]:
        """What was found in it for the first time and can no longer be something else.

        Args:
            left: What was looked at.
            findings: What was found, by places in its text.
        """
        end = len(left.text)
        new = []
        for finding in findings:
            key = (left.start + finding.start, finding.kind, finding.rule)
            if key not in self._reported and (left.last or finding.end < end):
                self._reported.add(key)
                new.append(finding)
        self._forget(left)
        return new

    def gone(self, left: LeftText, finding: GuardFinding) -> int:
        """Characters of a match that have left."""
        return min(finding.end, self.length - left.start) - finding.start

    def _forget(self, left: LeftText) -> None:
        """Drop what no later check looks back on, up to a space, so that no word begins where it does not."""
        most = left.start + len(left.text) - LOOKED_BACK - self._dropped
        place = max(self._text.rfind(" ", 0, max(most, 0)), self._text.rfind("\n", 0, max(most, 0))) + 1
        if place <= 0 and most > 2 * LOOKED_BACK:
            place = most
        if place > 0:
            self._text, self._dropped = self._text[place:], self._dropped + place
