"""What a request meets before any route: size and depth limits, keys, where it comes from, and headers on the way out.

Pure ASGI, so that streams pass through. Nothing of a request's body or of a key is logged.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from poise.errors import InvalidArgument, RequestError, why_unread
from poise.serve.guardrail_route import aws_error
from poise.serve.request_body import BodyLimits, check_body
from poise.serve.request_workers import RequestWorkers

__all__ = ["VECTORS_FORBIDDEN", "ApiKeys", "RequestGate", "file_version", "is_loopback"]

log = logging.getLogger("poise.serve")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = re.compile(r"/|/page/.*|/healthz|/readyz")
HEADERS = {
    "content-security-policy": (
        "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "object-src 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}
VECTORS_FORBIDDEN = "This key may not change vectors; `may_change_vectors` in the server's policy lets it."
CLIENT_HEADERS = re.compile(
    r"accept|accept-language|authorization|content-type|http-referer|idempotency-key|openai-[a-z-]+|user-agent|"
    r"x-poise-session|x-request-id|x-stainless-[a-z-]+|x-title"
)
"""Headers that OpenAI's clients and those built on them send, from a page too."""
EXPOSED_HEADERS = "x-request-id, x-poise-session, retry-after, retry-after-ms, " + ", ".join(
    f"x-ratelimit-{what}-{kind}" for what in ("limit", "remaining", "reset") for kind in ("requests", "tokens")
)
BYTES_A_SECOND = 2**16  # by which a body may take longer
SECONDS_BETWEEN_LOOKS = 1.0  # at the key file
MIN_KEY_LENGTH = 16  # characters


class ApiKeys:
    """Who may ask. Only digests are kept, and comparing takes equally long whoever asks.

    Args:
        named: Key by name.
        file: File that they came from; looked at again once a second at most, and read again once it has changed.
    """

    def __init__(self, named: Mapping[str, str], *, file: Path | None = None) -> None:
        self._digests = {name: _digest(key) for name, key in named.items()}
        self._file, self._version, self._looked = file, file_version(file), time.monotonic()

    def __bool__(self) -> bool:
        return bool(self._digests)

    @property
    def names(self) -> list[str]:
        """Names of all keys."""
        return list(self._digests)

    def find(self, authorization: str | None) -> str | None:
        """The name of the key in an ``Authorization`` header, or ``None``."""
        self._reload()
        scheme, _, key = (authorization or "").partition(" ")
        digest = _digest(key.strip() if scheme.lower() == "bearer" else "")
        names = [name for name, known in self._digests.items() if hmac.compare_digest(digest, known)]
        return names[0] if names else None

    def _reload(self) -> None:
        """Take the keys of a file that has changed; where it is faulty, go on with those that there were."""
        if self._file is None or time.monotonic() < self._looked + SECONDS_BETWEEN_LOOKS:
            return
        self._looked = time.monotonic()
        if (version := file_version(self._file)) == self._version:
            return
        self._version = version
        try:
            self._digests = ApiKeys.read(self._file)._digests
        except InvalidArgument as error:
            log.error("%s The keys are those from before.", error)
        else:
            log.warning("The key file %s has changed: %d keys.", self._file, len(self._digests))

    def replace(self, keys: ApiKeys) -> None:
        """Take these keys in place of those that there are."""
        self._version, self._digests = keys._version, keys._digests

    @classmethod
    def read(cls, path: Path | None) -> ApiKeys:
        """From a file with a ``name key`` or a bare key a line; ``#`` begins a comment.

        Raises:
            InvalidArgument: not there, empty, or a key too short; never says a key.
        """
        if path is None:
            return cls({})
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidArgument(f"Cannot read the key file {path}: {why_unread(error)}; check it.") from error
        named: dict[str, str] = {}
        for number, line in enumerate(lines, 1):
            words = line.split("#")[0].split()
            if not words:
                continue
            name, key = words if len(words) == 2 else (f"key-{number}", words[0])
            if len(words) > 2 or len(key) < MIN_KEY_LENGTH or name in named:
                raise InvalidArgument(
                    f"Line {number} of the key file {path} is not `NAME KEY` with a name of its own and a key of at "
                    f"least {MIN_KEY_LENGTH} characters; fix it."
                )
            named[name] = key
        if not named:
            raise InvalidArgument(f"The key file {path} has no key; write one a line.")
        return cls(named, file=path)


