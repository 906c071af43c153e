"""``Probe``: a direction to read at a layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["Probe"]


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """A direction to read: the projection of a block's output on ``direction`` [d] at ``layer``."""

    layer: int
    direction: torch.Tensor

    def __repr__(self) -> str:
        return f"Probe(layer={self.layer}, d={len(self.direction)})"
