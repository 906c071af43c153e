"""Files as rows, one after another, in memory that does not grow with the file.

A reader is called with the number of rows to skip. It yields every further row with its place, as a line's bytes, as
columns or as the reason why it cannot be read, and returns how many rows the file has.
"""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import re
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Any

from poise.data.columns import chat_kind
from poise.data.input_files import READ_ERRORS, FileSpan, InputFile, open_unpacked, why_broken_off
from poise.data.readers import is_utf8
from poise.data.row_values import BOM, NOT_A_ROW, Lines, RowItem, RowReader, RowValue, json_problem, parse_json_line
from poise.data.tables import TABLES, check_columns
from poise.data.text_encoding import wide_encoding
from poise.data.turn_parsing import ROLE_KEYS
from poise.errors import InvalidData, InvalidRow

__all__ = ["KNOWN", "ROW_LIMIT", "check_text", "is_known", "is_table", "row_reader"]

ROW_LIMIT = 64 * 2**20
"""Longest row, in bytes: a row is held in memory, and no conversation is this long."""

KNOWN = (
    ".jsonl, .ndjson, .json, .csv, .tsv or .txt (also with .gz, .bz2, .xz, .zst or .lz4), .parquet, .feather, .arrow "
    "or .zip"
)
JSON_ENDINGS = (".json", ".jsonl", ".ndjson")
HEADS = 100  # lines that show whether an object is spread over several
SPLITS = ("test", "validation", "valid", "val", "dev", "eval", "train_sft", "test_sft")
TURNS = ("messages", "sharegpt")
WRAPPERS = ("data", "rows", "train", "examples", "instances", "items", "records", "samples")


def is_known(file: InputFile) -> bool:
    """Whether the file's name ends like a format that can be read."""
    packing, kind = file.endings
    return kind in _TEXTS or (kind in TABLES and not packing)


def is_table(file: InputFile) -> bool:
    """Whether the file's rows come as Arrow tables."""
    return file.endings[1] in TABLES


def row_reader(file: InputFile) -> RowReader:
    """The reader for a file, by its name.

    Raises:
        InvalidData: the name ends like no format that is read.
    """
    if not is_known(file):
        raise InvalidData(f"{file.name}: its name does not say what is in it; it should end in {KNOWN}.")
    kind = file.endings[1]
    return partial(TABLES[kind], file) if kind in TABLES else partial(_text_rows, _TEXTS[kind], file)


def check_text(file: InputFile) -> None:
    """Refuse text whose characters or lines are not what is read here, by its first 64 KB.

    Raises:
        InvalidData: it is UTF-16 or UTF-32, or its lines end in carriage returns alone; says what would help.
    """
    if is_table(file):
        return
    try:
        with open_unpacked(file) as stream:
            head = stream.read(2**16)
    except READ_ERRORS:
        return  # whoever reads the rows says where it breaks off
    if wide := wide_encoding(head, is_json=file.endings[1] in JSON_ENDINGS):
        raise InvalidData(
            f"{file.name}: its text is {wide[:6].upper()}, not UTF-8; convert it: iconv -f {wide} -t utf-8 OLD > NEW."
        )
    lines_matter = file.endings[1] not in (".json", ".csv", ".tsv")
    if lines_matter and b"\n" not in head and b"\r" in head.rstrip(b"\r"):
        raise InvalidData(
            f"{file.name}: its lines end in carriage returns alone, as old Macs wrote them; convert it: "
            "tr '\\r' '\\n' < OLD > NEW."
        )


def _text_rows(lines: Callable[[InputFile], Lines], file: InputFile, skip: int) -> Generator[RowItem, None, int]:
    """A text format's rows; where the file breaks off there is one last row that says so."""
    row = 0
    try:
        for line, value in lines(file):
            if row >= skip:
                yield row, line, value
            row += 1
    except READ_ERRORS as error:
        if row >= skip:
            yield row, None, InvalidRow(why_broken_off(error))
        row += 1
    return row


def _json_lines(file: InputFile) -> Lines:
    at = 0
    with open_unpacked(file) as stream:
        for line in itertools.count(1):
            raw = stream.readline(ROW_LIMIT)
            if not raw:
                return
            begin, at = at, at + len(raw)
            if len(raw) == ROW_LIMIT and not raw.endswith(b"\n"):
                while overflow := stream.readline(ROW_LIMIT):
                    at += len(overflow)
                    raw = overflow
                    if overflow.endswith(b"\n"):
                        break
                span = FileSpan(file=file, start=begin, size=at - begin - raw.endswith(b"\n"), is_line=True)
                yield line, InvalidRow(f"too long: over {ROW_LIMIT // 2**20} MiB", span)
                continue
            content = raw.removeprefix(BOM) if line == 1 else raw
            if content and not content.isspace():
                yield from ((line, row) for row in _objects(raw.removesuffix(b"\n")))


