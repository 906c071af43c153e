"""The answers of a screening that a judge with a budget sees: drawn, and written with what it says of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from poise.data import Conversation
from poise.screen.judge_cascade import Stratum, draw_strata, estimate_cascade, shared_budget
from poise.screen.judge_review import JudgeReview
from poise.screen.output import FlaggedAnswers
from poise.screen.scores import AnswerScores
from poise.screen.scoring import ScreeningRun
from poise.screen.summary import TraitSummary
from poise.storage.atomic_write import saving

__all__ = ["draw_cascades", "judged_places", "with_cascades", "write_judged"]


def draw_cascades(work: ScreeningRun, scores: AnswerScores, verdict: FlaggedAnswers) -> list[list[Stratum]]:
    """Of each trait the answers that the judge sees, by strata."""
    budgets = shared_budget(work.plan.judge_budget or 0, len(work.names))
    drawn = []
    same = np.column_stack([scores.tokens, np.ascontiguousarray(scores.scores).view(np.int32)])
    texts = np.unique(same, axis=0, return_inverse=True)[1].reshape(-1)  # equal texts have equal scores
    for k, (budget, cut) in enumerate(zip(budgets, verdict.cuts, strict=True)):
        column = scores.scores[:, k].astype(float)
        above = np.where(np.isfinite(column), column - cut.limits(scores.tokens), np.nan)
        drawn.append(draw_strata(above, verdict.flagged[:, k], budget, seed=(work.plan.seed, k), texts=texts))
    return drawn


def judged_places(strata: Sequence[Stratum]) -> list[int]:
    """Places of the answers that the judge sees of one trait, ascending."""
    return sorted(int(i) for stratum in strata for i in stratum.drawn)


def with_cascades(
    traits: Sequence[TraitSummary],
    verdict: FlaggedAnswers,
    strata: Sequence[Sequence[Stratum]],
    opinions: Sequence[JudgeReview],
) -> list[TraitSummary]:
    """The traits with what is estimated from the answers that the judge saw."""
    cascades = [estimate_cascade(some, verdict.flagged[:, k], opinions[k].scores) for k, some in enumerate(strata)]
    return [trait.model_copy(update={"cascade": one}) for trait, one in zip(traits, cascades, strict=True)]


def write_judged(
    path: Path,
    traits: Sequence[str],
    scores: AnswerScores,
    verdict: FlaggedAnswers,
    strata: Sequence[Sequence[Stratum]],
    opinions: Sequence[JudgeReview],
    rows: Mapping[int, Conversation],
) -> None:
    """A line for each answer that the judge saw of each trait, in the data's order.

    Raises:
        SaveFailed: the disk refused.
    """
    lines = []
    for k, (trait, some, opinion) in enumerate(zip(traits, strata, opinions, strict=True)):
        for place, name in sorted((int(i), stratum.name) for stratum in some for i in stratum.drawn):
            row = rows[int(scores.index[place])]
            lines.append(
                {
                    "trait": trait,
                    "file": row.file,
                    "row": row.row,
                    "index": row.index,
                    "turn": int(scores.turn[place]),
                    "score": float(f"{float(scores.scores[place, k]):.6g}"),
                    "flagged": bool(verdict.flagged[place, k]),
                    "stratum": name,
                    "judged": opinion.scores.get(place),
                }
            )
    with saving(path) as temporary:
        temporary.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
