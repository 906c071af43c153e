"""The gate for other memories, such as mem0: what says of a text whether it may be written, also around their store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from poise.memory.entries import EntryOutcome, MemoryKind, Trust
from poise.memory.memory import Memory

__all__ = ["before_write", "guarded_store"]


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


def guarded_store(store: Any, allowed: Callable[..., str | None]) -> Any:
    """A vector store of mem0's with the gate before it, so that what mem0 infers of a chat by itself passes it too.

    ``memory0.vector_store = guarded_store(memory0.vector_store, allowed)``. Of what is held back mem0 still says that
    it was added, and its history has it; it is in no search.

    Args:
        store: Anything with mem0's ``insert`` and ``update``; all else is passed on to it.
        allowed: What ``before_write`` gave.
    """
    return _GuardedStore(store, allowed)


class _GuardedStore:
    def __init__(self, store: Any, allowed: Callable[..., str | None]) -> None:
        self._store, self._allowed = store, allowed

    def insert(
        self,
        vectors: Sequence[Any],
        payloads: Sequence[Mapping[str, Any]] | None = None,
        ids: Sequence[Any] | None = None,
    ) -> Any:
        """Those of the entries that are let in."""
        rows = payloads or [{}] * len(vectors)
        places = [place for place, payload in enumerate(rows) if self._is_allowed(payload)]
        chosen = [[row[place] for place in places] if row is not None else None for row in (vectors, payloads, ids)]
        return self._store.insert(vectors=chosen[0], payloads=chosen[1], ids=chosen[2]) if places else None

    def update(self, vector_id: Any, vector: Any = None, payload: Mapping[str, Any] | None = None) -> Any:
        """A changed entry, where it is let in; else it stays as it was."""
        if payload is not None and not self._is_allowed(payload):
            return None
        return self._store.update(vector_id=vector_id, vector=vector, payload=payload)

    def _is_allowed(self, payload: Mapping[str, Any]) -> bool:
        text = payload.get("data")
        if not text:
            return True
        who = str(payload.get("user_id") or payload.get("agent_id") or "")
        return self._allowed(str(text), source="mem0", subject=who[:400]) is not None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)
