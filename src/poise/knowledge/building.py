"""Documents to a knowledge base: what is new or changed is read and embedded, what is gone leaves, the others stay.

A build that is killed loses at most the batch it was in. Readers see the last finished build until the next one ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from re import fullmatch

import numpy as np

from poise.arguments import check_number
from poise.errors import InvalidArgument, InvalidDocument, InvalidKnowledge, OutputExists
from poise.knowledge.documents import Chunk, chunks_of
from poise.knowledge.encoders import BUNDLED_ENCODER, TextEncoder, text_encoder
from poise.knowledge.header import (
    HEADER_NAME,
    KnowledgeFile,
    KnowledgeHeader,
    StoreName,
    open_store,
    put_aside,
    read_header,
)
from poise.knowledge.reading import read_document
from poise.knowledge.source_files import document_bytes, document_names, is_utf8_name, printable_name
from poise.knowledge.store import ChunkStore, StoredChunk, VectorArray, glob_pattern
from poise.progress import track
from poise.storage.content_hash import content_key
from poise.storage.journal import Journal
from poise.storage.lock import locked

__all__ = ["BuildSettings", "BuildSummary", "build_knowledge"]

READERS_VERSION = 3
"""Raised when a document is read otherwise than before, so that all of them are read again."""

_RUN_FOLDER = ".run"
_FINISHED = "finished.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSettings:
    """How documents are read; what is ``None`` is as in the last build, so that no document loses its label unasked.

    Attributes:
        chunk: Most characters of a chunk, 900 in a new knowledge base; these are about 200 tokens, of which the
            bundled encoder reads 256.
        labels: Rules ``LABEL=PATTERN``: files whose names fit a pattern are seen by those with its label.
        store: What keeps the chunks, ``lance`` in a new knowledge base.
        batch: Chunks that are embedded and written at once; what a kill can lose.
    """

    chunk: int | None = None
    labels: tuple[str, ...] | None = None
    store: StoreName | None = None
    batch: int = 512

    def __post_init__(self) -> None:
        if self.chunk is not None:
            check_number("`chunk`", self.chunk, least=100, most=20_000)
        check_number("`batch`", self.batch, least=1, most=100_000)
        for rule in self.labels or ():
            label, _, pattern = rule.partition("=")
            if not label or not pattern:
                raise InvalidArgument(f"`label` is {rule!r}; write LABEL=PATTERN, such as staff=docs/internal/*.")


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a build goes by: its settings, and what they leave open from the last build."""

    encoder: TextEncoder
    store: StoreName
    chunk: int
    labels: tuple[str, ...]
    batch: int

    @classmethod
    def of(cls, settings: BuildSettings, encoder: TextEncoder | None, earlier: KnowledgeHeader | None) -> _Plan:
        if earlier is None:
            return cls(
                encoder=encoder or text_encoder(BUNDLED_ENCODER),
                store=settings.store or "lance",
                chunk=settings.chunk or 900,
                labels=settings.labels or (),
                batch=settings.batch,
            )
        return cls(
            encoder=encoder or text_encoder(earlier.encoder, width=earlier.width),
            store=settings.store or earlier.store,
            chunk=settings.chunk or earlier.chunk,
            labels=earlier.labels if settings.labels is None else settings.labels,
            batch=settings.batch,
        )

    def labels_of(self, path: str) -> tuple[str, ...]:
        """Labels of a file by its name."""
        rules = (rule.partition("=") for rule in self.labels)
        return tuple(sorted({label for label, _, pattern in rules if fullmatch(glob_pattern(pattern), path)}))


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSummary:
    """What a build did.

    Attributes:
        header: What the knowledge base holds now.
        added: Files that were new.
        changed: Files that were read again.
        removed: Files that left.
        unchanged: Files that stayed as they were.
        embedded: Chunks that were embedded.
        reused: Chunks of changed files whose text had been embedded before.
        marked: Chunks that hold what reads as an instruction to a model, of those that were read.
        idle_labels: Label rules that fit the name of no file, so that they hide nothing.
        repaired: What was damaged and has been made anew; empty where nothing was.
    """

    header: KnowledgeHeader
    added: int = 0
    changed: int = 0
    removed: int = 0
    unchanged: int = 0
    embedded: int = 0
    reused: int = 0
    marked: int = 0
    idle_labels: tuple[str, ...] = ()
    repaired: str = ""


