"""Receives the alarms of `poise serve` and prints those whose signature is right; nothing but Python is needed.

    POISE_WEBHOOK_SECRET="whsec_..." python webhook_receiver.py 8080

The standardwebhooks library does the same: `Webhook(secret).verify(body, headers)`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import sys
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOLERANCE = 300  # seconds that the clocks may differ, and for which an old post may be sent again by somebody
LARGEST = 2**20  # bytes


class WrongSignature(Exception):
    """The post is not from who has the secret, or it is an old one."""


def verify(secret: str, headers: Mapping[str, str], body: bytes, *, now: float | None = None) -> None:
    """Raise unless the post was signed with the secret, lately."""
    name, sent = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not sent.isdecimal() or abs((time.time() if now is None else now) - int(sent)) > TOLERANCE:
        raise WrongSignature("the time is missing or too far from now")
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.new(key, f"{name}.{sent}.".encode() + body, hashlib.sha256).digest()
    expected = f"v1,{base64.b64encode(digest).decode()}"
    signatures = headers.get("webhook-signature", "").split()  # two while a secret is changed
    if not any(hmac.compare_digest(signature.encode(), expected.encode()) for signature in signatures):
        raise WrongSignature("no signature fits")


class Receiver(BaseHTTPRequestHandler):
    """Answers a post that it takes with 204; any other answer has the server try again."""

    secret = os.environ.get("POISE_WEBHOOK_SECRET", "")
    seen: dict[str, None] = {}  # noqa: RUF012 (all posts of this process): a post that was taken may come again

    def do_POST(self) -> None:
        """One alarm."""
        length = self.headers.get("content-length", "")
        if not length.isdecimal() or int(length) > LARGEST:
            self.send_error(413)
            return
        body = self.rfile.read(int(length))
        try:
            verify(self.secret, self.headers, body)
        except WrongSignature as error:
            self.send_error(401, str(error))
            return
        self.send_response(204)
        self.end_headers()
        if self.headers["webhook-id"] not in self.seen:
            self.seen[self.headers["webhook-id"]] = None
            alarm = json.loads(body)
            print("alarm:", alarm["trait"], alarm["reading"], f"{alarm['value']:.2f}", alarm["action"], flush=True)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing of posts that were refused."""


if __name__ == "__main__":
    if not Receiver.secret:
        sys.exit("Set POISE_WEBHOOK_SECRET to the secret that `poise serve` signs with.")
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1]) if sys.argv[1:] else 8080), Receiver).serve_forever()
