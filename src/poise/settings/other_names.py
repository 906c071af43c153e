"""Settings that other programs call something else: read under their names, and named so where they are wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["Place", "place_as_written", "translate_names"]

Place = tuple[int | str, ...]


def translate_names(values: Any, names: Mapping[str, str]) -> tuple[Any, dict[str, str]]:
    """Values under the schema's names.

    Args:
        values: What a file says; anything but a mapping is left to the schema.
        names: The schema's name of each other name; ``lora.r`` is a setting of a part.

    Returns:
        The values, and the name as written of every setting that had another one. A name stays as it is where its
        setting is there under the schema's name too.
    """
    if not isinstance(values, Mapping) or not any(name in names for name in values):
        return values, {}
    translated = {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    written: dict[str, str] = {}
    for name in [key for key in values if key in names]:
        part, _, field = names[name].rpartition(".")
        target = translated.setdefault(part, {}) if part else translated
        if isinstance(target, dict) and field not in target:
            target[field] = translated.pop(name)
            written[names[name]] = name
    return translated, written


def place_as_written(place: Place, written: Mapping[str, str]) -> Place:
    """The place of a setting in the file, by the name that stands there."""
    for end in range(len(place), 0, -1):
        if name := written.get(".".join(map(str, place[:end]))):
            return (name, *place[end:])
    return place
