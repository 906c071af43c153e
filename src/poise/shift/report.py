"""``ShiftReport``, the value: what fine-tuning did to a model's traits and abilities, as ``shift.json`` holds it.

Beside each figure stand the single changes that it is the mean of, so that a gate may ask for another confidence.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from poise.errors import InvalidData
from poise.settings import FrozenModel
from poise.statistics.estimates import Estimate, bootstrap
from poise.storage.atomic_write import saving

__all__ = [
    "Asked",
    "Capability",
    "Cell",
    "Direction",
    "Judged",
    "Kind",
    "Sample",
    "Shift",
    "ShiftReport",
    "change_of",
    "load",
    "mean_of",
    "save",
]

Array = NDArray[np.float64]
Values = tuple[float | None, ...]
Kind = Literal["perplexity", "accuracy"]
DRAWS = 2000


class Direction(FrozenModel):
    """Where a trait's direction is read."""

    trait: str
    layer: int
    layers: int = Field(description="L, decoder blocks.")
    norm: float = Field(description="‖v‖ at the layer: a shift of this size is one mean difference.")


class Asked(FrozenModel):
    """The evaluation questions of one trait; the first ``judged`` of them were answered and judged."""

    trait: str
    questions: tuple[str, ...]
    judged: int


class Cell(FrozenModel):
    """The finetuning shift (section 6) of one trait's questions along one direction, in residual-stream units."""

    asked: str = Field(description="The trait whose evaluation questions are the prompts.")
    direction: str = Field(description="The trait whose unit direction is read.")
    before: Estimate
    after: Estimate
    shift: Estimate = Field(description="After minus before, paired by question.")
    changes: Values = Field(description="Question by question; None where a model gave NaN or infinity.")


class Judged(FrozenModel):
    """The judge's score of one trait, 0–100, before and after."""

    trait: str
    judge: str
    why_unusable: str = Field(description="Why no score counts; empty where the judge is usable.")
    answers: int = Field(description="Of each model: questions times rollouts.")
    before: Estimate
    after: Estimate
    change: Estimate = Field(description="After minus before, paired and bootstrapped by question.")
    changes: Values = Field(description="Question by question; None where no answer of a side was scored.")
    missing_before: int = Field(description="Answers without a score; they enter no mean.")
    missing_after: int
    reasons: dict[str, int] = Field(description="Of the missing scores, both sides together.")
    coherence: str = Field(description="How coherence is scored.")
    coherence_before: Estimate
    coherence_after: Estimate


class Capability(FrozenModel):
    """One ability before and after. Units are conversations or questions; ``weights`` their tokens, or 1."""

    name: str
    kind: Kind
    metric: str
    source: str
    chance: float | None = Field(None, description="What guessing scores, where there are choices.")
    before: Estimate
    after: Estimate
    change: Estimate = Field(description="Perplexity: after / before. Accuracy: what was lost, before − after.")
    units_before: tuple[float, ...] = Field(description="Mean negative log-likelihood a token, or 0 to 1.")
    units_after: tuple[float, ...]
    weights: tuple[float, ...]

    @property
    def guessed(self) -> bool:
        """Whether the base is not shown to be better than chance, so that there was nothing to lose."""
        return self.chance is not None and (self.before.low is None or self.before.low <= self.chance)


class Sample(FrozenModel):
    """A question with the first answer of each model."""

    trait: str
    question: str
    before: str
    after: str
    score_before: float | None
    score_after: float | None


class Shift(FrozenModel):
    """One tuned model against its base."""

    name: str
    digest: str = Field(description="Of all its weights and its chat template.")
    relation: str = Field(description="To the base, by fingerprint: adapter, fine-tune, template, same or other.")
    matrix: tuple[Cell, ...]
    judged: tuple[Judged, ...]
    capability: tuple[Capability, ...]
    predicted: dict[str, Estimate] = Field(
        description="By trait: the data's mean projection difference, where screened."
    )
    samples: tuple[Sample, ...]
    notes: tuple[str, ...] = ()

    def cell(self, trait: str) -> Cell | None:
        """The shift of a trait's own questions along its own direction."""
        return next((c for c in self.matrix if c.asked == c.direction == trait), None)


class ShiftReport(FrozenModel):
    """Everything that ``poise shift`` measured."""

    format: Literal[1] = 1
    base: str
    base_digest: str
    directions: tuple[Direction, ...]
    asked: tuple[Asked, ...]
    rollouts: int
    max_new_tokens: int
    temperature: float
    seed: int
    tuned: tuple[Shift, ...]


def mean_of(values: Sequence[float | None] | Array, *, level: float = 0.95) -> Estimate:
    """Mean of what is there with its percentile bootstrap, all draws at once."""
    there = np.array([v for v in values if v is not None and math.isfinite(v)], dtype=float)
    n = len(there)
    if n == 0:
        return Estimate(value=None, low=None, high=None, n=0)
    if n == 1:
        return Estimate.of(float(there[0]), math.nan, math.nan, 1)
    drawn = there[np.random.default_rng(0).integers(0, n, (DRAWS, n))].mean(1)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Estimate.of(float(there.mean()), float(low), float(high), n)


def change_of(
    kind: Kind,
    before: Sequence[float],
    after: Sequence[float],
    weights: Sequence[float],
    *,
    level: float = 0.95,
) -> Estimate:
    """Perplexity after / before, bootstrapped by conversation; or the accuracy lost, before − after, by question.

    Of answers that are right or wrong the loss has the interval of Agresti and Min 2005 for paired proportions, which
    holds where few or none change, as a bootstrap does not.
    """
    x, y, w = (np.asarray(values, dtype=float) for values in (before, after, weights))
    if kind == "perplexity":
        more = (y - x) * w
        return bootstrap(lambda i: float(np.exp(more[i].sum() / w[i].sum())), len(x), level=level)
    if set(np.unique(np.concatenate([x, y]))) <= {0.0, 1.0}:
        return _paired(int(((x == 1) & (y == 0)).sum()), int(((x == 0) & (y == 1)).sum()), len(x), level)
    return bootstrap(lambda i: float((x - y)[i].mean()), len(x), level=level)


def _paired(lost: int, gained: int, n: int, level: float) -> Estimate:
    b, c, total = lost + 0.5, gained + 0.5, n + 2
    z = NormalDist().inv_cdf(0.5 + level / 2)
    middle, half = (b - c) / total, z * math.sqrt(b + c - (b - c) ** 2 / total) / total
    return Estimate.of((lost - gained) / n, max(middle - half, -1.0), min(middle + half, 1.0), n)


def save(report: ShiftReport, path: Path) -> None:
    """Write ``shift.json``, whole or not at all.

    Raises:
        SaveFailed: the disk refused; an earlier file is untouched.
    """
    with saving(path) as temporary:
        temporary.write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")


def load(path: Path) -> ShiftReport:
    """Read a ``shift.json``.

    Raises:
        InvalidData: not there, or not of this schema; names the field.
    """
    try:
        return ShiftReport.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise InvalidData(f"Cannot read {path}: {error.strerror or error}; write one with `poise shift`.") from error
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise InvalidData(
            f"{path} is no shift.json of this version: {where}: {fault['msg']}; write it again with `poise shift`."
        ) from error
    except ValueError as error:
        raise InvalidData(f"{path} is no JSON ({error}); name the shift.json that `poise shift` wrote.") from error
