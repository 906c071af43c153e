"""Keys and values of texts that were read before, so that a prompt which begins like one of them is not read again.

A tree of blocks of tokens. Every path from a root is the beginning of a text as it was read within one *scope*: by the
same client, with the same steering of its tokens and the same adapters. Blocks are found by their tokens themselves,
never by a hash of them. The last token of a prompt is always read anew: its readings and logits are the pass's own,
and no reading of any other prompt token is ever given out, so that none needs to be kept.

It does not know what a scope is made of; see ``poise.engine.prompt_reading.prompt_scope``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

__all__ = ["PrefixBlock", "PrefixCache"]

BLOCK_TOKENS = 32
StateKind = tuple[torch.device, torch.dtype, int, int]  # of keys or values that can be stacked: heads and their width
StatePlace = tuple[int, str]  # a layer, and whether it is its keys or its values


@dataclass(slots=True, eq=False)
class PrefixBlock:
    """Some tokens after those of the blocks before, and their states: [places, heads, tokens, width] of each kind."""

    ids: tuple[int, ...]
    states: list[torch.Tensor]
    parent: PrefixBlock | None
    scope: Hashable
    following: dict[tuple[int, ...], PrefixBlock] = field(default_factory=dict)


class PrefixCache:
    """Blocks that were used lately.

    Args:
        capacity: Most tokens that are kept.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = self.room = capacity
        self.version = 0  # another one wherever a prompt may match otherwise
        self._roots: dict[Hashable, dict[tuple[int, ...], PrefixBlock]] = {}
        self._used: OrderedDict[PrefixBlock, None] = OrderedDict()  # a block always before those that it follows
        self._places: dict[StateKind, list[StatePlace]] = {}

    @property
    def tokens(self) -> int:
        """Tokens that are kept."""
        return len(self._used) * BLOCK_TOKENS

    def match(self, scope: Hashable, ids: Sequence[int]) -> list[PrefixBlock]:
        """The longest chain of blocks that a text begins with, at least its last token left out."""
        chain: list[PrefixBlock] = []
        following = self._roots.get(scope, {})
        for block_ids in _id_blocks(ids[:-1]):
            if (block := following.get(block_ids)) is None:
                break
            chain.append(block)
            following = block.following
        self._touch(chain)
        return chain

    def add(self, scope: Hashable, ids: Sequence[int], cache: Any, row: int, length: int | None = None) -> None:
        """Keep a text that has been read.

        Args:
            scope: What else its states depend on.
            ids: Tokens of the text.
            cache: Cache in which the text's row ends with the newest position.
            row: Which row.
            length: Positions that the row holds, where they are more than the tokens.
        """
        length = length or len(ids)
        chain: list[PrefixBlock] = []
        following = self._roots.get(scope, {})
        for number, block_ids in enumerate(_id_blocks(ids)):
            block = following.get(block_ids)
            if block is None:
                if (len(chain) + 1) * BLOCK_TOKENS > self.room:
                    break
                states = self._read(cache, row, length - number * BLOCK_TOKENS)
                if states is None:
                    break
                block = PrefixBlock(block_ids, states, chain[-1] if chain else None, scope)
                following = chain[-1].following if chain else self._roots.setdefault(scope, {})
                following[block_ids] = block
                self.version += 1
            chain.append(block)
            following = block.following
        self._touch(chain)
        self._shrink()

    def leave(self, tokens: int) -> None:
        """Take no more than so many tokens from now on, even where the capacity is larger."""
        self.room = min(self.capacity, tokens)
        self._shrink()

    def _shrink(self) -> None:
        """Forget what was used longest ago."""
        while self._used and self.tokens > self.room:
            block, _ = self._used.popitem(last=False)
            siblings = block.parent.following if block.parent else self._roots[block.scope]
            del siblings[block.ids]
            if not siblings and block.parent is None:
                del self._roots[block.scope]
            self.version += 1

    def write(self, cache: Any, chains: Sequence[Sequence[PrefixBlock]], lengths: Sequence[int]) -> None:
        """Begin an empty cache with one beginning a row; the shorter ones have zeros before them.

        Args:
            cache: Cache of no positions.
            chains: Blocks of each row.
            lengths: Tokens to take of each row's blocks.
        """
        longest = max(lengths)
        found: dict[StatePlace, torch.Tensor] = {}
        for number, ((device, dtype, heads, width), places) in enumerate(self._places.items()):
            states = torch.zeros((len(places), len(chains), heads, longest, width), dtype=dtype, device=device)
            for row, (chain, length) in enumerate(zip(chains, lengths, strict=True)):
                if length:
                    joined = torch.cat([block.states[number] for block in chain], dim=2)
                    states[:, row, :, longest - length :] = joined[:, :, :length]
            found |= dict(zip(places, states, strict=True))
        for layer in sorted({layer for layer, _ in found}):
            cache.layers[layer].update(found[layer, "keys"], found[layer, "values"])

    def _touch(self, chain: Sequence[PrefixBlock]) -> None:
        for block in reversed(chain):
            self._used[block] = None
            self._used.move_to_end(block)

    def _read(self, cache: Any, row: int, before_end: int) -> list[torch.Tensor] | None:
        """States of the block that begins so many positions before the end; ``None`` where a layer has lost them."""
        if not self._places:
            for number, layer in enumerate(cache.layers):
                for side in ("keys", "values") if layer.is_initialized else ():
                    states = getattr(layer, side)
                    kind = (states.device, states.dtype, states.shape[1], states.shape[3])
                    self._places.setdefault(kind, []).append((number, side))
        blocks = []
        for places in self._places.values():
            sides = [_latest(cache.layers[layer], side) for layer, side in places]
            if any(side.shape[2] < before_end for side in sides):
                return None
            first = [side.shape[2] - before_end for side in sides]
            blocks.append(
                torch.stack([side[row, :, f : f + BLOCK_TOKENS] for side, f in zip(sides, first, strict=True)])
            )
        return blocks


def _id_blocks(ids: Sequence[int]) -> Iterator[tuple[int, ...]]:
    for first in range(0, len(ids) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        yield tuple(ids[first : first + BLOCK_TOKENS])


def _latest(layer: Any, side: str) -> torch.Tensor:
    """Keys or values of a layer, with those that a sliding window has just left where they are still there."""
    states: torch.Tensor = layer.of_pass(side) if hasattr(layer, "of_pass") else getattr(layer, side)
    return states
