"""Files, folders, globs and names to one ``DataSet`` whose rows stream in order."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, get_args

from poise.data.locate import locate_sources
from poise.data.messages import AnswerPart, Conversation, Need, RejectedRow
from poise.data.readers import read_row
from poise.data.row_values import RowItem, RowReader, RowValue, to_columns
from poise.data.shapes import DataShape, ShapeRequest, detect_shape, parse_shape_request
from poise.data.turn_parsing import MEDIA, excerpt
from poise.errors import InvalidArgument, InvalidData, InvalidRow

__all__ = [
    "DataPart",
    "DataSet",
    "InputRow",
    "check_rows",
    "check_same_part",
    "data_from_rows",
    "first_rows",
    "open_data",
    "refuse_unfit",
    "rejected_row",
    "row_columns",
]

DETECTION_ROWS = 100  # rows that say what shape a file has
_NAMED = 3  # files that a summary names


@dataclass(frozen=True, slots=True, kw_only=True)
class DataPart:
    """One file of a data set, or one set of the Hugging Face library.

    Attributes:
        name: The path, or the name on the hub.
        paths: What is on disk of it.
        read: Its rows.
        shape: How they become messages.
        schema: The Arrow schema of its rows; ``None`` where they are not a table.
    """

    name: str
    paths: tuple[Path, ...]
    read: RowReader
    shape: DataShape
    schema: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """Conversations in files, read as often as wanted.

    Attributes:
        parts: In order.
        need: Which turn a row must have to be of use.
        stated: Whether the user said the shape.
        answer_part: Which part of an answer is read or learnt, by everything that reads these data.
        left_out: Files in a folder or an archive that are no data, each with the reason.
    """

    parts: tuple[DataPart, ...]
    need: Need
    stated: bool
    answer_part: AnswerPart = "reply"
    left_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.answer_part not in (parts := get_args(AnswerPart)):
            raise InvalidArgument(
                f"There is no part {excerpt(self.answer_part)} of an answer; `part` is one of {', '.join(parts)}."
            )

    @property
    def files(self) -> tuple[Path, ...]:
        """All files, in order; a data set on the hub has none."""
        return tuple(dict.fromkeys(path for part in self.parts for path in part.paths))

    @property
    def shape(self) -> str:
        """The kind of all files, or ``mixed``."""
        kinds = {part.shape.kind for part in self.parts}
        return kinds.pop() if len(kinds) == 1 else "mixed"

    @property
    def how(self) -> str:
        """What is read from which columns and how that is known, a line for each way that files are read."""
        ways: dict[str, list[str]] = {}
        for part in self.parts:
            ways.setdefault(str(part.shape), []).append(part.name)
        source = "as stated" if self.stated else f"found in the first {DETECTION_ROWS} rows"
        lines = [f"{_listed(names)}: {way} ({source})" for way, names in ways.items()]
        return "\n".join([*lines, *(f"not read: {one}" for one in self.left_out)])

    @property
    def part_key(self) -> dict[str, str]:
        """What the part of answers adds to the key of kept work: nothing for replies, which keys were first made of."""
        return {} if self.answer_part == "reply" else {"part": self.answer_part}

    def __iter__(self) -> Iterator[Conversation | RejectedRow]:
        return self.iterate()

    def iterate(self, start: int = 0) -> Iterator[Conversation | RejectedRow]:
        """Every row from index ``start`` on, in order, as a conversation or as the reason why it is none.

        Rows before ``start`` are passed over without being decoded, in Parquet without being read.
        """
        first = 0
        for part in self.parts:
            first += yield from self._rows(part, first, max(0, start - first))

    def count(self) -> int:
        """How many rows there are, good and bad. Parquet knows; other formats are read through, and not decoded."""
        total = 0
        for part in self.parts:
            total += _drain(part.read(sys.maxsize))
        return total

    def digest(self) -> str:
        """SHA-256 of the files' bytes one after another: of one file, what ``sha256sum`` prints.

        A data set on the hub counts with its rows as JSON, which takes reading it through.
        """
        digest = hashlib.sha256()
        for path in self.files:
            _add(digest, path)
        for part in self.parts:
            if not part.paths:
                for _, _, value in part.read(0):
                    digest.update(json.dumps(value, sort_keys=True, default=str).encode() + b"\n")
        return digest.hexdigest()

    def _rows(self, part: DataPart, first: int, skip: int) -> Generator[Conversation | RejectedRow, None, int]:
        """One part's rows after ``skip``; ``first`` is the index of its row 0."""
        items = part.read(skip)
        while True:
            try:
                item = next(items)
            except StopIteration as end:
                return int(end.value)
            yield self.decode(part, item, first)

    def decode(self, part: DataPart, item: RowItem, first: int) -> Conversation | RejectedRow:
        """A row of a part as a conversation, or why it is none; ``first`` is the index of the part's row 0."""
        row, _, value = item
        try:
            content = read_row(part.shape, to_columns(value), self.need, self.answer_part)
        except InvalidRow as bad:
            return rejected_row(part, item, first + row, bad)
        raw: Any = value  # a row that cannot be read was raised
        media = value.media if isinstance(value, _OpenedRow) and self.need == "assistant" else ()
        return Conversation(
            messages=content.messages,
            file=part.name,
            row=row,
            index=first + row,
            raw=raw,
            columns=part.shape.used,
            tools=content.tools,
            left_out=(*media, *content.left_out),
            answer_part=self.answer_part,
        )


