"""Counters for Prometheus."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric

from poise.data import AnswerPart
from poise.serve.guardrail_metrics import GuardrailMetrics

if TYPE_CHECKING:
    from poise.serve.observing import RequestRecord

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
LATELY = 2000  # answers that quantiles are taken over
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
TOKEN_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
TOKENS = tuple(4.0**n for n in range(1, 10))  # 4 to 262,144


class Metrics:
    """All of a server's, in a registry of its own, so that two servers in one process do not meet."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
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
        self.run_alarms = self._counter("poise_run_alarms", "Drift along runs.", ["trait", "side", "action"])
        self.tool_results = self._counter("poise_tool_results", "Tools' results that were read.", ["action"])
        self.finished = Counter("poise_answers", "Answers by how they ended.", ["finish"], registry=self.registry)
        self.closed = Counter(
            "poise_connections_closed",
            "Connections that the server ended: no header in time, answer left unread, room for another, no room.",
            ["reason"],
            registry=self.registry,
        )
        self.errors = self._counter("poise_errors", "Requests that ended with an error, by its code.", ["code"])
        self.queued = self._histogram(
            "poise_queue_seconds", "Time that answers waited before their prompt was read.", SECONDS
        )
        self.token_seconds = self._histogram(
            "poise_token_seconds", "Time a token of an answer after the first, a request's mean.", TOKEN_SECONDS
        )
        self.prompt_size = self._histogram("poise_request_prompt_tokens", "Tokens of a request's prompts.", TOKENS)
        self.answer_size = self._histogram("poise_request_completion_tokens", "Tokens of a request's answers.", TOKENS)
        self.reloads = self._counter("poise_reloads", "Times that the server's files were read again.", ["result"])
        self.guardrails = GuardrailMetrics(self.registry)
        self.projections = Projections()
        self.registry.register(self.projections)

    def add_gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Add a gauge whose value is computed at each scrape."""
        Gauge(name, text, registry=self.registry).set_function(value)

    def _counter(self, name: str, text: str, labels: Sequence[str]) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(name, text, buckets=buckets, registry=self.registry)

    def add_info(self, name: str, text: str, labels: Mapping[str, str]) -> None:
        """Add facts that do not change, as labels of a 1."""
        Gauge(name, text, list(labels), registry=self.registry).labels(**labels).set(1)

    def add_counter(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Add a counter that something else counts; its name ends in ``_total`` where it is scraped."""
        self.registry.register(CountedElsewhere(name, text, value))

    def observe(self, record: RequestRecord) -> None:
        """Take in a request that is over."""
        self.requests.labels(record.route, str(record.status or "none")).inc()
        self.seconds.labels(record.route).observe(record.seconds)
        if record.error:
            self.errors.labels(record.error).inc()
        if (exchange := record.exchange) is None:
            return
        times, tokens = exchange.times, exchange.completion_tokens
        self.prompt_size.observe(exchange.plan.prompt_tokens)
        self.answer_size.observe(tokens)
        for histogram, seconds in (
            (self.queued, times.queue_seconds),
            (self.first, times.first_token_seconds),
            (self.token_seconds, times.token_seconds(tokens)),
        ):
            if seconds is not None:
                histogram.observe(seconds)

    def count_closed(self, reason: str) -> None:
        """Count a connection that the server has ended."""
        self.closed.labels(reason).inc()

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)


@dataclass(frozen=True, slots=True)
class CountedElsewhere:
    """A counter whose value is asked for at each scrape."""

    name: str
    text: str
    value: Callable[[], float]

    def collect(self) -> Iterator[Metric]:
        """For a scrape."""
        yield CounterMetricFamily(self.name, self.text, value=self.value())


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
