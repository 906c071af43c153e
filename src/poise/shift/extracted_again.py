"""A trait's direction extracted again after tuning: does the vector still point where the trait lies?

The cosine of the base's direction with the tuned model's, from the same exemplar pairs (arXiv:2607.00006).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from poise import contrast
from poise.activations import read_layers
from poise.model import Model
from poise.progress import track
from poise.shift.report import DirectionCosine, FloatArray
from poise.statistics.estimates import Indices, bootstrap
from poise.vector import PersonaVector

__all__ = ["PairDifferences", "compare_directions", "pair_differences"]


@dataclass(frozen=True, slots=True)
class PairDifferences:
    """Response means with the trait less those without it, of one model at one layer.

    Attributes:
        questions: Question of each pair.
        differences: One row a pair, [n, d]; NaN where the model breaks on a side.
    """

    questions: tuple[str, ...]
    differences: FloatArray


def pair_differences(
    model: Model, vectors: Sequence[PersonaVector], layers: Sequence[int]
) -> dict[str, PairDifferences]:
    """Each trait's extraction pairs, read on a model at the vector's layer."""
    out: dict[str, PairDifferences] = {}
    with track(f"Extracting again: {model.name}", total=len(vectors)) as advance:
        for vector, layer in zip(vectors, layers, strict=True):
            pairs = contrast.exemplars(vector.header.trait, model)
            n = len(pairs.positive)
            texts = [response.encoded for response in (*pairs.positive, *pairs.negative)]
            means = read_layers(model, texts, [layer])[:, 0].double().numpy() if n else np.empty((0, model.width))
            questions = tuple(response.question for response in pairs.positive)
            out[vector.name] = PairDifferences(questions, means[:n] - means[n:])
            advance(1)
    return out


def compare_directions(
    before: Mapping[str, PairDifferences],
    after: Mapping[str, PairDifferences],
    vectors: Sequence[PersonaVector],
    layers: Sequence[int],
) -> tuple[DirectionCosine, ...]:
    """Cosines of both models' directions; nothing where they were not extracted."""
    return tuple(
        _compare_direction(vector, layer, before[vector.name], after[vector.name])
        for vector, layer in zip(vectors, layers, strict=True)
        if vector.name in before and vector.name in after
    )


def _compare_direction(
    vector: PersonaVector, layer: int, before: PairDifferences, after: PairDifferences
) -> DirectionCosine:
    places = {question: i for i, question in enumerate(after.questions)}
    shared = [(i, places[question]) for i, question in enumerate(before.questions) if question in places]
    x = before.differences[[i for i, _ in shared]]
    y = after.differences[[j for _, j in shared]]
    readable = np.isfinite(x).all(-1) & np.isfinite(y).all(-1)
    x, y = x[readable], y[readable]

    def cosines(draws: Indices) -> FloatArray:
        return np.array([_cosine_between(x[draw].mean(0), y[draw].mean(0)) for draw in draws])

    direction = vector.directions[layer].double().numpy()
    ends = (x.mean(0), y.mean(0)) if len(x) else (np.zeros_like(direction),) * 2
    lengths = [float(np.linalg.norm(end)) for end in ends]
    return DirectionCosine(
        trait=vector.name,
        layer=layer,
        pairs=len(x),
        cosine=bootstrap(cosines, len(x), width=2 * len(direction)),
        vector_cosine=_finite(_cosine_between(direction, ends[1])),
        vector_cosine_before=_finite(_cosine_between(direction, ends[0])),
        norm_ratio=_finite(lengths[1] / lengths[0] if lengths[0] else float("nan")),
    )


def _cosine_between(a: FloatArray, b: FloatArray) -> float:
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / size if size else float("nan")


def _finite(number: float) -> float | None:
    return round(number, 6) if np.isfinite(number) else None
