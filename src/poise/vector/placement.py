"""Where a vector works: the layer for a purpose, the direction there, and what was calibrated there.

Steering and reading are two things. A direction steers best at the layer that its certificate chose; it is read where
its alarms were set, or where the certificate's monitoring test found that it reads best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from poise.data import AnswerPart
from poise.model.probe import Probe
from poise.vector.calibration import Alarm
from poise.vector.detector import Detector
from poise.vector.lengths import row_lengths

if TYPE_CHECKING:
    from poise.vector.header import Header

__all__ = ["LayerDirection", "Purpose", "alarm_places", "preferred_layer"]

Purpose = Literal["steer", "read"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class LayerDirection:
    """A vector at one layer. d: model width.

    Attributes:
        trait: Name of the vector's trait.
        layer: Layer that was asked for or chosen for the purpose, counted from 0.
        layers: Number of layers of the model.
        direction: The vector's un-normalised direction at the layer, float32 [d].
        unit: What is read or steered along: the unit direction at the layer, or the detector's; float32 [d].
        detector: What the trait is read with at this layer; ``None`` where the direction itself reads it.
        part: Which part of answers is read.
        alarms: All alarms that calibration set at this layer on that part.
        alarm_layers: Layers at which calibration set any alarm on that part, ascending.
        alarm_parts: Parts on which calibration set any alarm.
        other_alarm_layers: Layers at which it set alarms on another way of reading: the vector's own direction where a
            detector reads, or the detector where the direction is read.
    """

    trait: str
    layer: int
    layers: int
    direction: torch.Tensor
    unit: torch.Tensor
    alarms: tuple[Alarm, ...]
    alarm_layers: tuple[int, ...]
    part: AnswerPart = "reply"
    alarm_parts: tuple[AnswerPart, ...] = ()
    detector: Detector | None = None
    other_alarm_layers: tuple[int, ...] = ()

    def __repr__(self) -> str:
        size = f"layer={self.layer}, L={self.layers}, d={len(self.unit)}"
        return f"LayerDirection({self.trait!r}, {size}, {self.part}, alarms={len(self.alarms)})"

    @property
    def probe(self) -> Probe:
        """What reads the projection on the unit direction, the detector's where there is one."""
        return Probe(self.layer, self.unit)

    @property
    def read_with(self) -> str:
        """SHA-256 of the detector's weights; empty where the direction itself is read."""
        return self.detector.facts.weights_sha256 if self.detector else ""

    @property
    def difference(self) -> float:
        """What the trait adds to a reading, on average over its pairs: ‖v‖, or the detector's own mean difference."""
        return self.detector.facts.difference if self.detector else float(row_lengths(self.direction))

    @property
    def lacks_alarms(self) -> bool:
        """Whether the vector has alarms, and none of them holds for what is read here."""
        return not self.alarms and bool(self.alarm_parts or self.other_alarm_layers)

    def alarm(self, reading: str) -> Alarm | None:
        """The alarm of the lowest rate for a reading of any topic; ``None`` where calibration set none here."""
        alarms = [a for a in self.alarms if a.reading == reading and a.topic is None]
        return min(alarms, key=lambda alarm: alarm.rate, default=None)

    def missing_alarm(self, reading: str) -> str:
        """Why ``alarm`` is ``None``, and what to do about it."""
        if self.alarm_layers and self.layer not in self.alarm_layers:
            at = " and ".join(map(str, self.alarm_layers))
            remedy = f"its alarms are for layer {at}: leave the layer out, or run `poise calibrate` for this one"
        elif self.alarm_parts and self.part not in self.alarm_parts:
            names = {"reply": "replies", "thought": "thoughts", "both": "thoughts and replies together"}
            was, now = (names[part] for part in (self.alarm_parts[0], self.part))
            remedy = f"its alarms were set on {was}, and {now} are read: run `poise calibrate` on these"
        elif self.other_alarm_layers:
            at = " and ".join(map(str, self.other_alarm_layers))
            if self.detector:
                remedy = (
                    f"that is its detector's, and its alarms are for its own direction at layer {at}: read it there "
                    "with `layer`, or run `poise calibrate` without a layer"
                )
            else:
                remedy = f"its alarms are for its detector at layer {at}: leave the layer out, or run `poise calibrate`"
        else:
            remedy = "run `poise calibrate` on it"
        return f"{self.trait} has no calibrated alarm for the {reading} reading at layer {self.layer}; {remedy}"


def alarm_places(
    alarms: Sequence[Alarm], layer: int, part: AnswerPart, detector: Detector | None, vectors_own: Detector | None
) -> dict[str, Any]:
    """Which of a vector's alarms hold at a layer for what reads it there, and where there are others."""
    digest, other = ("" if one is None else one.facts.weights_sha256 for one in (detector, vectors_own))
    holding = [alarm for alarm in alarms if alarm.detector == digest]
    others = [alarm for alarm in alarms if alarm.detector in ({"", other} - {digest})]
    return {
        "alarms": tuple(alarm for alarm in holding if alarm.layer == layer and alarm.part == part),
        "alarm_layers": tuple(sorted({alarm.layer for alarm in holding if alarm.part == part})),
        "alarm_parts": tuple(dict.fromkeys(alarm.part for alarm in holding)),
        "other_alarm_layers": tuple(sorted({alarm.layer for alarm in others if alarm.part == part})),
    }


def preferred_layer(purpose: Purpose, header: Header, norms: torch.Tensor) -> int:
    """The layer for a purpose where none is asked for.

    To read: the detector's; without one, that of the alarms; without any, that of the certificate's monitoring test
    (its answers', else its prompts'); without that, the layer to steer at. To steer: the certificate's layer; without
    one, the layer with a direction that is nearest to a third of the depth.

    Args:
        purpose: What the vector is to be used for.
        header: The vector's header, with its certificate, alarms and detector.
        norms: ‖v‖ at each layer, float32 [L].
    """
    facts = header.certificate or {}
    monitoring = facts.get("monitoring") or {}
    detected = header.detector.layer if header.detector else None
    calibrated = next((alarm.layer for alarm in header.alarms if not alarm.detector), None)
    places = (detected, calibrated, monitoring.get("answer_layer"), monitoring.get("layer"))
    for layer in (*(places if purpose == "read" else ()), facts.get("layer")):
        if layer is not None:
            return int(layer)
    third = round(len(norms) / 3)
    return min((int(i) for i in norms.nonzero()), key=lambda i: abs(i - third), default=third)
