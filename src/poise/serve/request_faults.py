"""The faults of requests as sentences."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from poise.errors import RequestError
from poise.settings import describe_value, shown_value
from poise.settings.faults import SHAPE_FAULTS, fault_of_shapes

__all__ = ["encodable", "fault"]

ONLY_HARMLESS = frozenset(
    {
        *("audio", "background", "best_of", "frequency_penalty", "function_call", "functions", "logit_bias"),
        *("modalities", "presence_penalty", "store", "suffix", "truncation", "web_search_options"),
    }
)
"""Fields of OpenAI's requests that are taken where they ask for nothing."""


def fault(errors: Sequence[Any], body: Any = None) -> RequestError:
    """What is wrong with a request that does not validate: all fields that are not supported, else the first fault.

    Args:
        errors: What pydantic found, each with where it stands in the request.
        body: Body of the request; with it names of fields are told from those of shapes that pydantic tried.
    """
    if unsupported := _unsupported(errors, body):
        are = "is" if len(unsupported) == 1 else "are"
        it = "it" if len(unsupported) == 1 else "them"
        names = ", ".join(unsupported[:-1]) + (" and " if unsupported[1:] else "") + unsupported[-1]
        text = f"{encodable(names)} {are} not supported here; leave {it} out."
        return RequestError(400, text, code="unsupported", param=encodable(unsupported[0]))
    same = [e for e in errors if e["loc"][:2] == errors[0]["loc"][:2]]
    # Of what may have several shapes, the one that it is nearest to.
    first = max(same, key=lambda e: (len(e["loc"]), not e["type"].endswith("_type")))
    shapes = [e for e in same if e["type"] in SHAPE_FAULTS and _field_name(e, body) == _field_name(first, body)]
    if first["type"] in SHAPE_FAULTS and len(shapes) > 1:
        first = fault_of_shapes(shapes)
    place = first.get("ctx", {}).get("place", ())
    param = _field_name(first, body) or None
    if first["type"].startswith("json"):
        return RequestError(400, "The body is not JSON.", code="invalid_json")
    if not param and first["loc"][:1] == ("body",) and first["type"] in ("model_attributes_type", "missing"):
        text = "The request needs a JSON object as its body, with Content-Type: application/json."
    elif first["loc"][-1:] == ("[key]",):
        param = ".".join((param or "").split(".")[:-1]) or None
        text = f"{encodable(param)}: the name {shown_value(first['input'])} {encodable(describe_value(first))}."
    else:
        colon = ":" if first["type"] == "value_error" and not place else ""
        text = f"{encodable(param) or 'The request'}{colon} {encodable(describe_value(first))}."
    return RequestError(400, text, code="invalid_value", param=encodable(param))


def _unsupported(errors: Sequence[Any], body: Any) -> list[str]:
    """Fields that are not known, and those of OpenAI's that may only have the value that changes nothing."""
    names = []
    for error in errors:
        if error["type"] == "extra_forbidden":
            names.append(_field_name(error, body))
        elif error["loc"][:1] == ("body",) and error["loc"][1:2] and error["loc"][1] in ONLY_HARMLESS:
            names.append(error["loc"][1])
    return list(dict.fromkeys(names))


def _field_name(error: Any, body: Any) -> str:
    """The field that a fault is of, followed through the body: what is not there is the name of a shape."""
    loc, place = error["loc"], error.get("ctx", {}).get("place", ())
    if body is None or loc[:1] != ("body",):
        return ".".join(str(part) for part in (*loc, *place) if _is_field(part))
    parts, value = list[str | int](), body
    for number, part in enumerate(loc[1:], start=2):
        in_list = isinstance(value, list) and isinstance(part, int) and part < len(value)
        if in_list or (isinstance(value, dict) and part in value):
            parts.append(part)
            value = value[part]
        elif error["type"] == "missing" and number == len(loc):
            parts.append(part)
    return ".".join(map(str, (*parts, *place)))


def _is_field(part: str | int) -> bool:
    """Rather than the place in the request or the name of a shape that pydantic tried."""
    shapes = {"body", "query", "path", "str", "int", "bool", "float"}
    return isinstance(part, int) or (part not in shapes and re.fullmatch(r"[a-z0-9_]+", part) is not None)


def encodable(text: str | None) -> str | None:
    """What can be written in any answer: a request may hold halves of characters."""
    return None if text is None else text[:300].encode("utf-8", "replace").decode()
