"""The process of a dashboard: its folder, its threads, a socket, and an orderly end."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn

from poise.dashboard.alert_database import AlertDatabase
from poise.dashboard.dashboard_app import build_dashboard
from poise.dashboard.notifications import AlertNotifier
from poise.dashboard.rules import DashboardSettings
from poise.dashboard.watching import DashboardWatch
from poise.errors import InvalidArgument
from poise.serve.auth import ApiKeys, RequestGate, is_loopback
from poise.serve.http_server import check_address
from poise.serve.request_body import BodyLimits
from poise.storage.lock import locked

__all__ = ["DashboardServer", "check_operators"]

DATABASE = "dashboard.sqlite"


def check_operators(settings: DashboardSettings, keys: ApiKeys, host: str) -> None:
    """Refuse what is not safe, and operators that have no key.

    Raises:
        InvalidArgument: the address can be reached from elsewhere and there is no key, or an operator has none.
    """
    if not is_loopback(host) and not keys:
        raise InvalidArgument(
            f"{host} can be reached from other machines, and there is no key; name a file of keys with `keys`, or "
            "listen on 127.0.0.1."
        )
    if missing := [name for name in settings.operators if keys and name not in keys.names]:
        raise InvalidArgument(
            f"Operators without a key: {', '.join(missing)}; keys are called {', '.join(keys.names)}."
        )


class DashboardServer:
    """A dashboard with its parts. ``run`` in the main thread, or ``start`` and ``stop`` from another.

    Args:
        settings: What is watched and who is notified.
        folder: Folder of its database; no other dashboard may use it meanwhile.
        keys: Keys that may view.
        host: Address to listen on.
        port: Port to listen on; 0 for a free one.

    Raises:
        UserError: a file or an option is wrong; says which.
    """

    def __init__(
        self, settings: DashboardSettings, folder: Path, *, keys: ApiKeys, host: str = "127.0.0.1", port: int = 8100
    ) -> None:
        check_operators(settings, keys, host)
        check_address(host, port)
        self._held = contextlib.ExitStack()
        self._held.enter_context(locked(folder, "dashboard"))
        try:
            self.database = AlertDatabase(folder / DATABASE)
            self.notifier = AlertNotifier(settings, self.database)
            self.watch = DashboardWatch(settings, self.database, channels=self.notifier.channels)
        except BaseException:
            self._held.close()
            raise
        gate = RequestGate(
            app=build_dashboard(self.watch, self.notifier, keys),
            keys=keys,
            limits=BodyLimits(),
            hosts=("localhost", "127.0.0.1", "::1", host) if is_loopback(host) and not keys else (),
        )
        self._gate, self.host = gate, host
        config = uvicorn.Config(
            gate,
            host=host,
            port=port,
            log_level="warning",
            access_log=False,
            server_header=False,
            ws="none",
            lifespan="off",
            limit_concurrency=200,
            timeout_graceful_shutdown=5,
        )
        self.server = uvicorn.Server(config)
        self._thread: threading.Thread | None = None

    def run(self, listening: Callable[[str], None] = lambda address: None) -> None:
        """Serve until a signal ends it.

        Args:
            listening: Called with the address as soon as there is one.
        """
        self.watch.start()
        self.notifier.start()
        notifier = threading.Thread(target=self._say_when_listening, args=(listening,), daemon=True)
        notifier.start()
        main = threading.current_thread() is threading.main_thread()
        before = {s: signal.signal(s, lambda *_: None) for s in (signal.SIGINT, signal.SIGTERM)} if main else {}
        try:
            self.server.run()
        except SystemExit as error:  # uvicorn's, once it has logged why
            raise InvalidArgument(f"Cannot listen on {self.host}; try another `port` or `host`.") from error
        finally:
            self.close()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _say_when_listening(self, listening: Callable[[str], None]) -> None:
        while not self.server.started:
            if self.server.should_exit:
                return
            threading.Event().wait(0.02)
        listening(self.address)

    def start(self) -> str:
        """Serve in a thread of its own; the address, once it listens."""
        self._thread = threading.Thread(target=self.run, name="poise-dashboard-server", daemon=True)
        self._thread.start()
        while not self.server.started:
            if not self._thread.is_alive():
                raise InvalidArgument("Cannot listen; try another `port`.")
            self._thread.join(0.02)
        return self.address

    def stop(self) -> None:
        """As a signal would."""
        self.server.should_exit = True
        if self._thread:
            self._thread.join()

    def close(self) -> None:
        """End the threads and let go of the folder."""
        self.watch.close()
        self.notifier.close()
        self._gate.workers.close()
        self._held.close()

    @property
    def address(self) -> str:
        """Where it listens."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        sockets: Any = self.server.servers[0].sockets
        return f"http://{host}:{sockets[0].getsockname()[1]}"
