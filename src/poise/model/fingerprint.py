"""Which model is this? A fast hash that survives dtype and wrapper, and tells an adapter from its base."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import nn

from poise.model.adapter_structure import adapters_in_force, base_name
from poise.model.architecture import config_value, text_config

__all__ = ["Fingerprint", "Resizing", "fingerprint", "half_weights", "sample_values", "vocabulary_resizing"]

SAMPLED_VALUES = 64  # values read from each tensor
LARGEST_RESIZING = 8192  # token embeddings that are added or taken away, at most
SIZE_MARK = "\0"
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Resizing:
    """How a model's vocabulary differs from that of a model of which only the hashes are known.

    ``same_weights``: whether what both have is equal; ``None`` where this model has less, so that nobody can tell.
    """

    before: int
    after: int
    same_weights: bool | None


def vocabulary_resizing(lm: nn.Module, earlier: Fingerprint) -> Resizing | None:
    """Whether hashes are those of this model with another number of token embeddings; ``None`` if of none near it.

    Hashes cannot be taken apart, so sizes are tried in turn: the architecture's hash tells which one it was, and where
    embeddings were added since, those before them have the earlier hash of the weights.
    """
    config = text_config(getattr(lm, "config", None))
    after = config_value(config, "vocab_size")
    named = sorted((n for n in _named_tensors(lm) if n[1] is not None), key=lambda entry: entry[0])
    if not isinstance(after, int):
        return None
    text = repr([(key, SIZE_MARK if key == "vocab_size" else config_value(config, key)) for key in SHAPE_KEYS])
    text = text.replace(repr(SIZE_MARK), SIZE_MARK)
    text += "".join(f"{name}{_shape_text(name, tensor, after, SIZE_MARK)}" for name, _, tensor in named)
    for before in sorted(
        range(max(1, after - LARGEST_RESIZING), after + LARGEST_RESIZING), key=lambda n: abs(n - after)
    ):
        digest = hashlib.sha256(text.replace(SIZE_MARK, str(before)).encode()).hexdigest()
        if digest[:16] == earlier.architecture:
            break
    else:
        return None
    if before > after:
        return Resizing(before=before, after=after, same_weights=None)
    weights = hashlib.sha256()
    for name, _, tensor in named:
        resized = _has_vocabulary(name, tensor, after)
        weights.update(f"{name}{_shape_text(name, tensor, after, str(before))}".encode())
        weights.update(sample_values(tensor[:before] if resized else tensor))
    return Resizing(before=before, after=after, same_weights=weights.hexdigest()[:16] == earlier.weights)


def _has_vocabulary(name: str, tensor: torch.Tensor, size: int) -> bool:
    """Whether a tensor has one row a token: token embeddings and the head, which lie in no block."""
    return tensor.dim() > 0 and tensor.shape[0] == size and not any(part.isdigit() for part in name.split("."))


def _shape_text(name: str, tensor: torch.Tensor, size: int, mark: str) -> str:
    """A tensor's shape as it is hashed, with ``mark`` for the number of tokens."""
    shape = str(tuple(tensor.shape))
    return shape.replace(f"({size}", f"({mark}", 1) if _has_vocabulary(name, tensor, size) else shape


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
