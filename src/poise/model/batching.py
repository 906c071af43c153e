"""Padding and batches: texts of like length together, as many as a token budget allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from poise.errors import InvalidArgument
from poise.model.chat_template import Encoded

__all__ = ["PaddedBatch", "pad", "plan_batches"]

Side = Literal["left", "right"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PaddedBatch:
    """Padded texts. B: rows, T: the longest row.

    ``ids`` int64 [B, T]; ``real`` bool [B, T], false on padding; ``positions`` int64 [B, T], counted from each row's
    first real token; ``spans`` the response of each row in padded coordinates.
    """

    ids: torch.Tensor
    real: torch.Tensor
    positions: torch.Tensor
    spans: tuple[tuple[int, int], ...]
    prompts: tuple[tuple[int, int], ...]

    @property
    def padded(self) -> bool:
        """Whether any row is shorter than the longest."""
        return any(
            first or last < self.ids.shape[1] for (first, _), (_, last) in zip(self.prompts, self.spans, strict=True)
        )

    def inside(self, spans: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Bool [B, T]: the positions inside each row's span."""
        at = torch.arange(self.ids.shape[1], device=self.ids.device)
        first, last = torch.tensor(spans, device=self.ids.device).unsqueeze(-1).unbind(1)
        return (at >= first) & (at < last)


def pad(texts: Sequence[Encoded], *, side: Side, pad_id: int = 0, device: torch.device | None = None) -> PaddedBatch:
    """Pad texts to one length. Causal models read right-padded rows as if they were alone.

    Raises:
        InvalidArgument: no texts, or another side than left or right.
    """
    if side not in get_args(Side):
        raise InvalidArgument(f"The padding is {side!r}; it must be left or right.")
    if not texts:
        raise InvalidArgument("There are no texts to pad; give at least one.")
    longest = max(len(t.ids) for t in texts)
    shifts = [longest - len(t.ids) if side == "left" else 0 for t in texts]
    ids = torch.full((len(texts), longest), pad_id, dtype=torch.long)
    real = torch.zeros((len(texts), longest), dtype=torch.bool)
    for row, (text, shift) in enumerate(zip(texts, shifts, strict=True)):
        ids[row, shift : shift + len(text.ids)] = torch.tensor(text.ids)
        real[row, shift : shift + len(text.ids)] = True
    return PaddedBatch(
        ids=ids.to(device),
        real=real.to(device),
        positions=(real.long().cumsum(1) - 1).clamp(min=0).to(device),
        spans=tuple((t.start + s, t.end + s) for t, s in zip(texts, shifts, strict=True)),
        prompts=tuple((s, t.start + s) for t, s in zip(texts, shifts, strict=True)),
    )


def plan_batches(lengths: Sequence[int], *, budget: int, most: int) -> list[list[int]]:
    """Group indices by length so that no batch exceeds ``budget`` padded tokens or ``most`` rows.

    Longest first, so that memory peaks at once and not in the last hour. Planning the members of one batch again gives
    that batch: a resumed run computes exactly what the unbroken one would have.
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        last = batches[-1] if batches else []
        if last and len(last) < most and (len(last) + 1) * lengths[last[0]] <= budget:
            last.append(i)
        else:
            batches.append([i])
    return batches
