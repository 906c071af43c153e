"""Two evaluations, of a base and of a tuned model, to the figures of what changed between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from poise.contrast import ResponseStore, ordinary_scope
from poise.contrast.rollout import scores_of
from poise.judge import Judge, Judgement
from poise.judge.coherence import LikelihoodCoherence
from poise.judge.endpoint import endpoint_coherence
from poise.judge.exemplars import ExemplarJudge
from poise.judge.factory import OFFLINE
from poise.judge.local_model import LocalJudge
from poise.model import Model
from poise.shift.capability import compare_capability
from poise.shift.evaluation import EvaluationSettings, ModelEvaluation, ModelLoader, PromptEvaluation
from poise.shift.extracted_again import compare_directions
from poise.shift.report import (
    AnswerPair,
    CapabilityChange,
    ContextShift,
    FloatArray,
    JudgedChange,
    ModelShift,
    ShiftCell,
    estimate_mean,
    estimate_score_change,
    estimate_scores,
)
from poise.shift.worst_context import summarise_contexts
from poise.statistics.estimates import Estimate

__all__ = ["CoherenceScores", "compare_models", "score_coherence"]

SAMPLE_QUESTIONS = 4  # questions of each trait whose answers are shown
TOO_LONG = "its longest prompt and an answer exceed the model's window"


@dataclass(frozen=True, slots=True)
class CoherenceScores:
    """Coherence of all answers.

    Attributes:
        how: How coherence is scored, in words.
        scores: Scores of every ``PromptEvaluation``, by its ``id``, and trait, in the order of the answers.
    """

    how: str
    scores: Mapping[int, Mapping[str, FloatArray]]


def score_coherence(
    spec: str | None,
    base: str | Model,
    evaluations: Sequence[ModelEvaluation],
    judges: Mapping[str, Judge],
    folder: Path | None,
    load: ModelLoader,
) -> CoherenceScores:
    """Coherence of all models' answers by one judge; likelihood is that of the base, which is loaded again for it."""
    trait_judge = next(iter(judges.values()))
    base_answers = [answer for answers in evaluations[0].plain.answers.values() for answer in answers]
    judge: Judge
    if isinstance(trait_judge, ExemplarJudge):
        model = base if isinstance(base, Model) else load(base)
        questions, texts = [a.question for a in base_answers], [a.text for a in base_answers]
        judge, how = LikelihoodCoherence.fit(model, questions, texts), OFFLINE
    elif isinstance(trait_judge, LocalJudge):
        judge = LocalJudge.of_coherence(trait_judge.model)
        how = f"by {judge.name}"
    else:
        judge = endpoint_coherence(str(spec).partition(":")[2], cache=folder)
        how = f"by {judge.name}"
    run, scope = ResponseStore(folder / "coherence" if folder else None), ordinary_scope(base_answers)
    return CoherenceScores(
        how,
        {
            id(evaluation): {
                trait: np.array(scores_of(run.judge(judge, answers, scope=scope, what="Judging coherence")))
                for trait, answers in evaluation.answers.items()
            }
            for model in evaluations
            for evaluation in (model.plain, *model.contexts)
            if evaluation is not None
        },
    )


def compare_models(
    name: str,
    before: ModelEvaluation,
    after: ModelEvaluation,
    settings: EvaluationSettings,
    coherence: CoherenceScores | None,
    *,
    predicted: Mapping[str, Estimate],
) -> ModelShift:
    """Everything that changed between a base and one tuned model.

    Args:
        name: Name of the tuned model in reports.
        before: The base's evaluation.
        after: The tuned model's evaluation.
        settings: What both were measured on.
        coherence: Coherence of both; ``None`` where nothing was answered.
        predicted: What screening predicted from the training data, by trait.
    """
    capability = [
        compare_capability(task, x, y)
        for task, x, y in zip(settings.tasks, before.capability, after.capability, strict=True)
    ]
    matrix = tuple(_shift_matrix(before.plain, after.plain, settings))
    judged = _judged_changes(before.plain, after.plain, settings, coherence)
    contexts = tuple(
        _context_shift(context.label, x, y, settings, coherence)
        for context, x, y in zip(settings.contexts, before.contexts, after.contexts, strict=True)
    )
    return ModelShift(
        name=name,
        digest=after.digest,
        relation=after.relation,
        matrix=matrix,
        judged=judged,
        capability=tuple(change for change in capability if change is not None),
        predicted=dict(predicted),
        samples=tuple(
            s for t in before.plain.answers for s in _answer_pairs(t, before.plain, after.plain, settings.rollouts)
        ),
        notes=tuple(_comparison_notes(before, after, settings, capability)),
        contexts=contexts,
        under_contexts=summarise_contexts(matrix, judged, contexts),
        extracted_again=compare_directions(before.pairs, after.pairs, settings.vectors, settings.layers),
    )


