"""Whether a cell holds a copy of an answer: as it stands, marked up, cut, in pieces, or inside something longer."""

from __future__ import annotations

import contextlib
import html
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from poise.data.chat_markup import has_markup
from poise.data.columns import chat_kind

__all__ = ["cell_texts", "comparable_text", "holds_copy"]

LONG_ANSWER = 8  # characters of an answer that are its own wherever they stand
SHORT_ANSWER = 3  # characters of an answer that are its own where they stand as a word of a text
PIECE_LENGTH = 12  # characters of a piece of an answer that are its own, of three words at least
CUT_PIECE = 6  # of one that says that it is cut
DENSE_SCRIPTS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")  # scripts in which a word is a sign or two
HTML_TAG = re.compile(r"</?[a-z][^<>\n]{0,80}>", re.I)
JOINING_SIGNS = re.compile(r"['’‘ʼ`´*_~]")  # inside a word, or around words that are set off
CUT_END = re.compile(r"(?:…|\.\.\.)[\s\"'”’)\]]*\Z")


def holds_copy(value: Any, replaced: Sequence[str], questions: Sequence[str]) -> bool:
    """Whether a cell holds an answer that was replaced, or a piece of it, in any case, spacing, signs or markup.

    A short answer inside a longer text counts as a word of it; one of a letter or two only where that text is a chat, a
    filled-in template, or has the question as well: ``4`` is part of many an id.

    Args:
        value: The cell.
        replaced: The answers, as they stood.
        questions: The questions, as ``comparable_text`` gives them: a copy of one is none of an answer.
    """
    texts = list(cell_texts(value))
    chat = bool(chat_kind(value)) or any(map(has_markup, texts))
    pairs = [(comparable_text(text), bool(CUT_END.search(text))) for text in texts]
    for answer in filter(None, map(comparable_text, replaced)):
        is_word = re.compile(rf"(?<!\w){re.escape(answer)}(?!\w)")
        for text, cut in pairs:
            if (
                text == answer
                or (len(answer) >= LONG_ANSWER and answer in text)
                or _is_piece(text, answer, questions, cut=cut)
            ):
                return True
            render = chat or any(question and question in text for question in questions)
            if (render or (len(answer) >= SHORT_ANSWER and " " in text)) and is_word.search(text):
                return True
    return False


def _is_piece(text: str, answer: str, questions: Sequence[str], *, cut: bool) -> bool:
    """Whether a text is a part of an answer that is long enough to be none by chance, and stands in no question."""
    if text not in answer or any(text in question for question in questions):
        return False
    if cut and len(text) >= CUT_PIECE and answer.startswith(text):
        return True
    words = len(text.split()) + len(DENSE_SCRIPTS.findall(text)) // 2
    return words >= 3 and len(text) >= (PIECE_LENGTH if text.isascii() else CUT_PIECE)


def cell_texts(value: Any) -> Iterator[str]:
    """Every text in a cell, however deep, also as a key, in JSON text, and in texts that are kept in pieces."""
    if isinstance(value, str):
        yield value
        if value.lstrip()[:1] in ("[", "{"):
            with contextlib.suppress(ValueError, RecursionError):
                yield from cell_texts(json.loads(value))
    elif isinstance(value, bytes):
        yield value.decode(errors="ignore")
    elif isinstance(value, Mapping):
        yield from (str(key) for key in value if len(str(key)) >= LONG_ANSWER)
        yield from _joined_texts([*value.values()])
        yield from (text for inner in value.values() for text in cell_texts(inner))
    elif isinstance(value, list | tuple):
        yield from _joined_texts(value)
        yield from (text for inner in value for text in cell_texts(inner))
    elif value is not None and not isinstance(value, bool):
        yield str(value)


def _joined_texts(items: Sequence[Any]) -> Iterator[str]:
    """Texts that stand one after another as one, whether they are items of a list or each in an object of its own."""
    if len(items) > 1 and all(isinstance(inner, str) for inner in items):
        yield "".join(items)
        yield " ".join(items)
    elif len(items) > 1 and all(isinstance(inner, Mapping) for inner in items):
        for key in dict.fromkeys(key for inner in items for key in inner):
            if all(isinstance(inner.get(key), str) for inner in items):
                yield "".join(inner[key] for inner in items)
                yield " ".join(inner[key] for inner in items)


def comparable_text(text: str) -> str:
    """A text without what tells apart two copies of it: case, spacing, punctuation, markup, entities, forms."""
    plain = unicodedata.normalize("NFKC", HTML_TAG.sub(" ", html.unescape(text))).casefold()
    plain = "".join(sign for sign in JOINING_SIGNS.sub("", plain) if unicodedata.category(sign) != "Cf")
    words = " ".join("".join(sign if sign.isalnum() or _is_mark(sign) else " " for sign in plain).split())
    return words or " ".join(text.casefold().split())


def _is_mark(sign: str) -> bool:
    """Whether a sign belongs to the letter before it, or stands for something by itself, as an emoji does."""
    return unicodedata.category(sign) in ("Mn", "Mc", "So")
