"""What pydantic finds wrong, in plain words: the field, its value and the limit, or the name that was meant."""

from __future__ import annotations

import difflib
import re
import reprlib
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError

from poise.errors import InvalidArgument, UserError
from poise.settings.other_names import place_as_written

__all__ = [
    "SHAPE_FAULTS",
    "describe_fault",
    "describe_value",
    "fault_of_shapes",
    "first_fault",
    "is_of_a_key",
    "merged_faults",
    "placed_fault",
    "plain_error",
    "shown_value",
]


def placed_fault(text: str, *place: str | int) -> PydanticCustomError:
    """What a check of several settings together, which raises it, finds wrong with one; ``place`` leads to that one."""
    return PydanticCustomError("value_error", "{error}", {"error": text, "place": place})


def plain_error(
    error: ValidationError, kind: type[BaseModel], written: Mapping[str, str] = MappingProxyType({})
) -> UserError:
    """What pydantic found, as the error that ``kind`` names, in one sentence; ``written``: names that were given."""
    places = [fault | {"loc": place_as_written(fault["loc"], written)} for fault in merged_faults(error)]
    faults = dict.fromkeys(describe_fault(fault, kind) for fault in places)
    error_type: type[UserError] = getattr(kind, "user_error", InvalidArgument)
    return error_type(f"{kind.__name__}: {'; '.join(faults)}; fix it and try again.")


def is_of_a_key(fault: Mapping[str, Any]) -> bool:
    """Whether a fault is of a key that YAML does not read as text."""
    last = fault["loc"][-1] if fault["loc"] else ""
    unknown = fault["type"] in ("extra_forbidden", "string_type") and not isinstance(last, str)
    return unknown or fault["type"] == "invalid_key"


def merged_faults(error: ValidationError) -> list[dict[str, Any]]:
    """The faults that pydantic found, one for each mistake: of a choice of shapes, only what was meant is judged."""
    faults: list[dict[str, Any]] = []
    for details in error.errors():
        fault: dict[str, Any] = dict(details)
        if fault["type"] == "too_short" and len(fault["input"]) >= fault["ctx"]["min_length"]:
            continue  # pydantic leaves out the entries that are wrong themselves
        fault["loc"] = (*fault["loc"], *fault.get("ctx", {}).get("place", ()))
        faults.append(fault)
    tags = [next((i for i, part in enumerate(fault["loc"]) if _is_union_member(part)), None) for fault in faults]
    unions = {fault["loc"][:at] for fault, at in zip(faults, tags, strict=True) if at is not None}
    merged: list[dict[str, Any]] = []
    choices: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for fault in faults:
        place = fault["loc"]
        union = next((place[:at] for at in range(len(place)) if place[:at] in unions), None)
        if union is not None:
            place = (*union, *place[len(union) + 1 :])  # what follows a union's place is a shape's name
        fault["loc"] = tuple(part for part in place if not _is_union_member(part))
        if union is None:
            merged.append(fault)
        else:
            choices.setdefault(union, []).append(fault)
    return merged + [_meant_fault(choice, len(place)) for place, choice in choices.items()]


def _is_union_member(part: int | str) -> bool:
    return isinstance(part, str) and UNION_MEMBER.match(part) is not None


def _meant_fault(faults: Sequence[dict[str, Any]], depth: int) -> dict[str, Any]:
    """Of the faults that each of some shapes finds, that of the shape that was meant; else one that names them all."""
    words = [fault for fault in faults if fault["type"] == "literal_error"]
    others = [fault for fault in faults if fault["type"] != "literal_error"]
    if words and (not others or all(isinstance(fault["input"], str) for fault in words)):
        return words[0]
    for fault in others:
        if len(fault["loc"]) > depth or fault["type"] not in SHAPE_FAULTS:
            return fault
    return fault_of_shapes(others) if others[1:] else others[0]


