"""Uvicorn's server with an orderly end, and what the system's service manager is told of it.

At a signal the server goes on listening until its answers are over, so that whoever comes meanwhile is told to come
again, and probes see that it is not ready. A second signal ends everything at once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import uvicorn

from poise.errors import InvalidArgument
from poise.serve.scheduler import Scheduler

__all__ = ["DrainingServer", "check_address", "has_terminal", "tell_systemd"]

FLUSH_SECONDS = 5.0  # in which the last words of streams are written


def check_address(host: str, port: int) -> None:
    """Check that nothing else listens there, before a model is loaded.

    Raises:
        InvalidArgument: it is taken, is not this machine's, or may not be listened on.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            if os.name == "posix":
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as asyncio does
            probe.bind(address)
    except (OSError, UnicodeError) as error:
        raise InvalidArgument(
            f"Cannot listen on {host}:{port} ({_system_reason(error)}); try another `port` or `host`."
        ) from error


def _system_reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or type(error).__name__


def tell_systemd(state: str) -> None:
    """Tell the service manager that started this process, if any, what the process does (``sd_notify``)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address.startswith(("/", "@")):
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.sendto(state.encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)


def has_terminal() -> bool:
    """Whether the process was started in a terminal that is still there."""
    return any(os.isatty(number) for number in (0, 2))


def _is_no_refused_address(record: logging.LogRecord) -> bool:
    """Uvicorn logs the system's words for a port that is taken; whoever called ``run`` gets a sentence."""
    return not isinstance(record.msg, OSError)


class DrainingServer(uvicorn.Server):
    """Uvicorn's, which at a signal takes no more requests for answers and ends what still runs after the grace.

    Args:
        config: Uvicorn's.
        scheduler: Scheduler whose answers are let end.
        grace: Seconds that they are given.
    """

    def __init__(self, config: uvicorn.Config, scheduler: Scheduler, grace: float) -> None:
        config.timeout_graceful_shutdown = round(FLUSH_SECONDS)
        super().__init__(config)
        self.scheduler, self.grace = scheduler, grace
        self.listening: Callable[[], None] = lambda: None
        self._signal: tuple[int, Any] | None = None
        self._end = 0.0

    async def startup(self, sockets: Any = None) -> None:
        """Listen."""
        log = logging.getLogger("uvicorn.error")
        log.addFilter(_is_no_refused_address)
        try:
            await super().startup(sockets)
        finally:
            log.removeFilter(_is_no_refused_address)
        self.listening()
        tell_systemd("READY=1")

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to end now."""
        if self._signal and not self.should_exit and (self.scheduler.idle or time.monotonic() >= self._end):
            self.scheduler.stop(0)
            super().handle_exit(*self._signal)
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """At a signal: the first lets answers end, the second does not."""
        if self._signal:
            self.scheduler.stop(0)
            super().handle_exit(sig, frame)
            return
        self._signal, self._end = (sig, frame), time.monotonic() + self.grace
        tell_systemd("STOPPING=1")
        self.scheduler.drain()
        timer = threading.Timer(self.grace, self.scheduler.stop)  # also where the event loop is held up
        timer.daemon = True
        timer.start()
