"""The watch: every source polled, charts brought forward, rules checked, alerts begun and ended."""

from __future__ import annotations

import json
import logging
import math
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poise.dashboard.alert_database import BUCKET_SECONDS, AlertDatabase
from poise.dashboard.alerts import EVENTS, begin_alert, end_alerts
from poise.dashboard.drift import DriftChart, DriftSums, fit_drift
from poise.dashboard.metrics_text import grown
from poise.dashboard.polling import SourcePoll, SourcePoller
from poise.dashboard.rule_checks import RuleFinding, check_counts, check_mean
from poise.dashboard.rules import AlertRule, DashboardSettings, WatchedSource
from poise.errors import InvalidData, SaveFailed, TooFewResponses

__all__ = ["DashboardWatch", "version_words"]

log = logging.getLogger("poise.dashboard")

SWEEP_EVERY = 3600.0  # seconds
MOST_PENDING = 100_000  # answers that a chart may be set on
FACTS_THAT_COUNT = ("model", "version", "engine", "dtype", "device")
DRIFT_WORDS = {"above": "upwards", "below": "downwards"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChartStep:
    """A chart after some readings, and what it raised."""

    rule: AlertRule
    trait: str
    chart: DriftChart | None
    sums: DriftSums
    pending: tuple[float, ...]
    answers: int
    note: str
    findings: tuple[RuleFinding, ...]


class DashboardWatch:
    """Watches sources; ``poll`` once, or ``start`` a thread that does.

    Args:
        settings: What is watched, and by which rules.
        database: Database that keeps it.
        channels: How people are notified of alerts, beside the page.
        clock: Seconds since 1970.
        ticks: Seconds that only run on: how long a server is away is measured by these, whatever the clock is set to.
    """

    def __init__(
        self,
        settings: DashboardSettings,
        database: AlertDatabase,
        *,
        channels: Sequence[str] = (),
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings, self.database, self.channels = settings, database, tuple(channels)
        self.clock, self.ticks = clock, ticks
        self.pollers = {source.name: SourcePoller(source) for source in settings.servers}
        self.readings_faults: dict[str, str] = {}
        self._away: dict[str, float] = {}  # since when, by ``ticks``
        self._swept = -math.inf
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._end_orphans()

    def _end_orphans(self) -> None:
        """End what is open of rules and sources that the file has no more."""
        for row in self.database.open_alerts():
            if row["source"] not in self.pollers or row["rule"] not in {r.name for r in self.settings.rules}:
                with self.database.changing() as db:
                    note = "Its rule or source is no longer in the file."
                    db.execute(
                        "UPDATE alerts SET ended = ?, note = coalesce(note, ?) WHERE id = ?",
                        [self.clock(), note, row["id"]],
                    )

    @classmethod
    def open(cls, settings: DashboardSettings, folder: Path) -> DashboardWatch:
        """A watch that keeps its database in a folder, and notifies nobody.

        Raises:
            OutputExists: the folder has another program's database.
            SaveFailed: the disk refused.
        """
        return cls(settings, AlertDatabase(folder / "dashboard.sqlite"))

    def start(self) -> None:
        """Poll again and again, in a thread."""
        self._thread = threading.Thread(target=self._run, name="poise-dashboard", daemon=True)
        self._thread.start()

    def close(self, wait: float = 10.0) -> None:
        """End."""
        self._closing.set()
        if self._thread:
            self._thread.join(wait)

    def _run(self) -> None:
        while True:
            try:
                self.poll()
            except SaveFailed as error:
                log.error("%s The next poll tries again.", error)
            except Exception:
                log.exception("A poll of the sources failed; the next one tries again.")
            if self._closing.wait(self.settings.every_seconds):
                return

    def poll(self) -> None:
        """Poll at every source once, all at the same time, and act on what is there.

        Raises:
            SaveFailed: the disk refused; what was not chart_rows is polled again.
        """
        states = {name: self.database.source(name) for name in self.pollers}
        with ThreadPoolExecutor(min(len(self.pollers), 16), thread_name_prefix="poise-poll") as pool:
            polls = dict(
                zip(
                    self.pollers,
                    pool.map(lambda name: self.pollers[name].poll(states[name]["last_id"]), self.pollers),
                    strict=True,
                )
            )
        for source in self.settings.servers:
            self._take(source, states[source.name], polls[source.name])
        if self.ticks() - self._swept > SWEEP_EVERY:
            self.database.sweep(self.clock() - self.settings.keep_days * 86400)
            self._swept = self.ticks()

    def _take(self, source: WatchedSource, state: Mapping[str, Any], poll: SourcePoll) -> None:
        """Take in one poll: counts, charts and alerts in one transaction."""
        now, rules = self.clock(), self.settings.rules_for(source.name)
        self.readings_faults[source.name] = poll.readings_fault
        steps = [
            step for rule in rules if rule.when == "drift" for step in _chart_steps(self.database, source, rule, poll)
        ]
        away = self._away_for(source.name, fault=poll.fault or poll.readings_fault)
        silenced = {rule.name: self.database.is_silenced(rule.name, source.name, now) for rule in rules}
        with (
            self.database.changing() as db
        ):  # what happens once is on the disk with the rows that show it, or not at all
            _keep_poll(db, source, state, poll, now)
            for step in steps:
                _keep_chart(db, source.name, step)
            for rule in rules:
                if rule.when in EVENTS:
                    for finding in _events(rule, state, poll, steps):
                        self._begin(db, rule, source.name, finding, now, silenced[rule.name])
        for rule in rules:
            findings = None if rule.when in EVENTS else self._findings(rule, source, poll, away, now)
            if findings is None:
                continue
            with self.database.changing() as db:
                for finding in findings:
                    self._begin(db, rule, source.name, finding, now, silenced[rule.name])
                still = {finding.subject for finding in findings}
                end_alerts(db, rule, source.name, still, now, channels=self.channels)

    def _begin(
        self, db: sqlite3.Connection, rule: AlertRule, source: str, finding: RuleFinding, now: float, silenced: bool
    ) -> None:
        begin_alert(db, rule, source, finding, now, channels=self.channels, silenced=silenced)

    def _away_for(self, name: str, *, fault: str) -> float | None:
        """How long a source has been away; ``None`` where it is there."""
        if not fault:
            self._away.pop(name, None)
            return None
        now = self.ticks()
        return now - self._away.setdefault(name, now)

    def _findings(
        self, rule: AlertRule, source: WatchedSource, poll: SourcePoll, away: float | None, now: float
    ) -> list[RuleFinding] | None:
        """What a rule on a state finds; ``None`` where that is unknown, and what is open stays open."""
        if rule.when == "down":
            if away is None or away < rule.seconds:
                return [] if away is None else None
            return [RuleFinding(text=f"Away for {away:,.0f} s: {poll.fault or poll.readings_fault}")]
        if rule.when == "trait":
            return self._means(rule, source)
        if poll.report is None:
            return None
        counts, _, _ = self.database.counted(source.name, now - 60 * rule.minutes)
        finding = check_counts(rule, counts)
        return [finding] if finding else []

    def _means(self, rule: AlertRule, source: WatchedSource) -> list[RuleFinding] | None:
        reader = self.pollers[source.name].reader
        if reader is None:
            return None
        try:
            traits = [rule.trait] if rule.trait else reader.traits()
            checked = [
                check_mean(rule, trait, reader.last(trait, rule.part, rule.reading, rule.answers)) for trait in traits
            ]
        except InvalidData:
            return None
        return [finding for finding in checked if finding]


def _events(
    rule: AlertRule, state: Mapping[str, Any], poll: SourcePoll, steps: Sequence[ChartStep]
) -> list[RuleFinding]:
    if rule.when == "changed":
        return _server_changes(state, poll)
    return [finding for step in steps if step.rule is rule for finding in step.findings]


def _chart_steps(database: AlertDatabase, source: WatchedSource, rule: AlertRule, poll: SourcePoll) -> list[ChartStep]:
    """The charts of a rule, a trait each, after new readings."""
    values: dict[str, list[float]] = {}
    for reading in poll.readings:
        value = getattr(reading, rule.reading)
        if value is not None and reading.part == rule.part and rule.trait in ("", reading.trait):
            values.setdefault(reading.trait, []).append(value)
    chart_rows = database.rows("SELECT * FROM charts WHERE source = ? AND rule = ?", [source.name, rule.name])
    charts = {row["trait"]: row for row in chart_rows}
    return [_chart_step(rule, trait, charts.get(trait), new) for trait, new in values.items()]


def _chart_step(rule: AlertRule, trait: str, row: Mapping[str, Any] | None, values: Sequence[float]) -> ChartStep:
    """One chart after new values: first they say what is ordinary, then they are charted."""
    chart = DriftChart.model_validate_json(row["chart"]) if row and row["chart"] else None
    if chart is not None and chart.every != rule.every:
        chart = None  # the rule was changed: set anew
    sums = DriftSums.model_validate_json(row["sums"]) if row and chart else DriftSums()
    pending: list[float] = list(json.loads(row["pending"])) if row and not chart else []
    answers, note, findings = (int(row["answers"]) if row else 0), "", []
    waiting = list(values)
    if chart is None:  # ``answers`` is then how many are needed for the next try
        missing = max(rule.baseline, answers) - len(pending)
        pending, waiting = [*pending, *waiting[: max(missing, 0)]], waiting[max(missing, 0) :]
        if missing <= len(values):
            try:
                chart, answers = fit_drift(pending, every=rule.every, side=rule.side), 0
            except TooFewResponses as error:
                pending, waiting, note = [*pending, *waiting][-MOST_PENDING:], [], str(error)
                answers = min(2 * len(pending), MOST_PENDING)
    for value in waiting if chart else ():
        answers += 1
        sums, side = sums.after(chart, value) if chart else (sums, None)
        if side and chart:
            findings.append(RuleFinding(subject=trait, text=_drift_words(rule, trait, chart, side, value, answers)))
    return ChartStep(
        rule=rule, trait=trait, chart=chart, sums=sums, pending=tuple(pending if chart is None else ()),
        answers=answers, note=note, findings=tuple(findings),
    )  # fmt: skip


def _drift_words(rule: AlertRule, trait: str, chart: DriftChart, side: str, value: float, answers: int) -> str:
    limit = next(each for each in chart.limits if each.side == side)
    return (
        f"{trait} drifts {DRIFT_WORDS[side]}: {answers:,} answers after its chart was set, on {chart.answers:,} "
        f"whose {rule.reading} readings average {limit.mean:.4g} (sd {limit.sd:.3g}); the last one reads {value:.4g}. "
        f"Ordinary answers raise this every {chart.every:,.0f} or more rarely"
    )


def _keep_chart(db: sqlite3.Connection, source: str, step: ChartStep) -> None:
    db.execute(
        "INSERT OR REPLACE INTO charts (source, rule, trait, chart, sums, pending, answers, note) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [
            source,
            step.rule.name,
            step.trait,
            step.chart.model_dump_json() if step.chart else None,
            step.sums.model_dump_json(),
            json.dumps(step.pending),
            step.answers,
            step.note,
        ],
    )


def version_words(source: WatchedSource, facts: Mapping[str, str]) -> str:
    """What figures are chart_rows apart by."""
    if source.version:
        return source.version
    if not facts.get("model"):
        return "not stated"
    return f"{facts['model']}, Poise {facts.get('version', '?')}"


def _keep_poll(
    db: sqlite3.Connection, source: WatchedSource, state: Mapping[str, Any], poll: SourcePoll, now: float
) -> None:
    report = poll.report
    facts = dict(report.facts) if report else state["facts"]
    counts = dict(report.counts) if report else state["counts"]
    thresholds = state["thresholds"] if poll.thresholds is None else {k: dict(v) for k, v in poll.thresholds.items()}
    last_id = poll.readings[-1].id if poll.readings else state["last_id"]
    db.execute(
        "INSERT OR REPLACE INTO sources (name, polled, seen, fault, state, facts, counts, thresholds, last_id) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            source.name,
            now,
            state["seen"] if poll.fault else now,
            poll.fault,
            json.dumps(dict(report.state) if report else {}),
            json.dumps(facts),
            None if counts is None else json.dumps(counts),
            json.dumps(thresholds),
            last_id,
        ],
    )
    if not source.url:
        return
    version, start = version_words(source, facts), math.floor(now / BUCKET_SECONDS) * BUCKET_SECONDS
    new = grown(state["counts"], counts) if report and counts is not None else {}
    row = db.execute(
        "SELECT counts FROM buckets WHERE source = ? AND version = ? AND start = ?", [source.name, version, start]
    ).fetchone()
    before: dict[str, float] = json.loads(row[0]) if row else {}
    together = before | {name: before.get(name, 0.0) + value for name, value in new.items()}
    db.execute(
        "INSERT INTO buckets VALUES (?, ?, ?, 1, ?, ?) ON CONFLICT (source, version, start) "
        "DO UPDATE SET polls = polls + 1, failures = failures + excluded.failures, counts = excluded.counts",
        [source.name, version, start, int(bool(poll.fault)), json.dumps(together)],
    )


def _server_changes(state: Mapping[str, Any], poll: SourcePoll) -> list[RuleFinding]:
    """What runs there that did not at the poll before."""
    if poll.report is None or not state["facts"]:
        return []
    before, facts = state["facts"], poll.report.facts
    changed = [
        f"{name} {before.get(name, 'unknown')} → {facts.get(name, 'unknown')}"
        for name in FACTS_THAT_COUNT
        if before.get(name) != facts.get(name)
    ]
    if poll.thresholds is not None and state["thresholds"] and dict(poll.thresholds) != state["thresholds"]:
        names = sorted(
            name
            for name in set(poll.thresholds) | set(state["thresholds"])
            if poll.thresholds.get(name) != state["thresholds"].get(name)
        )
        changed.append(f"vectors or their alarms: {', '.join(names)}")
    return [RuleFinding(subject="", text=f"It is another than it was: {'; '.join(changed)}")] if changed else []
