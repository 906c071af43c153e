"""Rows that began to be steered at different times, in one forward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from poise.model import Model
from poise.model.hooks import rewrite
from poise.steer.apply import AppliedSteering

__all__ = ["SteeredRows", "apply_joined_steering"]


@dataclass(frozen=True, slots=True, eq=False)
class SteeredRows:
    """Some rows of a batch and what steers them, which counts their tokens and remembers their conditions.

    Attributes:
        applied: For as many rows as there are in ``rows``.
        rows: int64, which rows of the batch; ``None`` for all of them.
    """

    applied: AppliedSteering
    rows: torch.Tensor | None = None


@contextlib.contextmanager
def apply_joined_steering(model: Model, parts: Sequence[SteeredRows]) -> Iterator[None]:
    """Steer the forward passes inside the block, each part's rows by its own; a row in several by one after the other.

    Raises:
        HookDidNotFire: the block ended normally and some layer was never run.
    """
    parts_at: dict[int, list[SteeredRows]] = {}
    for part in parts:
        for layer in part.applied.layers:
            parts_at.setdefault(layer, []).append(part)

    def change(layer: int, h: torch.Tensor) -> torch.Tensor:
        return _changed(h, layer, parts_at[layer])

    with rewrite(model, change, list(parts_at)):
        yield


def _changed(h: torch.Tensor, layer: int, parts: Sequence[SteeredRows]) -> torch.Tensor:
    """A new tensor with all parts' rows steered; the rest bit for bit as it was."""
    copied = False
    for part in parts:
        if part.rows is None:
            h, copied = part.applied.change(layer, h), False
            continue
        if not copied:
            h, copied = h.clone(), True
        h[part.rows] = part.applied.change(layer, h[part.rows])
    return h
