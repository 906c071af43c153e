"""Alarms to somebody's address, signed and tried again while it does not answer; no request ever waits for it.

Signatures are those of Standard Webhooks (standardwebhooks.com): HMAC-SHA256 of id, time and body, which its libraries
verify in every language. ``deploy/webhook_receiver.py`` does it with nothing but Python.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import hmac
import json
import logging
import os
import queue
import random
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from poise.errors import InvalidArgument, why_unread

__all__ = ["Webhook", "read_webhook", "read_webhook_secrets", "webhook_signature"]

log = logging.getLogger("poise.serve")

MAX_TRIES = 6
FIRST_PAUSE = 1.0  # seconds; each next one is twice as long
LONGEST_PAUSE = 60.0  # seconds that a receiver's Retry-After may ask for
MAX_WAITING = 1000  # alarms that wait at most
SECRET_VARIABLE = "POISE_WEBHOOK_SECRET"
WHSEC = "whsec_"
SECRET_BYTES = (24, 64)  # fewest and most, after the standard


@dataclass(kw_only=True)
class Webhook:
    """Posts each alarm as JSON to an address.

    Attributes:
        url: Address to post to; an answer of 2xx counts as sent.
        secrets: Keys that each post is signed with; several while receivers change from one to the next.
        pause: Seconds before the second try; twice as long before each next one.
        sent: Alarms that were taken.
        lost: Alarms that were given up.
        failures: Tries that failed.
    """

    url: str
    secrets: Sequence[bytes] = field(default=(), repr=False)
    pause: float = FIRST_PAUSE
    sent: int = 0
    lost: int = 0
    failures: int = 0
    _queue: queue.Queue[dict[str, Any] | None] = field(default_factory=lambda: queue.Queue(MAX_WAITING))
    _closing: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._run, name="poise-webhook", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Alarms that have not been posted."""
        return self._queue.qsize()

    def put(self, alarm: dict[str, Any]) -> None:
        """Take an alarm; it is given up where too many wait."""
        try:
            self._queue.put_nowait(alarm)
        except queue.Full:
            self._lose("%d alarms wait for the webhook already, and one more is given up (%d so far).", MAX_WAITING)

    def close(self, wait: float = 5.0) -> None:
        """Try each alarm that waits once more at most, and end."""
        self._closing.set()
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(None)
        self._thread.join(wait)

    def _run(self) -> None:
        with httpx.Client(timeout=5.0, follow_redirects=False) as client:
            while (alarm := self._queue.get()) is not None:
                if self._send(client, f"msg_{secrets.token_hex(12)}", json.dumps(alarm).encode()):
                    self.sent += 1
                else:
                    self._lose("An alarm could not be told to the webhook in %d tries (%d so far).", MAX_TRIES)

    def _send(self, client: httpx.Client, name: str, body: bytes) -> bool:
        pause = self.pause
        for _ in range(MAX_TRIES):
            waits = pause * random.uniform(0.75, 1.25)  # so that servers that failed together do not return together
            try:
                answer = client.post(self.url, content=body, headers=self._headers(name, body))
                if answer.is_success:
                    return True
                waits = max(waits, _retry_after(answer))
                log.info("The webhook answered with %d.", answer.status_code)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                log.info("The webhook does not answer (%s).", type(error).__name__)
            self.failures += 1
            if self._closing.wait(waits):
                return False
            pause *= 2
        return False

    def _headers(self, name: str, body: bytes) -> dict[str, str]:
        sent = str(int(time.time()))
        headers = {"content-type": "application/json", "webhook-id": name, "webhook-timestamp": sent}
        signatures = [webhook_signature(secret, name, sent, body) for secret in self.secrets]
        return headers | ({"webhook-signature": " ".join(signatures)} if signatures else {})

    def _lose(self, text: str, number: int) -> None:
        self.lost += 1
        if self.lost in (1, 10, 100) or self.lost % 1000 == 0:
            log.warning(text, number, self.lost)


def webhook_signature(secret: bytes, name: str, sent: str, body: bytes) -> str:
    """The signature of one post: of its id, the seconds since 1970 at which it was sent, and its body."""
    digest = hmac.new(secret, f"{name}.{sent}.".encode() + body, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


def _retry_after(answer: httpx.Response) -> float:
    text = answer.headers.get("retry-after", "")
    return min(float(text), LONGEST_PAUSE) if text.isdecimal() else 0.0


def read_webhook(url: str | None, file: Path | None) -> str | None:
    """The address that alarms are posted to, which may be a secret: no message has it.

    Raises:
        InvalidArgument: it comes from both, its file cannot be read, or it is no address.
    """
    if url and file:
        raise InvalidArgument("There are two addresses, in `webhook` and in `webhook_file`; give one.")
    if file:
        url = _file_text(file, "webhook_file").strip()
    where = f"the address in {file}" if file else "`webhook`"
    if (url or file) and (not url or not _is_address(url)):
        raise InvalidArgument(f"{where[:1].upper()}{where[1:]} has to begin with http:// or https://; fix it.")
    return url or None


def _is_address(url: str) -> bool:
    try:
        return bool(httpx.URL(url).host) and url.startswith(("http://", "https://")) and len(url.split()) == 1
    except httpx.InvalidURL:
        return False


def read_webhook_secrets(file: Path | None) -> tuple[bytes, ...]:
    """The keys that alarms are signed with, of a file or else of the environment; no message has them.

    Args:
        file: File with a secret a line, ``whsec_`` and base64; the first line that is not empty is the newest.

    Raises:
        InvalidArgument: the file cannot be read, or has something else.
    """
    text = _file_text(file, "webhook_secret_file") if file else os.environ.get(SECRET_VARIABLE, "")
    where = str(file) if file else SECRET_VARIABLE
    read = tuple(_secret(line.strip(), where) for line in text.splitlines() if line.strip())
    if file and not read:
        raise InvalidArgument(f"There is no secret in {where}; write `{WHSEC}` and 32 random bytes in base64 there.")
    return read


def _secret(line: str, where: str) -> bytes:
    least, most = SECRET_BYTES
    try:
        secret = base64.b64decode(line.removeprefix(WHSEC), validate=True) if line.startswith(WHSEC) else b""
    except (binascii.Error, ValueError):
        secret = b""
    if not least <= len(secret) <= most:
        raise InvalidArgument(
            f"A line of {where} is not `{WHSEC}` and {least} to {most} bytes in base64, which signatures are made "
            f'with; make one by `echo "{WHSEC}$(openssl rand -base64 32)"`.'
        )
    return secret


def _file_text(file: Path, argument: str) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"Cannot read `{argument}` {file}: {why_unread(error)}; check it.") from error
