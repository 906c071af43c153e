"""Likelihood and facts of a sentence as one score from 0 to 1."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "GROUNDING_FEATURES",
    "GROUNDING_WEIGHTS",
    "RELEVANCE_WEIGHTS",
    "grounding_score",
    "mean_of",
    "relevance_score",
]

GROUNDING_FEATURES = ("lift", "logprob", "weakest", "missing", "overlap")
"""What is told of each sentence: mean gain by the source in nats a token; mean log-probability with it; that of the
least likely token; 1 where a number, name or quotation is missing; share of content words that source or query have."""

GROUNDING_WEIGHTS: Mapping[str, float] = MappingProxyType({"lift": 0.222, "missing": -1.735, "constant": 0.124})
"""Chosen in ``benchmarks/grounding.py``: of all sets of features, the one that told a kind of answers best that its
weights had not seen. The others tell more on the answers that they were fitted to, and near nothing on others."""

RELEVANCE_WEIGHTS: Mapping[str, float] = MappingProxyType({"lift": 1.0, "constant": 0.0})
CLIP = 12.0  # nats


def grounding_score(features: Mapping[str, float], weights: Mapping[str, float] = GROUNDING_WEIGHTS) -> float:
    """The weighted sum of those features that have a weight, as a number from 0 to 1."""
    total = weights["constant"]
    for name in weights.keys() - {"constant"}:
        total += weights[name] * min(max(features[name], -CLIP), CLIP)
    return _squashed(total)


def relevance_score(gain: float) -> float:
    """How much likelier the query makes an answer, as a number from 0 to 1.

    Args:
        gain: Mean gain by the query in nats a token.
    """
    return _squashed(RELEVANCE_WEIGHTS["constant"] + RELEVANCE_WEIGHTS["lift"] * min(max(gain, -CLIP), CLIP))


def mean_of(values: NDArray[np.float64]) -> float:
    """The mean of what is known; 0 where nothing is."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else 0.0


def _squashed(total: float) -> float:
    return float(1 / (1 + np.exp(-total)))
