"""Turns and parts of turns that a cell keeps as text: JSON is decoded, a Python repr is refused.

An answer that is JSON because somebody wanted JSON is ordinary text. So a text is decoded only where its value has the
very form of turns (role and content) or of parts (type and text).
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

from poise.data.thought_marks import names_thought
from poise.errors import InvalidRow

__all__ = ["decode_json", "decode_parts", "decode_turns", "holds_repr", "is_part", "is_turn", "refuse_repr"]

_SPEAKERS = ("role", "from")
_WORDS = ("content", "value", "parts", "text", "tool_calls", "function_call")
_PARTS = ("text", "input_text", "output_text", "image", "image_url", "thinking", "reasoning", "tool_use", "tool_result")
_REPR = re.compile(r"\A\s*(?:\[\s*)?\{\s*'")


def decode_json(text: str) -> Any:
    """The list or object in a text, however often it was encoded; ``None`` for anything else."""
    value: Any = text
    while isinstance(value, str):
        if value.lstrip()[:1] not in ("[", "{", '"'):
            return None
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, list | dict) else None


def decode_turns(value: Any) -> Any:
    """A list of turns for its JSON text, or for one turn alone; anything else as it is."""
    decoded = decode_json(value) if isinstance(value, str) else value
    if is_turn(decoded):
        return [decoded]
    if isinstance(decoded, Mapping) and isinstance(decoded.get("messages"), list):
        decoded = decoded["messages"]
    if isinstance(decoded, list) and decoded and all(isinstance(one, str) for one in decoded):
        texts = [decode_json(one) for one in decoded]
        decoded = texts if all(map(is_turn, texts)) else decoded
    if isinstance(decoded, list) and decoded and all(map(is_turn, decoded)):
        return decoded
    return value


def decode_parts(value: Any) -> Any:
    """A list of parts for its JSON text; anything else as it is."""
    decoded = decode_json(value) if isinstance(value, str) else None
    if isinstance(decoded, list) and decoded and all(map(is_part, decoded)):
        return decoded
    return value


def is_turn(value: Any) -> bool:
    """Whether a value has the form of a turn: whose it is, and what is said."""
    if not isinstance(value, Mapping) or not any(isinstance(value.get(key), str) for key in _SPEAKERS):
        return False
    return any(key in value for key in _WORDS)


def is_part(value: Any) -> bool:
    """Whether a value has the form of a part of a turn."""
    if not isinstance(value, Mapping) or len(value) < 2:
        return False
    return value.get("type") in _PARTS or (names_thought(value.get("type")) and isinstance(value.get("text"), str))


def holds_repr(text: str) -> bool:
    """Whether a text is Python's way to write turns, parts, or the texts that a data set lists."""
    if not _REPR.match(text):
        return False
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return "'role'" in text[:200] or "'from'" in text[:200]
    items = value if isinstance(value, list) else [value]
    return all(is_turn(item) or is_part(item) or _is_listed_text(item) for item in items)


def refuse_repr(text: Any, place: str) -> None:
    """Raise where a cell holds a repr.

    Raises:
        InvalidRow: names the place.
    """
    if isinstance(text, str) and holds_repr(text):
        raise InvalidRow(f"not text: {place} holds a Python repr and not JSON; write the file again as JSON Lines")


def _is_listed_text(value: Any) -> bool:
    """SQuAD's answers: texts, and where they begin."""
    return isinstance(value, dict) and isinstance(value.get("text"), list) and "answer_start" in value
