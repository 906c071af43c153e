"""Calls of tools, in the form that chat templates take: from a turn's keys, from JSON, and from marks in its text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from poise.data.encoded_cells import decode_json
from poise.errors import InvalidRow

__all__ = ["call_marks", "calls_from_json", "calls_from_text", "calls_of_turn", "parse_call", "split_calls"]

_TAGS = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.S)
_INSTRUCT_CALLS = re.compile(r"\[TOOL_CALLS\]\s*(.*?)\s*\Z", re.S)
_NAMED_CALL = re.compile(r"\A([\w.-]+)\s*(?:\[ARGS\])?\s*(\{.*\})\Z", re.S)
_GLAIVE_CALL = re.compile(r"<functioncall>\s*(.*?)\s*(?:</functioncall>|<\|endoftext\|>|\Z)", re.S)
_QUOTED_ARGUMENTS = re.compile(r"""\A\{\s*"name"\s*:\s*"([^"]+)"\s*,\s*"arguments"\s*:\s*'(.*)'\s*\}\Z""", re.S)
_FUNCTION = re.compile(r"<function=([\w.-]+)>\s*(.*?)\s*(?:</function>|<\|eom_id\|>|\Z)", re.S)
_INVOCATIONS = re.compile(r"<(?:antml:)?function_calls>\s*(.*?)\s*(?:</(?:antml:)?function_calls>|\Z)", re.S)
_INVOKE = re.compile(r"<(?:antml:)?invoke(?: name=\"([^\"]+)\")?>\s*(.*?)\s*</(?:antml:)?invoke>", re.S)
_TOOL_NAME = re.compile(r"<tool_name>\s*(.*?)\s*</tool_name>", re.S)
_PARAMETERS = re.compile(
    r"<(?:antml:)?parameter(?:=([\w.-]+)| name=\"([^\"]+)\")[^>]*>\n?(.*?)\n?</(?:antml:)?parameter>", re.S
)
_LISTED = re.compile(r"<parameters>(.*?)</parameters>", re.S)
_ELEMENT = re.compile(r"<([\w.-]+)>\n?(.*?)\n?</\1>", re.S)
_CODE_SPAN = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.S)
_NO_CALLS = ("null", "none", "nan")


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
        if isinstance(cell, str) and cell.strip().lower() in _NO_CALLS:
            continue
        value = decode_json(cell) if isinstance(cell, str) and cell.strip() else cell
        if isinstance(cell, str) and cell.strip() and value is None:
            raise InvalidRow(f"not a tool call: {key} of {place} holds text that is not JSON")
        for item in value if isinstance(value, list) else [value] if value else []:
            item = decode_json(item) if isinstance(item, str) else item
            if item is None:
                continue
            if not isinstance(item, Mapping):
                raise InvalidRow(f"not a tool call: {key} of {place} holds no object with a name")
            function = item["function"] if isinstance(item.get("function"), Mapping) else item
            arguments = function.get("arguments", function.get("args", function.get("parameters", {})))
            if function.get("name") or arguments or item.get("id"):  # a table has the fields of a call in every row
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
    if "<" not in text and "[TOOL_CALLS]" not in text:
        return text, []
    for pattern, parse in _FORMS.items():
        blocks = _call_blocks(text, pattern)
        if not blocks or text[blocks[0].start() - 1 : blocks[0].start()] in ("`", '"', "'"):
            continue  # a text about such marks
        calls: list[dict[str, Any]] = []
        for block in blocks:
            inner = parse(block)
            if not inner:
                raise InvalidRow("marks of a tool call that cannot be taken apart: between them is no call as JSON")
            calls += inner
        for block in reversed(blocks):
            text = text[: block.start()] + text[block.end() :]
        return text.strip(), calls
    return text, []


def call_marks(text: str) -> str:
    """The calls in an answer's text as they stand there, without its words."""
    return "\n".join(block[0] for pattern in _FORMS for block in _call_blocks(text, pattern))


def _call_blocks(text: str, pattern: re.Pattern[str]) -> list[re.Match[str]]:
    if pattern in (_TAGS, _INSTRUCT_CALLS):
        return [block for block in pattern.finditer(text) if block[1][:1] in ("{", "[", "<") or _named_call(block[1])]
    blocks = list(pattern.finditer(text))
    if pattern is _FUNCTION:  # words about such a mark neither close it nor give arguments
        blocks = [block for block in blocks if block[0].endswith(">") or block[2][:1] == "{"]
    code = [span.span() for span in _CODE_SPAN.finditer(text)] if blocks and "`" in text else []
    return [block for block in blocks if not any(first <= block.start() < end for first, end in code)]


def _tagged_calls(block: re.Match[str]) -> list[dict[str, Any]]:
    text = block[1]
    functions = [call for function in _FUNCTION.finditer(text) for call in _function_calls(function)]
    return calls_from_json(text) or _named_call(text) or functions


def _glaive_calls(block: re.Match[str]) -> list[dict[str, Any]]:
    """Glaive's, whose arguments stand in single quotation marks."""
    quoted = _QUOTED_ARGUMENTS.match(block[1])
    return [parse_call(quoted[1], quoted[2].replace("\\'", "'"))] if quoted else calls_from_json(block[1])


def _function_calls(block: re.Match[str]) -> list[dict[str, Any]]:
    """Llama's, with JSON, and Qwen3-Coder's, with a tag for each parameter."""
    if isinstance(arguments := decode_json(block[2]), dict) or not block[2]:
        return [parse_call(block[1], arguments or {})]
    parameters = _parameters(block[2])
    return [parse_call(block[1], parameters)] if parameters else []


def _invoked_calls(block: re.Match[str]) -> list[dict[str, Any]]:
    """Anthropic's XML, the newer with names as attributes and the older with elements."""
    return [call for invoke in _INVOKE.finditer(block[1]) for call in _invoked_call(invoke)]


def _invoked_call(invoke: re.Match[str]) -> list[dict[str, Any]]:
    name, listed = _TOOL_NAME.search(invoke[2]), _LISTED.search(invoke[2])
    parameters = dict(_ELEMENT.findall(listed[1])) if listed else _parameters(invoke[2])
    called = invoke[1] or (name[1] if name else "")
    return [parse_call(called, parameters)] if called else []


def _parameters(text: str) -> dict[str, Any]:
    return {first or second: value for first, second, value in _PARAMETERS.findall(text)}


_FORMS: dict[re.Pattern[str], Callable[[re.Match[str]], list[dict[str, Any]]]] = {
    _TAGS: _tagged_calls,
    _INSTRUCT_CALLS: lambda block: calls_from_json(block[1]) or _named_call(block[1]),
    _INVOCATIONS: _invoked_calls,
    _INVOKE: _invoked_call,
    _GLAIVE_CALL: _glaive_calls,
    _FUNCTION: _function_calls,
}


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
