"""The shape of a file: what its rows are and which of their columns are read.

It is recognised in the first rows and kept for all of them. What is recognised, and what is refused with which remedy,
is said in ``recognition``; what a user states is fitted here by the types of the columns alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from poise.arguments import check_type
from poise.data.columns import (
    CHATS,
    CONTEXTS,
    SYSTEMS,
    TEXTS,
    RowColumns,
    chat_kind,
    find_column,
    is_chat,
    is_filled,
    is_text,
    unwrap,
)
from poise.data.messages import Need
from poise.data.recognition import Recognition, recognise, recognise_pair
from poise.data.turn_parsing import excerpt
from poise.errors import InvalidArgument, InvalidData

__all__ = ["SHAPES", "DataShape", "ShapeRequest", "detect_shape", "is_system", "parse_shape_request"]

SHAPES = ("messages", "sharegpt", "exchanges", "alternating", "alpaca", "pairs", "markup", "text")
MATERIALS = ("context", "passage", "article", "document", "background", "knowledge", "paragraph", "evidence")
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
        columns: Named as in the file: the chat, and an answer beside it where there is one; prompt and answer;
            instruction, input and output (``""`` for one that is not there); the text. None when a stated shape does
            not fit the file: all its rows are rejected.
        system: Column that holds a system prompt.
        recognised: Whether nobody stated it: a row whose columns say something else, such as a verdict on its answer,
            is then rejected.
        unread: Columns that may belong to the prompt and are not in it, such as ``context`` beside a question.
    """

    kind: str
    columns: tuple[str, ...]
    system: str | None = None
    recognised: bool = False
    unread: tuple[str, ...] = ()

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
        more += f", without {', '.join(self.unread)}" if self.unread else ""
        return f"{self.kind} from {names}{more}"


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
    chat_takes = dict.fromkeys(("messages", "sharegpt", "alternating"), (1, 2))
    takes = {"pairs": (2,) if need == "assistant" else (1, 2), "alpaca": (3,), **chat_takes}
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
    if request.kind is None and kind == "pairs" and totals["alpaca"]:  # rows may leave an empty input out
        kind, columns = max((key for key in shapes if key[0] == "alpaca"), key=shapes.__getitem__)
    if kind == "alpaca":
        columns = max((key for key in shapes if key[0] == kind), key=lambda key: (bool(key[1][1]), shapes[key]))[1]
    with_system = rows if kind not in ("text", "markup") else []
    systems = (
        find_column(row, SYSTEMS, suits)
        for suits in (lambda value: is_filled(value) and is_system(value), is_system)
        for row in with_system
    )
    pairs = rows if kind in ("pairs", "alpaca") else []
    names = [find_column(row, (name,), is_text) for name in MATERIALS for row in pairs]
    names += [find_column(row, (name,), is_chat) for name in CHATS for row in pairs]
    return DataShape(
        kind,
        columns,
        next(filter(None, systems), None),
        recognised=request.kind is None,
        unread=tuple(dict.fromkeys(name for name in names if name and name not in columns)),
    )


def _fit(request: ShapeRequest, row: RowColumns, need: Need) -> Recognition:
    """The columns that would be read, if the row has the stated shape; judged by types, not by what the texts say."""
    kind, stated = str(request.kind), request.columns
    if kind in CHAT_SHAPES:
        column = find_column(row, stated[:1] or CHATS, lambda value: _is_chat_cell(kind, value))
        answer = find_column(row, stated[1:], _is_side) if column else None
        return Recognition(kind=kind, columns=(column, *([answer] if answer else ())) if column else ())
    if kind in ("text", "markup"):
        column = find_column(row, stated or TEXTS, is_text)
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
    return is_text(unwrap(value)) or chat_kind(value) in ("messages", "sharegpt")


def is_system(value: Any) -> bool:
    """Whether a cell can hold a system prompt: text, or parts of one."""
    if isinstance(value, Mapping):
        return isinstance(value.get("parts"), list) or isinstance(value.get("text"), str)
    return isinstance(value, str) or (isinstance(value, list) and bool(value) and not chat_kind(value))


def _row_excerpt(row: RowColumns) -> str:
    return ", ".join(f"{name}: {value!r}" for name, value in row.items())
