"""Talk that a detector was fitted on: it reads low there, so that thresholds set on it would promise too much."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from poise.data import Conversation, DataSet, conversation_key
from poise.vector import PersonaVector

__all__ = ["rows_seen_in_fit", "seen_in_fit_note", "unseen_conversations"]


def fitted_keys(vectors: Iterable[PersonaVector], layer: int | None) -> frozenset[str]:
    """Keys of the conversations that any of the detectors was fitted on that would read at this layer."""
    detectors = (vector.at("read", layer).detector for vector in vectors)
    return frozenset(key for detector in detectors if detector for key in detector.facts.normal_keys)


def unseen_conversations(
    conversations: Sequence[Conversation], vectors: Sequence[PersonaVector], layer: int | None
) -> list[Conversation]:
    """Those that no detector was fitted on."""
    fitted = fitted_keys(vectors, layer)
    return [one for one in conversations if not fitted or conversation_key(one) not in fitted]


def rows_seen_in_fit(data: DataSet, vectors: Sequence[PersonaVector], layer: int | None) -> frozenset[int]:
    """Rows of a data set that any of the detectors was fitted on."""
    fitted = fitted_keys(vectors, layer)
    if not fitted:
        return frozenset()
    conversations = (row for row in data if isinstance(row, Conversation))
    return frozenset(row.index for row in conversations if conversation_key(row) in fitted)


def seen_in_fit_note(count: int) -> str:
    """A sentence that says so; empty where there are none."""
    if not count:
        return ""
    return f"{count:,} normal rows are left out: a detector was fitted on them, so that they set no threshold."
