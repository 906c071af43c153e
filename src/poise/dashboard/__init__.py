"""Many servers and runs on one page: health, latency, traits over days, and alerts that somebody acknowledges.

rules            what is watched, by which rules, and who is notified: the YAML
metrics_text     what a server's /metrics says, as counts that grow and a state
polling          one poll of a server and its database of readings
readings_reader  a database of readings as it grows, which this process never writes
drift            a chart that is set on a source's own ordinary answers, and how late it may be
rule_checks      whether a rule holds, by what was counted
notifications    alerts on their way to people, by webhook and mail
alert_database   counts, charts, alerts, silences and what is still to be sent, in one SQLite file
watching         polls, charts and rules together
overview         what the page shows; the page itself: dashboard_app; the process: dashboard_server

It reads what servers publish and what they wrote; it changes nothing of theirs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise._lazy import lazy_names

if TYPE_CHECKING:
    from poise.dashboard.rules import AlertRule, DashboardSettings, WatchedSource, read_dashboard
    from poise.dashboard.watching import DashboardWatch

__all__ = ["AlertRule", "DashboardSettings", "DashboardWatch", "WatchedSource", "read_dashboard"]

__getattr__, __dir__ = lazy_names(
    "poise.dashboard",
    {
        "AlertRule": "dashboard.rules",
        "DashboardSettings": "dashboard.rules",
        "DashboardWatch": "dashboard.watching",
        "WatchedSource": "dashboard.rules",
        "read_dashboard": "dashboard.rules",
    },
)
