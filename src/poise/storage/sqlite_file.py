"""A SQLite file that several processes write: a connection for each piece of work, and what its errors mean."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from poise.errors import SaveFailed
from poise.storage.disk_errors import save_failed

__all__ = ["connected"]

LOCK_TIMEOUT = 60.0  # seconds for another process to finish its write


@contextlib.contextmanager
def connected(path: Path, content: str) -> Iterator[sqlite3.Connection]:
    """A connection whose changes are committed when the block ends.

    Args:
        path: The file; its folder is made.
        content: What is in it, for errors.

    Raises:
        SaveFailed: the disk refused, or the file is damaged.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(path, timeout=LOCK_TIMEOUT)) as db, db:
            yield db
    except OSError as error:
        raise save_failed(f"Cannot use the {content} {path}", error) from error
    except sqlite3.Error as error:
        text = str(error)
        if "full" in text or "disk I/O" in text:
            remedy = "free some space"
        elif "malformed" in text or "not a database" in text:
            remedy = "put a copy of it back, or move it aside and keep it (nothing was changed)"
        else:
            remedy = "close what uses the file, or get permission to write there"
        raise SaveFailed(
            f"Cannot use the {content} {path}: {text}; {remedy}, then run the same command again."
        ) from error
