"""Episodes to facts: like episodes are grouped by meaning, and each group of some size becomes one fact with sources.

Deterministic: the same episodes give the same facts. A writer, such as a model, may word a fact; what it writes goes
through the gate as the model's own, with its sources, and is checked against them: a number or a name that no episode
has keeps the deterministic wording.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from poise.arguments import check_number
from poise.grounding.facts import FactIndex
from poise.memory.entries import MemoryEntry, Trust, time_text
from poise.memory.memory import Memory, WrittenEntry

__all__ = ["ConsolidatedFact", "EpisodeWriter", "consolidate"]

EpisodeWriter = Callable[[Sequence[str]], str]
"""Episodes to the one sentence that they come to."""

ALIKE_EPISODES = 0.7
"""Cosine with the first episode of a group from which another is of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsolidatedFact:
    """A fact made of episodes.

    Attributes:
        text: What it says.
        episodes: The episodes that it was made of.
        written: What became of it; ``None`` where nothing was to be written.
        by_writer: Whether a writer worded it.
    """

    text: str
    episodes: tuple[MemoryEntry, ...]
    written: WrittenEntry | None = None
    by_writer: bool = False


def consolidate(
    memory: Memory, *, least: int = 3, writer: EpisodeWriter | None = None, dry: bool = False
) -> list[ConsolidatedFact]:
    """Write a fact for every group of like episodes that is in no fact yet; the episodes stay.

    Args:
        memory: The memory.
        least: Fewest episodes of a group.
        writer: What words a fact; else the middlemost episode does, with how often and with what outcomes.
        dry: Whether nothing is written.

    Raises:
        InvalidArgument: ``least`` is below 2.
    """
    check_number("`least`", least, least=2, most=10_000)
    used = {source for entry in memory.entries("kind = 'semantic'") for source in entry.sources}
    episodes = [e for e in memory.entries("kind = 'episodic' AND status = 'kept'") if e.id not in used]
    facts = []
    for group, middle in _episode_groups(memory, episodes, least):
        text, by_writer = _wording(group, middle, writer)
        written = None
        if not dry:
            subjects = {entry.subject for entry in group}
            written = memory.record(
                text,
                kind="semantic",
                trust="model" if by_writer else _least_trusted(group),
                source="consolidation",
                subject=subjects.pop() if len(subjects) == 1 else "",
                at=max(entry.at for entry in group),
                sources=[entry.id for entry in group],
            )
        facts.append(ConsolidatedFact(text=text, episodes=tuple(group), written=written, by_writer=by_writer))
    return facts


def _episode_groups(
    memory: Memory, episodes: Sequence[MemoryEntry], least: int
) -> list[tuple[list[MemoryEntry], MemoryEntry]]:
    """Groups of like episodes of one subject, each with the one nearest to all."""
    if not episodes:
        return []
    vectors = memory.encoder([entry.text for entry in episodes])
    taken: set[int] = set()
    groups = []
    for first in range(len(episodes)):
        if first in taken:
            continue
        alike = [
            place
            for place in range(first, len(episodes))
            if place not in taken
            and episodes[place].subject.casefold() == episodes[first].subject.casefold()
            and float(vectors[place] @ vectors[first]) >= ALIKE_EPISODES
        ]
        taken.update(alike)
        if len(alike) >= least:
            near = vectors[alike] @ vectors[alike].mean(0)
            groups.append(([episodes[place] for place in alike], episodes[alike[int(np.argmax(near))]]))
    return groups


def _wording(group: Sequence[MemoryEntry], middle: MemoryEntry, writer: EpisodeWriter | None) -> tuple[str, bool]:
    if writer:
        text = writer([entry.text for entry in group]).strip()
        if text and not FactIndex("\n".join(entry.text for entry in group)).missing(text).count:
            return text, True
    first, last = (time_text(time(entry.at for entry in group))[:10] for time in (min, max))
    span = f"on {first}" if first == last else f"from {first} to {last}"
    outcomes = [f"{sum(e.outcome == o for e in group)} × {o}" for o in ("success", "failure")]
    counts = [text for text in outcomes if not text.startswith("0 ")]
    return f"{middle.text.strip()} ({len(group)} times {span}{', ' + ', '.join(counts) if counts else ''})", False


def _least_trusted(group: Sequence[MemoryEntry]) -> Trust:
    order: tuple[Trust, ...] = get_args(Trust)
    return max((entry.trust for entry in group), key=order.index)
