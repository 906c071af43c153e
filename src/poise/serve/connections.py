"""Clients that are slow, half gone or too many: time-outs for header and writing, and a limit of connections.

Uvicorn has a time-out for connections that stay open between requests, and none for those that never finish a header or
never read what is written. The body's time-out is the gate's (``poise.serve.auth``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["ConnectionBook", "ConnectionLimits", "GuardedConnection", "possible_limits"]

log = logging.getLogger("poise.serve")

RESERVED_DESCRIPTORS = 32  # for the database, files and the webhook
SPARE = 16  # connections above the limit that are told so, or ask whether the server is alive
SEND_BUFFER = 2**18  # bytes that the system holds for a client that does not read
CloseReason = Literal["header", "write", "evicted", "refused"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """How many clients there may be, and how slow.

    Attributes:
        total: Most connections at once.
        per_address: Most connections at once from one address; behind a proxy all have the proxy's.
        header_seconds: Seconds within which the header of a request must have come.
        body_seconds: Seconds within which its body must have come, and one more for each 64 KiB.
        write_seconds: Seconds that a client may leave an answer unread.
    """

    total: int = 512
    per_address: int = 320
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    write_seconds: float = 30.0


def descriptors_left() -> int | None:
    """Connections that this process can still open beside its files; ``None`` where the system does not say."""
    try:
        import resource

        used = len(list(Path("/proc/self/fd").iterdir()))
    except (ImportError, OSError):
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else max(soft - used - RESERVED_DESCRIPTORS - SPARE, 1)


def possible_limits(limits: ConnectionLimits) -> ConnectionLimits:
    """No more connections than the process may open: without descriptors it could not even refuse them."""
    left = descriptors_left()
    if left is None or left >= limits.total:
        return limits
    log.warning(
        "%d connections are allowed, and this process may open %d files more; it takes %d connections. Raise the limit "
        "of open files (ulimit -n) for more.",
        *(limits.total, left, left),
    )
    return replace(limits, total=left)


class ConnectionBook:
    """All connections of a server. When there are too many, the one that has owed a request longest makes room.

    Args:
        limits: Limits of connections.
        closed: Called with the reason for every connection that is ended from here.
    """

    def __init__(self, limits: ConnectionLimits, closed: Callable[[CloseReason], None] = lambda reason: None) -> None:
        self.limits, self.closed = limits, closed
        self._addresses: dict[GuardedConnection, str] = {}
        self._counts: Counter[str] = Counter()
        self._waiting: dict[GuardedConnection, None] = {}  # those without a request, the longest waiting first

    def __len__(self) -> int:
        return len(self._addresses)

    def admit(self, connection: GuardedConnection, address: str) -> Literal["admitted", "overfull", "refused"]:
        """Take a connection in, for another one where there is no room; ``overfull`` where all others are busy."""
        while self._lacks_room(address) and (oldest := self._longest_waiting(address)):
            oldest.end("evicted")
        if self._lacks_room(address, spare=SPARE):
            return "refused"
        answer: Literal["admitted", "overfull"] = "overfull" if self._lacks_room(address) else "admitted"
        self._addresses[connection] = address
        self._counts[address] += 1
        return answer

    def _lacks_room(self, address: str, *, spare: int = 0) -> bool:
        crowded = self._counts[address] >= self.limits.per_address + spare
        return crowded or len(self) >= self.limits.total + spare

    def _longest_waiting(self, address: str) -> GuardedConnection | None:
        """The one that may go for a newcomer from that address."""
        crowded = self._counts[address] >= self.limits.per_address
        return next((c for c in self._waiting if not crowded or self._addresses[c] == address), None)

    def wait(self, connection: GuardedConnection) -> None:
        """The connection has no request under way from now on."""
        if connection in self._addresses:
            self._waiting.pop(connection, None)
            self._waiting[connection] = None

    def work(self, connection: GuardedConnection) -> None:
        """The connection has a request."""
        self._waiting.pop(connection, None)

    def forget(self, connection: GuardedConnection) -> None:
        """The connection is gone; once is enough."""
        self._waiting.pop(connection, None)
        address = self._addresses.pop(connection, None)
        if address is not None:
            self._counts[address] -= 1
            if not self._counts[address]:
                del self._counts[address]


class GuardedConnection(H11Protocol):
    """Uvicorn's connection with limits.

    Args:
        book: All connections of the server.
        args: Uvicorn's.
        kwargs: Uvicorn's.
    """

    def __init__(self, *args: Any, book: ConnectionBook, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.book = book
        self._header_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there."""
        super().connection_made(transport)
        if connected := transport.get_extra_info("socket"):
            with contextlib.suppress(OSError):  # not every system has each of them
                connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
                connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                unread = round(4000 * self.book.limits.write_seconds)  # ms; counts little that is unread, too
                connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, unread)
        admitted = self.book.admit(self, self.client[0] if self.client else "")
        if admitted == "refused":
            self.end("refused")
            return
        if admitted == "overfull":
            self.app_state = {**self.app_state, "overfull": True}
        self._await_request()

    def data_received(self, data: bytes) -> None:
        """Some bytes have come."""
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self._has_request:
            _cancel(self._header_timer)
            self.book.work(self)

    def on_response_complete(self) -> None:
        """An answer has been written; the next request may be here already."""
        super().on_response_complete()
        if not self._has_request:
            self._await_request()

    def pause_writing(self) -> None:
        """The client leaves unread what has been written."""
        super().pause_writing()
        self._begin_write_timer()

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        _cancel(self._write_timer)
        self._write_timer = None

    def timeout_keep_alive_handler(self) -> None:
        """No further request has come."""
        super().timeout_keep_alive_handler()
        self._begin_write_timer()  # closing waits for the client to read the last answer

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        _cancel(self._header_timer)
        _cancel(self._write_timer)
        self.book.forget(self)
        super().connection_lost(exc)

    def end(self, reason: CloseReason) -> None:
        """Close at once, whatever is still to be written."""
        self.book.forget(self)
        self.book.closed(reason)
        self.transport.abort()

    @property
    def _has_request(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _await_request(self) -> None:
        if self.transport.is_closing():
            self._begin_write_timer()
            return
        self.book.wait(self)
        _cancel(self._header_timer)
        self._header_timer = self.loop.call_later(self.book.limits.header_seconds, self.end, "header")

    def _begin_write_timer(self) -> None:
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self.book.limits.write_seconds, self.end, "write")


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
