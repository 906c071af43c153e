"""Calls of tools, in the form that chat templates take: from a turn's keys, from JSON, and from marks in its text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from poise.data.encoded_cells import decode_json
from poise.errors import InvalidRow

__all__ = ["call_marks", "calls_from_json", "calls_from_text", "calls_of_turn", "parse_call", "split_calls"]

_TAGS = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.S)
_INSTRUCT_CALLS = re.compile(r"\[TOOL_CALLS\]\s*(.*?)\s*\Z", re.S)
_NAMED_CALL = re.compile(r"\A([\w.-]+)\s*(?:\[ARGS\])?\s*(\{.*\})\Z", re.S)


def parse_call(name: Any, arguments: Any, call_id: Any = None) -> dict[str, Any]:
    """One call in the form that chat templates take: arguments as an object where they are one."""
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments)
        except (ValueError, RecursionError):
            parsed = None
        arguments = parsed if isinstance(parsed, dict) else arguments
    call: dict[str, Any] = {"type": "function", "function": {"name": str(name or ""), "arguments": arguments}}
    return call | ({"id": str(call_id)} if call_id else {})


def calls_of_turn(turn: Mapping[str, Any], place: str) -> list[dict[str, Any]]:
    """OpenAI's ``tool_calls`` and the older ``function_call``; each may be one, a list, or either as JSON text.

    Raises:
        InvalidRow: there is something else.
    """
    calls = []
    for key in ("tool_calls", "function_call", "function_calls"):
        cell = turn.get(key)
        value = decode_json(cell) if isinstance(cell, str) and cell.strip() else cell
        if isinstance(cell, str) and cell.strip() and value is None:
            raise InvalidRow(f"not a tool call: {key} of {place} holds text that is not JSON")
        for item in value if isinstance(value, list) else [value] if value else []:
            item = decode_json(item) if isinstance(item, str) else item
            if not isinstance(item, Mapping):
                raise InvalidRow(f"not a tool call: {key} of {place} holds no object with a name")
            function = item["function"] if isinstance(item.get("function"), Mapping) else item
            arguments = function.get("arguments", function.get("args", function.get("parameters", {})))
            calls.append(parse_call(function.get("name"), arguments, item.get("id")))
    return calls


def calls_from_text(text: str) -> list[dict[str, Any]]:
    """Calls that a file keeps as the text of a turn of their own, as ShareGPT's tool data do."""
    if calls := calls_from_json(text):
        return calls
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    return [parse_call(None, value if isinstance(value, Mapping) else text, None)]


def split_calls(text: str) -> tuple[str, list[dict[str, Any]]]:
    """An answer's words, and the calls that stand in it as ``<tool_call>{…}</tool_call>`` or ``[TOOL_CALLS] […]``.

    Raises:
        InvalidRow: there are marks of a call, and no call that can be read between them.
    """
    for pattern in (_TAGS, _INSTRUCT_CALLS):
        blocks = [block for block in pattern.finditer(text) if block[1][:1] in ("{", "[", "<") or _named_call(block[1])]
        if not blocks or text[blocks[0].start() - 1 : blocks[0].start()] in ("`", '"', "'"):
            continue  # a text about such marks
        calls: list[dict[str, Any]] = []
        for block in blocks:
            inner = calls_from_json(block[1]) or _named_call(block[1])
            if not inner:
                raise InvalidRow("marks of a tool call that cannot be taken apart: between them is no call as JSON")
            calls += inner
        return pattern.sub("", text).strip(), calls
    return text, []


def call_marks(text: str) -> str:
    """The calls in an answer's text as they stand there, without its words."""
    return "\n".join(block[0] for pattern in (_TAGS, _INSTRUCT_CALLS) for block in pattern.finditer(text))


def calls_from_json(text: str) -> list[dict[str, Any]]:
    """Calls in a JSON object or list, in OpenAI's form or with a name and arguments; none for anything else."""
    value = decode_json(text)
    calls = []
    for item in value if isinstance(value, list) else [value]:
        function = item.get("function", item) if isinstance(item, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            return []
        arguments = function.get("arguments", function.get("parameters", {}))
        calls.append(parse_call(function["name"], arguments, item.get("id")))
    return calls


def _named_call(text: str) -> list[dict[str, Any]]:
    """A name before its arguments, as newer Mistral models write it."""
    match = _NAMED_CALL.match(text)
    return [parse_call(match[1], match[2])] if match else []
