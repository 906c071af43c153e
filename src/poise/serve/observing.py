"""What is told of each request once it is over: counters, a line of the access log, a trace. Never what it says.

The observer stands before everything else, so that what the gate refuses is counted too.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, MutableMapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from poise.engine import EngineOutput
from poise.errors import RequestError
from poise.serve.requests import OpenAIRequest
from poise.serve.responses import iso
from poise.steer import SteeringExpression

if TYPE_CHECKING:
    from poise.serve.exchange import CompletionExchange

__all__ = ["AnswerTimes", "RequestObserver", "RequestRecord", "named_session", "note_exchange", "steering_names"]

SESSION_HEADER = b"x-poise-session"
TAKEN_HEADERS = frozenset({b"traceparent", b"tracestate", SESSION_HEADER})
LONGEST_SESSION = 200  # characters
PULSE = frozenset({"/healthz", "/readyz", "/metrics"})
"""Routes that machines ask every few seconds: logged only where they fail."""
ERROR_CODE = re.compile(rb'"code": ?"(\w+)"')
TRACEPARENT = re.compile(r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")


@dataclass(slots=True, kw_only=True)
class RequestRecord:
    """A request as it is told of.

    Attributes:
        began: Time on the monotonic clock at which it came.
        time: The same in seconds since 1970.
        method: Its method.
        client: Address that it came from; behind a proxy that is trusted, the one that the proxy names.
        traceparent: The caller's place in a trace, after W3C's Trace Context; empty without one.
        tracestate: What belongs to it.
        route: Address as the API's description has it; ``none`` for one that there is not.
        status: Status of the answer; 0 where the client was gone before it.
        request_id: Id in the answer's ``X-Request-Id``.
        key: Name of its key.
        error: Code of the error that it was answered with.
        session: Run that its header names; empty without one.
        exchange: The answers, where it asked for some.
        seconds: Seconds from its coming to the end of its answer.
    """

    began: float = field(default_factory=time.monotonic)
    time: float = field(default_factory=time.time)
    method: str = ""
    client: str | None = None
    traceparent: str = ""
    tracestate: str = ""
    route: str = "none"
    status: int = 0
    request_id: str | None = None
    key: str | None = None
    error: str | None = None
    session: str = ""
    exchange: CompletionExchange | None = None
    seconds: float = 0.0

    @property
    def trace_id(self) -> str | None:
        """The caller's trace."""
        match = TRACEPARENT.fullmatch(self.traceparent)
        return match[1] if match else None

    @property
    def is_logged(self) -> bool:
        """Whether it is worth a line: what machines ask every few seconds is so where it fails."""
        return self.route not in PULSE or not 200 <= self.status < 300

    @property
    def facts(self) -> dict[str, Any]:
        """A line of the access log."""
        facts = {
            "time": iso(self.time),
            "request_id": self.request_id,
            "trace_id": self.trace_id,
            "client": self.client,
            "key": self.key,
            "method": self.method,
            "route": self.route,
            "status": self.status,
            "seconds": round(self.seconds, 4),
        }
        return facts | (_answer_facts(self.exchange) if self.exchange else {}) | {"error": self.error}


def _answer_facts(exchange: CompletionExchange) -> dict[str, Any]:
    """Of the answers: their number, length and steering, and what was raised; nothing that they say."""
    plan, choices, times = exchange.plan, exchange.choices, exchange.times
    alarms = [alert.facts for choice in choices for alert in choice.alerts]
    return {
        "answer": exchange.head["id"],
        "stream": bool(exchange.body.stream),
        "choices": len(choices),
        "prompt_tokens": plan.prompt_tokens,
        "completion_tokens": exchange.completion_tokens,
        "queue_seconds": _to_ms(times.queue_seconds),
        "first_token_seconds": _to_ms(times.first_token_seconds),
        "steer": steering_names(plan.steer),
        "forced": steering_names(plan.policy.steer),
        "finish": [choice.finish for choice in choices],
        "alarms": [{name: alarm[name] for name in ("trait", "reading", "part", "action", "token")} for alarm in alarms],
    }


def steering_names(steer: str | None) -> list[str]:
    """Vectors that an expression names."""
    return sorted(SteeringExpression.parse(steer).names) if steer else []


