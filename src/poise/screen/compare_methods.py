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
from poise.model.spans import Place, places
from poise.progress import track
from poise.screen.base_answers import Answers
from poise.screen.projection import METHODS, Method, Unit, score
from poise.screen.scores import figure, mean
from poise.screen.scoring import Plan, Work
from poise.settings import FrozenModel
from poise.statistics.estimates import Estimate, bootstrap_interval, spearman
from poise.storage.atomic_write import saving
from poise.storage.lock import alone
from poise.vector import PersonaVector

__all__ = ["Agreement", "Estimated", "estimate"]

Scores = NDArray[np.float64]

FEWEST = 3  # answers whose overlap is counted


class Agreement(FrozenModel):
    """How far one method ranks one trait as ``difference`` does, and the data's mean by it."""

    trait: str
    method: Method
    mean: Estimate
    spearman: Estimate | None = Field(description="Rank correlation with difference; None for itself.")
    top_tenth: Estimate | None = Field(description="Share of the highest 10 % that are the same; None of fewer than 3.")
    top_hundredth: Estimate | None = Field(description="Share of the highest 1 % that are the same, likewise.")


class Estimated(FrozenModel):
    """What a sample says."""

    format: int = 1
    data: str
    model: str
    answers: int = Field(description="Of the whole data.")
    sampled: int = Field(description="Answers with a score by every method.")
    seed: int
    seconds: dict[Method, float | None] = Field(
        description="For the whole data here; None where y′ was kept from an earlier run, so that nothing was timed."
    )
    agreement: tuple[Agreement, ...]


def estimate(
    data: DataSet, model: Model, vectors: Sequence[PersonaVector], out: Path, plan: Plan, *, sample: int = 300
) -> Estimated:
    """Score a random sample of answers by all three methods.

    Args:
        data: With answers.
        model: The base model.
        vectors: k of them, of this model.
        out: Where ``estimate.json`` is written; y′ is kept for the screening itself.
        plan: How long y′ may be, the seed, and the layer.
        sample: Answers to draw.

    Raises:
        InvalidArgument: too small a sample, or another run is at work in the folder.
        InvalidData: too many rows are broken.
    """
    if sample < 20:
        raise InvalidArgument(f"The sample is {sample}; ranks need at least 20 answers to be compared.")
    with alone(out):
        return _estimate(data, Work(model, vectors, out, plan), out, sample)


def _estimate(data: DataSet, work: Work, out: Path, sample: int) -> Estimated:
    model, plan, answers = work.model, work.plan, work.own_answers()
    drawn, total = _drawn(data, sample, plan)
    only = {(row.index, turn) for row, turn in drawn}
    rows = list({row.index: row for row, _ in drawn}.values())
    began = time.perf_counter()
    cheap = list(score(model, rows, work.probes, only=only))
    read = time.perf_counter() - began
    kept = answers.missing(_prompts(model, drawn, answers)) < len(only) / 2
    began = time.perf_counter()
    units = list(score(model, rows, work.probes, answers, only))
    full = time.perf_counter() - began
    seconds = [None if kept else full, read, read]
    found = Estimated(
        data=", ".join(part.name for part in data.parts),
        model=model.name,
        answers=total,
        sampled=sum(_known(unit) for unit in units),
        seed=plan.seed,
        seconds={
            m: None if s is None else float(f"{s * total / max(len(cheap), 1):.3g}")
            for m, s in zip(METHODS, seconds, strict=True)
        },
        agreement=tuple(_agreement([u for u in units if _known(u)], work.names)),
    )
    with saving(out / "estimate.json") as temporary:
        temporary.write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return found


def _drawn(data: DataSet, sample: int, plan: Plan) -> tuple[list[tuple[Conversation, int]], int]:
    """Answers drawn at random from the whole data, in its order, and how many there are."""
    draw, kept, n = random.Random(plan.seed), list[tuple[Conversation, int]](), 0
    with track("Drawing a sample", total=data.count() if data.files else None) as advance:
        for row in Rejections(share=plan.broken).sift(data):
            for turn in turns(row):
                n += 1
                if len(kept) < sample:
                    kept.append((row, turn.number))
                elif (place := draw.randrange(n)) < sample:
                    kept[place] = (row, turn.number)
            advance(1)
    return sorted(kept, key=lambda one: (one[0].index, one[1])), n


def _prompts(model: Model, drawn: Sequence[tuple[Conversation, int]], answers: Answers) -> list[Encoded]:
    """What the model is asked for y′."""
    out = []
    for row, number in drawn:
        row_turns = turns(row)
        for turn, place in zip(row_turns, places(model, row_turns), strict=True):
            if turn.number == number and isinstance(place, Place) and (prompt := answers.prompt(turn, place)):
                out.append(prompt)
    return out


def _known(unit: Unit) -> bool:
    return not unit.unread and all(math.isfinite(x) for x in unit.score("difference"))


def _agreement(units: Sequence[Unit], traits: Sequence[str]) -> list[Agreement]:
    out = []
    index = np.array([unit.index for unit in units], dtype=np.int64)
    by = {method: np.array([unit.score(method) for unit in units]).reshape(-1, len(traits)) for method in METHODS}
    for k, trait in enumerate(traits):
        full = by["difference"][:, k]
        for method in METHODS:
            own = by[method][:, k]
            same = None if method == "difference" else (own, full)
            out.append(
                Agreement(
                    trait=trait,
                    method=method,
                    mean=mean(own.astype(np.float32), index),
                    spearman=same and _over(index, *same, spearman),
                    top_tenth=same and _same_top(index, *same, 0.1),
                    top_hundredth=same and _same_top(index, *same, 0.01),
                )
            )
    return out


def _over(index: NDArray[np.int64], a: Scores, b: Scores, statistic: Callable[[Scores, Scores], float]) -> Estimate:
    """A statistic of two scores with its interval, conversations resampled."""
    first = np.flatnonzero(np.r_[True, np.diff(index) != 0][: len(index)])
    members = np.split(np.arange(len(index)), first[1:])

    def of(drawn: NDArray[np.int64]) -> float:
        at = np.concatenate([members[i] for i in drawn])
        return statistic(a[at], b[at])

    if not len(index):
        return Estimate(value=None, low=None, high=None, n=0)
    value = of(np.arange(len(members)))
    return figure(value, *bootstrap_interval(of, len(members), draws=500), n=len(members))


def _same_top(index: NDArray[np.int64], a: Scores, b: Scores, share: float) -> Estimate | None:
    """Overlap of the highest; nothing where these are too few to say anything."""
    if round(share * len(a)) < FEWEST:
        return None
    return _over(index, a, b, lambda a, b: _overlap(a, b, share))


def _overlap(a: Scores, b: Scores, share: float) -> float:
    """Share of the highest by ``b`` that are among the highest by ``a``."""
    top = round(share * len(a))
    highest = [set(np.argsort(-x, kind="stable")[:top].tolist()) for x in (a, b)]
    return len(highest[0] & highest[1]) / top