def _objects(raw: bytes) -> list[bytes]:
    """The objects of a line: usually one, several where they stand one after another."""
    if not _JOINED.search(raw):
        return [raw]
    try:
        text, decoder, at, rows = raw.decode("utf-8-sig"), json.JSONDecoder(), 0, []
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


def _lines_or_rows(file: InputFile) -> Lines:
    """JSON Lines, unless what bears that name is a list of rows, or objects that are spread over several lines."""
    heads = _heads(file, 2)
    spread = len(heads) > 1 and heads[0].endswith((b"{", b",", b"[")) and heads[1].startswith((b'"', b"{"))
    if heads and heads[0][:1] in (b"[", b"{") and (spread or _is_list_of_rows(heads)):
        return _json_rows(file)
    return _json_lines(file)


def _is_list_of_rows(heads: list[bytes]) -> bool:
    """Whether the only line of a file is a list of rows, and not the turns of a chat."""
    try:
        value = json.loads(heads[0]) if len(heads) == 1 and heads[0].startswith(b"[") else None
    except (ValueError, RecursionError):
        return False
    return bool(value) and all(isinstance(row, dict) for row in value or ()) and chat_kind(value) not in TURNS


def _heads(file: InputFile, most: int) -> list[bytes]:
    """The first lines that are not blank."""
    heads: list[bytes] = []
    with (
        open_unpacked(file) as stream,
        contextlib.suppress(*READ_ERRORS),
    ):  # whoever reads the rows says where it breaks off
        while len(heads) < most and (raw := stream.readline(2**16)):
            heads += [head] if (head := raw.removeprefix(BOM).strip()) else []
    return heads


def _json_rows(file: InputFile) -> Lines:
    """A list of rows, or one object written over several lines, or, as many name them, JSON Lines."""
    heads = _heads(file, HEADS)
    if heads and heads[0].startswith(b"["):
        return _json_values(file)
    spread = any(head.startswith(b"{") and head.endswith((b",", b"{", b"[")) for head in heads)
    return _unwrapped(file, _json_values(file) if spread else _json_lines(file))


def _unwrapped(file: InputFile, rows: Lines) -> Lines:
    """The rows inside a file's only object: ``{"data": [{…}, …]}``, or a table kept as one list for each column.

    Raises:
        InvalidData: it holds several lists of rows.
    """
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
    if isinstance(document, dict) and (lists := _row_lists(document)):
        raise InvalidData(
            f"{file.name}: it holds {len(lists)} lists of rows; write the one to be read to a file of its own: "
            f"{', '.join(lists)}."
        )
    inner = wrapped_rows(document) if isinstance(document, dict) else None
    yield from (
        ahead if inner is None else ((line, row if isinstance(row, dict) else _not_a_row(row)) for row in inner)
    )


def _row_lists(document: dict[str, Any]) -> list[str]:
    """Names of the lists of rows in a document, as ``train`` and ``test``; empty where there are less than two.

    Lists of objects count that are named as splits or other wrappers of rows are, or whose objects have the keys of one
    that is; turns and tools of a single row do not.
    """
    columns: dict[str, set[str]] = {
        name: set(value[0])
        for name, value in document.items()
        if isinstance(value, list) and value and isinstance(value[0], dict) and chat_kind(value) not in TURNS
    }
    named = {name for name in columns if name.lower().rpartition("/")[2] in (*WRAPPERS, *SPLITS)}
    alike = {
        name for name, keys in columns.items() if any(keys == columns[other] for other in columns if other != name)
    }
    lists = sorted(named | alike, key=list(columns).index)
    return lists if len(lists) > 1 else []


def wrapped_rows(document: dict[str, Any]) -> list[Any] | None:
    """The rows that a document holds under ``data`` or the like, or as columns; ``None`` where it is a row itself."""
    wrapped = [
        value
        for name, value in document.items()
        if name.lower() in WRAPPERS and isinstance(value, list) and value and isinstance(value[0], dict)
    ]
    if len(wrapped) == 1 and chat_kind(wrapped[0]) not in TURNS:
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


def _json_values(file: InputFile) -> Lines:
    """The objects of a list, or of a file that has them one after another, decoded as they come in.

    One that is broken ends the file: nothing says where the next begins.
    """
    decoder, line, chunk, passed = json.JSONDecoder(), 1, 2**16, 0

    def broken(problem: str, place: int) -> InvalidRow:
        """What is wrong at a place of ``text``; all from there on is kept."""
        start_byte = passed + len(text[:place].encode(errors="surrogateescape"))
        span = FileSpan(file=file, start=start_byte, size=None, is_line=False)
        return InvalidRow(f"broken JSON: {problem}; all after this place is lost", span)

    with (
        open_unpacked(file) as raw,
        io.TextIOWrapper(raw, "utf-8", errors="surrogateescape", newline="") as stream,
    ):
        text = stream.read(chunk)
        mark = text.startswith("\ufeff")
        at = len(text) - len(text[mark:].lstrip())
        inside = text.startswith("[", at)
        line += text.count("\n", 0, at)
        at += inside
        while True:
            start = _BETWEEN.match(text, at).end()  # type: ignore[union-attr]  # it matches nothing, too
            line += text.count("\n", at, start)
            if inside and text.startswith("]", start):
                if text[start + 1 :].strip() or stream.read(chunk).strip():
                    yield line, broken("more text after the list", start + 1)
                return
            try:
                value, at = decoder.raw_decode(text, start)
            except (ValueError, RecursionError) as error:
                more = stream.read(max(chunk, len(text) - start)) if len(text) - start <= ROW_LIMIT else ""
                if not more:
                    if inside or start < len(text):
                        yield line, broken(json_problem(error), start)
                    return
                passed += len(text[:start].encode(errors="surrogateescape"))
                text, at = text[start:] + more, 0
                continue
            yield line, _object_row(value, text[start:at])
            line += text.count("\n", start, at)


