"""A memory: entries written through a gate, recalled into prompts, listed, let in, forgotten, exported and deleted."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from poise.arguments import check_number
from poise.errors import InvalidArgument, InvalidMemory, SaveFailed
from poise.memory.entries import EntryDraft, EntryOutcome, MemoryEntry, MemoryKind, Trust, entry_key, time_text, utc_now
from poise.memory.entry_index import EntryIndex, raise_revision, revision_of, sources_of
from poise.memory.entry_rows import (
    as_json_text,
    forget_reasons,
    next_version,
    other_versions,
    repeated_entry,
    supersede,
)
from poise.memory.injection_effect import joined_effect
from poise.memory.memory_file import COLUMNS, entry_of, memory_file, vacuum
from poise.memory.procedures import edited_procedures, procedure_path, remove_procedure, write_procedure
from poise.memory.recalling import RecalledEntry, TokenCount, fill_budget, ranked_entries, rough_tokens
from poise.memory.write_gate import COMPARED, EntryReview, EntryVerdict, MeasuresEffect, review_entry

if TYPE_CHECKING:
    from poise.knowledge.encoders import TextEncoder
    from poise.knowledge.store import VectorArray

__all__ = ["Memory", "WrittenEntry"]

MOST_RECALLED = 50
MOST_TASK = 10_000  # characters


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenEntry:
    """What became of a draft.

    Attributes:
        id: Number of the entry, or of the one that it repeats.
        verdict: Whether it is kept, quarantined, or repeats another.
        reasons: Why it is not simply kept.
    """

    id: int
    verdict: EntryVerdict
    reasons: tuple[str, ...] = ()


class Memory:
    """The memory in a folder; several processes and threads may use it at once.

    Args:
        folder: Its folder.
        encoder: What embeds texts; else the one that the memory was begun with, else the bundled one.
        effect: What measures an entry's effect on a model before it is let in; without it the gate goes by rules alone.
        create: Whether it is begun where there is none.
        clock: What tells the time.

    Raises:
        InvalidMemory: there is none, or it is damaged, or of another encoder.
        SaveFailed: the disk refused.
    """

    def __init__(
        self,
        folder: Path,
        encoder: TextEncoder | None = None,
        *,
        effect: MeasuresEffect | None = None,
        create: bool = True,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self.folder, self.effect, self.clock = folder, effect, clock
        self._lock = threading.RLock()
        self._encoder = encoder
        with memory_file(folder, create=create):
            pass
        self._index: EntryIndex | None = None
        self._settle_procedures()

    def record(
        self,
        text: str,
        *,
        kind: MemoryKind = "episodic",
        trust: Trust = "user",
        source: str = "",
        subject: str = "",
        outcome: EntryOutcome = "",
        name: str = "",
        at: datetime | None = None,
        sources: Sequence[int] = (),
        supersedes: Sequence[int] = (),
    ) -> WrittenEntry:
        """Write an entry, if the gate lets it in; else it is quarantined, or counted where it repeats another.

        The arguments are those of ``EntryDraft``.

        Raises:
            InvalidArgument: an argument is out of range; nothing was written.
            SaveFailed: the disk refused; nothing was written.
        """
        draft = EntryDraft(
            text=text,
            kind=kind,
            trust=trust,
            source=source,
            subject=subject,
            outcome=outcome,
            name=name,
            at=at or self.clock(),
            sources=tuple(sources),
            supersedes=tuple(supersedes),
        )
        return self.write(draft)

    def write(self, draft: EntryDraft, *, apart: bool = False, effect: MeasuresEffect | None = None) -> WrittenEntry:
        """As ``record``, of a draft.

        Args:
            draft: The entry.
            apart: Whether it is compared with entries of its own subject alone, so that nothing that is said of it
                tells what is known of others.
            effect: What measures it beside what the memory has for all.
        """
        key = entry_key(draft.kind, draft.name, draft.text)
        with memory_file(self.folder) as db:
            known = repeated_entry(db, key, draft, apart=apart)
        if known is not None:
            return self._repeat(known, "its text is there already")
        vector = self._encode([draft.text])[0]
        effects = [one for one in (self.effect, effect) if one]
        measured = joined_effect(*effects)(draft.text) if effects else None  # takes long: nobody waits for it
        written: WrittenEntry | None = None
        with self._lock, memory_file(self.folder, write=True) as db:
            if (known := repeated_entry(db, key, draft, apart=apart)) is None:
                index = self._followed(db)
                near = index.nearest(vector, COMPARED, [draft.kind], draft.subject if apart else None)
                review = review_entry(draft, near, measured)
                known = review.repeats
                if review.verdict != "duplicate":
                    written = self._insert(db, draft, key, vector, review)
        if written is None:
            return self._repeat(known, "says the same")
        return self._with_file(written) if draft.name else written

    def recall(
        self,
        task: str,
        budget: int = 600,
        *,
        kinds: Sequence[MemoryKind] = get_args(MemoryKind),
        outcome: EntryOutcome | None = None,
        subject: str | None = None,
        most: int = MOST_RECALLED,
        count: TokenCount = rough_tokens,
    ) -> list[RecalledEntry]:
        """The working memory of a task: the entries that fit it best, best first, within a budget of tokens.

        Args:
            task: What is to be done or answered.
            budget: Most tokens that the entries take in a prompt, with their heading.
            kinds: Kinds of memory that are looked in.
            outcome: Only entries of this outcome.
            subject: Only entries of this subject, whose rank no other entry changes.
            most: Most entries.
            count: What counts the tokens of a text; without it, about one for four bytes.

        Raises:
            InvalidArgument: an empty or too long task, or a number out of range.
            InvalidMemory: the memory is damaged.
        """
        check_number("`budget`", budget, least=1, most=10_000_000)
        if not task.strip() or len(task) > MOST_TASK:
            raise InvalidArgument(
                f"The task has {len(task):,} characters; it must have some, and at most {MOST_TASK:,}."
            )
        vector = self._encode([task.encode(errors="replace").decode()])[0]
        with self._lock, memory_file(self.folder) as db:
            index = self._followed(db)
            entries = index.of_subject(subject)
            meanings, words = index.meanings(vector), index.words(task, entries)
        ranking = ranked_entries(entries, meanings, words, self.clock(), kinds=kinds, outcome=outcome)
        chosen = fill_budget(ranking, budget, count, most)
        self._count_use([entry.id for entry in chosen])
        return chosen

    def entries(self, where: str = "1", values: Sequence[Any] = ()) -> list[MemoryEntry]:
        """All entries that a condition in SQL over the table's columns holds for, in the order they were written."""
        with memory_file(self.folder) as db:
            sources = sources_of(db)
            rows = db.execute(f"SELECT {COLUMNS} FROM entries WHERE {where} ORDER BY id", tuple(values)).fetchall()
        return [entry_of(row, sources.get(row[0], ())) for row in rows]

    def entry(self, key: int) -> MemoryEntry:
        """The entry of a number.

        Raises:
            InvalidArgument: there is none.
        """
        if entries := self.entries("id = ?", [key]):
            return entries[0]
        raise InvalidArgument(f"{self.folder} has no entry {key}; `poise memory list` shows all.")

    def quarantined(self) -> list[MemoryEntry]:
        """What waits for a person."""
        return self.entries("status = 'quarantined'")

    def approve(self, key: int) -> MemoryEntry:
        """Let a quarantined entry in; what it contradicts is superseded by it.

        Raises:
            InvalidArgument: there is no such entry, or it is not quarantined.
        """
        entry = self.entry(key)
        if entry.status != "quarantined":
            raise InvalidArgument(f"Entry {key} is not quarantined, it is {entry.status}.")
        with self._lock, memory_file(self.folder, write=True) as db:
            db.execute("UPDATE entries SET status = 'kept' WHERE id = ?", (key,))
            version = next_version(db, entry.name, key) if entry.name else 0
            db.execute("UPDATE entries SET version = ? WHERE id = ?", (version, key))
            supersede(db, [*entry.contradicts, *other_versions(db, entry.name, key)], key)
            raise_revision(db)
        if entry.name:
            self._with_file(WrittenEntry(id=key, verdict="kept"))
        return self.entry(key)

    def delete(self, keys: Iterable[int]) -> list[int]:
        """Delete entries without a trace: their bytes, vectors and hashes are in no file of the folder afterwards.

        Facts that were made of them alone are not touched: name them too.

        Raises:
            SaveFailed: the disk refused.
        """
        with self._lock:
            names = {entry.name for entry in self.entries("name != ''")}
            with memory_file(self.folder, write=True) as db:
                gone = [key for key in keys if db.execute("DELETE FROM entries WHERE id = ?", (key,)).rowcount]
                for key in gone:
                    db.execute("DELETE FROM sources WHERE entry = ? OR source = ?", (key, key))
                    db.execute("UPDATE entries SET superseded_by = NULL WHERE superseded_by = ?", (key,))
                forget_reasons(db, gone)
                if gone:
                    raise_revision(db)
            for name in names - {entry.name for entry in self.entries("status = 'kept'")}:
                remove_procedure(self.folder, name)
            vacuum(self.folder)
            if self._index:
                self._index.revision = -1
        return gone

    def close(self) -> None:
        """Let go of what is in memory."""
        if self._index:
            self._index.close()
            self._index = None

    def _encode(self, texts: Sequence[str]) -> VectorArray:
        return self.encoder(texts)

    @property
    def encoder(self) -> TextEncoder:
        """What embeds texts.

        Raises:
            InvalidMemory: the memory was begun with another one.
        """
        from poise.knowledge.encoders import BUNDLED_ENCODER, text_encoder

        with memory_file(self.folder) as db:
            row = db.execute("SELECT value FROM about WHERE key = 'encoder'").fetchone()
        if self._encoder is None:
            self._encoder = text_encoder(row[0] if row else BUNDLED_ENCODER)
        if row is None:
            with memory_file(self.folder, write=True) as db:
                db.execute("INSERT OR IGNORE INTO about VALUES ('encoder', ?)", (self._encoder.name,))
        elif row[0] != self._encoder.name:
            raise InvalidMemory(
                f"{self.folder} was begun with the encoder {row[0]}, not with {self._encoder.name}; use that one."
            )
        return self._encoder

    def _followed(self, db: sqlite3.Connection) -> EntryIndex:
        if self._index is None:
            self._index = EntryIndex(self.encoder_width())
        self._index.follow(db)
        return self._index

    def encoder_width(self) -> int:
        """Numbers of a vector."""
        return self._encoder.width if self._encoder else self.encoder.width

    def _insert(
        self, db: sqlite3.Connection, draft: EntryDraft, key: str, vector: VectorArray, review: EntryReview
    ) -> WrittenEntry:
        goes_in = review.verdict == "kept"
        version = next_version(db, draft.name) if draft.name and goes_in else 0
        now = self.clock()
        row = db.execute(
            "INSERT INTO entries (kind, text, status, trust, source, subject, outcome, name, version, at, added, "
            "reasons, contradicts, effect, text_key, vector) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(
                    draft.kind,
                    draft.text,
                    "kept" if goes_in else "quarantined",
                    draft.trust,
                    draft.source,
                    draft.subject,
                ),
                *(draft.outcome, draft.name, version, time_text(draft.at), time_text(now)),
                *(as_json_text(review.reasons), as_json_text(review.contradicts), as_json_text(review.effect), key),
                vector.astype("<f4").tobytes(),
            ),
        )
        number = int(row.lastrowid or 0)
        db.executemany("INSERT OR IGNORE INTO sources VALUES (?, ?)", [(number, source) for source in draft.sources])
        replaced = [*draft.supersedes, *other_versions(db, draft.name, number)] if goes_in else []
        supersede(db, replaced, number)
        if goes_in:
            before, revision = revision_of(db), raise_revision(db)
            if self._index and self._index.revision == before and not replaced:
                [entry_row] = db.execute(f"SELECT {COLUMNS} FROM entries WHERE id = ?", (number,)).fetchall()
                self._index.insert(entry_of(entry_row, draft.sources), vector, revision)
        return WrittenEntry(id=number, verdict=review.verdict, reasons=review.reasons)

    def _with_file(self, written: WrittenEntry) -> WrittenEntry:
        """A procedure whose file says what it says."""
        entry = self.entry(written.id)
        if entry.status != "kept":
            return written
        problem = write_procedure(self.folder, entry.name, entry.text, entry.version)
        return replace(written, reasons=(*written.reasons, problem)) if problem else written

    def _settle_procedures(self) -> None:
        """Take in files that were edited by hand, as their user's new versions, and write those that are missing."""
        versions: dict[str, set[str]] = {}
        procedures = self.entries("kind = 'procedural' AND status != 'quarantined'")
        for entry in procedures:
            versions.setdefault(entry.name, set()).add(entry.text)
        for name, text in edited_procedures(self.folder, versions):
            try:
                self.record(text, kind="procedural", name=name, source="edited file")
            except InvalidArgument as error:
                path = procedure_path(self.folder, name)
                raise InvalidMemory(f"{path} cannot be a procedure: {error} Fix or remove the file.") from error
        for entry in procedures:
            if entry.status == "kept" and not procedure_path(self.folder, entry.name).exists():
                write_procedure(self.folder, entry.name, entry.text, entry.version)

    def _repeat(self, key: int | None, reason: str) -> WrittenEntry:
        with memory_file(self.folder, write=True) as db:
            db.execute("UPDATE entries SET repeats = repeats + 1 WHERE id = ?", (key,))
        return WrittenEntry(id=key or 0, verdict="duplicate", reasons=(f"{reason} (entry {key})",))

    def _count_use(self, keys: Sequence[int]) -> None:
        if not keys:
            return
        now = time_text(self.clock())
        with contextlib.suppress(SaveFailed), memory_file(self.folder, write=True) as db:  # read all the same
            db.executemany("UPDATE entries SET uses = uses + 1, used = ? WHERE id = ?", [(now, key) for key in keys])
