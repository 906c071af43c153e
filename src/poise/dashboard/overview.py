"""What the page shows: each source's state, its traits over days, its versions side by side, and all alerts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from poise.dashboard.alert_database import BUCKET_SECONDS, AlertDatabase
from poise.dashboard.alerts import alert_facts
from poise.dashboard.drift import DriftChart
from poise.dashboard.metrics_text import ACTIONS, histogram_quantile
from poise.dashboard.rule_checks import share_words
from poise.dashboard.rules import AlertRule, DashboardSettings, WatchedSource
from poise.dashboard.watching import DashboardWatch
from poise.errors import InvalidData
from poise.statistics.intervals import mean_interval

__all__ = ["dashboard_overview", "source_traits"]

MOST_BUCKETS = 60
BUCKET_HOURS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 24.0)
MOST_ALERTS = 200
TraitRow = tuple[str, str, float, float | None, float | None, int]


def dashboard_overview(watch: DashboardWatch, *, hours: float = 24.0) -> dict[str, Any]:
    """Everything but the traits' curves.

    Args:
        watch: The watch.
        hours: Time that counts are taken over.
    """
    database, settings, now = watch.database, watch.settings, watch.clock()
    alerts = database.rows(
        "SELECT * FROM alerts ORDER BY ended IS NOT NULL, severity = 'page' DESC, id DESC LIMIT ?", [MOST_ALERTS]
    )
    silences = database.rows("SELECT * FROM silences WHERE until > ? ORDER BY until", [now])
    return {
        "now": now,
        "hours": hours,
        "every_seconds": settings.every_seconds,
        "channels": list(watch.channels),
        "sources": [_source(watch, source, now, hours) for source in settings.servers],
        "rules": [_rule(rule) for rule in settings.rules],
        "alerts": [alert_facts(row) for row in alerts],
        "silences": silences,
        "unsent": _unsent(database),
        "notes": _rule_notes(watch),
    }


def _source(watch: DashboardWatch, source: WatchedSource, now: float, hours: float) -> dict[str, Any]:
    database = watch.database
    state = database.source(source.name)
    counts, polls, failures = database.counted(source.name, now - hours * 3600)
    fault = state["fault"] or watch.readings_faults.get(source.name, "")
    return {
        "name": source.name,
        "address": source.url,
        "readings": bool(source.readings),
        "fault": fault,
        "seen": state["seen"],
        "polled": state["polled"],
        "state": state["state"],
        "facts": state["facts"],
        "available": share_words(polls - failures, polls),
        "figures": _count_figures(counts),
        "versions": _version_figures(database, source, now - watch.settings.keep_days * 86400),
        "charts": _charts(database, source.name, watch.settings),
    }


def _count_figures(counts: Mapping[str, float]) -> dict[str, Any]:
    """Counts as rates with their n and interval."""
    quantiles = {
        name: {"median": half, "p95": histogram_quantile(counts, name, 0.95)[0], "n": n}
        for name in ("first_token", "request", "token")
        for half, n in [histogram_quantile(counts, name, 0.5)]
    }
    actions = {key.removeprefix(ACTIONS): round(value) for key, value in counts.items() if key.startswith(ACTIONS)}
    requests, answers = counts.get("requests", 0.0), counts.get("answers", 0.0)
    return {
        "requests": round(requests),
        "answers": round(answers),
        "faults": share_words(counts.get("faults", 0.0), requests),
        "alarms": share_words(counts.get("alarms", 0.0), answers),
        "interventions": share_words(counts.get("interventions", 0.0), requests),
        "actions": dict(sorted(actions.items())),
        "latency": quantiles,
        "readings_lost": round(counts.get("readings_lost", 0.0)),
    }


def _version_figures(database: AlertDatabase, source: WatchedSource, since: float) -> list[dict[str, Any]]:
    """Each version that was served, with the time from its first poll to its last, and its figures."""
    spans = database.rows(
        "SELECT version, min(start) AS began, max(start) AS ended FROM buckets WHERE source = ? AND start > ? "
        "GROUP BY version ORDER BY began DESC LIMIT 12",
        [source.name, since],
    )
    return [
        {
            "version": span["version"],
            "began": span["began"],
            "ended": span["ended"] + BUCKET_SECONDS,
            **_count_figures(database.counted(source.name, span["began"] - 1 + BUCKET_SECONDS, span["version"])[0]),
        }
        for span in spans
    ]


def _charts(database: AlertDatabase, source: str, settings: DashboardSettings) -> list[dict[str, Any]]:
    baselines = {rule.name: rule.baseline for rule in settings.rules if rule.when == "drift"}
    rows = database.rows("SELECT * FROM charts WHERE source = ? ORDER BY rule, trait", [source])
    return [_chart_facts(row, baselines[row["rule"]]) for row in rows if row["rule"] in baselines]


def _chart_facts(row: Mapping[str, Any], baseline: int) -> dict[str, Any]:
    facts = {"rule": row["rule"], "trait": row["trait"], "note": row["note"]}
    if row["chart"] is None:
        have = len(json.loads(row["pending"]))
        return facts | {"have": have, "wanted": max(baseline, row["answers"]), "promise": ""}
    chart = DriftChart.model_validate_json(row["chart"])
    sums = json.loads(row["sums"])
    return facts | {
        "promise": chart.promise,
        "answers": row["answers"],
        "sides": {limit.side: {"sum": sums.get(limit.side, 0.0), "limit": limit.h} for limit in chart.limits},
        "mean": chart.limits[0].mean,
        "sd": chart.limits[0].sd,
    }


def _rule(rule: AlertRule) -> dict[str, Any]:
    return {"name": rule.name, "when": rule.when, "severity": rule.severity, "servers": list(rule.servers)}


def _unsent(database: AlertDatabase) -> list[dict[str, Any]]:
    """How many notifications wait or were given up, by channel, and why."""
    return database.rows(
        "SELECT channel, state, count(*) AS n, max(fault) AS fault FROM deliveries WHERE state != 'sent' "
        "GROUP BY channel, state ORDER BY channel, state"
    )


def _rule_notes(watch: DashboardWatch) -> list[str]:
    """Rules that name a trait which nothing reads."""
    traits = sorted(known_traits(watch))
    rules = watch.settings.rules
    return [
        f"The rule {rules[int(place[1])].name} names a trait that {text}."
        for place, text in watch.settings.trait_faults(traits)
    ]


def known_traits(watch: DashboardWatch) -> set[str]:
    """Traits that anything reads, as far as it is known."""
    names: set[str] = set()
    for source in watch.settings.servers:
        names |= set(watch.database.source(source.name)["thresholds"])
        if reader := watch.pollers[source.name].reader:
            try:
                names |= set(reader.traits())
            except InvalidData:
                continue
    return names


def source_traits(watch: DashboardWatch, name: str, *, days: float) -> dict[str, Any]:
    """The traits of one source over days: means with intervals, thresholds, alarms, and the means of each version.

    Args:
        watch: The watch.
        name: Name of the source.
        days: How far back.

    Raises:
        InvalidData: its readings cannot be read.
    """
    reader, now = watch.pollers[name].reader, watch.clock()
    if reader is None:
        return {"days": days, "hours": 0.0, "traits": []}
    rows = reader.since(now - days * 86400)
    hours = _bucket_hours(now - min((row[2] for row in rows), default=now))
    thresholds = watch.database.source(name)["thresholds"]
    spans = watch.database.rows(
        "SELECT version, min(start) AS began, max(start) AS ended FROM buckets WHERE source = ? GROUP BY version "
        "ORDER BY began",
        [name],
    )
    grouped: dict[tuple[str, str], list[TraitRow]] = {}
    for row in rows:
        grouped.setdefault((row[0], row[1]), []).append(row)
    return {
        "days": days,
        "hours": hours,
        "traits": [
            {
                "trait": trait,
                "part": part,
                "thresholds": thresholds.get(trait, {}),
                "buckets": _buckets(of_trait, hours * 3600),
                "versions": _version_means(of_trait, spans),
            }
            for (trait, part), of_trait in sorted(grouped.items())
        ],
    }


def _bucket_hours(seconds: float) -> float:
    return next((hours for hours in BUCKET_HOURS if seconds / 3600 / hours <= MOST_BUCKETS), BUCKET_HOURS[-1])


def _buckets(rows: Sequence[TraitRow], width: float) -> list[dict[str, Any]]:
    buckets: dict[int, list[TraitRow]] = {}
    for row in rows:
        buckets.setdefault(math.floor(row[2] / width), []).append(row)
    return [
        {
            "start": datetime.fromtimestamp(at * width, UTC).isoformat(),
            **_mean_facts(bucket),
            "alarms": sum(row[5] for row in bucket),
        }
        for at, bucket in sorted(buckets.items())
    ]


def _version_means(rows: Sequence[TraitRow], spans: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    facts = []
    for span in spans:
        of_span = [row for row in rows if span["began"] <= row[2] < span["ended"] + BUCKET_SECONDS]
        if of_span:
            alarms = sum(row[5] for row in of_span)
            facts.append(
                {"version": span["version"], **_mean_facts(of_span), "alarms": share_words(alarms, len(of_span))}
            )
    return facts


def _mean_facts(rows: Sequence[TraitRow]) -> dict[str, Any]:
    values = [row[3] for row in rows if row[3] is not None]
    low, high = mean_interval(values) if len(values) > 1 else (math.nan, math.nan)
    return {
        "n": len(values),
        "mean": sum(values) / len(values) if values else None,
        "low": float(low) if math.isfinite(low) else None,
        "high": float(high) if math.isfinite(high) else None,
    }
