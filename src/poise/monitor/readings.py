"""What is read of an answer: probes of vectors, and their projections summed up in three readings."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from poise.model import Encoded

__all__ = ["NAMES", "WINDOW", "Reading", "Readings", "of_text", "sum_up"]

Reading = Literal["prompt", "mean", "peak"]
NAMES: tuple[Reading, ...] = ("prompt", "mean", "peak")
WINDOW = 8  # tokens; one odd token is no peak


@dataclass(frozen=True, slots=True)
class Readings:
    """One answer read by k probes: projections on unit directions, in residual-stream units.

    Attributes:
        prompt: [k] at the last prompt token: what the answer is about to be like.
        mean: [k] over the answer's tokens; NaN for an empty answer.
        peak: [k], the largest mean over 8 consecutive tokens (over all, in a shorter answer); NaN for an empty one.
        tokens: T, the answer's length.
    """

    prompt: tuple[float, ...]
    mean: tuple[float, ...]
    peak: tuple[float, ...]
    tokens: int

    def of(self, reading: Reading) -> tuple[float, ...]:
        """The reading of that name, [k]."""
        values: tuple[float, ...] = getattr(self, reading)
        return values


def sum_up(values: torch.Tensor) -> Readings:
    """Projections float32 [1 + T, k], last prompt token first as an engine gives them, as one answer's readings."""
    prompt, answer = values[0], values[1:]
    if not len(answer):
        missing = (math.nan,) * values.shape[1]
        return Readings(tuple(prompt.tolist()), missing, missing, 0)
    windows = answer.unfold(0, min(WINDOW, len(answer)), 1)
    return Readings(
        prompt=tuple(prompt.tolist()),
        mean=tuple(answer.mean(0).tolist()),
        peak=tuple(windows.mean(-1).amax(0).tolist()),
        tokens=len(answer),
    )


def of_text(values: torch.Tensor, text: Encoded) -> Readings:
    """Projections float32 [T, k] of a whole text, as the readings of its response."""
    return sum_up(values[text.start - 1 : text.end])
