"""What a dashboard keeps: counts by bucket of time, charts, alerts, silences and what is still to be sent.

One SQLite file in WAL mode, each change on the disk before it is acted on, so that a killed dashboard goes on where it
was: no alert is lost, none is sent twice as new, no acknowledgement is forgotten.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from poise.errors import OutputExists, SaveFailed

__all__ = ["BUCKET_SECONDS", "AlertDatabase"]

DATABASE_FORMAT = 2
BUCKET_SECONDS = 300.0  # counts are kept by buckets of so many seconds
ALERT_SCHEMA = """
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS sources (
  name TEXT PRIMARY KEY, polled REAL, seen REAL, fault TEXT NOT NULL DEFAULT '', state TEXT NOT NULL DEFAULT '{}',
  facts TEXT NOT NULL DEFAULT '{}', counts TEXT, thresholds TEXT NOT NULL DEFAULT '{}',
  last_id INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS buckets (
  source TEXT NOT NULL, version TEXT NOT NULL, start REAL NOT NULL, polls INTEGER NOT NULL, failures INTEGER NOT NULL,
  counts TEXT NOT NULL, PRIMARY KEY (source, version, start)
);
CREATE TABLE IF NOT EXISTS charts (
  source TEXT NOT NULL, rule TEXT NOT NULL, trait TEXT NOT NULL, chart TEXT, sums TEXT NOT NULL DEFAULT '{}',
  pending TEXT NOT NULL DEFAULT '[]', answers INTEGER NOT NULL DEFAULT 0, note TEXT NOT NULL DEFAULT '',
  PRIMARY KEY (source, rule, trait)
);
CREATE TABLE IF NOT EXISTS alerts (
  id INTEGER PRIMARY KEY, rule TEXT NOT NULL, source TEXT NOT NULL, subject TEXT NOT NULL, severity TEXT NOT NULL,
  kind TEXT NOT NULL, text TEXT NOT NULL, began REAL NOT NULL, last REAL NOT NULL, times INTEGER NOT NULL DEFAULT 1,
  silenced INTEGER NOT NULL DEFAULT 0, ended REAL, acknowledged REAL, by TEXT, note TEXT
);
CREATE INDEX IF NOT EXISTS alerts_by_subject ON alerts (rule, source, subject, ended);
CREATE TABLE IF NOT EXISTS silences (
  id INTEGER PRIMARY KEY, rule TEXT NOT NULL, source TEXT NOT NULL, made REAL NOT NULL, until REAL NOT NULL,
  by TEXT NOT NULL, note TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS deliveries (
  id INTEGER PRIMARY KEY, alert INTEGER, channel TEXT NOT NULL, body TEXT NOT NULL,
  state TEXT NOT NULL DEFAULT 'waiting', tries INTEGER NOT NULL DEFAULT 0, due REAL NOT NULL,
  fault TEXT NOT NULL DEFAULT ''
);
CREATE INDEX IF NOT EXISTS deliveries_by_state ON deliveries (state, due);
"""
CLOCK_SLACK = 60.0  # seconds that a silence may seem to last longer than it was made for


class AlertDatabase:
    """The database of one dashboard; any thread may use it.

    Args:
        path: The file; it is made.

    Raises:
        OutputExists: it holds something else, or another version's.
        SaveFailed: the disk refused.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        existing = path.exists() and path.stat().st_size > 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._connection() as db:
                tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
                if existing and tables and not {"about", "alerts"} <= tables:
                    raise OutputExists(f"{path} holds another program's database; choose another folder.")
                db.execute("PRAGMA journal_mode=WAL")
                db.executescript(ALERT_SCHEMA)
                db.execute("INSERT OR IGNORE INTO about VALUES ('format', ?)", [str(DATABASE_FORMAT)])
                written = db.execute("SELECT value FROM about WHERE name = 'format'").fetchone()[0]
        except sqlite3.DatabaseError as error:
            kind = OutputExists if "not a database" in str(error) else SaveFailed
            raise kind(f"Cannot keep alerts in {path} ({error}); choose another folder.") from error
        except OSError as error:
            raise SaveFailed(f"Cannot keep alerts in {path} ({error.strerror}); choose another folder.") from error
        if written != str(DATABASE_FORMAT):
            raise OutputExists(f"{path} has the format {written[:20]} of another version; choose another folder.")
        path.chmod(0o600)

    @contextlib.contextmanager
    def changing(self) -> Iterator[sqlite3.Connection]:
        """A connection whose changes are on the disk together when the block ends, or not at all.

        Raises:
            SaveFailed: the disk refused, or somebody else holds the file.
        """
        try:
            with self._lock, self._connection() as db:
                db.execute("BEGIN IMMEDIATE")
                try:
                    yield db
                except BaseException:
                    db.execute("ROLLBACK")
                    raise
                db.execute("COMMIT")
        except sqlite3.Error as error:
            raise SaveFailed(f"Cannot write {self.path} ({error}); free some space, or see who holds it.") from error

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """Rows by their columns' names.

        Raises:
            SaveFailed: the file cannot be read.
        """
        try:
            with self._lock, self._connection() as db:
                return [dict(row) for row in db.execute(sql, values)]
        except sqlite3.Error as error:
            raise SaveFailed(f"Cannot read {self.path} ({error}).") from error

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        db = sqlite3.connect(self.path, timeout=10.0, isolation_level=None)
        try:
            db.row_factory = sqlite3.Row
            db.execute("PRAGMA synchronous=FULL")
            yield db
        finally:
            db.close()

    def source(self, name: str) -> dict[str, Any]:
        """What is known of a source."""
        rows = self.rows("SELECT * FROM sources WHERE name = ?", [name])
        if not rows:
            return {"name": name, "polled": None, "seen": None, "fault": "", "state": {}, "facts": {}, "counts": None,
                    "thresholds": {}, "last_id": 0}  # fmt: skip
        row = rows[0]
        for field in ("state", "facts", "counts", "thresholds"):
            row[field] = json.loads(row[field]) if row[field] is not None else None
        return row

    def counted(self, source: str, since: float, version: str | None = None) -> tuple[dict[str, float], int, int]:
        """Counts of a source since a time, its polls, and how many of these failed."""
        rows = self.rows(
            "SELECT polls, failures, counts FROM buckets WHERE source = ? AND start > ?"
            + ("" if version is None else " AND version = ?"),
            [source, since - BUCKET_SECONDS, *([] if version is None else [version])],
        )
        return added_counts(rows), sum(row["polls"] for row in rows), sum(row["failures"] for row in rows)

    def is_silenced(self, rule: str, source: str, now: float) -> bool:
        """Whether somebody wants to hear nothing of it; a clock that was moved back makes no silence longer."""
        return any(
            row["rule"] in ("", rule) and row["source"] in ("", source)
            for row in self.rows("SELECT * FROM silences WHERE until > ?", [now])
            if row["until"] - now <= row["until"] - row["made"] + CLOCK_SLACK
        )

    def open_alerts(self) -> list[dict[str, Any]]:
        """Alerts that are not over, the last first."""
        return self.rows("SELECT * FROM alerts WHERE ended IS NULL ORDER BY id DESC")

    def sweep(self, oldest: float) -> None:
        """Delete counts, alerts that are over, silences and deliveries from before a time."""
        with self.changing() as db:
            db.execute("DELETE FROM buckets WHERE start < ?", [oldest])
            db.execute("DELETE FROM alerts WHERE ended IS NOT NULL AND ended < ?", [oldest])
            db.execute("DELETE FROM silences WHERE until < ?", [oldest])
            db.execute("DELETE FROM deliveries WHERE state != 'waiting' AND due < ?", [oldest])


def added_counts(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The counts of several buckets together."""
    total: dict[str, float] = {}
    for row in rows:
        for name, value in json.loads(row["counts"]).items():
            total[name] = total.get(name, 0.0) + value
    return total
