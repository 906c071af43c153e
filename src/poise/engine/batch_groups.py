"""Running rows in one batch, or the long ones apart where that costs less or where padding all to them does not fit.

A pass costs much the same whatever the number of its rows (on a CPU SmolLM2-135M takes 75 ms for one row, 107 ms for 31
short ones, and 4 ms more for every thousand positions that all rows have together), so that a second one is worth its
price where it saves more padding than a pass is worth, or lets rows run that had to wait.
"""

from __future__ import annotations

from collections.abc import Sequence

from poise.engine.running_batch import RunningBatch
from poise.engine.sequence import Sequence as AnswerSequence

__all__ = ["give_up_slots", "group_cost", "padded_positions", "plan_groups", "regroup"]


def plan_groups(widths: Sequence[int], budget: int, pass_cost: int) -> list[list[int]] | None:
    """Which rows share a batch: all of them, or two groups where that is cheaper; ``None`` where neither fits.

    Args:
        widths: Positions that each row takes.
        budget: Most positions of all batches, each padded to its longest row.
        pass_cost: Positions that cost as much as another pass does.
    """
    order = sorted(range(len(widths)), key=lambda row: widths[row])
    together = [order] if order else []
    fits = padded_positions(together, widths) <= budget
    if fits and padded_positions(together, widths) - sum(widths) <= pass_cost:
        return together  # no split can save as much as its pass costs
    splits = ([order[:first], order[first:]] for first in range(1, len(order)))
    best = min(splits, key=lambda groups: padded_positions(groups, widths), default=None)
    if best is None or padded_positions(best, widths) > budget:
        return together if fits else None
    candidates = [together, best] if fits else [best]
    return min(candidates, key=lambda groups: group_cost(groups, widths, pass_cost))


def group_cost(groups: Sequence[Sequence[int]], widths: Sequence[int], pass_cost: int) -> int:
    """What a token of every row costs, in positions: the padded ones, and a pass for each group."""
    return padded_positions(groups, widths) + len(groups) * pass_cost


def padded_positions(groups: Sequence[Sequence[int]], widths: Sequence[int]) -> int:
    """Positions that groups of rows take, each padded to its longest."""
    return sum(len(group) * max(widths[row] for row in group) for group in groups)


def regroup(
    batches: Sequence[RunningBatch], groups: Sequence[Sequence[AnswerSequence]], *, refill: bool
) -> list[RunningBatch]:
    """Batches of these groups of sequences, made of those that run: every row moves at most once.

    Args:
        batches: What runs; all of it is in one group or another.
        groups: Sequences that are to share a batch.
        refill: Whether others wait for slots that become free.
    """
    groups = sorted(groups, key=len, reverse=True)
    remaining = list(batches)
    homes: list[RunningBatch | None] = []
    for group in groups:  # the batch that has most of a group takes in the others
        members = set(group)
        home = max(remaining, key=lambda batch: len(members.intersection(batch.sequences)), default=None)
        if home and not members.isdisjoint(home.sequences):
            remaining.remove(home)
            homes.append(home)
        else:
            homes.append(None)
    for number, group in enumerate(groups):
        members = set(group)
        for batch in batches:
            home = homes[number]
            moving = [sequence for sequence in batch.sequences if sequence in members]
            if batch is home or not moving:
                continue
            stays = len(moving) < len(batch.sequences)
            parts = [batch.take_out(sequence) for sequence in moving] if stays else [batch]
            if stays:
                batch.remove(moving, refill=refill)
            for part in parts:
                if home is None:
                    home = homes[number] = part
                else:
                    home.join(part)
    return [home for home in homes if home]


def give_up_slots(batches: Sequence[RunningBatch], budget: int) -> None:
    """Before a pass: a free slot costs what a row costs, so that it is kept for a while only, and within the budget.

    Args:
        batches: What runs.
        budget: Most positions of all batches, those of free slots included.
    """
    if sum(len(batch.slots) * (batch.width + 1) for batch in batches) > budget:
        for batch in batches:
            batch.compact()
    for batch in batches:
        batch.count_idle()