def build_knowledge(
    documents: Sequence[str | Path],
    out: Path,
    encoder: TextEncoder | None = None,
    settings: BuildSettings | None = None,
) -> BuildSummary:
    """Build a knowledge base, or bring one up to date.

    Args:
        documents: Files, and folders that are searched for files that can be read. They are all that it holds
            afterwards; none means those of the last build.
        out: Its folder.
        encoder: What embeds; else that of the last build, or the bundled one.
        settings: How documents are read; what it leaves open is as in the last build.

    Raises:
        InvalidArgument: a document is not there, or there are none.
        InvalidKnowledge: what is in ``out`` is damaged, or was built with another encoder or store.
        FolderInUse: another build is at work there.
        EncoderUnavailable: the endpoint does not answer; finished batches are kept.
        OutputExists: ``out`` holds something else.
        SaveFailed: the disk refused; readers see what was there before.
    """
    settings = settings or BuildSettings()
    earlier = _earlier(out, encoder, settings)
    sources = tuple(str(Path(source)) for source in documents) or (earlier.sources if earlier else ())
    paths = document_names(sources, out)
    with locked(out / _RUN_FOLDER, "knowledge"):
        earlier = _earlier(out, encoder, settings)  # another build may have ended since
        plan = _Plan.of(settings, encoder, earlier)
        try:
            return _built(out, plan, earlier, sources, paths)
        except InvalidKnowledge as error:
            (out / _RUN_FOLDER / _FINISHED).unlink(missing_ok=True)
            aside = put_aside(out)
            if aside is None:
                raise
            summary = _built(out, plan, earlier, sources, paths)
            repaired = f"it was put aside as {aside}, and all documents were read anew ({error})"
            return replace(summary, repaired=repaired)


def _built(
    out: Path, plan: _Plan, earlier: KnowledgeHeader | None, sources: tuple[str, ...], paths: Sequence[str]
) -> BuildSummary:
    store = open_store(out, plan.store, plan.encoder.width)
    try:
        return _Build(out, plan, earlier, store).run(sources, paths)
    finally:
        store.close()


def _earlier(out: Path, encoder: TextEncoder | None, settings: BuildSettings) -> KnowledgeHeader | None:
    """The header of what is there, checked to fit; ``None`` for a new or unfinished knowledge base."""
    if not (out / HEADER_NAME).exists():
        if out.exists() and not (out / _RUN_FOLDER).exists() and any(out.iterdir()):
            raise OutputExists(f"{out} holds files of something else; choose another output.")
        return None
    header = read_header(out)
    wanted = (encoder.name if encoder else header.encoder, settings.store or header.store)
    if (header.encoder, header.store) != wanted:
        raise InvalidKnowledge(
            f"{out} was built with the encoder {header.encoder} and the store {header.store}, not with {wanted[0]} "
            f"and {wanted[1]}; leave them out, or choose another output."
        )
    return header


@dataclass(slots=True)
class _Batch:
    """Chunks that wait to be embedded and written; files whose old chunks leave first, and those that end here."""

    chunks: list[StoredChunk] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    vectors: list[VectorArray | None] = field(default_factory=list)
    replaced: set[str] = field(default_factory=set)
    finished: list[tuple[str, int]] = field(default_factory=list)


