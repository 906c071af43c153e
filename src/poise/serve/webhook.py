"""Alarms to somebody's address, tried again while it does not answer; no request ever waits for it."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from poise.errors import InvalidArgument

__all__ = ["Webhook", "read_webhook"]

log = logging.getLogger("poise.serve")

MAX_TRIES = 6
FIRST_PAUSE = 1.0  # seconds; each next one is twice as long
MAX_WAITING = 1000  # alarms that wait at most


@dataclass(kw_only=True)
class Webhook:
    """Posts each alarm as JSON to an address.

    Attributes:
        url: Address to post to; an answer of 2xx counts as sent.
        pause: Seconds before the second try; twice as long before each next one.
        sent: Alarms that were taken.
        lost: Alarms that were given up.
    """

    url: str
    pause: float = FIRST_PAUSE
    sent: int = 0
    lost: int = 0
    _queue: queue.Queue[dict[str, Any] | None] = field(default_factory=lambda: queue.Queue(MAX_WAITING))
    _closing: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._run, name="poise-webhook", daemon=True)
        self._thread.start()

    def put(self, alarm: dict[str, Any]) -> None:
        """Take an alarm; it is given up where too many wait."""
        try:
            self._queue.put_nowait(alarm)
        except queue.Full:
            self.lost += 1

    def close(self, wait: float = 5.0) -> None:
        """Try each alarm that waits once more at most, and end."""
        self._closing.set()
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(None)
        self._thread.join(wait)

    def _run(self) -> None:
        with httpx.Client(timeout=5.0, follow_redirects=False) as client:
            while (alarm := self._queue.get()) is not None:
                if self._send(client, alarm):
                    self.sent += 1
                else:
                    self.lost += 1

    def _send(self, client: httpx.Client, alarm: dict[str, Any]) -> bool:
        pause = self.pause
        for _ in range(MAX_TRIES):
            try:
                if client.post(self.url, json=alarm).is_success:
                    return True
            except httpx.HTTPError as error:
                log.info("The webhook does not answer (%s).", type(error).__name__)
            if self._closing.wait(pause):
                return False
            pause *= 2
        log.warning("An alarm could not be told to the webhook in %d tries.", MAX_TRIES)
        return False


def read_webhook(url: str | None, file: Path | None) -> str | None:
    """The address that alarms are posted to, which may be a secret: no message has it.

    Raises:
        InvalidArgument: it comes from both, its file cannot be read, or it is no address.
    """
    if url and file:
        raise InvalidArgument("There are two addresses, in `webhook` and in `webhook_file`; give one.")
    if file:
        try:
            url = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidArgument(f"Cannot read `webhook_file` {file} ({type(error).__name__}); check it.") from error
    where = f"the address in {file}" if file else "`webhook`"
    if (url or file) and (not url or not url.startswith(("http://", "https://")) or len(url.split()) > 1):
        raise InvalidArgument(f"{where[:1].upper()}{where[1:]} has to begin with http:// or https://; fix it.")
    return url or None
