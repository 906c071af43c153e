"""What an agent asks of a memory; ``poise.memory`` has one, and so may anything with these two methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["AgentMemory", "RecalledText"]


@dataclass(frozen=True, slots=True)
class RecalledText:
    """An entry of a memory that bears on a task.

    Attributes:
        id: Name that the memory knows it by.
        text: What it says.
    """

    id: str
    text: str


class AgentMemory(Protocol):
    """Recalls what bears on a task, and takes what came of one."""

    def recall(self, task: str, budget: int) -> Sequence[RecalledText]:
        """Entries for a task, the best first, of at most so many tokens together."""

    def record(self, task: str, outcome: str, report: str, steps: Sequence[str]) -> Sequence[str]:
        """Take what was done and what came of it; the ids of what was written."""
