"""What a comparison came to, as values that are written to ``result.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from poise.comparison.arms import ArmName
from poise.errors import InvalidData
from poise.settings import FrozenModel
from poise.statistics.estimates import Estimate
from poise.storage.atomic_write import saving

__all__ = [
    "AnswerSample",
    "ArmAnswers",
    "ArmCapability",
    "ArmResult",
    "Comparison",
    "Recommendation",
    "TrainingCost",
    "TraitMovement",
    "VerdictName",
    "load_comparison",
    "save_comparison",
]

VerdictName = Literal["base", "retrieval", "fine-tuning", "both", "unsure"]


class TraitMovement(FrozenModel):
    """One trait in one arm, beside the base asked the same questions without documents."""

    trait: str
    layer: int = Field(description="Layer that is read, counted from 0.")
    norm: float = Field(description="Length of the vector there: one mean difference.")
    shift: Estimate = Field(description="Projection minus the base's, in residual-stream units.")
    judged: Estimate | None = Field(default=None, description="Judged score minus the base's, from 0 to 100.")


class ArmCapability(FrozenModel):
    """One capability of an arm's model, beside the base's."""

    name: str
    kind: Literal["perplexity", "accuracy"]
    before: Estimate
    after: tuple[Estimate, ...] = Field(description="One for each training run.")
    change: tuple[Estimate, ...] = Field(description="After/before of perplexity, accuracy lost; for each run.")


class TrainingCost(FrozenModel):
    """What training one arm cost, all runs together."""

    runs: int
    steps: int
    seconds: float
    tokens: int = Field(description="Tokens of the texts that were learnt, each epoch's counted.")


class ArmAnswers(FrozenModel):
    """The answers of one arm in one training run."""

    seed: int | None = Field(description="Seed of its training; null for an arm without.")
    right: tuple[float | None, ...] = Field(description="Each question: 1, 0, or null where the judge did not say.")
    texts: tuple[str, ...]


class ArmResult(FrozenModel):
    """Everything that was measured of one arm; intervals are over questions and training runs."""

    arm: ArmName
    title: str
    runs: int = Field(description="Training runs that are pooled; 1 for an arm without training.")
    accuracy: Estimate
    gain: Estimate | None = Field(default=None, description="Accuracy minus the base's, question by question.")
    accuracy_by_run: tuple[float, ...] = ()
    refusals: Estimate
    citation_precision: Estimate | None = Field(
        default=None, description="Share of the cited sentences that their passages carry."
    )
    citation_recall: Estimate | None = Field(
        default=None, description="Share of all sentences with a citation that carries them."
    )
    unsupported: Estimate | None = Field(default=None, description="Share of all sentences that no passage carries.")
    retrieved: Estimate | None = Field(
        default=None, description="Share of the questions that name their document for which it was found."
    )
    tokens: Estimate
    prompt_tokens: Estimate
    seconds: Estimate
    training: TrainingCost | None = None
    traits: tuple[TraitMovement, ...] = ()
    capability: tuple[ArmCapability, ...] = ()
    answers: tuple[ArmAnswers, ...] = ()


class Recommendation(FrozenModel):
    """What the figures say to do, and which of them."""

    verdict: VerdictName
    sentence: str
    reasons: tuple[str, ...] = Field(description="Figures that it rests on, in sentences.")
    cautions: tuple[str, ...] = Field(default=(), description="What it costs in character and capability.")


class AnswerSample(FrozenModel):
    """One question with every arm's answer."""

    question: str
    right: tuple[str, ...]
    answers: dict[str, str]
    scores: dict[str, float | None]


class Comparison(FrozenModel):
    """Arms beside one another on one task."""

    schema_version: Literal[1] = 1
    model: str
    weights: str = Field(description="Fingerprint of the base.")
    counts: str
    questions: int
    seeds: tuple[int, ...]
    worth: float
    arms: tuple[ArmResult, ...]
    differences: dict[str, Estimate] = Field(description="Accuracy of one arm minus another's, by `first - second`.")
    trait_differences: dict[str, dict[str, Estimate]] = Field(
        default_factory=dict, description="Shifts of traits between two arms whose prompts are alike."
    )
    recommendation: Recommendation
    notes: tuple[str, ...] = ()
    samples: tuple[AnswerSample, ...] = ()
    settings: dict[str, object] = Field(default_factory=dict)

    def arm(self, name: str) -> ArmResult | None:
        """An arm by its name; ``None`` where it was not measured."""
        return next((arm for arm in self.arms if arm.arm == name), None)


def save_comparison(comparison: Comparison, path: Path) -> None:
    """Write a comparison to a JSON file, whole or not at all.

    Raises:
        SaveFailed: the disk refused.
    """
    with saving(path) as temporary:
        temporary.write_text(comparison.model_dump_json(indent=1) + "\n", encoding="utf-8")


def load_comparison(path: Path) -> Comparison:
    """Read a comparison from its JSON file.

    Raises:
        InvalidData: it cannot be read, or is none.
    """
    try:
        return Comparison.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise InvalidData(f"{path} is not the result of `poise compare` ({type(error).__name__}).") from error
