"""Which columns of a row hold the conversation, and the messages in them.

The shape of a file is recognised in its first rows and kept for all of them: a row that differs is rejected. What is
recognised, and what is refused with which remedy, is said in ``recognition``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from poise.arguments import check_type
from poise.data.chat_markup import has_markup, parse_markup
from poise.data.left_out import left_out_kinds, why_no_answer
from poise.data.loss_marks import is_learnt
from poise.data.messages import AnswerPart, Message, Need, is_answer
from poise.data.recognition import (
    CHATS,
    CONTEXTS,
    EXCHANGE_KEYS,
    SYSTEMS,
    Recognition,
    RowColumns,
    as_list,
    chat_kind,
    find_column,
    is_text,
    recognise,
    recognise_pair,
    unwrap,
)
from poise.data.row_extras import add_row_thought, apply_loss_mask, tools_of
from poise.data.turn_parsing import describe_type, excerpt, parse_turn, split_answer, text_of
from poise.data.turn_thoughts import join_thought_turns
from poise.errors import InvalidArgument, InvalidData, InvalidRow

__all__ = [
    "SHAPES",
    "DataShape",
    "RowContent",
    "ShapeRequest",
    "detect_shape",
    "is_utf8",
    "parse_shape_request",
    "read_row",
]

SHAPES = ("messages", "sharegpt", "exchanges", "alternating", "alpaca", "pairs", "markup", "text")
CHAT_SHAPES = ("messages", "sharegpt", "exchanges", "alternating")


@dataclass(frozen=True, slots=True)
class ShapeRequest:
    """What the user said about the shape: nothing, its kind, or its kind and columns."""

    kind: str | None = None
    columns: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.kind}:{','.join(self.columns)}" if self.columns else self.kind or "auto"


@dataclass(frozen=True, slots=True)
class DataShape:
    """How one file's rows become messages.

    Attributes:
        kind: One of ``SHAPES``.
        columns: Named as in the file: the chat; prompt and answer; instruction, input and output (``""`` for
            one that is not there); the text. None when a stated shape does not fit the file: all its rows are rejected.
        system: Column that holds a system prompt.
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


@dataclass(frozen=True, slots=True)
class RowContent:
    """What a row says.

    Attributes:
        messages: Turns in order.
        tools: Definitions of the tools that the conversation may use, as chat templates take them.
        left_out: What is not read, by kind: ``image``, ``turn not to be learnt``.
    """

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    left_out: tuple[str, ...] = ()


@dataclass(slots=True)
class _Turns:
    messages: list[Message] = field(default_factory=list)
    left_out: list[tuple[Message, str]] = field(default_factory=list)  # what is no text, with the turn it stands in


def parse_shape_request(text: str, need: Need) -> ShapeRequest:
    """What ``auto``, ``pairs`` or ``pairs:question,best_answer`` asks for.

    Raises:
        InvalidArgument: there is no such shape, or it takes another number of columns.
    """
    check_type("shape", text, str, "auto, or one such as pairs:question,answer")
    kind, _, names = text.partition(":")
    columns = tuple(name.strip() for name in names.split(",") if name.strip())
    if kind == "auto" and not names:
        return ShapeRequest()
    takes = {"pairs": (2,) if need == "assistant" else (1, 2), "alpaca": (3,)}
    if kind not in SHAPES:
        raise InvalidArgument(f"There is no shape {excerpt(text)}; use auto, {', '.join(SHAPES)}.")
    if names and len(columns) not in takes.get(kind, (1,)):
        example = {"pairs": "pairs:prompt,answer", "alpaca": "alpaca:instruction,input,output"}.get(
            kind, f"{kind}:chat"
        )
        raise InvalidArgument(f"{excerpt(text)} names {len(columns)} columns for {kind}; write it like {example}.")
    return ShapeRequest(kind, columns)


