"""Alerts as they begin, continue, are acknowledged and end; a change and its notification are one transaction."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Sequence
from typing import Any

from poise.dashboard.alert_database import AlertDatabase
from poise.dashboard.rule_checks import RuleFinding
from poise.dashboard.rules import AlertRule
from poise.errors import RequestError

__all__ = ["EVENTS", "acknowledge_alert", "begin_alert", "end_alerts", "lift_silence", "make_silence", "queue_delivery"]

EVENTS = ("drift", "changed")
"""What happens once and is over when somebody has acknowledged it; the other alerts end with their cause."""
LONGEST_SILENCE = 31 * 86400.0


def begin_alert(
    db: sqlite3.Connection,
    rule: AlertRule,
    source: str,
    finding: RuleFinding,
    now: float,
    *,
    channels: Sequence[str],
    silenced: bool,
) -> None:
    """Open an alert and queue its notification, or note that the open one of the same subject continues."""
    row = db.execute(
        "SELECT id, acknowledged FROM alerts WHERE rule = ? AND source = ? AND subject = ? AND ended IS NULL",
        [rule.name, source, finding.subject],
    ).fetchone()
    if row is not None:
        change = "times = times + 1" if rule.when in EVENTS else "text = ?"  # of an event the first words stay
        words = [] if rule.when in EVENTS else [finding.text]
        db.execute(f"UPDATE alerts SET last = ?, {change} WHERE id = ?", [now, *words, row[0]])
        return
    number = db.execute(
        "INSERT INTO alerts (rule, source, subject, severity, kind, text, began, last, silenced) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [rule.name, source, finding.subject, rule.severity, rule.when, finding.text, now, now, int(silenced)],
    ).lastrowid
    if not silenced:
        _notify(db, "raised", number, now, channels)


def end_alerts(
    db: sqlite3.Connection, rule: AlertRule, source: str, still: Collection[str], now: float, *, channels: Sequence[str]
) -> None:
    """End the open alerts of a rule and a source whose cause is gone.

    Args:
        db: The database, in a transaction.
        rule: The rule.
        source: The source.
        still: Subjects of which it holds.
        now: The time.
        channels: How people are notified.
    """
    rows = db.execute(
        "SELECT id, subject, silenced FROM alerts WHERE rule = ? AND source = ? AND ended IS NULL", [rule.name, source]
    ).fetchall()
    for number, subject, silenced in rows:
        if subject not in still:
            db.execute("UPDATE alerts SET ended = ? WHERE id = ?", [now, number])
            if not silenced:
                _notify(db, "ended", number, now, channels)


def _notify(db: sqlite3.Connection, what: str, number: int | None, now: float, channels: Sequence[str]) -> None:
    row = db.execute("SELECT * FROM alerts WHERE id = ?", [number]).fetchone()
    body = {"event": what, **alert_facts(dict(row))}
    for channel in channels:
        queue_delivery(db, number, channel, body, now)


def queue_delivery(
    db: sqlite3.Connection, alert: int | None, channel: str, body: dict[str, Any], now: float
) -> int | None:
    """Queue a notification; a thread sends it."""
    return db.execute(
        "INSERT INTO deliveries (alert, channel, body, due) VALUES (?, ?, ?, ?)",
        [alert, channel, json.dumps(body, ensure_ascii=False), now],
    ).lastrowid


def alert_facts(row: dict[str, Any]) -> dict[str, Any]:
    """An alert as it is sent and shown."""
    names = ("id", "rule", "source", "subject", "severity", "kind", "text", "began", "last", "times", "ended")
    return {name: row[name] for name in names} | {
        "acknowledged": row["acknowledged"],
        "by": row["by"],
        "note": row["note"],
        "silenced": bool(row["silenced"]),
    }


def acknowledge_alert(
    database: AlertDatabase, number: int, *, by: str, note: str, now: float, new_normal: bool = False
) -> dict[str, Any]:
    """Say that somebody has seen to an alert.

    Args:
        database: The database.
        number: Id of the alert.
        by: Who says so.
        note: What was done, in words.
        now: The time.
        new_normal: Whether what has drifted is ordinary from now on: its charts are set anew on answers to come.

    Raises:
        RequestError: 404 where there is no such alert, 409 where somebody was faster or it is over.
    """
    with database.changing() as db:
        row = db.execute("SELECT * FROM alerts WHERE id = ?", [number]).fetchone()
        if row is None:
            raise RequestError(404, f"There is no alert {number}.", code="no_alert")
        if row["acknowledged"] is not None:
            raise RequestError(409, f"{row['by']} has acknowledged it already.", code="acknowledged")
        if row["ended"] is not None:
            raise RequestError(409, "It is over already.", code="ended")
        ended = now if row["kind"] in EVENTS else None
        db.execute(
            "UPDATE alerts SET acknowledged = ?, by = ?, note = ?, ended = ? WHERE id = ?",
            [now, by, note, ended, number],
        )
        if new_normal and row["kind"] == "drift":
            db.execute(
                "UPDATE charts SET chart = NULL, sums = '{}', pending = '[]', answers = 0, note = '' "
                "WHERE source = ? AND rule = ? AND trait = ?",
                [row["source"], row["rule"], row["subject"]],
            )
        return alert_facts(dict(db.execute("SELECT * FROM alerts WHERE id = ?", [number]).fetchone()))


def make_silence(
    database: AlertDatabase, *, rule: str, source: str, seconds: float, by: str, note: str, now: float
) -> int:
    """Notify nobody of new alerts for a while; the page still shows them.

    Args:
        database: The database.
        rule: Name of the rule; empty for all.
        source: Name of the source; empty for all.
        seconds: For how long.
        by: Who wants it.
        note: Why.
        now: The time.

    Raises:
        RequestError: 400 for a time that is no time or more than 31 days.
    """
    if not 0 < seconds <= LONGEST_SILENCE:
        raise RequestError(400, "A silence lasts more than 0 seconds and at most 31 days.", param="seconds")
    with database.changing() as db:
        return int(
            db.execute(
                "INSERT INTO silences (rule, source, made, until, by, note) VALUES (?, ?, ?, ?, ?, ?)",
                [rule, source, now, now + seconds, by, note],
            ).lastrowid
            or 0
        )


def lift_silence(database: AlertDatabase, number: int, now: float) -> None:
    """End a silence.

    Raises:
        RequestError: 404 where there is none.
    """
    with database.changing() as db:
        if not db.execute("UPDATE silences SET until = ? WHERE id = ? AND until > ?", [now, number, now]).rowcount:
            raise RequestError(404, f"There is no silence {number} that lasts.", code="no_silence")
