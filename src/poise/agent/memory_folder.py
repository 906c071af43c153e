"""The memory in a folder, as an agent uses it: texts for a goal, and an episode of what came of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from poise.agent.memory import RecalledText
from poise.memory import InjectionEffect, Memory
from poise.memory.injection_effect import ReadsInjections

__all__ = ["FolderMemory"]

MOST_EPISODE_STEPS = 40  # of a run in its episode
MOST_EPISODE_REPORT = 2000  # characters of a report in its episode
_NO_TEXT = re.compile("[\0\ud800-\udfff]")  # what models do write and no entry may hold


class FolderMemory:
    """A memory of ``poise.memory``; what the model reports goes through its gate as the model's.

    Args:
        folder: Its folder, which is begun where it is not there.
        reader: What reads for hidden instructions what is to be written.

    Attributes:
        folder: Its folder.

    Raises:
        InvalidMemory: it is damaged.
    """

    def __init__(self, folder: Path, reader: ReadsInjections | None = None) -> None:
        self.folder = folder
        self._memory = Memory(folder, effect=InjectionEffect(reader) if reader else None)

    def recall(self, task: str, budget: int) -> Sequence[RecalledText]:
        """Entries for a task, the best first."""
        return [RecalledText(str(entry.id), entry.line) for entry in self._memory.recall(task[:10_000], budget)]

    def record(self, task: str, outcome: str, report: str, steps: Sequence[str]) -> Sequence[str]:
        """Write an episode; its number, with what the gate said where it did not simply let it in."""
        lines = [f"Goal: {task[:MOST_EPISODE_REPORT]}", f"Outcome: {outcome}. {report[:MOST_EPISODE_REPORT]}"]
        lines += [f"{number}. {step[:200]}" for number, step in enumerate(steps[:MOST_EPISODE_STEPS], 1)]
        written = self._memory.record(
            _NO_TEXT.sub("\ufffd", "\n".join(lines)),
            kind="episodic",
            trust="model",
            source="poise agent",
            outcome="success" if outcome in ("done", "answered") else "failure",
        )
        reasons = f": {'; '.join(written.reasons)}" if written.reasons else ""
        return [f"{written.id} ({written.verdict}{reasons})"]
