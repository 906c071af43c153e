"""PDF by pypdf and DOCX by python-docx, each checked before it is opened: what is packed, locked or has macros."""

from __future__ import annotations

import io
import logging
import zipfile
from collections.abc import Iterator

from poise.errors import InvalidDocument, MissingExtra, first_line
from poise.knowledge.documents import DocumentBlock, SourceDocument

__all__ = ["docx_document", "pdf_document"]

MOST_UNPACKED = 512 * 2**20
MOST_RATIO = 200  # documents pack to a tenth or so; a bomb to a thousandth
RATIO_FROM = 8 * 2**20  # smaller contents may repeat themselves


def pdf_document(name: str, data: bytes) -> SourceDocument:
    """A PDF, page by page.

    Raises:
        InvalidDocument: it is encrypted, broken, or has no text.
    """
    try:
        import pypdf
    except ImportError as error:
        raise MissingExtra.of("Reading PDF needs pypdf", "knowledge") from error
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it remarks on every oddity of a file
    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise InvalidDocument("it is encrypted and needs a password; save it without one")
        title = str((reader.metadata and reader.metadata.title) or "").strip()
        count = len(reader.pages)
    except InvalidDocument:
        raise
    except Exception as error:  # a parser's own faults are many, and the file's are what matters
        raise InvalidDocument(f"it cannot be read as PDF: {first_line(error)[:120]}") from error

    def pages() -> Iterator[DocumentBlock]:
        any_text = False
        for number in range(count):
            try:
                text = reader.pages[number].extract_text()
            except Exception as error:
                raise InvalidDocument(f"page {number + 1} cannot be read: {first_line(error)[:120]}") from error
            any_text = any_text or bool(text.strip())
            for part in text.split("\n\n"):
                yield DocumentBlock(part, (), number + 1)
        if not any_text:
            raise InvalidDocument(f"none of its {count} pages has text; it may be scanned, and needs OCR first")

    return SourceDocument(title or name, "pdf", pages())


def docx_document(name: str, data: bytes) -> SourceDocument:
    """A Word document, by its headings; tables row by row.

    Raises:
        InvalidDocument: it has macros, is packed to explode, encrypted or broken.
    """
    try:
        import docx
    except ImportError as error:
        raise MissingExtra.of("Reading DOCX needs python-docx", "knowledge") from error
    _check_package(data)
    try:
        document = docx.Document(io.BytesIO(data))
        blocks = list(_docx_blocks(document))
        title = str(document.core_properties.title or "").strip()
    except Exception as error:
        raise InvalidDocument(f"it cannot be read as DOCX: {first_line(error)[:120]}") from error
    first = next((block.headings[0] for block in blocks if block.headings), "")
    return SourceDocument(title or first or name, "docx", blocks)


def _check_package(data: bytes) -> None:
    """Look at the list of contents before anything is unpacked."""
    if data.startswith(b"\xd0\xcf\x11\xe0"):
        raise InvalidDocument("it is encrypted, or of Word before 2007; save it as .docx without a password")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as package:
            entries = package.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise InvalidDocument(f"it cannot be read as DOCX: {first_line(error)[:120]}") from error
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > MOST_UNPACKED or (unpacked > RATIO_FROM and unpacked > MOST_RATIO * len(data)):
        raise InvalidDocument(f"it unpacks from {len(data):,} to {unpacked:,} bytes, as a zip bomb does; not opened")
    if any(entry.filename.lower().endswith("vbaproject.bin") for entry in entries):
        raise InvalidDocument("it has macros; save it as .docx without them")


def _docx_blocks(document: object) -> Iterator[DocumentBlock]:
    levels: dict[int, str] = {}
    for item in document.iter_inner_content():  # type: ignore[attr-defined]
        if hasattr(item, "rows"):
            for row in item.rows:
                # A merged cell comes several times.
                cells = {cell._tc: " ".join(cell.text.split()) for cell in row.cells}
                if not any(cells.values()):
                    continue
                yield DocumentBlock(" | ".join(cells.values()), tuple(levels[level] for level in sorted(levels)))
            continue
        style, text = str(getattr(item.style, "name", "") or ""), item.text.strip()
        depth = 0 if style == "Title" else _heading_depth(style)
        if depth is not None and text:
            levels = {level: words for level, words in levels.items() if level < depth}
            levels[depth] = text
        elif text:
            yield DocumentBlock(text, tuple(levels[level] for level in sorted(levels)))


def _heading_depth(style: str) -> int | None:
    words = style.split()
    return int(words[1]) if len(words) == 2 and words[0] == "Heading" and words[1].isdigit() else None
