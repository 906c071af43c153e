"""One turn of a chat log, in any of the forms that people keep them in, as messages.

Text, thought and tool calls are told apart here; what is no text (images, audio) is left out and said. A turn that
is marked as not to be learnt keeps its place in the conversation and carries the mark.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from poise.data.encoded_cells import decode_parts, refuse_repr
from poise.data.loss_marks import is_learnt
from poise.data.media_columns import media_in
from poise.data.messages import Message
from poise.data.thought_marks import begins_with_mark
from poise.data.thoughts import locate_thought, split_thought
from poise.data.tool_calls import calls_from_text, calls_of_turn, parse_call
from poise.data.turn_thoughts import (
    HIDDEN_PART,
    THOUGHT_PARTS,
    is_thought_part,
    is_thought_turn,
    read_thought,
    thoughts_of_turn,
)
from poise.errors import InvalidRow

__all__ = [
    "MEDIA",
    "ROLES",
    "ROLE_KEYS",
    "TEXT_KEYS",
    "TEXT_TYPES",
    "ParsedTurn",
    "describe_type",
    "excerpt",
    "parse_turn",
    "split_answer",
    "text_of",
]

ROLE_KEYS = ("role", "from")
TEXT_KEYS = ("content", "value", "parts", "text")
ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "claude", "model", "bot", "ai"), "assistant"),
    **dict.fromkeys(("tool", "function", "function_response", "tool_response", "observation", "ipython"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "call"),
}
MEDIA = {
    **dict.fromkeys(("image", "image_url", "input_image", "inlineData", "inline_data"), "image"),
    **dict.fromkeys(("audio", "input_audio", "audio_url"), "audio"),
    **dict.fromkeys(("video", "video_url"), "video"),
    **dict.fromkeys(("file", "input_file", "document", "fileData", "file_data"), "file"),
    **dict.fromkeys(("executableCode", "executable_code", "codeExecutionResult", "code_execution_result"), "code run"),
    HIDDEN_PART: "hidden thought",
}
CALL_PARTS = ("tool_use", "tool_call", "function_call")  # also server_tool_use and the like
RESULT_PARTS = ("tool_result", "function_call_output")
TEXT_TYPES = (None, "", "text", "input_text", "output_text", "refusal")  # of another type is no reply
CALL_KEYS = ("toolUse", "functionCall", "function_call")
RESULT_KEYS = ("toolResult", "functionResponse", "function_response")
CACHE_KEYS = {"type", "cachePoint", "cache_point", "cache_control"}  # Bedrock's and Anthropic's, which say nothing
TOOL_RESPONSE = re.compile(r"\A\s*<tool_response>\s*(.*?)\s*</tool_response>\s*\Z", re.S)
EXCERPT = 80  # characters of a row's own text that a message repeats


@dataclass(slots=True)
class ParsedTurn:
    """What one turn of a file holds.

    Attributes:
        messages: Usually one; a turn of tool results has one for each, and one for the text beside them.
        left_out: What is not text, by kind: ``image``, ``audio``, ``video``, ``file``, ``hidden thought``.
    """

    messages: list[Message] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class _Content:
    """The parts of one turn, sorted by what they are."""

    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    results: list[Message] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    marked: list[Mapping[str, Any]] = field(default_factory=list)  # the texts as they stand, with marks of their own


def parse_turn(turn: Any, place: str) -> ParsedTurn:
    """One turn as messages.

    Args:
        turn: A turn as it stands in the file: OpenAI's, Anthropic's, Bedrock's, Gemini's or ShareGPT's form.
        place: How a message about it names it, e.g. ``turn 3``.

    Raises:
        InvalidRow: it has no role, an unknown one, or content that cannot be told apart from text.
    """
    if not isinstance(turn, Mapping):
        raise InvalidRow(f"not a turn: {place} is {describe_type(turn)}")
    key = next((key for key in ROLE_KEYS if key in turn), None)
    if key is None:
        raise InvalidRow(f"turn without role: {place} has {excerpt(', '.join(map(str, turn)))}")
    name = turn[key]
    lowered = name.strip().lower() if isinstance(name, str) else ""
    role = "assistant" if lowered in THOUGHT_PARTS else ROLES.get(lowered)
    if role is None:
        raise InvalidRow(f"unknown role: {excerpt(name)}, {place}")
    content = _Content(left_out=media_in(turn))
    if role == "tool":
        _add_result(content, _text_cell(turn, role, place), place)
    else:
        _add_content(content, _text_cell(turn, role, place), place)
    content.calls += calls_of_turn(turn, place)
    thoughts, hidden = thoughts_of_turn(turn)
    content.thoughts += thoughts
    content.left_out += hidden
    if role == "assistant" and is_thought_turn(turn) and not content.calls:
        content.thoughts, content.texts = [*content.thoughts, join_parts(content.texts)], []
    if role == "call":
        text = "".join(content.texts)
        content.calls, content.texts = [*content.calls, *(calls_from_text(text) if text.strip() else ())], []
        role = "assistant"
    return ParsedTurn(_turn_messages(turn, role, content, place), content.left_out)


def split_answer(text: str, place: str) -> tuple[str, str]:
    """The thought of an assistant's text, and its reply.

    Raises:
        InvalidRow: a mark in it may be a mark or a word.
    """
    if unsure := locate_thought(text).unsure:
        raise InvalidRow(
            f"mark or word: {place} has {unsure}, which may close a thought or be talked about; quote it, or put "
            "the thought under `reasoning_content`"
        )
    return split_thought(text)


def text_of(value: Any, place: str) -> str:
    """The text of a cell or of a list of parts; nothing is an empty text.

    Raises:
        InvalidRow: it holds something else.
    """
    content = _Content()
    _add_content(content, value, place)
    if content.calls or content.results:
        raise InvalidRow(f"not text: {place} holds a tool call or its result")
    return join_parts(content.texts)


def join_parts(texts: Iterable[str]) -> str:
    """Parts of one turn as one text: a line feed between two that would otherwise run into each other."""
    joined = ""
    for text in texts:
        apart = not joined or not text or joined[-1].isspace() or text[0].isspace()
        joined += text if apart else f"\n{text}"
    return joined


def excerpt(value: object, most: int = EXCERPT) -> str:
    """A value in quotes, cut to ``most`` characters."""
    text = str(value)
    short = text if len(text) <= most else text[: most - 1] + "…"
    try:
        short.encode()
    except UnicodeEncodeError:
        return json.dumps(short)
    return json.dumps(short, ensure_ascii=False)


def describe_type(value: Any) -> str:
    """What a value is, in a word or two."""
    names = {"dict": "an object", "list": "a list", "str": "text", "bool": "true or false", "NoneType": "nothing"}
    return names.get(type(value).__name__, "a number" if isinstance(value, int | float) else type(value).__name__)


def _turn_messages(turn: Mapping[str, Any], role: str, content: _Content, place: str) -> list[Message]:
    text = join_parts(content.texts)
    messages: list[Message] = list(content.results)
    if content.results and role != "assistant" and not text.strip():
        return messages
    message: Message = {"role": role, "content": text}
    if role == "assistant":
        if thoughts := _split_reply(message, content.thoughts, place):
            message["thought"] = "\n\n".join(thoughts)
        if content.calls:
            message["tool_calls"] = content.calls
        if not is_learnt(turn, place) or not _parts_learnt(content, place):
            message["learn"] = False
    if role == "tool":
        message["content"] = TOOL_RESPONSE.sub(r"\1", text)
        for key in ("name", "tool_call_id"):
            if isinstance(turn.get(key), str):
                message[key] = turn[key]
    messages.append(message)
    return messages


def _parts_learnt(content: _Content, place: str) -> bool:
    """Whether the parts of a turn are to be learnt, as their own marks say.

    Raises:
        InvalidRow: some are, and some are not.
    """
    marks = {is_learnt(part, f"a part of {place}") for part in content.marked}
    if len(marks) > 1:
        raise InvalidRow(f"loss mask: a part of {place} is not to be learnt; only whole turns can be left out")
    return marks != {False}


def _split_reply(message: Message, thoughts: Sequence[str], place: str) -> list[str]:
    """Take the thought out of the words of an assistant's turn; all of its thoughts.

    Words beside a thought that has a key or a part of its own are the reply as it stands, unless a thought opens them.
    """
    thoughts = [thought for thought in thoughts if thought.strip()]
    text = message["content"]
    if thoughts and not begins_with_mark(text):
        return thoughts
    thought, message["content"] = split_answer(text, place)
    repeated = not thought or thought.strip() in ("\n\n".join(thoughts).strip(), *map(str.strip, thoughts))
    return thoughts if repeated else [*thoughts, thought]


def _text_cell(turn: Mapping[str, Any], role: str, place: str) -> Any:
    cells = [decode_parts(turn[key]) for key in TEXT_KEYS if turn.get(key) is not None]
    cells = [cell for cell in cells if cell != ""] or cells[:1]
    for cell in cells:
        refuse_repr(cell, place)
    if role == "assistant" and not any(cells) and isinstance(turn.get("refusal"), str):
        return turn["refusal"]
    if role == "tool" and cells and isinstance(cells[0], Mapping) and "type" not in cells[0]:
        return json.dumps(cells[0], ensure_ascii=False, default=str)
    if len(cells) > 1 and any(cell != cells[0] for cell in cells):
        present = ", ".join(key for key in TEXT_KEYS if turn.get(key) is not None)
        raise InvalidRow(f"two texts in one turn: {place} has {present}")
    return cells[0] if cells else None


def _add_content(content: _Content, value: Any, place: str) -> None:
    if value is None:
        return
    if isinstance(value, str):
        content.texts.append(value)
    elif isinstance(value, Mapping) and isinstance(value.get("parts"), Sequence):  # Gemini's system instruction
        _add_content(content, list(value["parts"]), place)
    elif isinstance(value, Mapping):
        _add_part(content, value, place)
    elif isinstance(value, Sequence):
        for part in value:
            if isinstance(part, str):
                content.texts.append(part)
                content.marked.append({})
            elif isinstance(part, Mapping):
                _add_part(content, part, place)
            else:
                raise InvalidRow(f"not text: {place} holds {describe_type(part)} among its parts")
    else:
        raise InvalidRow(f"not text: {place} holds {describe_type(value)}")


def _add_result(content: _Content, value: Any, place: str) -> None:
    """What a tool gave back: text and its parts, and whatever else as JSON."""
    inner = _Content()
    try:
        _add_content(inner, [_as_text_part(one) for one in value] if isinstance(value, list) else value, place)
    except InvalidRow:
        content.texts.append(json.dumps(value, ensure_ascii=False, default=str))
        return
    content.texts += inner.texts
    content.thoughts += inner.thoughts
    content.calls += inner.calls
    content.results += inner.results
    content.left_out += inner.left_out


def _add_part(content: _Content, part: Mapping[str, Any], place: str) -> None:
    """One part of a turn: text, a thought, a tool call, its result, or something that is not text."""
    part = {key: cell for key, cell in part.items() if cell is not None}  # a Parquet struct has all of its fields
    kind = part.get("type")
    if not part.keys() - {"type"} and kind in TEXT_TYPES:
        return
    if part.keys() - {"type"} and part.keys() <= CACHE_KEYS:
        return
    if is_thought_part(part):
        thoughts, hidden = read_thought(part)
        learnt = is_learnt(part, f"a part of {place}")
        content.thoughts += thoughts if learnt else ()
        content.left_out += hidden if learnt else ["thought not to be learnt"]
    elif str(kind).endswith(CALL_PARTS) or any(key in part for key in CALL_KEYS):
        call = next((part[key] for key in (*CALL_KEYS, "function") if isinstance(part.get(key), Mapping)), part)
        arguments: Any = next((call[key] for key in ("input", "args", "arguments") if key in call), {})
        content.calls.append(parse_call(call.get("name"), arguments, part.get("id") or call.get("toolUseId")))
    elif str(kind).endswith(RESULT_PARTS) or any(key in part for key in RESULT_KEYS):
        content.results.append(_result(part, content, place))
    elif media := MEDIA.get(str(kind)) or next((MEDIA[key] for key in part if key in MEDIA), None):
        content.left_out.append(media)
    else:
        cells = [part.get(key) for key in ("text", "refusal", "output_text")]
        cells = [cell.get("value") if isinstance(cell, Mapping) else cell for cell in cells]  # OpenAI's Assistants
        text = next((cell for cell in cells if isinstance(cell, str)), None)
        if text is None:
            raise InvalidRow(f"not text: {place} holds {excerpt(kind or ', '.join(map(str, part)))}")
        if kind not in TEXT_TYPES:
            content.left_out.append(f"{kind} part" if re.fullmatch(r"[\w. -]{1,40}", str(kind)) else "unknown part")
            return
        content.texts.append(text)
        if text.strip():
            content.marked.append(part)


def _result(part: Mapping[str, Any], content: _Content, place: str) -> Message:
    cell = next((part[key] for key in RESULT_KEYS if isinstance(part.get(key), Mapping)), part)
    value = next((cell[key] for key in ("content", "output", "response") if key in cell), "")
    inner = _Content()
    if isinstance(value, Mapping):
        inner.texts.append(json.dumps(value, ensure_ascii=False, default=str))
    else:
        _add_result(inner, value, place)
    content.left_out += inner.left_out
    message: Message = {"role": "tool", "content": join_parts(inner.texts)}
    if call_id := cell.get("tool_use_id") or cell.get("toolUseId") or cell.get("call_id"):
        message["tool_call_id"] = str(call_id)
    if isinstance(cell.get("name"), str):
        message["name"] = cell["name"]
    return message


def _as_text_part(part: Any) -> Any:
    """A block of JSON among a tool's results, as its text."""
    if isinstance(part, Mapping) and "json" in part and "text" not in part:
        return json.dumps(part["json"], ensure_ascii=False, default=str)
    return part
