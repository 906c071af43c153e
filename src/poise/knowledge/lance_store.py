"""The store for real collections: an embedded LanceDB table, with an index of words and, when large, of vectors."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from poise.errors import InvalidKnowledge, MissingExtra, SaveFailed, first_line
from poise.knowledge.store import NO_FILTER, ChunkFilter, ScoredChunk, StoredChunk, VectorArray, glob_pattern

__all__ = ["LanceStore"]

INDEXED_FROM = 50_000
"""Chunks from which vectors are indexed; fewer are all compared, which is exact."""

_PROBES, _REFINED = 40, 4
_CHECKED_ROWS, _CHECKED_CHARACTERS = 20, 4000  # whose words are looked for to see that the index can be read
_OLD = timedelta(hours=1)  # readers that opened an earlier version have this long
_COLUMNS = ("id", "path", "kind", "title", "headings", "page", "ordinal", "text", "text_key", "file_key")
_LISTS = ("headings", "labels", "marks")


class LanceStore:
    """See ``ChunkStore``.

    Args:
        folder: Folder of the knowledge base.
        width: Width of the vectors.
        version: The version that is read; ``None`` for the latest, which is the only one that can be written.
    """

    def __init__(self, folder: Path, width: int, version: int | None = None) -> None:
        try:
            import lancedb
        except ImportError as error:
            raise MissingExtra.of("A knowledge base needs LanceDB", "knowledge") from error
        self._path, self.width = folder / "chunks.lance", width
        with self._faults("opened"):
            database = lancedb.connect(str(folder))
            if version is None:
                self._table: Any = database.create_table("chunks", schema=_table_schema(width), exist_ok=True)
            else:
                self._table = database.open_table("chunks")
                self._table.checkout(version)

    @contextlib.contextmanager
    def _faults(self, what: str) -> Iterator[None]:
        """Whatever LanceDB raises, as the sentence that fits."""
        try:
            yield
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            text = str(error)
            if any(sign in text for sign in ("No space left", "os error 28", "File too large", "os error 27", "quota")):
                raise SaveFailed(
                    f"Cannot write to {self._path}: the disk is full; free some space, then run the same command "
                    "again: it continues from the last finished batch."
                ) from error
            if any(sign in text for sign in ("Permission denied", "os error 13", "Read-only", "os error 30")):
                raise SaveFailed(
                    f"Cannot write to {self._path}; get permission to write there, or choose another path."
                ) from error
            raise InvalidKnowledge(
                f"{self._path} cannot be {what} ({_lance_sentence(error)}); if it is damaged, remove its folder and "
                "build it again."
            ) from error

    def counts(self) -> Mapping[tuple[str, str], int]:
        """See ``ChunkStore``."""
        with self._faults("read"):
            rows = self._table.search().select(["path", "file_key"]).limit(self._table.count_rows() or 1).to_arrow()
            return Counter(zip(rows["path"].to_pylist(), rows["file_key"].to_pylist(), strict=True))

    def add(self, chunks: Sequence[StoredChunk], vectors: VectorArray) -> None:
        """See ``ChunkStore``."""
        import pyarrow as pa

        if not chunks:
            return
        columns: dict[str, Any] = {name: [getattr(chunk, name) for chunk in chunks] for name in _COLUMNS}
        columns |= {name: [list(getattr(chunk, name)) for chunk in chunks] for name in _LISTS}
        columns["words"] = [f"{c.title} {' '.join(c.headings)} {c.text}" for c in chunks]
        flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).ravel())
        columns["vector"] = pa.FixedSizeListArray.from_arrays(flat, self.width)
        with self._faults("written"):
            self._table.add(pa.table(columns, schema=_table_schema(self.width)))

    def remove(self, paths: Iterable[str]) -> None:
        """See ``ChunkStore``."""
        names = sorted(paths)
        with self._faults("written"):
            for first in range(0, len(names), 200):
                listed = ", ".join(_quoted(name) for name in names[first : first + 200])
                self._table.delete(f"path IN ({listed})")

    def vectors_of(self, path: str) -> Mapping[str, VectorArray]:
        """See ``ChunkStore``."""
        with self._faults("read"):
            search = self._table.search().where(f"path = {_quoted(path)}").select(["text_key", "vector"])
            rows = search.limit(self._table.count_rows() or 1).to_arrow()
        vectors = rows["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, self.width)
        return dict(zip(rows["text_key"].to_pylist(), vectors, strict=True))

    def commit(self) -> int:
        """See ``ChunkStore``."""
        from lancedb.index import FTS

        with self._faults("indexed"):
            indexed = {column for index in self._table.list_indices() for column in index.columns}
            rows = self._table.count_rows()
            if "words" not in indexed and rows:
                self._table.create_index("words", config=FTS())
            if "vector" not in indexed and rows >= INDEXED_FROM:
                self._table.create_index("vector", config=_vector_index(rows))
            self._table.optimize(cleanup_older_than=_OLD)
            return int(self._table.version)

    def dense(self, vector: VectorArray, top: int, where: ChunkFilter) -> list[ScoredChunk]:
        """See ``ChunkStore``."""
        with self._faults("searched"):
            search = self._table.search(vector, vector_column_name="vector").distance_type("cosine")
            search = search.nprobes(_PROBES).refine_factor(_REFINED)
            rows = _limited(search, where).select([*_COLUMNS, "labels", "marks", "_distance"]).limit(top).to_list()
        return [ScoredChunk(_chunk_of(row), 1.0 - float(row["_distance"])) for row in rows]

    def sparse(self, text: str, top: int, where: ChunkFilter) -> list[ScoredChunk]:
        """See ``ChunkStore``."""
        from lancedb.query import MatchQuery

        if not text.strip() or not self._table.count_rows():
            return []
        with self._faults("searched"):
            query: Any = MatchQuery(text, "words")  # type: ignore[call-arg]  # its defaults are hidden from mypy
            search = self._table.search(query, query_type="fts")
            rows = _limited(search, where).select([*_COLUMNS, "labels", "marks", "_score"]).limit(top).to_list()
        return [ScoredChunk(_chunk_of(row), float(row["_score"])) for row in rows]

    def check(self) -> None:
        """See ``ChunkStore``."""
        with self._faults("read"):
            rows = self._table.search().select(["words"]).limit(_CHECKED_ROWS).to_list()
        words = " ".join(str(row["words"]) for row in rows)[:_CHECKED_CHARACTERS]
        self.sparse(words, 1, NO_FILTER)
        if rows:
            self.dense(np.ones(self.width, dtype=np.float32), 1, NO_FILTER)

    def drop_indexes(self) -> None:
        """See ``ChunkStore``."""
        with self._faults("indexed"):
            for index in self._table.list_indices():
                self._table.drop_index(index.name)

    def close(self) -> None:
        """See ``ChunkStore``."""


def _lance_sentence(error: Exception) -> str:
    """The first line of an error, without the place in LanceDB's source that ends it."""
    return re.sub(r", /\S*(rustc|cargo)\S*$", "", first_line(error))[:200]


