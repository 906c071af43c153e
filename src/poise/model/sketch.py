"""``WeightSketch``: a few hundred bytes of a model's weights, by which its fine-tunes and copies are known.

A hash says only that weights differ. A sketch says by how much: one fixed direction of ±1 is sent through some of the
blocks' matrices, and some of the outputs are kept. Weights that descend from one another give nearly the same outputs,
and weights of another training run give others. Matrices that cannot be read, such as packed ones of 4 bits, are
applied instead, so that a quantised copy has the sketch of its original.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import nn

from poise.model.adapter_structure import base_modules, unwrapped
from poise.model.architecture import config_value, text_config
from poise.model.fingerprint import half_weights, sample_values
from poise.model.rounding import quantisation
from poise.settings import FrozenModel

__all__ = ["WeightSketch", "embedding_correlation", "sketch_weights"]

SKETCHED_MATRICES = 16  # that are sketched, spread over the blocks
SKETCHED_OUTPUTS = 16  # that are kept of each
BLOCK_OUTPUTS = 32  # that are kept of each block, shared out among its matrices
SKETCHED_TOKENS = tuple(range(3, 200, 25))  # whose embeddings are sketched
TOKEN_OUTPUTS = 8
INT8_SCALE = 32.0  # of the values' root mean square, as int8
SIZE_KEYS = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


class WeightSketch(FrozenModel):
    """What of a model's weights is compared with another's; adapters on it do not count."""

    shape: str = Field(description="Hash of the configuration's sizes but the vocabulary's.")
    vocabulary: int = Field(description="Rows of the token embeddings.")
    quantisation: str = Field(description="How weights are rounded, e.g. bitsandbytes 4-bit; empty where they are not.")
    half: str = Field(description="Hash of all weights as a copy in float16 has them.")
    vectors: str = Field(description="Hash of the norms and biases; empty where there are none.")
    matrices: str = Field(description="Hash of the blocks' matrices.")
    embeddings: str = Field(description="Hash of some tokens' embeddings.")
    outputs: str = Field(description="Base64 of int8 [matrices, 16]: outputs of the blocks' matrices.")
    token_outputs: str = Field(description="Base64 of int8 [tokens, 8]: outputs of token embeddings.")
    block_outputs: str = Field(
        default="",
        description="Base64 of int8 [blocks, 32]: outputs of all matrices of each block; empty in older files.",
        exclude_if=lambda outputs: not outputs,
    )

    def correlation(self, other: WeightSketch) -> float:
        """Correlation of the outputs of both models' blocks: 1 for a copy, around 0 for a stranger."""
        return _cosine(self.outputs, other.outputs)

    def worst_correlation(self, other: WeightSketch) -> float:
        """The same of the matrix, or of the block, that agrees least; a mean hides a stranger among relatives."""
        matrices = _row_cosines(self.outputs, other.outputs, SKETCHED_OUTPUTS)
        return min([*matrices, *_row_cosines(self.block_outputs, other.block_outputs, BLOCK_OUTPUTS)], default=1.0)

    def token_correlation(self, other: WeightSketch) -> float:
        """The same of the token embeddings that both have."""
        return _cosine(self.token_outputs, other.token_outputs)


def embedding_correlation(sketch: WeightSketch, weight: torch.Tensor) -> float:
    """Correlation of a sketched model's token embeddings with a matrix of embeddings [vocabulary, d]."""
    ids = [token for token in SKETCHED_TOKENS if token < min(weight.shape[0], sketch.vocabulary)]
    rows = weight[torch.tensor(ids, device=weight.device)].float().cpu()
    return _cosine(sketch.token_outputs, _packed([_token_outputs(row) for row in rows]))


