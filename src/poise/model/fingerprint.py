"""Which model is this? A fast hash that survives dtype and wrapper, and tells an adapter from its base."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import nn

from poise.model.adapter_structure import adapters_in_force, base_name
from poise.model.architecture import config_value, text_config

__all__ = ["Fingerprint", "fingerprint", "half_weights", "sample_values"]

SAMPLED_VALUES = 64  # values read from each tensor
SHAPE_KEYS = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """Hashes (16 hex digits) of a model's parts.

    ``architecture`` is shared by all fine-tunes of a base, ``weights`` by all loads of one checkpoint whatever the
    dtype, ``adapter`` is empty without one, ``template`` covers the chat template.
    """

    architecture: str
    weights: str
    adapter: str
    template: str


def fingerprint(lm: nn.Module, template: str) -> Fingerprint:
    """Hash configuration, tensor names and shapes, and sampled values of every tensor.

    Values are compared as bfloat16, so that a checkpoint has one fingerprint whether loaded in float32 or bfloat16.
    """
    config = text_config(getattr(lm, "config", None))
    architecture = hashlib.sha256(repr([(k, config_value(config, k)) for k in SHAPE_KEYS]).encode())
    weights, adapter = hashlib.sha256(), hashlib.sha256()
    adapted = False
    for name, plain, tensor in sorted(_named_tensors(lm), key=lambda named: named[0]):
        line = f"{name}{tuple(tensor.shape)}".encode()
        if plain is None:
            adapted = True
            adapter.update(line + sample_values(tensor))
            continue
        architecture.update(line)
        weights.update(line + sample_values(tensor))
    adapter.update(adapters_in_force(lm).encode())
    return Fingerprint(
        architecture=architecture.hexdigest()[:16],
        weights=weights.hexdigest()[:16],
        adapter=adapter.hexdigest()[:16] if adapted else "",
        template=hashlib.sha256(template.encode()).hexdigest()[:16],
    )


def half_weights(lm: nn.Module) -> str:
    """The hash of the base's weights as a copy in float16 would have it."""
    weights = hashlib.sha256()
    for name, plain, tensor in sorted(_named_tensors(lm), key=lambda named: named[0]):
        if plain is not None:
            weights.update(f"{name}{tuple(tensor.shape)}".encode() + sample_values(tensor, half=True))
    return weights.hexdigest()[:16]


def _named_tensors(lm: nn.Module) -> list[tuple[str, str | None, torch.Tensor]]:
    """Name without wrappers, the base's name or ``None`` for an adapter's, and tensor."""
    return [
        (_plain_name(name) if plain is None else plain, plain, tensor)
        for name, tensor in lm.state_dict().items()
        for plain in [base_name(lm, name)]
    ]


def _plain_name(name: str) -> str:
    """An adapter tensor's name without the prefixes and infixes that a PEFT wrapper adds."""
    parts = name.removeprefix("base_model.model.").split(".")
    return ".".join(part for part in parts if part not in ("base_layer", "original_module"))


def sample_values(tensor: torch.Tensor, *, half: bool = False) -> bytes:
    """64 values spread over a tensor, floats as bfloat16; ``half``: as they are once rounded to float16."""
    flat = tensor.detach().reshape(-1)
    if flat.numel() == 0:
        return b""
    at = torch.linspace(0, flat.numel() - 1, min(SAMPLED_VALUES, flat.numel()), dtype=torch.float64).long()
    values = flat[at.to(flat.device)].cpu()
    if values.is_floating_point():
        values = (values.to(torch.float16) if half else values).to(torch.bfloat16).view(torch.int16)
    return values.contiguous().view(torch.uint8).numpy().tobytes()
