"""Which history a chat goes on with: a hash for each of its beginnings, so that no text is kept.

Frameworks send the whole history with each step, so that a step begins with all of the last one and the answer to it.
What they change on the way counts for nothing: ids of calls, spaces at the ends, how arguments are written as JSON.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from poise.serve.requests import ChatMessage

__all__ = ["MessageChain"]

SYSTEM_ROLES = ("system", "developer")


@dataclass(frozen=True, slots=True)
class MessageChain:
    """The beginnings of a chat.

    Attributes:
        full: Hash of the first messages, for each number of them from 1.
        spoken: The same without system turns, which some frameworks write anew for each step.
        roles: Roles of the messages.
    """

    full: tuple[bytes, ...]
    spoken: tuple[bytes, ...]
    roles: tuple[str, ...]

    @classmethod
    def of(cls, messages: Sequence[ChatMessage]) -> MessageChain:
        """Of a request's messages."""
        full, spoken = b"full", b"spoken"
        fulls, spokens = [], []
        for message in messages:
            content = _said_bytes(message)
            full = _linked(full, content)
            spoken = spoken if message.role in SYSTEM_ROLES else _linked(spoken, content)
            fulls.append(full)
            spokens.append(spoken)
        return cls(tuple(fulls), tuple(spokens), tuple(message.role for message in messages))

    def answered(self, answer: Mapping[str, Any]) -> tuple[bytes, bytes]:
        """Both hashes with an assistant's turn after all messages, as an answer's ``message`` has it."""
        content = _said_bytes(ChatMessage.model_validate({"role": "assistant", **_as_sent_back(answer)}))
        return _linked(self.full[-1], content), _linked(self.spoken[-1], content)

    @property
    def answers(self) -> int:
        """Number of the assistant's turns."""
        return self.roles.count("assistant")


def _as_sent_back(answer: Mapping[str, Any]) -> dict[str, Any]:
    calls = [{name: call[name] for name in ("id", "type", "function")} for call in answer.get("tool_calls") or ()]
    return {"content": answer.get("content") or ("" if not calls else None), "tool_calls": calls}


def _said_bytes(message: ChatMessage) -> bytes:
    role = "system" if message.role in SYSTEM_ROLES else message.role
    calls = [[call.function.name, _canonical(call.function.arguments)] for call in message.tool_calls]
    return json.dumps([role, message.text.strip(), calls], ensure_ascii=False).encode()


def _canonical(arguments: str) -> str:
    try:
        return json.dumps(json.loads(arguments), sort_keys=True)
    except (ValueError, RecursionError):
        return arguments


def _linked(before: bytes, content: bytes) -> bytes:
    return hashlib.blake2b(before + b"\0" + content, digest_size=16).digest()
