"""Readings and alarms on disk: SQLite in WAL mode, written by its own thread, so that no answer waits for a disk."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sqlite3
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from poise.data import AnswerPart
from poise.errors import InvalidArgument, RequestError
from poise.storage.output import check_output

__all__ = ["ReadingRecord", "ReadingsQuery", "ReadingsStore", "StoredMean", "check_database"]

log = logging.getLogger("poise.serve")

BACKLOG = 20_000  # records that wait for the disk at most; older ones are given up
MOST_CLOCK_CHANGE = 3600.0  # seconds that the clock may be set by while the server runs
PAUSE = 0.2  # seconds between commits
SWEEP = 600.0  # seconds between looks for what is too old
SCHEMA = """
CREATE TABLE IF NOT EXISTS readings (
  id INTEGER PRIMARY KEY, time REAL NOT NULL, request TEXT NOT NULL, key TEXT, trait TEXT NOT NULL, layer INTEGER,
  steer TEXT, prompt REAL, mean REAL, peak REAL, tokens INTEGER NOT NULL, alarms TEXT NOT NULL,
  alarmed INTEGER NOT NULL, part TEXT NOT NULL DEFAULT 'reply'
);
CREATE INDEX IF NOT EXISTS by_time ON readings (time);
CREATE INDEX IF NOT EXISTS by_trait ON readings (trait, time);
CREATE TABLE IF NOT EXISTS texts (
  id INTEGER PRIMARY KEY, time REAL NOT NULL, request TEXT NOT NULL, prompt TEXT NOT NULL, answer TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS texts_by_time ON texts (time);
"""
READING_COLUMNS = "time, request, key, trait, layer, steer, prompt, mean, peak, tokens, alarms, alarmed, part"
ADD_PART = "ALTER TABLE readings ADD COLUMN part TEXT NOT NULL DEFAULT 'reply'"  # which version 0.1.0 knew alone
StoredMean = tuple[str, AnswerPart, float, float | None, float | None, int]
"""Trait, part, time, mean, peak and whether alarmed, of one answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingRecord:
    """One answer read by one vector, or the words of one answer.

    Attributes:
        time: Seconds since 1970.
        request: Id of the answer.
        key: Name of the API key that the request came with.
        trait: Name of the vector.
        layer: Layer at which the vector was read, counted from 0.
        steer: Steering of the request as an expression.
        prompt: Reading of the last prompt token.
        mean: Mean reading of the answer's tokens; ``None`` for an empty answer.
        peak: Peak reading of the answer's tokens; ``None`` for an empty answer.
        tokens: Tokens that were read.
        part: Part of the answer that they are.
        alarms: Alarms that this vector raised.
        texts: Prompt and answer, where texts are stored; the other fields are then empty.
    """

    time: float
    request: str
    key: str | None = None
    trait: str = ""
    layer: int | None = None
    steer: str | None = None
    prompt: float | None = None
    mean: float | None = None
    peak: float | None = None
    tokens: int = 0
    part: AnswerPart = "reply"
    alarms: Sequence[dict[str, Any]] = ()
    texts: tuple[str, str] | None = None


@dataclass(slots=True)
class WriteCounts:
    """What became of records. ``failures`` are commits that the disk or a lock refused, and that were tried again."""

    written: int = 0
    lost: int = 0
    failures: int = 0


@dataclass(slots=True, kw_only=True)
class ReadingsQuery:
    """Which readings: of a key, a trait and a part, of some time, with alarms or not, newest first, before an id."""

    key: str | None = None
    trait: str | None = None
    part: AnswerPart | None = None
    since: float | None = None
    until: float | None = None
    alarmed: bool | None = None
    limit: int = 100
    after: int | None = None
    values: list[Any] = field(default_factory=list, init=False)

    def where(self) -> str:
        """As SQL, with ``values`` for its question marks."""
        parts = ["1"]
        for clause, value in (
            ("key = ?", self.key),
            ("trait = ?", self.trait),
            ("part = ?", self.part),
            ("time >= ?", self.since),
            ("time < ?", self.until),
            ("alarmed = ?", None if self.alarmed is None else int(self.alarmed)),
            ("id < ?", self.after),
        ):
            if value is not None:
                parts.append(clause)
                self.values.append(value)
        return " AND ".join(parts)


def check_database(path: Path) -> None:
    """Check that readings can be kept in a file: a new one, or a database that a server of Poise wrote.

    Raises:
        OutputExists: the file is something else.
        SaveFailed: it cannot be written.
    """
    check_output(path, loss=_database_loss, force=None)


def _database_loss(path: Path) -> str:
    if path.stat().st_size == 0:
        return ""
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=10.0)) as db:
            tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.Error:
        return "something that is not a database"
    return "" if {"readings", "texts"} <= tables else "a database that `poise serve` did not write"


