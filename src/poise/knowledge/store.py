"""What a store of chunks can do, and what goes in and comes out. Does not know how either is searched."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["ChunkFilter", "ChunkStore", "ScoredChunk", "StoredChunk", "VectorArray", "glob_pattern"]

VectorArray = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """A chunk, and the file that it is of.

    Attributes:
        id: Hash of the file's path, the place in it, and the text.
        path: The file's name, as the build was told.
        kind: Format of the file.
        title: The document's title.
        headings: Those that it stands under, outermost first.
        page: Page or row, from 1; 0 where there is none.
        ordinal: Its place in the file, from 0.
        text: What it says.
        text_key: Hash of what is embedded.
        file_key: Hash of the file's content and of how it was read.
        labels: Who may see it: anybody where it has none, else those with one of these.
        marks: What in it reads as an instruction to a model.
    """

    id: str
    path: str
    kind: str
    title: str
    headings: tuple[str, ...]
    page: int
    ordinal: int
    text: str
    text_key: str
    file_key: str
    labels: tuple[str, ...]
    marks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ScoredChunk:
    """A chunk that a search came upon; a higher score is better, and scores of two ways do not compare."""

    chunk: StoredChunk
    score: float


@dataclass(frozen=True, slots=True)
class ChunkFilter:
    """What a search is limited to.

    Attributes:
        paths: Patterns of file names, of which one must fit; ``*`` crosses folders.
        kinds: Formats.
        labels: The asker's labels; ``None`` sees everything.
    """

    paths: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    labels: frozenset[str] | None = None

    @property
    def is_open(self) -> bool:
        """Whether nothing is filtered."""
        return not self.paths and not self.kinds and self.labels is None

    def allows(self, chunk: StoredChunk) -> bool:
        """Whether a chunk may be found."""
        return (
            (not self.paths or any(re.fullmatch(glob_pattern(path), chunk.path) for path in self.paths))
            and (not self.kinds or chunk.kind in self.kinds)
            and (self.labels is None or not chunk.labels or not self.labels.isdisjoint(chunk.labels))
        )


NO_FILTER = ChunkFilter()


def glob_pattern(glob: str) -> str:
    """A pattern with ``*`` and ``?`` as a regular expression that Python and Rust read alike."""
    return "".join({"*": r"(?s:.*)", "?": r"(?s:.)"}.get(sign, re.escape(sign)) for sign in glob)


class ChunkStore(Protocol):
    """Chunks with their vectors, on a disk. One process writes at a time; readers see what was committed."""

    def counts(self) -> Mapping[tuple[str, str], int]:
        """Number of chunks of each file, by path and ``file_key``, also of those that are not committed."""

    def add(self, chunks: Sequence[StoredChunk], vectors: VectorArray) -> None:
        """Add chunks with unit vectors [n, d], all of them or none.

        Raises:
            SaveFailed: the disk refused.
        """

    def remove(self, paths: Iterable[str]) -> None:
        """Remove all chunks of files."""

    def vectors_of(self, path: str) -> Mapping[str, VectorArray]:
        """Vectors [d] of a file's chunks by ``text_key``."""

    def commit(self) -> int:
        """Index what was added; the version that readers see from now on."""

    def dense(self, vector: VectorArray, top: int, where: ChunkFilter) -> list[ScoredChunk]:
        """The nearest by cosine, best first.

        Raises:
            InvalidKnowledge: the store is damaged.
        """

    def sparse(self, text: str, top: int, where: ChunkFilter) -> list[ScoredChunk]:
        """Those with the words of a text, by BM25, best first; none without any."""

    def check(self) -> None:
        """Search once in each way.

        Raises:
            InvalidKnowledge: the store is damaged.
        """

    def drop_indexes(self) -> None:
        """Forget what was indexed, so that ``commit`` makes it anew."""

    def close(self) -> None:
        """Let go of files."""


@dataclass(slots=True)
class RankFusion:
    """Reciprocal-rank fusion (Cormack et al. 2009): the sum of 1 / (60 + rank) over the ways that found a chunk."""

    scores: dict[str, float] = field(default_factory=dict)
    chunks: dict[str, StoredChunk] = field(default_factory=dict)

    def add(self, ranking: Sequence[ScoredChunk], constant: int = 60) -> None:
        """Count one way's ranking in."""
        for rank, scored in enumerate(ranking, 1):
            chunk = scored.chunk
            self.chunks[chunk.id] = chunk
            self.scores[chunk.id] = self.scores.get(chunk.id, 0.0) + 1.0 / (constant + rank)

    def best(self, top: int) -> list[ScoredChunk]:
        """Those with the highest sums; ties by id, so that they come out the same anywhere."""
        order = sorted(self.scores, key=lambda key: (-self.scores[key], key))[:top]
        return [ScoredChunk(self.chunks[key], self.scores[key]) for key in order]
