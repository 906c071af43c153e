"""``Certificate``, the value: what was measured about a vector, and the verdict that follows from it."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from poise.settings import FrozenModel
from poise.statistics.estimates import Estimate

__all__ = [
    "Certificate",
    "CombinedSteering",
    "CombinedTrait",
    "JudgeFacts",
    "LayerReading",
    "Monitoring",
    "Point",
    "Prompting",
    "RandomControl",
    "RandomSearch",
    "Rung",
    "Sample",
    "Spread",
]


class Point(FrozenModel):
    """All answers at one layer and strength. Trait and coherence are means over questions, 0–100."""

    layer: int
    coefficient: float = Field(description="α, in mean differences.")
    dose: float = Field(description="α‖v‖ / mean‖h‖ at the layer.")
    trait: Estimate
    coherence: Estimate
    missing: int = Field(description="Answers without a trait score; they enter no mean.")


class RandomSearch(FrozenModel):
    """Random directions of the vector's norm that chose layer and dose as the vector did, on the selection half."""

    rises: tuple[float | None, ...] = Field(description="Rise of each on the reporting half; None without scores.")
    layers: tuple[int, ...]
    doses: tuple[float, ...]
    highest: float | None = Field(description="The highest rise of those whose text was coherent; None if of none.")
    as_high: int = Field(description="How many rose as far as the vector, with coherent text.")
    p: float = Field(description="Share of such directions, the vector counted among them, that rise as far as it.")


class RandomControl(FrozenModel):
    """Random directions of the vector's norm, at the chosen layer and dose."""

    draws: int
    dose: float
    trait: Estimate
    coherence: Estimate
    rise: Estimate = Field(description="Rise of the trait score over the unsteered answers.")
    margin: Estimate = Field(description="The vector's rise minus the random directions', paired by question.")
    search: RandomSearch | None = Field(
        None,
        exclude_if=lambda search: search is None,
        description="Directions that chose for themselves; None unless everything else spoke for the vector.",
    )


class Prompting(FrozenModel):
    """System prompts instead of steering: the baseline that is often hard to beat (arXiv:2501.17148)."""

    positive: Estimate
    negative: Estimate
    coherence: Estimate = Field(description="Under the prompts that ask for the trait.")
    negative_coherence: Estimate = Field(description="Under the prompts that ask for its opposite.")


class Spread(FrozenModel):
    """Change of the trait score at the chosen dose, question by question (arXiv:2407.12404)."""

    changes: tuple[float | None, ...] = Field(description="In the order of ``Certificate.questions``.")
    wrong_way: float = Field(description="Share of questions whose score fell.")


class JudgeFacts(FrozenModel):
    """Who scored, and how far that can be trusted."""

    name: str
    auc: Estimate | None = Field(
        description="Cross-validated on the judge's exemplars; None for judges that have none."
    )
    held_out_auc: Estimate | None = Field(description="On exemplars that neither vector nor judge saw.")
    usable: bool
    why_unusable: str = Field("", description="The reason; empty for a usable judge.")
    coherence: str = Field(description="How coherence was scored.")


class Sample(FrozenModel):
    """One question answered at −, 0 and + of the chosen strength."""

    question: str
    negative: str
    plain: str
    positive: str


class Rung(FrozenModel):
    """One step of the ladder, on the reporting half. Readings are of the last prompt token at the chosen layer."""

    name: str
    prompt: str = Field(description="The system prompt; empty where earlier turns do the asking.")
    trait: Estimate
    coherence: Estimate
    reading: Estimate
    readings: tuple[float, ...] = Field(description="One a question, in the order of ``Certificate.questions``.")
    scores: tuple[float | None, ...] = Field(description="Mean trait score of the answers to each question.")
    missing: int = Field(description="Answers without a trait score; they enter no mean.")


class LayerReading(FrozenModel):
    """What one layer's readings are worth, on what they were not chosen on."""

    layer: int
    overall: Estimate = Field(description="r of prompt reading and trait score over rungs and questions.")
    within: Estimate = Field(description="The same within one rung: every rung's readings and scores less their means.")
    auc_mean: Estimate | None = Field(
        description="Mean of the answer, held-out exemplars with the trait v. without it."
    )
    auc_peak: Estimate | None = Field(description="The answer's highest token instead of its mean.")


