"""Counters for Prometheus."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import Metric

from poise.data import AnswerPart

__all__ = ["CONTENT_TYPE", "Counting", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
LATELY = 2000  # answers that quantiles are taken over
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """All of a server's, in a registry of its own, so that two servers in one process do not meet."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "poise_requests", "Answered requests by route and status.", ["route", "status"], registry=self.registry
        )
        self.tokens = Counter(
            "poise_tokens", "Tokens read (prompt) and generated (completion).", ["kind"], registry=self.registry
        )
        self.reused = Counter(
            "poise_prompt_tokens_reused", "Prompt tokens that were not read again.", registry=self.registry
        )
        self.prefix_hits = Counter(
            "poise_prefix_hits", "Answers whose prompts began like an earlier text.", registry=self.registry
        )
        self.seconds = Histogram(
            "poise_request_seconds",
            "From request to the answer's end.",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.first = Histogram(
            "poise_first_token_seconds", "From request to first token.", buckets=SECONDS, registry=self.registry
        )
        self.alarms = Counter(
            "poise_alarms",
            "Alarms by vector, reading and action.",
            ["trait", "reading", "action"],
            registry=self.registry,
        )
        self.finished = Counter("poise_answers", "Answers by how they ended.", ["finish"], registry=self.registry)
        self.closed = Counter(
            "poise_connections_closed",
            "Connections that the server ended: no header in time, answer left unread, room for another, no room.",
            ["reason"],
            registry=self.registry,
        )
        self.projections = Projections()
        self.registry.register(self.projections)

    def add_gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Add a gauge whose value is computed at each scrape."""
        Gauge(name, text, registry=self.registry).set_function(value)

    def count_closed(self, reason: str) -> None:
        """Count a connection that the server has ended."""
        self.closed.labels(reason).inc()

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class Projections:
    """Quantiles of readings by vector, over the last 2,000 answers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[tuple[str, str, AnswerPart], deque[float]] = {}
        self._counts: dict[tuple[str, str, AnswerPart], tuple[int, float]] = {}

    def observe(self, trait: str, reading: str, value: float | None, part: AnswerPart = "reply") -> None:
        """Add one answer's reading of that part; ``None`` is left out."""
        if value is None:
            return
        key = (trait, reading, part)
        with self._lock:
            self._values.setdefault(key, deque(maxlen=LATELY)).append(value)
            n, total = self._counts.get(key, (0, 0.0))
            self._counts[key] = (n + 1, total + value)

    def describe(self) -> Iterable[Metric]:
        """Its names, without values."""
        return [Metric("poise_projection", "Readings over the last 2,000 answers.", "summary")]

    def collect(self) -> Iterator[Metric]:
        """For a scrape."""
        metric = Metric("poise_projection", "Readings over the last 2,000 answers.", "summary")
        with self._lock:
            for key, values in self._values.items():
                labels = {"trait": key[0], "reading": key[1]} | ({} if key[2] == "reply" else {"part": key[2]})
                quantiles = np.quantile(np.array(values), QUANTILES)
                for q, value in zip(QUANTILES, quantiles, strict=True):
                    metric.add_sample("poise_projection", {**labels, "quantile": f"{q:g}"}, float(value))
                n, total = self._counts[key]
                metric.add_sample("poise_projection_count", labels, n)
                metric.add_sample("poise_projection_sum", labels, total)
        yield metric


@dataclass(frozen=True, slots=True)
class Counting:
    """Counts requests and their time, streams to their end. Pure ASGI."""

    app: Any
    metrics: Metrics

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Pass one request on."""
        began, status = time.monotonic(), "none"

        async def seen(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self.app(scope, receive, seen)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            self.metrics.requests.labels(route, status).inc()
            self.metrics.seconds.labels(route).observe(time.monotonic() - began)
