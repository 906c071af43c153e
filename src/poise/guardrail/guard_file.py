"""The file of a fitted guardrail: what its YAML said, its detectors and their figures, and the model they belong to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, ValidationError, field_serializer, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise

from poise.errors import InvalidSettings, OtherModel
from poise.guardrail.findings import GuardFinding
from poise.guardrail.readings import ReadPlace
from poise.guardrail.schema import Guardrail, ReadBy, RuleAction, Source, Strength
from poise.model import Model
from poise.model.probe import Probe
from poise.settings import FrozenModel, first_fault
from poise.storage.atomic_write import saving
from poise.storage.output import check_output
from poise.vector.header import ModelId

__all__ = [
    "ENCODER",
    "ENCODER_WIDTH",
    "DetectorFigures",
    "FittedGuard",
    "GuardDetector",
    "OperatingPoint",
    "UncertainBand",
    "is_guard_file",
    "load_guard",
]

KEY = "poise_guard"
ENCODER, ENCODER_WIDTH = "all-MiniLM-L6-v2", 384
Decision = Literal["pass", "ask", "act"]


class OperatingPoint(FrozenModel):
    """A threshold, and the rate of false alarms that it promises."""

    value: float = Field(description="Reading above which the rule applies, in standard deviations of ordinary talk.")
    rate: float = Field(description="Share of ordinary texts above it that is promised.")
    low: float = Field(description="Lower end of the 95 % interval of the rate that it has.")
    high: float = Field(description="Upper end of that interval.")
    n: int = Field(description="Ordinary texts that it was set on, none of which the fit has seen.")


class UncertainBand(FrozenModel):
    """Where a judge is asked: above the lower of two thresholds, and not above the higher."""

    asks: OperatingPoint = Field(description="Lower threshold: nothing is found up to it.")
    acts: OperatingPoint = Field(description="Higher threshold: above it the rule applies unasked.")
    judged: float = Field(description="Share of held-out ordinary texts in the band, about which a judge is asked.")
    judged_low: float = Field(description="Lower end of its exact 95 % interval.")
    judged_high: float = Field(description="Upper end of it.")
    judged_examples: int = Field(description="Examples in the band, by fits that did not see them.")
    judged_near_misses: int = Field(description="Texts beside the subject in the band.")


class DetectorFigures(FrozenModel):
    """How well a detector tells its examples, on examples that its fit did not see."""

    examples: int = Field(description="Number of examples.")
    near_misses: int = Field(description="Number of texts beside the subject.")
    talk_fitted: int = Field(description="Ordinary texts that it was fitted on.")
    auc: float = Field(description="Area under the curve, examples against ordinary talk.")
    auc_low: float = Field(description="Lower end of its 95 % interval.")
    auc_high: float = Field(description="Upper end of it.")
    recall: float = Field(description="Share of the examples above the threshold of the rate that was asked for.")
    recall_low: float = Field(description="Lower end of its exact 95 % interval.")
    recall_high: float = Field(description="Upper end of it.")
    near_alarms: int = Field(description="Texts beside the subject that are above that threshold.")


class GuardDetector(FrozenModel):
    """A direction that a rule is read with, on one way."""

    kind: Literal["TOPIC", "CONTENT"]
    rule: str
    source: Source
    place: ReadPlace | None = Field(None, description="What is read; of older files, by the way.")
    read_by: ReadBy = Field("activations", exclude_if=lambda by: by == "activations", description="What reads it.")
    action: RuleAction
    layer: int | None = Field(None, description="Layer of the model that is read; of the encoder, none.")
    centre: float = Field(description="Mean projection of ordinary talk.")
    strength: Strength = Field("MEDIUM", description="The rule's strength; a topic's is MEDIUM.")
    point: OperatingPoint
    change: OperatingPoint | None = Field(
        None, description="Threshold of a reading's change by a tool's result, in standard deviations of talk."
    )
    figures: DetectorFigures
    band: UncertainBand | None = None

    @model_validator(mode="after")
    def _of_one_reader(self) -> Self:
        if (self.read_by == "encoder") != (self.layer is None):
            raise ValueError(f"is read by {self.read_by} at layer {self.layer}; only activations have layers")
        if self.read_by == "both" and self.reads != "prompt":
            raise ValueError(f"is read by both, and reads {self.reads}; both read prompts alone")
        return self

    @property
    def reads(self) -> ReadPlace:
        """What is read: prompts, tools' results or answers."""
        return self.place or ("prompt" if self.source == "INPUT" else "answer")

    def finding(self, projection: float, length: int) -> GuardFinding | None:
        """What a projection of a text of this many characters comes to; ``None`` up to the threshold."""
        return self.certain(projection, length) if projection - self.centre > self.point.value else None

    def decision(self, projection: float) -> Decision:
        """What a projection comes to where a judge may be asked; without a band, the threshold alone decides."""
        score = projection - self.centre
        asks, acts = (self.band.asks, self.band.acts) if self.band else (self.point, self.point)
        return "act" if score > acts.value else "ask" if score > asks.value else "pass"

    def certain(self, projection: float, length: int) -> GuardFinding:
        """The finding of a text that the rule applies to."""
        return GuardFinding(
            policy="topics" if self.kind == "TOPIC" else "content",
            kind=self.kind,
            rule=self.rule,
            action=self.action,
            start=0,
            end=length,
            score=round(projection - self.centre, 4),
            threshold=round(self.point.value, 4),
            rate=self.point.rate,
        )


