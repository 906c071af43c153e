"""A judge is a callable ``(questions, answers) -> Judgements``: a score from 0 to 100, or none and the reason.

Judges do not know where answers came from. Missing is never zero: what cannot be scored carries
``score=None`` and a reason, and whoever averages counts it.

    endpoint    any OpenAI-compatible server, expectation over 0-100 from log-probabilities
    local_model a local model, from its logits, same formula
    exemplars   offline: a classifier on sentence embeddings of a trait's exemplars
    coherence   offline: likelihood under the unsteered model and repetition
    agreement   agreement of a judge with labelled answers
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["EMPTY", "Judge", "Judgement"]

EMPTY = "empty answer"
"""Kind of reason: there is nothing to score."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """One score in [0, 100], or ``None`` with the reason why there is none.

    A reason is its kind, then a colon and what was seen where there is more to say: ``refused: "I'm sorry"``.
    """

    score: float | None
    reason: str = ""

    def __post_init__(self) -> None:
        if self.score is None and not self.reason:
            raise ValueError("a missing score needs a reason")
        if self.score is not None and not 0.0 <= self.score <= 100.0:
            raise ValueError(f"score {self.score} is outside 0-100")

    @property
    def kind(self) -> str:
        """Kind of reason, to count by: ``empty answer``, ``refused``, ``unreadable``, ``failed``; empty for a score."""
        return self.reason.partition(":")[0]


class Judge(Protocol):
    """Scores a batch of answers; one judgement an answer, in order.

    ``name`` goes into artefacts. A judge that is wired to a trait scores that trait; a coherence judge
    scores how well-formed an answer is.
    """

    @property
    def name(self) -> str:
        """How reports call this judge, e.g. ``exemplars`` or ``endpoint:gpt-4.1-mini``."""
        ...

    def __call__(self, questions: Sequence[str], answers: Sequence[str]) -> list[Judgement]:
        """Score ``answers[i]`` as a reply to ``questions[i]``."""
        ...
