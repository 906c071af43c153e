"""Where a chat log keeps a thought beside its reply: in keys and parts of the turn, a channel, a turn before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from poise.data.messages import Message
from poise.data.thought_marks import names_thought

__all__ = [
    "HIDDEN_PART",
    "THOUGHT_KEYS",
    "TURN_THOUGHT_KEYS",
    "is_only_thought",
    "is_thought_part",
    "is_thought_turn",
    "join_thought_turns",
    "read_thought",
    "thoughts_of_turn",
]

THOUGHT_KEYS = (
    "reasoning_content", "reasoning", "thinking", "thought", "thoughts", "reasoning_text", "thinking_content",
    "chain_of_thought", "cot", "think", "thinking_text", "scratchpad", "reasoning_trace", "thinking_trace",
    "thought_process", "inner_monologue",
)  # fmt: skip
TURN_THOUGHT_KEYS = (*THOUGHT_KEYS, "reasoning_details", "thinking_blocks")
THOUGHT_PARTS = ("thinking", "reasoning", "thought", "reasoning_text")
HIDDEN_PART = "redacted_thinking"
TEXTS_OF_THOUGHT = ("reasoningContent", "thinking", "reasoning", "reasoningText", "text", "summary", "content")
HIDDEN = ("hidden thought",)


def thoughts_of_turn(turn: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The thoughts that a turn has under keys of their own, one that stands there twice once, and what is hidden."""
    texts: list[str] = []
    left_out: list[str] = []
    cells = {str(key).strip().lower(): cell for key, cell in turn.items()}
    for key in [key for key in TURN_THOUGHT_KEYS if key in cells]:
        read, hidden = read_thought(cells[key])
        joined = "\n\n".join(read)
        if joined and joined.strip() not in (text.strip() for text in texts):
            texts.append(joined)
        left_out += hidden
    return texts, left_out


def read_thought(value: Any) -> tuple[list[str], list[str]]:
    """The texts of a thought, whether it is a text, a list of blocks or an object, and what has none to read."""
    if isinstance(value, str):
        return ([value] if value.strip() else []), []
    if isinstance(value, Mapping):
        cells = {key: cell for key, cell in value.items() if cell is not None}
        names = (*TEXTS_OF_THOUGHT, *([str(cells["type"])] if names_thought(cells.get("type")) else ()), *THOUGHT_KEYS)
        read = read_thought([cells[key] for key in names if cells.get(key)][:1])
        known = {"type", "id", "index", "format", "signature", "status", "thought", *TEXTS_OF_THOUGHT}
        return read if read != ([], []) or not cells.keys() - known else ([], [*HIDDEN])
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        parts = [read_thought(part) for part in value]
        return [text for texts, _ in parts for text in texts], [kind for _, kinds in parts for kind in kinds]
    return [], []


def is_thought_part(part: Any) -> bool:
    """Whether one part of a turn's content is a thought."""
    if not isinstance(part, Mapping) or part.get("type") == HIDDEN_PART:
        return False
    return names_thought(part.get("type")) or part.get("thought") is True or "reasoningContent" in part


def is_thought_turn(turn: Mapping[str, Any]) -> bool:
    """Whether an assistant's turn is the thought before the turn that follows: another channel than the final one."""
    channel = turn.get("channel")
    names = {str(turn.get(key)).strip().lower() for key in ("role", "from", "type")}
    return bool(names & {*THOUGHT_PARTS}) or (isinstance(channel, str) and channel.strip().lower() != "final")


def join_thought_turns(messages: Sequence[Message]) -> list[Message]:
    """Turns without those of nothing but a thought, which is given to the assistant's turn that follows at once."""
    joined: list[Message] = []
    for message in messages:
        before = joined[-1] if joined else None
        if before and message["role"] == before["role"] == "assistant" and is_only_thought(before):
            message["thought"] = "\n\n".join(filter(None, (before["thought"], message.get("thought"))))
            joined[-1] = message
        else:
            joined.append(message)
    return joined


def is_only_thought(message: Message) -> bool:
    """Whether a message has a thought, and neither words nor calls."""
    return bool(message.get("thought")) and not message["content"].strip() and not message.get("tool_calls")
