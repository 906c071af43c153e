"""Which columns of a row hold the conversation, and the messages in them.

The shape of a file is found in its first rows and kept for all of them: a row that differs is rejected, not guessed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from poise.data.messages import Message, Need
from poise.errors import InvalidArgument, InvalidRow

__all__ = ["SHAPES", "Shape", "Wish", "detect", "excerpt", "is_utf8", "read", "wish"]

Row = Mapping[str, Any]

SHAPES = ("messages", "sharegpt", "alpaca", "pairs", "text")  # where two fit, the earlier is taken
CHATS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat")
PROMPTS = ("prompt", "question", "instruction", "input", "query", "problem", "user", "human")
ANSWERS = ("response", "answer", "completion", "output", "reply", "solution", "assistant")
INSTRUCTIONS, CONTEXTS, OUTPUTS = ("instruction",), ("input", "context"), ("output", *ANSWERS)
SYSTEMS = ("system", "system_prompt", "system_message")
TEXTS = ("text", "content", "body", "document")

KEYS = {"messages": ("role", "content"), "sharegpt": ("from", "value")}
ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "claude", "model", "bot", "ai"), "assistant"),
}
TOOLS = {"tool", "function", "function_call", "function_response", "tool_call", "tool_response", "observation"}
LONGEST = 80  # of a rejected row's own text, no more than this is repeated


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user said about the shape: nothing, its kind, or its kind and columns."""

    kind: str | None = None
    columns: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.kind}:{','.join(self.columns)}" if self.columns else self.kind or "auto"


@dataclass(frozen=True, slots=True)
class Shape:
    """How one file's rows become messages.

    Attributes:
        kind: One of ``SHAPES``.
        columns: Named as in the file: the chat; prompt and answer; instruction, input and output (``""`` for
            one that is not there); the text. None when a stated shape does not fit the file: all its rows are rejected.
        system: The column that holds a system prompt.
    """

    kind: str
    columns: tuple[str, ...]
    system: str | None = None

    @property
    def used(self) -> tuple[str, ...]:
        """All columns that become messages."""
        return tuple(name for name in (*self.columns, self.system) if name)

    def __str__(self) -> str:
        if not self.columns:
            return f"not {self.kind}, so no row of it is read"
        names = ", ".join(name for name in self.columns if name)
        more = f", system prompt from {self.system}" if self.system else ""
        more += ", each an answer without a prompt" if self.kind == "text" else ""
        more += ", prompts only" if self.kind == "pairs" and len(self.columns) == 1 else ""
        return f"{self.kind} from {names}{more}"


def wish(text: str, need: Need) -> Wish:
    """What ``auto``, ``pairs`` or ``pairs:question,best_answer`` asks for.

    Raises:
        InvalidArgument: there is no such shape, or it takes another number of columns.
    """
    kind, _, names = text.partition(":")
    columns = tuple(name.strip() for name in names.split(",") if name.strip())
    if kind == "auto" and not names:
        return Wish()
    takes = {"pairs": (2,) if need == "assistant" else (1, 2), "alpaca": (3,)}
    if kind not in SHAPES:
        raise InvalidArgument(f"There is no shape {excerpt(text)}; use auto, {', '.join(SHAPES)}.")
    if names and len(columns) not in takes.get(kind, (1,)):
        example = {"pairs": "pairs:prompt,answer", "alpaca": "alpaca:instruction,input,output"}.get(
            kind, f"{kind}:chat"
        )
        raise InvalidArgument(f"{excerpt(text)} names {len(columns)} columns for {kind}; write it like {example}.")
    return Wish(kind, columns)


