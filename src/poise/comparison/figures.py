"""Measurements to figures: means over questions and training runs, and differences of arms question by question."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from poise.comparison.answering import ArmAnswer
from poise.comparison.arms import ARMS, ArmName
from poise.comparison.measure import ArmRun, Measurements
from poise.comparison.questions import EvaluationQuestion
from poise.comparison.result import (
    AnswerSample,
    ArmAnswers,
    ArmCapability,
    ArmResult,
    Comparison,
    TraitMovement,
)
from poise.comparison.task import ComparisonTask
from poise.comparison.verdict import recommend
from poise.shift.capability import compare_capability
from poise.statistics.crossed import crossed_estimate
from poise.statistics.estimates import Estimate
from poise.vector import PersonaVector

__all__ = ["summarise"]

SAMPLED_QUESTIONS = 6
Table = NDArray[np.float64]
"""A row a training run, a column a question."""


def summarise(
    task: ComparisonTask,
    questions: Sequence[EvaluationQuestion],
    vectors: Sequence[PersonaVector],
    measured: Measurements,
    notes: Sequence[str] = (),
) -> Comparison:
    """All figures of a comparison, and what they recommend."""
    base = measured.arms["base"]
    arms = tuple(_arm_result(arm, runs, base, measured, vectors) for arm, runs in measured.arms.items())
    differences = _differences(measured)
    movements = _trait_differences(measured, vectors)
    return Comparison(
        model=task.model,
        weights=measured.weights,
        counts=task.counts,
        questions=len(questions),
        seeds=task.seeds if measured.training else (),
        worth=task.worth,
        arms=arms,
        differences=differences,
        trait_differences=movements,
        recommendation=recommend(arms, differences, movements, worth=task.worth),
        notes=tuple(notes),
        samples=_answer_samples(questions, measured),
        settings=task.model_dump(mode="json"),
    )


def _arm_result(
    arm: ArmName,
    runs: Sequence[ArmRun],
    base: Sequence[ArmRun],
    measured: Measurements,
    vectors: Sequence[PersonaVector],
) -> ArmResult:
    right, retrieves = _right(runs), ARMS[arm].retrieves
    cited = any(answer.sentences for run in runs for answer in run.answers)
    return ArmResult(
        arm=arm,
        title=ARMS[arm].title,
        runs=len(runs),
        accuracy=crossed_estimate(right, bounds=(0, 1)),
        gain=None if arm == "base" else crossed_estimate(right - _right(base), bounds=(-1, 1)),
        accuracy_by_run=_run_means(right) if len(runs) > 1 else (),
        refusals=crossed_estimate(_answer_table(runs, lambda a: float(a.declined)), bounds=(0, 1)),
        citation_precision=_sentence_share(runs, lambda a: a.cited_supported, lambda a: a.cited) if cited else None,
        citation_recall=_sentence_share(runs, lambda a: a.cited_supported, lambda a: a.sentences) if cited else None,
        unsupported=_sentence_share(runs, lambda a: a.sentences - a.supported, lambda a: a.sentences)
        if cited
        else None,
        retrieved=_retrieved(runs) if retrieves else None,
        tokens=_cost(_answer_table(runs, lambda a: float(a.tokens))),
        prompt_tokens=_cost(_answer_table(runs[:1], lambda a: float(a.prompt_tokens))),
        seconds=_cost(_answer_table(runs, lambda a: a.seconds)),
        training=measured.training.get(arm),
        traits=tuple(_movement(vector, runs, base) for vector in vectors),
        capability=() if arm == "base" else _capability(runs, base, measured),
        answers=tuple(
            ArmAnswers(seed=run.seed, right=[a.right for a in run.answers], texts=[a.text for a in run.answers])
            for run in runs
        ),
    )


def _answer_table(runs: Sequence[ArmRun], value: Callable[[ArmAnswer], float]) -> Table:
    return np.array([[value(answer) for answer in run.answers] for run in runs], dtype=float)


def _cost(amounts: Table) -> Estimate:
    """The mean of what is never less than nothing."""
    estimate = crossed_estimate(amounts)
    return estimate if estimate.low is None else estimate.model_copy(update={"low": max(0.0, estimate.low)})


def _right(runs: Sequence[ArmRun]) -> Table:
    return _answer_table(runs, lambda a: float("nan") if a.right is None else a.right)


def _run_means(right: Table) -> tuple[float, ...]:
    """The accuracy of each run, over the answers that were judged."""
    rows = [row[~np.isnan(row)] for row in right]
    return tuple(round(float(row.mean()), 6) for row in rows if len(row))


def _sentence_share(
    runs: Sequence[ArmRun], part: Callable[[ArmAnswer], int], of: Callable[[ArmAnswer], int]
) -> Estimate:
    """Mean share within an answer, over the questions that have one in some run; a question's runs are averaged."""
    shares = _answer_table(runs, lambda a: part(a) / of(a) if of(a) else float("nan"))
    known = ~np.isnan(shares)
    sums = np.where(known, shares, 0.0).sum(axis=0)
    means = np.divide(sums, known.sum(axis=0), out=np.full(shares.shape[1], np.nan), where=known.any(axis=0))
    return crossed_estimate(means, bounds=(0, 1))


