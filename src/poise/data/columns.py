"""A row's columns: which names hold what, and how one is found among them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from poise.data.encoded_cells import decode_json, decode_turns, holds_repr, is_turn
from poise.data.turn_parsing import ROLE_KEYS, ROLES, TEXT_KEYS

__all__ = [
    "ANSWERS",
    "CHATS",
    "CONTEXTS",
    "EXCHANGE_KEYS",
    "INSTRUCTIONS",
    "NAMED_TURNS",
    "OUTPUTS",
    "PROMPTS",
    "STRONG_PROMPTS",
    "SYSTEMS",
    "TEXTS",
    "RowColumns",
    "as_list",
    "chat_kind",
    "find_column",
    "is_chat",
    "is_filled",
    "is_text",
    "last_words",
    "names_present",
    "unwrap",
]

RowColumns = Mapping[str, Any]


CHATS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "contents", "data", "turns")
PROMPTS = ("prompt", "question", "instruction", "input", "query", "problem", "user", "human", "inputs")
ANSWERS = ("response", "answer", "completion", "output", "reply", "solution", "assistant", "targets", "target")
INSTRUCTIONS, CONTEXTS, OUTPUTS = ("instruction",), ("input", "inputs", "context"), ("output", *ANSWERS)
SYSTEMS = (
    "system", "system_prompt", "system_message", "systeminstruction", "system_instruction", "systemprompt",
    "systemmessage",
)  # fmt: skip
TEXTS = ("text", "content", "body", "document")
EXCHANGE_KEYS = (
    ("human", "assistant"),
    ("input", "output"),
    ("user", "assistant"),
    ("question", "answer"),
    ("prompt", "response"),
    ("instruction", "output"),
)
NAMED_TURNS = ("messages", "sharegpt")  # kinds of chats whose turns say who speaks
STRONG_PROMPTS = ("prompt", "question", "instruction", "query", "problem")


def is_filled(value: Any) -> bool:
    """Whether a cell says anything."""
    value = unwrap(value)
    return bool(value.strip()) if is_text(value) else bool(value)


def find_column(row: RowColumns, names: Sequence[str], suits: Callable[[Any], bool]) -> str | None:
    """The row's own name for the first of ``names`` that it has; upper case and spaces around it do not matter."""
    for name in names_present(row, names):  # a loop, as this is asked fifteen times a row
        if suits(row[name]):
            return name
    return None


def names_present(row: RowColumns, names: Sequence[str]) -> tuple[str, ...]:
    """The row's own names for those of ``names`` that it has, in their order."""
    return _names_present(tuple(row), tuple(names))


@lru_cache(maxsize=4096)
def _names_present(row_names: tuple[Any, ...], wanted: tuple[str, ...]) -> tuple[str, ...]:
    """Kept, since the rows of a file have the same names and each is looked at many times."""
    plain = {name.strip().lower(): name for name in row_names if isinstance(name, str)}
    return tuple(plain[name.lower()] for name in wanted if name.lower() in plain)


def is_text(value: Any) -> bool:
    """Whether a cell is text."""
    return isinstance(value, str)


def unwrap(value: Any) -> Any:
    """A text for a list that holds one text alone."""
    return value[0] if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str) else value


def as_list(value: Any) -> list[Any] | None:
    """A list of turns, which tables also keep as JSON text, as one list for each key, or as texts of JSON.

    One turn alone is a list of one; ``None`` for anything else.
    """
    value = decode_turns(decode_json(value) if isinstance(value, str) else value)
    if isinstance(value, dict) and value and all(isinstance(part, list) for part in value.values()):
        if len({len(part) for part in value.values()}) != 1:
            return None
        return [dict(zip(value, turn, strict=True)) for turn in zip(*value.values(), strict=True)]
    return value if isinstance(value, list) else None


def chat_kind(value: Any) -> str:
    """``messages``, ``sharegpt``, ``exchanges`` or ``alternating`` for a list of turns; empty for anything else."""
    turns = as_list(value)
    if not turns:
        return ""
    if all(isinstance(turn, str) for turn in turns):
        encoded = any(holds_repr(turn) or is_turn(decode_json(turn)) for turn in turns)
        readable = len(turns) > 1 and isinstance(value, list) and not encoded
        return "alternating" if readable else ""
    first = turns[0]
    if not isinstance(first, Mapping):
        return ""
    if any(key in first for key in ROLE_KEYS):
        texts = any(key in first for key in TEXT_KEYS) or "tool_calls" in first or "function_call" in first
        return ("sharegpt" if "role" not in first else "messages") if texts else ""
    return "exchanges" if any(set(keys) <= set(first) for keys in EXCHANGE_KEYS) else ""


def is_chat(value: Any) -> bool:
    """Whether a cell holds the turns of a chat."""
    return bool(chat_kind(value))


def last_words(value: Any) -> tuple[str, str]:
    """Who speaks last in the turns of a chat, and what is said; empty where that cannot be told."""
    turns, kind = as_list(value) or [], chat_kind(value)
    if not turns or not kind:
        return "", ""
    last = turns[-1]
    if kind == "alternating":
        return ("assistant" if len(turns) % 2 == 0 else "user"), str(last)
    if not isinstance(last, Mapping):
        return "", ""
    if kind == "exchanges":
        keys = next((keys for keys in EXCHANGE_KEYS if set(keys) <= set(last)), None)
        return ("assistant", str(last[keys[1]])) if keys else ("", "")
    name = next((last[key] for key in ROLE_KEYS if isinstance(last.get(key), str)), "")
    text = next((last[key] for key in TEXT_KEYS if last.get(key)), "")
    return ROLES.get(name.strip().lower(), ""), str(text)