def detect(rows: Sequence[Row], wanted: Wish, need: Need) -> Shape | None:
    """The first shape that half of the rows have, or else the one that most have; ``None`` when no row has any."""
    kinds = SHAPES if wanted.kind is None else (wanted.kind,)
    found = {kind: Counter(filter(None, (_fit(kind, row, wanted.columns, need) for row in rows))) for kind in kinds}
    if wanted.kind is None and not any(context for _, context, _ in found["alpaca"]):
        del found["alpaca"]  # an instruction and its output are a pair
    kind = max(found, key=lambda kind: min(found[kind].total(), len(rows) / 2))
    if not found[kind]:
        return None
    columns = found[kind].most_common(1)[0][0]
    if kind == "alpaca":  # rows may leave an empty input out
        columns = max(found[kind], key=lambda names: (bool(names[1]), found[kind][names]))
    systems = (_column(row, SYSTEMS, _is_text) for row in rows if kind != "text")
    return Shape(kind, columns, next(filter(None, systems), None))


def read(shape: Shape, row: Row, need: Need) -> tuple[Message, ...]:
    """The messages of a row.

    Raises:
        InvalidRow: it has no text where the shape wants some, or lacks the turn that is needed.
    """
    if not shape.columns:
        raise InvalidRow(f"not {shape.kind}: it has the columns {excerpt(', '.join(row))}")
    turns = _READ[shape.kind](shape, row, need)
    if shape.system and (not turns or turns[0]["role"] != "system"):
        turns.insert(0, {"role": "system", "content": _text(row.get(shape.system), shape.system)})
    messages = tuple(turn for turn in turns if turn["role"] != "system" or turn["content"].strip())
    for number, turn in enumerate(messages, start=1):
        if not turn["content"].strip():
            raise InvalidRow(f"empty turn: {turn['role']}, turn {number}")
        if not is_utf8(turn["content"]):
            raise InvalidRow(f"not UTF-8 text: half a character in turn {number}")
    if not any(turn["role"] == need for turn in messages):
        raise InvalidRow(f"no {need} turn")
    return messages


def excerpt(value: object, most: int = LONGEST) -> str:
    """A value in quotes, cut to ``most`` characters."""
    text = str(value)
    return json.dumps(text if len(text) <= most else text[: most - 1] + "…", ensure_ascii=not is_utf8(text))


def _fit(kind: str, row: Row, stated: tuple[str, ...], need: Need) -> tuple[str, ...] | None:
    """The columns that would be read, if the row has this shape; judged by types, not by what the texts say."""
    named = [(name,) for name in stated]
    if kind in KEYS:
        chat = _column(row, stated or CHATS, lambda value: _is_chat(value, KEYS[kind]))
        return (chat,) if chat else None
    if kind == "text":
        text = _column(row, stated or TEXTS, _is_text)
        if text is None and not stated and len(texts := [name for name in row if _is_text(row[name])]) == 1:
            text = None if _column(row, PROMPTS, _is_text) else texts[0]  # a question alone is no answer
        return (text,) if text and (need == "assistant" or stated) else None
    if kind == "alpaca":
        instruction, context, output = (
            _column(row, names, _is_text) for names in (named or (INSTRUCTIONS, CONTEXTS, OUTPUTS))
        )
        complete = instruction and (output or need == "user")
        return (str(instruction), context or "", output or "") if complete else None
    prompt = _column(row, named[0] if named else PROMPTS, _is_side)
    answer = _column(row, (named[1] if len(named) == 2 else ()) if named else ANSWERS, _is_side)
    if prompt and answer and prompt != answer:
        return (prompt, answer)
    return (prompt,) if prompt and need == "user" else None


def _column(row: Row, names: Sequence[str], suits: Callable[[Any], bool]) -> str | None:
    """The row's own name for the first of ``names`` that it has; upper case and spaces around it do not matter."""
    own = {name.strip().lower(): name for name in row if isinstance(name, str)}
    found = (own[name.lower()] for name in names if name.lower() in own)
    return next((name for name in found if suits(row[name])), None)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_side(value: Any) -> bool:
    return isinstance(value, str) or _is_chat(value, KEYS["messages"])


def _is_chat(value: Any, keys: tuple[str, str]) -> bool:
    try:
        turns = _list(value, "")
    except InvalidRow:
        return False
    return bool(turns) and isinstance(turns[0], dict) and keys[0] in turns[0]


def _messages(shape: Shape, row: Row, need: Need) -> list[Message]:
    return _chat(_cell(row, shape.columns[0]), shape.columns[0], KEYS[shape.kind])