@torch.no_grad()
def sketch_weights(lm: Any) -> WeightSketch:
    """Sketch a loaded model's base weights. An adapter that is merged into them counts, one beside them does not."""
    config = text_config(getattr(lm, "config", None))
    modules = list(base_modules(lm))
    embedding = unwrapped(lm.get_input_embeddings())
    named = _block_matrices(modules, embedding)
    layers = [module for _, module in named]
    chosen = [
        layers[i] for i in np.linspace(0, len(layers) - 1, min(SKETCHED_MATRICES, len(layers))).round().astype(int)
    ]
    tokens = _embed(embedding)
    vocabulary = getattr(embedding, "num_embeddings", None) or _own_tensors(embedding)[0].shape[0]
    return WeightSketch(
        shape=_short_hash([repr([(key, config_value(config, key)) for key in SIZE_KEYS]).encode()]),
        vocabulary=int(vocabulary),
        quantisation=quantisation(lm, [_matrix(layer) for layer in chosen]),
        half=half_weights(lm),
        vectors=_short_hash(_bytes_of(modules, dimensions=1)),
        matrices=_short_hash(_bytes_of([("", layer) for layer in layers], dimensions=2)),
        embeddings=_short_hash([sample_values(row, half=True) for row in tokens]),
        outputs=_packed([_outputs(layer) for layer in chosen]),
        block_outputs=_packed_blocks(named),
        token_outputs=_packed([_token_outputs(row) for row in tokens]),
    )


def _block_matrices(modules: Sequence[tuple[str, nn.Module]], embedding: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules inside numbered lists that hold a matrix themselves, with their names."""
    return [
        (name, module)
        for name, module in modules
        if any(part.isdigit() for part in name.split(".")) and module is not embedding and _own_tensors(module)
    ]


def _own_tensors(module: nn.Module) -> list[torch.Tensor]:
    """A module's own tensors of two dimensions or more, in the order of their names."""
    tensors = {**module._parameters, **module._buffers}
    return [tensor for _, tensor in sorted(tensors.items()) if tensor is not None and tensor.dim() > 1]


def _matrix(layer: nn.Module) -> torch.Tensor:
    """The tensor that holds a layer's matrix: a packed one where there is one, beside its scales."""
    tensors = _own_tensors(layer)
    return next((tensor for tensor in tensors if not _is_plain(tensor)), tensors[0])


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor's values are what it computes with."""
    return type(tensor) in (torch.Tensor, nn.Parameter) and tensor.dtype in (
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.float64,
    )


def _outputs(layer: nn.Module) -> torch.Tensor:
    """[16] of what a matrix makes of the fixed direction; zeros where it cannot be applied."""
    tensor = _matrix(layer)
    if _is_plain(tensor):
        matrix = tensor.t() if type(layer).__name__ == "Conv1D" else tensor.reshape(-1, tensor.shape[-1])
        return _project(matrix[_row_numbers(matrix.shape[0]).to(matrix.device)])
    try:
        width = next(int(size) for key in ("in_features", "infeatures", "nf") if (size := getattr(layer, key, None)))
        dtype = getattr(layer, "compute_dtype", None) or torch.get_default_dtype()
        inputs = torch.stack([_signs(width), torch.zeros(width)]).to(tensor.device, dtype)
        outputs: torch.Tensor = layer(inputs).float().cpu()
    except Exception:  # kernels fail each in its own way; such a layer is left out of the comparison
        return torch.zeros(SKETCHED_OUTPUTS)
    return (outputs[0] - outputs[1])[_row_numbers(outputs.shape[1])]


def _embed(embedding: nn.Module) -> torch.Tensor:
    """Embeddings of the sketched tokens, float32 [tokens, d]."""
    weight = _matrix(embedding)
    if _is_plain(weight):
        ids = torch.tensor([token for token in SKETCHED_TOKENS if token < weight.shape[0]], device=weight.device)
        return weight[ids].float().cpu()
    return embedding(torch.tensor(SKETCHED_TOKENS, device=weight.device)).float().cpu()  # type: ignore[no-any-return]


def _token_outputs(row: torch.Tensor) -> torch.Tensor:
    """[8] of a token's embedding [d]."""
    return _project(row.expand(TOKEN_OUTPUTS, -1), shifted=True)


def _project(rows: torch.Tensor, *, shifted: bool = False) -> torch.Tensor:
    """Rows [n, d] times the fixed direction, float32 [n]; ``shifted``: each row times another one."""
    rows = rows.detach().float().cpu()
    n, d = rows.shape
    if not shifted:
        return rows @ _signs(d)
    return (rows * _signs(n * d).reshape(n, d)).sum(-1)


@functools.lru_cache(maxsize=64)
def _signs(n: int) -> torch.Tensor:
    """n times ±1, the same everywhere and for ever."""
    data = hashlib.shake_128(b"poise weight sketch").digest((n + 7) // 8)
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8))[:n]
    return torch.from_numpy(bits.astype(np.float32)) * 2 - 1