def file_version(file: Path | None) -> tuple[int, int, int] | None:
    """What changes with a file; ``None`` where there is none."""
    try:
        facts = file.stat() if file else None
    except OSError:
        return None
    return facts and (facts.st_ino, facts.st_size, facts.st_mtime_ns)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there."""
    return host == "localhost" or host == "::1" or bool(re.fullmatch(r"127(\.\d{1,3}){3}", host))


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestGate:
    """The first to see a request and the last to see its answer.

    Attributes:
        app: What is behind.
        keys: None at all lets everybody in who comes from this machine.
        limits: Limits of request bodies.
        workers: Threads that check them.
        may_upload: Whether a key may upload vectors, asked before a body is read.
        origins: Origins whose pages may send requests, besides this server's own.
        hosts: Names that the server may be called by; empty for any. Without a key this keeps out pages whose
            name was pointed at this machine.
    """

    app: App
    keys: ApiKeys
    limits: BodyLimits = field(default_factory=BodyLimits)
    workers: RequestWorkers = field(default_factory=RequestWorkers)
    may_upload: Callable[[str | None], bool] = lambda key: False
    origins: Sequence[str] = ()
    hosts: Sequence[str] = ()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request through, or answer it here."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
        guarded = self._with_headers(send, headers)
        try:
            if self._is_preflight(scope, headers):
                await _send_response(guarded, 204, b"", {})
                return
            self._admit(scope, headers)
            body = await self._body(scope, headers, receive)
        except RequestError as refused:
            extra = {"www-authenticate": "Bearer"} if refused.status == 401 else {}
            refusal, more = aws_error(scope["path"], refused)
            await _send_response(guarded, refused.status, json.dumps(refusal).encode(), more | extra)
            return
        except ConnectionError:
            return
        await self.app(scope, _replay(body, receive), guarded)

    def _is_preflight(self, scope: Scope, headers: Mapping[str, str]) -> bool:
        asks = scope["method"] == "OPTIONS" and "access-control-request-method" in headers
        return asks and headers.get("origin") in self.origins

    def _admit(self, scope: Scope, headers: Mapping[str, str]) -> None:
        host = urlsplit(f"//{headers.get('host', '')}").hostname if _is_host(headers.get("host", "")) else None
        if self.hosts and host not in self.hosts:
            raise RequestError(
                421, "This server is not called that; use the name that it was started with.", code="host"
            )
        origin = headers.get("origin")
        if origin is not None and origin not in self.origins and urlsplit(origin).netloc != headers.get("host"):
            raise RequestError(403, "Pages of another origin may not ask; name it with `cors`.", code="origin")
        if scope.get("state", {}).get("overfull") and not OPEN.fullmatch(scope["path"]):
            raise RequestError(
                503,
                "There are as many connections as this server takes; try again in a few seconds.",
                code="too_many_connections",
                headers={"Retry-After": "5", "Connection": "close"},
            )
        key = self.keys.find(headers.get("authorization"))
        scope["state"] = {**scope.get("state", {}), "key": key}
        if self.keys and key is None and not OPEN.fullmatch(scope["path"]):
            raise RequestError(
                401, "The key is missing or wrong; send `Authorization: Bearer KEY`.", code="invalid_api_key"
            )

    async def _body(self, scope: Scope, headers: Mapping[str, str], receive: Receive) -> bytes:
        upload = scope["path"] == "/v1/poise/vectors" and scope["method"] == "POST"
        if upload and not self.may_upload(scope["state"]["key"]):
            raise RequestError(403, VECTORS_FORBIDDEN, code="vectors_forbidden")
        if (coding := headers.get("content-encoding", "").strip().lower()) not in ("", "identity"):
            text = f"The body is compressed ({coding[:40]}), which is not taken; send it without Content-Encoding."
            raise RequestError(415, text, code="content_encoding")
        most = self.limits.upload if upload else self.limits.body
        length = headers.get("content-length", "")
        if length.isdecimal() and (len(length) > 15 or int(length) > most):
            raise RequestError(413, f"The body has {length} bytes; at most {most} are taken.", code="too_large")
        parts: list[bytes] = []
        size, more, loop = 0, True, asyncio.get_running_loop()
        began = loop.time()
        while more:
            try:
                async with asyncio.timeout_at(began + self.limits.seconds + size / BYTES_A_SECOND):
                    message = await receive()
            except TimeoutError as error:
                raise RequestError(
                    408,
                    f"The body did not come in time: {size} bytes in {loop.time() - began:.0f} s. Send it faster.",
                    code="body_timeout",
                    headers={"Connection": "close"},
                ) from error
            if message["type"] == "http.disconnect":
                raise ConnectionError
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > most:
                raise RequestError(
                    413, f"The body has more than {most} bytes, which is all that is taken.", code="too_large"
                )
            more = message.get("more_body", False)
        body = b"".join(parts)
        if not upload and body:
            await self.workers.run(partial(check_body, body, self.limits), size=size)
        return body

    def _with_headers(self, send: Send, headers: Mapping[str, str]) -> Send:
        added, origin = {**HEADERS, "x-request-id": _request_id(headers.get("x-request-id", ""))}, headers.get("origin")
        if origin is not None and origin in self.origins:
            requested = headers.get("access-control-request-headers", "").lower().split(",")
            allowed = [name for name in map(str.strip, requested) if CLIENT_HEADERS.fullmatch(name)]
            added |= {
                "access-control-allow-origin": origin,
                "access-control-allow-headers": ", ".join(dict.fromkeys(["authorization", "content-type", *allowed])),
                "access-control-allow-methods": "GET, HEAD, POST, DELETE",
                "access-control-expose-headers": EXPOSED_HEADERS,
                "access-control-max-age": "600",
                "vary": "origin, access-control-request-headers",
            }

        async def guarded(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                there = {k.lower() for k, _ in message.get("headers", [])}
                more = [(k.encode(), v.encode()) for k, v in added.items() if k.encode() not in there]
                message = {**message, "headers": [*message.get("headers", []), *more]}
            await send(message)

        return guarded


def _request_id(given: str) -> str:
    """The client's own, where it is one that can stand in a log; else a new one."""
    return given if re.fullmatch(r"[A-Za-z0-9._:-]{1,128}", given) else f"req_{secrets.token_hex(16)}"


def _is_host(text: str) -> bool:
    return bool(re.fullmatch(r"[A-Za-z0-9.\-]+(:\d+)?|\[[0-9A-Fa-f:.]+\](:\d+)?", text))


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body that has been read, and after it what the server itself says, such as that the client is gone."""
    sent = False

    async def replayed() -> MutableMapping[str, Any]:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


async def _send_response(send: Send, status: int, body: bytes, headers: Mapping[str, str]) -> None:
    listed = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    raw = [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in listed.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
