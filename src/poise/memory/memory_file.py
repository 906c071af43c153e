"""``memory.sqlite``: the one file that entries are kept in, readable with any tool.

Deleted bytes are overwritten as they go, the journal is a file that is gone after each write, and nothing temporary
is put on the disk, so that what is deleted is in no file of the folder.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from poise.errors import FolderInUse, InvalidArgument, InvalidMemory, SaveFailed
from poise.memory.entries import MemoryEntry
from poise.storage.disk_errors import save_failed

__all__ = ["MEMORY_FILE", "entry_of", "is_memory", "memory_file"]

MEMORY_FILE = "memory.sqlite"
COLUMNS = """id, kind, text, status, trust, source, subject, outcome, name, version, at, added, used, uses, repeats,
reasons, contradicts, superseded_by, effect"""

_APPLICATION, _FORMAT = 0x506D656D, 1  # "Pmem"
_WAIT = 60.0  # seconds for another process to finish its write
_SCHEMA = f"""
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE entries (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL, text TEXT NOT NULL, status TEXT NOT NULL, trust TEXT NOT NULL,
    source TEXT NOT NULL, subject TEXT NOT NULL, outcome TEXT NOT NULL,
    name TEXT NOT NULL, version INTEGER NOT NULL,
    at TEXT NOT NULL, added TEXT NOT NULL, used TEXT,
    uses INTEGER NOT NULL DEFAULT 0, repeats INTEGER NOT NULL DEFAULT 0,
    reasons TEXT NOT NULL, contradicts TEXT NOT NULL, superseded_by INTEGER, effect TEXT NOT NULL,
    text_key TEXT NOT NULL, vector BLOB NOT NULL
);
CREATE INDEX by_text_key ON entries (text_key);
CREATE TABLE sources (
    entry INTEGER NOT NULL, source INTEGER NOT NULL, PRIMARY KEY (entry, source)
) WITHOUT ROWID;
CREATE VIEW episodic AS SELECT id, at, outcome, text, subject, source, trust, status, uses, repeats
    FROM entries WHERE kind = 'episodic' AND status != 'quarantined';
CREATE VIEW semantic AS SELECT id, text, subject, source, trust, at, status, superseded_by, uses, repeats
    FROM entries WHERE kind = 'semantic' AND status != 'quarantined';
CREATE VIEW procedural AS SELECT id, name, version, text, trust, source, at, status, uses
    FROM entries WHERE kind = 'procedural' AND status != 'quarantined';
CREATE VIEW quarantine AS SELECT id, kind, text, reasons, trust, source, subject, at, effect
    FROM entries WHERE status = 'quarantined';
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {_FORMAT};
"""


def is_memory(folder: Path) -> bool:
    """Whether a folder holds a file of a memory's name."""
    return (folder / MEMORY_FILE).exists()


@contextlib.contextmanager
def memory_file(folder: Path, *, write: bool = False, create: bool = False) -> Iterator[sqlite3.Connection]:
    """One piece of work on a memory, a transaction of its own: all of it or, where the block raises, none of it.

    Args:
        folder: Folder of the memory.
        write: Whether entries change; other writers wait until the block ends.
        create: Whether the memory is made where there is none.

    Raises:
        InvalidMemory: there is none, or the file is damaged or another program's.
        FolderInUse: another process is writing for a minute.
        SaveFailed: the disk refused.
    """
    path = folder / MEMORY_FILE
    if not create and not path.is_file():
        raise InvalidMemory(f"{folder} is not a memory: it has no {MEMORY_FILE}. Begin one with `poise memory add`.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(path, timeout=_WAIT, isolation_level=None)) as db:
            db.execute("PRAGMA temp_store = MEMORY")
            db.execute("PRAGMA secure_delete = ON")
            _check_format(db, path, create=create)
            yield from _transaction(db, write=write)
    except OSError as error:
        raise save_failed(f"Cannot use the memory {path}", error) from error
    except OverflowError as error:
        raise InvalidArgument("No entry has so large a number; `poise memory list` shows all.") from error
    except sqlite3.Error as error:
        raise _memory_fault(path, error) from error


def vacuum(folder: Path) -> None:
    """Write the file anew without what was deleted.

    Raises:
        SaveFailed: the disk has no room for a second copy; what was deleted is overwritten all the same.
    """
    path = folder / MEMORY_FILE
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=_WAIT, isolation_level=None)) as db:
            db.execute("PRAGMA temp_store = MEMORY")
            db.execute("PRAGMA secure_delete = ON")
            db.execute("VACUUM")
    except sqlite3.Error as error:
        raise _memory_fault(path, error) from error


