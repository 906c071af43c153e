"""What the cheap methods are worth on these data, and what each would cost, from a random sample."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from poise.data import Conversation, DataSet, Rejections, turns
from poise.errors import InvalidArgument
from poise.model import Encoded, Model
from poise.model.spans import AnswerSpan, answer_spans
from poise.progress import track
from poise.screen.base_answers import BaseAnswers
from poise.screen.projection import SCORING_METHODS, ScoredAnswer, ScoringMethod, check_part, score_answers
from poise.screen.scores import mean_score, rounded_estimate
from poise.screen.scoring import ScreeningRun, ScreenSettings
from poise.settings import FrozenModel
from poise.statistics.estimates import Estimate, bootstrap_interval, of_groups, spearman
from poise.storage.atomic_write import saving
from poise.storage.lock import locked
from poise.vector import PersonaVector

__all__ = ["MethodAgreement", "MethodComparison", "compare_methods"]

ScoreColumn = NDArray[np.float64]

SMALLEST_TOP = 3  # answers whose overlap is counted


class MethodAgreement(FrozenModel):
    """How far one method ranks one trait as ``difference`` does, and the data's mean by it."""

    trait: str
    method: ScoringMethod
    mean: Estimate
    spearman: Estimate | None = Field(description="Rank correlation with difference; None for itself.")
    top_tenth: Estimate | None = Field(description="Share of the highest 10 % that are the same; None of fewer than 3.")
    top_hundredth: Estimate | None = Field(description="Share of the highest 1 % that are the same, likewise.")


class MethodComparison(FrozenModel):
    """What a sample says."""

    format: int = 1
    data: str
    model: str
    answers: int = Field(description="Answers in the whole data.")
    sampled: int = Field(description="Answers with a score by every method.")
    seed: int
    seconds: dict[ScoringMethod, float | None] = Field(
        description="For the whole data here; None where y′ was kept from an earlier run, so that nothing was timed."
    )
    agreement: tuple[MethodAgreement, ...]


def compare_methods(
    data: DataSet, model: Model, vectors: Sequence[PersonaVector], out: Path, plan: ScreenSettings, *, sample: int = 300
) -> MethodComparison:
    """Score a random sample of answers by all three methods.

    Args:
        data: Conversations with answers.
        model: The base model.
        vectors: k of them, of this model.
        out: Folder that ``estimate.json`` is written to; y′ is kept for the screening itself.
        plan: How long y′ may be, the seed, and the layer.
        sample: Answers to draw.

    Raises:
        InvalidArgument: too small a sample.
        FolderInUse: another run is at work in the folder.
        InvalidData: too many rows are broken.
    """
    if sample < 20:
        raise InvalidArgument(f"The sample is {sample}; ranks need at least 20 answers to be compared.")
    check_part(data.answer_part, "difference")
    with locked(out / ".run", "screen", results=out):
        return _compare(data, ScreeningRun(model, vectors, out, plan), out, sample)


