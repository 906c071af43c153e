"""Threads for work on the texts of requests, so that the event loop only passes messages on.

A body of some megabytes has a thread of its own to wait for, so that small requests never stand behind it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["RequestWorkers"]

LARGE = 2**16  # characters from which a request waits with the large ones
WorkResult = TypeVar("WorkResult")


class RequestWorkers:
    """Two threads for small requests, one for large ones, and more for what waits for the model or another server.

    Where requests wait, large ones have threads of their own too: small ones wait for none of them, however many there
    are.
    """

    def __init__(self) -> None:
        self._small = ThreadPoolExecutor(2, thread_name_prefix="poise-requests")
        self._large = ThreadPoolExecutor(1, thread_name_prefix="poise-large-requests")
        self._waiting = ThreadPoolExecutor(32, thread_name_prefix="poise-waiting-requests")
        self._large_waiting = ThreadPoolExecutor(4, thread_name_prefix="poise-large-waiting-requests")

    async def run(self, work: Callable[[], WorkResult], *, size: int = 0, waits: bool = False) -> WorkResult:
        """What the work gives, done beside the event loop.

        Args:
            work: Anything that takes a time that grows with a request.
            size: Characters or items that it is about.
            waits: Whether it waits for others most of the time.
        """
        if size >= LARGE:
            pool = self._large_waiting if waits else self._large
        else:
            pool = self._waiting if waits else self._small
        return await asyncio.get_running_loop().run_in_executor(pool, work)

    def close(self) -> None:
        """Take no more work."""
        for pool in (self._small, self._large, self._waiting, self._large_waiting):
            pool.shutdown(wait=False, cancel_futures=True)
