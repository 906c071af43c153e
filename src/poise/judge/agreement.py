"""How far a judge agrees with answers that somebody labelled."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from poise.data.thoughts import split_thought
from poise.errors import InvalidArgument, InvalidExemplars
from poise.judge.judgement import Judge
from poise.statistics.estimates import Estimate, Statistic, bootstrap, grouped_auc_estimate, kappa, of_groups, pearson
from poise.trait import Trait, same_question

__all__ = ["THRESHOLD", "Agreement", "LabelledAnswer", "check_agreement", "held_out", "read_labels"]

THRESHOLD = 50.0
"""Scores from here on count as showing the trait, as in the paper's filter."""


LabelledAnswer = tuple[str, str, float]  # question, answer, label


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Agreement of a judge with labels, over the answers that it could score.

    Attributes:
        judge: Its name.
        auc: Chance that an answer labelled as showing the trait scores above one that is not.
        kappa: Cohen's κ, both sides cut at 50.
        r: Correlation of scores and labels (with yes/no labels the point-biserial one).
        scored: Answers with a score; the estimates' ``n`` counts the questions, which are what is resampled.
        missing: Answers without a score, by kind of reason.
    """

    judge: str
    auc: Estimate
    kappa: Estimate
    r: Estimate
    scored: int
    missing: Mapping[str, int]


def check_agreement(
    judge: Judge,
    questions: Sequence[str],
    answers: Sequence[str],
    labels: Sequence[bool] | Sequence[float],
    *,
    seed: int = 0,
) -> Agreement:
    """Score labelled answers and compare.

    Answers to one question are not independent, so intervals come from resampling questions. A figure that the labels
    do not allow, such as an AUC where all are alike, is NaN.

    Args:
        judge: Any judge.
        questions: One an answer; may repeat.
        answers: To be scored; of one that begins with a thought, the reply is.
        labels: Yes or no (or 1 and 0 throughout), or scores from 0 to 100.
        seed: Seed of the resampling.

    Raises:
        InvalidArgument: the three lists differ in length, are empty, or a label is outside 0-100.
    """
    truth = _truth(questions, answers, labels)
    judged = judge(questions, [split_thought(answer)[1] for answer in answers])
    scored = [i for i, judgement in enumerate(judged) if judgement.score is not None]
    scores = np.array([judgement.score for judgement in judged if judgement.score is not None], dtype=float)
    truth = truth[scored]
    yes, judged_yes = truth >= THRESHOLD, scores >= THRESHOLD
    _, question = np.unique([same_question(questions[i]) for i in scored], return_inverse=True)

    def estimate(statistic: Statistic) -> Estimate:
        by_question, count = of_groups(statistic, question)
        return bootstrap(by_question, count, seed=seed)

    return Agreement(
        judge=judge.name,
        auc=grouped_auc_estimate(scores[yes], scores[~yes], (question[yes], question[~yes]), seed=seed),
        kappa=estimate(lambda i: kappa(judged_yes[i], yes[i])),
        r=estimate(lambda i: pearson(scores[i], truth[i])),
        scored=len(scored),
        missing=dict(Counter(judgement.kind for judgement in judged if judgement.score is None)),
    )


def _truth(
    questions: Sequence[str], answers: Sequence[str], labels: Sequence[bool] | Sequence[float]
) -> NDArray[np.float64]:
    """Labels on the scale 0-100."""
    if not len(questions) == len(answers) == len(labels) or not len(labels):
        raise InvalidArgument(
            f"There are {len(questions)} questions, {len(answers)} answers and {len(labels)} labels; give one label "
            "and one question an answer, and at least one."
        )
    truth = np.asarray(labels, dtype=float)
    if set(truth.tolist()) <= {0.0, 1.0}:
        return truth * 100.0
    outside = truth[~((truth >= 0.0) & (truth <= 100.0))]
    if len(outside):
        raise InvalidArgument(f"A label is {outside[0]:g}, outside 0-100; labels are true or false, or such scores.")
    return truth


def held_out(trait: Trait) -> list[LabelledAnswer]:
    """A trait's held-out exemplars as labelled answers: 1 with the trait, 0 without."""
    sides = (("positive", 1.0), ("negative", 0.0))
    return [(pair.question, getattr(pair, side), label) for pair in trait.held_out_pairs for side, label in sides]


def read_labels(path: Path) -> list[LabelledAnswer]:
    """Labelled answers from JSONL: question, answer, label a line.

    Raises:
        InvalidExemplars: the file cannot be read, is empty, or a line is no labelled answer.
    """
    try:
        lines = path.read_text("utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InvalidExemplars(
            f"The labels {path} cannot be read ({reason}); give the path of a JSONL file."
        ) from error
    rows: list[LabelledAnswer] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            question, answer, label = row["question"], row["answer"], row["label"]
            if not (isinstance(question, str) and isinstance(answer, str) and isinstance(label, bool | int | float)):
                raise TypeError
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidExemplars(
                f"{path}, line {number} is not a labelled answer; write an object with question and answer, which are "
                "texts, and label, which is true, false or a number from 0 to 100."
            ) from error
        rows.append((question, answer, float(label)))
    if not rows:
        raise InvalidExemplars(f"{path} holds no labelled answer; write one object a line.")
    return rows