def rejected_row(part: DataPart, item: RowItem, index: int, fault: InvalidRow) -> RejectedRow:
    """A row of a file that cannot be used, with its content where there is any; ``index`` is its place in the data."""
    row, line, value = item
    raw: Any = fault.content if fault.content is not None else value
    return RejectedRow(
        file=part.name,
        row=row,
        index=index,
        line=line,
        reason=str(fault),
        raw=None if isinstance(raw, InvalidRow) else raw,
    )


def open_data(
    source: str | Path | Sequence[str | Path],
    *,
    shape: str = "auto",
    need: Need = "assistant",
    part: AnswerPart = "reply",
) -> DataSet:
    """Find the files, and in their first rows the shape of each.

    Args:
        source: A file, a folder with all files below it whose names end like a known format, a zip archive, a glob,
            an address that fsspec knows, ``-`` for standard input, a folder that ``save_to_disk`` wrote or a name on
            the hub, these two with ``:split`` where there are several; or a sequence of these.
        shape: ``auto``, one of ``SHAPES``, or one with its columns: ``pairs:question,best_answer``.
        need: ``assistant`` for answers to score, ``user`` for questions to answer.
        part: Which part of an answer is read or learnt: the reply, the thought before it, or both.

    Raises:
        InvalidData: something is not there, empty, cannot be read, or has no columns that fit; names all such files.
        InvalidArgument: there is no such shape.
        MissingExtra: pyarrow or datasets is needed and not installed.
    """
    request = parse_shape_request(shape, need)
    sources, left_out = locate_sources(source)
    parts: list[DataPart] = []
    unfit: dict[str, list[str]] = {}
    for place in sources:
        try:
            schema, rows = place.open_schema(), place.read
            detected = _detect_shape(place.name, rows, request, need)
            parts.append(DataPart(name=place.name, paths=place.paths, read=rows, shape=detected, schema=schema))
        except InvalidData as error:
            unfit.setdefault(str(error).removeprefix(f"{place.name}: "), []).append(place.name)
    refuse_unfit(unfit)
    if not any(part.shape.columns for part in parts):
        columns = first_rows(parts[0].name, parts[0].read)[0]
        raise InvalidData(f"No file has the shape {request}: {parts[0].name} has the columns {_names(columns)}.")
    return DataSet(parts=tuple(parts), need=need, stated=request.kind is not None, answer_part=part, left_out=left_out)


def refuse_unfit(unfit: Mapping[str, Sequence[str]]) -> None:
    """Refuse files that cannot be read.

    Args:
        unfit: Names of the files by what is said of them.

    Raises:
        InvalidData: there are some; names all of them.
    """
    if unfit:
        lines = [f"{_listed(names)}: {complaint}" for complaint, names in unfit.items()]
        raise InvalidData(lines[0] if len(lines) == 1 else "\n  ".join(["Several files cannot be read:", *lines]))


InputRow = Mapping[str, Any] | Sequence[Mapping[str, Any]] | Conversation
"""A row in memory: columns by name, the messages of one conversation, or a conversation."""


def check_rows(rows: object) -> None:
    """Refuse the name of a file in the place of its rows.

    Raises:
        InvalidArgument: says how to open it.
    """
    if isinstance(rows, str | bytes | Path) or not isinstance(rows, Iterable):
        raise InvalidArgument(
            f"rows is {type(rows).__name__}; give rows, such as dictionaries, or open a file with open_data(path)."
        )