_BETWEEN = re.compile(r"[\s,]*")


def _object_row(value: Any, text: str) -> RowValue:
    if not isinstance(value, dict):
        return _not_a_row(value)
    return value if is_utf8(text) else InvalidRow("not UTF-8 text", _text_line(text))


def _not_a_row(value: Any) -> InvalidRow:
    return InvalidRow(NOT_A_ROW, json.dumps(value).encode())


def _text_line(text: str) -> bytes:
    """Text of another format as a line of JSON, with ``\\udc80`` to ``\\udcff`` for bytes that are not UTF-8."""
    return json.dumps(text).encode()


def _csv_rows(file: InputFile) -> Lines:
    """Comma or tab separated values under a header; in a ``.csv`` semicolons or tabs too, if its header has more."""
    csv.field_size_limit(ROW_LIMIT)
    record: list[str] = []  # the text of the row that is being read
    with (
        open_unpacked(file) as raw,
        io.TextIOWrapper(raw, "utf-8-sig", errors="surrogateescape", newline="") as stream,
    ):
        first = stream.readline(ROW_LIMIT)
        separator = "\t" if file.endings[1] == ".tsv" else max(",;\t", key=first.count)
        lines = itertools.chain([first], iter(partial(stream.readline, ROW_LIMIT), ""))
        cells = csv.reader(_recorded(lines, record), delimiter=separator, strict=True)
        header: list[str] | None = None
        while True:
            line = cells.line_num + 1
            record.clear()
            try:
                row = next(cells, None)
            except csv.Error as error:
                yield line, InvalidRow(f"broken CSV: {error}", _text_line("".join(record)))
                continue
            if row is None:
                return
            if not row:
                continue
            if header is None:
                header = row
                check_columns(file.name, [name for name in header if name.strip()])
            elif len(row) != len(header):
                problem = f"broken CSV: {len(row)} cells under a header of {len(header)}"
                yield line, InvalidRow(problem, _text_line("".join(record)))
            elif any(cell.strip() for cell in _lost_cells(header, row)):
                problem = "broken CSV: cells under two columns that have no name"
                yield line, InvalidRow(problem, _text_line("".join(record)))
            elif not is_utf8("".join(row)):
                yield line, InvalidRow("not UTF-8 text", _text_line("".join(record)))
            else:
                yield line, dict(zip(header, row, strict=True))


def _lost_cells(header: list[str], row: list[str]) -> list[str]:
    """Cells that another one replaces, under the same name."""
    last = {name: at for at, name in enumerate(header)}
    return [cell for at, (name, cell) in enumerate(zip(header, row, strict=True)) if last[name] != at]


def _recorded(lines: Iterator[str], record: list[str]) -> Iterator[str]:
    for line in lines:
        record.append(line)
        yield line


def _plain_lines(file: InputFile) -> Lines:
    """Each line that is not blank as a row with the column ``text``."""
    at = 0
    with open_unpacked(file) as stream:
        for number in itertools.count(1):
            raw = stream.readline(ROW_LIMIT)
            if not raw:
                return
            begin, at = at, at + len(raw)
            if len(raw) == ROW_LIMIT and not raw.endswith(b"\n"):
                while (overflow := stream.readline(ROW_LIMIT)) and not overflow.endswith(b"\n"):
                    at += len(overflow)
                at += len(overflow)
                span = FileSpan(file=file, start=begin, size=at - begin, is_line=False)
                yield number, InvalidRow(f"too long: over {ROW_LIMIT // 2**20} MiB", span)
                continue
            if number == 1:
                raw = raw.removeprefix(BOM)
            text = raw.decode(errors="surrogateescape").rstrip("\r\n")
            if text.strip():
                yield number, {"text": text} if is_utf8(text) else InvalidRow("not UTF-8 text", _text_line(text))


_TEXTS: dict[str, Callable[[InputFile], Lines]] = {
    ".jsonl": _lines_or_rows,
    ".ndjson": _lines_or_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".tsv": _csv_rows,
    ".txt": _plain_lines,
}
