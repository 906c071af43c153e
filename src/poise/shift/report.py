"""``ShiftReport``: what fine-tuning did to a model's traits and capability, as ``shift.json`` holds it.

Each figure stands beside the single changes that it is the mean of, so that a gate may ask for another confidence.
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

from poise.arguments import check_type
from poise.errors import InvalidData
from poise.settings import FrozenModel, first_fault
from poise.shift.contexts import PromptContext
from poise.statistics.estimates import Estimate, bounded_estimate, mean_estimate, score_change_estimate
from poise.statistics.intervals import ratio_interval
from poise.storage.atomic_write import saving
from poise.storage.output import check_output

__all__ = [
    "AnswerPair",
    "CapabilityChange",
    "CapabilityKind",
    "ContextExtreme",
    "ContextMeasure",
    "ContextShift",
    "ContextSummary",
    "DirectionCosine",
    "FloatArray",
    "JudgedChange",
    "ModelShift",
    "OptionalFloats",
    "ShiftCell",
    "ShiftReport",
    "TraitDirection",
    "TraitQuestions",
    "estimate_change",
    "estimate_mean",
    "estimate_score_change",
    "estimate_scores",
    "load_report",
    "perplexity_estimate",
    "save_report",
]

FloatArray = NDArray[np.float64]
OptionalFloats = tuple[float | None, ...]
CapabilityKind = Literal["perplexity", "accuracy"]
ContextMeasure = Literal["shift", "judged"]


class TraitDirection(FrozenModel):
    """Where a trait's direction is read."""

    trait: str
    layer: int = Field(description="Layer whose output is read, counted from 0.")
    layers: int = Field(description="L, decoder blocks.")
    norm: float = Field(description="‖v‖ at the layer: a shift of this size is one mean difference.")


class TraitQuestions(FrozenModel):
    """The evaluation questions of one trait; the first ``judged`` of them were answered and judged."""

    trait: str
    questions: tuple[str, ...]
    judged: int


class ShiftCell(FrozenModel):
    """The finetuning shift (section 6) of one trait's questions along one direction, in residual-stream units."""

    asked: str = Field(description="The trait whose evaluation questions are the prompts.")
    direction: str = Field(description="The trait whose unit direction is read.")
    before: Estimate
    after: Estimate
    shift: Estimate = Field(description="After minus before, paired by question.")
    changes: OptionalFloats = Field(description="Question by question; None where a model gave NaN or infinity.")


class JudgedChange(FrozenModel):
    """The judge's score of one trait, 0–100, before and after."""

    trait: str
    judge: str
    why_unusable: str = Field(description="Why no score counts; empty where the judge is usable.")
    answers: int = Field(description="Answers of each model: questions times rollouts.")
    before: Estimate
    after: Estimate
    change: Estimate = Field(description="After minus before, paired by question.")
    changes: OptionalFloats = Field(description="Question by question; None where no answer of a side was scored.")
    missing_before: int = Field(description="Answers without a score; they enter no mean.")
    missing_after: int
    reasons: dict[str, int] = Field(description="Reasons of the missing scores, both sides together.")
    coherence: str = Field(description="How coherence is scored.")
    coherence_before: Estimate
    coherence_after: Estimate


class CapabilityChange(FrozenModel):
    """One ability before and after. Units are conversations or questions; ``weights`` their tokens, or 1."""

    name: str
    kind: CapabilityKind
    metric: str
    source: str
    chance: float | None = Field(None, description="What guessing scores, where there are choices.")
    before: Estimate
    after: Estimate
    change: Estimate = Field(description="Perplexity: after / before. Accuracy: what was lost, before − after.")
    units_before: tuple[float, ...] = Field(description="Mean negative log-likelihood a token, or 0 to 1.")
    units_after: tuple[float, ...]
    weights: tuple[float, ...]
    omitted: dict[str, int] = Field(
        default={}, exclude_if=lambda omitted: not omitted, description="What of the data is not read, by kind."
    )

    @property
    def guessed(self) -> bool:
        """Whether the base is not shown to be better than chance, so that there was nothing to lose."""
        return self.chance is not None and (self.before.low is None or self.before.low <= self.chance)


class AnswerPair(FrozenModel):
    """A question with the first answer of each model."""

    trait: str
    question: str
    before: str
    after: str
    score_before: float | None
    score_after: float | None


