"""``Header``: what a vector file says about itself."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from poise.model import Fingerprint, Model
from poise.model.architecture import text_config
from poise.model.fingerprint import vocabulary_resizing
from poise.model.forward_settings import ForwardSettings
from poise.model.relation import ModelRelation, relate
from poise.model.sketch import WeightSketch
from poise.settings import Frozen, FrozenModel
from poise.trait import OwnTrait, Trait
from poise.vector.calibration import Alarm, Drift
from poise.vector.detector import DetectorFacts

__all__ = ["Header", "ModelId"]

LAYERS_ARE = "layer i is the output of decoder block i, counted from 0, before the final norm"


class ModelId(FrozenModel):
    """The model that a vector belongs to."""

    name: str
    revision: str = ""
    architecture: str
    weights: str
    adapter: str
    template: str
    model_type: str = Field(default="", description="Architecture by its name in transformers, e.g. llama.")
    sketch: WeightSketch | None = Field(
        default=None,
        description="What fine-tunes and copies are known by; None in files of version 0.1.0.",
        exclude_if=lambda sketch: sketch is None,
    )
    forward_settings: ForwardSettings | None = Field(
        default=None,
        description="What the forward pass depends on besides weights; None in older files, where it is not compared.",
        exclude_if=lambda settings: settings is None,
    )

    @classmethod
    def of(cls, model: Model) -> ModelId:
        """Name, revision and fingerprint of a loaded model."""
        f = model.fingerprint
        revision = str(getattr(model.lm.config, "_commit_hash", None) or "")
        return cls(
            name=model.name,
            revision=revision,
            architecture=f.architecture,
            weights=f.weights,
            adapter=f.adapter,
            template=f.template,
            model_type=str(getattr(text_config(model.lm.config), "model_type", "")),
            sketch=model.sketch,
            forward_settings=model.forward_settings,
        )

    @property
    def fingerprint(self) -> Fingerprint:
        """The hashes alone."""
        return Fingerprint(
            architecture=self.architecture, weights=self.weights, adapter=self.adapter, template=self.template
        )

    def relation(self, model: Model | ModelId) -> ModelRelation:
        """What another model is to this one."""
        before = self.forward_settings
        after = before and model.forward_settings
        return relate(
            self.fingerprint,
            model.fingerprint,
            lambda: (self.sketch, self.sketch and model.sketch),
            (before, after) if before and after else None,
            lambda: vocabulary_resizing(model.lm, self.fingerprint) if isinstance(model, Model) else None,
        )


class Header(FrozenModel):
    """What a vector file says about itself. No clock in it: equal inputs give equal bytes."""

    format: Literal[1] = 1
    trait: Trait | OwnTrait
    trait_hash: str
    model: ModelId
    layers_are: str = LAYERS_ARE
    pooling: str = "response_mean"
    contrast: Literal["prompted", "exemplars", "imported", "combined"]
    provenance: str = Field(
        default="", description="How an imported or a combined vector came about; empty for an extracted one."
    )
    kept: Annotated[dict[str, int], Frozen] = Field(
        description="Responses used a side; empty where the vector was not extracted."
    )
    dropped: Annotated[dict[str, int], Frozen] = Field(description="Responses left out, by reason.")
    agreement: tuple[float, ...] = Field(
        description="Mean cosine of the single differences, a layer (arXiv:2505.22637); empty where nobody knows."
    )
    judge: str = Field(description="Who filtered the responses; empty where nobody did.")
    thresholds: Annotated[dict[str, float], Frozen] = Field(default_factory=dict, validate_default=True)
    seed: int
    software: Annotated[dict[str, str], Frozen]
    certificate: Annotated[dict[str, Any] | None, Frozen] = None
    alarms: tuple[Alarm, ...] = Field(default=(), description="Thresholds set on normal talk.")
    drift: Drift | None = Field(default=None, description="A CUSUM set on the same.")
    detector: DetectorFacts | None = Field(
        default=None, exclude_if=lambda facts: facts is None, description="What the trait is read with, once fitted."
    )
