"""Files as rows, one after another, in memory that does not grow with the file.

A reader is called with the number of rows to skip. It yields every further row with its place, as a line's bytes, as
columns or as the reason why it cannot be read, and returns how many rows the file has.
"""

from __future__ import annotations

import bz2
import contextlib
import csv
import gzip
import importlib
import io
import itertools
import json
import lzma
import re
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

from poise.data.readers import is_utf8
from poise.data.recognition import chat_kind
from poise.data.turn_parsing import ROLE_KEYS
from poise.errors import InvalidData, InvalidRow, MissingExtra, first_line

__all__ = [
    "KNOWN",
    "ROW_LIMIT",
    "RowItem",
    "RowReader",
    "RowValue",
    "batch_rows",
    "import_extra",
    "is_known",
    "parse_json_line",
    "row_reader",
    "table_rows",
]

RowValue = bytes | dict[str, Any] | InvalidRow
RowItem = tuple[int, int | None, RowValue]  # row from 0, line from 1 where there are lines, what it holds
RowReader = Callable[[int], Generator[RowItem, None, int]]
Lines = Iterator[tuple[int | None, RowValue]]

ROW_LIMIT = 64 * 2**20
"""Longest row, in bytes: a row is held in memory, and no conversation is this long."""

KNOWN = ".jsonl, .ndjson, .json, .csv, .tsv (also with .gz, .bz2, .xz or .zst), .parquet, .feather or .arrow"
HEADS = 100  # lines that show whether an object is spread over several
WRAPPERS = ("data", "rows", "train", "examples", "instances", "items", "records", "samples")
BATCH_BYTES = 16 * 2**20
BOM = b"\xef\xbb\xbf"
READ_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError)


def is_known(path: Path) -> bool:
    """Whether the file's name ends like a format that can be read."""
    packing, kind = _endings(path)
    return kind in _TEXTS or (kind in _TABLES and not packing)


def row_reader(path: Path) -> RowReader:
    """The reader for a file, by its name.

    Raises:
        InvalidData: the name ends like no format that is read.
    """
    if not is_known(path):
        raise InvalidData(f"{path}: its name does not say what is in it; it should end in {KNOWN}.")
    kind = _endings(path)[1]
    return partial(_TABLES[kind], path) if kind in _TABLES else partial(_text_rows, _TEXTS[kind], path)


def parse_json_line(raw: bytes) -> dict[str, Any]:
    """The columns in a line of JSON Lines.

    Raises:
        InvalidRow: it is not UTF-8, not JSON, or not an object.
    """
    try:
        row = json.loads(raw.decode())
    except UnicodeDecodeError as error:
        raise InvalidRow(f"not UTF-8 text: byte {error.start} of the line") from error
    except (ValueError, RecursionError) as error:
        place = f", character {error.pos} of the line" if isinstance(error, json.JSONDecodeError) else ""
        raise InvalidRow(f"broken JSON: {_json_problem(error)}{place}") from error
    if not isinstance(row, dict):
        raise InvalidRow(_NOT_A_ROW)
    return row


def table_rows(tables: Iterable[Any], row: int, skip: int) -> Iterator[RowItem]:
    """Rows of Arrow tables, the first being ``row``, without those before ``skip``.

    Only what is yielded becomes Python values. Where the tables break off there is one last row that says so.
    """
    try:
        for table in tables:
            if row + table.num_rows > skip:
                first = max(0, skip - row)
                for number, value in enumerate(_table_to_rows(table.slice(first)), start=row + first):
                    yield number, None, value
            row += table.num_rows
    except (OSError, ValueError) as error:
        if row >= skip:
            yield row, None, InvalidRow(f"damaged: {first_line(error)}; the rest of this row group is lost")


def _table_to_rows(table: Any) -> list[dict[str, Any] | InvalidRow]:
    try:
        return cast(list[dict[str, Any] | InvalidRow], table.to_pylist())
    except UnicodeDecodeError:
        if table.num_rows == 1:
            return [InvalidRow("not UTF-8 text")]
        return [row for number in range(table.num_rows) for row in _table_to_rows(table.slice(number, 1))]


