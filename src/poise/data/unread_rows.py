"""Rows as files have them: read where the files are, and decoded where, and if, somebody needs what they say."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice

from poise.data.dataset import DataSet
from poise.data.messages import Conversation, RejectedRow
from poise.data.row_values import RowItem
from poise.errors import InvalidRow

__all__ = ["UnreadRows", "decode_rows", "iterate_items", "iterate_unread", "without_files"]


@dataclass(frozen=True, slots=True)
class UnreadRows:
    """Rows of one part of a data set as the file has them.

    Attributes:
        part: Number of the part.
        first: Index of the part's first row in the data set.
        items: The rows; of one that cannot be read only the reason.
    """

    part: int
    first: int
    items: tuple[RowItem, ...]


def iterate_unread(data: DataSet, start: int, size: int) -> Iterator[list[UnreadRows]]:
    """Windows of ``size`` rows from index ``start`` on, the last one shorter; rows before are not decoded."""
    rows = iterate_items(data, start)
    while window := list(islice(rows, size)):
        yield [
            UnreadRows(part, first, tuple(_to_send(item) for _, _, item in group))
            for (part, first), group in groupby(window, key=lambda row: row[:2])
        ]


def decode_rows(data: DataSet, window: Sequence[UnreadRows]) -> list[Conversation | RejectedRow]:
    """What ``DataSet.iterate`` gives for these rows."""
    return [data.decode(data.parts[rows.part], item, rows.first) for rows in window for item in rows.items]


def without_files(data: DataSet) -> DataSet:
    """The same data set without the way to its rows, to be sent to where its files are not."""
    return replace(data, parts=tuple(replace(part, read=_read_elsewhere, paths=(), schema=None) for part in data.parts))


def iterate_items(data: DataSet, start: int = 0) -> Iterator[tuple[int, int, RowItem]]:
    """Every row from index ``start`` on as its file has it, after its part's number and the index of that's first row.

    ``data.decode(data.parts[part], item, first)`` makes of it what ``DataSet.iterate`` gives, which takes many times as
    long as reading it.
    """
    first = 0
    for number, part in enumerate(data.parts):
        items = part.read(max(0, start - first))
        while True:
            try:
                item = next(items)
            except StopIteration as end:
                first += int(end.value)
                break
            yield number, first, item


def _to_send(item: RowItem) -> RowItem:
    row, line, value = item
    return row, line, InvalidRow(str(value)) if isinstance(value, InvalidRow) else value


def _read_elsewhere(skip: int) -> Generator[RowItem, None, int]:
    raise RuntimeError(f"rows after {skip} are read where their files are")
