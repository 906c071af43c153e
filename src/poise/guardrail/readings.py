"""What of a text a detector's threshold is set on, the same where it is fitted and where it acts.

Of a prompt, and of a tool's result, it is the reading of the last token before the answer; of an answer the highest
mean of ``WINDOW_TOKENS`` tokens in a row, or of all where it is shorter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from poise.model import Message

__all__ = ["WINDOW_TOKENS", "AnswerWindow", "ReadPlace", "highest_window", "tool_turns"]

ReadPlace = Literal["prompt", "tool result", "answer"]
"""What a detector reads."""

WINDOW_TOKENS = 24
WindowMeans = NDArray[np.float64]


def tool_turns(question: str, result: str) -> list[Message]:
    """A tool's result after a question, as it is read by itself."""
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": "I will look it up."},
        {"role": "tool", "content": result},
    ]


def highest_window(readings: WindowMeans, window: int = WINDOW_TOKENS) -> WindowMeans:
    """The highest mean of so many tokens in a row, for each of k directions.

    Args:
        readings: [T, k]; T is at least 1.
        window: Tokens that are averaged.
    """
    if len(readings) <= window:
        return np.asarray(readings.mean(0))
    sums = np.cumsum(np.concatenate([np.zeros((1, readings.shape[1])), readings]), axis=0)
    return np.asarray(((sums[window:] - sums[:-window]) / window).max(0))


class AnswerWindow:
    """The same, token by token."""

    def __init__(self, window: int = WINDOW_TOKENS) -> None:
        self._window = window
        self._last: list[WindowMeans] = []

    def see(self, readings: Sequence[float]) -> WindowMeans | None:
        """The mean of the last tokens, once there are enough of them."""
        self._last.append(np.asarray(readings, dtype=float))
        if len(self._last) > self._window:
            self._last.pop(0)
        return np.asarray(np.mean(self._last, axis=0)) if len(self._last) == self._window else None

    def end(self) -> WindowMeans | None:
        """The mean of an answer that was shorter."""
        return np.asarray(np.mean(self._last, axis=0)) if 0 < len(self._last) < self._window else None
