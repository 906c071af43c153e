r"""What stands in JSON, as whoever reads it will see it: of ``Dear\nrival bank`` the words, and no ``nrival``."""

from __future__ import annotations

import re

from poise.guardrail.folded_text import FoldedText

__all__ = ["ends_in_string", "stands_for_a_number", "unescaped_text"]

HIGH_HALF, LOW_HALF = r"[dD][89abAB][0-9a-fA-F]{2}", r"[dD][c-fC-F][0-9a-fA-F]{2}"  # halves of a character
JSON_ESCAPE = re.compile(rf'\\(?:(["\\/bfnrt])|u({HIGH_HALF})\\u({LOW_HALF})|u([0-9a-fA-F]{{4}}))')
SHORT_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
JSON_QUOTE = re.compile(r'(?<!\\)(?:\\\\)*"')
BEFORE_VALUE = re.compile(r'(?:"\s*:|\[(?:[^\]]*,)?)\s*$')
JSON_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")


def unescaped_text(text: str) -> FoldedText | None:
    """The text with what its JSON escapes stand for, and the way back; ``None`` where it has none."""
    if "\\" not in text or not JSON_ESCAPE.search(text):
        return None
    pieces: list[str] = []
    places: list[int] = []
    reached = 0
    for escape in JSON_ESCAPE.finditer(text):
        pieces += [text[reached : escape.start()], _escaped_sign(escape)]
        places += range(reached, escape.start())
        places += [escape.start()] * len(pieces[-1])
        reached = escape.end()
    return FoldedText("".join([*pieces, text[reached:]]), [*places, *range(reached, len(text) + 1)], text)


def _escaped_sign(escape: re.Match[str]) -> str:
    short, high, low, code = escape.groups()
    if short:
        return SHORT_ESCAPES.get(short, short)
    if high:
        return chr(0x10000 + ((int(high, 16) - 0xD800) << 10) + int(low, 16) - 0xDC00)
    sign = chr(int(code, 16))
    return escape.group() if "\ud800" <= sign <= "\udfff" else sign  # half a character stays as it is written


def ends_in_string(text: str, *, began: bool = False) -> bool:
    """Whether JSON that has been written so far is within a string, which no line end is in.

    Args:
        text: What has been written.
        began: Whether it began within one.
    """
    line, within = text.rpartition("\n")[2], began and "\n" not in text
    return within ^ bool(len(JSON_QUOTE.findall(line)) % 2)


def stands_for_a_number(match: str, before: str) -> bool:
    """Whether a part of a text is a number by itself in JSON, where it is in no string.

    Args:
        match: The part.
        before: What stands before it.
    """
    return bool(JSON_NUMBER.fullmatch(match) and BEFORE_VALUE.search(before))
