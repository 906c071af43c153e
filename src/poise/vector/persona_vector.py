"""``PersonaVector``, the value: a direction a layer, with everything needed to use it rightly.

Layer i is the output of decoder block i, counted from 0. Directions are un-normalised differences of
means in residual-stream units: ``α = 1`` adds one mean difference. Projections use unit directions.
Files of other tools are written in ``export`` and read in ``importing``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise

from poise.errors import InvalidArgument, InvalidSteering, InvalidVector, OtherModel
from poise.model import Fingerprint, Model
from poise.model.architecture import text_config
from poise.settings import FrozenModel
from poise.storage.atomic_write import saving
from poise.trait import OwnTrait, Trait
from poise.vector.calibration import Alarm, Drift
from poise.vector.placement import LayerDirection, Purpose, preferred_layer

__all__ = ["Alarm", "Drift", "Header", "ModelId", "PersonaVector", "load", "save"]

LAYERS_ARE = "layer i is the output of decoder block i, counted from 0, before the final norm"


class ModelId(FrozenModel):
    """The model that a vector belongs to."""

    name: str
    revision: str = ""
    architecture: str
    weights: str
    adapter: str
    template: str
    model_type: str = Field(default="", description="As transformers calls the architecture, e.g. llama.")

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
        )

    @property
    def fingerprint(self) -> Fingerprint:
        """The hashes alone."""
        return Fingerprint(self.architecture, self.weights, self.adapter, self.template)


class Header(FrozenModel):
    """What a vector file says about itself. No clock in it: equal inputs give equal bytes."""

    format: Literal[1] = 1
    trait: Trait | OwnTrait
    trait_hash: str
    model: ModelId
    layers_are: str = LAYERS_ARE
    pooling: str = "response_mean"
    contrast: Literal["prompted", "exemplars", "imported"]
    provenance: str = Field(default="", description="Of an imported vector: what the file was, and what became of it.")
    kept: dict[str, int] = Field(description="Responses used a side; empty where the vector was imported.")
    dropped: dict[str, int] = Field(description="Responses left out, by reason.")
    agreement: tuple[float, ...] = Field(
        description="Mean cosine of the single differences, a layer (arXiv:2505.22637); empty where nobody knows."
    )
    judge: str = Field(description="Who filtered the responses; empty where nobody did.")
    thresholds: dict[str, float] = Field(default_factory=dict)
    seed: int
    software: dict[str, str]
    certificate: dict[str, Any] | None = None
    alarms: tuple[Alarm, ...] = Field(default=(), description="Thresholds set on normal talk.")
    drift: Drift | None = Field(default=None, description="A CUSUM set on the same.")


class PersonaVector:
    """A trait's direction at every layer of one model. L: decoder blocks, d: model width.

    Attributes:
        directions: float32 [L, d], on the CPU, un-normalised.
        reference_norm: float32 [L], mean ‖h‖ over response tokens of ordinary answers: the unit of a dose.
        header: Trait, model, counts, judge, seed, versions and, once validated, the certificate.
    """

    __slots__ = ("directions", "header", "reference_norm")

    def __init__(self, directions: torch.Tensor, reference_norm: torch.Tensor, header: Header) -> None:
        if directions.ndim != 2 or directions.shape[:1] != reference_norm.shape:
            raise InvalidVector(
                f"Directions {tuple(directions.shape)} and reference norms {tuple(reference_norm.shape)} do not fit; "
                "expected [L, d] and [L]."
            )
        if not (torch.isfinite(directions).all() and torch.isfinite(reference_norm).all()):
            raise InvalidVector("The vector holds NaN or infinity; extract it again.")
        self.directions = directions.detach().to("cpu", torch.float32, copy=True).contiguous()
        self.reference_norm = reference_norm.detach().to("cpu", torch.float32, copy=True).contiguous()
        self.header = header

    def __repr__(self) -> str:
        return f"PersonaVector({self.name!r}, {self.header.model.name!r}, L={self.layers}, d={self.width})"

    @property
    def name(self) -> str:
        """The trait's name."""
        return self.header.trait.name

    @property
    def layers(self) -> int:
        """L."""
        return self.directions.shape[0]

    @property
    def width(self) -> int:
        """d."""
        return self.directions.shape[1]

    @property
    def norms(self) -> torch.Tensor:
        """‖v‖ at each layer, float32 [L]."""
        norms: torch.Tensor = torch.linalg.vector_norm(self.directions, dim=-1)
        return norms

    def at(self, purpose: Purpose, layer: int | None = None) -> LayerDirection:
        """Where the vector works for a purpose: the layer, the direction and the alarms there.

        The one answer to where a vector is steered or read; see ``poise.vector.placement.preferred_layer``.

        Args:
            purpose: ``steer`` or ``read``.
            layer: Counted from 0; default, the layer that certificate and calibration found for this purpose.

        Raises:
            InvalidArgument: another purpose.
            InvalidSteering: no such layer, or one to be read at which the vector is zero.
        """
        if purpose not in get_args(Purpose):
            raise InvalidArgument(f"The purpose is {purpose!r}; it must be steer or read.")
        if layer is None:
            header = self.header
            layer = preferred_layer(purpose, certificate=header.certificate, alarms=header.alarms, norms=self.norms)
        self.check_layer(layer)
        if purpose == "read" and not self.norms[layer]:
            raise InvalidSteering(f"{self.name} is zero at layer {layer} of {self.layers}: it reads nothing there.")
        return LayerDirection(
            trait=self.name,
            layer=layer,
            layers=self.layers,
            direction=self.directions[layer],
            unit=self.unit(layer),
            alarms=tuple(alarm for alarm in self.header.alarms if alarm.layer == layer),
            alarm_layers=tuple(sorted({alarm.layer for alarm in self.header.alarms})),
        )

    def unit(self, layer: int) -> torch.Tensor:
        """v̂ at a layer, float32 [d]."""
        return self.directions[self.check_layer(layer)] / self.norms[layer].clamp(min=1e-12)

    def project(self, activations: torch.Tensor, layer: int) -> torch.Tensor:
        """Activations [..., d] of that layer on the unit direction: float32 [...]."""
        return torch.matmul(activations.float(), self.unit(layer).to(activations.device))

    def cosine(self, other: PersonaVector) -> torch.Tensor:
        """Cosine with another vector at each layer, float32 [L]."""
        return torch.cosine_similarity(self.directions, other.directions, dim=-1)

    def dose(self, coef: float, layer: int) -> float:
        """``α‖v‖ / mean‖h‖`` at a layer."""
        return float(coef * self.norms[self.check_layer(layer)] / self.reference_norm[layer])

    def coef(self, dose: float, layer: int) -> float:
        """The α that has a given dose at a layer."""
        norm = float(self.norms[self.check_layer(layer)])
        if norm == 0:
            raise InvalidSteering(
                f"{self.name} is zero at layer {layer} of {self.layers}: no strength has a dose there."
            )
        return dose * float(self.reference_norm[layer]) / norm

    def check_layer(self, layer: int) -> int:
        """The layer itself, or an error that names the range."""
        if not 0 <= layer < self.layers:
            raise InvalidSteering(f"Layer {layer} is out of range: {self.name} has layers 0 to {self.layers - 1}.")
        return layer

    def check_model(self, model: Model, *, allow_other_model: bool = False) -> None:
        """Refuse a model that the vector was not computed on.

        Raises:
            OtherModel: shapes differ, or fingerprints do and ``allow_other_model`` is false; says how they are related.
        """
        if (self.layers, self.width) != (model.layers, model.width):
            raise OtherModel(
                f"{self.name} was computed on {self.header.model.name} (L={self.layers}, d={self.width}) and "
                "cannot be used on "
                f"{model.name} (L={model.layers}, d={model.width}); extract it on that model."
            )
        relation = self.header.model.fingerprint.relation(model.fingerprint)
        if relation == "same" or allow_other_model:
            return
        how = {
            "adapter": "has the same base weights under another adapter",
            "template": "has the same weights with another chat template",
            "fine-tune": "has the same architecture with other weights, as a fine-tune has",
            "other": "is another model",
        }[relation]
        raise OtherModel(
            f"{self.name} was computed on {self.header.model.name}, and {model.name} {how}; extract it on that "
            "model, or pass "
            "allow_other_model=True (--allow-other-model) if you know that the direction carries over."
        )

    def with_certificate(self, certificate: Mapping[str, Any]) -> PersonaVector:
        """The same vector with a certificate (JSON-able) in its header."""
        header = self.header.model_copy(update={"certificate": dict(certificate)})
        return PersonaVector(self.directions, self.reference_norm, header)

    def with_alarms(self, alarms: Sequence[Alarm], drift: Drift | None = None) -> PersonaVector:
        """The same vector with these alarms and this drift chart in its header, in the place of all earlier ones."""
        header = self.header.model_copy(update={"alarms": tuple(alarms), "drift": drift})
        return PersonaVector(self.directions, self.reference_norm, header)


