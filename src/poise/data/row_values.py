"""What a file's rows are while they are read: a line's bytes, columns, or the reason why there is nothing to read."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator
from typing import Any

from poise.errors import InvalidRow

__all__ = [
    "BOM",
    "NOT_A_ROW",
    "Lines",
    "RowItem",
    "RowReader",
    "RowValue",
    "json_problem",
    "parse_json_line",
    "to_columns",
]

RowValue = bytes | dict[str, Any] | InvalidRow
RowItem = tuple[int, int | None, RowValue]  # row from 0, line from 1 where there are lines, what it holds
RowReader = Callable[[int], Generator[RowItem, None, int]]
Lines = Iterator[tuple[int | None, RowValue]]

BOM = b"\xef\xbb\xbf"
NOT_A_ROW = "not a row: it is JSON, and not an object with columns"


def parse_json_line(raw: bytes) -> dict[str, Any]:
    """The columns in a line of JSON Lines; a byte order mark before it is no part of them.

    Raises:
        InvalidRow: it is not UTF-8, not JSON, or not an object.
    """
    try:
        row = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InvalidRow(f"not UTF-8 text: byte {error.start} of the line") from error
    except (ValueError, RecursionError) as error:
        place = f", character {error.pos} of the line" if isinstance(error, json.JSONDecodeError) else ""
        raise InvalidRow(f"broken JSON: {json_problem(error)}{place}") from error
    if isinstance(row, list) and row and all(isinstance(turn, dict) and {"role", "from"} & {*turn} for turn in row):
        raise InvalidRow(f'{NOT_A_ROW}: the turns of a chat alone; write {{"messages": […]}} around them on each line')
    if not isinstance(row, dict):
        raise InvalidRow(NOT_A_ROW)
    return row


def to_columns(value: RowValue) -> dict[str, Any]:
    """A row's columns.

    Raises:
        InvalidRow: it has none.
    """
    if isinstance(value, InvalidRow):
        raise value
    return parse_json_line(value) if isinstance(value, bytes) else value


def json_problem(error: Exception) -> str:
    """What is wrong with a JSON text, in the parser's words."""
    return "nested too deeply" if isinstance(error, RecursionError) else str(getattr(error, "msg", error))
