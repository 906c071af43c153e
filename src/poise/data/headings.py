"""Headings of a document that read like the names of speakers: ``## System``, ``## User``, ``### Response``."""

from __future__ import annotations

import re
from collections.abc import Sequence

from poise.data.markup_styles import HASH_MARK, role_of_mark

__all__ = ["are_headings"]

_HEADING = re.compile(r"^(#{1,6})[ \t]+\S", re.M)


def are_headings(text: str, marks: Sequence[re.Match[str]] = ()) -> bool:
    """Whether what looks like marks of turns are headings of a document.

    Marks of turns have a colon, or begin a text in which an answer follows a question. A heading before them, or one of
    the same rank between two signs, makes a document of it.

    Args:
        text: The text.
        marks: Matches of ``HASH_MARK`` in it; looked for where they are left out.
    """
    marks = marks or list(HASH_MARK.finditer(text))
    if not marks or any(":" in mark[0] for mark in marks):
        return False
    roles = [role_of_mark(mark[1]) for mark in marks]
    if "user" not in roles or "assistant" not in roles[roles.index("user") :]:
        return True
    preamble = text[: marks[0].start()].strip()
    if marks[0][0].startswith("###"):
        return bool(_HEADING.search(preamble))
    starts = {mark.start() for mark in marks}
    return bool(preamble) or any(
        len(heading[1]) <= 2 and heading.start() not in starts for heading in _HEADING.finditer(text)
    )
