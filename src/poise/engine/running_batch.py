"""The batch that runs: rows that join it, leave it, or are put aside and come back as they were."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from poise.engine.kv_cache import join, joinable, select_rows, take_row, trim
from poise.engine.sequence import Sequence
from poise.steer import AppliedSteering
from poise.steer.joined_rows import SteeredRows

__all__ = ["RunningBatch", "SteeredGroup"]

FREE_SHARE = 0.25  # free slots are run along with the others until they are more than this share
IDLE_PASSES = 4  # where others wait for them: until they have cost so many passes of the rows that run, as a copy does


@dataclass(slots=True, eq=False)
class SteeredGroup:
    """Sequences that began together, and what steers them; ``part`` is known while none joins or leaves."""

    applied: AppliedSteering
    sequences: list[Sequence]
    part: SteeredRows | None = None

    def without(self, removed: set[Sequence], device: torch.device) -> None:
        """Steer these sequences no more."""
        remaining = [n for n, sequence in enumerate(self.sequences) if sequence not in removed]
        if len(remaining) < len(self.sequences):
            self.part = None
            self.sequences = [self.sequences[n] for n in remaining]
            self.applied.select(torch.tensor(remaining, dtype=torch.long, device=device))


@dataclass(slots=True, eq=False, kw_only=True)
class RunningBatch:
    """The running sequences. S: slots, W: cached positions. Every row ends at the same position; a free slot runs idly.

    Attributes:
        slots: Sequence in each slot; ``None`` for a free one.
        cache: Key-value cache of S rows and W positions.
        mask: int64 [S, W], 0 on padding.
        position: Position of each slot's newest cached token, int64 [S, 1].
        next_tokens: Tokens that the next pass takes in, int64 [S].
        groups: Steered groups in the order in which they are applied.
        idle_rows: Rows of free slots that passes have run since a row joined or slots were given up.
    """

    slots: list[Sequence | None]
    cache: Any
    mask: torch.Tensor
    position: torch.Tensor
    next_tokens: torch.Tensor
    groups: list[SteeredGroup] = field(default_factory=list)
    idle_rows: int = 0

    @property
    def sequences(self) -> list[Sequence]:
        """Those that run, in the order of their slots."""
        return [sequence for sequence in self.slots if sequence is not None]

    @property
    def width(self) -> int:
        """W, the cached positions of every row, padding included."""
        return self.mask.shape[1]

    def steered_rows(self) -> list[SteeredRows]:
        """What each group steers, by the slots that its sequences hold now."""
        return [self._part_of(group) for group in self.groups]

    def _part_of(self, group: SteeredGroup) -> SteeredRows:
        if group.part is None:
            slot_of = {sequence: slot for slot, sequence in enumerate(self.slots) if sequence is not None}
            slots = [slot_of[sequence] for sequence in group.sequences]
            every_slot = slots == list(range(len(self.slots)))
            rows = None if every_slot else torch.tensor(slots, device=self.mask.device)
            group.part = SteeredRows(group.applied, rows)
        return group.part

    def join(self, other: RunningBatch) -> None:
        """Take in the rows of a batch that has just been read, or was put aside."""
        if other.width > self.width and len(self.slots) - len(self.sequences) > len(other.slots):
            self.compact()  # rather than have slots grow that nobody takes
        self.idle_rows = 0
        free = [slot for slot, sequence in enumerate(self.slots) if sequence is None]
        slots = [*free, *range(len(self.slots), len(self.slots) + len(other.slots))][: len(other.slots)]
        total = max(len(self.slots), max(slots) + 1)
        at = torch.tensor(slots, device=self.mask.device)
        join(self.cache, other.cache, at, total)
        width = max(self.width, other.width)
        mask = self.mask.new_zeros((total, width))
        mask[: len(self.slots), width - self.width :] = self.mask
        mask[at] = 0
        mask[at, width - other.width :] = other.mask
        self.mask = mask
        self.position = _with_rows(self.position, other.position, at, total)
        self.next_tokens = _with_rows(self.next_tokens, other.next_tokens, at, total)
        for group in (*self.groups, *other.groups):
            group.part = None
        self.slots += [None] * (total - len(self.slots))
        for slot, sequence in zip(slots, other.slots, strict=True):
            self.slots[slot] = sequence
        self.groups += other.groups

    def remove(self, sequences: Iterable[Sequence], *, refill: bool) -> None:
        """Free the slots of these sequences, and what no other needs.

        Args:
            sequences: Any that are here.
            refill: Whether others wait for the slots.
        """
        removed = set(sequences)
        self.slots = [None if sequence in removed else sequence for sequence in self.slots]
        self.unsteer(removed)
        for group in self.groups:
            group.part = None
        running = self.sequences
        if not running:
            return
        if not refill and len(running) < (1 - FREE_SHARE) * len(self.slots):
            self.compact()
        spare = self.width - max(sequence.cached_tokens for sequence in self.sequences)
        if spare and joinable(self.cache):
            trim(self.cache, spare)
            self.mask = self.mask[:, spare:]

    def count_idle(self) -> None:
        """Note a pass that is about to run; free slots that have cost as much as giving them up does are given up."""
        self.idle_rows += len(self.slots) - len(self.sequences)
        if self.idle_rows > IDLE_PASSES * len(self.sequences):
            self.compact()

    def compact(self) -> None:
        """Give up the free slots, for which the cache is copied."""
        self.idle_rows = 0
        running = [slot for slot, sequence in enumerate(self.slots) if sequence is not None]
        if len(running) == len(self.slots):
            return
        at = torch.tensor(running, device=self.mask.device)
        select_rows(self.cache, at)
        self.mask, self.position, self.next_tokens = self.mask[at], self.position[at], self.next_tokens[at]
        self.slots = [self.slots[slot] for slot in running]
        for group in self.groups:
            group.part = None

    def unsteer(self, removed: set[Sequence]) -> None:
        """Drop these sequences from the groups, and groups without any."""
        for group in self.groups:
            group.without(removed, self.mask.device)
        self.groups = [group for group in self.groups if group.sequences]

    def take_out(self, sequence: Sequence) -> RunningBatch:
        """A sequence as a batch of its own, from which it can ``join`` again and go on as if it had never left."""
        slot, length = self.slots.index(sequence), sequence.cached_tokens
        row = slice(slot, slot + 1)
        groups = []
        for group in self.groups:
            if sequence in group.sequences:
                alone = SteeredGroup(copy.deepcopy(group.applied), list(group.sequences))
                alone.without(set(group.sequences) - {sequence}, self.mask.device)
                groups.append(alone)
        return RunningBatch(
            slots=[sequence],
            cache=take_row(self.cache, slot, length),
            mask=self.mask[row, self.width - length :].clone(),
            position=self.position[row].clone(),
            next_tokens=self.next_tokens[row].clone(),
            groups=groups,
        )


def _with_rows(ours: torch.Tensor, theirs: torch.Tensor, at: torch.Tensor, total: int) -> torch.Tensor:
    out = ours.new_zeros((total, *ours.shape[1:]))
    out[: len(ours)] = ours
    out[at] = theirs
    return out
