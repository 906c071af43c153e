"""A call that waits for approval in several places at once: the first word counts, and none in time is nobody's."""

from __future__ import annotations

import threading
import time

from poise.agent.person import PendingCall

__all__ = ["ApprovalDecision"]


class ApprovalDecision:
    """What becomes of one call; several threads may wait for it, and settle it.

    Args:
        call: The call.
        number: Number of the decision in its run, from 1.
        seconds: Seconds after which nobody has said anything.

    Attributes:
        call: The call.
        number: Its number.
        approved: Whether it may be made; ``None`` where nobody says so in time, or it is not settled.
        by: The place that settled it; empty while none has.
    """

    def __init__(self, call: PendingCall, number: int, seconds: float) -> None:
        self.call, self.number = call, number
        self.approved: bool | None = None
        self.by = ""
        self._end = time.monotonic() + seconds
        self._lock, self._settled = threading.Lock(), threading.Event()

    @property
    def seconds_left(self) -> float:
        """Seconds until nobody has said anything."""
        return max(self._end - time.monotonic(), 0.0)

    def settle(self, approved: bool | None, by: str) -> bool:
        """Say what becomes of it; whether that was the first word."""
        with self._lock:
            if self.by:
                return False
            self.approved, self.by = approved, by
            self._settled.set()
            return True

    def wait(self, seconds: float) -> bool:
        """Wait at most so long; whether it is settled, by time too."""
        if not self._settled.wait(min(seconds, self.seconds_left)) and not self.seconds_left:
            self.settle(None, "time")
        return self._settled.is_set()
