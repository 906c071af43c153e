"""Which scores are flagged: those above what normal data score, the highest, or those above a number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from poise.errors import InvalidOption
from poise.threshold import check_rate, threshold

__all__ = ["Cut", "Rule"]

SHARE = 0.01  # flagged where nothing is said


@dataclass(frozen=True, slots=True)
class Cut:
    """A trait's threshold.

    Attributes:
        threshold: Scores above it are flagged; ``None`` where there is no score to set it by.
        rule: How it was set, in words.
        why: The same in short, as a flagged row gives it.
    """

    threshold: float | None
    rule: str
    why: str

    def flags(self, scores: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Bool [m]; what has no score is not flagged."""
        above: NDArray[np.bool_] = np.zeros(len(scores), dtype=bool)
        return above if self.threshold is None else np.greater(scores, np.float32(self.threshold))


@dataclass(frozen=True, slots=True)
class Rule:
    """At most one of three; with none, the highest hundredth is flagged.

    Attributes:
        rate: Share of normal answers that would be flagged.
        top: How many answers are flagged a trait.
        above: What scores are flagged.
    """

    rate: float | None = None
    top: int | None = None
    above: float | None = None

    def __post_init__(self) -> None:
        said = [
            f"--{n}" for n, v in (("rate", self.rate), ("top", self.top), ("threshold", self.above)) if v is not None
        ]
        if len(said) > 1:
            raise InvalidOption(f"{' and '.join(said)} each say what is flagged; give one of them.")
        if self.rate is not None:
            check_rate(self.rate)
        if self.top is not None and self.top < 1:
            raise InvalidOption(f"--top is {self.top}; it must be at least 1.")
        if self.above is not None and not math.isfinite(self.above):
            raise InvalidOption(f"--threshold is {self.above}; it must be a number.")

    def cut(
        self,
        scores: NDArray[np.float32],
        normal: NDArray[np.float32] | None = None,
        conversations: Sequence[int] = (),
    ) -> Cut:
        """The threshold of one trait.

        Args:
            scores: [m], NaN where there is none.
            normal: [n] of normal data, without NaN; needed for a rate.
            conversations: Which conversation each normal answer came from.

        Raises:
            TooFewResponses: so few normal conversations cannot promise the rate.
        """
        if self.rate is not None:
            assert normal is not None, "a rate needs normal data"
            set_at = threshold(normal, self.rate, conversations=conversations)
            return Cut(
                set_at.value,
                f"normal answers pass it at a rate of {self.rate:.3g}: set on {set_at.answers:,} of them from "
                f"{set_at.conversations:,} conversations, which puts the true rate between {set_at.low:.3g} and "
                f"{set_at.high:.3g} (95 %)",
                f"above {set_at.value:.4g}, which normal answers pass at a rate of {self.rate:.3g}",
            )
        if self.above is not None:
            return Cut(self.above, f"above {self.above:g}, as asked", f"above {self.above:g}")
        known = np.sort(scores[np.isfinite(scores)])
        top = math.ceil(SHARE * len(known)) if self.top is None else min(self.top, len(known))
        if not top:
            return Cut(None, "no answer has a score", "")
        just_below = float(np.nextafter(known[-top], np.float32(-np.inf)))
        which = "highest score" if top == 1 else f"{top:,} highest scores"
        asked = "as nothing else was asked, the highest 1 %: " if self.top is None else ""
        return Cut(just_below, f"{asked}the {which} and their equals", f"among the {which}")
