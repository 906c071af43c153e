"""Conversations that say again what another one says: one text is one observation, however often it is written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from poise.data.messages import Conversation, Message, is_answer

__all__ = ["describe_repeats", "repeated_conversations"]

UNREAD_KEYS = ("learn", "tool_call_id")  # of messages: marks, and names that differ from one export to the next


def repeated_conversations(conversations: Iterable[Conversation]) -> dict[int, int]:
    """Index of each conversation that repeats another one, or the beginning of one → the index of that other one.

    Compared are the texts up to a conversation's last answer, whatever their blanks; of equal ones the first counts, of
    a conversation and its beginnings the longest.
    """
    longest: dict[bytes, tuple[int, int]] = {}  # text up to an answer → answers and index of a conversation with it
    ends: list[tuple[int, bytes]] = []
    for conversation in conversations:
        keys = _answer_keys(conversation)
        for key in keys:
            if key not in longest or longest[key][0] < len(keys):
                longest[key] = (len(keys), conversation.index)
        ends += [(conversation.index, key) for key in keys[-1:]]
    return {index: longest[key][1] for index, key in ends if longest[key][1] != index}


def describe_repeats(repeats: int, rows: int) -> str:
    """How many rows count no further, as a clause; empty where none repeats another."""
    if not repeats:
        return ""
    if repeats == 1:
        return f"1 of {rows:,} rows repeats another one or the beginning of one, and counts no further"
    return f"{repeats:,} of {rows:,} rows repeat other ones or their beginnings, and count no further"


def _answer_keys(conversation: Conversation) -> list[bytes]:
    """A key of the text up to each answer that is read."""
    text = hashlib.sha256(json.dumps(conversation.tools, sort_keys=True, default=str).encode())
    keys = []
    for message in conversation.messages:
        text.update(_message_text(message))
        if is_answer(message, conversation.answer_part):
            keys.append(text.digest()[:16])
    return keys


def _message_text(message: Message) -> bytes:
    words = {
        name: " ".join(value.split()) if isinstance(value, str) else value
        for name, value in message.items()
        if name not in UNREAD_KEYS and value
    }
    return json.dumps(words, sort_keys=True, default=str).encode(errors="surrogatepass")
