"""What is remembered: an entry, and what its text must be. Does not know where entries are kept."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from poise.arguments import check_choice
from poise.errors import InvalidArgument
from poise.storage.content_hash import content_key

__all__ = [
    "MOST_ENTRY_CHARACTERS",
    "EntryDraft",
    "EntryOutcome",
    "EntryStatus",
    "MemoryEntry",
    "MemoryKind",
    "Trust",
    "entry_key",
    "time_text",
    "utc_now",
]

MemoryKind = Literal["episodic", "semantic", "procedural"]
"""What happened and was done; facts with sources; how to do something."""

Trust = Literal["user", "tool", "web", "model"]
"""Who an entry comes from."""

EntryOutcome = Literal["", "success", "failure"]
EntryStatus = Literal["kept", "quarantined", "superseded"]

MOST_ENTRY_CHARACTERS = 20_000
MOST_FIELD = 400  # characters of a subject, a source or a name
_CLOSEST_NAME = 64
_MOST_NAME_BYTES = 200  # of a name as a file's; disks take 255 with what is added to it


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryDraft:
    """What is to be remembered, before it is let in.

    Attributes:
        text: What it says.
        kind: Kind of memory that it belongs to.
        trust: Who it comes from.
        source: File, address or tool that it comes from.
        subject: Whom or what it is about; export and deletion go by it.
        outcome: How what it tells of went.
        name: Name of a procedure; its earlier versions are superseded.
        at: Time at which it happened.
        sources: Ids of the entries that it was made of.
        supersedes: Ids of the entries that it stands for from now on.

    Raises:
        InvalidArgument: a text that is empty, too long or no text, or a choice that is not there.
    """

    text: str
    kind: MemoryKind = "episodic"
    trust: Trust = "user"
    source: str = ""
    subject: str = ""
    outcome: EntryOutcome = ""
    name: str = ""
    at: datetime = field(default_factory=lambda: utc_now())
    sources: tuple[int, ...] = ()
    supersedes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_choice("`kind`", self.kind, get_args(MemoryKind))
        check_choice("`trust`", self.trust, get_args(Trust))
        check_choice("`outcome`", self.outcome, get_args(EntryOutcome))
        _check_text("The entry", self.text, MOST_ENTRY_CHARACTERS)
        if not self.text.strip():
            raise InvalidArgument("The entry is empty; say what is to be remembered.")
        for what, value in (("`source`", self.source), ("`subject`", self.subject), ("`name`", self.name)):
            _check_text(what, value, MOST_FIELD)
        if (self.kind == "procedural") != bool(self.name):
            raise InvalidArgument(
                "A procedural entry needs a name, under which its versions are kept, and no other kind takes one; set "
                "`name` for procedures alone."
            )
        if self.name and not _is_file_name(self.name):
            raise InvalidArgument(
                f"The name {self.name[:_CLOSEST_NAME]!r} is no name of a procedure; use letters, digits, - and _, at "
                f"most {_CLOSEST_NAME} of them and {_MOST_NAME_BYTES} bytes."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEntry:
    """An entry as it is kept.

    Attributes:
        id: Number that it is known by; no later entry gets it again.
        kind: Kind of memory that it belongs to.
        text: What it says.
        status: Whether it is kept, quarantined, or superseded by another.
        trust: Who it comes from.
        source: File, address or tool that it comes from.
        subject: Whom or what it is about.
        outcome: How what it tells of went.
        name: Name of a procedure.
        version: Version of a procedure, from 1; else 0.
        at: Time at which it happened.
        added: Time at which it was written.
        used: Time at which it was last recalled; ``None`` for never.
        uses: Number of times that it was recalled.
        repeats: Number of times that it was written again.
        reasons: Why it was quarantined.
        sources: Ids of the entries that it was made of.
        contradicts: Ids of the entries that it contradicts.
        superseded_by: Id of the entry that stands for it; ``None`` where none does.
        effect: What was measured of its effect on a model.
    """

    id: int
    kind: MemoryKind
    text: str
    status: EntryStatus
    trust: Trust
    source: str = ""
    subject: str = ""
    outcome: EntryOutcome = ""
    name: str = ""
    version: int = 0
    at: datetime
    added: datetime
    used: datetime | None = None
    uses: int = 0
    repeats: int = 0
    reasons: tuple[str, ...] = ()
    sources: tuple[int, ...] = ()
    contradicts: tuple[int, ...] = ()
    superseded_by: int | None = None
    effect: Mapping[str, Any] = field(default_factory=dict)


def entry_key(kind: str, name: str, text: str) -> str:
    """Hash under which a text that differs in capitals, spaces and widths of signs alone is the same."""
    return content_key(kind=kind, name=name, text=" ".join(unicodedata.normalize("NFKC", text).casefold().split()))


def utc_now() -> datetime:
    """The time, to the second."""
    return datetime.now(UTC).replace(microsecond=0)


def time_text(time: datetime) -> str:
    """A time as it is kept and shown: ``2026-01-31T12:00:00Z``; a time without a zone is taken as UTC."""
    aware = time if time.tzinfo else time.replace(tzinfo=UTC)
    return f"{aware.astimezone(UTC).replace(tzinfo=None).isoformat(timespec='seconds')}Z"


def _check_text(what: str, text: str, most: int) -> None:
    if len(text) > most:
        raise InvalidArgument(
            f"{what} has {len(text):,} characters, and at most {most:,} are remembered; keep long texts in a knowledge "
            "base (`poise knowledge build`) and remember what matters of them."
        )
    if "\0" in text:
        raise InvalidArgument(f"{what} has a NUL character at place {text.index(chr(0)):,}; it is no text.")
    half = next((i for i, sign in enumerate(text) if 0xD800 <= ord(sign) <= 0xDFFF), None)
    if half is not None:
        raise InvalidArgument(f"{what} has half a character (a surrogate) at place {half:,}; decode it again.")


def _is_file_name(name: str) -> bool:
    is_short = len(name) <= _CLOSEST_NAME and len(name.encode()) <= _MOST_NAME_BYTES
    return is_short and name[0].isalnum() and all(c.isalnum() or c in "-_" for c in name)