def _to_ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)


@dataclass(slots=True, kw_only=True)
class AnswerTimes:
    """When the answers of a request got how far, on the monotonic clock.

    Attributes:
        opened: They were asked for, and the request has been parsed.
        submitted: They were queued.
        began: The prompt of the first of them began to be read.
        first_token: The first token came.
        ended: They were over.
    """

    opened: float = field(default_factory=time.monotonic)
    submitted: float | None = None
    began: float | None = None
    first_token: float | None = None
    ended: float | None = None

    def note(self, output: EngineOutput) -> None:
        """Take in what a step brought."""
        if self.began is None:
            self.began = output.began
        if self.first_token is None and output.tokens:
            self.first_token = time.monotonic()

    @property
    def queue_seconds(self) -> float | None:
        """Seconds that they waited in the queue."""
        return None if self.began is None or self.submitted is None else max(self.began - self.submitted, 0.0)

    @property
    def first_token_seconds(self) -> float | None:
        """Seconds until the first token came."""
        return None if self.first_token is None else self.first_token - self.opened

    def token_seconds(self, tokens: int) -> float | None:
        """Seconds a token after the first, where there were that many."""
        if self.first_token is None or self.ended is None or tokens < 2:
            return None
        return (self.ended - self.first_token) / (tokens - 1)


_current: ContextVar[RequestRecord | None] = ContextVar("poise_request", default=None)


def note_exchange(exchange: CompletionExchange) -> None:
    """The request that is being worked on asks for these answers."""
    if record := _current.get():
        record.exchange = exchange


def named_session(body: OpenAIRequest) -> str | None:
    """The run that a request names: in its field, or in the header.

    Raises:
        RequestError: the header's name is too long.
    """
    if body.poise and body.poise.session:
        return body.poise.session
    record = _current.get()
    if record is None or not record.session.strip():
        return None
    if len(record.session) > LONGEST_SESSION:
        text = f"X-Poise-Session has {len(record.session):,} characters; a run's name has at most {LONGEST_SESSION}."
        raise RequestError(400, text, code="invalid_value", param="X-Poise-Session")
    return record.session.strip()


def _header_name(value: bytes) -> str:
    """A name in a header: UTF-8, as the field has it, else the older Latin-1."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")


@dataclass(frozen=True, slots=True)
class RequestObserver:
    """Pure ASGI, so that streams pass through.

    Attributes:
        app: What is behind.
        routes: Addresses without parameters: names for requests that no route has seen.
        told: Functions that are given each request once it is over; none may wait.
    """

    app: Any
    routes: Collection[str] = ()
    told: Sequence[Callable[[RequestRecord], None]] = ()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Pass one request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name: value for name, value in scope["headers"] if name in TAKEN_HEADERS}
        record = RequestRecord(
            method=scope["method"] if scope["method"].isascii() and scope["method"].isalpha() else "other",
            client=scope["client"][0] if scope.get("client") else None,
            traceparent=headers.get(b"traceparent", b"").decode("latin-1"),
            tracestate=headers.get(b"tracestate", b"").decode("latin-1"),
            session=_header_name(headers.get(SESSION_HEADER, b"")),
        )

        async def seen(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                record.request_id = _sent_header(message, b"x-request-id")
            elif record.status >= 400 and message["type"] == "http.response.body" and record.error is None:
                record.error = _error_code(message.get("body", b""))
            await send(message)

        token = _current.set(record)
        try:
            await self.app(scope, receive, seen)
        finally:
            _current.reset(token)
            path = scope["path"]
            record.route = getattr(scope.get("route"), "path", path if path in self.routes else "none")
            record.key = scope.get("state", {}).get("key")
            record.seconds = time.monotonic() - record.began
            if record.exchange and record.error is None:
                record.error = record.exchange.failure
            for tell in self.told:
                tell(record)


def _sent_header(message: MutableMapping[str, Any], name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in message.get("headers", []) if key.lower() == name), None)


def _error_code(body: bytes) -> str | None:
    """The code of an answer that is an error, found without parsing it: quotes within its message are escaped."""
    code = ERROR_CODE.search(body)
    return code[1].decode() if code else None
