"""How much a job generates."""

from __future__ import annotations

from dataclasses import dataclass

from poise.engine import SamplingParams
from poise.errors import InvalidArgument

__all__ = ["GenerationBudget"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationBudget:
    """How much a job generates: questions, answers to each, their length, temperature and seed."""

    questions: int = 20
    rollouts: int = 3
    max_new_tokens: int = 96
    temperature: float = 0.7
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("questions", "rollouts"):
            if getattr(self, name) < 1:
                raise InvalidArgument(f"{name} is {getattr(self, name)}; it must be at least 1.")

    @property
    def sampling(self) -> SamplingParams:
        """The same, as the engine takes it."""
        return SamplingParams(max_new_tokens=self.max_new_tokens, temperature=self.temperature)
