"""Coherence without a judge model: likelihood under the unsteered model, and repetition.

Two figures an answer: mean token log-probability under the model without steering or system prompt, and
the share of word trigrams that were said before. Each is measured in units of the ordinary answers' own
spread, and the worse of the two makes the score: 100 at the ordinary median or better, 50 at
``TOLERANCE`` units worse, 0 at twice that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from poise.judge.judgement import Judgement
from poise.model import Model, ask
from poise.model.logprobs import token_logprobs

__all__ = ["LikelihoodCoherence", "repetition"]

COHERENCE_TOLERANCE = 2.0  # units from the ordinary median to a score of 50
LEAST_UNIT = {"likelihood": 0.3, "repetition": 0.1}  # a spread of nearly nothing is not a measure


@dataclass(frozen=True, kw_only=True)
class LikelihoodCoherence:
    """Scores how well-formed answers are, against the model's own ordinary answers.

    Attributes:
        model: Unsteered; its log-probabilities are nats a token.
        likelihood: Median and unit (median minus lower decile) of ordinary answers' mean log-probability.
        repetition: Median and unit (upper decile minus median) of ordinary answers' repetition.
        n: Ordinary answers behind these.
    """

    model: Model
    likelihood: tuple[float, float]
    repetition: tuple[float, float]
    n: int
    name: str = "likelihood"

    @classmethod
    def fit(cls, model: Model, questions: Sequence[str], answers: Sequence[str]) -> LikelihoodCoherence:
        """Learn what is ordinary from unsteered answers."""
        values = _figures(model, questions, answers)
        usable = np.array([v for v in values if v is not None]).reshape(-1, 2)
        if len(usable) == 0:
            return cls(model=model, likelihood=(0.0, 1.0), repetition=(0.0, 1.0), n=0)
        (low, _), (middle, repeats), (_, high) = np.quantile(usable, [0.1, 0.5, 0.9], axis=0)
        return cls(
            model=model,
            likelihood=(float(middle), max(float(middle - low), LEAST_UNIT["likelihood"])),
            repetition=(float(repeats), max(float(high - repeats), LEAST_UNIT["repetition"])),
            n=len(usable),
        )

    def __call__(self, questions: Sequence[str], answers: Sequence[str]) -> list[Judgement]:
        """Score each answer; an empty one, or all of them where nothing ordinary was seen, has none."""
        if self.n == 0:
            return [Judgement(None, "no ordinary answers to compare with")] * len(answers)
        return [self._judge(v) for v in _figures(self.model, questions, answers)]

    def _judge(self, figures: tuple[float, float] | None) -> Judgement:
        if figures is None:
            return Judgement(None, "empty answer")
        unlikely = (self.likelihood[0] - figures[0]) / self.likelihood[1]
        repeated = (figures[1] - self.repetition[0]) / self.repetition[1]
        worse = max(unlikely, repeated, 0.0)
        return Judgement(float(np.clip(100 - 50 * worse / COHERENCE_TOLERANCE, 0, 100)))


def repetition(text: str) -> float:
    """Share of word trigrams that occurred earlier in the text; 0 for fewer than two trigrams."""
    words = text.lower().split()
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(trigrams)) / len(trigrams) if len(trigrams) > 1 else 0.0


def _figures(model: Model, questions: Sequence[str], answers: Sequence[str]) -> list[tuple[float, float] | None]:
    """(mean log-probability, repetition) of each answer; None for an empty one."""
    encoded = [model.encode(ask(q), a) for q, a in zip(questions, answers, strict=True)]
    usable = [i for i, e in enumerate(encoded) if e.end > e.start and answers[i].strip()]
    logprobs = dict(zip(usable, token_logprobs(model, [encoded[i] for i in usable]), strict=True))
    return [(float(logprobs[i].mean()), repetition(answers[i])) if i in logprobs else None for i in range(len(answers))]
