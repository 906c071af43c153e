"""Answers under many conditions at once, scored: the measuring part of validation.

Conditions are rows of the same batches, and share each question's random stream, so that they differ in
their steering alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from poise.contrast import CoherenceFit, Response, ResponseRequest, ResponseStore, ordinary_scope
from poise.contrast.rollout import scores_of
from poise.engine import Engine, SamplingParams
from poise.judge import Judge
from poise.model import Model
from poise.statistics.estimates import Estimate, StatisticArray, bounded_estimate, score_change_estimate

__all__ = [
    "Measured",
    "Ordinary",
    "ValidationRun",
    "change_over_questions",
    "mean_over_questions",
    "nanmean",
    "over_questions",
]


@dataclass(frozen=True, slots=True)
class Measured:
    """Scores of one condition. q: questions, r: rollouts.

    ``trait`` and ``coherence`` are [q, r], NaN where the judge gave none.
    """

    answers: tuple[Response, ...]
    trait: StatisticArray
    coherence: StatisticArray

    @property
    def by_question(self) -> StatisticArray:
        """Mean trait score of each question [q], NaN where none of its answers was scored."""
        return nanmean(self.trait)

    @property
    def missing(self) -> int:
        """Answers without a trait score."""
        return int(np.isnan(self.trait).sum())

    def figures(self) -> tuple[Estimate, Estimate]:
        """Trait and coherence over questions, with intervals."""
        return over_questions(self.by_question), over_questions(nanmean(self.coherence))

    @property
    def mean_trait(self) -> float:
        """Mean over questions; −1 where nothing was scored, so that it is never chosen."""
        return _mean(self.by_question)

    @property
    def mean_coherence(self) -> float:
        """Mean over questions; −1 where nothing was scored."""
        return _mean(nanmean(self.coherence))


@dataclass(frozen=True, slots=True)
class Ordinary:
    """The judge of coherence, made from unsteered answers, and what its scores are kept under."""

    coherence: Judge
    scope: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationRun:
    """Everything that a measurement needs and that stays the same from condition to condition."""

    engine: Engine
    model: Model
    judge: Judge
    scope: str
    coherence: CoherenceFit
    sampling: SamplingParams
    rollouts: int
    seed: int
    store: ResponseStore

    def asks(self, questions: Sequence[str], template: ResponseRequest) -> list[ResponseRequest]:
        """Every question, ``rollouts`` times, with the template's system prompt and steering."""
        return [
            ResponseRequest(question=question, system=template.system, steering=template.steering, seed=self.seed + r)
            for question in questions
            for r in range(self.rollouts)
        ]

    def ordinary(self, questions: Sequence[str]) -> Ordinary:
        """Unsteered answers: what coherence is measured against, and the zero of every curve."""
        asks = self.asks(questions, ResponseRequest(question=""))
        answers = self.store.answer(self.engine, self.model, asks, self.sampling, what="Answering: unsteered")
        judge = self.coherence([a.question for a in answers], [a.text for a in answers])
        return Ordinary(judge, ordinary_scope(answers))

    def measure(
        self, conditions: Mapping[str, Sequence[ResponseRequest]], ordinary: Ordinary, *, what: str
    ) -> dict[str, Measured]:
        """Answer and score all conditions; each lists its asks question by question, rollouts together."""
        flat = [a for asks in conditions.values() for a in asks]
        answers = self.store.answer(self.engine, self.model, flat, self.sampling, what=f"Answering: {what}")
        traits = scores_of(self.store.judge(self.judge, answers, scope=self.scope, what=f"Judging the trait: {what}"))
        coherences = scores_of(
            self.store.judge(ordinary.coherence, answers, scope=ordinary.scope, what=f"Judging coherence: {what}")
        )
        out, at = {}, 0
        for name, asks in conditions.items():
            part, shape = slice(at, at + len(asks)), (-1, self.rollouts)
            out[name] = Measured(
                tuple(answers[part]), np.array(traits[part]).reshape(shape), np.array(coherences[part]).reshape(shape)
            )
            at += len(asks)
        return out


def nanmean(values: StatisticArray) -> StatisticArray:
    """Mean over the last axis of what is there; NaN where nothing is."""
    there = ~np.isnan(values)
    sums = np.where(there, values, 0.0).sum(-1)
    out: StatisticArray = np.divide(sums, there.sum(-1), out=np.full(sums.shape, np.nan), where=there.any(-1))
    return out


def over_questions(values: StatisticArray) -> Estimate:
    """Mean score over the questions that have one."""
    return bounded_estimate(values[~np.isnan(values)])


def change_over_questions(after: StatisticArray, before: StatisticArray) -> Estimate:
    """Mean change of scores, paired by question, over the questions that have both."""
    changes = after - before
    known = ~np.isnan(changes)
    return score_change_estimate(changes[known], bounded_estimate(before[known]))


def mean_over_questions(values: StatisticArray) -> float | None:
    """Mean over the questions that have a value; ``None`` where none has."""
    usable = values[~np.isnan(values)]
    return float(usable.mean()) if len(usable) else None


def _mean(values: StatisticArray) -> float:
    mean = mean_over_questions(values)
    return -1.0 if mean is None else mean
