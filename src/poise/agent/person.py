"""Who approves calls and answers questions: a person, or nobody."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from poise.agent.records import RunRecords

__all__ = ["Nobody", "PendingCall", "Person", "recorded_choice"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingCall:
    """A call that waits for approval.

    Attributes:
        tool: Name of the tool.
        arguments: What it would be called with.
        touches: What it may touch, of what needs approval.
    """

    tool: str
    arguments: Mapping[str, Any]
    touches: tuple[str, ...]


class Person(Protocol):
    """Somebody at a terminal or a page."""

    def approves(self, call: PendingCall) -> bool | None:
        """Whether a call may be made; ``None`` where nobody is there to say."""

    def answer(self, question: str) -> str | None:
        """What they say to a question; ``None`` where nobody is there, or they stop the run."""


class Nobody:
    """Nobody is there: what needs approval is refused, and what asks stops.

    Args:
        reply: What whoever started the run says to its next question, if anything; it is used once.
    """

    def __init__(self, reply: str | None = None) -> None:
        self._reply = reply

    def approves(self, call: PendingCall) -> bool | None:
        """Nobody can say."""
        return None

    def answer(self, question: str) -> str | None:
        """What was said beforehand, once."""
        reply, self._reply = self._reply, None
        return reply


def recorded_choice(records: RunRecords, person: Person, question: str, answers: Collection[str]) -> str | None:
    """Which of these answers a person gives, or gave before a kill; ``None`` where it is none of them."""
    row = records.take("in_flight", question=question)
    if row is None:
        reply = (person.answer(question) or "").strip().lower()
        if reply not in answers:
            return None
        row = records.add("in_flight", question=question, reply=reply)
    return str(row["reply"])
