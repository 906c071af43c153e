"""A question to the passages that fit it best: by meaning, by words, or by both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any, Literal, get_args

from poise.arguments import check_choice, check_number
from poise.errors import InvalidArgument
from poise.knowledge.encoders import TextEncoder, text_encoder
from poise.knowledge.header import HEADER_NAME, KnowledgeHeader, open_store, read_header
from poise.knowledge.reranking import TextReranker
from poise.knowledge.store import NO_FILTER, ChunkFilter, ChunkStore, RankFusion, ScoredChunk

__all__ = ["Knowledge", "RetrievedPassage", "SearchMode", "reranked"]

SearchMode = Literal["hybrid", "dense", "sparse"]
MOST_RESULTS = 200
MOST_QUESTION = 10_000
LONGEST_TITLE = 80  # characters of a title or heading in a prompt
RERANKED_DEPTH = 20
FUSED_DEPTH = 50
"""Results of each way that are fused, at least."""


@dataclass(frozen=True, slots=True)
class RetrievedPassage:
    """A passage that a search came upon.

    Attributes:
        id: Hash that its chunk is known by.
        path: Its file.
        title: The document's title.
        headings: Those that it stands under.
        page: Page or row, from 1; ``None`` where there is none.
        text: What it says.
        score: Higher is better, within one search.
        marks: What in it reads as an instruction to a model.
        labels: Who may see it.
    """

    id: str
    path: str
    title: str
    headings: tuple[str, ...]
    page: int | None
    text: str
    score: float
    marks: tuple[str, ...]
    labels: tuple[str, ...]

    @property
    def place(self) -> str:
        """File, headings and page in a line."""
        parts = dict.fromkeys(part for part in (self.path, *self.headings) if part)
        return " › ".join(parts) + (f", {self.page}" if self.page else "")

    @property
    def heading(self) -> str:
        """Document and headings as a model is shown them: a short title and no path, which small models repeat."""
        name = PurePath(self.path).name
        parts = dict.fromkeys(_shortened(part) for part in (self.title.strip() or name, *self.headings) if part)
        return " › ".join(parts)


def _shortened(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= LONGEST_TITLE else words[: LONGEST_TITLE - 1].rstrip() + "…"


class Knowledge:
    """A knowledge base that is open for questions; it sees the builds that end while it is open.

    Args:
        folder: Its folder.
        encoder: What embeds questions; else the one that it was built with.
        reranker: What scores the best passages of a search again and orders them.
        depth: How many of them, at least.

    Raises:
        InvalidKnowledge: it is missing or damaged.
        InvalidArgument: it was built with another encoder than the one that is passed.
    """

    def __init__(
        self,
        folder: Path,
        encoder: TextEncoder | None = None,
        *,
        reranker: TextReranker | None = None,
        depth: int = RERANKED_DEPTH,
    ) -> None:
        check_number("`depth`", depth, least=1, most=MOST_RESULTS)
        self.folder, self.reranker, self.depth = folder, reranker, depth
        self.header: KnowledgeHeader = read_header(folder)
        self._encoder = encoder or text_encoder(self.header.encoder, width=self.header.width)
        self._changed = self._change_mark()
        self._store: ChunkStore = self._open()

    def _open(self) -> ChunkStore:
        if self._encoder.name != self.header.encoder:
            raise InvalidArgument(
                f"{self.folder} was built with the encoder {self.header.encoder}, not with {self._encoder.name}; pass "
                "that one."
            )
        return open_store(self.folder, self.header.store, self.header.width, self.header.version)

    def _change_mark(self) -> Any:
        stat = (self.folder / HEADER_NAME).stat()
        return stat.st_mtime_ns, stat.st_ino

    def _refresh(self) -> None:
        try:
            mark = self._change_mark()
        except OSError:
            return  # what is open stays open
        if mark != self._changed:
            self.header, self._changed = read_header(self.folder), mark
            self._store.close()
            self._store = self._open()

    def search(
        self, question: str, top: int = 8, mode: SearchMode = "hybrid", where: ChunkFilter = NO_FILTER
    ) -> list[RetrievedPassage]:
        """The passages that fit best, best first.

        Args:
            question: What is looked for.
            top: Most passages.
            mode: ``dense`` by the cosine of embeddings, ``sparse`` by BM25 of words, ``hybrid`` by the fused ranks of
                both.
            where: What it is limited to.

        Raises:
            InvalidArgument: an empty or too long question, or a number or mode that is not there.
            EncoderUnavailable: the endpoint for embeddings does not answer.
            InvalidKnowledge: the store is damaged.
        """
        check_number("`top`", top, least=1, most=MOST_RESULTS)
        check_choice("`mode`", mode, get_args(SearchMode))
        if not question.strip():
            raise InvalidArgument("The question is empty; ask something.")
        if len(question) > MOST_QUESTION:
            raise InvalidArgument(
                f"The question has {len(question):,} characters; at most {MOST_QUESTION:,} are taken."
            )
        self._refresh()
        if not self.header.chunks:
            return []
        if self.reranker is None:
            return [_passage(scored) for scored in self._ranking(question, top, mode, where)]
        passages = [_passage(scored) for scored in self._ranking(question, max(top, self.depth), mode, where)]
        return reranked(question, passages, self.reranker)[:top]

    def _ranking(self, question: str, top: int, mode: SearchMode, where: ChunkFilter) -> list[ScoredChunk]:
        if mode == "sparse":
            return self._store.sparse(question, top, where)
        vector = self._encoder([question])[0]
        if mode == "dense":
            return self._store.dense(vector, top, where)
        depth, fusion = max(top, FUSED_DEPTH), RankFusion()
        fusion.add(self._store.dense(vector, depth, where))
        fusion.add(self._store.sparse(question, depth, where))
        return fusion.best(top)

    @property
    def labels(self) -> frozenset[str]:
        """Labels that any of its files has."""
        return frozenset(label for file in self.header.files.values() for label in file.labels)

    def close(self) -> None:
        """Let go of files."""
        self._store.close()


def reranked(question: str, passages: Sequence[RetrievedPassage], reranker: TextReranker) -> list[RetrievedPassage]:
    """Passages by the reranker's scores, best first; equal ones as they were."""
    scores = reranker(question, [f"{passage.heading}\n{passage.text}" for passage in passages]) if passages else []
    rescored = [replace(passage, score=score) for passage, score in zip(passages, scores, strict=True)]
    return sorted(rescored, key=lambda passage: -passage.score)


def _passage(scored: ScoredChunk) -> RetrievedPassage:
    chunk = scored.chunk
    return RetrievedPassage(
        id=chunk.id,
        path=chunk.path,
        title=chunk.title,
        headings=chunk.headings,
        page=chunk.page or None,
        text=chunk.text,
        score=scored.score,
        marks=chunk.marks,
        labels=chunk.labels,
    )
