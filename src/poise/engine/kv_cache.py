"""A key-value cache that grows in steps instead of being copied whole for every token, and that rows may join."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionCacheLayerMixin

from poise.errors import InvalidArgument
from poise.model import Model

__all__ = [
    "RoomyLayer",
    "WindowLayer",
    "cache_budget",
    "check_room",
    "join",
    "joinable",
    "roomy_cache",
    "select_rows",
    "take_row",
    "trim",
]

ROOM = 128  # positions added at a time
SPARE_ROWS = 4  # a row more for each so many, where rows are added
CACHE_BUDGET_CPU = 16384  # cached tokens at once, padding included
CACHE_BUDGET_GPU = 262144


class RoomyLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Transformers' growing layer with spare room on all sides of ``keys`` and ``values``, views of the used part."""

    keys: Any  # transformers has None there until the first update
    values: Any

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Append the new states and return all so far, [B, heads, T, head width] each."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
            self._view: torch.Tensor | None = None
        new = key_states.shape[-2]
        if self.keys is not self._view or self._end + new > self._keys.shape[-2]:  # rows were selected, or it is full
            self._move(rows=self.keys.shape[0], left=0, right=new + ROOM)
        self._keys[: len(key_states), :, self._end : self._end + new] = key_states
        self._values[: len(key_states), :, self._end : self._end + new] = value_states
        self._look(self._first, self._end + new)
        return self.keys, self.values

    def join(self, keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor, rows: int) -> None:
        """Write the states of other rows into these slots, ending where ours end; zeros where they are shorter.

        Args:
            keys: Keys to write, [slots, heads, T, head width].
            values: Values to write, of the same shape.
            slots: Rows of this cache that they become, int64.
            rows: Number of rows afterwards.
        """
        used, length, before = self.keys.shape[-2], keys.shape[-2], self.keys.shape[0]
        wider = max(length - used, 0)
        if self.keys is not self._view or rows > len(self._keys) or wider > self._first:
            spare = rows // SPARE_ROWS if rows > before else 0
            self._move(rows=rows + spare, left=wider + ROOM, right=ROOM)
        first = self._first - wider
        for room, states in ((self._keys, keys), (self._values, values)):
            room[:before, :, first : self._first] = 0  # what was trimmed there would be attended to with weight 0 only,
            room[slots, :, first : self._end] = 0  # but NaN times 0 is NaN
            room[slots, :, self._end - length : self._end] = states
        self._rows = rows
        self._look(first, self._end)

    def trim(self, columns: int) -> None:
        """Forget the oldest positions."""
        if self.keys is not self._view:
            self._move(rows=self.keys.shape[0], left=0, right=ROOM)
        self._look(self._first + columns, self._end)

    def _look(self, first: int, end: int) -> None:
        self._first, self._end = first, end
        self.keys, self.values = (room[: self._rows, :, first:end] for room in (self._keys, self._values))
        self._view = self.keys

    def forget_room(self) -> None:
        """Keep no more than the states themselves; the next change makes room again."""
        self._keys, self._values, self._view = self.keys, self.values, None
        self._rows, self._first, self._end = self.keys.shape[0], 0, self.keys.shape[-2]

    def _move(self, *, rows: int, left: int, right: int) -> None:
        """To a larger room, or to one of fewer rows."""
        before, heads, used, _ = self.keys.shape
        rooms = []
        for states in (self.keys, self.values):
            room = states.new_zeros((rows, heads, left + used + right, states.shape[-1]))
            room[:before, :, left : left + used] = states
            rooms.append(room)
        self._keys, self._values = rooms
        self._rows = before
        self._look(left, left + used)


class WindowLayer(DynamicSlidingWindowLayer):  # type: ignore[no-untyped-call]
    """Transformers' layer of a sliding window, which also knows what left the window in the newest pass."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Append the new states and return all that they may look at."""
        states = super().update(key_states, value_states, *args, **kwargs)
        self._pass: tuple[torch.Tensor, torch.Tensor] | None = states
        self._after_pass: torch.Tensor | None = self.keys
        return states

    def of_pass(self, side: str) -> torch.Tensor:
        """Keys or values as the newest pass saw them; those in the window where rows have changed since."""
        if self._pass is not None and self.keys is self._after_pass:
            return self._pass[0 if side == "keys" else 1]
        inside: torch.Tensor = getattr(self, side)
        return inside

    def forget_pass(self) -> None:
        """Hold no more memory than the window's."""
        self._pass = self._after_pass = None


def cache_budget(model: Model) -> int:
    """Cached tokens that an engine holds at once where it is told no limit."""
    return CACHE_BUDGET_CPU if model.device.type == "cpu" else CACHE_BUDGET_GPU


