"""The store for those who outgrow a machine: a collection of Qdrant, on its server, or local files for a small one."""

from __future__ import annotations

import contextlib
import json
import math
import os
import pickle
import re
import sqlite3
import threading
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid4, uuid5
from zlib import crc32

import numpy as np

from poise.errors import (
    EndpointUnavailable,
    FolderInUse,
    InvalidKnowledge,
    MissingExtra,
    SaveFailed,
    first_line,
)
from poise.knowledge.store import NO_FILTER, ChunkFilter, ScoredChunk, StoredChunk, VectorArray, glob_pattern
from poise.storage.atomic_write import saving

__all__ = ["QdrantStore"]

LOCAL_NAME, SERVER_NAME = "chunks.qdrant", "qdrant.json"
_COLLECTION, _DENSE, _WORDS = "chunks", "dense", "words"
_SENT_AT_ONCE, _READ_AT_ONCE, _MOST_PATHS = 256, 2000, 1_000_000
_SATURATION, _LENGTH_SHARE, _USUAL_WORDS = 1.2, 0.75, 120  # BM25's k and b, and the words of a chunk
_FIELDS = ("path", "kind", "labels")


class QdrantStore:
    """See ``ChunkStore``; readers see all that was added.

    A new store is at ``QDRANT_URL`` where that is set (with ``QDRANT_API_KEY``), and its address is kept in the folder;
    else it is in files, which one process opens at a time. These are pickles: open those alone that you trust.

    Args:
        folder: Folder of the knowledge base.
        width: Width of the vectors.
    """

    def __init__(self, folder: Path, width: int) -> None:
        try:
            import qdrant_client
        except ImportError as error:
            raise MissingExtra.of("This knowledge base needs qdrant-client", "qdrant") from error
        self._models: Any = qdrant_client.models
        self.width, self._address = width, _address(folder)
        self._place = self._address.url or str(folder / LOCAL_NAME)
        with self._faults("opened"):
            self._client: Any = _opened_client(self._address, folder / LOCAL_NAME)
            self._release = weakref.finalize(self, _close_client, self._client)
            if not self._client.collection_exists(self._address.collection):
                self._create()

    def _create(self) -> None:
        models, name = self._models, self._address.collection
        self._client.create_collection(
            name,
            vectors_config={_DENSE: models.VectorParams(size=self.width, distance=models.Distance.DOT)},
            sparse_vectors_config={_WORDS: models.SparseVectorParams(modifier=models.Modifier.IDF)},
        )
        if self._address.url:
            for field in _FIELDS:
                self._client.create_payload_index(name, field, models.PayloadSchemaType.KEYWORD)

    @contextlib.contextmanager
    def _faults(self, what: str) -> Iterator[None]:
        """Whatever Qdrant raises, as the sentence that fits."""
        from qdrant_client.http.exceptions import ApiException

        try:
            yield
        except ApiException as error:
            raise EndpointUnavailable(
                f"Qdrant at {self._place} does not answer ({first_line(error)[:160]}); start it, or set QDRANT_API_KEY."
            ) from error
        except (OSError, RuntimeError, ValueError, KeyError, sqlite3.Error, pickle.PickleError, EOFError) as error:
            text = first_line(error)[:160]
            if "already accessed" in text:
                raise FolderInUse(
                    f"Another process has {self._place} open, and files of Qdrant are open once at a time; stop it, or "
                    "keep the knowledge base on a server (QDRANT_URL)."
                ) from error
            if any(sign in text for sign in ("disk is full", "disk I/O", "No space left", "File too large")):
                raise SaveFailed(
                    f"Cannot write to {self._place}: the disk is full; free some space, then run the same command "
                    "again: it continues from the last finished batch."
                ) from error
            if any(sign in text for sign in ("readonly", "Permission denied", "unable to open")):
                raise SaveFailed(f"Cannot write to {self._place}; get permission, or choose another path.") from error
            raise InvalidKnowledge(
                f"{self._place} cannot be {what} ({text}); if it is damaged, remove its folder and build it again."
            ) from error

    def _rows(self, where: Any, fields: Sequence[str], *, vectors: bool = False) -> Iterator[Any]:
        """All points that a filter lets through."""
        offset = None
        while True:
            with self._faults("read"):
                points, offset = self._client.scroll(
                    self._address.collection,
                    scroll_filter=where,
                    limit=_READ_AT_ONCE,
                    offset=offset,
                    with_payload=list(fields),
                    with_vectors=[_DENSE] if vectors else False,
                )
            yield from points
            if offset is None:
                return

    def counts(self) -> Mapping[tuple[str, str], int]:
        """See ``ChunkStore``."""
        rows = self._rows(None, ("path", "file_key"))
        return Counter((row.payload["path"], row.payload["file_key"]) for row in rows)

    def add(self, chunks: Sequence[StoredChunk], vectors: VectorArray) -> None:
        """See ``ChunkStore``."""
        points = [
            self._models.PointStruct(
                id=str(uuid5(NAMESPACE_URL, chunk.id)),
                vector={_DENSE: vector.tolist(), _WORDS: self._sparse_vector(_chunk_words(chunk))},
                payload=asdict(chunk),
            )
            for chunk, vector in zip(chunks, vectors, strict=True)
        ]
        with self._faults("written"):
            for first in range(0, len(points), _SENT_AT_ONCE):
                self._client.upsert(self._address.collection, points[first : first + _SENT_AT_ONCE], wait=True)

    def remove(self, paths: Iterable[str]) -> None:
        """See ``ChunkStore``."""
        names = sorted(paths)
        with self._faults("written"):
            for first in range(0, len(names), 200):
                where = self._models.Filter(must=[self._any("path", names[first : first + 200])])
                self._client.delete(self._address.collection, self._models.FilterSelector(filter=where), wait=True)

    def vectors_of(self, path: str) -> Mapping[str, VectorArray]:
        """See ``ChunkStore``."""
        where = self._models.Filter(must=[self._any("path", [path])])
        rows = self._rows(where, ("text_key",), vectors=True)
        return {row.payload["text_key"]: np.asarray(row.vector[_DENSE], dtype=np.float32) for row in rows}

    def commit(self) -> int:
        """See ``ChunkStore``."""
        return 0

    def dense(self, vector: VectorArray, top: int, where: ChunkFilter) -> list[ScoredChunk]:
        """See ``ChunkStore``."""
        return self._search(vector.tolist(), _DENSE, top, where)

    def sparse(self, text: str, top: int, where: ChunkFilter) -> list[ScoredChunk]:
        """See ``ChunkStore``."""
        words = _words_of(text)
        return self._search(self._sparse_vector(dict.fromkeys(words, 1.0)), _WORDS, top, where) if words else []

    def _search(self, query: Any, using: str, top: int, where: ChunkFilter) -> list[ScoredChunk]:
        with self._faults("searched"):
            answer = self._client.query_points(
                self._address.collection,
                query=query,
                using=using,
                query_filter=self._filter(where),
                limit=top,
                with_payload=True,
            )
            return [ScoredChunk(_payload_chunk(point.payload), float(point.score)) for point in answer.points]

    def _any(self, field: str, values: Sequence[str]) -> Any:
        return self._models.FieldCondition(key=field, match=self._models.MatchAny(any=list(values)))

    def _filter(self, where: ChunkFilter) -> Any:
        """The filter in Qdrant's words; it knows no patterns, so that these become the names that they fit."""
        models, must = self._models, []
        if where.paths:
            names = self._client.facet(self._address.collection, "path", limit=_MOST_PATHS, exact=True).hits
            fits = re.compile("|".join(f"(?:{glob_pattern(glob)})" for glob in where.paths))
            must.append(self._any("path", [hit.value for hit in names if fits.fullmatch(hit.value)]))
        if where.kinds:
            must.append(self._any("kind", where.kinds))
        if where.labels is not None:
            nobody = models.IsEmptyCondition(is_empty=models.PayloadField(key="labels"))
            must.append(models.Filter(should=[nobody, self._any("labels", sorted(where.labels))]))
        return models.Filter(must=must) if must else None

    def _sparse_vector(self, weights: Mapping[str, float]) -> Any:
        places = {crc32(word.encode()): weight for word, weight in weights.items()}
        return self._models.SparseVector(indices=list(places), values=list(places.values()))

    def check(self) -> None:
        """See ``ChunkStore``."""
        self.dense(np.ones(self.width, dtype=np.float32) / math.sqrt(self.width), 1, NO_FILTER)
        self.sparse("word", 1, NO_FILTER)

    def drop_indexes(self) -> None:
        """See ``ChunkStore``."""

    def close(self) -> None:
        """See ``ChunkStore``."""
        self._release()