def _row_numbers(n: int) -> torch.Tensor:
    return torch.linspace(0, n - 1, SKETCHED_OUTPUTS, dtype=torch.float64).round().long()


def _packed(rows: Sequence[torch.Tensor]) -> str:
    """Rows of values as int8 in base64, each row in units of its own size, so that all count alike."""
    return _encoded(torch.cat([_in_units(row) for row in rows] or [torch.zeros(0)]))


def _packed_blocks(named: Sequence[tuple[str, nn.Module]]) -> str:
    """[blocks, 32] as int8 in base64: of every matrix of a block as many outputs, each in units of the matrix's own."""
    rows = []
    for _, block in itertools.groupby(named, key=lambda pair: _block_name(pair[0])):
        matrices = [module for _, module in block]
        count = min(len(matrices), BLOCK_OUTPUTS)
        chosen = [matrices[i] for i in np.linspace(0, len(matrices) - 1, count).round().astype(int)]
        share = min(BLOCK_OUTPUTS // count, SKETCHED_OUTPUTS)
        values = torch.cat([_in_units(_outputs(module))[:: SKETCHED_OUTPUTS // share][:share] for module in chosen])
        rows.append(torch.nn.functional.pad(values, (0, BLOCK_OUTPUTS - len(values))))
    return _encoded(torch.cat(rows or [torch.zeros(0)]))


def _block_name(name: str) -> str:
    """A module's name up to the first number in it."""
    words = name.split(".")
    return ".".join(words[: next(i for i, word in enumerate(words) if word.isdigit()) + 1])


def _in_units(row: torch.Tensor) -> torch.Tensor:
    return row / row.square().mean().sqrt().clamp(min=1e-12) * INT8_SCALE


def _encoded(values: torch.Tensor) -> str:
    values = values.nan_to_num(0.0).round().clamp(-127, 127)
    return base64.b64encode(values.to(torch.int8).numpy().tobytes()).decode()


def _decoded(text: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.frombuffer(base64.b64decode(text), dtype=np.int8).astype(np.float64)


def _row_cosines(first: str, second: str, width: int) -> list[float]:
    """The cosine of each row that both have values of."""
    x, y = (_decoded(text).reshape(-1, width) for text in (first, second))
    return [_cosine_of(a, b) for a, b in zip(x, y, strict=False) if ((a != 0) & (b != 0)).any()]


def _cosine(first: str, second: str) -> float:
    """Cosine of the values of both; those of a row that one lacks count for neither."""
    return _cosine_of(_decoded(first), _decoded(second))


def _cosine_of(x: np.ndarray[Any, np.dtype[np.float64]], y: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    n = min(len(x), len(y))
    x, y = x[:n], y[:n]
    both = (x != 0) & (y != 0)
    norm = float(np.linalg.norm(x[both]) * np.linalg.norm(y[both]))
    return float(x[both] @ y[both]) / norm if norm else 0.0


def _bytes_of(modules: Sequence[tuple[str, nn.Module]], *, dimensions: int) -> list[bytes]:
    """Sampled values of the modules' own weights of one dimension, or of two and more."""
    tensors = [
        tensor
        for _, module in modules
        for key, tensor in sorted(module._parameters.items())
        if tensor is not None and (dimensions > 1 or key in ("weight", "bias"))
    ]
    return [sample_values(t, half=True) for t in tensors if (t.dim() == 1) == (dimensions == 1)]


def _short_hash(parts: Sequence[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:8] if parts else ""
