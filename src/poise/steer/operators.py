"""What a term does to a hidden state: small functions over one signature.

``operator(h, v, level) -> delta``: h float32 [B, T, d] are the hidden states, v [B, 1, d] a direction a row and level
[B, 1, 1] a number a row; what comes back is added to h. ``add`` takes α·v, the others the unit direction v̂. A row
whose direction is zero is left alone by all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch

__all__ = ["LEVELED", "OPERATORS", "Operation", "Operator"]

Operation = Literal["add", "project_out", "clamp", "floor", "cap"]
Operator = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def add(h: torch.Tensor, v: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    """h + α·v (Chen et al. 2025, section 3.2)."""
    return v


def project_out(h: torch.Tensor, v: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    """h − ⟨h, v̂⟩·v̂: nothing is left along the direction."""
    return -_along(h, v) * v


def clamp(h: torch.Tensor, v: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    """h + (level − ⟨h, v̂⟩)·v̂: the projection is the level, whatever it was."""
    return (level - _along(h, v)) * v


def cap(h: torch.Tensor, v: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    """h − max(⟨h, v̂⟩ − level, 0)·v̂ (arXiv:2601.10387): changes nothing while the projection stays below."""
    return -(_along(h, v) - level).clamp(min=0) * v


def floor(h: torch.Tensor, v: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    """h + max(level − ⟨h, v̂⟩, 0)·v̂, the mirror of a cap: changes nothing while the projection stays above."""
    return (level - _along(h, v)).clamp(min=0) * v


def _along(h: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.matmul(h, v.mT)


# At one layer they work in this order: what is added cannot come back under what was projected out, and a cap is last,
# so that it holds whatever else is done there.
OPERATORS: Mapping[Operation, Operator] = {
    "project_out": project_out,
    "add": add,
    "clamp": clamp,
    "floor": floor,
    "cap": cap,
}
LEVELED: tuple[Operation, ...] = ("clamp", "floor", "cap")
"""Those that take a level: a projection on the unit direction, in residual-stream units."""
