"""What is asked of the table of entries, and changed in it, beside one entry's row."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

from poise.memory.entries import EntryDraft

__all__ = ["as_json_text", "forget_reasons", "next_version", "other_versions", "repeated_entry", "supersede"]


def repeated_entry(db: sqlite3.Connection, key: str, draft: EntryDraft, *, apart: bool = False) -> int | None:
    """Id of the entry with the same text, where this one says no more than it; quarantined ones count too, once a
    source: what the web wrote in vain, a user may still say. ``apart``: among those of its subject alone."""
    rows = db.execute("SELECT id, outcome, status, trust, subject FROM entries WHERE text_key = ?", (key,)).fetchall()
    for number, outcome, status, trust, subject in rows:
        if apart and subject != draft.subject:
            continue
        if status == "superseded" or (status == "quarantined" and trust != draft.trust):
            continue
        if draft.kind != "episodic" or outcome == draft.outcome:
            return int(number)
    return None


def supersede(db: sqlite3.Connection, keys: Iterable[int], by: int) -> None:
    """Have one entry stand for others."""
    rows = [(by, key) for key in keys]
    db.executemany("UPDATE entries SET status = 'superseded', superseded_by = ? WHERE id = ?", rows)


def next_version(db: sqlite3.Connection, name: str, but: int = 0) -> int:
    """The version that a procedure\'s next text has."""
    [(version,)] = db.execute("SELECT coalesce(max(version), 0) FROM entries WHERE name = ? AND id != ?", (name, but))
    return int(version) + 1


def other_versions(db: sqlite3.Connection, name: str, but: int) -> list[int]:
    """The kept texts of a procedure beside one."""
    if not name:
        return []
    rows = db.execute("SELECT id FROM entries WHERE name = ? AND status = 'kept' AND id != ?", (name, but))
    return [key for (key,) in rows]


def forget_reasons(db: sqlite3.Connection, gone: Sequence[int]) -> None:
    """Take out what other entries say of deleted ones: a reason repeats a number or a name of what it contradicts."""
    for key, reasons, contradicts in db.execute(
        "SELECT id, reasons, contradicts FROM entries WHERE contradicts != '[]'"
    ).fetchall():
        numbers = json.loads(contradicts)
        if not set(numbers) & set(gone):
            continue
        left = [reason for reason in json.loads(reasons) if not any(f"entry {n} from" in reason for n in gone)]
        left = left or ["contradicted an entry that was deleted"]
        still = [number for number in numbers if number not in set(gone)]
        db.execute(
            "UPDATE entries SET reasons = ?, contradicts = ? WHERE id = ?",
            (as_json_text(left), as_json_text(still), key),
        )


def as_json_text(value: Any) -> str:
    """A value as the table keeps it."""
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
