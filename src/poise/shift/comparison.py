"""Two looks, at a base and at a tuned model, to the figures of what lies between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from poise.contrast import Run, ordinary_scope
from poise.contrast.rollout import score
from poise.judge import Judge, Judgement
from poise.judge.coherence import LikelihoodCoherence
from poise.judge.endpoint import endpoint_coherence
from poise.judge.exemplars import ExemplarJudge
from poise.judge.factory import OFFLINE
from poise.judge.local_model import LocalJudge
from poise.model import Model
from poise.shift.capability import compare
from poise.shift.evaluation import Load, Look, Sitting
from poise.shift.report import Capability, Cell, Judged, Sample, Shift, mean_of
from poise.statistics.estimates import Estimate

__all__ = ["Fluent", "coherence", "compared"]

Array = NDArray[np.float64]
SAMPLES = 4  # questions a trait whose answers are shown


@dataclass(frozen=True, slots=True)
class Fluent:
    """How coherence is scored, and the scores of every look (by ``id``) and trait."""

    how: str
    scores: Mapping[int, Mapping[str, Array]]


def coherence(
    spec: str | None,
    base: str | Model,
    looks: Sequence[Look],
    judges: Mapping[str, Judge],
    folder: Path | None,
    load: Load,
) -> Fluent:
    """Coherence of all models' answers by one judge; likelihood is the base's, which is opened again for it."""
    first = next(iter(judges.values()))
    ordinary = [answer for given in looks[0].answers.values() for answer in given]
    fluent: Judge
    if isinstance(first, ExemplarJudge):
        model = base if isinstance(base, Model) else load(base)
        fluent, how = LikelihoodCoherence.fit(model, *_texts(looks[0])), OFFLINE
    elif isinstance(first, LocalJudge):
        fluent = LocalJudge.of_coherence(first.model)
        how = f"by {fluent.name}"
    else:
        fluent = endpoint_coherence(str(spec).partition(":")[2], cache=folder)
        how = f"by {fluent.name}"
    run, scope = Run(folder / "coherence" if folder else None), ordinary_scope(ordinary)
    return Fluent(
        how,
        {
            id(one): {
                trait: np.array(score(run.judge(fluent, given, scope=scope, what="Judging coherence")))
                for trait, given in one.answers.items()
            }
            for one in looks
        },
    )


def compared(
    name: str,
    before: Look,
    after: Look,
    sitting: Sitting,
    fluent: Fluent | None,
    *,
    predicted: Mapping[str, Estimate],
) -> Shift:
    """Everything about one tuned model.

    Args:
        name: Of the tuned model in reports.
        before: What the base showed.
        after: What the tuned model showed.
        sitting: What both were asked.
        fluent: Coherence of both; ``None`` where nothing was answered.
        predicted: By trait, what was said of the training data.
    """
    abilities = [compare(a, x, y) for a, x, y in zip(sitting.abilities, before.abilities, after.abilities, strict=True)]
    return Shift(
        name=name,
        digest=after.digest,
        relation=after.relation,
        matrix=tuple(_cells(before, after, sitting)),
        judged=tuple(_judged(t, before, after, sitting, fluent) for t in before.answers) if fluent else (),
        capability=tuple(a for a in abilities if a is not None),
        predicted=dict(predicted),
        samples=tuple(s for t in before.answers for s in _samples(t, before, after, sitting.rollouts)),
        notes=tuple(_notes(before, after, sitting, abilities)),
    )


def _cells(before: Look, after: Look, sitting: Sitting) -> list[Cell]:
    out = []
    for asked in sitting.prompts:
        x, y = (look.projections[asked].double().numpy() for look in (before, after))
        for k, vector in enumerate(sitting.vectors):
            changes = y[:, k] - x[:, k]
            out.append(
                Cell(
                    asked=asked,
                    direction=vector.name,
                    before=mean_of(x[:, k]),
                    after=mean_of(y[:, k]),
                    shift=mean_of(changes),
                    changes=_values(changes),
                )
            )
    return out


def _judged(trait: str, before: Look, after: Look, sitting: Sitting, fluent: Fluent) -> Judged:
    judge, shape = sitting.judges[trait], (-1, sitting.rollouts)
    x, y = (np.array(score(look.scores[trait])).reshape(shape) for look in (before, after))
    changes = _by_question(y) - _by_question(x)
    missing: list[Judgement] = [j for look in (before, after) for j in look.scores[trait] if j.score is None]
    said = [_by_question(fluent.scores[id(look)][trait].reshape(shape)) for look in (before, after)]
    return Judged(
        trait=trait,
        judge=judge.name,
        why_unusable=judge.why_unusable if isinstance(judge, ExemplarJudge) else "",
        answers=x.size,
        before=mean_of(_by_question(x)),
        after=mean_of(_by_question(y)),
        change=mean_of(changes),
        changes=_values(changes),
        missing_before=int(np.isnan(x).sum()),
        missing_after=int(np.isnan(y).sum()),
        reasons=dict(Counter(j.kind for j in missing).most_common()),
        coherence=fluent.how,
        coherence_before=mean_of(said[0]),
        coherence_after=mean_of(said[1]),
    )


def _by_question(scores: Array) -> Array:
    """Means over rollouts [q] of what was scored; NaN where nothing was."""
    there = ~np.isnan(scores)
    sums = np.where(there, scores, 0.0).sum(-1)
    out: Array = np.divide(sums, there.sum(-1), out=np.full(len(scores), np.nan), where=there.any(-1))
    return out


def _values(numbers: Array) -> tuple[float | None, ...]:
    return tuple(round(float(x), 6) if np.isfinite(x) else None for x in numbers)


def _samples(trait: str, before: Look, after: Look, rollouts: int) -> list[Sample]:
    """The first answers to the first questions."""
    places = range(0, len(before.answers[trait]), rollouts)[:SAMPLES]
    return [
        Sample(
            trait=trait,
            question=before.answers[trait][i].question,
            before=before.answers[trait][i].text,
            after=after.answers[trait][i].text,
            score_before=before.scores[trait][i].score,
            score_after=after.scores[trait][i].score,
        )
        for i in places
    ]


def _notes(before: Look, after: Look, sitting: Sitting, abilities: Sequence[Capability | None]) -> list[str]:
    notes = []
    if after.digest == before.digest:
        notes.append("The tuned model has the very weights and template of the base.")
    if after.relation == "other":
        notes.append("By its tensors the tuned model is not a fine-tune of the base: they differ in name or shape.")
    if after.template != before.template:
        notes.append("The chat templates differ; each model was asked through its own.")
    for ability, found, x, y in zip(sitting.abilities, abilities, before.abilities, after.abilities, strict=True):
        if y is None or x is None:
            notes.append(f"{ability.name} was not measured: lm-eval does not steer.")
        elif found is None:
            notes.append(f"{ability.name} was not compared: the two models count its tokens differently.")
        elif found.guessed:
            notes.append(
                f"{ability.name}: the base is not shown to answer better than chance, so nothing could be lost."
            )
        elif lost := len(x.units) - len(found.units_before):
            notes.append(f"{ability.name}: {lost} of {len(x.units)} units could not be read by both models.")
    return notes


def _texts(look: Look) -> tuple[list[str], list[str]]:
    given = [answer for part in look.answers.values() for answer in part]
    return [a.question for a in given], [a.text for a in given]