def save(vector: PersonaVector, path: str | Path) -> None:
    """Write the vector as one ``.safetensors`` file, whole or not at all.

    Raises:
        SaveFailed: the disk refused; an earlier file is untouched.
    """
    document = json.dumps(vector.header.model_dump(mode="json", by_alias=True), ensure_ascii=False, sort_keys=True)
    tensors = {"directions": vector.directions, "reference_norm": vector.reference_norm}
    with saving(Path(path)) as temporary:
        temporary.write_bytes(serialise(tensors, metadata={"poise": document}))


def load(path: str | Path) -> PersonaVector:
    """Read a vector file and validate all of it.

    Raises:
        InvalidVector: not there, cut short, not finite, or not of this schema; names the file and the fault.
    """
    if not Path(path).is_file():
        raise InvalidVector(
            f"There is no vector file at {path}; make one with `poise extract TRAIT --model M --out {path}`."
        )
    try:
        with safe_open(path, framework="pt") as file:
            document = (file.metadata() or {}).get("poise")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise InvalidVector(
            f"{path} is cut short or is no safetensors file ({error}); copy or extract it again."
        ) from error
    if document is None or set(tensors) != {"directions", "reference_norm"}:
        raise InvalidVector(
            f"{path} is a safetensors file, but not a Poise vector (it holds "
            f"{', '.join(sorted(tensors)) or 'nothing'})."
        )
    try:
        header = Header.model_validate(json.loads(document))
    except (ValidationError, ValueError) as error:
        raise InvalidVector(f"{path} has a header that this version cannot read: {_first(error)}.") from error
    try:
        return PersonaVector(tensors["directions"], tensors["reference_norm"], header)
    except InvalidVector as error:
        raise InvalidVector(f"{path}: {error}") from error


def _first(error: Exception) -> str:
    if isinstance(error, ValidationError):
        fault = error.errors()[0]
        return f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"
    return str(error)