def fault_of_shapes(faults: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of the faults that a value has none of some shapes, one that names them all."""
    shapes = [LIMITS[name].split(";")[0] for fault in faults for name in SHAPES if fault["type"] in LIMIT_FAULTS[name]]
    return {**faults[0], "type": "no_shape", "ctx": {"shapes": ", or ".join(dict.fromkeys(shapes))}}


def describe_fault(fault: Mapping[str, Any], kind: type[BaseModel]) -> str:
    """One fault that pydantic found, in plain words: the field, its value and the limit, or the name that was meant."""
    place, kind_of_fault, context = fault["loc"], fault["type"], fault.get("ctx", {})
    field = ".".join(map(str, place)) or "the settings"
    if kind_of_fault == "extra_forbidden":
        if ours := getattr(kind, "other_names", {}).get(field):
            return f"{field} is another name of {ours}, which is there as well; keep one"
        if remedy := getattr(kind, "refused_names", {}).get(field):
            return f"{field} is not supported: {remedy}"
        near = _names_like(str(place[-1]), _fields_at(kind, place[:-1]))
        return f"{field} is an unknown setting" + (f", did you mean {near[0]}?" if near else "")
    if kind_of_fault == "value_error":
        return f"{field if place else ''} {context.get('error', fault['msg'])!s}".strip()
    if kind_of_fault == "repeated_question":
        return str(fault["msg"])
    return f"{field} {describe_value(fault)}"


def first_fault(error: ValidationError, kind: type[BaseModel]) -> str:
    """The first fault that pydantic found, in plain words."""
    fault = merged_faults(error)[0]
    if fault["type"] == "json_invalid":
        return f"it is not JSON ({fault['ctx']['error']})"
    if fault["type"] == "value_error" and fault["loc"]:
        return f"{'.'.join(map(str, fault['loc']))}: {describe_value(fault)}"
    return describe_fault(fault, kind)


def describe_value(fault: Mapping[str, Any]) -> str:
    """What pydantic found wrong with one value, in plain words that follow its name."""
    kind_of_fault, context = fault["type"], fault.get("ctx", {})
    if kind_of_fault in ("value_error", "assertion_error"):
        return str(context.get("error", fault["msg"])).removesuffix(".")
    value = shown_value(fault["input"])
    if kind_of_fault == "float_type" and isinstance(fault["input"], int) and not isinstance(fault["input"], bool):
        kind_of_fault = "int_parsing_size"  # in a list or a mapping; a float cannot hold it
    if kind_of_fault == "literal_error" and isinstance(fault["input"], str):
        near = _choices_like(fault["input"], re.findall(r"'([^']*)'", context["expected"]))
        hint = f", did you mean {near[0]}?" if near else ""
        return f"is {value}; it must be {context['expected']}{hint}"
    if kind_of_fault in ("string_too_long", "too_long"):
        noun = "characters" if isinstance(fault["input"], str) else "entries"
        most = context["max_length"]
        return f"has {len(fault['input'])} {noun}; at most {most} are taken" if most else "must be empty"
    if kind_of_fault == "too_short" and isinstance(fault["input"], str):
        return "is empty"
    if kind_of_fault == "string_pattern_mismatch":
        return f"is {value}; use {PATTERNS.get(context['pattern'], 'what matches ' + context['pattern'])}"
    if kind_of_fault == "union_tag_invalid":
        return f"is of the type {shown_value(context['tag'])}; the types are {context['expected_tags']}"
    if kind_of_fault == "union_tag_not_found":
        return f"lacks its {context['discriminator']}, which says what it is"
    if kind_of_fault == "no_shape":
        return f"is {value}; it must be {context['shapes']}"
    for name, words in LIMITS.items():
        if kind_of_fault in LIMIT_FAULTS[name]:
            return f"is {value}; it must be {words.format(**context)}"
    return FAULTS.get(kind_of_fault, "is {value}, which cannot be used").format(value=value)


def _choices_like(given: str, choices: Sequence[str]) -> list[str]:
    """The choice that was meant, if one is near: the same in other letters, else the one that is spelt most alike."""
    by_fold = {choice.casefold(): choice for choice in choices}
    near = difflib.get_close_matches(given.casefold(), by_fold, n=1)
    return [by_fold[name] for name in near]


def shown_value(value: Any) -> str:
    """A value in few characters, however large."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python writes no longer numbers
        return f"a number of more than {sys.get_int_max_str_digits():,} digits"


FAULTS = {
    "missing": "is missing",
    "string_too_short": "is empty",
}
PATTERNS = {
    "^[a-z0-9][a-z0-9_-]{0,63}$": "up to 64 lower-case letters, digits, hyphens and underscores",
    "^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$": "up to 64 letters, digits, hyphens and underscores",
    r"^(served|endpoint:\S+)$": "served for the served model, or endpoint: with a model's name, as in endpoint:NAME",
    "^[a-zA-Z0-9_.-]+$": "up to 64 letters, digits, dots, hyphens and underscores",
    "^https?://": "a URL that begins with http:// or https://",
    "^[A-Z]{2}$": "a country's two capital letters, such as GB",
}
"""What the patterns of names ask for, in words."""
UNION_MEMBER = re.compile(r"(literal|tuple|list|dict|function-\w+|constrained-\w+|nullable)\[|\[key\]$")
LIMIT_FAULTS = {
    "number": ("int_parsing", "int_type", "int_from_float", "float_parsing", "float_type"),
    "size": ("int_parsing_size",),
    "finite": ("finite_number",),
    "text": ("string_type",),
    "flag": ("bool_parsing", "bool_type"),
    "list": ("tuple_type", "list_type", "set_type"),
    "mapping": ("model_type", "dict_type", "model_attributes_type"),
    "choice": ("literal_error",),
    "least": ("greater_than_equal",),
    "more": ("greater_than",),
    "most": ("less_than_equal",),
    "less": ("less_than",),
    "entries": ("too_short",),
    "none": ("none_required",),
}
SHAPES = ("number", "text", "flag", "list", "mapping")
SHAPE_FAULTS = {kind for name in SHAPES for kind in LIMIT_FAULTS[name]}
"""What is wrong with a value that has none of the shapes that a setting may have."""
LIMITS = {
    "number": "a number (a whole one where things are counted)",
    "size": "a number of 64 bits, at most 9.2e18",
    "finite": "a finite number",
    "text": "text; put it in quotes",
    "flag": "true or false",
    "list": "a list",
    "mapping": "a mapping of settings",
    "choice": "{expected}",
    "least": "at least {ge}",
    "more": "more than {gt}",
    "most": "at most {le}",
    "less": "less than {lt}",
    "entries": "a list of at least {min_length}",
    "none": "null",
}


def _names_like(name: str, names: Sequence[str]) -> list[str]:
    """The names that may be meant, the likeliest first: those whose initials it is, as in ``lr``, or near ones."""
    initials = [n for n in names if "_" in n and name.casefold() == "".join(word[:1] for word in n.split("_"))]
    return initials or difflib.get_close_matches(name, names, n=1)


def _fields_at(kind: type[BaseModel], place: Sequence[int | str]) -> list[str]:
    """Names of the settings in the part of a schema that ``place`` leads to."""
    current: Any = kind
    for part in place:
        annotation = current.model_fields[part].annotation if part in getattr(current, "model_fields", {}) else None
        models = (annotation, *get_args(annotation))
        current = next((m for m in models if isinstance(m, type) and issubclass(m, BaseModel)), current)
    return list(getattr(current, "model_fields", {}))
