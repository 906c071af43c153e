"""How a model's chat template writes calls of tools, found out by having it render two calls of unknown names.

What stands before a name, between name and arguments, between two calls and after the last is all that there is to a
format whose arguments are JSON: with it calls can be told apart in an answer, and an answer be held to it. Arguments
that are written one at a time have a format of their own between.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

from poise.data.messages import Message
from poise.data.thoughts import split_thought
from poise.errors import UnsuitableModel
from poise.model.generation_header import strip_closed_thought
from poise.model.rendering import render_prompt
from poise.model.tool_parameters import ParameterFormat, parameter_frame

__all__ = ["CALL_ID_LENGTH", "ID_PLACE", "ToolCallFormat", "tool_call_format"]

CALL_ID_LENGTH = 9  # letters and digits, as Mistral's templates insist on
ID_PLACE = "\0"
QUESTION = "Q00001zX"
NAMES, KEY, VALUE = ("Q00003zX", "Q00004zX"), "Q00005zX", "Q00006zX"
IDS = ("Q000007zX", "Q000008zX")
ID_CELL = re.compile(rf',\s*"id"\s*:\s*"(?:{"|".join(IDS)})"')
_FORMATS: WeakKeyDictionary[Any, tuple[Any, ToolCallFormat | None]] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallFormat:
    """The text around the calls of an answer.

    Attributes:
        opening: Text before the first call's name.
        middle: Text between a name and its arguments, where these are a JSON object; ``ID_PLACE`` is where the model
            writes an id of ``CALL_ID_LENGTH`` letters and digits.
        between: Text between one call's arguments and the next call's name; ``None`` where the template takes one
            call a turn.
        closing: Text after the last call's arguments.
        trigger: What of ``opening`` tells a call from other text; empty where only an answer that begins with
            ``opening`` is one.
        marks: Tokens of the format that tokenizers decode to nothing, with their texts.
        parameters: How arguments are written one at a time; ``None`` where they are a JSON object.
    """

    opening: str
    middle: str
    between: str | None
    closing: str
    trigger: str
    marks: Mapping[int, str] = field(default_factory=dict)
    parameters: ParameterFormat | None = None


def tool_call_format(tokenizer: Any) -> ToolCallFormat | None:
    """The format of a tokenizer's chat template; ``None`` where it shows no tools, or no calls in a known form."""
    known = _FORMATS.get(tokenizer)
    if known is None or known[0] != tokenizer.chat_template:
        known = _FORMATS[tokenizer] = (tokenizer.chat_template, _found_out(tokenizer))
    return known[1]


def _found_out(tokenizer: Any) -> ToolCallFormat | None:
    if not tokenizer.chat_template or not _shows_tools(tokenizer):
        return None
    added = {number: str(token) for number, token in tokenizer.added_tokens_decoder.items()}
    marks, arguments = added.values(), {KEY: VALUE}
    call_format = (
        _json_format(tokenizer, arguments, marks)
        or _parameter_format(tokenizer, marks)
        or _json_format(tokenizer, json.dumps(arguments), marks)  # some templates join it to other text
    )
    if call_format is None:
        return None
    parameters = call_format.parameters
    text = call_format.opening + call_format.middle + call_format.closing + (call_format.between or "")
    text += parameters.written({"": ""}) + parameters.more if parameters else ""
    silent = {number: mark for number, mark in added.items() if mark in text and not _shown_alone(tokenizer, number)}
    return replace(call_format, marks=silent)


def _json_format(tokenizer: Any, arguments: Any, added: Collection[str]) -> ToolCallFormat | None:
    """The format where arguments are a JSON object."""
    one, two = (_rendered_calls(tokenizer, dict.fromkeys(NAMES[:count], arguments)) for count in (1, 2))
    frame = _frame(one, NAMES[0], added) if one else None
    if frame is None:
        return None
    opening, middle, closing = frame
    between = _between(two, closing) if two else None
    trigger = _trigger(opening, added)
    return ToolCallFormat(opening=opening, middle=middle, between=between, closing=closing, trigger=trigger)