@dataclass(frozen=True, slots=True)
class _QdrantAddress:
    """Where a collection is: on a server, or in files where ``url`` is empty."""

    url: str = ""
    collection: str = _COLLECTION


def _address(folder: Path) -> _QdrantAddress:
    """Where a knowledge base's collection is; a new one is at ``QDRANT_URL``, where that is set."""
    path = folder / SERVER_NAME
    if path.exists():
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return _QdrantAddress(str(content["url"]), str(content["collection"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidKnowledge(
                f"{path} is damaged ({str(error)[:120]}); remove {folder} and build it again."
            ) from error
    url = os.environ.get("QDRANT_URL", "")
    if not url or (folder / LOCAL_NAME).exists():
        return _QdrantAddress()
    address = _QdrantAddress(url, f"poise-{uuid4().hex}")
    folder.mkdir(parents=True, exist_ok=True)
    with saving(path) as temporary:
        temporary.write_text(json.dumps(asdict(address)), encoding="utf-8")
    return address


_LOCAL_CLIENTS: dict[str, list[Any]] = {}
"""Clients of local files with the number of their users: files are open once, also within a process."""

_CLIENTS_LOCK = threading.Lock()


def _opened_client(address: _QdrantAddress, path: Path) -> Any:
    from qdrant_client import QdrantClient

    if address.url:
        key = os.environ.get("QDRANT_API_KEY") or None
        return QdrantClient(url=address.url, api_key=key, timeout=60, check_compatibility=False)
    with _CLIENTS_LOCK:
        key = os.path.realpath(path)
        if key not in _LOCAL_CLIENTS:
            _LOCAL_CLIENTS[key] = [QdrantClient(path=key, force_disable_check_same_thread=True), 0]
        _LOCAL_CLIENTS[key][1] += 1
        return _LOCAL_CLIENTS[key][0]


def _close_client(client: Any) -> None:
    with _CLIENTS_LOCK:
        for key, entry in list(_LOCAL_CLIENTS.items()):
            if entry[0] is client:
                entry[1] -= 1
                if entry[1]:
                    return
                del _LOCAL_CLIENTS[key]
    client.close()


def _words_of(text: str) -> list[str]:
    from bm25s.stopwords import STOPWORDS_EN

    return [word for word in re.findall(r"\w\w+", text.casefold()) if word not in STOPWORDS_EN]


def _chunk_words(chunk: StoredChunk) -> dict[str, float]:
    """BM25's part of each word that does not depend on other chunks; the server knows how rare a word is."""
    words = _words_of(f"{chunk.title} {' '.join(chunk.headings)} {chunk.text}")
    length = 1 - _LENGTH_SHARE + _LENGTH_SHARE * len(words) / _USUAL_WORDS
    return {word: count * (_SATURATION + 1) / (count + _SATURATION * length) for word, count in Counter(words).items()}


def _payload_chunk(payload: Mapping[str, Any]) -> StoredChunk:
    lists: dict[str, Any] = {name: tuple(payload[name] or ()) for name in ("headings", "labels", "marks")}
    return StoredChunk(**(dict(payload) | lists))