class GuardHeader(FrozenModel):
    """What a guard file says beside its directions."""

    format: Literal[1] = 1
    guardrail: Guardrail
    model: ModelId | None = Field(None, description="Model that it was fitted on; none where the encoder reads all.")
    encoder: str | None = Field(None, exclude_if=lambda name: name is None, description="Sentence encoder that reads.")
    detectors: tuple[GuardDetector, ...]
    window: int = Field(description="Tokens of an answer that are averaged.")
    rate: float
    seed: int
    normal: dict[str, int]
    normal_sha256: str
    examples_sha256: str

    @model_validator(mode="after")
    def _has_its_readers(self) -> Self:
        readers = {detector.read_by for detector in self.detectors}
        if readers - {"encoder"} and self.model is None:
            raise ValueError("names no model, and has detectors of its activations")
        if bool(readers - {"activations"}) != (self.encoder is not None) or self.encoder not in (None, ENCODER):
            raise ValueError(f"names the encoder {self.encoder}, and is read by {', '.join(sorted(readers))}")
        rules = {topic.name for topic in self.guardrail.topics} | {rule.type for rule in self.guardrail.content}
        if unknown := sorted({detector.rule for detector in self.detectors} - rules):
            raise ValueError(f"has a detector of {unknown[0]}, which its rules do not name")
        return self

    @field_serializer("guardrail")
    def _as_it_was_written(self, guardrail: Guardrail) -> dict[str, Any]:
        """What its YAML said and no more: what is left unsaid there may contradict the rest once it is said."""
        return guardrail.model_dump(mode="json", by_alias=True, exclude_unset=True)


