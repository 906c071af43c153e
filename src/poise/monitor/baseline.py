"""What a token reads in answers without the trait: the middle and the step of a scale to show readings on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from poise import contrast
from poise.activations import Probe, project
from poise.errors import InvalidVector
from poise.model import Encoded, Model
from poise.progress import quiet, track
from poise.vector import PersonaVector

__all__ = ["ReadingBaseline", "ReadsText", "baseline_texts", "measure_baseline", "read_baseline"]

RunsWork = Callable[[Callable[[], torch.Tensor]], torch.Tensor]
ReadsText = Callable[[Encoded, Probe], torch.Tensor]
"""What a probe reads at each token of a text: float32 [T]."""
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
    return read_baseline(baseline_texts(vector, model), probe, model)


def baseline_texts(vector: PersonaVector, model: Model) -> list[Encoded]:
    """The answers without the trait that the vector's trait carries.

    Raises:
        InvalidVector: none of them fits the model's window.
    """
    texts = [answer.encoded for answer in contrast.exemplars(vector.header.trait, model, most=BASELINE_PAIRS).negative]
    if not texts:
        raise InvalidVector(
            f"None of the answers that {vector.name} carries fits the window of {model.name} ({model.window} tokens), "
            "so nothing says what is normal; watch it on a model with a longer window."
        )
    return texts


def read_baseline(
    texts: Sequence[Encoded],
    probe: Probe,
    model: Model,
    between: RunsWork = lambda work: work(),
    read_text: ReadsText | None = None,
) -> ReadingBaseline:
    """What a probe reads in answers.

    Args:
        texts: At least one.
        probe: What reads.
        model: What is read.
        between: Runs each text's forward pass, where the model is shared with others.
        read_text: Reads a text, where another engine than transformers runs the model.
    """

    def project_text(text: Encoded, probe: Probe) -> torch.Tensor:
        return project(model, [text], [probe])[0][:, 0]

    def read(text: Encoded) -> torch.Tensor:
        with quiet():
            values = between(lambda: (read_text or project_text)(text, probe))
        advance(1)
        return values[text.start : text.end]

    with track("Reading answers without the trait", total=len(texts)) as advance:
        tokens = torch.cat([read(text) for text in texts])
    return ReadingBaseline(float(tokens.mean()), max(float(tokens.std(correction=0)), 1e-6), len(tokens))