def detect_shape(rows: Sequence[RowColumns], request: ShapeRequest, need: Need) -> DataShape | None:
    """The shape that most rows have; ``None`` when a stated one fits no row.

    Raises:
        InvalidData: most rows have no shape that can be read as it is; shows one, what was seen and what would help.
    """
    recognitions = [_fit(request, row, need) if request.kind else recognise(row, need) for row in rows]
    shapes = Counter((seen.kind, seen.columns) for seen in recognitions if seen.columns and not seen.refusal)
    refused = [(row, seen) for row, seen in zip(rows, recognitions, strict=True) if seen.refusal]
    if request.kind is None and len(refused) > sum(shapes.values()):
        row, seen = refused[0]
        raise InvalidData(f"{seen.refusal}; {seen.remedy}. A row of it: {excerpt(_row_excerpt(row), 300)}.")
    if not shapes:
        return None
    totals = Counter(kind for kind, _ in shapes.elements())
    kind = max(SHAPES, key=lambda kind: min(totals[kind], len(rows) / 2))  # the first that half of the rows have
    columns = max((key for key in shapes if key[0] == kind), key=shapes.__getitem__)[1]
    if request.kind is None and kind == "text" and totals["markup"]:  # some texts are marked up: those are chats
        kind, columns = next(key for key in shapes if key[0] == "markup")
    if request.kind is None and kind == "pairs" and totals["alpaca"]:  # rows may leave an empty input out
        kind, columns = max((key for key in shapes if key[0] == "alpaca"), key=shapes.__getitem__)
    if kind == "alpaca":
        columns = max((key for key in shapes if key[0] == kind), key=lambda key: (bool(key[1][1]), shapes[key]))[1]
    systems = (find_column(row, SYSTEMS, _is_system) for row in rows if kind not in ("text", "markup"))
    return DataShape(kind, columns, next(filter(None, systems), None))


def read_row(shape: DataShape, row: RowColumns, need: Need, part: AnswerPart = "reply") -> RowContent:
    """The messages of a row, of whose answers that part is read.

    Raises:
        InvalidRow: it has no text where the shape wants some, or lacks the turn that is needed.
    """
    if not shape.columns:
        raise InvalidRow(f"not {shape.kind}: it has the columns {excerpt(', '.join(row))}")
    turns = _READERS[shape.kind](shape, row, need)
    if shape.kind in ("pairs", "alpaca"):
        add_row_thought(turns.messages, row, shape.used)
    apply_loss_mask(turns.messages, row)
    system = shape.system or (find_column(row, SYSTEMS, _is_system) if shape.kind not in ("text", "markup") else None)
    if system and (not turns.messages or turns.messages[0]["role"] != "system"):
        turns.messages.insert(0, {"role": "system", "content": text_of(row.get(system), system)})
    messages = [turn for turn in turns.messages if turn["role"] != "system" or turn["content"].strip()]
    media = {id(turn): kind for turn, kind in turns.left_out}
    for number, turn in enumerate(messages, start=1):
        _check_turn(turn, number, media.get(id(turn)))
    if not any(is_answer(turn, part) if need == "assistant" else turn["role"] == need for turn in messages):
        raise InvalidRow(why_no_answer(messages, part) if need == "assistant" else "no user turn")
    return RowContent(tuple(messages), tools_of(row), left_out_kinds(messages, turns.left_out, need, part))