class ContextShift(FrozenModel):
    """What changed when every trait's own questions were asked under one context."""

    context: str = Field(description="The context's name in ``ShiftReport.contexts``.")
    cells: tuple[ShiftCell, ...] = Field(description="Each trait's questions along its own direction.")
    judged: tuple[JudgedChange, ...]
    why_missing: str = Field("", description="Why nothing was measured; empty where it was.")

    def cell(self, trait: str) -> ShiftCell | None:
        """The shift of a trait's questions under this context."""
        return next((c for c in self.cells if c.direction == trait), None)

    def scores(self, trait: str) -> JudgedChange | None:
        """The judged change of a trait under this context."""
        return next((j for j in self.judged if j.trait == trait), None)


class ContextExtreme(FrozenModel):
    """The context with the highest or the lowest change, and its interval among all contexts at once."""

    context: str
    change: Estimate = Field(description="Simultaneous interval (Bonferroni): all contexts' hold at once with 95 %.")
    beyond_plain: Estimate = Field(
        description="The change less that of the same questions without a context, paired; simultaneous too."
    )


class ContextSummary(FrozenModel):
    """One measure of one trait over all contexts; the questions without a context are not one of them."""

    trait: str
    measure: ContextMeasure
    contexts: int = Field(description="Contexts that were measured.")
    mean: Estimate = Field(description="Mean of all contexts, its interval over questions.")
    worst: ContextExtreme = Field(description="The context with the highest change: farthest towards the trait.")
    lowest: ContextExtreme = Field(description="The context with the lowest change.")


class DirectionCosine(FrozenModel):
    """A trait's direction extracted again on the tuned model, beside the base's (arXiv:2607.00006)."""

    trait: str
    layer: int = Field(description="Layer whose output is read, counted from 0.")
    pairs: int = Field(description="Exemplar pairs that both models were read on.")
    cosine: Estimate = Field(
        description="Cosine of the base's and the tuned model's direction, of the same pairs; bootstrapped by pair."
    )
    vector_cosine: float | None = Field(description="Cosine of the vector and the tuned model's direction.")
    vector_cosine_before: float | None = Field(
        description="Cosine of the vector and the base's direction; 1 where it was extracted from the same pairs."
    )
    norm_ratio: float | None = Field(description="Length of the tuned model's mean difference over the base's.")


class ModelShift(FrozenModel):
    """One tuned model against its base."""

    name: str
    digest: str = Field(description="Hash of all its weights and its chat template.")
    relation: str = Field(
        description="What it is to the base, by its weights: same, adapter, merged, fine-tune, quantised, resized, "
        "template or other (a stranger)."
    )
    matrix: tuple[ShiftCell, ...]
    judged: tuple[JudgedChange, ...]
    capability: tuple[CapabilityChange, ...]
    predicted: dict[str, Estimate] = Field(
        description="Mean projection difference of the training data by trait, where they were screened."
    )
    samples: tuple[AnswerPair, ...]
    notes: tuple[str, ...] = ()
    contexts: tuple[ContextShift, ...] = Field((), exclude_if=lambda contexts: not contexts)
    under_contexts: tuple[ContextSummary, ...] = Field(
        (), exclude_if=lambda summaries: not summaries, description="Mean, highest and lowest context by trait."
    )
    extracted_again: tuple[DirectionCosine, ...] = Field((), exclude_if=lambda cosines: not cosines)

    def cell(self, trait: str) -> ShiftCell | None:
        """The shift of a trait's own questions along its own direction."""
        return next((c for c in self.matrix if c.asked == c.direction == trait), None)


class ShiftReport(FrozenModel):
    """Everything that ``poise shift`` measured."""

    format: Literal[1] = 1
    base: str
    base_digest: str
    directions: tuple[TraitDirection, ...]
    asked: tuple[TraitQuestions, ...]
    rollouts: int
    max_new_tokens: int
    temperature: float
    seed: int
    tuned: tuple[ModelShift, ...]
    contexts: tuple[PromptContext, ...] = Field(
        (), exclude_if=lambda contexts: not contexts, description="Contexts under which all questions were asked too."
    )
    context_notes: tuple[str, ...] = Field(
        (), exclude_if=lambda notes: not notes, description="What was looked for in the training data, and found."
    )


def estimate_mean(values: Sequence[float | None] | FloatArray, *, level: float = 0.95) -> Estimate:
    """Mean of the readings that are there."""
    return mean_estimate(_finite_values(values), level=level)