class _Build:
    """One build under way; the counts are those of its summary."""

    def __init__(
        self,
        out: Path,
        plan: _Plan,
        earlier: KnowledgeHeader | None,
        store: ChunkStore,
    ) -> None:
        self._out, self._plan, self._encoder, self._store = out, plan, plan.encoder, store
        self._earlier = earlier
        self._earlier_files = earlier.files if earlier else {}
        self._journal = Journal(out / _RUN_FOLDER / _FINISHED)
        self._stored = dict(store.counts())
        self._stored_paths = {path for path, _ in self._stored}
        self._touched = bool(len(self._journal))
        self._batch = _Batch()
        self._repaired = ""
        self._gone: dict[str, str] = {}  # name by key of what left: under another name it need not be embedded again
        self._files: dict[str, KnowledgeFile] = {}
        self._skipped: dict[str, str] = {}
        self._counts = {"added": 0, "changed": 0, "unchanged": 0, "embedded": 0, "reused": 0, "marked": 0}

    def run(self, sources: tuple[str, ...], paths: Sequence[str]) -> BuildSummary:
        """Bring the store up to date and write the header."""
        gone = self._stored_paths - set(paths)
        self._gone = {file.key: path for path, file in self._earlier_files.items() if path in gone}
        with track("Reading documents", total=len(paths)) as advance:
            for path in paths:
                self._take(path)
                advance(1)
        self._flush()
        self._remove(gone | (self._stored_paths & self._skipped.keys()))
        header = KnowledgeHeader(
            store=self._plan.store,
            version=self._version(),
            encoder=self._encoder.name,
            width=self._encoder.width,
            chunk=self._plan.chunk,
            sources=sources,
            labels=self._plan.labels,
            files=self._files,
            skipped=self._skipped,
        )
        header.save(self._out)
        (self._out / _RUN_FOLDER / _FINISHED).unlink(missing_ok=True)
        removed = len(self._earlier_files.keys() - self._files.keys())
        idle = self._idle_labels(paths)
        return BuildSummary(header=header, removed=removed, idle_labels=idle, repaired=self._repaired, **self._counts)

    def _idle_labels(self, paths: Sequence[str]) -> tuple[str, ...]:
        patterns = {rule: glob_pattern(rule.partition("=")[2]) for rule in self._plan.labels}
        return tuple(rule for rule, fits in patterns.items() if not any(fullmatch(fits, path) for path in paths))

    def _version(self) -> int:
        """That of the last build where nothing has changed since, and else a new one."""
        try:
            return self._checked_version()
        except InvalidKnowledge:
            self._store.drop_indexes()
            self._repaired = "its indexes were made anew."
            self._earlier = None
            return self._checked_version()

    def _checked_version(self) -> int:
        changed = self._earlier is None or self._touched or self._files != self._earlier_files
        version = self._store.commit() if changed or self._earlier is None else self._earlier.version
        self._store.check()
        return version

    def _remove(self, paths: set[str]) -> None:
        if paths:
            self._touched = True
            self._store.remove(paths)

    def _take(self, path: str) -> None:
        """One file: left as it is, or read again; a broken one is listed."""
        if not is_utf8_name(path):
            self._skipped[printable_name(path)] = "its name is not UTF-8; rename it"
            return
        try:
            data = document_bytes(Path(path))
            labels = self._plan.labels_of(path)
            key = content_key(
                data=sha256(data).hexdigest(), labels=labels, chunk=self._plan.chunk, readers=READERS_VERSION
            )
            count = self._count_if_finished(path, key)
            if count is None:
                count = self._replace(path, data, key, labels)
                self._counts["changed" if path in self._earlier_files else "added"] += 1
            else:
                self._counts["unchanged"] += 1
            self._files[path] = KnowledgeFile(key=key, chunks=count, labels=labels)
        except InvalidDocument as error:
            self._skipped[path] = str(error)

    def _count_if_finished(self, path: str, key: str) -> int | None:
        """Number of chunks of a file that is in the store as it is now, from this build or an earlier one."""
        file = self._earlier_files.get(path)
        count = file.chunks if file and file.key == key else None
        if (journal_key := content_key(path=path, key=key)) in self._journal:
            count = int(self._journal[journal_key])
        return count if count is not None and self._stored.get((path, key), 0) == count else None

    def _replace(self, path: str, data: bytes, key: str, labels: tuple[str, ...]) -> int:
        """Read a file and queue its chunks in the place of its old ones; how many."""
        document = read_document(Path(path), data)
        chunks = list(chunks_of(document, self._plan.chunk))
        if not chunks:
            raise InvalidDocument("it has no text")
        before = path if path in self._stored_paths else self._gone.get(key)
        vectors = self._store.vectors_of(before) if before is not None else {}
        if path in self._stored_paths:
            self._batch.replaced.add(path)
        for chunk in chunks:
            stored = _stored_chunk(chunk, path, document.kind, key, labels)
            vector = vectors.get(stored.text_key)
            self._batch.chunks.append(stored)
            self._batch.texts.append(chunk.embedded_text)
            self._batch.vectors.append(vector)
            self._counts["embedded" if vector is None else "reused"] += 1
            self._counts["marked"] += bool(stored.marks)
            if len(self._batch.chunks) >= self._plan.batch:
                self._flush()
        self._batch.finished.append((content_key(path=path, key=key), len(chunks)))
        return len(chunks)

    def _flush(self) -> None:
        """Embed and write what waits, and note which files are complete with it."""
        batch, self._batch = self._batch, _Batch()
        fresh = [place for place, vector in enumerate(batch.vectors) if vector is None]
        vectors = np.empty((len(batch.chunks), self._encoder.width), dtype=np.float32)
        if fresh:
            with track("Embedding chunks"):
                vectors[fresh] = self._encoder([batch.texts[place] for place in fresh])
        for place, vector in enumerate(batch.vectors):
            if vector is not None:
                vectors[place] = vector
        self._remove(batch.replaced)
        self._touched = self._touched or bool(batch.chunks)
        self._store.add(batch.chunks, vectors)
        self._journal.append(batch.finished)


def _stored_chunk(chunk: Chunk, path: str, kind: str, key: str, labels: tuple[str, ...]) -> StoredChunk:
    return StoredChunk(
        id=content_key(path=path, n=chunk.ordinal, text=chunk.text),
        path=path,
        kind=kind,
        title=chunk.title,
        headings=chunk.headings,
        page=chunk.page or 0,
        ordinal=chunk.ordinal,
        text=chunk.text,
        text_key=content_key(text=chunk.embedded_text),
        file_key=key,
        labels=labels,
        marks=chunk.marks,
    )
