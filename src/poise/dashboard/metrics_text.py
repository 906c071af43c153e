"""What a server's ``/metrics`` says: a state, counts that grow, and histograms whose buckets grow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from poise.errors import EndpointUnavailable

__all__ = ["MetricsReport", "grown", "histogram_quantile", "read_metrics"]

COUNTERS = {
    "poise_requests_total": "requests",
    "poise_answers_total": "answers",
    "poise_errors_total": "errors",
    "poise_alarms_total": "alarms",
    "poise_guardrail_interventions_total": "interventions",
    "poise_readings_lost_total": "readings_lost",
    "poise_webhook_lost_total": "webhook_lost",
}
HISTOGRAMS = {
    "poise_first_token_seconds_bucket": "first_token",
    "poise_request_seconds_bucket": "request",
    "poise_token_seconds_bucket": "token",
}
GAUGES = {
    "poise_ready": "ready",
    "poise_healthy": "healthy",
    "poise_queue": "queue",
    "poise_running": "running",
    "poise_step_age_seconds": "step_age",
    "process_resident_memory_bytes": "memory",
}
ACTIONS = "interventions:"  # interventions by what was done, beside their sum
MOST_METRICS_BYTES = 8 * 2**20


@dataclass(frozen=True, kw_only=True)
class MetricsReport:
    """One poll of a server's metrics.

    Attributes:
        state: What is so now: ``ready``, ``healthy``, ``queue``, ``running`` and others.
        counts: Counts since the server's start; buckets are ``first_token<=0.5``, each with those below it.
        facts: What runs there: model, version, engine and others; empty where it does not say.
    """

    state: Mapping[str, float] = field(default_factory=dict)
    counts: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def usable(self) -> bool:
        """Whether it takes requests."""
        return self.state.get("ready", 0.0) >= 1 and self.state.get("healthy", 1.0) >= 1


def read_metrics(text: str) -> MetricsReport:
    """Metrics in Prometheus' text format.

    Raises:
        EndpointUnavailable: it is something else, or not of a server of Poise.
    """
    from prometheus_client.parser import text_string_to_metric_families

    state: dict[str, float] = {}
    counts: dict[str, float] = {}
    facts: dict[str, str] = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                _take_sample(sample.name, sample.labels, float(sample.value), state, counts, facts)
    except (ValueError, KeyError, IndexError, AttributeError) as error:
        raise EndpointUnavailable("its metrics cannot be read: they are not in Prometheus' text format") from error
    if "ready" not in state:
        raise EndpointUnavailable("its metrics are not those of `poise serve`")
    return MetricsReport(state=state, counts=counts, facts=facts)


def _take_sample(
    name: str,
    labels: Mapping[str, str],
    value: float,
    state: dict[str, float],
    counts: dict[str, float],
    facts: dict[str, str],
) -> None:
    if not math.isfinite(value):
        return
    if short := COUNTERS.get(name):
        counts[short] = counts.get(short, 0.0) + value
        if short == "interventions" and (action := labels.get("action")):
            counts[ACTIONS + action] = counts.get(ACTIONS + action, 0.0) + value
        if short == "requests" and labels.get("status", "").startswith("5") and labels.get("route") != "/readyz":
            counts["faults"] = counts.get("faults", 0.0) + value
    elif short := HISTOGRAMS.get(name):
        bucket = f"{short}<={labels.get('le', '')}"
        counts[bucket] = counts.get(bucket, 0.0) + value
    elif short := GAUGES.get(name):
        state[short] = value
    elif name == "poise_info":
        facts.update({key: text[:200] for key, text in labels.items()})


def grown(before: Mapping[str, float] | None, now: Mapping[str, float]) -> dict[str, float]:
    """What was counted between two polls; a server that was started again counts from 0.

    Args:
        before: The poll before; ``None`` for the first, after which nothing has grown yet.
        now: This one.
    """
    if before is None:
        return {}
    restarted = any(value < before.get(name, 0.0) for name, value in now.items())
    base: Mapping[str, float] = {} if restarted else before
    return {name: value - base.get(name, 0.0) for name, value in now.items() if value != base.get(name, 0.0)}


def histogram_quantile(counts: Mapping[str, float], name: str, quantile: float) -> tuple[float | None, int]:
    """A quantile by linear steps within buckets, as Prometheus has it, and the n it is of.

    The last bucket has no end: a quantile there is its beginning, which is too low.
    """
    prefix = f"{name}<="
    ends = sorted((float(key.removeprefix(prefix)), value) for key, value in counts.items() if key.startswith(prefix))
    n = ends[-1][1] if ends else 0.0
    if n <= 0:
        return None, 0
    rank, below, start = quantile * n, 0.0, 0.0
    for end, upto in ends:
        if upto >= rank:
            if math.isinf(end):
                return start, int(n)
            return start + (end - start) * (rank - below) / max(upto - below, 1e-9), int(n)
        below, start = upto, end
    return start, int(n)
