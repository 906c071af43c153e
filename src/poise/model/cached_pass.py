"""One forward pass of a batch with what is kept between steps: logits of each row's newest token, or of all."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch

from poise.model.language_model import Model
from poise.model.self_check import cache_argument

__all__ = ["all_logits", "newest_logits"]


def newest_logits(
    model: Model, cache: Any | None, ids: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor | None
) -> torch.Tensor:
    """Run ids [B, T] after what is cached: logits of each row's last position, float32 [B, vocabulary].

    Args:
        model: Hooks on it see the pass.
        cache: Key-value cache; grows by T positions. ``None`` to keep nothing.
        ids: Left-padded, so that the last position is every row's newest.
        mask: int64 [B, cached + T], 0 on padding; ``None`` where there is none.
        positions: Position of each token, int64 [B, T]; ``None`` for the model's own.
    """
    # An index, not a count: a slice is not contiguous, and the head would copy its weights once a row.
    newest = torch.tensor([ids.shape[1] - 1], device=ids.device)
    logits: torch.Tensor = _all_of_pass(model, cache, ids, mask, positions, newest)[:, -1].float()
    return logits


def all_logits(
    model: Model, cache: Any | None, ids: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor | None
) -> torch.Tensor:
    """As ``newest_logits``, of every position: [B, T, vocabulary], in the model's dtype."""
    return _all_of_pass(model, cache, ids, mask, positions, torch.arange(ids.shape[1], device=ids.device))


def _all_of_pass(
    model: Model,
    cache: Any | None,
    ids: torch.Tensor,
    mask: torch.Tensor | None,
    positions: torch.Tensor | None,
    wanted: torch.Tensor,
) -> torch.Tensor:
    extra: dict[str, Any] = (
        {"position_ids": positions} if positions is not None and _takes_positions(model.backbone.__class__) else {}
    )
    if cache is not None:
        extra[cache_argument(model.lm)] = cache
    out = model.lm(input_ids=ids, attention_mask=mask, use_cache=cache is not None, logits_to_keep=wanted, **extra)
    logits: torch.Tensor = out.logits
    return logits


@functools.cache
def _takes_positions(backbone: Any) -> bool:
    return "position_ids" in inspect.signature(backbone.forward).parameters