def _retrieved(runs: Sequence[ArmRun]) -> Estimate | None:
    """Of one run: what is found does not depend on training."""
    hits = [answer.retrieved for answer in runs[0].answers if answer.retrieved is not None]
    return crossed_estimate([float(hit) for hit in hits], bounds=(0, 1)) if hits else None


def _movement(vector: PersonaVector, runs: Sequence[ArmRun], base: Sequence[ArmRun]) -> TraitMovement:
    layer = vector.at("read").layer
    judged = bool(base[0].traits[vector.name].scores)
    return TraitMovement(
        trait=vector.name,
        layer=layer,
        norm=round(float(vector.norms[layer]), 6),
        shift=crossed_estimate(_trait_projections(runs, vector) - _trait_projections(base, vector)),
        judged=crossed_estimate(_trait_scores(runs, vector) - _trait_scores(base, vector), bounds=(-100, 100))
        if judged
        else None,
    )


def _trait_projections(runs: Sequence[ArmRun], vector: PersonaVector) -> Table:
    return np.array([run.traits[vector.name].projections for run in runs], dtype=float)


def _trait_scores(runs: Sequence[ArmRun], vector: PersonaVector) -> Table:
    return np.array([run.traits[vector.name].scores for run in runs], dtype=float)


def _capability(runs: Sequence[ArmRun], base: Sequence[ArmRun], measured: Measurements) -> tuple[ArmCapability, ...]:
    """Each task before and after; of an arm without training nothing changes, and nothing is said."""
    if runs[0].seed is None:
        return ()
    results = []
    for number, task in enumerate(measured.tasks):
        changes = [compare_capability(task, base[0].capability[number], run.capability[number]) for run in runs]
        known = [change for change in changes if change is not None]
        if known:
            results.append(
                ArmCapability(
                    name=task.name,
                    kind=known[0].kind,
                    before=known[0].before,
                    after=[change.after for change in known],
                    change=[change.change for change in known],
                )
            )
    return tuple(results)


def _differences(measured: Measurements) -> dict[str, Estimate]:
    """Accuracy of the later arm minus the earlier one's, of every two that are not the base."""
    pairs = combinations([arm for arm in measured.arms if arm != "base"], 2)
    return {
        f"{later} - {earlier}": crossed_estimate(
            _right(measured.arms[later]) - _right(measured.arms[earlier]), bounds=(-1, 1)
        )
        for earlier, later in pairs
    }


def _trait_differences(measured: Measurements, vectors: Sequence[PersonaVector]) -> dict[str, dict[str, Estimate]]:
    """Shifts between arms whose prompts are alike, so that they differ by training or by the vaccine alone."""
    pairs: tuple[tuple[ArmName, ArmName], ...] = (("both", "retrieval"), ("both_vaccinated", "both"))
    return {
        f"{later} - {earlier}": {
            vector.name: crossed_estimate(
                _trait_projections(measured.arms[later], vector) - _trait_projections(measured.arms[earlier], vector)
            )
            for vector in vectors
        }
        for later, earlier in pairs
        if vectors and later in measured.arms and earlier in measured.arms
    }


def _answer_samples(questions: Sequence[EvaluationQuestion], measured: Measurements) -> tuple[AnswerSample, ...]:
    """The first questions with the answers of each arm's first run."""
    return tuple(
        AnswerSample(
            question=row.question,
            right=row.answers,
            answers={arm: runs[0].answers[place].text for arm, runs in measured.arms.items()},
            scores={arm: runs[0].answers[place].right for arm, runs in measured.arms.items()},
        )
        for place, row in enumerate(questions[:SAMPLED_QUESTIONS])
    )
