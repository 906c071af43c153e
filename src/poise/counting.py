"""A number with its noun: "1 file", "2 files", "1,000 entries"."""

from __future__ import annotations

__all__ = ["counted"]


def counted(n: int, noun: str, plural: str = "") -> str:
    """How many there are, in words.

    Args:
        n: How many.
        noun: What one of them is called.
        plural: What several are called, where that is not the noun with an s.
    """
    return f"{n:,} {noun if n == 1 else plural or f'{noun}s'}"