class ReadingsStore:
    """Takes records from any thread at once, and writes them as soon as it can.

    Args:
        path: The database; ``None`` for one that ends with the server.
        keep_days: Older records are deleted.
        private: Whether texts are stored, so that an existing file too is to be read by its owner alone; a new one is
            so in any case.
    """

    def __init__(self, path: Path | None = None, *, keep_days: float = 30.0, private: bool = False) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="poise-") if path is None else None
        self.path = path or Path(self._temporary.name if self._temporary else "") / "readings.sqlite"
        self.keep = keep_days * 86400
        self.counts = WriteCounts()
        self._waiting: deque[ReadingRecord] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._clock_offset = _clock_offset()
        try:
            _make_private(self.path, existing=private)
            with self._connect(timeout=10.0) as db:
                db.execute("PRAGMA journal_mode=WAL")
                db.executescript(SCHEMA)
                if "part" not in {row["name"] for row in db.execute("PRAGMA table_info(readings)")}:
                    db.execute(ADD_PART)
        except (sqlite3.Error, OSError) as error:
            raise InvalidArgument(f"Cannot keep readings in {self.path} ({error}); name another file.") from error
        self._thread = threading.Thread(target=self._run, name="poise-store", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Records that are not on disk yet."""
        return len(self._waiting)

    def put(self, records: Sequence[ReadingRecord]) -> None:
        """Take records; they are on disk a moment later."""
        with self._changed:
            self._waiting.extend(records)
            while len(self._waiting) > BACKLOG:
                self._waiting.popleft()
                self.counts.lost += 1
            self._changed.notify()

    def close(self, wait: float = 5.0) -> None:
        """Write what waits, and end."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(wait)
        if self._temporary:
            self._temporary.cleanup()

    def readings(self, query: ReadingsQuery) -> tuple[list[dict[str, Any]], int | None]:
        """Readings, newest first, and the id to ask for more after."""
        where = query.where()
        sql = f"SELECT id, {READING_COLUMNS} FROM readings WHERE {where} ORDER BY id DESC LIMIT ?"
        rows = self._read(sql, [*query.values, query.limit + 1])
        shown = [
            {k: row[k] for k in row.keys() if k not in ("alarmed", "key")} | {"alarms": json.loads(row["alarms"])}  # noqa: SIM118 (no mapping)
            for row in rows[: query.limit]
        ]
        return shown, (int(shown[-1]["id"]) if len(rows) > query.limit else None)

    def traits(self, key: str | None = None) -> list[str]:
        """Names of the vectors that answers were read by, of one key or of all."""
        query = ReadingsQuery(key=key)
        rows = self._read(f"SELECT DISTINCT trait FROM readings WHERE {query.where()} ORDER BY trait", query.values)
        return [row["trait"] for row in rows]

    def since(self, time: float, key: str | None = None) -> list[StoredMean]:
        """Every reading since then, of one key or of all."""
        query = ReadingsQuery(key=key, since=time)
        where = query.where()
        sql = f"SELECT trait, part, time, mean, peak, alarmed FROM readings WHERE {where} ORDER BY time LIMIT 500000"
        return [tuple(row) for row in self._read(sql, query.values)]

    def _read(self, sql: str, values: Sequence[Any]) -> list[sqlite3.Row]:
        try:
            with self._connect(timeout=2.0) as db:
                return db.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            log.warning("Readings cannot be read: %s", error)
            raise RequestError(
                503, "The readings cannot be read now.", code="store_busy", headers={"Retry-After": "2"}
            ) from error

    @contextlib.contextmanager
    def _connect(self, *, timeout: float) -> Iterator[sqlite3.Connection]:
        db = sqlite3.connect(self.path, timeout=timeout, isolation_level=None)
        try:
            db.row_factory = sqlite3.Row
            db.execute("PRAGMA synchronous=FULL")
            yield db
        finally:
            db.close()

    def _run(self) -> None:
        swept = 0.0
        while True:
            with self._changed:
                while not (self._waiting or self._closing):
                    self._changed.wait(SWEEP)
                    if time.monotonic() - swept > SWEEP:
                        break
                batch, closing = list(self._waiting), self._closing
            sweeping = time.monotonic() - swept > SWEEP
            try:
                self._write(batch, sweep=sweeping)
            except sqlite3.Error as error:
                self.counts.failures += 1
                if self.counts.failures in (1, 10, 100) or self.counts.failures % 1000 == 0:
                    log.warning("Readings cannot be written, and are kept until they can: %s", error)
                if closing:
                    self.counts.lost += len(batch)
                    return
            else:
                swept = time.monotonic() if sweeping else swept
                with self._changed:
                    for record in batch:
                        if self._waiting and self._waiting[0] is record:  # else it was given up meanwhile
                            self._waiting.popleft()
                self.counts.written += len(batch)
                if closing and not self._waiting:
                    return
            if not closing:
                time.sleep(PAUSE)

    def _clock_is_steady(self) -> bool:
        """Whether it can be told what is too old: a clock that jumps ahead would have everything deleted."""
        moved = _clock_offset() - self._clock_offset
        if abs(moved) > MOST_CLOCK_CHANGE:
            log.error(
                "The clock was changed by %.1f hours since the server was started; no readings are deleted until it "
                "is started again.",
                moved / 3600,
            )
        return abs(moved) <= MOST_CLOCK_CHANGE

    def _write(self, batch: Sequence[ReadingRecord], *, sweep: bool) -> None:
        with self._connect(timeout=1.0) as db:
            db.execute("BEGIN IMMEDIATE")
            db.executemany(
                f"INSERT INTO readings ({READING_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)",
                [_row_values(r) for r in batch if r.texts is None],
            )
            db.executemany(
                "INSERT INTO texts (time, request, prompt, answer) VALUES (?,?,?,?)",
                [(r.time, r.request, *r.texts) for r in batch if r.texts is not None],
            )
            if sweep and self._clock_is_steady():
                oldest = time.time() - self.keep
                db.execute("DELETE FROM readings WHERE time < ?", [oldest])
                db.execute("DELETE FROM texts WHERE time < ?", [oldest])
            db.execute("COMMIT")


def _clock_offset() -> float:
    """Seconds between the clock that people set and the one that only runs on, in sleep too where there is such."""
    return time.time() - (
        time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()
    )


def _make_private(path: Path, *, existing: bool) -> None:
    """A new file for its owner alone; SQLite gives the files beside it the same rights. An existing one, if wanted."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    for file in (path, *(path.with_name(path.name + end) for end in ("-wal", "-shm"))) if existing else ():
        with contextlib.suppress(FileNotFoundError):
            if (rights := file.stat().st_mode & 0o777) & 0o077:
                file.chmod(rights & 0o700)
                log.warning(
                    "%s could be read by others (%o); its owner alone can now, since texts are kept.", file, rights
                )


def _row_values(r: ReadingRecord) -> tuple[Any, ...]:
    alarms = json.dumps(list(r.alarms))
    return (
        *(r.time, r.request, r.key, r.trait, r.layer, r.steer),
        *(r.prompt, r.mean, r.peak, r.tokens, alarms, int(bool(r.alarms)), r.part),
    )