def is_utf8(text: str) -> bool:
    """Whether a text can be written as UTF-8; half a character cannot, nor a byte that ``surrogateescape`` kept."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _check_turn(turn: Message, number: int, media: str | None) -> None:
    empty = not turn["content"].strip() and turn["role"] != "tool"
    if empty and not turn.get("tool_calls") and not turn.get("thought"):
        what = f", holds only: {media}" if media else ""
        raise InvalidRow(f"empty turn: {turn['role']}, turn {number}{what}")
    if not is_utf8(turn["content"]) or not is_utf8(turn.get("thought", "")):
        raise InvalidRow(f"not UTF-8 text: half a character in turn {number}")


def _fit(request: ShapeRequest, row: RowColumns, need: Need) -> Recognition:
    """The columns that would be read, if the row has the stated shape; judged by types, not by what the texts say."""
    kind, stated = str(request.kind), request.columns
    if kind in CHAT_SHAPES:
        column = find_column(row, stated or CHATS, lambda value: _is_chat_cell(kind, value))
        return Recognition(kind=kind, columns=(column,) if column else ())
    if kind in ("text", "markup"):
        names = stated or ("text", "content", "body", "document")
        column = find_column(row, names, is_text)
        return Recognition(
            kind=kind, columns=(column,) if column and (need == "assistant" or stated or kind == "markup") else ()
        )
    if not stated:
        seen = recognise(row, need)
        if seen.kind == kind:
            return seen
        if kind == "alpaca" and seen.kind == "pairs" and find_column(row, ("instruction",), is_text) == seen.columns[0]:
            return Recognition(
                kind=kind, columns=(seen.columns[0], "", seen.columns[1] if len(seen.columns) > 1 else "")
            )
        return _fit_pair(row, kind, need)
    if kind == "alpaca":
        instruction, context, output = (find_column(row, (name,), is_text) for name in stated)
        complete = instruction and (output or need == "user")
        return Recognition(kind=kind, columns=(str(instruction), context or "", output or "") if complete else ())
    prompt = find_column(row, stated[:1], _is_side)
    answer = find_column(row, stated[1:], _is_side)
    if prompt and answer and prompt != answer:
        return Recognition(kind=kind, columns=(prompt, answer))
    return Recognition(kind=kind, columns=(prompt,) if prompt and need == "user" else ())


def _fit_pair(row: RowColumns, kind: str, need: Need) -> Recognition:
    """A pair out of a row that is also something else, such as an instruction with its input."""
    if kind != "pairs":
        return Recognition(kind=kind)
    columns = {name: value for name, value in row.items() if str(name).strip().lower() not in CONTEXTS}
    seen = recognise_pair(row, need) or recognise_pair(columns, need)
    if seen and seen.kind == "alpaca":
        seen = recognise_pair(columns, need)
    return seen if seen and seen.kind == kind else Recognition(kind=kind)


def _is_chat_cell(kind: str, value: Any) -> bool:
    seen = chat_kind(value)
    return seen == kind or {seen, kind} == {"messages", "sharegpt"}


def _is_side(value: Any) -> bool:
    return is_text(unwrap(value)) or chat_kind(value) == "messages"


def _is_system(value: Any) -> bool:
    if isinstance(value, Mapping):
        return isinstance(value.get("parts"), list) or isinstance(value.get("text"), str)
    return isinstance(value, str) or (isinstance(value, list) and bool(value) and not chat_kind(value))


def _listed_messages(shape: DataShape, row: RowColumns, need: Need) -> _Turns:
    return _chat_messages(_cell(row, shape.columns[0]), shape.columns[0])


def _exchanges(shape: DataShape, row: RowColumns, need: Need) -> _Turns:
    """A list of question and answer pairs."""
    turns = _Turns()
    for number, pair in enumerate(_list(_cell(row, shape.columns[0]), shape.columns[0]), start=1):
        keys = next((keys for keys in EXCHANGE_KEYS if isinstance(pair, Mapping) and set(keys) <= set(pair)), None)
        if keys is None:
            raise InvalidRow(f"not an exchange: number {number} is {describe_type(pair)}")
        for key, role in zip(keys, ("user", "assistant"), strict=True):
            turns.messages.append(_plain_message(role, text_of(pair[key], f"{key} {number}")))
        add_row_thought(turns.messages[-1:], pair, keys)
        if not is_learnt(pair):
            turns.messages[-1]["learn"] = False
    return turns


def _alternating(shape: DataShape, row: RowColumns, need: Need) -> _Turns:
    """A list of texts, the user's first."""
    texts = _list(_cell(row, shape.columns[0]), shape.columns[0])
    roles = ("user", "assistant")
    return _Turns([_plain_message(roles[n % 2], text_of(text, f"turn {n + 1}")) for n, text in enumerate(texts)])


