"""What differs between two records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from poise.lifecycle.registry_records import RegistryRecord

__all__ = ["record_differences"]

NOT_THERE = "-"


def record_differences(first: RegistryRecord, second: RegistryRecord) -> list[tuple[str, Any, Any]]:
    """Fields that differ, by their dotted names, with what each record has; a dash where it has none."""
    values = [dict(_flat("", _comparable(record))) for record in (first, second)]
    fields = dict.fromkeys([*values[0], *values[1]])
    return [
        (field, values[0].get(field, NOT_THERE), values[1].get(field, NOT_THERE))
        for field in fields
        if values[0].get(field, NOT_THERE) != values[1].get(field, NOT_THERE)
    ]


def _comparable(record: RegistryRecord) -> dict[str, Any]:
    files = {file.name: f"{file.sha256[:16]} ({file.bytes:,} bytes)" for file in record.files}
    return {
        "kind": record.kind,
        "files": files,
        "parents": [parent[:12] for parent in record.parents],
        "facts": record.facts,
        "software": record.software,
    }


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Leaves of nested mappings, each under the names that lead to it."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}" if name else str(key), inner)
    else:
        yield name, value
