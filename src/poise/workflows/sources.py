"""What whole jobs start from: a model that is loaded last, and vectors as their files have them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from poise import vector as vectors
from poise.errors import InvalidVector
from poise.model import Model
from poise.vector import PersonaVector

__all__ = ["ModelSource", "current_vector", "load_checked", "load_now", "open_vectors"]


ModelSource = Model | Callable[[], Model]
"""A loaded model, or what loads it: called only once everything else has been checked."""


def load_now(model: ModelSource) -> Model:
    """The model, loaded if it is not yet."""
    return model() if callable(model) else model


def open_vectors(paths: Sequence[Path], *, projection: bool = False) -> list[PersonaVector]:
    """Vectors from their files; with ``projection`` they are read by their own direction, whatever detectors they have.

    Raises:
        InvalidVector: a file that is not there or not a vector.
    """
    opened = [vectors.load_vector(path) for path in paths]
    return [vector.without_detector() for vector in opened] if projection else opened


def load_checked(
    opened: Sequence[PersonaVector], model: ModelSource, *, allow_other_model: bool, record: str = ""
) -> Model:
    """The model, loaded now, on which the vectors may be used; ``record`` as in ``PersonaVector.check_model``."""
    loaded = load_now(model)
    for vector in opened:
        vector.check_model(loaded, allow_other_model=allow_other_model, record=record)
    return loaded


def current_vector(path: Path, vector: PersonaVector) -> PersonaVector:
    """The vector as its file has it now: while this job ran, another may have added a certificate or alarms."""
    try:
        current = vectors.load_vector(path)
    except InvalidVector:
        return vector
    return current if torch.equal(current.directions, vector.directions) else vector
