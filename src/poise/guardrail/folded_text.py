"""Texts as they are compared, with the way back: what looks the same is the same, and each sign knows its place.

Width and compatibility forms fold as in NFKC; hyphens, quotation marks and digits as they are typed are ASCII's. Signs
without width and control characters go, and so do marks on Latin, Greek and Cyrillic letters that make no letter with
them, as in struck-through words; marks that other scripts write with stay. Letters that merely look alike, such as a
Cyrillic а, stay apart.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["FoldedText", "fold_text", "is_word_sign"]

WITHOUT_WIDTH = (  # what Unicode calls default ignorable, and control characters that are no spaces
    "\u0000-\u0008\u000e-\u001b\u007f-\u0084\u0086-\u009f"
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
HYPHENS, APOSTROPHES, QUOTES = (
    "\u2010\u2011\u2012\u2013\u2212\ufe63",
    "\u2018\u2019\u201b\u02bc",
    "\u201c\u201d\u201e\u201f",
)
AS_TYPED: Mapping[int, str] = {
    **{code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)},
    **dict.fromkeys((160, *range(8192, 8203), 8239, 8287, 12288), " "),
    **{code: str(unicodedata.decimal(chr(code))) for code in range(128, 0x20000) if chr(code).isdecimal()},
    **dict.fromkeys(map(ord, HYPHENS), "-"),
    **dict.fromkeys(map(ord, APOSTROPHES), "'"),
    **dict.fromkeys(map(ord, QUOTES), '"'),
}
"""Signs that are written as another one in ASCII, each for each, so that all keep their places."""
UNSEEN = re.compile(f"[{WITHOUT_WIDTH}]")
LETTERS_WITHOUT_MARKS = re.compile("[0-9A-Za-z\u00c0-\u024f\u0370-\u03ff\u0400-\u052f\u1e00-\u1fff]")
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
"""Scripts that write no spaces between words, in which any place may be a word's end."""


@dataclass(frozen=True, slots=True)
class FoldedText:
    """A folded text.

    Attributes:
        text: What is searched.
        places: Place in the original of each sign, and of the end; ``None`` where both have the same places.
        original: The text as it was.
    """

    text: str
    places: Sequence[int] | None
    original: str

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Where a part of the folded text was in the original."""
        if self.places is None:
            return start, end
        last = self.places[end - 1]
        after = next((p for p in itertools.islice(self.places, end, None) if p > last), len(self.original))
        return self.places[start], after


def fold_text(text: str, *, words: bool = False) -> FoldedText:
    """The text as patterns see it, or as words are compared: then case and the kind of space do not count either."""
    if not text.isascii():
        text = text.translate(AS_TYPED)
    if not UNSEEN.search(text) and (text.isascii() or _folds_to_itself(text)):
        folded = text.casefold() if words else text
        if len(folded) == len(text):  # folding a case only ever adds signs
            return _with_single_spaces(folded, text) if words else FoldedText(folded, None, text)
    signs: list[str] = []
    places: list[int] = []
    for piece in SIGN.finditer(text):
        start, chunk = piece.start(), piece.group()
        for sign in _folded(chunk, words=words):
            if words and sign == " " and signs and signs[-1] == " ":
                continue
            signs.append(sign)
            places.append(start)
    return FoldedText("".join(signs), [*places, len(text)], text)


def _with_single_spaces(folded: str, original: str) -> FoldedText:
    """Of a text with a sign for each of the original's: every run of spaces and line ends as one space."""
    if not RUN_OF_SPACES.search(folded):
        return FoldedText(SPACE.sub(" ", folded), None, original)
    pieces: list[str] = []
    places: list[int] = []
    reached = 0
    for run in RUN_OF_SPACES.finditer(folded):
        pieces.append(folded[reached : run.start() + 1])
        places += range(reached, run.start() + 1)
        reached = run.end()
    pieces.append(folded[reached:])
    return FoldedText(SPACE.sub(" ", "".join(pieces)), [*places, *range(reached, len(original) + 1)], original)


def is_word_sign(sign: str) -> bool:
    """Whether a sign goes on with the word beside it."""
    return (sign.isalnum() or sign == "_" or unicodedata.category(sign)[0] == "M") and not UNSPACED.match(sign)


def _folds_to_itself(text: str) -> bool:
    return unicodedata.is_normalized("NFKC", text) and not MARKED.search(text)


SPACE, RUN_OF_SPACES = re.compile(r"\s"), re.compile(r"\s\s+")
MARKED = re.compile("[\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]")
SIGN = re.compile(
    "(?s:.)[\u0300-\u036f\u0483-\u0489\u0591-\u05bd\u064b-\u065f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\u3099\u309a\ufe20-\ufe2f]*"
)


def _folded(chunk: str, *, words: bool) -> str:
    """One sign and its marks, folded."""
    if UNSEEN.fullmatch(chunk[0]):
        return _folded(chunk[1:], words=words) if len(chunk) > 1 else ""
    normal = unicodedata.normalize("NFKC", chunk)
    if len(normal) > 1 and LETTERS_WITHOUT_MARKS.match(normal):
        normal = "".join(s for s in normal if unicodedata.category(s) not in ("Mn", "Me"))
    if words:
        normal = normal.casefold().replace("i\u0307", "i")  # which a Turkish capital comes to
        if normal.isspace():
            return " "
    return normal