def batch_rows(size: int, rows: int) -> int:
    """How many rows of a table of ``size`` bytes to hold at once."""
    return max(1, min(1000, BATCH_BYTES * rows // max(size, 1)))


def import_extra(module: str, what: str) -> Any:
    """A module of the ``data`` extra.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingExtra(f'{what} needs {package}; install it with pip install "poise[data]".') from error


def _endings(path: Path) -> tuple[str, str]:
    """How the file is packed, if at all, and its format."""
    *_, kind, packing = ["", "", *(suffix.lower() for suffix in path.suffixes)]
    return (packing, kind) if packing in _PACKINGS else ("", packing)


def _zstandard(path: Path) -> BinaryIO:
    arrow = import_extra("pyarrow", f"Reading {path}")
    return cast(BinaryIO, io.BufferedReader(arrow.input_stream(str(path), compression="zstd")))


_PACKINGS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _zstandard,
}


def _open(path: Path) -> BinaryIO:
    try:
        return cast(BinaryIO, _PACKINGS.get(_endings(path)[0], partial(Path.open, mode="rb", buffering=2**20))(path))
    except OSError as error:
        raise InvalidData(f"{path}: cannot be read, {error.strerror or error}.") from error


def _text_rows(lines: Callable[[Path], Lines], path: Path, skip: int) -> Generator[RowItem, None, int]:
    """A text format's rows; where the file breaks off there is one last row that says so."""
    row = 0
    try:
        for line, value in lines(path):
            if row >= skip:
                yield row, line, value
            row += 1
    except READ_ERRORS as error:
        if row >= skip:
            yield row, None, InvalidRow(_broken_off(error))
        row += 1
    return row


def _broken_off(error: Exception) -> str:
    if isinstance(error, EOFError) or "runcated" in str(error):
        return "cut short: the packed file ends in the middle, and all after this place is lost"
    return f"damaged: {error}; all after this place is lost"


def _json_lines(path: Path) -> Lines:
    with _open(path) as file:
        for line in itertools.count(1):
            raw = file.readline(ROW_LIMIT)
            if not raw:
                return
            if len(raw) == ROW_LIMIT and not raw.endswith(b"\n"):
                while (overflow := file.readline(ROW_LIMIT)) and not overflow.endswith(b"\n"):
                    pass
                yield line, InvalidRow(f"too long: over {ROW_LIMIT // 2**20} MiB")
                continue
            if line == 1:
                raw = raw.removeprefix(BOM)
            if raw and not raw.isspace():
                yield from ((line, row) for row in _objects(raw.removesuffix(b"\n")))


def _objects(raw: bytes) -> list[bytes]:
    """The objects of a line: usually one, several where they stand one after another."""
    if not _JOINED.search(raw):
        return [raw]
    try:
        text, decoder, at, rows = raw.decode(), json.JSONDecoder(), 0, []
        while at < len(text):
            start = _BETWEEN.match(text, at).end()  # type: ignore[union-attr]  # it matches nothing, too
            if start == len(text):
                break
            _, at = decoder.raw_decode(text, start)
            rows.append(text[start:at].encode())
    except (ValueError, RecursionError):
        return [raw]  # whoever reads it says what is wrong
    return rows if len(rows) > 1 else [raw]


_JOINED = re.compile(rb"\}\s*\{")  # never inside one object but in its texts


def _json_rows(path: Path) -> Lines:
    """A list of rows, or one object written over several lines, or, as many name them, JSON Lines."""
    heads: list[bytes] = []
    with _open(path) as file, contextlib.suppress(*READ_ERRORS):  # whoever reads the rows says where it breaks off
        while len(heads) < HEADS and (raw := file.readline(2**16)):
            heads += [head] if (head := raw.removeprefix(BOM).strip()) else []
    if heads and heads[0].startswith(b"["):
        return _json_values(path)
    spread = any(head.startswith(b"{") and head.endswith((b",", b"{", b"[")) for head in heads)
    return _unwrapped(_json_values(path) if spread else _json_lines(path))


def _unwrapped(rows: Lines) -> Lines:
    """The rows inside a file's only object: ``{"data": [{…}, …]}``, or a table kept as one list for each column."""
    ahead = list(itertools.islice(rows, 2))
    if len(ahead) != 1 or isinstance(ahead[0][1], InvalidRow):
        yield from ahead
        yield from rows
        return
    line, value = ahead[0]
    try:
        document = parse_json_line(value) if isinstance(value, bytes) else value
    except InvalidRow:
        document = {}
    inner = wrapped_rows(document) if isinstance(document, dict) else None
    yield from (
        ahead if inner is None else ((line, row if isinstance(row, dict) else InvalidRow(_NOT_A_ROW)) for row in inner)
    )


def wrapped_rows(document: dict[str, Any]) -> list[Any] | None:
    """The rows that a document holds under ``data`` or the like, or as columns; ``None`` where it is a row itself."""
    wrapped = [
        value
        for name, value in document.items()
        if name.lower() in WRAPPERS and isinstance(value, list) and value and isinstance(value[0], dict)
    ]
    if len(wrapped) == 1 and chat_kind(wrapped[0]) not in ("messages", "sharegpt"):
        return wrapped[0]
    columns = list(document.values())
    even = columns and all(isinstance(column, list) and column for column in columns)
    if not even or len({len(column) for column in columns}) != 1 or set(document) & set(ROLE_KEYS):
        return None
    if any(chat_kind(column) for column in columns if not isinstance(column[0], str)):
        return None
    if len(document) < 2:
        return None
    return [dict(zip(document, values, strict=True)) for values in zip(*columns, strict=True)]


def _json_values(path: Path) -> Lines:
    """The objects of a list, or of a file that has them one after another, decoded as they come in.

    One that is broken ends the file: nothing says where the next begins.
    """
    decoder, line, chunk, text, at = json.JSONDecoder(), 1, 2**16, "", 0
    with _open(path) as raw, io.TextIOWrapper(raw, "utf-8-sig", errors="surrogateescape") as file:
        text = file.read(chunk)
        at = len(text) - len(text.lstrip())
        inside = text.startswith("[", at)
        line += text.count("\n", 0, at)
        at += inside
        while True:
            start = _BETWEEN.match(text, at).end()  # type: ignore[union-attr]  # it matches nothing, too
            line += text.count("\n", at, start)
            if inside and text.startswith("]", start):
                if text[start + 1 :].strip() or file.read(chunk).strip():
                    yield line, InvalidRow("broken JSON: more text after the list; all after this place is lost")
                return
            try:
                value, at = decoder.raw_decode(text, start)
            except (ValueError, RecursionError) as error:
                more = file.read(max(chunk, len(text) - start)) if len(text) - start <= ROW_LIMIT else ""
                if not more:
                    if inside or start < len(text):
                        yield line, InvalidRow(f"broken JSON: {_json_problem(error)}; all after this place is lost")
                    return
                text, at = text[start:] + more, 0
                continue
            yield line, _object_row(value, text[start:at])
            line += text.count("\n", start, at)


_BETWEEN = re.compile(r"[\s,]*")
_NOT_A_ROW = "not a row: it is JSON, and not an object with columns"


def _object_row(value: Any, text: str) -> RowValue:
    if not isinstance(value, dict):
        return InvalidRow(_NOT_A_ROW)
    return value if is_utf8(text) else InvalidRow("not UTF-8 text")


def _json_problem(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(getattr(error, "msg", error))


def _csv_rows(path: Path) -> Lines:
    """Comma or tab separated values under a header; in a ``.csv`` semicolons or tabs too, if its header has more."""
    csv.field_size_limit(ROW_LIMIT)
    with _open(path) as raw, io.TextIOWrapper(raw, "utf-8-sig", errors="surrogateescape", newline="") as file:
        first = file.readline(ROW_LIMIT)
        separator = "\t" if _endings(path)[1] == ".tsv" else max(",;\t", key=first.count)
        lines = itertools.chain([first], iter(partial(file.readline, ROW_LIMIT), ""))
        cells = csv.reader(lines, delimiter=separator, strict=True)
        header: list[str] | None = None
        while True:
            line = cells.line_num + 1
            try:
                row = next(cells, None)
            except csv.Error as error:
                yield line, InvalidRow(f"broken CSV: {error}")
                continue
            if row is None:
                return
            if not row:
                continue
            if header is None:
                header = row
            elif len(row) != len(header):
                yield line, InvalidRow(f"broken CSV: {len(row)} cells under a header of {len(header)}")
            else:
                yield (
                    line,
                    dict(zip(header, row, strict=True)) if is_utf8("".join(row)) else InvalidRow("not UTF-8 text"),
                )


_TEXTS: dict[str, Callable[[Path], Lines]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".tsv": _csv_rows,
}


def _parquet(path: Path, skip: int) -> Generator[RowItem, None, int]:
    """Row groups that are skipped are not read; of a damaged one the rest is lost, and the next one is read."""
    parquet = import_extra("pyarrow.parquet", f"Reading {path}")
    try:
        file = parquet.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise InvalidData(f"{path}: cannot be read as Parquet, {first_line(error)}") from error
    with file:
        begin = 0
        for number in range(file.num_row_groups):
            group = file.metadata.row_group(number)
            if begin + group.num_rows > skip:
                rows = batch_rows(group.total_byte_size, group.num_rows)
                yield from table_rows(file.iter_batches(rows, row_groups=[number]), begin, skip)
            begin += group.num_rows
    return begin


def _arrow(path: Path, skip: int) -> Generator[RowItem, None, int]:
    """Arrow files, which Feather is, and streams, which ``datasets`` writes, a batch at a time."""
    arrow = import_extra("pyarrow", f"Reading {path}")
    with arrow.memory_map(str(path)) as source:
        try:
            is_file = source.read(6) == b"ARROW1"
            source.seek(0)
            batches = arrow.ipc.open_file(source) if is_file else arrow.ipc.open_stream(source)
        except (OSError, ValueError) as error:
            raise InvalidData(f"{path}: cannot be read as Arrow, {first_line(error)}") from error
        begin = 0
        for batch in map(batches.get_batch, range(batches.num_record_batches)) if is_file else batches:
            yield from table_rows([batch], begin, skip)
            begin += batch.num_rows
    return begin


_TABLES = {".parquet": _parquet, ".feather": _arrow, ".arrow": _arrow}
