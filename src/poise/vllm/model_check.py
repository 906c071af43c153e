"""Whether the vectors of a folder belong to the model that vLLM has loaded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch

from poise.errors import OtherModel
from poise.model.architecture import model_width
from poise.model.relation import RELATED_CORRELATION
from poise.model.sketch import embedding_correlation
from poise.vllm.vector_folder import VectorFolder

__all__ = ["ALLOW_OTHER_MODEL", "check_served_model"]

ALLOW_OTHER_MODEL = "POISE_ALLOW_OTHER_MODEL"
"""The environment variable that, set to 1, lets vectors of another model of the same shape be used."""


def check_served_model(folder: VectorFolder, model: Any, blocks: Sequence[torch.nn.Module]) -> None:
    """Refuse a model that the folder's vectors do not belong to.

    vLLM joins and reorders weights, so that fingerprints cannot be compared; shapes and token embeddings can.

    Raises:
        OtherModel: another shape, or token embeddings that do not descend from those of the vectors' model.
    """
    shape = (len(blocks), model_width(model, type(model).__name__))
    if shape != (folder.layers, folder.width):
        raise OtherModel(
            f"The vectors of POISE_VECTORS have {folder.layers} layers of width {folder.width}, and this model has "
            f"{shape[0]} of {shape[1]}; extract them on the model that is served."
        )
    if os.environ.get(ALLOW_OTHER_MODEL) == "1":
        return
    remedy = f"extract it on this model, or set {ALLOW_OTHER_MODEL}=1 if you know that the direction carries over"
    weight = _embeddings(model)
    for name, vector in folder.vectors.items():
        sketch = vector.header.model.sketch
        if sketch is None or weight is None:
            raise OtherModel(f"Nobody can tell whether {name} belongs to this model; {remedy}.")
        if (r := embedding_correlation(sketch, weight)) < RELATED_CORRELATION:
            raise OtherModel(
                f"{name} was computed on {vector.header.model.name}, whose token embeddings are others than this "
                f"model's (correlation {r:.2f}); {remedy}."
            )


def _embeddings(model: Any) -> torch.Tensor | None:
    """The token embeddings [vocabulary, d], as far as they are there as they are."""
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if type(module).__name__ == "VocabParallelEmbedding" and name.rsplit(".", 1)[-1] != "lm_head":
            return weight if isinstance(weight, torch.Tensor) and weight.is_floating_point() else None
    return None
