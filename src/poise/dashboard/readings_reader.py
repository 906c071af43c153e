"""A database of readings as it grows: opened for reading alone, by the ids of its rows, whatever clocks say."""

from __future__ import annotations

import contextlib
import math
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poise.errors import InvalidData

__all__ = ["ReadingsReader", "SourceReading"]

NEEDED = {"id", "time", "trait", "prompt", "mean", "peak", "alarmed"}
READING_FIELDS = ("mean", "peak", "prompt")
MOST_NEW_ROWS = 20_000  # that one poll takes in; the next goes on


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceReading:
    """One answer read by one vector; readings are ``None`` where they are missing or no numbers."""

    id: int
    time: float
    trait: str
    part: str
    prompt: float | None
    mean: float | None
    peak: float | None
    alarmed: bool


class ReadingsReader:
    """Reads a database that ``poise serve`` writes.

    Args:
        path: The database.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def after(self, last: int) -> list[SourceReading]:
        """Readings with a higher id, in the order in which they were written; of a database begun anew, all.

        Raises:
            InvalidData: it is not there, locked, damaged, or of another version.
        """
        with self._opened() as (db, columns):
            newest = db.execute("SELECT max(id) FROM readings").fetchone()[0] or 0
            part = "part" if "part" in columns else "'reply'"
            rows = db.execute(
                f"SELECT id, time, trait, {part}, prompt, mean, peak, alarmed FROM readings WHERE id > ? "
                "ORDER BY id LIMIT ?",
                [last if newest >= last else 0, MOST_NEW_ROWS],
            ).fetchall()
        return [_source_reading(row) for row in rows]

    def since(
        self, moment: float, most: int = 500_000
    ) -> list[tuple[str, str, float, float | None, float | None, int]]:
        """Trait, part, time, mean, peak and whether alarmed, since a time: what the page draws.

        Raises:
            InvalidData: as above.
        """
        with self._opened() as (db, columns):
            part = "part" if "part" in columns else "'reply'"
            rows = db.execute(
                f"SELECT trait, {part}, time, mean, peak, alarmed FROM readings WHERE time >= ? "
                "ORDER BY id DESC LIMIT ?",
                [moment, most],
            ).fetchall()
        return [
            (str(row[0]), str(row[1]), float(row[2]), _number(row[3]), _number(row[4]), int(bool(row[5])))
            for row in reversed(rows)
            if _number(row[2]) is not None
        ]

    def last(self, trait: str, part: str, reading: str, n: int) -> list[float]:
        """The last n readings of a trait, newest first; ``reading`` is one of ``mean``, ``peak`` and ``prompt``.

        Raises:
            InvalidData: as above.
        """
        if reading not in READING_FIELDS:
            raise InvalidData(f"There is no reading {reading!r}; there are {', '.join(READING_FIELDS)}.")
        with self._opened() as (db, columns):
            of_part = "part = ?" if "part" in columns else "'reply' = ?"
            rows = db.execute(
                f"SELECT {reading} FROM readings WHERE trait = ? AND {of_part} AND {reading} IS NOT NULL "
                "ORDER BY id DESC LIMIT ?",
                [trait, part, n],
            ).fetchall()
        return [value for (raw,) in rows if (value := _number(raw)) is not None]

    def traits(self) -> list[str]:
        """Names of the vectors that answers were read by.

        Raises:
            InvalidData: as above.
        """
        with self._opened() as (db, _):
            return [str(name) for (name,) in db.execute("SELECT DISTINCT trait FROM readings ORDER BY trait")]

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[sqlite3.Connection, set[str]]]:
        if not self.path.is_file():
            raise InvalidData(f"There are no readings at {self.path} yet.")
        try:
            address = f"{self.path.absolute().as_uri()}?mode=ro"
            with contextlib.closing(sqlite3.connect(address, uri=True, timeout=2.0)) as db:
                db.text_factory = lambda data: data.decode("utf-8", "replace")
                columns = {row[1] for row in db.execute("PRAGMA table_info(readings)")}
                if missing := sorted(NEEDED - columns):
                    what = f"lacks {', '.join(missing)}" if columns else "has no readings"
                    raise InvalidData(f"{self.path} {what}: another program or version wrote it; name the right file.")
                yield db, columns
        except sqlite3.Error as error:
            raise InvalidData(f"{self.path} cannot be read now ({error}).") from error


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _source_reading(row: Sequence[Any]) -> SourceReading:
    return SourceReading(
        id=int(row[0]),
        time=_number(row[1]) or time.time(),
        trait=str(row[2]),
        part=str(row[3]),
        prompt=_number(row[4]),
        mean=_number(row[5]),
        peak=_number(row[6]),
        alarmed=bool(row[7]),
    )
