"""Which entries are forgotten by rule: old ones, ones that nothing recalls, and ones that others stand for."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from poise.arguments import check_number
from poise.errors import InvalidArgument
from poise.memory.entries import MemoryEntry, MemoryKind
from poise.memory.memory import Memory

__all__ = ["ForgetRule", "forgettable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetRule:
    """An entry is forgotten where any part of the rule holds; procedures only where they are superseded.

    Attributes:
        older_than: Days since what an entry tells of; ``None`` for any age.
        unused_for: Days since an entry was written or last recalled.
        superseded: Whether entries that others stand for go.
        quarantined_for: Days that an entry waited in quarantine.
        kinds: Kinds of memory that the rule is about.

    Raises:
        InvalidArgument: no part is set, or one is out of range.
    """

    older_than: float | None = None
    unused_for: float | None = None
    superseded: bool = False
    quarantined_for: float | None = None
    kinds: tuple[MemoryKind, ...] = ("episodic", "semantic", "procedural")

    def __post_init__(self) -> None:
        parts = {name: getattr(self, name) for name in ("older_than", "unused_for", "quarantined_for")}
        for name, days in parts.items():
            if days is not None:
                check_number(f"`{name}`", days, least=0, most=100_000)
        if not self.superseded and all(days is None for days in parts.values()):
            raise InvalidArgument(
                "Nothing says what is forgotten; set `older_than`, `unused_for`, `quarantined_for` or `superseded`."
            )


def forgettable(memory: Memory, rule: ForgetRule) -> list[MemoryEntry]:
    """The entries that a rule is about; ``Memory.delete`` deletes them."""
    now = memory.clock()

    def is_past(entry: MemoryEntry) -> bool:
        if entry.status == "superseded" and rule.superseded:
            return True
        if entry.status == "quarantined":
            return rule.quarantined_for is not None and now - entry.added > timedelta(days=rule.quarantined_for)
        if entry.kind == "procedural":
            return False
        if rule.older_than is not None and now - entry.at > timedelta(days=rule.older_than):
            return True
        last = max(entry.added, entry.used or entry.added)
        return rule.unused_for is not None and now - last > timedelta(days=rule.unused_for)

    return [entry for entry in memory.entries() if entry.kind in rule.kinds and is_past(entry)]
