"""Whether a rule holds of a source, by what was counted; numbers alone raise nothing, their intervals do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from poise.dashboard.metrics_text import histogram_quantile
from poise.dashboard.rules import AlertRule
from poise.statistics.conformal import exact_interval
from poise.statistics.estimates import mean_estimate

__all__ = ["RuleFinding", "check_counts", "check_mean", "share_words"]

COUNTED = {
    "errors": ("faults", "requests", "of requests end with a fault of the server"),
    "alarms": ("alarms", "answers", "alarms an answer"),
    "interventions": ("interventions", "requests", "interventions of guardrails a request"),
}
LATENCY_WORDS = {"first_token": "to the first token", "request": "of a request", "token": "of a token"}
FEWEST = 20  # requests that a quantile is taken of


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleFinding:
    """A rule that holds now.

    Attributes:
        subject: What it is about, within the source: a trait, or empty.
        text: In words, with figures.
    """

    subject: str = ""
    text: str


def check_counts(rule: AlertRule, counts: Mapping[str, float]) -> RuleFinding | None:
    """A rule on latency, errors, alarms or interventions; holds where the whole interval lies above the limit."""
    limit = rule.above if rule.above is not None else math.inf
    if rule.when == "latency":
        return _check_latency(rule, counts, limit)
    part, total, words = COUNTED[rule.when]
    hits, n = round(counts.get(part, 0.0)), round(counts.get(total, 0.0))
    if n == 0:
        return None
    low, high = exact_interval(min(hits, n), n)
    if low <= limit:
        return None
    shown = f"{hits / n:.3g} [{low:.3g}, {high:.3g}], n = {n:,}"
    return RuleFinding(text=f"{shown} {words}, above {limit:g}, in {rule.minutes:g} minutes")


def _check_latency(rule: AlertRule, counts: Mapping[str, float], limit: float) -> RuleFinding | None:
    """Holds where more requests are slower than the quantile lets be, surely."""
    value, n = histogram_quantile(counts, rule.of, rule.quantile)
    if value is None or n < FEWEST or value <= limit:
        return None
    faster = _upto(counts, rule.of, limit)
    low, high = exact_interval(max(n - faster, 0), n)
    if low <= 1 - rule.quantile:
        return None
    return RuleFinding(
        text=f"{value:.3g} s {LATENCY_WORDS[rule.of]} at the {rule.quantile:g} quantile, above {limit:g} s: "
        f"{(n - faster) / n:.3g} [{low:.3g}, {high:.3g}] are slower, n = {n:,}, in {rule.minutes:g} minutes"
    )


def _upto(counts: Mapping[str, float], name: str, limit: float) -> int:
    """Requests that were surely or maybe as fast as the limit: those of the bucket that holds it count as fast."""
    prefix = f"{name}<="
    ends = sorted((float(key.removeprefix(prefix)), value) for key, value in counts.items() if key.startswith(prefix))
    return round(next((value for end, value in ends if end >= limit), 0.0))


def check_mean(rule: AlertRule, trait: str, values: Sequence[float]) -> RuleFinding | None:
    """A rule on the mean reading of the last answers; holds where its whole interval lies beyond a limit."""
    if len(values) < rule.answers:
        return None
    mean = mean_estimate(values)
    if mean.low is None or mean.high is None:
        return None
    for limit, beyond, words in (
        (rule.above, rule.above is not None and mean.low > rule.above, "above"),
        (rule.below, rule.below is not None and mean.high < rule.below, "below"),
    ):
        if beyond:
            shown = f"{mean.value:.4g} [{mean.low:.4g}, {mean.high:.4g}], n = {mean.n}"
            return RuleFinding(
                subject=trait, text=f"{trait}: the mean {rule.reading} reading is {shown}, {words} {limit:g}"
            )
    return None


def share_words(hits: float, n: float) -> dict[str, float | int | None]:
    """A share with its interval and n, for the page; nothing of 0."""
    total = round(n)
    if total == 0:
        return {"value": None, "low": None, "high": None, "n": 0}
    low, high = exact_interval(min(round(hits), total), total)
    return {"value": hits / total, "low": low, "high": high, "n": total}
