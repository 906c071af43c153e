"""Random directions of the vector's norm: what any push does, and what any push does that may choose where it acts.

A direction that chooses the best of seven layers and as many doses does better than one that is handed them, even on
other questions. So a verdict rests on random directions that choose as the vector did, and on their ranks: under the
hypothesis that the vector is one of them, every order is as likely (Besag and Clifford 1989, Biometrika 76, 633).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from poise.contrast import ResponseRequest
from poise.steer import Steering
from poise.validate.certificate import RandomControl, RandomSearch
from poise.validate.conditions import (
    Measured,
    Ordinary,
    ValidationRun,
    change_over_questions,
    mean_over_questions,
    nanmean,
)
from poise.validate.selection import DoseChoice, choose_doses
from poise.validate.settings import ValidationSettings
from poise.vector import PersonaVector

__all__ = ["NEEDED_SEARCHES", "fixed_control", "random_like", "random_vector", "search_random", "selection_run"]

LARGEST_P = 0.025
NEEDED_SEARCHES = round(1 / LARGEST_P) - 1
TOGETHER = 13  # searched at once; the search ends with the first of these rounds that decides it


def random_vector(vector: PersonaVector, *, seed: int) -> PersonaVector:
    """Random directions of the vector's norms."""
    drawn = torch.randn(vector.directions.shape, generator=torch.Generator().manual_seed(seed))
    directions = drawn / drawn.norm(dim=-1, keepdim=True) * vector.norms.unsqueeze(-1)
    return PersonaVector(directions, vector.reference_norm, vector.header)


def random_like(vector: PersonaVector, layer: int, dose: float, *, seed: int) -> Steering:
    """Steering along a random direction of the vector's norm: what any push of that strength does."""
    return Steering.add(random_vector(vector, seed=seed), dose=dose, layer=layer)


def fixed_control(
    draws: Sequence[Measured], chosen: Measured, plain: Measured, dose: float, search: RandomSearch | None
) -> RandomControl:
    """Random directions at the vector's own layer and dose."""
    every = Measured(
        answers=(),
        trait=np.concatenate([d.trait for d in draws], axis=1),
        coherence=np.concatenate([d.coherence for d in draws], axis=1),
    )
    average = np.mean([d.by_question for d in draws], axis=0)
    trait, coherence = every.figures()
    return RandomControl(
        draws=len(draws),
        dose=dose,
        trait=trait,
        coherence=coherence,
        rise=change_over_questions(average, plain.by_question),
        margin=change_over_questions(chosen.by_question, average),
        search=search,
    )


def selection_run(run: ValidationRun) -> ValidationRun:
    """Choosing needs less care than reporting, and sees many more conditions."""
    return replace(run, rollouts=max(1, run.rollouts // 2))


def search_random(
    vector: PersonaVector,
    run: ValidationRun,
    halves: tuple[Sequence[str], Sequence[str]],
    ordinary: Ordinary,
    wide: ValidationSettings,
    measured: tuple[Measured, Measured],
) -> RandomSearch:
    """Random directions that choose layer and dose on the selection half and are measured on the reporting half.

    Args:
        vector: The vector whose norms they have.
        run: The run of ``certify``.
        halves: Selecting and reporting questions.
        ordinary: Unsteered answers.
        wide: ``random_searches`` directions are drawn; fewer where those of a round already decide against the vector.
        measured: The vector's answers at its own choice, and the unsteered ones, on the reporting half.
    """
    chosen, plain = measured
    rise = mean_over_questions(chosen.by_question - plain.by_question)
    allowed = int(LARGEST_P * (wide.random_searches + 1)) - 1
    rises: list[float | None] = []
    coherent: list[float] = []  # rises with coherent text
    choices: list[DoseChoice] = []
    first = run.seed + wide.random_draws  # those before it were tried at the vector's own layer and dose
    for start in range(0, wide.random_searches, TOGETHER):
        seeds = range(first + start, first + min(start + TOGETHER, wide.random_searches))
        vectors = [random_vector(vector, seed=seed) for seed in seeds]
        round_choices = choose_doses(vectors, selection_run(run), halves[0], ordinary, wide)
        for answers in _reported(vectors, round_choices, run, halves[1], ordinary):
            value = mean_over_questions(answers.by_question - plain.by_question)
            rises.append(None if value is None else round(value, 4))
            coherence = mean_over_questions(nanmean(answers.coherence))
            if value is not None and coherence is not None and coherence >= wide.coherence_floor:
                coherent.append(value)
        choices += round_choices
        as_high = sum(rise is None or value >= rise for value in coherent)
        if as_high > max(allowed, 0):
            break
    return RandomSearch(
        rises=tuple(rises),
        layers=tuple(choice.layer for choice in choices),
        doses=tuple(choice.dose for choice in choices),
        highest=round(max(coherent), 4) if coherent else None,
        as_high=as_high,
        p=round((1 + as_high) / (1 + len(rises)), 4),
    )


def _reported(
    vectors: Sequence[PersonaVector],
    choices: Sequence[DoseChoice],
    run: ValidationRun,
    questions: Sequence[str],
    ordinary: Ordinary,
) -> list[Measured]:
    ways = [Steering.add(v, dose=c.dose, layer=c.layer) for v, c in zip(vectors, choices, strict=True)]
    conditions = {str(k): run.asks(questions, ResponseRequest(question="", steering=way)) for k, way in enumerate(ways)}
    return list(run.measure(conditions, ordinary, what="random directions at their own choice").values())