def _pair_messages(shape: DataShape, row: RowColumns, need: Need) -> _Turns:
    prompt, *answers = shape.columns
    turns = _side_messages(_cell(row, prompt), prompt, "user")
    context = find_column(row, CONTEXTS, is_text) if prompt.strip().lower() == "instruction" else None
    if context and turns.messages and context not in shape.columns and row[context].strip():
        turns.messages[-1]["content"] += f"\n\n{row[context]}"  # a column that begins late in the file
    for column in answers:
        if need == "assistant" or row.get(column):  # the model will write its own
            side = _side_messages(_cell(row, column), column, "assistant")
            turns.messages += side.messages
            turns.left_out += side.left_out
    return turns


def _alpaca(shape: DataShape, row: RowColumns, need: Need) -> _Turns:
    instruction, context, output = shape.columns
    question = text_of(_cell(row, instruction), instruction)
    context = context or find_column(row, CONTEXTS, is_text) or ""
    about = text_of(row.get(context), context)
    turns = [_plain_message("user", f"{question}\n\n{about}" if about.strip() else question)]
    if need == "assistant" or row.get(output):
        turns.append(_plain_message("assistant", text_of(_cell(row, output), output)))
    return _Turns(turns)


def _marked_up(shape: DataShape, row: RowColumns, need: Need) -> _Turns:
    text = text_of(_cell(row, shape.columns[0]), shape.columns[0])
    messages = parse_markup(text)
    if messages is None:
        raise InvalidRow(f"chat marks that cannot be taken apart: {excerpt(text)}")
    return _Turns(messages)


def _cell_text(shape: DataShape, row: RowColumns, need: Need) -> _Turns:
    text = text_of(_cell(row, shape.columns[0]), shape.columns[0])
    if has_markup(text):
        raise InvalidRow(f"chat marks inside text: {excerpt(text)}")
    return _Turns([_plain_message("assistant", text)])


_READERS: dict[str, Callable[[DataShape, RowColumns, Need], _Turns]] = {
    "messages": _listed_messages,
    "sharegpt": _listed_messages,
    "exchanges": _exchanges,
    "alternating": _alternating,
    "pairs": _pair_messages,
    "alpaca": _alpaca,
    "markup": _marked_up,
    "text": _cell_text,
}


def _cell(row: RowColumns, column: str) -> Any:
    if column not in row:
        raise InvalidRow(f"missing column: {excerpt(column)} is not among {excerpt(', '.join(row))}")
    return row[column]


def _side_messages(value: Any, column: str, role: str) -> _Turns:
    """A prompt or an answer: its text, or the turns of a conversational data set (TRL's form)."""
    value = unwrap(value)
    if isinstance(value, str) or value is None:
        return _Turns([_plain_message(role, value or "")])
    return _chat_messages(value, column)


def _plain_message(role: str, text: str) -> Message:
    message: Message = {"role": role, "content": text}
    if role == "assistant":
        thought, message["content"] = split_answer(text, "the answer")
        if thought:
            message["thought"] = thought
    return message


def _chat_messages(value: Any, column: str) -> _Turns:
    turns = _Turns()
    for number, turn in enumerate(_list(value, column), start=1):
        parsed = parse_turn(turn, f"turn {number}")
        turns.messages += parsed.messages
        turns.left_out += [(parsed.messages[-1], kind) for kind in parsed.left_out]
    turns.messages = join_thought_turns(turns.messages)
    return turns


def _list(value: Any, column: str) -> list[Any]:
    turns = as_list(value)
    if turns is None:
        what = "text that is not JSON" if isinstance(value, str) else describe_type(value)
        what += ", a Python repr" if isinstance(value, str) and value.lstrip()[:2] in ("[{", "{'") else ""
        raise InvalidRow(f"no list of turns: {column} holds {what}")
    return turns


def _row_excerpt(row: RowColumns) -> str:
    return ", ".join(f"{name}: {value!r}" for name, value in row.items())
