"""Lengths and unit directions of float32 rows, right wherever float32 can hold them.

The squares of a row overflow float32 from 1e19 on and vanish below 1e-19: its length would be infinity or zero, and
everything read along it 0.0.
"""

from __future__ import annotations

import torch

__all__ = ["row_cosines", "row_lengths", "unit_direction"]


def row_lengths(rows: torch.Tensor) -> torch.Tensor:
    """‖v‖ of each row: float32; infinity where float32 cannot hold it."""
    lengths = torch.linalg.vector_norm(rows, dim=-1)
    exact = torch.linalg.vector_norm(rows.double(), dim=-1).float()
    return torch.where(torch.isfinite(lengths) & (lengths > 1e-12), lengths, exact)


def unit_direction(v: torch.Tensor) -> torch.Tensor:
    """v / ‖v‖ [d], float32; zero where v is."""
    length = row_lengths(v)
    return v / length if length > 1e-12 else (v.double() / length.double().clamp(min=1e-100)).float()


def row_cosines(rows: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Cosine of each row with the other of its number: float32; 0 where either is zero."""
    return torch.cosine_similarity(rows.double(), others.double(), dim=-1, eps=1e-99).float()
