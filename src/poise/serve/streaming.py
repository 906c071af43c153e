"""Streams and long answers over HTTP: what notices that the client has gone, and says that the server has not."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, TypeVar

from fastapi import Request
from fastapi.sse import EventSourceResponse

from poise.serve.exchange import CompletionExchange

__all__ = ["ExchangeStream", "unless_hung_up", "with_signs_of_life"]

QUIET = 15.0  # seconds without a chunk after which a stream says that it is alive
Result = TypeVar("Result")


async def unless_hung_up(request: Request, work: asyncio.Future[Result]) -> Result | None:
    """What the work gives; nothing, and the work is cancelled, where the client goes before."""
    gone = asyncio.ensure_future(_hung_up(request))
    both: set[asyncio.Future[Any]] = {work, gone}
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        return work.result() if work.done() else None
    finally:
        gone.cancel()
        work.cancel()


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class ExchangeStream(EventSourceResponse):
    """Gives the slots back however it ends, also where the client is gone before the first chunk."""

    def __init__(self, exchange: CompletionExchange, chunks: AsyncIterator[bytes], headers: dict[str, str]) -> None:
        super().__init__(chunks, headers={**headers, "X-Accel-Buffering": "no"})  # which nginx would hold back
        self.exchange = exchange

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send the stream."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.exchange.close()


async def with_signs_of_life(steps: Any) -> AsyncIterator[Any]:
    """The steps, and ``None`` after every while without one."""
    upcoming = asyncio.ensure_future(anext(steps, StopAsyncIteration))
    try:
        while True:
            done, _ = await asyncio.wait({upcoming}, timeout=QUIET)
            if not done:
                yield None
                continue
            step = upcoming.result()
            if step is StopAsyncIteration:
                return
            yield step
            upcoming = asyncio.ensure_future(anext(steps, StopAsyncIteration))
    finally:
        upcoming.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await upcoming