def check_room(model: Model, prompt: int, new: int) -> None:
    """Raise where a prompt and an answer of so many tokens do not fit a model's window together.

    Raises:
        InvalidArgument: says which limit it is.
    """
    window = model.generation_window(prompt)
    if prompt + new > model.window:
        raise InvalidArgument(
            f"A prompt of {prompt} tokens and {new} new tokens exceed the window of {model.name} ({model.window}); "
            "shorten the prompt or ask for fewer new tokens."
        )
    if prompt + new > window:
        raise InvalidArgument(
            f"A prompt of {prompt} tokens and {new} new tokens go past {window}, where the rotary embeddings of "
            f"{model.name} change, so that what is kept of the prompt would no longer hold; ask for at most "
            f"{window - prompt} new tokens, or give a prompt of more than {window}."
        )


def roomy_cache(config: Any) -> DynamicCache:
    """Transformers' own choice of cache layers for this model, with ours in place of those that rows may join."""
    cache = DynamicCache(config=config)
    roomy: Callable[[], DynamicLayer] = RoomyLayer
    window: Callable[[int], DynamicSlidingWindowLayer] = WindowLayer
    for number, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[number] = roomy()
        elif type(layer) is DynamicSlidingWindowLayer:
            cache.layers[number] = window(layer.sliding_window)
    return cache


def joinable(cache: Any) -> bool:
    """Whether rows can join it: all of its layers hold keys and values a position, and nothing else."""
    return all(type(layer) in (RoomyLayer, WindowLayer) for layer in cache.layers)


def join(cache: Any, other: Any, slots: torch.Tensor, rows: int) -> None:
    """Write the rows of another cache into these slots; both then end at the same position.

    Args:
        cache: Cache of the running batch.
        other: Cache of rows that have just been read, padded on the left.
        slots: Rows of this cache that they become, int64.
        rows: Number of rows afterwards.
    """
    width = max(cache.get_seq_length(), other.get_seq_length())
    for ours, theirs in zip(cache.layers, other.layers, strict=True):
        if not theirs.is_initialized:  # a layer that shares another's states
            continue
        if isinstance(ours, RoomyLayer):
            ours.join(theirs.keys, theirs.values, slots, rows)
            continue
        length = min(width, ours.sliding_window - 1)
        ours.keys = _joined_states(ours.keys, theirs.keys, slots, rows, length)
        ours.values = _joined_states(ours.values, theirs.values, slots, rows, length)
        ours.cumulative_length = width


def _joined_states(
    ours: torch.Tensor, theirs: torch.Tensor, slots: torch.Tensor, rows: int, length: int
) -> torch.Tensor:
    out = ours.new_zeros((rows, ours.shape[1], length, ours.shape[3]))
    out[: len(ours), :, length - ours.shape[-2] :] = ours
    out[slots] = 0
    out[slots, :, length - theirs.shape[-2] :] = theirs
    return out


def select_rows(cache: Any, rows: torch.Tensor) -> None:
    """Go on with these rows alone.

    Layers with a state between steps know no ``batch_select_indices``, or know it for their keys and values alone: what
    transformers reorders for a search over beams is all that they hold.
    """
    for layer in cache.layers:
        if isinstance(layer, LinearAttentionCacheLayerMixin):
            layer.reorder_cache(rows)  # type: ignore[arg-type] # a name for int64 tensors
        else:
            layer.batch_select_indices(rows)


def take_row(cache: Any, row: int, length: int) -> Any:
    """A copy of one row's newest positions, as a cache that can join another.

    Args:
        cache: A joinable cache.
        row: Which row.
        length: Positions that the row holds.
    """
    out = copy.copy(cache)
    out.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in out.layers:
        if not layer.is_initialized:
            continue
        newest = length if isinstance(layer, RoomyLayer) else min(length, layer.sliding_window - 1)
        first = layer.keys.shape[-2] - newest
        layer.keys, layer.values = (s[row : row + 1, :, first:].clone() for s in (layer.keys, layer.values))
        if isinstance(layer, RoomyLayer):
            layer.forget_room()
        else:
            layer.cumulative_length = length
            layer.forget_pass()
    return out


def trim(cache: Any, columns: int) -> None:
    """Forget the oldest positions, which no row that still runs has."""
    for layer in cache.layers:
        if not layer.is_initialized:
            continue
        if isinstance(layer, RoomyLayer):
            layer.trim(columns)
            continue
        layer.cumulative_length -= columns
        length = min(layer.cumulative_length, layer.sliding_window - 1)
        layer.keys, layer.values = (states[:, :, states.shape[-2] - length :] for states in (layer.keys, layer.values))
