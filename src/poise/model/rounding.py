"""Whether weights are rounded to a few levels: a copy in 4 or 8 bits, also one that was unpacked into floats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

__all__ = ["quantisation"]

SCALE_BLOCK = 32  # weights that share a scale in the common formats, or half of which do
FOUR_BIT_LEVELS = 16  # of 4 bits
STEP_COUNTS = torch.arange(1, 256, dtype=torch.float64)  # between the smallest and the largest of a block, up to 8 bits
STEP_ERROR = 0.001  # of a step, by which a value may miss it besides what its own dtype rounds away
SAMPLED_BLOCKS = 8  # of a matrix
LARGEST_ERROR = 0.2  # of a step; finer steps cannot be seen in the dtype at hand
ROUNDED_SHARE = 0.9  # of the blocks


def quantisation(lm: Any, matrices: Sequence[torch.Tensor]) -> str:
    """How a model's weights are rounded: as its configuration says, or as some of them show; else empty."""
    settings = getattr(getattr(lm, "config", None), "quantization_config", None)
    if settings is not None:
        return _method_name(settings if isinstance(settings, dict) else vars(settings))
    packed = [tensor for tensor in matrices if not tensor.is_floating_point() or tensor.element_size() == 1]
    if packed:
        return str(packed[0].dtype).removeprefix("torch.")
    subclasses = [tensor for tensor in matrices if type(tensor) not in (torch.Tensor, torch.nn.Parameter)]
    if subclasses:
        return type(subclasses[0]).__name__
    bits = [_bits(block) for matrix in matrices for block in _blocks(matrix)]
    rounded = [count for count in bits if count]
    if not rounded or len(rounded) < ROUNDED_SHARE * len(bits):
        return ""
    return f"{4 if 2 * rounded.count(4) >= len(rounded) else 8} bits"


def _method_name(settings: dict[str, Any]) -> str:
    method = settings.get("quant_method", "")
    method = str(getattr(method, "value", method))
    if method == "bitsandbytes":
        return f"bitsandbytes {'4' if settings.get('load_in_4bit') or settings.get('_load_in_4bit') else '8'}-bit"
    bits = settings.get("bits") or settings.get("nbits")
    return f"{method} {bits}-bit" if bits else method or "quantised"


def _blocks(matrix: torch.Tensor) -> list[torch.Tensor]:
    """The first blocks of some rows of a matrix."""
    rows = matrix.detach().reshape(-1, matrix.shape[-1])
    at = torch.linspace(0, len(rows) - 1, min(SAMPLED_BLOCKS, len(rows))).long()
    blocks = rows[at.to(rows.device), :SCALE_BLOCK].double().cpu()
    return [block for block in blocks if len(block) == SCALE_BLOCK and bool(block.any())]


def _bits(block: torch.Tensor) -> int:
    """4 or 8, if the values lie on so many levels; else 0."""
    if len(torch.unique(block)) <= FOUR_BIT_LEVELS:
        return 4
    steps = [_steps(half) for half in torch.split(block, SCALE_BLOCK // 2)]
    return 0 if None in steps else 4 if max(step or 0 for step in steps) < FOUR_BIT_LEVELS else 8


def _steps(values: torch.Tensor) -> int | None:
    """Fewest even steps from zero, or from the smallest, to the largest on which all values lie."""
    for zero in (torch.zeros_like(values[0]), values.min()):  # scales with a zero in the middle, and at one end
        steps = ((values - zero).abs().max().clamp(min=1e-30) / STEP_COUNTS)[:, None]
        counts = (values - zero) / steps
        errors = 2 * _relative_error(values) * (values.abs() + zero.abs()) / steps  # its own and the scale's
        on_steps = ((counts - counts.round()).abs() < STEP_ERROR + errors).all(-1) & (errors.amax(-1) < LARGEST_ERROR)
        if bool(on_steps.any()):
            return int(STEP_COUNTS[on_steps][0])
    return None


def _relative_error(values: torch.Tensor) -> float:
    """By how much storing in the coarsest dtype that holds these values may have moved them."""
    for dtype in (torch.bfloat16, torch.float16):
        if bool((values.to(dtype).double() == values).all()):
            return torch.finfo(dtype).eps / 2
    return torch.finfo(torch.float32).eps
