"""Projections of texts that were read before, found by the text's tokens and the direction, whatever row they are in.

A row added, a file renamed, rows in another order or one more trait: only what is new is read. A text keeps the numbers
that it got when it was first read. What a job may take from here is fixed when it begins, so that a killed run goes on
with the same batches, and ends with the same numbers, as one that was not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from poise.activations import Probe
from poise.model import Encoded, Model
from poise.storage.content_hash import content_key
from poise.storage.sqlite_file import connected

__all__ = ["ReadingCache", "ReadingNumbers", "ReadingStore", "WindowCache", "text_key", "unknown"]

KEYS_PER_QUERY = 500
CACHE_TABLES = """
CREATE TABLE IF NOT EXISTS jobs (id INTEGER PRIMARY KEY, job TEXT UNIQUE, directions TEXT, seen INTEGER);
CREATE TABLE IF NOT EXISTS readings (
    place INTEGER PRIMARY KEY, text BLOB, job INTEGER, part INTEGER, numbers BLOB, UNIQUE (text, job)
);
"""
ADD_READING = """
INSERT INTO readings (text, job, part, numbers) VALUES (?, ?, ?, ?)
ON CONFLICT (text, job) DO UPDATE SET part = excluded.part, numbers = excluded.numbers WHERE part > excluded.part
"""  # of one text in two windows the earlier counts, whichever worker was first

ReadingNumbers = NDArray[np.float32]


class ReadingStore(Protocol):
    """A store of readings; see ``ReadingCache``."""

    def load(self, keys: Sequence[bytes]) -> dict[bytes, ReadingNumbers]:
        """What was known of texts when the job began."""

    def save(self, part: int, readings: Mapping[bytes, ReadingNumbers]) -> None:
        """Keep what was read of the texts of a window."""


class ReadingCache:
    """Readings of one model, in one SQLite file for all of its data and directions.

    Args:
        folder: Folder that holds the file.
        job: Name of the work at hand.
        model: The model that reads.
        probes: k of them.
    """

    def __init__(self, folder: Path, job: str, model: Model, probes: Sequence[Probe]) -> None:
        key = content_key(model=asdict(model.fingerprint), dtype=str(model.lm.dtype), device=model.device.type)
        self.path, self.job = folder / f"readings-{key[:16]}.sqlite", job
        self.directions = [direction_key(probe) for probe in probes]
        self.jobs: dict[int, list[str]] = {}
        self.number = self.seen = 0

    def load(self, keys: Sequence[bytes]) -> dict[bytes, ReadingNumbers]:
        """What was known of texts when the job began: float32 [k, 2] each, NaN for directions that are not known."""
        self._begin()
        texts: dict[bytes, ReadingNumbers] = {}
        if not self.seen:
            return texts
        with connected(self.path, "kept readings") as db:
            for some in (keys[i : i + KEYS_PER_QUERY] for i in range(0, len(keys), KEYS_PER_QUERY)):
                marks = ",".join("?" * len(some))
                query = f"SELECT text, job, numbers FROM readings WHERE text IN ({marks}) AND place <= ? ORDER BY place"
                for text, job, numbers in db.execute(query, (*some, self.seen)):
                    self._add_known(texts, text, job, numbers)
        return texts

    def save(self, part: int, readings: Mapping[bytes, ReadingNumbers]) -> None:
        """Keep what was read of the texts of a window: float32 [k, 2] each, NaN for what was known before.

        Raises:
            SaveFailed: the disk refused.
        """
        self._begin()
        rows = [(key, self.number, part, numbers.astype("<f4").tobytes()) for key, numbers in readings.items()]
        with connected(self.path, "kept readings") as db:
            db.executemany(ADD_READING, rows)

    def _add_known(self, texts: dict[bytes, ReadingNumbers], text: bytes, job: int, numbers: bytes) -> None:
        table = np.frombuffer(numbers, dtype="<f4").reshape(-1, 2)
        known = texts.setdefault(text, np.full((len(self.directions), 2), np.nan, dtype=np.float32))
        for direction, pair in zip(self.jobs[job], table, strict=True):
            for k, own_direction in enumerate(self.directions):
                if own_direction == direction and np.isnan(known[k, 0]):
                    known[k] = pair

    def _begin(self) -> None:
        """Enter the job, with the place of the last reading that it may take; where it is entered, go on with that."""
        if self.number:
            return
        with connected(self.path, "kept readings") as db:
            db.execute("PRAGMA journal_mode=WAL")
            db.executescript(CACHE_TABLES)
            db.execute(
                "INSERT OR IGNORE INTO jobs (job, directions, seen) "
                "VALUES (?, ?, (SELECT coalesce(max(place), 0) FROM readings))",
                (self.job, json.dumps(self.directions)),
            )
            self.number, self.seen = db.execute("SELECT id, seen FROM jobs WHERE job = ?", (self.job,)).fetchone()
            self.jobs = {number: json.loads(names) for number, names in db.execute("SELECT id, directions FROM jobs")}


@dataclass(frozen=True, slots=True)
class WindowCache:
    """A cache as one window of the data uses it.

    Attributes:
        cache: The cache of the job.
        part: Number of the window.
    """

    cache: ReadingStore
    part: int

    def load(self, keys: Sequence[bytes]) -> dict[bytes, ReadingNumbers]:
        """See ``ReadingCache.load``."""
        return self.cache.load(keys)

    def save(self, readings: Mapping[bytes, ReadingNumbers]) -> None:
        """See ``ReadingCache.save``."""
        self.cache.save(self.part, readings)


def text_key(text: Encoded) -> bytes:
    """What determines a text's readings: all tokens of its pass, and where the answer and the prompt end in it."""
    ids = np.array([text.start, text.end, text.last_prompt, *text.ids], dtype="<i8")
    return hashlib.sha256(ids.tobytes()).digest()[:16]


def direction_key(probe: Probe) -> str:
    """Equal layer and direction, equal key."""
    return content_key(layer=probe.layer, direction=hashlib.sha256(probe.direction.numpy().tobytes()).hexdigest())[:16]


def unknown(numbers: Iterable[ReadingNumbers | None], k: int) -> list[int]:
    """Which of k directions are not known of some text; ``None`` stands for a text of which nothing is."""
    missing = np.zeros(k, dtype=bool)
    for known in numbers:
        missing |= True if known is None else np.isnan(known[:, 0])
    return np.flatnonzero(missing).tolist()
