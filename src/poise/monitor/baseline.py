"""What a token reads in answers without the trait: the middle and the step of a scale to show readings on."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from poise import contrast
from poise.activations import Probe, project
from poise.errors import InvalidVector
from poise.model import Model
from poise.vector import PersonaVector

__all__ = ["ReadingBaseline", "measure_baseline"]

BASELINE_PAIRS = 12  # about 800 tokens, a second on a small model


@dataclass(frozen=True, slots=True)
class ReadingBaseline:
    """Readings of n tokens in answers without the trait: their mean and standard deviation (residual-stream units)."""

    mean: float
    spread: float
    n: int


def measure_baseline(vector: PersonaVector, probe: Probe, model: Model) -> ReadingBaseline:
    """Read the answers without the trait that the vector's trait carries.

    Raises:
        InvalidVector: none of them fits the model's window.
    """
    texts = [answer.encoded for answer in contrast.exemplars(vector.header.trait, model, most=BASELINE_PAIRS).negative]
    if not texts:
        raise InvalidVector(
            f"None of the answers that {vector.name} carries fits the window of {model.name} ({model.window} tokens), "
            "so nothing says what is normal; watch it on a model with a longer window."
        )
    read = project(model, texts, [probe])
    tokens = torch.cat([values[t.start : t.end, 0] for values, t in zip(read, texts, strict=True)])
    return ReadingBaseline(float(tokens.mean()), max(float(tokens.std(correction=0)), 1e-6), len(tokens))
