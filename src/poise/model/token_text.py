"""A token by itself as text: distinct for distinct bytes, also where it is a part of a character."""

from __future__ import annotations

import codecs
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["byte_starts", "text_bytes", "token_text"]

BROKEN = "\N{REPLACEMENT CHARACTER}"
PREFIX = "bytes:"  # OpenAI's way to write a token that is no text
BYTES_TEXT = re.compile(r"bytes:((?:\\x[0-9a-f]{2})+)")
BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
SPACE_SIGN = "▁"  # what sentencepiece writes for a space


def token_text(tokenizer: Any, token: int) -> str:
    r"""The token's text, with the space that it begins with; ``bytes:\xe2\x80`` where it is a part of a character."""
    text = str(tokenizer.decode([token]))
    piece = tokenizer.convert_ids_to_tokens(token)
    if BROKEN in text and isinstance(piece, str) and (raw := _piece_bytes(piece)) is not None:
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return PREFIX + "".join(f"\\x{byte:02x}" for byte in raw)
    if isinstance(piece, str) and piece.startswith(SPACE_SIGN) and not text.startswith(" "):
        return f" {text}"
    return text


def text_bytes(text: str) -> bytes:
    """The bytes of what ``token_text`` gave."""
    if matched := BYTES_TEXT.fullmatch(text):
        return bytes.fromhex(matched[1].replace("\\x", ""))
    return text.encode()


def byte_starts(raw: Sequence[bytes], text: str) -> list[int]:
    """Character of a text at which each token's bytes begin; bytes that go on with a character begin where it does.

    Args:
        raw: Bytes of each token; none of one that the text leaves out.
        text: What they read together, each byte that is no part of a character replaced; it may lack the end, where a
            stop string cut it, or the space that it begins with.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    starts, characters = [], 0
    for one in raw:
        waits = bool(decoder.getstate()[0])
        begun = decoder.decode(one[:1])
        starts.append(characters + (waits and begun.startswith(BROKEN)))
        characters += len(begun) + len(decoder.decode(one[1:]))
    joined = b"".join(raw).decode(errors="replace")
    dropped = 0 if joined.startswith(text) else len(joined) - len(text)
    return [min(max(start - dropped, 0), len(text)) for start in starts]


def _piece_bytes(piece: str) -> bytes | None:
    """Bytes of a token as its vocabulary writes it: byte by byte, in GPT-2's alphabet or by number."""
    if number := BYTE_PIECE.fullmatch(piece):
        return bytes([int(number[1], 16)])
    alphabet = _byte_alphabet()
    return bytes(alphabet[c] for c in piece) if all(c in alphabet for c in piece) else None


@functools.cache
def _byte_alphabet() -> Mapping[str, int]:
    """GPT-2's characters for bytes: printable ones are themselves, the others follow from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}