class Monitoring(FrozenModel):
    """Do readings say what the answer will be like? Chen et al. 2025, section 3.3."""

    ladder: Literal["system-prompts", "many-shot"]
    obeys: Estimate | None = Field(
        description="Spearman of rung and trait score under system prompts, on the selection half; None where the "
        "trait has no instructions. The ladder is many-shot where its interval is not above 0."
    )
    rungs: tuple[Rung, ...]
    layer: int = Field(description="Layer of the prompt readings, with the highest r around it on the selection half.")
    random_overall: Estimate = Field(description="Mean |r| of random directions at that layer.")
    random_within: Estimate
    random_draws: int
    answer_layer: int | None = Field(
        description="Layer of the answer readings, with the highest AUC on judge exemplars."
    )
    auc_length: Estimate | None = Field(description="AUC of the held-out answers' lengths alone: what form gives away.")
    by_layer: tuple[LayerReading, ...] = Field(description="Every layer, in order.")
    notes: tuple[str, ...] = ()

    @property
    def of_prompts(self) -> LayerReading:
        """The layer at which prompts are read."""
        return self.by_layer[self.layer]

    @property
    def of_answers(self) -> LayerReading | None:
        """The layer at which answers are read."""
        return None if self.answer_layer is None else self.by_layer[self.answer_layer]


class CombinedTrait(FrozenModel):
    """One way of steering by two vectors. Rises are over the unsteered answers, losses against steering alone."""

    name: Literal["first alone", "second alone", "plain sum", "orthogonal"]
    first: Estimate = Field(description="Rise of the first trait's score.")
    second: Estimate = Field(description="Rise of the second trait's score.")
    coherence: Estimate
    first_lost: Estimate | None = Field(description="Rise of the first alone minus its rise here, paired by question.")
    second_lost: Estimate | None


class CombinedSteering(FrozenModel):
    """What is lost when a second vector steers as well."""

    model_config = ConfigDict(serialize_by_alias=True)  # files keep the names that version 0.1.0 gave them

    other: str
    other_hash: str
    other_certified: bool
    layer: int
    dose: float
    other_layer: int
    other_dose: float
    cosine: float = Field(description="Cosine of the two directions, at the second's layer.")
    conditions: tuple[CombinedTrait, ...]
    questions: tuple[str, ...] = Field(alias="asked", description="Questions that were answered.")
    notes: tuple[str, ...] = ()


class Certificate(FrozenModel):
    """What was measured on questions that the extraction never saw."""

    model_config = ConfigDict(serialize_by_alias=True)  # files keep the names that version 0.1.0 gave them

    format: Literal[1] = 1
    verdict: Literal["induced", "indicative", "not-induced"] = Field(
        description="indicative: nothing speaks against the vector, and the evidence is too thin for a verdict."
    )
    reasons: tuple[str, ...] = Field(description="Why not; or, when induced, the figures that carried it.")
    layer: int
    layers: int
    coefficient: float
    dose: float
    usable_doses: tuple[float, float] = Field(description="Doses around 0 at which coherence stayed above the floor.")
    coherence_floor: float
    rise: Estimate = Field(description="Rise of the trait score at the chosen dose over the unsteered answers.")
    monotone: Estimate = Field(description="Spearman of dose and trait score, from −chosen to +chosen dose.")
    sweep: tuple[Point, ...] = Field(description="Layers tried, on the selection half of the questions.")
    curve: tuple[Point, ...] = Field(description="Dose curve at the chosen layer, on the reporting half.")
    random: RandomControl
    prompting: Prompting | None
    spread: Spread
    agreement: float | None = Field(
        description="Mean cosine of the single differences at the layer (arXiv:2505.22637); None for imported vectors."
    )
    judge: JudgeFacts
    samples: tuple[Sample, ...]
    selected_on: tuple[str, ...] = Field(description="Questions that layer and dose were chosen on.")
    questions: tuple[str, ...] = Field(alias="asked", description="Questions that everything else was measured on.")
    rollouts: int
    max_new_tokens: int
    temperature: float
    seed: int
    notes: tuple[str, ...] = ()
    monitoring: Monitoring | None = Field(None, description="None unless it was asked for.")
    together: CombinedSteering | None = Field(None, description="None unless a second vector was named.")
