"""Engines turn prompts into answers, steered and watched row by row.

``Engine`` is the protocol; ``poise.engine.local`` is the reference on transformers. An engine knows
nothing of traits or judges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from poise.activations import Probe
from poise.errors import InvalidOption
from poise.model import Encoded
from poise.steer import Steering

__all__ = ["Engine", "Generation", "Piece", "Probe", "Sampling"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. ``temperature=0`` is greedy."""

    max_new_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InvalidOption(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1.")
        if not 0 <= self.temperature < float("inf"):
            raise InvalidOption(f"temperature is {self.temperature}; it must be 0 (greedy) or more.")
        if not 0 < self.top_p <= 1:
            raise InvalidOption(f"top_p is {self.top_p}; it must be above 0 and at most 1.")


@dataclass(frozen=True, slots=True)
class Generation:
    """One answer. T: its tokens, k: probes.

    Attributes:
        ids: Generated tokens without the one that ended the answer.
        text: The answer.
        finish: ``stop`` for an end-of-turn token, ``length`` for the limit.
        mean: Response-mean activations float32 [L, d] where asked for; NaN for an empty answer.
        readings: Projections float32 [1 + T, k] where probes were given: the last prompt token, then each token.
    """

    ids: tuple[int, ...]
    text: str
    finish: Literal["stop", "length"]
    mean: torch.Tensor | None = None
    readings: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """What a stream gives at a time: some text, and the readings of the tokens that it is made of.

    Attributes:
        text: What was added; empty in the first piece and in one that only ends the answer.
        readings: float32 [tokens, k]; in the first piece the last prompt token's, before anything is said.
        finish: Set in the last piece.
    """

    text: str
    readings: torch.Tensor
    finish: Literal["stop", "length"] | None = None


class Engine(Protocol):
    """Answers prompts in batches."""

    def plan(self, prompts: Sequence[Encoded], sampling: Sampling) -> list[list[int]]:
        """The batches that ``generate`` will run, as indices; planning one batch's members again gives that batch."""
        ...

    def generate(
        self,
        prompts: Sequence[Encoded],
        sampling: Sampling,
        *,
        seeds: Sequence[int] | None = None,
        steering: Steering | Sequence[Steering | None] | None = None,
        probes: Sequence[Probe] | Sequence[Sequence[Probe]] = (),
        keep_means: bool = False,
    ) -> list[Generation]:
        """Answer each prompt, in order. Row i is drawn with ``seeds[i]`` (default i) whatever shares its batch.

        Steering and probes are one for all rows, or one (a list of probes) for each.
        """
        ...
