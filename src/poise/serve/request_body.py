"""From a body's bytes to a request, with limits that hold before anything grows with what a stranger wrote.

All of it takes a time that grows with the body: it belongs in a worker, never on the event loop.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError

from poise.errors import RequestError
from poise.serve.request_faults import encodable, fault
from poise.steer.request_field import check_characters

__all__ = ["BodyLimits", "check_body", "json_pieces", "read_request"]

QUOTE, BACKSLASH, COMMA = b'"\\,'
HALF_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F]")  # also of those that another half makes complete
PIECE_ITEMS = 256  # items of a list that are written in one go
Body = TypeVar("Body", bound=BaseModel)


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyLimits:
    """Limits of a request's body.

    Attributes:
        body: Most bytes of JSON.
        upload: Most bytes of a vector file.
        depth: Deepest nesting of JSON.
        parts: Most objects and lists, and most strings, of JSON.
        items: Most items of all lists and objects of JSON together.
        seconds: Seconds within which a body must have come, and one more for each 64 KiB.
    """

    body: int = 4 * 2**20
    upload: int = 32 * 2**20
    depth: int = 32
    parts: int = 20_000
    items: int = 300_000
    seconds: float = 30.0


def check_body(body: bytes, limits: BodyLimits) -> None:
    """Refuse JSON that would keep a parser busy, before one meets it.

    Raises:
        RequestError: it is not UTF-8, is nested too deep, or has too many parts; says which.
    """
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(400, f"The body is not UTF-8 (byte {error.start}).", code="invalid_utf8") from error
    data = np.frombuffer(body, dtype=np.uint8)
    quotes = _quotes(data)
    outside = np.cumsum(quotes, dtype=np.uint8) % 2 == 0
    opens = ((data == ord("[")) | (data == ord("{"))) & outside
    closes = ((data == ord("]")) | (data == ord("}"))) & outside
    brackets = np.flatnonzero(opens | closes)
    depth = int(np.cumsum(np.where(opens[brackets], 1, -1)).max(initial=0))
    if depth > limits.depth:
        raise RequestError(400, f"The JSON is nested more than {limits.depth} deep.", code="too_deep")
    counts = (
        (int(opens.sum()), limits.parts, "objects and lists"),
        (int(quotes.sum()) // 2, limits.parts, "strings"),
        (int(((data == COMMA) & outside).sum()), limits.items, "items"),
    )
    for number, most, noun in counts:
        if number > most:
            text = f"The JSON has {number} {noun}; at most {most} are taken. Send it in several requests."
            raise RequestError(400, text, code="too_many_parts")


def _quotes(data: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Where strings begin and end: quotation marks without an odd number of backslashes before them."""
    quotes: np.ndarray[Any, np.dtype[np.bool_]] = data == QUOTE
    backslashes = np.flatnonzero(data == BACKSLASH)
    if len(backslashes):
        gaps = np.diff(backslashes) != 1
        starts, ends = backslashes[np.append(True, gaps)], backslashes[np.append(gaps, True)]
        escaped = ends[(ends - starts) % 2 == 0] + 1
        quotes[escaped[escaped < len(data)]] = False
    return quotes


def read_request(kind: type[Body], body: bytes, content_type: str) -> Body:
    """The request in a body that has been checked.

    Raises:
        RequestError: it is not JSON, or not such a request; names the field and the fault.
    """
    subtype = content_type.split(";")[0].strip().lower().removeprefix("application/")
    try:
        is_json = subtype == "json" or subtype.endswith("+json")
        data = json.loads(body.decode("utf-8-sig")) if body and is_json else None
    except (ValueError, RecursionError) as error:
        raise RequestError(400, "The body is not JSON.", code="invalid_json") from error
    if not isinstance(data, dict):
        text = "The request needs a JSON object as its body, with Content-Type: application/json."
        raise RequestError(400, text, code="invalid_value")
    try:
        request = kind.model_validate(data)
    except ValidationError as error:
        faults: Sequence[Any] = error.errors(include_url=False)
        raise fault([{**each, "loc": ("body", *each["loc"])} for each in faults], data) from error
    if HALF_CHARACTER.search(body):
        _check_all_characters(data)
    return request


def _check_all_characters(value: Any, *place: str | int) -> None:
    """Refuse halves of characters in every part, those that no field describes, such as schemas, included."""
    if isinstance(value, dict):
        for key, item in value.items():
            _check_all_characters(key, *place)
            _check_all_characters(item, *place, key)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            _check_all_characters(item, *place, number)
    elif isinstance(value, str):
        try:
            check_characters(value)
        except ValueError as error:
            param = encodable(".".join(map(str, place))) or None
            raise RequestError(400, f"{param or 'The request'}: {error}.", code="invalid_value", param=param) from error


def json_pieces(value: Any) -> Iterator[str]:
    """JSON in pieces, none of which holds the interpreter for long."""
    if isinstance(value, dict):
        yield "{"
        for number, (key, item) in enumerate(value.items()):
            yield f"{',' if number else ''}{_written(key)}:"
            yield from json_pieces(item)
        yield "}"
    elif isinstance(value, list) and len(value) > PIECE_ITEMS:
        for first in range(0, len(value), PIECE_ITEMS):
            yield "," if first else "["
            yield _written(value[first : first + PIECE_ITEMS])[1:-1]
        yield "]"
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        for number, item in enumerate(value):
            yield "," if number else "["
            yield from json_pieces(item)
        yield "]"
    else:
        yield _written(value)


def _written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
