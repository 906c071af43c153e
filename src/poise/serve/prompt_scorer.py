"""Texts of requests that are scored by the model, a pass between two steps of the answers that run."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from poise.engine.prompt_scores import PromptScoring
from poise.errors import RequestError
from poise.serve.scheduler import NEVER, Scheduler

__all__ = ["PromptScorer"]


class PromptScorer:
    """Runs scorings pass by pass in turn, so that a long one never holds up answers or other scorings for long.

    Args:
        scheduler: Scheduler whose thread owns the model.
        most: Most requests that are scored or wait for it; one key may have half of them.
    """

    def __init__(self, scheduler: Scheduler, *, most: int = 64) -> None:
        self.scheduler, self.most = scheduler, most
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="poise-scores")
        self._open: Counter[str | None] = Counter()

    def admit(self, key: str | None) -> None:
        """Count a request in, which ``release`` counts out; on the event loop.

        Raises:
            RequestError: 429 where too many are there.
        """
        most = max(self.most // 2, 1) if key is not None else self.most
        if self._open.total() >= self.most or self._open[key] >= most:
            raise RequestError(
                429,
                f"{self._open.total()} requests are being scored, and {self.most} may ({most} of one key); try again.",
                code="queue_full",
                headers={"Retry-After": "2"},
            )
        self._open[key] += 1

    def release(self, key: str | None) -> None:
        """A request that was admitted is over."""
        self._open[key] -= 1

    async def run(self, scoring: PromptScoring, *, deadline: float = NEVER) -> None:
        """Score all texts; cancelling it ends it after the pass that runs.

        Args:
            scoring: What is to be read.
            deadline: Time on the monotonic clock at which it ends with an error.

        Raises:
            RequestError: 504 after the deadline; 503 when shutting down.
        """
        loop = asyncio.get_running_loop()
        while not scoring.done:
            if time.monotonic() > deadline:
                raise RequestError(504, "The prompt's scores took longer than allowed here.", code="deadline_exceeded")
            await loop.run_in_executor(self._pool, self.scheduler.call, scoring.advance)
