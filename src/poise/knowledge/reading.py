"""Files to documents: Markdown, text, HTML, PDF, DOCX, CSV and JSONL. What cannot be read is said in a sentence."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from poise.errors import InvalidDocument
from poise.knowledge.documents import DocumentBlock, SourceDocument
from poise.knowledge.markdown import markdown_document
from poise.knowledge.office_files import docx_document, pdf_document
from poise.knowledge.web_pages import html_document

__all__ = ["DOCUMENT_ENDINGS", "LARGEST_DOCUMENT", "read_document"]

LARGEST_DOCUMENT = 256 * 2**20
LONGEST_LINE = 1_000_000
_TEXT_KEYS = ("text", "content", "body", "knowledge", "passage", "document")
_TITLE_KEYS = ("title", "heading", "name", "id")


def read_document(path: Path, data: bytes) -> SourceDocument:
    """The document in a file's bytes, by the ending of its name.

    Args:
        path: The file; it is not read again.
        data: What is in it.

    Raises:
        InvalidDocument: why it cannot be read. Rows and pages are read as the blocks are taken, so that taking them
            may raise this, too.
    """
    reader = _DOCUMENT_READERS.get(path.suffix.lower())
    if reader is None:
        raise InvalidDocument(f"its ending {path.suffix or '(none)'} is not one of {', '.join(DOCUMENT_ENDINGS)}")
    return reader(path, data)


def _text_of(data: bytes) -> str:
    """UTF-8, UTF-16 and UTF-32 with their marks, or Windows-1252 where all of it is that."""
    if data.startswith((b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff")):
        text = data.decode("utf-32", errors="replace")
    elif data.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = data.decode("utf-16", errors="replace")
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            if b"\x00" in data:
                raise InvalidDocument("it is binary data and not text") from error
            text = _western_text(data)
    if "\x00" in text:
        raise InvalidDocument("it is binary data and not text")
    for number, line in enumerate(text.split("\n"), 1):
        if len(line) > LONGEST_LINE:
            raise InvalidDocument(
                f"line {number} has {len(line):,} characters, and at most {LONGEST_LINE:,} are read; break it up"
            )
    return text


def _western_text(data: bytes) -> str:
    """Text as Windows-1252; other encodings of one byte cannot be told from it, those of several mostly can."""
    try:
        return data.decode("cp1252")
    except UnicodeDecodeError as error:
        raise InvalidDocument("its text is neither UTF-8 nor Windows-1252; save it as UTF-8") from error


def _plain(path: Path, data: bytes) -> SourceDocument:
    paragraphs = (DocumentBlock(part) for part in _with_line_feeds(_text_of(data)).split("\n\n"))
    return SourceDocument(path.name, "text", paragraphs)


def _markdown(path: Path, data: bytes) -> SourceDocument:
    return markdown_document(path.name, _with_line_feeds(_text_of(data)))


def _with_line_feeds(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _html(path: Path, data: bytes) -> SourceDocument:
    return html_document(path.name, data)


def _csv(path: Path, data: bytes) -> SourceDocument:
    text = _text_of(data)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else _delimiter(text)

    def rows() -> Iterator[tuple[int, Mapping[str, Any]]]:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, restkey="more")
        try:
            reader.fieldnames = _different_names(reader.fieldnames or ())
            yield from enumerate(reader, 1)
        except csv.Error as error:
            raise InvalidDocument(f"row {reader.line_num} cannot be read: {error}") from error

    return SourceDocument(path.name, "csv", (_row_block(n, row) for n, row in rows()))


def _different_names(names: Sequence[str]) -> list[str]:
    """Names of columns, numbered where one comes again, so that no column hides another."""
    different: list[str] = []
    for name in names:
        free = (f"{name} {number}" if number > 1 else name for number in count(1))
        different.append(next(one for one in free if one not in different))
    return different


def _delimiter(text: str) -> str:
    """What parts the names of columns: a comma, unless the first line has more of another."""
    header = re.sub(r'"[^"]*"', "", next((line for line in text.splitlines() if line.strip()), ""))
    return max(",;\t|", key=header.count)


def _jsonl(path: Path, data: bytes) -> SourceDocument:
    text = _text_of(data)

    def rows() -> Iterator[tuple[int, Mapping[str, Any]]]:
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InvalidDocument(f"line {number} is not JSON: {error}") from error
            yield number, row if isinstance(row, dict) else {"text": row}

    return SourceDocument(path.name, "jsonl", (_row_block(n, row) for n, row in rows()))


def _row_block(number: int, row: Mapping[str, Any]) -> DocumentBlock:
    """A row's text where a column is one, else every column with its name; a title becomes a heading."""
    text_key = next((key for key in _TEXT_KEYS if isinstance(row.get(key), str) and row[key].strip()), None)
    title = next((str(row[key]) for key in _TITLE_KEYS if isinstance(row.get(key), str | int)), "")
    if text_key is not None:
        return DocumentBlock(str(row[text_key]), (title,) if title else (), number)
    cells = (
        (key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for key, value in row.items()
        if value is not None and value != ""
    )
    return DocumentBlock("\n".join(f"{key}: {value}" for key, value in cells), (), number)


_DOCUMENT_READERS: dict[str, Callable[[Path, bytes], SourceDocument]] = {
    ".md": _markdown,
    ".markdown": _markdown,
    ".txt": _plain,
    ".rst": _plain,
    ".html": _html,
    ".htm": _html,
    ".pdf": lambda path, data: pdf_document(path.name, data),
    ".docx": lambda path, data: docx_document(path.name, data),
    ".docm": lambda path, data: docx_document(path.name, data),
    ".csv": _csv,
    ".tsv": _csv,
    ".jsonl": _jsonl,
}
DOCUMENT_ENDINGS = tuple(_DOCUMENT_READERS)
"""Endings of file names that are read."""
