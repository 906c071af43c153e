"""An answer that is still being written, released behind a window that has been checked.

Text is given out once ``window`` more characters stand behind it, so that whatever a rule matches in no more than that
many characters is seen complete before its first character leaves. What is longer is held as long as it still matches
at the end of the text. A mark that stands for a match is given out in one piece.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from poise.guardrail.findings import GuardFinding, masked_between, masked_parts
from poise.guardrail.json_escapes import ends_in_string
from poise.guardrail.schema import HELD_BACK

__all__ = ["Release", "ReleaseWindow", "ReleasedPiece"]

STRIDE = 48  # characters that come between two checks, fewer where the window is small
LEAST_STRIDE = 8
CONTEXT = 160  # characters before the window that rules may look back on
MOST_CONTEXT = 1000


@dataclass(frozen=True, slots=True)
class ReleasedPiece:
    """A piece of the answer as it may be read: its text, and whether anything of it was masked."""

    text: str
    masked: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """What may leave.

    Attributes:
        pieces: The next pieces, in order.
        findings: What was found for the first time in what has now been decided on.
        blocked: Whether the answer ends here; nothing after these pieces may leave.
    """

    pieces: tuple[ReleasedPiece, ...] = ()
    findings: tuple[GuardFinding, ...] = ()
    blocked: bool = False


class ReleaseWindow:
    """Holds back the end of an answer until it has been checked.

    Args:
        find: Finds what the guardrail is about in a text.
        window: Characters that are held back.
    """

    def __init__(self, find: Callable[[str], Sequence[GuardFinding]], *, window: int = HELD_BACK) -> None:
        self._find, self._window = find, window
        self._stride = min(STRIDE, max(LEAST_STRIDE, window // 2))
        self._began = False
        self._text = ""  # from the context on
        self._dropped = 0  # characters of the answer before that
        self._released = 0  # place in the text up to which pieces have left
        self._in_string = False  # of JSON, where that text begins
        self._ends: deque[int] = deque()  # of the pieces that have not
        self._reported: set[tuple[int, str, str]] = set()

    def is_due(self, more: int, *, last: bool) -> bool:
        """Whether this many more characters would be followed by a check: the first comes as soon as any can leave."""
        stride = self._stride if self._began else 1
        return last or len(self._text) + more - self._released >= self._window + stride

    def add(self, pieces: Sequence[str], *, last: bool = False) -> Release:
        """Take in the next pieces of the answer.

        Args:
            pieces: Texts that the answer goes on with.
            last: Whether it ends with them.
        """
        for piece in pieces:
            self._text += piece
            self._ends.append(len(self._text))
        return self._release(last) if self.is_due(0, last=last) else Release()

    def _release(self, last: bool) -> Release:
        self._began = True
        end = len(self._text)
        findings = [f for f in self._find(self._text) if f.end > self._released]
        blocking = [f for f in findings if f.action == "BLOCK" and (last or f.end < end)]
        safe = end if last else end - self._window
        if blocking:
            safe = min(f.start for f in blocking)
        elif not last:  # what reaches the end may still go on, or turn out to be nothing
            safe = min([safe, *(f.start for f in findings if f.end >= end and f.action != "NONE")])
        marks = masked_parts(self._text, findings, in_string=self._in_string)
        cut = self._place_before(safe)
        while straddled := [start for start, after, _ in marks if start < cut < after]:
            cut = self._place_before(straddled[0])
        new = self._new_findings([f for f in findings if f.start < cut] + blocking)
        return Release(pieces=tuple(self._leave(cut, marks)), findings=tuple(new), blocked=bool(blocking))

    def _place_before(self, safe: int) -> int:
        """The last place at or before this one at which a piece ends."""
        return max((place for place in self._ends if place <= safe), default=self._released)

    def _new_findings(self, findings: Sequence[GuardFinding]) -> list[GuardFinding]:
        new = []
        for finding in findings:
            key = (self._dropped + finding.start, finding.kind, finding.rule)
            if key not in self._reported:
                self._reported.add(key)
                new.append(finding)
        return new

    def _leave(self, cut: int, marks: Sequence[tuple[int, int, str]]) -> list[ReleasedPiece]:
        pieces = []
        while self._ends and self._ends[0] <= cut:
            end = self._ends.popleft()
            pieces.append(self._piece(self._released, end, marks))
            self._released = end
        self._forget()
        return pieces

    def _piece(self, start: int, end: int, marks: Sequence[tuple[int, int, str]]) -> ReleasedPiece:
        masked = any(first < end and after > start and start < end for first, after, _ in marks)
        return ReleasedPiece(masked_between(self._text, marks, start, end), masked)

    def _forget(self) -> None:
        """Drop what no rule looks back on, up to a space, so that no word and no number begins where it does not."""
        most = self._released - CONTEXT
        place = max(self._text.rfind(" ", 0, max(most, 0)), self._text.rfind("\n", 0, max(most, 0))) + 1
        if place <= 0 and self._released > MOST_CONTEXT:
            place = self._released - CONTEXT
        if place > 0:
            self._in_string = ends_in_string(self._text[:place], began=self._in_string)
            self._text, self._dropped = self._text[place:], self._dropped + place
            self._released -= place
            self._ends = deque(end - place for end in self._ends)
