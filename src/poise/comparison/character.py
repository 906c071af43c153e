"""Where each trait stands in an arm: projections before the answer, and judged answers, on the arm's own prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from poise.comparison.answering import arm_prompt
from poise.comparison.task import ComparisonTask
from poise.engine import SamplingParams
from poise.engine.static import LocalEngine
from poise.judge import Judge
from poise.knowledge import Knowledge
from poise.model import Model
from poise.progress import track
from poise.shift.evaluation import project_prompts
from poise.storage.content_hash import content_key
from poise.storage.journal import Journal
from poise.trait.library import evaluation_questions
from poise.vector import PersonaVector

__all__ = ["TraitReadings", "read_character", "trait_questions"]


@dataclass(frozen=True, slots=True)
class TraitReadings:
    """One trait in one arm and run.

    Attributes:
        projections: Projections of the last prompt tokens of the questions on the trait's unit direction.
        scores: A judge's scores of answers, 0 to 100, ``None`` where it gave none; empty without a judge.
    """

    projections: tuple[float | None, ...]
    scores: tuple[float | None, ...] = ()


def trait_questions(vector: PersonaVector, task: ComparisonTask) -> tuple[str, ...]:
    """The evaluation questions of a trait that the task reads."""
    return tuple(evaluation_questions(vector.header.trait)[: task.traits.questions])


def read_character(
    vectors: Sequence[PersonaVector],
    task: ComparisonTask,
    model: Model,
    knowledge: Knowledge | None,
    judges: Mapping[str, Judge],
    journal: Journal,
    scope: str,
    what: str,
) -> dict[str, TraitReadings]:
    """Readings of every trait, on its own questions chosen_questions as the arm asks them; see ``poise.shift``.

    Args:
        vectors: One for each trait.
        task: How much is read.
        model: The arm's model.
        knowledge: Its documents; ``None`` for an arm without.
        judges: Judge of each trait; none for no answers.
        journal: Journal of finished readings.
        scope: Key of the arm and its model.
        what: Name of the work, for progress.
    """
    readings: dict[str, TraitReadings] = {}
    settings = task.traits.model_dump()
    with track(what, total=len(vectors)) as advance:
        for vector in vectors:
            questions = trait_questions(vector, task)
            key = content_key(scope=scope, settings=settings, vector=_direction_key(vector), questions=questions)
            if key not in journal:
                projections = _project_questions(vector, questions, task, model, knowledge)
                scores = _judge_questions(judges.get(vector.name), questions, task, model, knowledge)
                journal.append([(key, [projections, scores])])
            projections, scores = journal[key]
            readings[vector.name] = TraitReadings(tuple(projections), tuple(scores))
            advance(1)
    return readings


def _direction_key(vector: PersonaVector) -> str:
    """What a reading along a vector depends on: its direction, and the layer that is read."""
    layer = vector.at("read").layer
    numbers = vector.directions[layer].numpy().tobytes()
    return content_key(trait=vector.header.trait_hash, layer=layer, direction=hashlib.sha256(numbers).hexdigest())


def _project_questions(
    vector: PersonaVector, questions: Sequence[str], task: ComparisonTask, model: Model, knowledge: Knowledge | None
) -> list[float | None]:
    most = task.traits.max_new_tokens
    prompts = [model.encode(arm_prompt(q, task, model, knowledge, most).messages) for q in questions]
    column = project_prompts(model, prompts, [vector])[:, 0].tolist()
    return [round(value, 6) if value == value else None for value in column]  # NaN is none


def _judge_questions(
    judge: Judge | None, questions: Sequence[str], task: ComparisonTask, model: Model, knowledge: Knowledge | None
) -> list[float | None]:
    if judge is None or not task.traits.answered:
        return []
    chosen_questions, most = questions[: task.traits.answered], task.traits.max_new_tokens
    prompts = [model.encode(arm_prompt(q, task, model, knowledge, most).messages) for q in chosen_questions]
    engine = LocalEngine(model, batch=task.answers.batch)
    generations = engine.generate(prompts, SamplingParams(max_new_tokens=most, temperature=0.0))
    return [judgement.score for judgement in judge(chosen_questions, [generation.reply for generation in generations])]
