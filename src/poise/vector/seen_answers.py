"""``SeenAnswers``: where the answers lie that a detector was fitted on, so that others can be told from them.

Their response means at the detector's layer as a normal distribution in a few directions and the same spread in all
others (probabilistic principal components, Tipping and Bishop 1999), which a few hundred answers can bear.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from poise.errors import InvalidVector
from poise.settings import FrozenModel

__all__ = ["SEEN_TENSORS", "AnswerSpread", "SeenAnswers", "SeenFacts"]

Means = NDArray[np.float64]

MOST_DIRECTIONS = 24
ANSWERS_PER_DIRECTION = 4


class SeenFacts(FrozenModel):
    """What a detector says of the answers that it was fitted on, in the header of its vector's file."""

    answers: int = Field(description="Answers that it was fitted on, with the trait and without, and ordinary talk.")
    held_out: int = Field(description="Held-out answers that the limit was set on: the talk, or without any all.")
    limit: float = Field(
        ge=0, allow_inf_nan=False, description="Distance beyond which one in a hundred of the held-out answers lies."
    )
    beyond: float = Field(ge=0, le=1, description="Share of answers like the held-out ones that is expected beyond it.")
    cosine: float = Field(
        allow_inf_nan=False,
        description="Mahalanobis cosine of the detector among the talk, or without any among all answers.",
    )


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class AnswerSpread:
    """The distribution of response means. r: directions, d: model width.

    Attributes:
        mean: Mean of the response means, float64 [d].
        components: Orthonormal directions in which they vary most, float64 [r, d].
        variances: Their variance along each, and last the mean variance along any other direction, float64 [r + 1].
    """

    mean: Means
    components: Means
    variances: Means

    def __post_init__(self) -> None:
        for values in (self.mean, self.components, self.variances):
            values.setflags(write=False)

    @classmethod
    def of(cls, means: Means) -> AnswerSpread:
        """That of response means [n, d]; at least two."""
        centre = means.mean(0)
        centred = means - centre
        n, width = centred.shape
        _, singular, directions = np.linalg.svd(centred, full_matrices=False)
        spread = singular**2 / max(n - 1, 1)
        count = max(min(MOST_DIRECTIONS, n // ANSWERS_PER_DIRECTION, width // 2, int((spread > 0).sum())), 1)
        others = spread[count:].sum() / max(width - count, 1)
        floor = max(float(spread.sum()), 1.0) * 1e-9 / width  # equal answers have no spread
        return cls(
            mean=centre,
            components=directions[:count],
            variances=np.maximum(np.append(spread[:count], others), floor),
        )

    def distances(self, means: Means) -> Means:
        """Squared Mahalanobis distances of response means [n, d]: [n]."""
        centred = means - self.mean
        along = centred @ self.components.T
        others = (centred**2).sum(1) - (along**2).sum(1)
        return np.asarray((along**2 / self.variances[:-1]).sum(1) + others.clip(min=0) / self.variances[-1])

    def cosine(self, weights: Means, difference: Means) -> float:
        """Mahalanobis cosine of a direction with the best one for a difference of means (arXiv:2606.19603).

        With Σ the covariance, the cosine of w and w′ is wᵀΣw′ / √(wᵀΣw · w′ᵀΣw′). The reference w′ is Σ⁻¹ times the
        difference: what linear discriminant analysis would learn here if the trait made the same difference.
        """
        along, others = self._parts(weights)
        variance = (along**2 * self.variances[:-1]).sum() + others * self.variances[-1]
        along, others = self._parts(difference)
        best = (along**2 / self.variances[:-1]).sum() + others / self.variances[-1]
        return float(weights @ difference / np.sqrt(variance * best)) if variance * best > 0 else 0.0

    def _parts(self, direction: Means) -> tuple[Means, float]:
        along = self.components @ direction
        return along, max(float(direction @ direction - along @ along), 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class SeenAnswers:
    """The answers that a detector was fitted on.

    Attributes:
        spread: Distribution of their response means.
        difference: Mean with the trait less mean without it over the pairs, float64 [d].
    """

    spread: AnswerSpread
    difference: Means

    def __post_init__(self) -> None:
        self.difference.setflags(write=False)

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a file holds of them: float32."""
        spread = self.spread
        values = (spread.mean, spread.components, spread.variances, self.difference)
        return {
            name: torch.from_numpy(value.astype(np.float32)).contiguous()
            for name, value in zip(SEEN_TENSORS, values, strict=True)
        }

    @classmethod
    def of_tensors(cls, tensors: dict[str, Any], width: int) -> SeenAnswers:
        """What was written.

        Raises:
            InvalidVector: tensors that do not fit each other or the width, or NaN or infinity in them.
        """
        mean, components, variances, difference = (tensors[name].double().numpy() for name in SEEN_TENSORS)
        shapes = (mean.shape, components.shape, variances.shape, difference.shape)
        count = len(variances) - 1
        fits = shapes == ((width,), (count, width), (count + 1,), (width,))
        finite = all(np.isfinite(x).all() for x in (mean, components, variances, difference))
        if not fits or not finite or not (variances > 0).all():
            raise InvalidVector("What the detector was fitted on does not fit it, or is not finite; fit it again.")
        return cls(AnswerSpread(mean=mean, components=components, variances=variances), difference)


SEEN_TENSORS = ("detector_mean", "detector_components", "detector_variances", "detector_difference")
