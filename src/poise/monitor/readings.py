"""What is read of an answer: probes of vectors, and their projections summed up in three readings."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from poise.model import Encoded

__all__ = [
    "PEAK_WINDOW",
    "READING_NAMES",
    "AnswerReadings",
    "ReadingName",
    "summarize_projections",
    "summarize_response",
]

ReadingName = Literal["prompt", "mean", "peak"]
READING_NAMES: tuple[ReadingName, ...] = ("prompt", "mean", "peak")
PEAK_WINDOW = 8  # tokens; one odd token is no peak


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerReadings:
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

    def of(self, reading: ReadingName) -> tuple[float, ...]:
        """The reading of that name, [k]."""
        values: tuple[float, ...] = getattr(self, reading)
        return values


def summarize_projections(values: torch.Tensor) -> AnswerReadings:
    """Projections float32 [1 + T, k], last prompt token first as an engine gives them, as one answer's readings."""
    prompt, answer = values[0], values[1:]
    if not len(answer):
        missing = (math.nan,) * values.shape[1]
        return AnswerReadings(prompt=tuple(prompt.tolist()), mean=missing, peak=missing, tokens=0)
    windows = answer.unfold(0, min(PEAK_WINDOW, len(answer)), 1)
    return AnswerReadings(
        prompt=tuple(prompt.tolist()),
        mean=tuple(answer.mean(0).tolist()),
        peak=tuple(windows.mean(-1).amax(0).tolist()),
        tokens=len(answer),
    )


def summarize_response(values: torch.Tensor, text: Encoded) -> AnswerReadings:
    """Projections float32 [T, k] of a whole text, as the readings of its response."""
    return summarize_projections(torch.cat([values[text.last_prompt][None], values[text.start : text.end]]))
