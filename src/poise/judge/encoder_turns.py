"""Who may use the sentence encoder next, where a server's threads want it at once.

Every reader takes the encoder for a short part of its text at a time and says how much it has left. The one with least
left goes next, so that a small text waits for the part that is being read and not for what a large one has left; every
fourth turn goes to whoever has waited longest, so that small ones without end do not hold up a large one for good.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

__all__ = ["ENCODER_TURNS", "EncoderTurns"]

OLDEST_EVERY = 4  # turns


@dataclass(slots=True, eq=False)
class _WaitingReader:
    left: int
    may_go: threading.Event = field(default_factory=threading.Event)


class EncoderTurns:
    """Gives readers the encoder one after the other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[_WaitingReader] = []  # longest first
        self._taken = False
        self._handed_on = 0

    @property
    def waiting(self) -> int:
        """Number of readers that wait for their turn."""
        return len(self._waiting)

    @contextlib.contextmanager
    def turn(self, left: int) -> Iterator[None]:
        """Wait for the encoder, and have it until the block ends.

        Args:
            left: Characters that the reader has still to read, this turn's included.
        """
        reader = None
        with self._lock:
            if self._taken:
                reader = _WaitingReader(left)
                self._waiting.append(reader)
            self._taken = True
        if reader:
            reader.may_go.wait()
        try:
            yield
        finally:
            self._hand_on()

    def _hand_on(self) -> None:
        """Wake the next reader; nobody else can take the turn before it."""
        with self._lock:
            if not self._waiting:
                self._taken = False
                return
            self._handed_on += 1
            oldest = self._handed_on % OLDEST_EVERY == 0
            reader = self._waiting[0] if oldest else min(self._waiting, key=lambda each: each.left)
            self._waiting.remove(reader)
        reader.may_go.set()


ENCODER_TURNS = EncoderTurns()
"""Those of this process's encoder."""
