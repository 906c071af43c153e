"""Drift end to end: a served model is changed under traffic, and the dashboard says so within the stated delay."""

from __future__ import annotations

import json
from pathlib import Path

import httpx

import serving
import tiny
from poise.dashboard.alert_database import AlertDatabase
from poise.dashboard.drift import DriftChart
from poise.dashboard.rules import AlertRule, DashboardSettings, WatchedSource
from poise.dashboard.watching import DashboardWatch
from poise.vector import PersonaVector

BASELINE, AFTER = 120, 60


def ask(address: str, n: int, *, first: int) -> None:
    """Ordinary requests, each with its own prompt and seed."""
    with httpx.Client(base_url=address, timeout=120) as client:
        for i in range(first, first + n):
            body = {
                "model": "tiny",
                "messages": [{"role": "user", "content": f"What is {i}?"}],
                "max_tokens": 6,
                "seed": i,
                "temperature": 1.0,
            }
            answer = client.post(
                "/v1/chat/completions", json=body | {"model": client.get("/v1/models").json()["data"][0]["id"]}
            )
            assert answer.status_code == 200, answer.text


def charted(watch: DashboardWatch) -> DriftChart:
    rows = watch.database.rows("SELECT chart FROM charts WHERE trait = 'up'")
    return DriftChart.model_validate_json(rows[0]["chart"])


def test_an_operators_steering_raises_the_alert_in_time(tmp_path: Path) -> None:
    model = tiny.model()
    vectors: dict[str, PersonaVector] = serving.vectors(model)
    readings, policy = tmp_path / "readings.sqlite", tmp_path / "policy.yaml"
    policy.write_text("default: {}\n")
    with serving.running(model, vectors, log=readings, policy=policy) as (address, server):
        settings = DashboardSettings(
            servers=(WatchedSource(name="till", url=address, readings=str(readings)),),
            rules=(
                AlertRule(name="drift", when="drift", trait="up", baseline=BASELINE, every=200),
                AlertRule(name="down", when="down", seconds=0),
            ),
        )
        watch = DashboardWatch(settings, AlertDatabase(tmp_path / "dashboard.sqlite"))
        ask(address, BASELINE, first=0)
        serving.eventually(lambda: server.service.store.counts.written >= 2 * BASELINE)
        watch.poll()
        chart = charted(watch)
        assert watch.database.open_alerts() == []

        policy.write_text(json.dumps({"default": {"steer": "down@0=4 on all"}}))
        server.reloader.reload()
        assert server.service.policies.default.steer is not None
        ask(address, AFTER, first=BASELINE)
        serving.eventually(lambda: server.service.store.counts.written >= 2 * (BASELINE + AFTER))
        watch.poll()
        alerts = watch.database.open_alerts()
        moved = [row.mean for row in watch.pollers["till"].reader.after(2 * BASELINE) if row.trait == "up"]
    assert [alert["rule"] for alert in alerts] == ["drift"], moved
    limit = chart.limits[0]
    shift = abs(sum(m for m in moved if m is not None) / len(moved) - limit.mean) / limit.sd
    assert shift > 1.0, "the model was not changed enough to promise anything"
    within = max(each.delays[0].most for each in chart.limits)  # 95 % of shifts of one standard deviation
    assert "shift of one standard deviation is found within" in chart.promise
    answers = int(alerts[0]["text"].split(": ")[1].split(" answers")[0])
    assert answers <= within
