"""Markdown to blocks under their headings, by markdown-it; the text of a block stays as it is written."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from poise.knowledge.documents import DocumentBlock, SourceDocument

__all__ = ["markdown_document"]

_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
_TITLE = re.compile(r"^title:\s*(.+)$", re.MULTILINE)


def markdown_document(name: str, text: str) -> SourceDocument:
    """A document whose title is that of its front matter, else its first heading of the first level, else ``name``."""
    title = ""
    if match := _FRONT_MATTER.match(text):
        stated = _TITLE.search(match[1])
        title = stated[1].strip().strip("\"'") if stated else ""
        text = text[match.end() :]
    blocks = list(_markdown_blocks(text))
    first = next((block.headings[0] for block in blocks if block.headings and block.headings[0]), "")
    return SourceDocument(title or first or name, "markdown", blocks)


def _markdown_blocks(text: str) -> Iterator[DocumentBlock]:
    from markdown_it import MarkdownIt

    lines = text.split("\n")
    levels: dict[int, str] = {}
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    for place, token in enumerate(tokens):
        if token.level != 0 or token.map is None:
            continue
        if token.type == "heading_open":
            depth = int(token.tag[1])
            levels = {level: words for level, words in levels.items() if level < depth}
            levels[depth] = _plain_heading(tokens[place + 1].content)
            if levels[depth] and _has_nothing_below(tokens, place + 3, depth):
                yield DocumentBlock(levels[depth], tuple(levels[level] for level in sorted(levels)))
            continue
        block = "\n".join(lines[token.map[0] : token.map[1]])
        yield DocumentBlock(block, tuple(levels[level] for level in sorted(levels)))


def _has_nothing_below(tokens: Sequence[Any], after: int, depth: int) -> bool:
    """Whether a heading says all there is, as in outlines: another one of its level follows, or nothing."""
    if after >= len(tokens):
        return True
    return tokens[after].type == "heading_open" and int(tokens[after].tag[1]) <= depth


def _plain_heading(text: str) -> str:
    """Without the marks of code, stress and links."""
    return re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", lambda match: match[1] or "", text).strip()