def _parameter_format(tokenizer: Any, added: Collection[str]) -> ToolCallFormat | None:
    """The format where arguments are written one at a time."""

    def render(calls: Mapping[str, Mapping[str, Any]]) -> str:
        text = _rendered_calls(tokenizer, calls)
        inner = [token for token in added if token and token in text]
        return _before_end_of_turn(text, inner) if inner else text.rstrip()

    frame = parameter_frame(render, NAMES, added)
    if frame is None:
        return None
    return ToolCallFormat(
        opening=frame.opening,
        middle="",
        between=frame.between,
        closing=frame.closing,
        trigger=_trigger(frame.opening, added),
        parameters=frame.parameters,
    )


def _probe_tool(name: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {KEY: {"type": "string", "description": KEY}}}
    return {"type": "function", "function": {"name": name, "description": name, "parameters": parameters}}


def _shows_tools(tokenizer: Any) -> bool:
    question: list[Message] = [{"role": "user", "content": QUESTION}]
    try:
        return NAMES[0] in render_prompt(tokenizer, question, tools=[_probe_tool(NAMES[0])])
    except UnsuitableModel:
        return False


def _rendered_calls(tokenizer: Any, arguments: Mapping[str, Any]) -> str:
    """What the template puts after the header of an answer that calls these tools; empty where it cannot."""
    calls = [
        {"id": call_id, "type": "function", "function": {"name": name, "arguments": value}}
        for call_id, (name, value) in zip(IDS, arguments.items(), strict=False)
    ]
    question: Message = {"role": "user", "content": QUESTION}
    answer: Message = {"role": "assistant", "content": "", "tool_calls": calls}
    tools = [_probe_tool(name) for name in NAMES]
    try:
        header = strip_closed_thought(render_prompt(tokenizer, [question], tools=tools))
        text = str(tokenizer.apply_chat_template([question, answer], tokenize=False, tools=tools))
    except Exception:  # templates raise whatever their author chose
        return ""
    header = header.rstrip() if not text.startswith(header) else header
    return split_thought(text[len(header) :])[1] if text.startswith(header) else ""


def _frame(text: str, name: str, added: Collection[str]) -> tuple[str, str, str] | None:
    """What stands before the name, between it and the arguments, and after these."""
    at = text.find(name)
    arguments = _arguments_after(text, at + len(name)) if at >= 0 else None
    if arguments is None:
        return None
    start, end = arguments
    closing = ID_CELL.sub("", text[end:])
    ends = [place for token in added if (place := closing.find(token)) >= 0 and not closing[:place].count("{")]
    inner = [token for token in added if token and token in closing]
    closing = _before_end_of_turn(closing, inner) if ends else closing.rstrip()
    middle = text[at + len(name) : start].replace(IDS[0], ID_PLACE, 1)
    if any(mark in text[:at] + middle + closing for mark in IDS) or text.count(name) != 1:
        return None
    return text[:at].lstrip(), middle, closing


def _before_end_of_turn(closing: str, tokens: Sequence[str]) -> str:
    """Without the last special token, which ends the turn, and what follows it."""
    return closing[: max(closing.rfind(token) for token in tokens)]


def _between(text: str, closing: str) -> str | None:
    first, second = (text.find(name) for name in NAMES)
    arguments = _arguments_after(text, first + len(NAMES[0])) if 0 <= first < second else None
    if arguments is None or arguments[1] > second:
        return None
    between = ID_CELL.sub("", text[arguments[1] : second])
    return None if any(mark in between for mark in IDS) else between


def _arguments_after(text: str, start: int) -> tuple[int, int] | None:
    """From where to where the arguments stand as JSON."""
    key = text.find(f'"{KEY}"', start)
    at = text.rfind("{", start, max(key, start))
    if key < 0 or at < 0:
        return None
    try:
        value, end = json.JSONDecoder().raw_decode(text, at)
    except ValueError:
        return None
    return (at, end) if value == {KEY: VALUE} else None


def _trigger(opening: str, added: Collection[str]) -> str:
    head = opening.lstrip()
    marks = [token for token in added if token and head.startswith(token)]
    words = head.partition("{")[0].strip()
    return max(marks, key=len) if marks else words if any(map(str.isalnum, words)) else ""


def _shown_alone(tokenizer: Any, token: int) -> str:
    return str(tokenizer.decode([token], skip_special_tokens=True))
