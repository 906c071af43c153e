"""``PersonaVector``, the value: a direction a layer, with everything needed to use it rightly.

Layer i is the output of decoder block i, counted from 0. Directions are un-normalised differences of means in
residual-stream units: ``α = 1`` adds one mean difference. Projections use unit directions. Files of other tools are
written in ``export`` and read in ``importing``.
"""

from __future__ import annotations

import functools
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import FrozenInstanceError
from numbers import Integral, Real
from typing import Any, get_args

import torch

from poise.data import AnswerPart
from poise.errors import InvalidArgument, InvalidSteering, InvalidVector, OtherModel
from poise.model import Model
from poise.model.relation import ModelRelation
from poise.progress import remark
from poise.settings import FrozenModel, ReadOnlyDict
from poise.vector import notebook
from poise.vector.algebra import COMPUTED, check_one_model, computed_header
from poise.vector.calibration import Alarm, Drift
from poise.vector.detector import Detector
from poise.vector.header import Header
from poise.vector.lengths import row_cosines, row_lengths, unit_direction
from poise.vector.placement import LayerDirection, Purpose, alarm_places, preferred_layer

__all__ = ["PersonaVector", "as_vectors"]

LARGEST = float(torch.finfo(torch.float32).max)

REMEDIES = {
    "template": "load it with the template that the vector was computed under, extract the vector again",
    "unknown": "the vector's file is older than the figures that tell these apart, so extract it again",
}


def _remedy(relation: ModelRelation, record: str) -> str:
    """What to do about a model on which a vector is refused."""
    if relation.related:
        return f"{record}, so extract it on that model, or pass `allow_other_model` to go on all the same."
    advice = REMEDIES.get(relation.kind, "extract it on that model")
    return f"{advice}, or pass `allow_other_model` if you know that the direction carries over."


def as_vectors(vectors: PersonaVector | Sequence[PersonaVector]) -> list[PersonaVector]:
    """One vector or several, as a list.

    Raises:
        InvalidVector: something else than vectors.
    """
    listed = [vectors] if isinstance(vectors, PersonaVector) else vectors
    if not isinstance(listed, Sequence) or not all(isinstance(vector, PersonaVector) for vector in listed):
        raise InvalidVector(
            f"vectors is {type(vectors).__name__}; give a PersonaVector or a list of them, as load_vector(path) gives."
        )
    return list(listed)


