"""A key-value cache that grows in steps instead of being copied whole for every token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

__all__ = ["roomy_cache"]

ROOM = 128  # positions added at a time


class RoomyLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Transformers' growing layer with spare room behind ``keys`` and ``values``, which stay views of the used part."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Append the new states and return all so far, [B, heads, T, head width] each."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._keys, self._values, self._used = self._room(key_states, 0), self._room(value_states, 0), 0
            self._view: torch.Tensor | None = self.keys
        end = self._used + key_states.shape[-2]
        if end > self._keys.shape[-2] or self.keys is not self._view:  # full, or rows were selected
            self._keys, self._values = (
                self._grown(*pair, end) for pair in ((self.keys, key_states), (self.values, value_states))
            )
        self._keys[:, :, self._used : end] = key_states
        self._values[:, :, self._used : end] = value_states
        self._used = end
        self.keys, self.values = self._keys[:, :, :end], self._values[:, :, :end]
        self._view = self.keys
        return self.keys, self.values

    @staticmethod
    def _room(like: torch.Tensor, length: int) -> torch.Tensor:
        return like.new_zeros((like.shape[0], like.shape[1], length, like.shape[3]))

    def _grown(self, used: torch.Tensor | None, like: torch.Tensor, end: int) -> torch.Tensor:
        grown = self._room(like, end + ROOM)
        if used is not None and self._used:
            grown[:, :, : self._used] = used
        return grown


def roomy_cache(config: Any) -> DynamicCache:
    """Transformers' own choice of cache layers for this model, with the plain ones replaced by roomy ones."""
    cache = DynamicCache(config=config)
    roomy: Callable[[], DynamicLayer] = RoomyLayer
    cache.layers = [roomy() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
