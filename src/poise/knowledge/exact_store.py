"""The exact store: one SQLite file, every vector compared by NumPy, words by bm25s. For tests and small collections."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from poise.errors import InvalidKnowledge, MissingExtra, SaveFailed
from poise.knowledge.store import ChunkFilter, ScoredChunk, StoredChunk, VectorArray
from poise.storage.sqlite_file import connected

__all__ = ["ExactStore"]

_TABLE = """
CREATE TABLE IF NOT EXISTS chunks (
    id TEXT PRIMARY KEY, path TEXT, file_key TEXT, text_key TEXT, ordinal INTEGER, content TEXT, vector BLOB
);
CREATE INDEX IF NOT EXISTS by_path ON chunks (path);
"""


class ExactStore:
    """See ``ChunkStore``; readers see all that was added.

    Args:
        folder: Folder of the knowledge base.
        width: Width of the vectors.
    """

    def __init__(self, folder: Path, width: int) -> None:
        self._path, self.width = folder / "chunks.sqlite", width
        if self._path.is_file() and not _is_sqlite(self._path):
            raise InvalidKnowledge(f"{self._path} is damaged (no database); remove its folder and build it again.")
        self._chunks: list[StoredChunk] | None = None
        self._vectors: VectorArray = np.empty((0, width), dtype=np.float32)
        self._words: Any = None

    def _run(self, statement: str, rows: Iterable[tuple[Any, ...]] = ()) -> list[tuple[Any, ...]]:
        with connected(self._path, "store of chunks") as db:
            db.executescript(_TABLE)
            batch = list(rows)
            if batch:
                db.executemany(statement, batch)
                return []
            return db.execute(statement).fetchall()

    def counts(self) -> Mapping[tuple[str, str], int]:
        """See ``ChunkStore``."""
        return Counter((row[0], row[1]) for row in self._run("SELECT path, file_key FROM chunks"))

    def add(self, chunks: Sequence[StoredChunk], vectors: VectorArray) -> None:
        """See ``ChunkStore``."""
        self._chunks = None
        rows = (
            (c.id, c.path, c.file_key, c.text_key, c.ordinal, json.dumps(asdict(c)), v.astype("<f4").tobytes())
            for c, v in zip(chunks, vectors, strict=True)
        )
        if chunks:
            self._run("INSERT INTO chunks VALUES (?, ?, ?, ?, ?, ?, ?)", rows)

    def remove(self, paths: Iterable[str]) -> None:
        """See ``ChunkStore``."""
        self._chunks = None
        if rows := [(path,) for path in paths]:
            self._run("DELETE FROM chunks WHERE path = ?", rows)

    def vectors_of(self, path: str) -> Mapping[str, VectorArray]:
        """See ``ChunkStore``."""
        with connected(self._path, "store of chunks") as db:
            db.executescript(_TABLE)
            rows = db.execute("SELECT text_key, vector FROM chunks WHERE path = ?", (path,)).fetchall()
        return {key: np.frombuffer(data, dtype="<f4") for key, data in rows}

    def commit(self) -> int:
        """See ``ChunkStore``."""
        return 0

    def _load(self) -> list[StoredChunk]:
        if self._chunks is not None:
            return self._chunks
        try:
            rows = self._run("SELECT content, vector FROM chunks ORDER BY path, ordinal")
            chunks = [_chunk(json.loads(content)) for content, _ in rows]
            vectors = [np.frombuffer(data, dtype="<f4") for _, data in rows]
            self._vectors = np.stack(vectors) if vectors else np.empty((0, self.width), dtype=np.float32)
        except (SaveFailed, ValueError, TypeError, KeyError) as error:
            raise InvalidKnowledge(
                f"{self._path} is damaged ({str(error)[:160]}); remove its folder and build it again."
            ) from error
        self._words, self._chunks = _word_index([f"{c.title} {' '.join(c.headings)} {c.text}" for c in chunks]), chunks
        return chunks

    def dense(self, vector: VectorArray, top: int, where: ChunkFilter) -> list[ScoredChunk]:
        """See ``ChunkStore``."""
        chunks = self._load()
        return _best_chunks(chunks, self._vectors @ vector, top, where)

    def sparse(self, text: str, top: int, where: ChunkFilter) -> list[ScoredChunk]:
        """See ``ChunkStore``."""
        chunks = self._load()
        if self._words is None:
            return []
        import bm25s

        tokens = bm25s.tokenize([text], stopwords="en", return_ids=False, show_progress=False)[0]
        known = [token for token in tokens if token in self._words.vocab_dict]
        if not known:
            return []
        scores = np.asarray(self._words.get_scores(known), dtype=np.float64)
        return [scored for scored in _best_chunks(chunks, scores, top, where) if scored.score > 0]

    def check(self) -> None:
        """See ``ChunkStore``."""
        self._load()

    def drop_indexes(self) -> None:
        """See ``ChunkStore``."""
        self._chunks = None

    def close(self) -> None:
        """See ``ChunkStore``."""
        self._chunks, self._words = None, None


def _is_sqlite(path: Path) -> bool:
    """Whether a file begins as SQLite's do; an empty one is a database that nothing was written to."""
    with path.open("rb") as file:
        return file.read(16) in (b"", b"SQLite format 3\0")


def _chunk(fields: dict[str, Any]) -> StoredChunk:
    lists: dict[str, Any] = {name: tuple(fields[name]) for name in ("headings", "labels", "marks")}
    return StoredChunk(**(fields | lists))


def _word_index(texts: Sequence[str]) -> Any:
    try:
        import bm25s
    except ImportError as error:
        raise MissingExtra.of("Search by words needs bm25s", "knowledge") from error
    tokens = bm25s.tokenize(list(texts), stopwords="en", show_progress=False)
    if not any(len(ids) for ids in tokens.ids):
        return None
    index = bm25s.BM25()
    index.index(tokens, show_progress=False)
    return index


def _best_chunks(
    chunks: Sequence[StoredChunk], scores: np.ndarray[Any, Any], top: int, where: ChunkFilter
) -> list[ScoredChunk]:
    order = np.argsort(-scores, kind="stable")
    results: list[ScoredChunk] = []
    for place in order:
        if len(results) == top:
            break
        if where.allows(chunks[place]):
            results.append(ScoredChunk(chunks[place], float(scores[place])))
    return results
