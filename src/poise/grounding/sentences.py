"""Texts to sentences and sources to passages, by their characters alone."""

from __future__ import annotations

import re

__all__ = ["Span", "split_passages", "split_sentences"]

Span = tuple[int, int]
PASSAGE_CHARACTERS = 600  # about a hundred words
ABBREVIATIONS = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|etc|e\.g|i\.e|cf|No|Fig|Nr|bzw|ca|Inc|Ltd|Co|Corp|U\.S|U\.K|a\.m|p\.m)"
    r"|\b[A-Z])\.$"
)
STOP = re.compile(r"[.!?…]+[\"'”’»)\]]*(?=\s|$|[A-Z“\"])|[。！？]+[」』”]?|\n+")


def split_sentences(text: str) -> list[Span]:
    """First character of each sentence, and the one after its last; spaces between them are in none.

    A line ends a sentence too. A full stop after an abbreviation or an initial ends none, nor does one in a number.
    """
    spans: list[Span] = []
    start = 0
    for match in STOP.finditer(text):
        if match.group() == "." and _is_abbreviation(text[start : match.end()], text[match.end() : match.end() + 1]):
            continue
        _add_span(spans, text, start, match.end())
        start = match.end()
    _add_span(spans, text, start, len(text))
    return spans


def split_passages(source: str) -> list[str]:
    """A source in its paragraphs; longer ones in runs of sentences of about a hundred words."""
    passages: list[str] = []
    for paragraph in re.split(r"\n\s*\n", source):
        first: int | None = None
        reached = 0
        for start, end in split_sentences(paragraph):
            if first is not None and end - first > PASSAGE_CHARACTERS:
                passages.append(paragraph[first:reached])
                first = None
            first, reached = start if first is None else first, end
        if first is not None:
            passages.append(paragraph[first:reached])
    return passages


def _is_abbreviation(before: str, after: str) -> bool:
    """Whether a full stop is that of an abbreviation, or stands in a name such as U.N."""
    return bool(ABBREVIATIONS.search(before)) or (bool(after.strip()) and not before[-2:-1].islower())


def _add_span(spans: list[Span], text: str, start: int, end: int) -> None:
    """The part without the spaces around it, where it holds a letter or a digit."""
    part = text[start:end]
    if any(character.isalnum() for character in part):
        spans.append((start + len(part) - len(part.lstrip()), end - (len(part) - len(part.rstrip()))))
