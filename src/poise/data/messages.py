"""What the rest of Poise gets to see of a data set."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NotRequired, TypedDict

from poise.data.input_files import FileSpan
from poise.storage.content_hash import content_key

__all__ = [
    "AnswerPart",
    "Conversation",
    "Message",
    "Need",
    "RejectedRow",
    "Turn",
    "conversation_key",
    "is_answer",
    "last_user",
    "prompt_end",
    "turns",
]

Need = Literal["assistant", "user"]
"""Which turn a row must have to be of use: an answer to score, or a question to answer."""

AnswerPart = Literal["reply", "thought", "both"]
"""Which part of an answer is read, steered or learnt: the reply, the thought before it, or both."""


class Message(TypedDict):
    """One turn of a conversation.

    ``role`` is system, user, assistant or tool. Of the assistant's turns ``content`` is the reply alone; ``thought`` is
    the reasoning before it, ``tool_calls`` are in OpenAI's form with arguments as an object, and ``learn`` is false
    where the data say that the turn is not to be trained on.
    """

    role: str
    content: str
    thought: NotRequired[str]
    tool_calls: NotRequired[list[dict[str, Any]]]
    tool_call_id: NotRequired[str]
    name: NotRequired[str]
    learn: NotRequired[bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """One row that can be used.

    Attributes:
        messages: Turns in order; roles are system, user, assistant and tool.
        file: The file, or the data set's name on the hub.
        row: Place in that file, from 0; blank lines are not rows.
        index: Place in the whole data set, from 0; rejected rows count.
        raw: The row as it was: of JSON Lines the line's bytes without the line feed that ends it, else the columns.
        columns: Those that became messages.
        tools: Definitions of the tools that the conversation may use.
        left_out: What of the row is not read, by kind: ``image``, ``turn not to be learnt``, ``thought``.
        answer_part: Which part of its answers is read or learnt.
    """

    messages: tuple[Message, ...]
    file: str
    row: int
    index: int
    raw: bytes | Mapping[str, Any]
    columns: tuple[str, ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    left_out: tuple[str, ...] = ()
    answer_part: AnswerPart = "reply"

    @property
    def fields(self) -> dict[str, Any]:
        """The columns that did not become messages, such as ``source``; read from ``raw`` at each call."""
        row = json.loads(self.raw) if isinstance(self.raw, bytes) else self.raw
        return {name: value for name, value in row.items() if name not in self.columns}


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedRow:
    """One row that cannot be used.

    Attributes:
        file: The file, or the data set's name on the hub.
        row: Place in that file, from 0.
        index: Place in the whole data set, from 0.
        line: The line that the row begins on, from 1; ``None`` where a format has no lines.
        reason: Its kind and, after a colon, what was seen: ``unknown role: "narrator"``.
        raw: The row as it was: of JSON Lines the line's bytes, else the columns, or as a line of JSON the text that
            was there; a ``FileSpan`` where it is too long to be held; ``None`` where nothing of it can be read.
    """

    file: str
    row: int
    index: int
    line: int | None
    reason: str
    raw: bytes | Mapping[str, Any] | FileSpan | None = field(default=None, repr=False, compare=False)

    @property
    def kind(self) -> str:
        """Kind of reason, to count by: ``broken JSON``, ``empty turn``, ``no assistant turn``."""
        return self.reason.partition(":")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One answer with everything before it.

    Attributes:
        history: The messages before the answer; empty where a conversation begins with it.
        answer: The assistant's reply; empty where only the thought is read and there is nothing else.
        number: Which of the conversation's assistant turns, from 0; one that is not an answer counts too.
        thought: The reasoning before the reply; empty where there is none.
        tools: Definitions of the tools that the conversation may use.
        part: Which part of the answer is read or learnt.
    """

    history: tuple[Message, ...]
    answer: str
    number: int
    thought: str = ""
    tools: tuple[dict[str, Any], ...] = ()
    part: AnswerPart = "reply"

    @property
    def text(self) -> str:
        """The part that is read, without any template's marks."""
        texts = (self.thought if self.part != "reply" else "", self.answer if self.part != "thought" else "")
        return "\n\n".join(filter(None, texts))


def turns(conversation: Conversation) -> list[Turn]:
    """Every answer, each with its own history: the assistant's turns that have the part that is read, unless marked."""
    messages, part = conversation.messages, conversation.answer_part
    places = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    return [
        Turn(
            history=messages[:place],
            answer=answer["content"],
            number=number,
            thought=answer.get("thought", ""),
            tools=conversation.tools,
            part=part,
        )
        for number, place in enumerate(places)
        if is_answer(answer := messages[place], part)
    ]


def conversation_key(conversation: Conversation) -> str:
    """Equal for equal turns and tools, wherever the row stands and whatever else it holds: 16 hexadecimal digits."""
    return content_key(messages=conversation.messages, tools=conversation.tools)[:16]


def is_answer(message: Message, part: AnswerPart = "reply") -> bool:
    """Whether a turn is to be scored or learnt: the assistant's, with words in that part, and not ``weight: 0``.

    Of both parts the reply must be there: a thought that was cut off ends nowhere.
    """
    words = message.get("thought", "") if part == "thought" else message["content"]
    return message["role"] == "assistant" and bool(words.strip()) and message.get("learn", True)


def last_user(conversation: Conversation) -> tuple[Message, ...]:
    """A prompt for the model's own answer: up to the last user turn before the first reply to a user.

    A system turn or a greeting before it stays; without a user turn it is empty.
    """
    return conversation.messages[: prompt_end(conversation.messages)]


def prompt_end(messages: Sequence[Message]) -> int:
    """Where a prompt for the model's own answer ends; 0 where no user speaks."""
    end = next((place for place, message in enumerate(messages) if message["role"] == "user"), -1) + 1
    while 0 < end < len(messages) and messages[end]["role"] == "user":
        end += 1
    return end
