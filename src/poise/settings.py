"""Settings files: YAML checked against a pydantic model, with every mistake named by file, line and field."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from poise.errors import InvalidSettings

__all__ = ["FrozenModel", "Settings", "check_settings", "read_settings"]

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
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        what = getattr(error, "problem", None) or "it cannot be read"
        raise InvalidSettings(f"{where}{line}: broken YAML, {what}; mend it and try again.") from error
    if twice := [f"line {key.start_mark.line + 1}: {key.value}" for key in _repeated(root)]:
        # YAML would let the last one win.
        raise InvalidSettings(f"{where} says something twice ({', '.join(twice)}); keep one.")
    if not isinstance(data, dict):
        raise InvalidSettings(f"{where} holds no settings; it should have lines like `model: NAME`.")
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        found = [_complaint(root, dict(fault)) for fault in error.errors()]
        lines = found if len(found) == 1 else ["", *(f"  {one}" for one in found)]
        raise InvalidSettings(f"{where}, " + "\n".join(lines) + "; mend and try again.") from error


def check_settings(values: Mapping[str, Any], kind: type[S]) -> S:
    """Settings from keyword arguments.

    Raises:
        InvalidSettings: names every unknown, missing or impossible setting.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        faults = "; ".join(_describe_fault(dict(fault), "all of it") for fault in error.errors())
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


def _complaint(root: yaml.Node | None, fault: dict[str, Any]) -> str:
    return f"line {_line(root, fault['loc'])}: {_describe_fault(fault, 'the file')}"


def _describe_fault(fault: dict[str, Any], root: str) -> str:
    field = ".".join(map(str, fault["loc"])) or root
    message = {"extra_forbidden": "is no setting", "missing": "is missing"}.get(fault["type"], fault["msg"])
    return f"{field} {message.removeprefix('Value error, ')}"


def _line(root: yaml.Node | None, place: tuple[int | str, ...]) -> int:
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
