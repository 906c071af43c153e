"""Texts that a command line gives: as they stand, in a file named after an @, or on standard input."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from poise.errors import InvalidArgument

__all__ = ["MOST_BYTES", "decode_text", "given_file", "given_text", "given_texts", "parse_schema"]

MOST_BYTES = 8 * 2**20


def given_texts(arguments: Sequence[str]) -> list[str]:
    """The texts of arguments: ``@FILE`` is what a file holds, ``-`` is standard input, ``@@`` begins a text with an @.

    Raises:
        InvalidArgument: a file is missing, too large, empty or not UTF-8, or standard input is asked for twice.
    """
    if arguments.count("-") > 1:
        raise InvalidArgument(
            "Standard input can be read once, and - is given twice; write one of the texts to a file."
        )
    return [given_text(argument) for argument in arguments]


def given_text(argument: str) -> str:
    """One of them."""
    if argument.startswith("@@"):
        return argument[1:]
    if argument == "-":
        if sys.stdin is None or sys.stdin.isatty():
            raise InvalidArgument("Nothing is piped into standard input; write it as in: cat prompt.txt | poise …")
        return _checked(decode_text(sys.stdin.buffer.read(MOST_BYTES + 1), "Standard input"), "Standard input")
    if not argument.startswith("@"):
        return argument
    return _text_of_file(argument[1:], f" A text that begins with @ itself is written with two: @{argument[:40]}")


def given_file(name: str) -> str:
    """What a file holds, given as its name, with an @ before it or without, or ``-`` for standard input.

    Raises:
        InvalidArgument: it is missing, too large, empty or not UTF-8.
    """
    return given_text(name) if name == "-" else _text_of_file(name.removeprefix("@"))


def _text_of_file(name: str, hint: str = " Give the path of a file that is there.") -> str:
    path = Path(name)
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise InvalidArgument(f"{path} has {size:,} bytes, and at most {MOST_BYTES:,} are read; give it in parts.")
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)  # a pipe has no size
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InvalidArgument(f"Cannot read {path}: {reason}.{hint}") from error
    return _checked(decode_text(data, str(path)), str(path))


def parse_schema(text: str, name: str) -> dict[str, Any]:
    """A JSON Schema.

    Args:
        text: What a file holds.
        name: Name of the file, as it was given.

    Raises:
        InvalidArgument: it is not JSON, or no object; names the line.
    """
    source = "Standard input" if name == "-" else name.removeprefix("@")
    try:
        schema = json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidArgument(
            f"{source} is not JSON (line {error.lineno}: {error.msg}); write a JSON Schema, such as "
            '{"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}.'
        ) from error
    except RecursionError as error:
        raise InvalidArgument(f"{source} is nested too deeply; write the schema's parts under $defs.") from error
    if not isinstance(schema, dict):
        raise InvalidArgument(f"{source} is no JSON Schema: it holds no object; write one in braces.")
    return schema


def decode_text(data: bytes, name: str) -> str:
    """UTF-8 text, without the mark of byte order.

    Raises:
        InvalidArgument: it is longer than ``MOST_BYTES``, or not UTF-8.
    """
    if len(data) > MOST_BYTES:
        raise InvalidArgument(f"{name} has more than {MOST_BYTES:,} bytes; give it in parts.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidArgument(
            f"{name} is not UTF-8 text (byte {error.start}: {error.reason}); write it as UTF-8, whole."
        ) from error


def _checked(text: str, name: str) -> str:
    """Without the line's end that editors put last."""
    if not text.strip():
        raise InvalidArgument(f"{name} is empty; put the text into it.")
    return text.removesuffix("\n").removesuffix("\r")