def _compare(data: DataSet, work: ScreeningRun, out: Path, sample: int) -> MethodComparison:
    model, plan, answers = work.model, work.plan, work.open_base_answers()
    drawn, total = _draw_answers(data, sample, plan)
    only = {(row.index, turn) for row, turn in drawn}
    rows = list({row.index: row for row, _ in drawn}.values())
    began = time.perf_counter()
    cheap = list(score_answers(model, rows, work.probes, only=only))
    read = time.perf_counter() - began
    mostly_stored = answers.count_missing(_base_prompts(model, drawn, answers)) < len(only) / 2
    began = time.perf_counter()
    units = list(score_answers(model, rows, work.probes, answers, only))
    full = time.perf_counter() - began
    seconds = [None if mostly_stored else full, read, read]
    comparison = MethodComparison(
        data=", ".join(part.name for part in data.parts),
        model=model.name,
        answers=total,
        sampled=sum(_has_all_scores(unit) for unit in units),
        seed=plan.seed,
        seconds={
            m: None if s is None else float(f"{s * total / max(len(cheap), 1):.3g}")
            for m, s in zip(SCORING_METHODS, seconds, strict=True)
        },
        agreement=tuple(_method_agreements([u for u in units if _has_all_scores(u)], work.names)),
    )
    with saving(out / "estimate.json") as temporary:
        temporary.write_text(comparison.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return comparison


def _draw_answers(data: DataSet, sample: int, plan: ScreenSettings) -> tuple[list[tuple[Conversation, int]], int]:
    """Answers drawn at random from the whole data, in its order, and how many there are."""
    draw, drawn, n = random.Random(plan.seed), list[tuple[Conversation, int]](), 0
    with track("Drawing a sample", total=data.count() if data.files else None) as advance:
        for row in Rejections(share=plan.broken).sift(data):
            for turn in turns(row):
                n += 1
                if len(drawn) < sample:
                    drawn.append((row, turn.number))
                elif (place := draw.randrange(n)) < sample:
                    drawn[place] = (row, turn.number)
            advance(1)
    return sorted(drawn, key=lambda one: (one[0].index, one[1])), n


def _base_prompts(model: Model, drawn: Sequence[tuple[Conversation, int]], answers: BaseAnswers) -> list[Encoded]:
    """What the model is asked for y′."""
    out = []
    for row, number in drawn:
        row_turns = turns(row)
        for turn, place in zip(row_turns, answer_spans(model, row_turns), strict=True):
            if turn.number == number and isinstance(place, AnswerSpan) and (prompt := answers.prompt_for(turn, place)):
                out.append(prompt)
    return out


def _has_all_scores(unit: ScoredAnswer) -> bool:
    return not unit.unread and all(math.isfinite(x) for x in unit.score("difference"))


def _method_agreements(units: Sequence[ScoredAnswer], traits: Sequence[str]) -> list[MethodAgreement]:
    out = []
    index = np.array([unit.index for unit in units], dtype=np.int64)
    by = {
        method: np.array([unit.score(method) for unit in units]).reshape(-1, len(traits)) for method in SCORING_METHODS
    }
    for k, trait in enumerate(traits):
        full = by["difference"][:, k]
        for method in SCORING_METHODS:
            method_scores = by[method][:, k]
            same = None if method == "difference" else (method_scores, full)
            out.append(
                MethodAgreement(
                    trait=trait,
                    method=method,
                    mean=mean_score(method_scores.astype(np.float32), index),
                    spearman=same and _with_interval(index, *same, spearman),
                    top_tenth=same and _top_overlap(index, *same, 0.1),
                    top_hundredth=same and _top_overlap(index, *same, 0.01),
                )
            )
    return out


def _with_interval(
    index: NDArray[np.int64],
    a: ScoreColumn,
    b: ScoreColumn,
    statistic: Callable[[ScoreColumn, ScoreColumn], ScoreColumn],
) -> Estimate:
    """A statistic of two scores with its interval, conversations resampled."""
    if not len(index):
        return Estimate(value=None, low=None, high=None, n=0)
    conversation = np.cumsum(np.diff(index, prepend=index[0]) != 0)
    by_conversation, n = of_groups(lambda rows: statistic(a[rows], b[rows]), conversation)
    value = float(statistic(a, b))
    return rounded_estimate(value, *bootstrap_interval(by_conversation, n, draws=500), n=n)


def _top_overlap(index: NDArray[np.int64], a: ScoreColumn, b: ScoreColumn, share: float) -> Estimate | None:
    """Overlap of the highest; nothing where these are too few to say anything."""
    if round(share * len(a)) < SMALLEST_TOP:
        return None
    return _with_interval(index, a, b, lambda a, b: _overlap_share(a, b, share))


def _overlap_share(a: ScoreColumn, b: ScoreColumn, share: float) -> ScoreColumn:
    """Share of the highest by ``b`` that are among the highest by ``a``, along the last axis."""
    top = max(1, round(share * a.shape[-1]))
    highest = [np.argsort(-x, axis=-1, kind="stable")[..., :top] for x in (a, b)]
    chosen = [np.zeros(a.shape, bool), np.zeros(a.shape, bool)]
    for mask, rows in zip(chosen, highest, strict=True):
        np.put_along_axis(mask, rows, True, axis=-1)
    shared: ScoreColumn = (chosen[0] & chosen[1]).sum(-1) / top
    return shared
