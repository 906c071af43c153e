"""What the rest of Poise gets to see of a data set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

__all__ = ["Conversation", "Message", "Need", "Rejected", "Turn", "last_user", "turns"]

Need = Literal["assistant", "user"]
"""Which turn a row must have to be of use: an answer to score, or a question to answer."""


class Message(TypedDict):
    """One turn: ``role`` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """One row that can be used.

    Attributes:
        messages: Turns with text in each; roles are system, user and assistant.
        file: The file, or the data set's name on the hub.
        row: Place in that file, from 0; blank lines are not rows.
        index: Place in the whole data set, from 0; rejected rows count.
        raw: The row as it was: of JSON Lines the line's bytes without the line feed that ends it, else the columns.
        columns: Those that became messages.
    """

    messages: tuple[Message, ...]
    file: str
    row: int
    index: int
    raw: bytes | Mapping[str, Any]
    columns: tuple[str, ...] = ()

    @property
    def fields(self) -> dict[str, Any]:
        """The columns that did not become messages, such as ``source``; read from ``raw`` at each call."""
        row = json.loads(self.raw) if isinstance(self.raw, bytes) else self.raw
        return {name: value for name, value in row.items() if name not in self.columns}


@dataclass(frozen=True, slots=True)
class Rejected:
    """One row that cannot be used.

    Attributes:
        file: The file, or the data set's name on the hub.
        row: Place in that file, from 0.
        index: Place in the whole data set, from 0.
        line: The line that the row begins on, from 1; ``None`` where a format has no lines.
        reason: Its kind and, after a colon, what was seen: ``unknown role: "narrator"``.
    """

    file: str
    row: int
    index: int
    line: int | None
    reason: str

    @property
    def kind(self) -> str:
        """Kind of reason, to count by: ``broken JSON``, ``empty turn``, ``no assistant turn``."""
        return self.reason.partition(":")[0]


@dataclass(frozen=True, slots=True)
class Turn:
    """One answer with everything before it.

    Attributes:
        history: The messages before the answer; empty where a conversation begins with it.
        answer: The assistant's text.
        number: Which of the conversation's answers, from 0.
    """

    history: tuple[Message, ...]
    answer: str
    number: int


def turns(conversation: Conversation) -> list[Turn]:
    """Every assistant turn, each with its own history."""
    messages = conversation.messages
    places = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    return [Turn(messages[:place], messages[place]["content"], number) for number, place in enumerate(places)]


def last_user(conversation: Conversation) -> tuple[Message, ...]:
    """A prompt for the model's own answer: up to the last user turn before the first reply to a user.

    A system turn or a greeting before it stays; without a user turn it is empty.
    """
    messages = conversation.messages
    places = [place for place, message in enumerate(messages) if message["role"] == "user"]
    if not places:
        return ()
    end = places[0] + 1
    while end < len(messages) and messages[end]["role"] == "user":
        end += 1
    return messages[:end]