def entry_of(row: tuple[Any, ...], sources: tuple[int, ...] = ()) -> MemoryEntry:
    """The entry in a row of ``COLUMNS``.

    Raises:
        InvalidMemory: somebody put into it what no entry has.
    """
    names = [name.strip() for name in COLUMNS.split(",")]
    fields = dict(zip(names, row, strict=True))
    try:
        if not isinstance(fields["text"], str):
            raise TypeError("its text is none")
        for name in ("at", "added", "used"):
            fields[name] = datetime.fromisoformat(fields[name]) if fields[name] else None
        fields |= {name: tuple(json.loads(fields[name])) for name in ("reasons", "contradicts")}
        return MemoryEntry(**(fields | {"effect": json.loads(fields["effect"]), "sources": sources}))
    except (TypeError, ValueError) as error:
        raise damaged_entry(fields["id"], str(error)) from error


def damaged_entry(number: int, what: str) -> InvalidMemory:
    """The fault of an entry that was not written by Poise, or is damaged."""
    return InvalidMemory(
        f"Entry {number} is damaged ({what}); nothing was changed. Put a copy of {MEMORY_FILE} back, or delete that "
        "row of the table entries with sqlite3."
    )


def _transaction(db: sqlite3.Connection, *, write: bool) -> Iterator[sqlite3.Connection]:
    db.execute("BEGIN IMMEDIATE" if write else "BEGIN")
    try:
        yield db
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


def _check_format(db: sqlite3.Connection, path: Path, *, create: bool) -> None:
    """Make the tables where there are none, and refuse other programs' files."""
    [application], [version] = (db.execute(f"PRAGMA {name}").fetchone() for name in ("application_id", "user_version"))
    if application == _APPLICATION:
        if version != _FORMAT:
            raise InvalidMemory(f"{path} is of format {version}, and this Poise reads {_FORMAT}; update Poise.")
        return
    db.execute("BEGIN IMMEDIATE")
    [application] = db.execute("PRAGMA application_id").fetchone()
    tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'")]
    if application != _APPLICATION and (tables or not create):
        db.execute("ROLLBACK")
        if not tables:
            raise InvalidMemory(f"{path} is empty; begin the memory with `poise memory add`.")
        raise InvalidMemory(f"{path} is not a memory: it holds {', '.join(tables[:3])}; choose another folder.")
    if application != _APPLICATION:
        for statement in _SCHEMA.split(";"):
            db.execute(statement)
    db.execute("COMMIT")


def _memory_fault(path: Path, error: sqlite3.Error) -> Exception:
    """What SQLite said, as the sentence that fits."""
    text = str(error)
    if "locked" in text or "busy" in text:
        return FolderInUse(f"Somebody else is writing into {path}; try again when they are done.")
    if "full" in text or "disk I/O" in text:
        return SaveFailed(
            f"Cannot write to {path}: {text}; what was there is untouched. Free some space, then try again."
        )
    if "readonly" in text or "unable to open" in text:
        return SaveFailed(f"Cannot use {path}: {text}; get permission to write there, or choose another folder.")
    if isinstance(error, sqlite3.DatabaseError) and ("malformed" in text or "not a database" in text):
        return InvalidMemory(
            f"{path} is damaged ({text}); nothing was changed. Put a copy of it back, or save what can be read with "
            f"sqlite3 {path} .recover into a new file."
        )
    return SaveFailed(f"Cannot use {path}: {text}; choose another folder.")
