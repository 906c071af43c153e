"""Who comes next: of the client that has fewest answers under way, the request that came first."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable

from poise.engine.running_batch import RunningBatch
from poise.engine.sequence import Sequence

__all__ = ["WaitingSequences", "to_put_aside"]


class WaitingSequences:
    """Sequences that have not begun, and such as were put aside, each as a batch of its own."""

    def __init__(self) -> None:
        self.new: list[Sequence] = []
        self.aside: list[RunningBatch] = []

    @property
    def sequences_aside(self) -> list[Sequence]:
        """Those that have begun and were put aside."""
        return [sequence for batch in self.aside for sequence in batch.sequences]

    def drop(self, key: Hashable) -> None:
        """Forget a request."""
        self.new = [sequence for sequence in self.new if sequence.key != key]
        self.aside = [batch for batch in self.aside if batch.sequences[0].key != key]

    def next(
        self, active: Iterable[Sequence], may_begin: Callable[[Sequence], bool]
    ) -> tuple[Sequence, RunningBatch | None] | None:
        """Who should run next, and the batch where it was put aside; ``None`` where nobody may.

        Args:
            active: Sequences under way.
            may_begin: Whether a new one may begin now; where it may not, those after it may.
        """
        running = Counter(sequence.request.client for sequence in active)
        first: dict[Hashable, tuple[Sequence, RunningBatch | None]] = {}
        for batch in sorted(self.aside, key=lambda batch: batch.sequences[0].number):
            first.setdefault(batch.sequences[0].request.client, (batch.sequences[0], batch))
        for sequence in self.new:
            if sequence.request.client not in first and may_begin(sequence):
                first[sequence.request.client] = (sequence, None)
        if not first:
            return None
        return min(first.values(), key=lambda each: (running[each[0].request.client], each[0].number))

    def take(self, sequence: Sequence) -> None:
        """It runs now."""
        sequence.began = sequence.began or time.monotonic()
        self.new = [each for each in self.new if each is not sequence]
        self.aside = [batch for batch in self.aside if batch.sequences[0] is not sequence]


def to_put_aside(running: Iterable[Sequence]) -> Sequence:
    """The newest sequence of the client that has most."""
    listed = list(running)
    counts = Counter(sequence.request.client for sequence in listed)
    return max(listed, key=lambda sequence: (counts[sequence.request.client], sequence.number))