def data_from_rows(
    rows: DataSet | Iterable[InputRow],
    *,
    shape: str = "auto",
    need: Need = "assistant",
    part: AnswerPart = "reply",
    name: str = "rows",
) -> DataSet:
    """Rows in memory as a data set, without a file.

    Args:
        rows: Columns by name (``datasets.Dataset`` too), lists of messages or conversations; a data set is returned
            as it is. An iterator is read to its end and held.
        shape: Shape of the rows, as in ``open_data``.
        need: ``assistant`` for answers to score, ``user`` for questions to answer.
        part: Which part of an answer is read or learnt; a data set has its own.
        name: Name of the data in messages.

    Raises:
        InvalidData: there is no row, or no known shape fits the first of them.
        InvalidArgument: unknown shape, or another part than that of the data set.
    """
    check_rows(rows)
    if isinstance(rows, DataSet):
        if part not in ("reply", rows.answer_part):
            raise InvalidArgument(
                f"`part` is {part}, and the data set was opened for the {rows.answer_part}; open it with that part."
            )
        return rows
    held = rows if hasattr(rows, "__len__") else list(rows)

    def read(skip: int) -> Generator[RowItem, None, int]:
        number = -1
        for number, row in enumerate(held):
            if number >= skip:
                check_same_part(row, part)
                try:
                    opened = _OpenedRow(row_columns(row))
                    if isinstance(row, Conversation):
                        opened.media = tuple(kind for kind in row.left_out if kind in MEDIA.values())
                    value: RowValue = opened
                except InvalidRow as error:
                    value = error
                yield number, None, value
        return number + 1

    request = parse_shape_request(shape, need)
    rows_part = DataPart(name=name, paths=(), read=read, shape=_detect_shape(name, read, request, need))
    return DataSet(parts=(rows_part,), need=need, stated=request.kind is not None, answer_part=part)


class _OpenedRow(dict[str, Any]):
    """Columns of a row in memory; of a conversation also what is not text, which its messages have lost."""

    media: tuple[str, ...] = ()


def check_same_part(row: InputRow, part: AnswerPart) -> None:
    """Refuse a conversation that was opened for another part of its answers than is read.

    Raises:
        InvalidArgument: names both.
    """
    if isinstance(row, Conversation) and row.answer_part not in ("reply", part):
        raise InvalidArgument(
            f"`part` is {part}, and the conversation in {row.file}, row {row.row}, was opened for the "
            f"{row.answer_part}; name one part."
        )


def row_columns(row: InputRow) -> Mapping[str, Any]:
    """The columns of a row in memory; a list of messages is the column ``messages``.

    Raises:
        InvalidRow: it is neither columns nor messages.
    """
    if isinstance(row, Conversation):
        columns: dict[str, Any] = {"messages": list(row.messages)}
        return columns | ({"tools": list(row.tools)} if row.tools else {})
    if isinstance(row, Mapping):
        return row
    if isinstance(row, Sequence) and not isinstance(row, str | bytes):
        return {"messages": list(row)}
    raise InvalidRow(f"not a row: {excerpt(row)}", json.dumps(row, default=str).encode())


def _detect_shape(name: str, rows: RowReader, request: ShapeRequest, need: Need) -> DataShape:
    sample = first_rows(name, rows)
    try:
        shape = detect_shape(sample, request, need)
    except InvalidData as error:
        if str(error).startswith(f"{name}: "):
            raise
        raise InvalidData(f"{name}: {error}") from error
    return shape or DataShape(str(request.kind), ())


def first_rows(name: str, rows: RowReader) -> list[dict[str, Any]]:
    """The first rows that can be read."""
    good: list[dict[str, Any]] = []
    first_bad = ""
    total = 0
    for _, line, value in islice(rows(0), DETECTION_ROWS):
        total += 1
        try:
            good.append(to_columns(value))
        except InvalidRow as bad:
            first_bad = first_bad or (f"line {line}: {bad}" if line else str(bad))
    if not total:
        raise InvalidData(f"{name}: it is empty; give a file with rows.")
    if not good:
        raise InvalidData(f"{name}: none of its first {total} rows can be read ({first_bad}); is it the right file?")
    return good


def _drain(rows: Generator[Any, None, int]) -> int:
    while True:
        try:
            next(rows)
        except StopIteration as end:
            return int(end.value)


def _add(digest: Any, path: Path) -> None:
    try:
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    except OSError as error:
        raise InvalidData(f"{path}: cannot be read, {error.strerror or error}.") from error


def _names(row: dict[str, Any]) -> str:
    return excerpt(", ".join(map(str, row)), 400)


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    short = names if len(names) == 1 else [Path(name).name for name in names]
    return ", ".join(short[:_NAMED]) + (f" and {more} more" if more > 0 else "")
