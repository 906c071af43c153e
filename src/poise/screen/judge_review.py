"""A judge's second opinion: on what the projection flags, and on as many answers that it does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from poise.judge import Judge
from poise.judge.exemplars import ExemplarJudge
from poise.judge.factory import trait_judge
from poise.model import Model, load_model
from poise.progress import track
from poise.screen.examples import LocatedAnswer
from poise.screen.output import FlaggedAnswers
from poise.screen.scores import AnswerScores
from poise.storage.content_hash import content_key
from poise.storage.journal import Journal
from poise.vector import PersonaVector

__all__ = ["JudgeReview", "draw_for_review", "load_judges", "review_answers"]

MOST_REVIEWED = 300  # flagged answers a trait
REVIEWED_AT_ONCE = 1000  # answers, after which what the judge said is kept
TRAIT_PRESENT = 50  # the paper's line between a trait and none


@dataclass(frozen=True, slots=True)
class JudgeReview:
    """What a judge says of one trait.

    Attributes:
        scores: 0 to 100 by the answer's place; without those that it could not score.
        note: What to know of it; empty where there is nothing.
    """

    scores: Mapping[int, float] = field(default_factory=dict)
    note: str = ""

    def flagged_but_low(self, flagged: NDArray[np.bool_], scores: NDArray[np.float32], most: int) -> list[int]:
        """Flagged answers that are low for the judge, the highest projections first."""
        places = [i for i, s in self.scores.items() if flagged[i] and s < TRAIT_PRESENT]
        return sorted(places, key=lambda i: (-scores[i], i))[:most]

    def high_but_unflagged(self, flagged: NDArray[np.bool_], most: int) -> list[int]:
        """Answers that are high for the judge and not flagged, its highest first."""
        places = [i for i, s in self.scores.items() if not flagged[i] and s >= TRAIT_PRESENT]
        return sorted(places, key=lambda i: (-self.scores[i], i))[:most]


def draw_for_review(answer_scores: AnswerScores, verdict: FlaggedAnswers, trait: int, *, seed: int) -> list[int]:
    """Places of the flagged answers, at most 300, the highest, and of as many others, drawn at random."""
    scores, flagged = answer_scores.scores[:, trait], verdict.flagged[:, trait]
    bad = np.flatnonzero(flagged)
    bad = bad[np.argsort(-scores[bad], kind="stable")][:MOST_REVIEWED]
    unflagged = np.flatnonzero(~flagged & np.isfinite(scores))
    drawn = np.random.default_rng([seed, trait]).choice(unflagged, min(len(unflagged), max(len(bad), 1)), replace=False)
    return sorted(int(i) for i in (*bad, *drawn))


def load_judges(spec: str, vectors: Sequence[PersonaVector], model: Model, *, cache: Path) -> list[Judge]:
    """A judge for each vector's trait.

    Args:
        spec: Judge, as ``poise.judge.factory.trait_judge`` takes it.
        vectors: k of them.
        model: Judges itself where ``spec`` names it.
        cache: Folder for what endpoints answered.
    """
    loaded = {model.name: model}

    def local(name: str) -> Model:
        loaded[name] = loaded.get(name) or load_model(name)
        return loaded[name]

    return [trait_judge(spec, vector.header.trait, cache=cache, local=local) for vector in vectors]


def review_answers(
    judge: Judge, vector: PersonaVector, answers: Mapping[int, LocatedAnswer], journal: Journal
) -> JudgeReview:
    """Ask a judge about answers, given by place; what the journal has of them is not asked again."""
    order, trait = sorted(answers), vector.name
    keys = {
        i: content_key(
            judge=judge.name, trait=vector.header.trait_hash, asked=answers[i].question, answer=answers[i].turn.text
        )
        for i in order
    }
    unknown_texts = {keys[i]: i for i in reversed(order) if keys[i] not in journal}
    new = sorted(unknown_texts.values())  # of equal questions and answers the first is judged
    with track(f"Judging {trait}", total=len(order)) as advance:
        advance(len(order) - len(new))
        for batch in (new[first : first + REVIEWED_AT_ONCE] for first in range(0, len(new), REVIEWED_AT_ONCE)):
            judgements = judge([answers[i].question for i in batch], [answers[i].turn.text for i in batch])
            scored = [(keys[i], one.score) for i, one in zip(batch, judgements, strict=True) if one.score is not None]
            journal.append(scored)  # what could not be scored is asked again the next time
            advance(len(batch))
    scores: dict[int, float] = {i: journal[keys[i]] for i in order if keys[i] in journal}
    why = judge.why_unusable if isinstance(judge, ExemplarJudge) else ""
    missing = len(order) - len(scores)
    words = [f"{trait}: {why}"] if why else []
    words += [f"{trait}: the judge could not score {missing:,} of {len(order):,} answers"] if missing else []
    return JudgeReview(scores, "; ".join(words))