class PersonaVector:
    """A trait's direction at every layer of one model. L: decoder blocks, d: model width.

    Immutable. Vectors of one model can be added, subtracted, scaled, negated and averaged; the result says in its
    provenance how it was made and has neither certificate nor alarms, which were earned by what went into it.

    Attributes:
        directions: float32 [L, d], on the CPU, un-normalised; a copy, so that writing into it changes nothing.
        reference_norm: float32 [L], mean ‖h‖ over response tokens of ordinary answers: the unit of a dose; a copy.
        header: Trait, model, counts, judge, seed, versions and, once validated, the certificate.
        detector: What the trait is read with, once fitted; ``None`` where its direction reads it.
        name: The trait's name, or the one that ``named`` gave.

    Raises:
        InvalidVector: tensors that do not fit each other, or NaN or infinity in them.
    """

    __slots__ = ("__weakref__", "_directions", "_reference_norm", "detector", "header", "name")
    _directions: torch.Tensor
    _reference_norm: torch.Tensor
    header: Header
    detector: Detector | None
    name: str

    def __init__(
        self,
        directions: torch.Tensor,
        reference_norm: torch.Tensor,
        header: Header,
        *,
        detector: Detector | None = None,
    ) -> None:
        if not isinstance(header, Header):
            raise InvalidVector(f"The header is {type(header).__name__}; a Header is expected, as vectors have it.")
        for name, tensor in (("directions", directions), ("reference norms", reference_norm)):
            if not isinstance(tensor, torch.Tensor) or tensor.is_complex():
                raise InvalidVector(f"The {name} are {type(tensor).__name__}; a tensor of real numbers is expected.")
        if directions.ndim != 2 or not directions.numel() or directions.shape[:1] != reference_norm.shape:
            raise InvalidVector(
                f"Directions {tuple(directions.shape)} and reference norms {tuple(reference_norm.shape)} do not fit; "
                "expected [L, d] and [L]."
            )
        for slot, tensor in (("_directions", directions), ("_reference_norm", reference_norm)):
            single = tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
            if not torch.isfinite(row_lengths(single)).all():  # after the cast: what float32 cannot hold is infinity
                raise InvalidVector("The vector holds NaN or infinity in float32, or is that long; extract it again.")
            if slot == "_reference_norm" and (single < 0).any():
                raise InvalidVector("The reference norms are mean lengths and cannot be negative; extract it again.")
            object.__setattr__(self, slot, single)
        if header.detector != (facts := detector.facts if detector else None):
            header = header.model_copy(update={"detector": facts})
        if detector:
            detector.check_shape(*directions.shape)
        object.__setattr__(self, "detector", detector)
        object.__setattr__(self, "header", header)
        object.__setattr__(self, "name", header.trait.name)

    def __setattr__(self, name: str, value: Any) -> None:
        raise FrozenInstanceError(f"A PersonaVector cannot be changed ({name}); make a new one.")

    def __delattr__(self, name: str) -> None:
        raise FrozenInstanceError(f"A PersonaVector cannot be changed ({name}); make a new one.")

    def __reduce__(self) -> tuple[Any, ...]:
        restore = functools.partial(PersonaVector, detector=self.detector)
        return (restore, (self._directions, self._reference_norm, self.header))

    def __repr__(self) -> str:
        provenance = self.header.provenance
        how = f", {provenance}" if provenance.startswith(COMPUTED) else ""
        return f"PersonaVector({self.name!r}, {self.header.model.name!r}, L={self.layers}, d={self.width}{how})"

    def _repr_html_(self) -> str:
        """For notebooks: trait, model, layers and, once validated, the certificate with its dose curve."""
        return notebook.vector_html(self)

    def __add__(self, other: PersonaVector) -> PersonaVector:
        """The sum of two vectors of one model, layer by layer; ``OtherModel`` for vectors of two."""
        return self._combined([(1.0, self), (1.0, other)]) if isinstance(other, PersonaVector) else NotImplemented

    def __radd__(self, other: object) -> PersonaVector:
        """``sum`` of vectors, which begins with 0."""
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def __sub__(self, other: PersonaVector) -> PersonaVector:
        """The difference of two vectors of one model, layer by layer; ``OtherModel`` for vectors of two."""
        return self._combined([(1.0, self), (-1.0, other)]) if isinstance(other, PersonaVector) else NotImplemented

    def __mul__(self, factor: float) -> PersonaVector:
        """All directions times a finite number."""
        if isinstance(factor, bool) or not isinstance(factor, Real):
            return NotImplemented
        if not abs(factor) <= LARGEST:
            raise InvalidVector(f"{self.name} cannot be multiplied by this number; give one between ±{LARGEST:.3g}.")
        return self._combined([(float(factor), self)])

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> PersonaVector:
        """All directions divided by a finite number other than 0."""
        if isinstance(divisor, bool) or not isinstance(divisor, Real):
            return NotImplemented
        if not 1 / LARGEST <= abs(divisor) <= LARGEST:
            raise InvalidVector(f"{self.name} cannot be divided by 0, nor by what float32 cannot hold.")
        return self * (1.0 / float(divisor))

    def __neg__(self) -> PersonaVector:
        """The opposite directions."""
        return self._combined([(-1.0, self)])

    def normalized(self) -> PersonaVector:
        """Directions of length 1 at every layer; a layer without a direction stays without one."""
        units = torch.stack([self.unit(layer) for layer in range(self.layers)])
        return PersonaVector(units, self._reference_norm, computed_header([(1.0, self)], "normalized {}"))

    @classmethod
    def mean(cls, vectors: Sequence[PersonaVector]) -> PersonaVector:
        """The mean of several vectors of one model, layer by layer.

        Raises:
            InvalidVector: no vectors.
            OtherModel: they belong to more than one model.
        """
        several = isinstance(vectors, Sequence) and not isinstance(vectors, PersonaVector)
        if not several or not vectors or not all(isinstance(vector, PersonaVector) for vector in vectors):
            raise InvalidVector("A mean is taken of a list of persona vectors; give at least one.")
        return cls._combined([(1.0 / len(vectors), vector) for vector in vectors])

    @classmethod
    def _combined(cls, parts: Sequence[tuple[float, PersonaVector]]) -> PersonaVector:
        check_one_model([vector for _, vector in parts])
        directions = sum(weight * vector._directions.double() for weight, vector in parts)
        norms = torch.stack([vector._reference_norm for _, vector in parts]).mean(0)
        return PersonaVector(torch.as_tensor(directions), norms, computed_header(parts))

    @property
    def directions(self) -> torch.Tensor:
        """Un-normalised directions, float32 [L, d] on the CPU; a copy."""
        return self._directions.clone()

    @property
    def reference_norm(self) -> torch.Tensor:
        """Mean ‖h‖ at each layer, float32 [L] on the CPU; a copy."""
        return self._reference_norm.clone()

    @property
    def layers(self) -> int:
        """L."""
        return self._directions.shape[0]

    @property
    def width(self) -> int:
        """d."""
        return self._directions.shape[1]

    @property
    def norms(self) -> torch.Tensor:
        """‖v‖ at each layer, float32 [L]."""
        return row_lengths(self._directions)

    def at(self, purpose: Purpose, layer: int | None = None, *, part: AnswerPart = "reply") -> LayerDirection:
        """Where the vector works for a purpose: the layer, the direction and the alarms there.

        The one answer to where a vector is steered or read; see ``poise.vector.placement.preferred_layer``. A vector
        with a detector is read with it at its layer, and by its own direction at every other;
        ``without_detector()`` is read by its own direction everywhere.

        Args:
            purpose: ``steer`` or ``read``.
            layer: Counted from 0; default, the layer that certificate and calibration found for this purpose.
            part: Which part of answers is read: only alarms that were set on it count.

        Raises:
            InvalidArgument: another purpose.
            InvalidSteering: no such layer, or one to be read at which the vector is zero.
        """
        if purpose not in get_args(Purpose):
            raise InvalidArgument(f"The purpose is {purpose!r}; it must be steer or read.")
        if layer is None:
            layer = preferred_layer(purpose, self.header, self.norms)
        self.check_layer(layer)
        detector = d if purpose == "read" and (d := self.detector) and d.layer == layer else None
        if purpose == "read" and not detector and not self.norms[layer]:
            raise InvalidSteering(f"{self.name} is zero at layer {layer} of {self.layers}: it reads nothing there.")
        return LayerDirection(
            trait=self.name,
            layer=layer,
            layers=self.layers,
            direction=self._directions[layer].clone(),
            unit=detector.weights if detector else self.unit(layer),
            detector=detector,
            part=part,
            **alarm_places(self.header.alarms, layer, part, detector, self.detector),
        )

    def unit(self, layer: int) -> torch.Tensor:
        """v̂ at a layer, float32 [d]."""
        return unit_direction(self._directions[self.check_layer(layer)])

    def project(self, activations: torch.Tensor, layer: int) -> torch.Tensor:
        """Activations [..., d] of that layer on the unit direction: float32 [...]."""
        shape = tuple(getattr(activations, "shape", ()))
        if not isinstance(activations, torch.Tensor) or shape[-1:] != (self.width,):
            raise InvalidArgument(
                f"Activations {shape or type(activations).__name__} do not fit {self.name}; their last dimension must "
                f"be {self.width}."
            )
        return torch.matmul(activations.float(), self.unit(layer).to(activations.device))

    def cosine(self, other: PersonaVector) -> torch.Tensor:
        """Cosine with another vector at each layer, float32 [L].

        Raises:
            OtherModel: the vectors have different numbers of layers or widths.
            InvalidVector: the other is no vector.
        """
        if not isinstance(other, PersonaVector):
            raise InvalidVector(f"A cosine is taken with another persona vector, not with {type(other).__name__}.")
        if self._directions.shape != other._directions.shape:
            raise OtherModel(
                f"{self.name} of {self.header.model.name} (L={self.layers}, d={self.width}) and {other.name} of "
                f"{other.header.model.name} (L={other.layers}, d={other.width}) have different shapes, so there is no "
                "cosine; compare vectors of one model."
            )
        return row_cosines(self._directions, other._directions)

    def dose(self, coef: float, layer: int) -> float:
        """``α‖v‖ / mean‖h‖`` at a layer."""
        return float(self._finite(coef, "strength") * self.norms[self.check_layer(layer)] / self._reference_norm[layer])

    def coef(self, dose: float, layer: int) -> float:
        """The α that has a given dose at a layer."""
        dose = self._finite(dose, "dose")
        norm = float(self.norms[self.check_layer(layer)])
        if norm == 0:
            raise InvalidSteering(
                f"{self.name} is zero at layer {layer} of {self.layers}: no strength has a dose there."
            )
        return dose * float(self._reference_norm[layer]) / norm

    def _finite(self, number: float, subject: str) -> float:
        real = isinstance(number, Real) and not isinstance(number, bool)
        if not real or not abs(number) <= LARGEST:
            raise InvalidSteering(f"The {subject} of {self.name} is {reprlib.repr(number)}; give a finite number.")
        return float(number)

    def check_layer(self, layer: int) -> int:
        """The layer itself, or an error that names the range."""
        if isinstance(layer, bool) or not isinstance(layer, Integral):
            raise InvalidSteering(f"The layer of {self.name} is {layer!r}; give a whole number from 0.")
        if not 0 <= layer < self.layers:
            raise InvalidSteering(f"Layer {layer} is out of range: {self.name} has layers 0 to {self.layers - 1}.")
        return int(layer)

    def check_model(self, model: Model, *, allow_other_model: bool = False, record: str = "") -> ModelRelation:
        """Refuse a model that the vector may not be used on; a relative of its own model is accepted with a remark.

        Relatives are the model under an adapter, with one merged in, fine-tuned, quantised, or with a resized
        vocabulary; see ``poise.model.relation``.

        Args:
            model: The model that the vector is to be used on.
            allow_other_model: Accept every model of the vector's shape.
            record: Why only the vector's own model will do, where what is measured is kept as that one's; relatives
                are then refused too.

        Returns:
            What the model is to the vector's own.

        Raises:
            OtherModel: shapes differ, or the model is no relative and ``allow_other_model`` is false; says how they are
                related and what to do.
        """
        own = self.header.model
        if (self.layers, self.width) != (model.layers, model.width):
            raise OtherModel(
                f"{self.name} was computed on {own.name} (L={self.layers}, d={self.width}) and cannot be used on "
                f"{model.name} (L={model.layers}, d={model.width}); extract it on that model."
            )
        relation = own.relation(model)
        if relation.kind == "same":
            return relation
        how = f"{self.name} was computed on {own.name}, and {model.name} {relation.sentence}"
        if not allow_other_model and (record or not relation.related):
            raise OtherModel(f"{how}; {_remedy(relation, record)}")
        remark(f"{how}.{self._measured_elsewhere(model)}")
        return relation

    def _measured_elsewhere(self, model: Model) -> str:
        """What of the header was measured on its own model, and not on this one."""
        alarm_models = {alarm.model or self.header.model.name for alarm in self.header.alarms} - {model.name}
        certificate = " Its certificate was measured there." if self.header.certificate is not None else ""
        return certificate + (f" Its alarms were set on {', '.join(sorted(alarm_models))}." if alarm_models else "")

    def with_certificate(self, certificate: Mapping[str, Any] | FrozenModel) -> PersonaVector:
        """The same vector with a certificate, as ``validate`` gave it or as JSON, in its header."""
        if not isinstance(certificate, FrozenModel | Mapping):
            kind = type(certificate).__name__
            raise InvalidVector(f"A certificate is what `validate` gives, or its JSON as a mapping, not {kind}.")
        facts = certificate.model_dump(mode="json") if isinstance(certificate, FrozenModel) else dict(certificate)
        header = self.header.model_copy(update={"certificate": ReadOnlyDict(facts)})
        return PersonaVector(self._directions, self._reference_norm, header, detector=self.detector)

    def named(self, name: str) -> PersonaVector:
        """The same vector under another name, by which messages call it; its trait keeps its own."""
        out = PersonaVector(self._directions, self._reference_norm, self.header, detector=self.detector)
        object.__setattr__(out, "name", name)
        return out

    def with_detector(self, detector: Detector) -> PersonaVector:
        """The same vector, read with this detector. Alarms and drift chart of another detector are dropped."""
        if not isinstance(detector, Detector):
            raise InvalidVector(f"A detector comes from `fit_detector`, not from {type(detector).__name__}.")
        return self._read_by(detector, "", detector.facts.weights_sha256)

    def without_detector(self) -> PersonaVector:
        """The same vector, read by the projection on its own direction, as Chen et al. 2025 do; itself if it is."""
        return self._read_by(None, "") if self.detector else self

    def _read_by(self, detector: Detector | None, *digests: str) -> PersonaVector:
        """With a detector or without, keeping what was calibrated for the detectors of these digests."""
        alarms = tuple(alarm for alarm in self.header.alarms if alarm.detector in digests)
        drift = chart if (chart := self.header.drift) and chart.detector in digests else None
        header = self.header.model_copy(update={"alarms": alarms, "drift": drift})
        return PersonaVector(self._directions, self._reference_norm, header, detector=detector)

    def with_alarms(self, alarms: Sequence[Alarm], drift: Drift | None = None) -> PersonaVector:
        """The same vector with these alarms and this drift chart in its header, in the place of all earlier ones."""
        alarms = tuple(alarms) if isinstance(alarms, Sequence) else (alarms,)
        if not all(isinstance(alarm, Alarm) for alarm in alarms) or not isinstance(drift, Drift | None):
            raise InvalidVector(
                "Alarms and drift charts come from `calibrate_alarms`; give a list of Alarm and a Drift."
            )
        header = self.header.model_copy(update={"alarms": alarms, "drift": drift})
        return PersonaVector(self._directions, self._reference_norm, header, detector=self.detector)
