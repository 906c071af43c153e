"""Who approves calls and answers questions: a person, or nobody."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["Nobody", "PendingCall", "Person"]


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
