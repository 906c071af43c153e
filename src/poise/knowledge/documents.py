"""What a document is once it is read: blocks of text under their headings, and the pieces that are searched."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from poise.knowledge.instructions import instruction_marks

__all__ = ["Chunk", "DocumentBlock", "SourceDocument", "chunks_of", "whole_characters"]

_HALF = re.compile("[\ud800-\udfff]")
_BOUNDARIES = tuple(re.compile(pattern) for pattern in (r"\n\s*\n", r"\n", r"(?<=[.!?…。！？])\s+", r"\s+"))


@dataclass(frozen=True, slots=True)
class DocumentBlock:
    """A paragraph, list, table or row.

    Attributes:
        text: What it says.
        headings: Those that it stands under, outermost first.
        page: Page of a PDF or row of a table, from 1.
    """

    text: str
    headings: tuple[str, ...] = ()
    page: int | None = None


@dataclass(frozen=True, slots=True)
class SourceDocument:
    """A file's text.

    Attributes:
        title: Its title, or the name of its file.
        kind: The format that it was read as.
        blocks: Its text in order; rows and pages come as they are read.
    """

    title: str
    kind: str
    blocks: Iterable[DocumentBlock]


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a document that is embedded and found as one.

    Attributes:
        text: What it says, verbatim but for spaces.
        title: The document's.
        headings: Those that it stands under, outermost first.
        page: Page or row, from 1.
        ordinal: Its place in the document, from 0.
        marks: What in it reads as an instruction to a model.
    """

    text: str
    title: str
    headings: tuple[str, ...]
    page: int | None
    ordinal: int
    marks: tuple[str, ...]

    @property
    def embedded_text(self) -> str:
        """What is embedded: where it stands, and what it says."""
        place = " > ".join(dict.fromkeys((self.title, *self.headings)))
        return f"{place}\n{self.text}" if place else self.text


def chunks_of(document: SourceDocument, size: int) -> Iterator[Chunk]:
    """Pieces of at most ``size`` characters that cross no heading and no page.

    What stands under one heading is cut at a blank line, else a line, else a sentence, else a space, the latest that
    fits.
    """
    ordinal, title = 0, whole_characters(document.title)
    for block in _joined_blocks(document.blocks):
        for text in _cut(block.text, size):
            yield Chunk(text, title, block.headings, block.page, ordinal, instruction_marks(text))
            ordinal += 1


def _joined_blocks(blocks: Iterable[DocumentBlock]) -> Iterator[DocumentBlock]:
    """Neighbours under the same headings and on the same page, as one."""
    for (headings, page), group in groupby(blocks, key=lambda block: (block.headings, block.page)):
        texts = [text for block in group if (text := whole_characters(block.text).strip("\n"))]
        yield DocumentBlock("\n\n".join(texts), tuple(map(whole_characters, headings)), page)


def whole_characters(text: str) -> str:
    """Without halves of characters, which JSON can hold and no file of text can."""
    return text if _HALF.search(text) is None else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _cut(text: str, size: int) -> Iterator[str]:
    start = 0
    while len(text) - start > size:
        end = _boundary(text, start, size)
        if piece := text[start:end].strip():
            yield piece
        start = end
    if piece := text[start:].strip():
        yield piece


def _boundary(text: str, start: int, size: int) -> int:
    """Where to cut: the latest boundary of the best kind in the second half of what fits."""
    window = text[start : start + size]
    for pattern in _BOUNDARIES:
        ends = [match.end() for match in pattern.finditer(window) if match.end() >= size // 2]
        if ends:
            return start + ends[-1]
    return start + size
