"""Whether bytes are text of wide characters, UTF-16 or UTF-32, with or without the mark that says so."""

from __future__ import annotations

import codecs

__all__ = ["wide_encoding"]

_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_CONTROL_SHARE = 0.1  # more than this of a text are no control characters


def wide_encoding(head: bytes, *, is_json: bool) -> str:
    """The name, as iconv takes it, of a wide encoding that a text begins in; empty for any other bytes.

    Args:
        head: Its first bytes.
        is_json: Whether its first characters must be ASCII; a damaged line further down says nothing then.
    """
    if mark := next((mark for mark in _MARKS if head.startswith(mark)), b""):
        return _MARKS[mark]
    if not head or not (_is_odd(head) if not is_json else 0 in head[:2] and head[:4].isascii()):
        return ""
    if is_json and head[:4].count(0) < 3:
        return "utf-16be" if head[0] == 0 else "utf-16le"
    if len(head) > 3 and head[:4].count(0) == 3:
        return "utf-32le" if head[0] else "utf-32be"
    readings = {name: _share_of_text(head, name) for name in ("utf-16le", "utf-16be")}
    best = max(readings, key=readings.__getitem__)
    return best if readings[best] > 1 - _CONTROL_SHARE / 2 else ""


def _is_odd(head: bytes) -> bool:
    """Whether bytes would be no text as they stand: with a zero, or many control characters."""
    controls = sum(byte < 32 and byte not in b"\t\n\r\f\x1b" for byte in head)
    return 0 in head or controls > _CONTROL_SHARE * len(head)


def _share_of_text(head: bytes, encoding: str) -> float:
    """Which share of the characters are letters and signs in use; 0 where it cannot be read so."""
    text = codecs.getincrementaldecoder(encoding)(errors="replace").decode(head[: len(head) // 2 * 2])
    plain = sum(sign.isprintable() or sign in "\t\n\r\f" for sign in text if sign != "\ufffd")
    familiar = sum(sign.isascii() or sign.isalnum() for sign in text)
    return min(plain, familiar + len(text) // 5) / max(len(text), 1) + 1e-6 * sum(sign in " \n" for sign in text)