def _shift_matrix(before: PromptEvaluation, after: PromptEvaluation, settings: EvaluationSettings) -> list[ShiftCell]:
    cells = []
    for trait in settings.prompts:
        x, y = (evaluation.projections[trait].double().numpy() for evaluation in (before, after))
        for k, vector in enumerate(settings.vectors):
            changes = y[:, k] - x[:, k]
            cells.append(
                ShiftCell(
                    asked=trait,
                    direction=vector.name,
                    before=estimate_mean(x[:, k]),
                    after=estimate_mean(y[:, k]),
                    shift=estimate_mean(changes),
                    changes=_rounded_values(changes),
                )
            )
    return cells


def _context_shift(
    name: str,
    before: PromptEvaluation | None,
    after: PromptEvaluation | None,
    settings: EvaluationSettings,
    coherence: CoherenceScores | None,
) -> ContextShift:
    """Each trait's own questions along its own direction, asked under a context; nothing where it does not fit."""
    if before is None or after is None:
        return ContextShift(context=name, cells=(), judged=(), why_missing=TOO_LONG)
    cells = _shift_matrix(before, after, settings)
    return ContextShift(
        context=name,
        cells=tuple(cell for cell in cells if cell.asked == cell.direction),
        judged=_judged_changes(before, after, settings, coherence),
    )


def _judged_changes(
    before: PromptEvaluation,
    after: PromptEvaluation,
    settings: EvaluationSettings,
    coherence: CoherenceScores | None,
) -> tuple[JudgedChange, ...]:
    return tuple(_judged_change(t, before, after, settings, coherence) for t in before.answers) if coherence else ()


def _judged_change(
    trait: str,
    before: PromptEvaluation,
    after: PromptEvaluation,
    settings: EvaluationSettings,
    coherence: CoherenceScores,
) -> JudgedChange:
    judge, shape = settings.judges[trait], (-1, settings.rollouts)
    x, y = (np.array(scores_of(evaluation.scores[trait])).reshape(shape) for evaluation in (before, after))
    changes = _question_means(y) - _question_means(x)
    start = estimate_scores(_question_means(x))
    missing: list[Judgement] = [j for side in (before, after) for j in side.scores[trait] if j.score is None]
    coherent = [_question_means(coherence.scores[id(side)][trait].reshape(shape)) for side in (before, after)]
    return JudgedChange(
        trait=trait,
        judge=judge.name,
        why_unusable=judge.why_unusable if isinstance(judge, ExemplarJudge) else "",
        answers=x.size,
        before=start,
        after=estimate_scores(_question_means(y)),
        change=estimate_score_change(changes, start),
        changes=_rounded_values(changes),
        missing_before=int(np.isnan(x).sum()),
        missing_after=int(np.isnan(y).sum()),
        reasons=dict(Counter(j.kind for j in missing).most_common()),
        coherence=coherence.how,
        coherence_before=estimate_scores(coherent[0]),
        coherence_after=estimate_scores(coherent[1]),
    )


def _question_means(scores: FloatArray) -> FloatArray:
    """Means over rollouts [q] of what was scored; NaN where nothing was."""
    scored = ~np.isnan(scores)
    sums = np.where(scored, scores, 0.0).sum(-1)
    means: FloatArray = np.divide(sums, scored.sum(-1), out=np.full(len(scores), np.nan), where=scored.any(-1))
    return means


def _rounded_values(numbers: FloatArray) -> tuple[float | None, ...]:
    return tuple(round(float(x), 6) if np.isfinite(x) else None for x in numbers)


def _answer_pairs(trait: str, before: PromptEvaluation, after: PromptEvaluation, rollouts: int) -> list[AnswerPair]:
    """The first answers to the first questions."""
    first_rollouts = range(0, len(before.answers[trait]), rollouts)[:SAMPLE_QUESTIONS]
    return [
        AnswerPair(
            trait=trait,
            question=before.answers[trait][i].question,
            before=before.answers[trait][i].text,
            after=after.answers[trait][i].text,
            score_before=before.scores[trait][i].score,
            score_after=after.scores[trait][i].score,
        )
        for i in first_rollouts
    ]


def _comparison_notes(
    before: ModelEvaluation,
    after: ModelEvaluation,
    settings: EvaluationSettings,
    capability: Sequence[CapabilityChange | None],
) -> list[str]:
    notes = []
    if after.digest == before.digest:
        notes.append("The tuned model has the same weights and chat template as the base.")
    if after.relation == "other":
        notes.append("By its weights the tuned model is not a fine-tune of the base.")
    if after.template != before.template:
        notes.append("The chat templates differ; each model was asked through its own.")
    for context, *sides in zip(settings.contexts, before.contexts, after.contexts, strict=True):
        if None in sides:
            notes.append(f"The context {context.label} was not measured: {TOO_LONG}.")
    for task, change, x, y in zip(settings.tasks, capability, before.capability, after.capability, strict=True):
        if y is None or x is None:
            notes.append(f"{task.name} was not measured: lm-eval does not steer.")
        elif change is None:
            notes.append(f"{task.name} was not compared: the two models count its tokens differently.")
        elif change.guessed:
            notes.append(f"{task.name}: the base is not shown to answer better than chance, so nothing could be lost.")
        elif lost := len(x.units) - len(change.units_before):
            notes.append(f"{task.name}: {lost} of {len(x.units)} units could not be read by both models.")
    return notes
