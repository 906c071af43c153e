"""How many of a finite number have something, from a sample of them drawn without replacement."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["count_interval"]


def count_interval(present: int, sampled: int, total: int, *, level: float = 0.95) -> tuple[int, int]:
    """The exact interval of how many of ``total`` have it, where ``present`` of ``sampled`` do.

    Every number that the hypergeometric distribution does not rule out at half of ``1 - level`` on either side
    (Clopper and Pearson's argument; Buonaccorsi 1987 for finite populations). A census gives one number, and no
    sample gives all.
    """
    from scipy.stats import hypergeom

    tail = (1 - level) / 2
    fewest, most = present, total - (sampled - present)
    low = _first(fewest, most, lambda count: float(hypergeom.sf(present - 1, total, count, sampled)) > tail)
    high = _first(low, most, lambda count: float(hypergeom.cdf(present, total, count + 1, sampled)) <= tail)
    return low, high


def _first(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The lowest number from which on a condition holds; ``high`` where it does below that nowhere."""
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low
