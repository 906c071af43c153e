"""Entries that are kept, in memory, for search: their vectors compared by NumPy, their words by SQLite's FTS5.

Nothing of it is on the disk. It follows the file: what other processes wrote is read before the next search.
"""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
from collections.abc import Container, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from poise.grounding.facts import content_words
from poise.memory.entries import MemoryEntry
from poise.memory.memory_file import COLUMNS, damaged_entry, entry_of

if TYPE_CHECKING:
    from poise.knowledge.store import VectorArray

__all__ = ["EntryIndex"]

MOST_WORDS = 60  # of a text that is looked for
MOST_BY_WORDS = 500  # entries that words find
NUMBER_BYTES = 4  # of a vector's number


class EntryIndex:
    """What is kept, searchable.

    Args:
        width: Numbers of a vector.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.revision = -1
        self.entries: dict[int, MemoryEntry] = {}
        self._rows: list[int] = []
        self._places: dict[int, int] = {}
        self._vectors: VectorArray = np.empty((64, width), dtype=np.float32)
        self._words = _word_table()

    def follow(self, db: sqlite3.Connection) -> None:
        """Read the entries again where the file has another revision than what is here."""
        revision = revision_of(db)
        if revision == self.revision:
            return
        self.entries, self._rows, self._places = {}, [], {}
        self._words.close()
        self._words = _word_table()
        sources = sources_of(db)
        for *row, vector in db.execute(f"SELECT {COLUMNS}, vector FROM entries WHERE status = 'kept' ORDER BY id"):
            entry = entry_of(tuple(row), sources.get(row[0], ()))
            if not isinstance(vector, bytes) or len(vector) != NUMBER_BYTES * self.width:
                raise damaged_entry(entry.id, f"its vector has not {self.width} numbers")
            self._add(entry, np.frombuffer(vector, dtype="<f4"))
        self.revision = revision

    def insert(self, entry: MemoryEntry, vector: VectorArray, revision: int) -> None:
        """Take in what this process wrote itself, so that the file need not be read again."""
        self._add(entry, vector)
        self.revision = revision

    def _add(self, entry: MemoryEntry, vector: VectorArray) -> None:
        if len(self._rows) == len(self._vectors):
            self._vectors = np.concatenate([self._vectors, np.empty_like(self._vectors)])
        self._places[entry.id] = len(self._rows)
        self._vectors[len(self._rows)] = vector
        self._rows.append(entry.id)
        self.entries[entry.id] = entry
        words = " ".join(content_words(f"{entry.text} {entry.subject} {entry.name}"))
        self._words.execute("INSERT INTO words (rowid, text) VALUES (?, ?)", (entry.id, words))

    def meanings(self, vector: VectorArray) -> dict[int, float]:
        """Cosine of each entry's text with a unit vector [d], by id."""
        scores = self._vectors[: len(self._rows)] @ vector
        return dict(zip(self._rows, scores.tolist(), strict=True))

    def of_subject(self, subject: str | None) -> dict[int, MemoryEntry]:
        """Entries by id: those of a subject, or all."""
        return {key: entry for key, entry in self.entries.items() if subject is None or entry.subject == subject}

    def words(self, text: str, among: Container[int]) -> dict[int, float]:
        """Share of the best BM25 score, from 0 to 1, of the entries among these that have words of a text, by id."""
        terms = list(dict.fromkeys(content_words(text)))[:MOST_WORDS]
        if not terms:
            return {}
        query = " OR ".join(f'"{term}"' for term in terms)
        rows = self._words.execute(
            "SELECT rowid, -bm25(words) AS score FROM words WHERE words MATCH ? ORDER BY score DESC", (query,)
        )
        scores = dict(itertools.islice(((key, score) for key, score in rows if key in among), MOST_BY_WORDS))
        best = max(scores.values(), default=0.0)
        return {key: score / best if best > 0 else 0.0 for key, score in scores.items()}

    def nearest(
        self, vector: VectorArray, most: int, kinds: Sequence[str], subject: str | None = None
    ) -> list[tuple[MemoryEntry, float]]:
        """The entries of some kinds whose texts mean most nearly the same, with their cosines, nearest first.

        Args:
            vector: What is compared, of length 1 [d].
            most: Most entries.
            kinds: Kinds of memory.
            subject: Only entries of this subject; ``None`` for all.
        """
        scores = self._vectors[: len(self._rows)] @ vector
        near: list[tuple[MemoryEntry, float]] = []
        for place in np.argsort(-scores, kind="stable"):
            entry = self.entries[self._rows[place]]
            if entry.kind in kinds and subject in (None, entry.subject):
                near.append((entry, float(scores[place])))
            if len(near) == most:
                break
        return near

    def close(self) -> None:
        """Let go of it."""
        with contextlib.suppress(sqlite3.Error):
            self._words.close()


def revision_of(db: sqlite3.Connection) -> int:
    """How often what is kept has changed."""
    row = db.execute("SELECT value FROM about WHERE key = 'revision'").fetchone()
    return int(row[0]) if row else 0


def raise_revision(db: sqlite3.Connection) -> int:
    """Count a change of what is kept; the new revision."""
    revision = revision_of(db) + 1
    db.execute("INSERT OR REPLACE INTO about VALUES ('revision', ?)", (str(revision),))
    return revision


def sources_of(db: sqlite3.Connection) -> dict[int, tuple[int, ...]]:
    """Ids of the entries that each entry was made of, by its id."""
    sources: dict[int, tuple[int, ...]] = {}
    for entry, source in db.execute("SELECT entry, source FROM sources ORDER BY entry, source"):
        sources[entry] = (*sources.get(entry, ()), source)
    return sources


def _word_table() -> Any:
    db = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
    db.execute("CREATE VIRTUAL TABLE words USING fts5(text, tokenize = 'porter unicode61')")
    return db