def estimate_scores(values: Sequence[float | None] | FloatArray) -> Estimate:
    """Mean of the judge's scores that are there, 0–100."""
    return bounded_estimate(_finite_values(values))


def estimate_score_change(
    changes: Sequence[float | None] | FloatArray, before: Estimate, *, level: float = 0.95
) -> Estimate:
    """Mean of the changes of a judge's scores that are there; ``before`` are the scores that they start from."""
    return score_change_estimate(_finite_values(changes), before, level=level)


def _finite_values(values: Sequence[float | None] | FloatArray) -> list[float]:
    return [v for v in values if v is not None and math.isfinite(v)]


def estimate_change(
    kind: CapabilityKind,
    before: Sequence[float],
    after: Sequence[float],
    weights: Sequence[float],
    *,
    level: float = 0.95,
) -> Estimate:
    """Perplexity after / before, by conversation; or the accuracy lost, before − after, by question.

    Where answers are right or wrong, the loss has the interval of Agresti and Min 2005 for paired proportions, which
    holds where few or none change.
    """
    x, y, w = (np.asarray(values, dtype=float) for values in (before, after, weights))
    if kind == "perplexity":
        return perplexity_estimate(y - x, w, level=level)
    if set(np.unique(np.concatenate([x, y]))) <= {0.0, 1.0}:
        return _paired_loss(int(((x == 1) & (y == 0)).sum()), int(((x == 0) & (y == 1)).sum()), len(x), level)
    gained = score_change_estimate(y - x, bounded_estimate(x, highest=1.0), highest=1.0, level=level)
    ends = (None if end is None else -end for end in (gained.value, gained.high, gained.low))
    return Estimate(**dict(zip(("value", "low", "high"), ends, strict=True)), n=gained.n)


def perplexity_estimate(
    losses: Sequence[float] | FloatArray, weights: Sequence[float] | FloatArray, *, level: float = 0.95
) -> Estimate:
    """exp of the mean loss a token, or of its change, over conversations that weigh by their tokens."""
    loss, w = np.asarray(losses, dtype=float), np.asarray(weights, dtype=float)
    if not w.sum() > 0:
        return mean_estimate([])
    low, high = np.exp(ratio_interval(loss * w, w, level=level))
    return Estimate.of(float(np.exp((loss * w).sum() / w.sum())), float(low), float(high), len(loss))


def _paired_loss(lost: int, gained: int, n: int, level: float) -> Estimate:
    b, c, total = lost + 0.5, gained + 0.5, n + 2
    z = NormalDist().inv_cdf(0.5 + level / 2)
    middle, half = (b - c) / total, z * math.sqrt(b + c - (b - c) ** 2 / total) / total
    return Estimate.of((lost - gained) / n, max(middle - half, -1.0), min(middle + half, 1.0), n)


def save_report(report: ShiftReport, path: str | Path, *, force: bool = False) -> None:
    """Write ``shift.json``, whole or not at all.

    Args:
        report: What was measured.
        path: The file; an earlier ``shift.json`` is replaced.
        force: Write over an existing file whatever it holds.

    Raises:
        OutputExists: the file is no ``shift.json``.
        SaveFailed: the disk refused; an earlier file is untouched.
    """
    check_type("report", report, ShiftReport, "a ShiftReport, as measure_shift gives")
    path = Path(path)
    check_output(path, loss=_report_loss, force=force)
    with saving(path) as temporary:
        temporary.write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")


def _report_loss(path: Path) -> str:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return "" if isinstance(facts, dict) and "base_digest" in facts else "something else than a shift.json"
    except (OSError, ValueError):
        return "something else than a shift.json"


def load_report(path: str | Path) -> ShiftReport:
    """Read a ``shift.json``.

    Args:
        path: The file.

    Raises:
        InvalidData: not there, or not of this schema; names the field.
    """
    check_type("path", path, (str, Path), "the path of a shift.json")
    path = Path(path)
    try:
        return ShiftReport.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise InvalidData(f"Cannot read {path}: {error.strerror or error}; write one with `poise shift`.") from error
    except ValidationError as error:
        raise InvalidData(
            f"{path} is not a shift.json of this version: {first_fault(error, ShiftReport)}; write it again with "
            "`poise shift`."
        ) from error
    except ValueError as error:
        raise InvalidData(f"{path} is not JSON ({error}); name the shift.json that `poise shift` wrote.") from error
