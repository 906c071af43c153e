"""Settings files: YAML checked against a pydantic model, with every mistake named by file, line and field."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from poise.errors import InvalidSettings

__all__ = ["FrozenModel", "Settings", "check_settings", "describe_fault", "line_at", "read_settings"]

S = TypeVar("S", bound="Settings")


class FrozenModel(BaseModel):
    """Base of every value that is written to a file: immutable, unknown fields not allowed."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=True, validate_by_alias=True)


class Settings(FrozenModel):
    """Base of what a settings file may say; numbers are finite."""

    model_config = ConfigDict(allow_inf_nan=False)


def read_settings(path: str | Path, kind: type[S]) -> S:
    """The settings in a YAML file.

    Raises:
        InvalidSettings: no such file, no YAML, a field twice, or one that ``kind`` does not take; names file, line and
            field.
    """
    where = Path(path)
    try:
        text = where.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InvalidSettings(f"Cannot read the settings {where}: {reason}; give the path of a YAML file.") from error
    try:
        root, data = yaml.compose(text, yaml.SafeLoader), yaml.safe_load(text)
        repeated = list(_repeated(root))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        what = getattr(error, "problem", None) or "it cannot be read"
        raise InvalidSettings(f"{where}{line}: broken YAML, {what}; fix it and try again.") from error
    except RecursionError as error:
        raise InvalidSettings(f"{where} is nested too deeply or refers to itself; leave anchors out.") from error
    if twice := [f"line {key.start_mark.line + 1}: {key.value}" for key in repeated]:
        # YAML would let the last one win.
        raise InvalidSettings(f"{where} says something twice ({', '.join(twice)}); keep one.")
    if not isinstance(data, dict):
        raise InvalidSettings(f"{where} holds no settings; it should have lines like `model: NAME`.")
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        in_order = sorted(error.errors(), key=lambda fault: line_at(root, fault["loc"]))
        faults = [_complaint(root, dict(fault), kind) for fault in in_order]
        if len(faults) == 1:
            raise InvalidSettings(f"{where}, {faults[0]}; fix it and try again.") from error
        lines = "".join(f"\n  {fault}" for fault in faults)
        raise InvalidSettings(f"{where} has {len(faults)} mistakes; fix them and try again:{lines}") from error


def check_settings(values: Mapping[str, Any], kind: type[S]) -> S:
    """Settings from keyword arguments.

    Raises:
        InvalidSettings: names every unknown, missing or impossible setting.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        faults = "; ".join(describe_fault(dict(fault), kind) for fault in error.errors())
        raise InvalidSettings(f"{kind.__name__}: {faults}; fix it and try again.") from error


def _repeated(node: yaml.Node | None) -> Iterator[yaml.ScalarNode]:
    """Keys that their mapping has already."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _repeated(item)
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if str(key.value) in seen:
                yield key
            seen.add(str(key.value))
            yield from _repeated(value)


def _complaint(root: yaml.Node | None, fault: dict[str, Any], kind: type[BaseModel]) -> str:
    return f"line {line_at(root, fault['loc'])}: {describe_fault(fault, kind)}"


def describe_fault(fault: Mapping[str, Any], kind: type[BaseModel]) -> str:
    """One fault that pydantic found, in plain words: the field, its value and the limit, or the name that was meant."""
    place, kind_of_fault, context = fault["loc"], fault["type"], fault.get("ctx", {})
    field = ".".join(map(str, place)) or "the settings"
    if kind_of_fault == "extra_forbidden":
        near = difflib.get_close_matches(str(place[-1]), _fields_at(kind, place[:-1]), n=1)
        return f"{field} is an unknown setting" + (f", did you mean {near[0]}?" if near else "")
    if kind_of_fault == "value_error":
        return f"{field} {context.get('error', fault['msg'])!s}"
    value = reprlib.repr(fault["input"])
    for name, words in LIMITS.items():
        if kind_of_fault in LIMIT_FAULTS[name]:
            return f"{field} is {value}; it must be {words.format(**context)}"
    return f"{field} {FAULTS.get(kind_of_fault, 'cannot be used').format(value=value)}"


FAULTS = {"missing": "is missing"}
LIMIT_FAULTS = {
    "number": ("int_parsing", "int_type", "int_from_float", "float_parsing", "float_type", "finite_number"),
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
LIMITS = {
    "number": "a number (a whole one where things are counted)",
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


def _fields_at(kind: type[BaseModel], place: Sequence[int | str]) -> list[str]:
    """Names of the settings in the part of a schema that ``place`` leads to."""
    current: Any = kind
    for part in place:
        annotation = current.model_fields[part].annotation if part in getattr(current, "model_fields", {}) else None
        models = (annotation, *get_args(annotation))
        current = next((m for m in models if isinstance(m, type) and issubclass(m, BaseModel)), current)
    return list(getattr(current, "model_fields", {}))


def line_at(root: yaml.Node | None, place: tuple[int | str, ...]) -> int:
    """Line, from 1, of the field at ``place``, or of the nearest one above it that is there."""
    node, mark = root, root.start_mark if root else None
    for part in place:
        if isinstance(node, yaml.MappingNode):
            key, node = next(((k, v) for k, v in node.value if k.value == part), (None, None))
            mark = key.start_mark if key else mark
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            mark = node.start_mark
        else:
            break
    return mark.line + 1 if mark else 1
