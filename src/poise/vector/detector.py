"""``Detector``: what a trait is read with, beside the direction that it is steered with.

A mean difference steers well and reads poorly: it holds whatever its pairs differ in, the tone above all. A detector is
one direction at one layer, fitted to tell the trait from its absence *and* from ordinary talk. Its reading is a
projection like any other, so that it costs what a projection costs, and a logistic curve turns an answer's mean
reading into a probability. It is fitted in ``poise.detector``.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field

from poise.errors import InvalidVector
from poise.settings import Frozen, FrozenModel
from poise.vector.seen_answers import SeenAnswers, SeenFacts

__all__ = ["Detector", "DetectorFacts", "DetectorKind"]

DetectorKind = Literal["mean-difference", "lda", "logistic", "ranking"]


class DetectorFacts(FrozenModel):
    """What a detector says about itself, in the header of its vector's file."""

    kind: DetectorKind = Field(description="How its direction was fitted.")
    layer: int = Field(description="Layer that it is read at, counted from 0.")
    weights_sha256: str = Field(description="SHA-256 of its direction; alarms name it.")
    slope: float = Field(allow_inf_nan=False, description="Log-odds a unit of an answer's mean reading.")
    intercept: float = Field(
        allow_inf_nan=False, description="Log-odds at a mean reading of 0, where trait and ordinary talk are as likely."
    )
    difference: float = Field(
        allow_inf_nan=False, description="Mean reading of its pairs with the trait less that of the other sides."
    )
    pairs: int = Field(description="Different exemplar pairs that it was fitted on.")
    pairs_left_out: int = Field(
        description="Pairs that the model's window has no room for, without a token, or on which it gave NaN."
    )
    pairs_sha256: str = Field(description="SHA-256 of these pairs.")
    normal: Annotated[dict[str, int], Frozen] = Field(
        description="Different answers of ordinary talk used, by name of the data."
    )
    normal_sha256: str = Field(description="SHA-256 of these answers; empty where there were none.")
    normal_keys: tuple[str, ...] = Field(
        default=(),
        exclude_if=lambda keys: not keys,
        description="Keys of the conversations of this talk, so that none of them sets a threshold; empty for "
        "detectors that did not keep them.",
    )
    normal_left_out: int = Field(description="Rows and answers of the talk that could not be read.")
    repeated: int = Field(
        default=0,
        exclude_if=lambda count: not count,
        description="Pairs and answers of the talk whose texts had been there before; they count once.",
    )
    auc: float = Field(ge=0, le=1, description="Cross-validated AUC: answers with the trait against all others.")
    low: float = Field(description="Lower end of its 95 % interval.")
    high: float = Field(description="Upper end.")
    n_with: int = Field(description="Different answers with the trait that the AUC counts.")
    n_without: int = Field(description="Different answers without it, ordinary talk included.")
    recall: float | None = Field(
        description="Cross-validated share of answers with the trait above a level that at most 1 % of others pass; "
        "None below 100 others."
    )
    candidates: Annotated[dict[str, float], Frozen] = Field(
        description="Cross-validated log-loss of every kind and layer that was tried, as ``kind@layer``."
    )
    seed: int
    seen: SeenFacts | None = Field(
        default=None,
        exclude_if=lambda seen: seen is None,
        description="What the answers were like that it was fitted on; None for detectors that did not keep it.",
    )


@dataclass(frozen=True, eq=False)  # with slots, Python 3.11 has no words for a property that is set
class Detector:
    """A fitted direction and what is known of it. d: model width.

    Attributes:
        weights: float32 [d] of length 1, on the CPU; a copy, so that writing into it changes nothing.
        facts: Kind, layer, curve, counts and figures.
        seen: Answers that it was fitted on; ``None`` for detectors that did not keep them.

    Raises:
        InvalidVector: weights that are no row of finite numbers, or not those that the facts were written for.
    """

    _weights: torch.Tensor
    facts: DetectorFacts
    seen: SeenAnswers | None = None

    def __post_init__(self) -> None:
        weights = self._weights.detach().to("cpu", torch.float32, copy=True).contiguous()
        if weights.ndim != 1 or not torch.isfinite(weights).all() or not weights.any():
            raise InvalidVector("The detector holds no direction, NaN or infinity; fit it again.")
        if abs(float(weights.norm()) - 1) > 1e-4:
            raise InvalidVector("The detector's direction is not of length 1; fit it again.")
        if weights_digest(weights) != self.facts.weights_sha256:
            raise InvalidVector("The detector's direction is not the one that its figures are about; fit it again.")
        object.__setattr__(self, "_weights", weights)

    def __reduce__(self) -> tuple[type[Detector], tuple[torch.Tensor, DetectorFacts, SeenAnswers | None]]:
        return (Detector, (self._weights, self.facts, self.seen))

    @property
    def weights(self) -> torch.Tensor:
        """float32 [d] of length 1, on the CPU; a copy."""
        return self._weights.clone()

    @property
    def layer(self) -> int:
        """Layer that it is read at, counted from 0."""
        return self.facts.layer

    def check_shape(self, layers: int, width: int) -> None:
        """Refuse directions [layers, width] that it does not belong to.

        Raises:
            InvalidVector: its layer is none of theirs, or its width another.
        """
        if len(self._weights) != width or not 0 <= self.layer < layers:
            raise InvalidVector(
                f"The detector reads a width of {len(self._weights)} at layer {self.layer} and does not fit directions "
                f"({layers}, {width}); fit it again."
            )

    def probability(self, reading: float) -> float:
        """How likely an answer with this mean reading shows the trait, where half of all answers do; in [0, 1]."""
        log_odds = self.facts.slope * reading + self.facts.intercept
        return 1 / (1 + math.exp(-min(max(log_odds, -500.0), 500.0)))


def weights_digest(weights: torch.Tensor) -> str:
    """SHA-256 of float32 weights."""
    return hashlib.sha256(weights.detach().cpu().float().contiguous().numpy().tobytes()).hexdigest()
