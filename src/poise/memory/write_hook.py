"""The gate for other memories, such as mem0: a callable that says of a text whether it may be written."""

from __future__ import annotations

from collections.abc import Callable

from poise.memory.entries import EntryOutcome, MemoryKind, Trust
from poise.memory.memory import Memory

__all__ = ["before_write"]


def before_write(
    memory: Memory, *, kind: MemoryKind = "semantic", trust: Trust = "tool", outcome: EntryOutcome = ""
) -> Callable[..., str | None]:
    """A hook for what writes elsewhere: ``hook(text, source=…, subject=…)`` gives the text, or ``None`` to drop it.

    What goes through is written into ``memory``, so that repeats and contradictions are told; what is doubtful waits
    in its quarantine, where a person sees it.

    Args:
        memory: What remembers what was let through.
        kind: Kind of memory of the texts.
        trust: Who they come from.
        outcome: How what they tell of went.
    """

    def hook(text: str, *, source: str = "", subject: str = "") -> str | None:
        written = memory.record(text, kind=kind, trust=trust, source=source, subject=subject, outcome=outcome)
        return text if written.verdict == "kept" else None

    return hook