def _pairs(shape: Shape, row: Row, need: Need) -> list[Message]:
    prompt, *answers = shape.columns
    turns = _side(_cell(row, prompt), prompt, "user")
    for column in answers:
        if need == "assistant" or row.get(column):  # the model will write its own
            turns += _side(_cell(row, column), column, "assistant")
    return turns


def _alpaca(shape: Shape, row: Row, need: Need) -> list[Message]:
    instruction, context, output = shape.columns
    asked = _text(_cell(row, instruction), instruction)
    about = _text(row.get(context), context)
    turns: list[Message] = [{"role": "user", "content": f"{asked}\n\n{about}" if about.strip() else asked}]
    if need == "assistant" or row.get(output):
        turns.append({"role": "assistant", "content": _text(_cell(row, output), output)})
    return turns


def _plain(shape: Shape, row: Row, need: Need) -> list[Message]:
    return [{"role": "assistant", "content": _text(_cell(row, shape.columns[0]), shape.columns[0])}]


_READ: dict[str, Callable[[Shape, Row, Need], list[Message]]] = {
    "messages": _messages,
    "sharegpt": _messages,
    "pairs": _pairs,
    "alpaca": _alpaca,
    "text": _plain,
}


def _cell(row: Row, column: str) -> Any:
    if column not in row:
        raise InvalidRow(f"missing column: {excerpt(column)} is not among {excerpt(', '.join(row))}")
    return row[column]


def _side(value: Any, column: str, role: str) -> list[Message]:
    """A prompt or an answer: its text, or the turns of a conversational data set (TRL's form)."""
    if isinstance(value, str) or value is None:
        return [{"role": role, "content": value or ""}]
    return _chat(value, column, KEYS["messages"])


def _chat(value: Any, column: str, keys: tuple[str, str]) -> list[Message]:
    role, content = keys
    found: list[Message] = []
    for number, turn in enumerate(_list(value, column), start=1):
        if not isinstance(turn, dict) or role not in turn:
            raise InvalidRow(f"turn without {role}: turn {number}")
        name = turn[role]
        known = ROLES.get(name.strip().lower()) if isinstance(name, str) else None
        if turn.get("tool_calls") or turn.get("function_call") or (not known and str(name).lower() in TOOLS):
            raise InvalidRow(f"tool turn: turn {number}")
        if known is None:
            raise InvalidRow(f"unknown role: {excerpt(name)}, turn {number}")
        found.append({"role": known, "content": _text(turn.get(content), f"turn {number}")})
    return found


def _list(value: Any, column: str) -> list[Any]:
    """A list of turns, which tables also keep as JSON text or as one list for each key."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise InvalidRow(f"no list of turns: {column} holds text that is not JSON") from error
    if isinstance(value, dict) and all(isinstance(part, list) for part in value.values()):
        even = len({len(part) for part in value.values()}) == 1
        return [dict(zip(value, turn, strict=True)) for turn in zip(*value.values(), strict=True)] if even else []
    if not isinstance(value, list):
        raise InvalidRow(f"no list of turns: {column} holds {_kind(value)}")
    return value


def _text(value: Any, place: str) -> str:
    """Text, or the texts of a list of parts end to end; nothing is an empty text."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if not isinstance(value, list):
        raise InvalidRow(f"not text: {place} holds {_kind(value)}")
    texts: list[str] = []
    for part in value:
        text = part.get("text") if isinstance(part, dict) else part
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, dict) else _kind(part)
            raise InvalidRow(f"not text: {place} holds {excerpt(kind)}")
        texts.append(text)
    return "".join(texts)


def _kind(value: Any) -> str:
    names = {"dict": "an object", "list": "a list", "str": "text", "bool": "true or false", "NoneType": "nothing"}
    return names.get(type(value).__name__, "a number" if isinstance(value, int | float) else type(value).__name__)


def is_utf8(text: str) -> bool:
    """Whether a text can be written as UTF-8; half a character cannot, nor a byte that ``surrogateescape`` kept."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False