def _table_schema(width: int) -> Any:
    import pyarrow as pa

    texts = [pa.field(name, pa.int32() if name in ("page", "ordinal") else pa.string()) for name in _COLUMNS]
    texts[_COLUMNS.index("headings")] = pa.field("headings", pa.list_(pa.string()))
    lists = [pa.field(name, pa.list_(pa.string())) for name in ("labels", "marks")]
    vector = pa.field("vector", pa.list_(pa.float32(), width))
    return pa.schema([*texts, *lists, pa.field("words", pa.string()), vector])


def _vector_index(rows: int) -> Any:
    """Cells of about 1,000 vectors, each stored in a byte a dimension."""
    from lancedb.index import IvfSq

    return IvfSq(distance_type="cosine", num_partitions=max(16, rows // 1000))


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _limited(search: Any, where: ChunkFilter) -> Any:
    parts = []
    if where.paths:
        fits = " OR ".join(f"regexp_like(path, {_quoted(f'^(?:{glob_pattern(glob)})$')})" for glob in where.paths)
        parts.append(f"({fits})")
    if where.kinds:
        parts.append(f"kind IN ({', '.join(_quoted(kind) for kind in where.kinds)})")
    if where.labels is not None:
        listed = ", ".join(_quoted(label) for label in sorted(where.labels))
        shared = f" OR array_has_any(labels, [{listed}])" if listed else ""
        parts.append(f"(array_length(labels) IS NULL OR array_length(labels) = 0{shared})")
    return search.where(" AND ".join(parts), prefilter=True) if parts else search


def _chunk_of(row: Mapping[str, Any]) -> StoredChunk:
    lists: dict[str, Any] = {name: tuple(row[name] or ()) for name in _LISTS}
    return StoredChunk(**({name: row[name] for name in _COLUMNS} | lists))
