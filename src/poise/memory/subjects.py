"""What a memory holds about somebody: found by subject and by name in its texts, exported, and deleted."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from poise.errors import InvalidArgument, OutputExists
from poise.memory.entries import MemoryEntry, time_text
from poise.memory.memory import Memory
from poise.storage.atomic_write import saving

__all__ = ["entries_about", "entry_facts", "export_entries"]

_TEXT_FIELDS = ("text", "subject", "source", "name")


def entries_about(memory: Memory, subject: str) -> list[MemoryEntry]:
    """All entries whose subject somebody is, or that name them, of every status; also what was made of such entries.

    Names are compared as whole words, whatever their capitals and the spaces in them. Other names that somebody goes
    by are to be asked for one by one.

    Raises:
        InvalidArgument: the subject is empty.
    """
    if not subject.strip():
        raise InvalidArgument("The subject is empty; name whom or what the entries are about.")
    words = r"\s+".join(re.escape(word) for word in subject.casefold().split())
    named = re.compile(rf"(?<!\w){words}(?!\w)")
    entries = memory.entries()
    about = {
        entry.id
        for entry in entries
        if any(named.search(str(getattr(entry, field)).casefold()) for field in _TEXT_FIELDS)
    }
    while derived := {entry.id for entry in entries if entry.id not in about and about & set(entry.sources)}:
        about |= derived
    return [entry for entry in entries if entry.id in about]


def export_entries(entries: Sequence[MemoryEntry], path: Path, *, force: bool = False) -> None:
    """Write entries as JSONL, one a line with all that is kept of it but its vector.

    Raises:
        OutputExists: the file is there, and ``force`` is not set.
        SaveFailed: the disk refused.
    """
    if path.exists() and not force:
        raise OutputExists(f"{path} is there already; choose another file, or replace it with `force`.")
    with saving(path) as temporary:
        lines = [json.dumps(entry_facts(entry), ensure_ascii=False) for entry in entries]
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def entry_facts(entry: MemoryEntry) -> dict[str, Any]:
    """An entry as plain data."""
    return {name: time_text(value) if isinstance(value, datetime) else value for name, value in asdict(entry).items()}