@dataclass(frozen=True, slots=True)
class FittedGuard:
    """A guardrail with its detectors.

    Attributes:
        header: What the file says.
        directions: Direction of each detector that reads activations, float32 [k, d].
        encoder_directions: Direction of each that the encoder reads, float32 [k, 384].
    """

    header: GuardHeader
    directions: torch.Tensor
    encoder_directions: torch.Tensor = field(default_factory=lambda: torch.zeros(0, ENCODER_WIDTH))

    @property
    def guardrail(self) -> Guardrail:
        """What its YAML said."""
        return self.header.guardrail

    @property
    def activation_detectors(self) -> tuple[GuardDetector, ...]:
        """Those that read the model's activations, as ``directions`` has them."""
        return tuple(d for d in self.header.detectors if d.read_by != "encoder")

    @property
    def encoder_detectors(self) -> tuple[GuardDetector, ...]:
        """Those that the sentence encoder reads, as ``encoder_directions`` has them."""
        return tuple(d for d in self.header.detectors if d.read_by != "activations")

    @property
    def probes(self) -> tuple[Probe, ...]:
        """What reads each detector of activations."""
        layers = [detector.layer for detector in self.activation_detectors]
        pairs = zip(layers, self.directions, strict=True)
        return tuple(Probe(layer, row) for layer, row in pairs if layer is not None)

    def check_model(self, model: Model) -> None:
        """Refuse another model than its own: directions and thresholds of activations hold there alone.

        Raises:
            OtherModel: says how they are related.
        """
        if self.header.model is None:  # the encoder reads all of it, whatever the model
            return
        relation = self.header.model.relation(model)
        if relation.kind != "same":
            raise OtherModel(
                f"The guardrail {self.guardrail.name} was fitted on {self.header.model.name}, and {model.name} "
                f"{relation.sentence}; fit it on this model with `poise guardrail fit`."
            )

    def save(self, path: Path, *, force: bool = False) -> None:
        """Write it, whole or not at all.

        Raises:
            OutputExists: the file holds something else.
            SaveFailed: the disk refused.
        """
        check_output(path, loss=lambda existing: guard_loss(existing, self.guardrail.name), force=force)
        with saving(path) as temporary:
            temporary.write_bytes(self.serialised())

    def serialised(self) -> bytes:
        """What its file holds."""
        document = json.dumps(self.header.model_dump(mode="json", by_alias=True), ensure_ascii=False, sort_keys=True)
        tensors = {"directions": self.directions.contiguous()}
        if self.encoder_detectors:
            tensors["encoder_directions"] = self.encoder_directions.contiguous()
        return serialise(tensors, metadata={KEY: document})

    def same_detectors(self, other: FittedGuard) -> bool:
        """Whether both read the same directions with the same thresholds."""
        mine, theirs = (each.header.model_copy(update={"guardrail": self.guardrail}) for each in (self, other))
        return (
            mine == theirs
            and torch.equal(self.directions, other.directions)
            and torch.equal(self.encoder_directions, other.encoder_directions)
        )


def guard_loss(path: Path, name: str) -> str:
    """What a file would lose if a guard of this name were written over it."""
    try:
        there = load_guard(path).guardrail.name
    except InvalidSettings:
        return "something that is not a fitted guardrail"
    return "" if there == name else f"the fitted guardrail {there}"


def is_guard_file(path: Path) -> bool:
    """Whether a file is a fitted guardrail and no YAML: it begins with a length and a brace."""
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError:
        return False
    return head[8:] == b"{" and b"\x00" in head


def load_guard(path: Path) -> FittedGuard:
    """The fitted guardrail in a file.

    Raises:
        InvalidSettings: not there, cut short or not of this schema.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = GuardHeader.model_validate_json(metadata[KEY])
        fitted = FittedGuard(header, tensors.pop("directions"), **tensors)
    except ValidationError as error:
        fault = first_fault(error, GuardHeader)
        raise InvalidSettings(f"{path} is not a guard of this version: {fault}; fit it again.") from error
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidSettings(
            f"{path} is no fitted guardrail, or is cut short ({type(error).__name__}); make one with "
            "`poise guardrail fit`."
        ) from error
    encoded = (len(fitted.encoder_detectors), ENCODER_WIDTH)
    shapes_fit = fitted.directions.shape[:1] == (len(fitted.activation_detectors),)
    both = (fitted.directions, fitted.encoder_directions)
    if not shapes_fit or fitted.encoder_directions.shape != encoded or not all(torch.isfinite(x).all() for x in both):
        raise InvalidSettings(f"{path} is broken: its directions do not fit its detectors; fit it again.")
    return fitted
