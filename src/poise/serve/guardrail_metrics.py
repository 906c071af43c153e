"""What guardrails did and what they took, for Prometheus."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from prometheus_client import CollectorRegistry, Counter, Histogram

__all__ = ["GuardrailMetrics"]

CHECK_SECONDS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
MOST_RULES = 1000  # series; a guardrail may have ten thousand words
OTHER = "other"


class GuardrailMetrics:
    """Counts interventions and times checks.

    Args:
        registry: The server's.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._interventions = Counter(
            "poise_guardrail_interventions",
            "What guardrails found, by guardrail, way, policy, rule and action.",
            ["guardrail", "source", "policy", "rule", "action"],
            registry=registry,
        )
        self._seconds = Histogram(
            "poise_guardrail_seconds",
            "Time that a check of a prompt, of the next part of an answer, or of an ApplyGuardrail took.",
            ["guardrail", "check"],
            buckets=CHECK_SECONDS,
            registry=registry,
        )
        self._rules: set[tuple[str, str, str]] = set()

    def count(self, facts: Iterable[Mapping[str, Any]]) -> None:
        """Count what was found, as answers tell it."""
        for fact in facts:
            guardrail, policy, rule = str(fact["guardrail"]), str(fact["policy"]), str(fact["rule"])
            if (guardrail, policy, rule) not in self._rules:
                if len(self._rules) >= MOST_RULES:
                    rule = OTHER
                else:
                    self._rules.add((guardrail, policy, rule))
            self._interventions.labels(guardrail, fact["source"], policy, rule, fact["action"]).inc()

    @contextlib.contextmanager
    def timed(self, guardrail: str, check: Literal["prompt", "answer", "apply"]) -> Iterator[None]:
        """Time what is done in the block."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._seconds.labels(guardrail, check).observe(time.perf_counter() - began)
