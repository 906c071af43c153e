"""The dashboard: what it reads, when it raises an alert, who may do what, and what a kill leaves."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from typer.testing import CliRunner

from poise.cli import app
from poise.dashboard.alert_database import AlertDatabase
from poise.dashboard.alerts import acknowledge_alert, make_silence
from poise.dashboard.dashboard_server import DashboardServer
from poise.dashboard.drift import DriftSums, fit_drift
from poise.dashboard.metrics_text import grown, histogram_quantile, read_metrics
from poise.dashboard.notifications import AlertNotifier
from poise.dashboard.overview import dashboard_overview, source_traits
from poise.dashboard.readings_reader import ReadingsReader
from poise.dashboard.rule_checks import check_counts
from poise.dashboard.rules import AlertMail, AlertRule, DashboardSettings, WatchedSource, read_dashboard
from poise.dashboard.watching import DashboardWatch
from poise.errors import (
    EndpointUnavailable,
    FolderInUse,
    InvalidArgument,
    InvalidData,
    InvalidSettings,
    OutputExists,
    RequestError,
)
from poise.serve.auth import ApiKeys
from poise.serve.metrics import Metrics
from poise.serve.readings_db import ReadingRecord, ReadingsStore

VIEWER, OPERATOR = "viewer-key-0123456789", "operator-key-0123456789"


class StubServer:
    """Metrics as a server of Poise has them, whatever a test wants them to be."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.ready, self.model = 1.0, "tiny"
        self.metrics.add_gauge("poise_ready", "Ready.", lambda: self.ready)
        self.raw: bytes | None = None
        self.key = ""
        self.vectors: list[dict[str, Any]] = [{"name": "up", "alarms": [{"reading": "mean", "threshold": 2.5}]}]
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                known = not stub.key or self.headers.get("Authorization") == f"Bearer {stub.key}"
                body = stub.raw if stub.raw is not None else stub.text()
                if self.path != "/metrics":
                    body = json.dumps({"data": stub.vectors}).encode()
                self.send_response(200 if known else 401)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def text(self) -> bytes:
        info = f'poise_info{{version="9.9",model="{self.model}",device="cpu",dtype="bf16",engine="local"}} 1.0\n'
        return self.metrics.text() + b"# TYPE poise_info gauge\n" + info.encode()

    def answer(self, n: int, *, status: int = 200, seconds: float = 0.1) -> None:
        for _ in range(n):
            self.metrics.requests.labels("/v1/chat/completions", str(status)).inc()
            self.metrics.finished.labels("stop").inc()
            self.metrics.first.observe(seconds)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def stub() -> Iterator[StubServer]:
    server = StubServer()
    yield server
    server.close()


def write_readings(path: Path, values: Any, trait: str = "up", began: float | None = None) -> None:
    """Readings by the server's own writer."""
    store = ReadingsStore(path)
    now = time.time() if began is None else began
    store.put(
        [
            ReadingRecord(time=now + i, request=f"r{i}", trait=trait, prompt=0.0, mean=float(v), peak=float(v) + 1)
            for i, v in enumerate(values)
        ]
    )
    store.close(30)


def settings_of(stub: StubServer | None, readings: Path | None = None, **more: Any) -> DashboardSettings:
    source = WatchedSource(name="till", url=stub.url if stub else "", readings=str(readings or ""))
    return DashboardSettings(servers=(source,), **more)


def open_texts(watch: DashboardWatch) -> list[str]:
    return [row["text"] for row in watch.database.open_alerts()]


class TestTheFile:
    def test_is_read_with_its_paths_in_its_folder(self, tmp_path: Path) -> None:
        (tmp_path / "d.yaml").write_text("servers:\n  - {name: till, url: http://127.0.0.1:8000, readings: r.sqlite}\n")
        source = read_dashboard(tmp_path / "d.yaml").servers[0]
        assert source.readings == str(tmp_path / "r.sqlite")

    @pytest.mark.parametrize(
        ("lines", "line", "words"),
        [
            ("rules:\n  - {name: d, when: drift, trat: up}", 4, "did you mean trait?"),
            ("rules:\n  - {name: d, when: down, above: 3}", 4, "is not for a rule of down, which takes seconds"),
            ("rules:\n  - {name: d, when: latency}", 4, "needs above"),
            ("rules:\n  - {name: d, when: down, servers: [tall]}", 4, "did you mean till?"),
            ("rules:\n  - {name: d, when: down}\n  - {name: d, when: drift}", 5, "is there twice"),
            ("webhook: example.org", 3, "has to begin with http:// or https://"),
            ("mail: {host: localhost, sender: a@example.org, to: nobody}", 3, "has to be one address or more"),
        ],
    )
    def test_says_what_is_wrong_where(self, tmp_path: Path, lines: str, line: int, words: str) -> None:
        file = tmp_path / "d.yaml"
        file.write_text(f"servers:\n  - {{name: till, url: http://127.0.0.1:8000}}\n{lines}\n")
        with pytest.raises(InvalidSettings) as caught:
            read_dashboard(file)
        assert f"line {line}" in str(caught.value)
        assert words in str(caught.value)


class TestMetrics:
    def test_of_a_real_server_are_counted(self, stub: StubServer) -> None:
        stub.answer(30)
        stub.answer(10, status=503, seconds=4)
        stub.metrics.guardrails.count(
            [{"guardrail": "g", "policy": "words", "rule": "fog", "source": "input", "action": "blocked"}]
        )
        report = read_metrics(stub.text().decode())
        assert report.usable
        assert report.facts["model"] == "tiny"
        assert (report.counts["requests"], report.counts["faults"], report.counts["answers"]) == (40, 10, 40)
        assert report.counts["interventions:blocked"] == report.counts["interventions"] == 1
        assert histogram_quantile(report.counts, "first_token", 0.5) == (pytest.approx(0.05 + 0.05 * 20 / 30), 40)
        assert histogram_quantile(report.counts, "first_token", 0.9) == (pytest.approx(2.5 + 2.5 * 6 / 10), 40)

    def test_that_are_none_are_said(self) -> None:
        for text in ("<html>", "poise_ready one\n", 'poise_ready{a="b 1\n', "\x00\xff"):
            with pytest.raises(EndpointUnavailable):
                read_metrics(text)
        with pytest.raises(EndpointUnavailable, match="not those of `poise serve`"):
            read_metrics("up 1\n")

    def test_growth_begins_anew_with_the_server(self) -> None:
        assert grown(None, {"requests": 5}) == {}
        assert grown({"requests": 5}, {"requests": 7}) == {"requests": 2}
        assert grown({"requests": 5, "answers": 9}, {"requests": 6, "answers": 2}) == {"requests": 6, "answers": 2}


class TestReadings:
    def test_are_those_after_the_last(self, tmp_path: Path) -> None:
        write_readings(tmp_path / "r.sqlite", [1.0, 2.0, 3.0])
        reader = ReadingsReader(tmp_path / "r.sqlite")
        assert [one.mean for one in reader.after(1)] == [2.0, 3.0]
        assert reader.last("up", "reply", "peak", 2) == [4.0, 3.0]
        assert reader.traits() == ["up"]
        assert len(reader.after(77)) == 3  # a file that was begun anew

    def test_of_version_0_1_0_have_no_part(self, tmp_path: Path) -> None:
        with contextlib.closing(sqlite3.connect(tmp_path / "old.sqlite")) as db, db:
            db.execute("CREATE TABLE readings (id INTEGER PRIMARY KEY, time, trait, prompt, mean, peak, alarmed)")
            db.execute("INSERT INTO readings VALUES (1, 1.0, 'up', 0.5, 'x', 2, 0)")
        only = ReadingsReader(tmp_path / "old.sqlite").after(0)[0]
        assert (only.part, only.mean, only.peak) == ("reply", None, 2.0)

    def test_of_another_program_are_said(self, tmp_path: Path) -> None:
        with contextlib.closing(sqlite3.connect(tmp_path / "other.sqlite")) as db, db:
            db.execute("CREATE TABLE readings (id, trait)")
        (tmp_path / "text.sqlite").write_text("hello " * 1000)
        for name, words in (
            ("other.sqlite", "lacks alarmed, mean"),
            ("text.sqlite", "cannot be read"),
            ("no.sqlite", "no readings at"),
        ):
            with pytest.raises(InvalidData, match=words):
                ReadingsReader(tmp_path / name).after(0)


class TestDrift:
    def test_keeps_its_promise_and_finds_a_shift_in_time(self) -> None:
        rng = np.random.default_rng(3)
        normal = 5 + 2 * rng.standard_normal(1000)
        chart = fit_drift(normal, every=500, side="both")
        sums, alarms = DriftSums(), 0
        for value in 5 + 2 * rng.standard_normal(10_000):
            sums, side = sums.after(chart, float(value))
            alarms += side is not None
        assert alarms <= 20  # one in 500 of 10,000, at most
        assert [limit.side for limit in chart.limits] == ["above", "below"]
        late = []
        for _ in range(200):
            sums, side, n = DriftSums(), None, 0
            while side is None:
                n += 1
                sums, side = sums.after(chart, float(3 + 2 * rng.standard_normal()))
            assert side == "below"
            late.append(n)
        assert np.quantile(late, 0.95) <= chart.limits[1].delays[0].most * 1.25
        assert np.median(late) == pytest.approx(chart.limits[1].delays[0].median, rel=0.35)


class TestRules:
    def test_on_shares_hold_where_the_whole_interval_is_above(self) -> None:
        rule = AlertRule(name="errors", when="errors", above=0.05)
        assert check_counts(rule, {"faults": 2, "requests": 20}) is None  # 0.1 [0.01, 0.32]
        finding = check_counts(rule, {"faults": 30, "requests": 200})
        assert finding is not None
        assert finding.text.startswith("0.15 [0.104, 0.207], n = 200")
        assert check_counts(rule, {}) is None

    def test_on_latency_hold_where_surely_too_many_are_slow(self) -> None:
        rule = AlertRule(name="slow", when="latency", above=1.0)
        fast = {"first_token<=1.0": 96.0, "first_token<=5.0": 100.0, "first_token<=+Inf": 100.0}
        slow = {"first_token<=1.0": 60.0, "first_token<=5.0": 100.0, "first_token<=+Inf": 100.0}
        assert check_counts(rule, fast) is None
        assert "0.4 [0.303, 0.503] are slower, n = 100" in str(check_counts(rule, slow))


class TestTheWatch:
    def test_says_that_a_server_is_down_after_its_time_and_when_it_is_back(self, tmp_path: Path) -> None:
        stub, ticks = StubServer(), [0.0]
        rules = (AlertRule(name="down", when="down", seconds=60),)
        watch = DashboardWatch(
            settings_of(stub, rules=rules),
            AlertDatabase(tmp_path / "d"),
            ticks=lambda: ticks[0],
            clock=lambda: -ticks[0],
        )  # fmt: skip  (a clock that runs back changes nothing)
        watch.poll()
        stub.ready = 0.0
        watch.poll()
        ticks[0] = 59
        watch.poll()
        assert open_texts(watch) == []
        ticks[0] = 61
        watch.poll()
        assert open_texts(watch) == ["Away for 61 s: it takes no requests: it is ending, or its model fails"]
        stub.ready = 1.0
        watch.poll()
        assert open_texts(watch) == []
        stub.close()
        watch.poll()
        ticks[0] = 200
        watch.poll()
        assert "it cannot be reached (ConnectError)" in open_texts(watch)[0]

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda stub: setattr(stub, "raw", b"<html>not me</html>"), "metrics"),
            (lambda stub: setattr(stub, "key", "another"), "401: the key is missing or wrong"),
            (lambda stub: setattr(stub, "raw", b"\xff\xfe poise 1 2 3 4"), "metrics"),
        ],
    )
    def test_takes_odd_servers_as_news(self, tmp_path: Path, stub: StubServer, change: Any, words: str) -> None:
        change(stub)
        rules = (AlertRule(name="down", when="down", seconds=0),)
        watch = DashboardWatch(settings_of(stub, rules=rules), AlertDatabase(tmp_path / "d"))
        watch.poll()
        assert words in open_texts(watch)[0]

    def test_says_once_that_another_model_is_served(self, tmp_path: Path, stub: StubServer) -> None:
        watch = DashboardWatch(settings_of(stub), AlertDatabase(tmp_path / "d"))
        watch.poll()
        assert open_texts(watch) == []
        stub.model = "other"
        watch.poll()
        watch.poll()
        assert open_texts(watch) == ["It is another than it was: model tiny → other"]
        assert [v["version"] for v in dashboard_overview(watch)["sources"][0]["versions"]] != []

    def test_counts_by_version_and_survives_a_restart_of_either(self, tmp_path: Path, stub: StubServer) -> None:
        watch = DashboardWatch(settings_of(stub), AlertDatabase(tmp_path / "d"))
        watch.poll()
        stub.answer(40)
        watch.poll()
        again = DashboardWatch(settings_of(stub), AlertDatabase(tmp_path / "d"))
        stub.answer(2, status=500)
        again.poll()
        figures = dashboard_overview(again)["sources"][0]["figures"]
        assert (figures["requests"], figures["faults"]["value"]) == (42, pytest.approx(2 / 42))
        stub.model = "other"
        stub.answer(8)
        again.poll()
        versions = {v["version"]: v["requests"] for v in dashboard_overview(again)["sources"][0]["versions"]}
        assert versions == {"tiny, Poise 9.9": 42, "other, Poise 9.9": 8}

    def test_raises_drift_and_takes_a_new_normal(self, tmp_path: Path) -> None:
        rng, file = np.random.default_rng(0), tmp_path / "r.sqlite"
        write_readings(file, rng.standard_normal(300))
        rules = (AlertRule(name="drift", when="drift", baseline=300, every=200),)
        watch = DashboardWatch(settings_of(None, file, rules=rules), AlertDatabase(tmp_path / "d"))
        watch.poll()
        chart = dashboard_overview(watch)["sources"][0]["charts"][0]
        assert "set on 300 answers; a false alarm every 200 ordinary answers or more rarely" in chart["promise"]
        write_readings(file, rng.standard_normal(60))
        watch.poll()
        assert open_texts(watch) == []
        write_readings(file, 3 + rng.standard_normal(30))
        watch.poll()
        assert open_texts(watch)[0].startswith("up drifts upwards: ")
        alert = watch.database.open_alerts()[0]
        acknowledge_alert(watch.database, alert["id"], by="ada", note="meant", now=1.0, new_normal=True)
        assert open_texts(watch) == []
        write_readings(file, 3 + rng.standard_normal(300))
        watch.poll()
        assert dashboard_overview(watch)["sources"][0]["charts"][0]["mean"] == pytest.approx(3, abs=0.3)
        facts = source_traits(watch, "till", days=1)["traits"][0]
        assert sum(bucket["n"] for bucket in facts["buckets"]) == 690

    def test_tells_a_mean_beyond_its_limit(self, tmp_path: Path) -> None:
        rules = (AlertRule(name="high", when="trait", trait="up", above=2, answers=50),)
        write_readings(tmp_path / "r.sqlite", 2.1 + np.random.default_rng(0).standard_normal(50))
        watch = DashboardWatch(settings_of(None, tmp_path / "r.sqlite", rules=rules), AlertDatabase(tmp_path / "d"))
        watch.poll()
        assert open_texts(watch) == []  # 2.1, and its interval holds 2
        write_readings(tmp_path / "r.sqlite", 3 + np.random.default_rng(0).standard_normal(50))
        watch.poll()
        assert open_texts(watch)[0].endswith("above 2")

    def test_notes_rules_of_traits_that_nothing_reads(self, tmp_path: Path, stub: StubServer) -> None:
        rules = (AlertRule(name="drift", when="drift", trait="upp"),)
        watch = DashboardWatch(settings_of(stub, rules=rules), AlertDatabase(tmp_path / "d"))
        watch.poll()
        assert "did you mean up?" in dashboard_overview(watch)["notes"][0]

    def test_ends_what_the_file_has_no_more(self, tmp_path: Path, stub: StubServer) -> None:
        rules = (AlertRule(name="down", when="down", seconds=0),)
        stub.ready = 0.0
        DashboardWatch(settings_of(stub, rules=rules), AlertDatabase(tmp_path / "d")).poll()
        assert AlertDatabase(tmp_path / "d").open_alerts() != []
        DashboardWatch(settings_of(stub), AlertDatabase(tmp_path / "d")).poll()
        other = (AlertRule(name="away", when="down"),)
        DashboardWatch(settings_of(stub, rules=other), AlertDatabase(tmp_path / "d"))
        assert AlertDatabase(tmp_path / "d").open_alerts() == []


class TestTheDatabase:
    def test_is_no_other_programs(self, tmp_path: Path) -> None:
        with contextlib.closing(sqlite3.connect(tmp_path / "other")) as db, db:
            db.execute("CREATE TABLE mine (id)")
        (tmp_path / "text").write_text("hello " * 100)
        for name in ("other", "text"):
            with pytest.raises(OutputExists):
                AlertDatabase(tmp_path / name)
        AlertDatabase(tmp_path / "ours")
        with contextlib.closing(sqlite3.connect(tmp_path / "ours")) as db, db:
            db.execute("UPDATE about SET value = '7'")
        with pytest.raises(OutputExists, match="format 7 of another version"):
            AlertDatabase(tmp_path / "ours")

    def test_keeps_alerts_and_acknowledgements_through_a_kill(self, tmp_path: Path) -> None:
        program = f"""
import sys, time
from pathlib import Path
from poise.dashboard.alert_database import AlertDatabase
from poise.dashboard.alerts import acknowledge_alert, begin_alert
from poise.dashboard.rule_checks import RuleFinding
from poise.dashboard.rules import AlertRule
db = AlertDatabase(Path({str(tmp_path / "d")!r}))
for n in range(10_000):
    with db.changing() as open:
        rule = AlertRule(name=f"r{{n}}", when="down")
        begin_alert(open, rule, "till", RuleFinding(text="t"), 1.0, channels=["webhook"], silenced=False)
    acknowledge_alert(db, n + 1, by="ada", note="seen", now=2.0)
    print(n + 1, flush=True)
"""
        child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=os.environ)
        assert child.stdout
        last = 0
        while last < 20:
            last = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        rows = AlertDatabase(tmp_path / "d").rows("SELECT * FROM alerts ORDER BY id")
        assert len(rows) >= last
        assert all(row["by"] == "ada" for row in rows[:last])
        waiting = AlertDatabase(tmp_path / "d").rows("SELECT * FROM deliveries")
        assert len(waiting) == len(rows)

    def test_silences_end_though_the_clock_is_moved_back(self, tmp_path: Path) -> None:
        database = AlertDatabase(tmp_path / "d")
        make_silence(database, rule="", source="till", seconds=3600, by="ada", note="", now=10_000)
        assert database.is_silenced("down", "till", 10_100)
        assert not database.is_silenced("down", "other", 10_100)
        assert not database.is_silenced("down", "till", 13_700)
        assert not database.is_silenced("down", "till", 10_000 - 86_400)
        with pytest.raises(RequestError, match="at most 31 days"):
            make_silence(database, rule="", source="", seconds=1e9, by="ada", note="", now=0)


@contextlib.contextmanager
def smtp_server(greeting: bytes = b"220 hello\r\n", refuse: bool = False) -> Iterator[tuple[int, list[str]]]:
    """A mail server that takes one mail at a time, and keeps what it took."""
    listener, mails = socket.create_server(("127.0.0.1", 0)), []

    def serve() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            with peer, peer.makefile("rwb") as lines:
                lines.write(greeting)
                lines.flush()
                data: list[str] | None = None
                for line in lines:
                    text = line.decode().rstrip("\r\n")
                    if data is not None and text != ".":
                        data.append(text)
                        continue
                    reply = "250 ok"
                    if data is not None:
                        mails.append("\n".join(data))
                        data = None
                    elif text.upper() == "DATA":
                        data, reply = [], "354 go"
                    elif text.upper().startswith("RCPT") and refuse:
                        reply = "550 no such person"
                    lines.write(f"{reply}\r\n".encode())
                    lines.flush()
                    if text.upper().startswith("QUIT"):
                        break

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield listener.getsockname()[1], mails
    finally:
        listener.close()


class TestTelling:
    def notifier(self, tmp_path: Path, stub: StubServer, **more: Any) -> tuple[AlertNotifier, DashboardWatch]:
        rules = (AlertRule(name="down", when="down", seconds=0, severity="page"),)
        settings = settings_of(stub, rules=rules, **more)
        database = AlertDatabase(tmp_path / "d")
        notifier = AlertNotifier(settings, database)
        return notifier, DashboardWatch(settings, database, channels=notifier.channels)

    def test_mails_an_alert_and_its_end(self, tmp_path: Path, stub: StubServer) -> None:
        with smtp_server() as (port, mails):
            mail = AlertMail(
                host="127.0.0.1", port=port, security="none", sender="p@example.org", to=("ada@example.org",)
            )
            notifier, watch = self.notifier(tmp_path, stub, mail=mail)
            stub.ready = 0.0
            watch.poll()
            watch.poll()
            assert notifier.send_due(time.time()) == 1
            stub.ready = 1.0
            watch.poll()
            assert notifier.send_due(time.time()) == 1
        assert "Subject: [poise] raised: down of till" in mails[0]
        assert "it takes no requests" in mails[0]
        assert "Subject: [poise] ended: down of till" in mails[1]

    @pytest.mark.parametrize("how", ["closed", "refuses", "greets with an error"])
    def test_keeps_what_a_mail_server_does_not_take(self, tmp_path: Path, stub: StubServer, how: str) -> None:
        greeting = b"421 go away\r\n" if how.startswith("greets") else b"220 hello\r\n"
        with smtp_server(greeting, refuse=how == "refuses") as (port, _):
            port = 9 if how == "closed" else port
            mail = AlertMail(
                host="127.0.0.1", port=port, security="none", sender="p@example.org", to=("ada@example.org",)
            )
            notifier, watch = self.notifier(tmp_path, stub, mail=mail)
            stub.ready = 0.0
            watch.poll()
            assert notifier.send_due(1000.0) == 0
            row = watch.database.rows("SELECT * FROM deliveries")[0]
            assert (row["state"], row["tries"]) == ("waiting", 1)
            assert {"closed": "cannot be handed in", "refuses": "refused", "greets with an error": "421"}[how] in row[
                "fault"
            ]
            assert notifier.send_due(1000.5) == 0
            assert watch.database.rows("SELECT tries FROM deliveries")[0]["tries"] == 1  # it waits
            for again in range(16):
                notifier.send_due(1000.0 + 1000 * (again + 1))
            assert watch.database.rows("SELECT state, tries FROM deliveries") == [{"state": "lost", "tries": 14}]

    def test_does_not_wait_for_a_webhook_that_hangs(
        self, tmp_path: Path, stub: StubServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("poise.dashboard.notifications.POST_SECONDS", 0.2)
        with socket.create_server(("127.0.0.1", 0)) as hanging:
            notifier, watch = self.notifier(tmp_path, stub, webhook=f"http://127.0.0.1:{hanging.getsockname()[1]}/hook")
            stub.ready = 0.0
            watch.poll()
            notifier.send_due(time.time())
            assert "does not answer within" in watch.database.rows("SELECT fault FROM deliveries")[0]["fault"]

    def test_says_nothing_of_what_is_silenced(self, tmp_path: Path, stub: StubServer) -> None:
        _, watch = self.notifier(tmp_path, stub, webhook="http://127.0.0.1:9/")
        make_silence(watch.database, rule="down", source="", seconds=60, by="ada", note="", now=time.time())
        stub.ready = 0.0
        watch.poll()
        assert watch.database.open_alerts()[0]["silenced"] == 1
        assert watch.database.rows("SELECT * FROM deliveries") == []


@pytest.fixture
def keyed(tmp_path: Path, stub: StubServer) -> Iterator[tuple[str, DashboardServer]]:
    settings = settings_of(
        stub,
        rules=(AlertRule(name="down", when="down", seconds=0),),
        operators=("ada",),
        every_seconds=0.05,
        webhook="http://127.0.0.1:9/",
    )
    server = DashboardServer(settings, tmp_path / "out", keys=ApiKeys({"ada": OPERATOR, "vera": VIEWER}), port=0)
    yield server.start(), server
    server.stop()


def eventually(get: Any) -> Any:
    end = time.monotonic() + 60
    while not (got := get()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return got


class TestTheServer:
    def ask(self, address: str, path: str, key: str | None, body: Any = None) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        method = "GET" if body is None else "POST"
        return httpx.request(method, address + path, headers=headers, json=body, timeout=30)

    def test_lets_viewers_look_and_operators_act(self, keyed: tuple[str, DashboardServer], stub: StubServer) -> None:
        address, _ = keyed
        assert self.ask(address, "/api/overview", None).status_code == 401
        stub.ready = 0.0
        alert = eventually(lambda: self.ask(address, "/api/overview", VIEWER).json()["alerts"])[0]
        path = f"/api/alerts/{alert['id']}/acknowledge"
        refused = self.ask(address, path, VIEWER, {"note": "mine"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "operators_only")
        assert self.ask(address, "/api/silences", VIEWER, {"hours": 1}).status_code == 403
        assert self.ask(address, "/api/rules/down/test", VIEWER, {}).status_code == 403
        taken = self.ask(address, path, OPERATOR, {"note": "on it"}).json()
        assert (taken["by"], taken["note"]) == ("ada", "on it")
        assert self.ask(address, path, OPERATOR, {}).status_code == 409
        assert self.ask(address, "/api/alerts/99/acknowledge", OPERATOR, {}).status_code == 404
        assert self.ask(address, f"/api/alerts/{10**30}/acknowledge", OPERATOR, {}).status_code in (400, 422)
        sent = self.ask(address, "/api/rules/down/test", OPERATOR, {}).json()["sent"]
        assert sent == [{"channel": "webhook", "fault": "the webhook cannot be reached (ConnectError)"}]
        assert "Do you mean /api/overview?" in self.ask(address, "/api/overvew", OPERATOR).text
        assert self.ask(address, "/api/silences", OPERATOR, {"rule": "dwn", "hours": 1}).status_code == 400
        made = self.ask(address, "/api/silences", OPERATOR, {"rule": "down", "hours": 1}).json()["id"]
        assert httpx.delete(
            f"{address}/api/silences/{made}", headers={"Authorization": f"Bearer {OPERATOR}"}
        ).is_success

    def test_has_a_page_with_the_servers_headers(self, keyed: tuple[str, DashboardServer]) -> None:
        address, _ = keyed
        page = self.ask(address, "/", None)
        assert "Poise dashboard" in page.text
        assert page.headers["content-security-policy"].startswith("default-src 'self'")
        for part in ("dashboard.js", "dashboard_charts.js", "dashboard.css", "base.css", "dom.js", "words.js"):
            assert self.ask(address, f"/page/{part}", None).is_success

    def test_keeps_others_out_of_its_folder(self, keyed: tuple[str, DashboardServer]) -> None:
        _, server = keyed
        with pytest.raises(FolderInUse):
            DashboardServer(server.watch.settings, server.database.path.parent, keys=ApiKeys({}), port=0)

    def test_is_for_this_machine_without_keys(self, tmp_path: Path, stub: StubServer) -> None:
        with pytest.raises(InvalidArgument, match="can be reached from other machines"):
            DashboardServer(settings_of(stub), tmp_path, keys=ApiKeys({}), host="0.0.0.0", port=0)
        with pytest.raises(InvalidArgument, match="Operators without a key: bo"):
            DashboardServer(settings_of(stub, operators=("bo",)), tmp_path, keys=ApiKeys({"ada": OPERATOR}), port=0)


class TestTheCommand:
    def test_looks_once(self, tmp_path: Path, stub: StubServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        run = CliRunner().invoke(app, ["dashboard", "--server", f"till={stub.url}", "--once"])
        assert (run.exit_code, run.stdout) == (0, "till: well\n0 open alerts.\n")
        away = CliRunner().invoke(app, ["dashboard", "--server", "till=http://127.0.0.1:9", "--once"])
        assert (away.exit_code, "till: it cannot be reached" in away.stdout) == (1, True)
        (tmp_path / "d.yaml").write_text(
            f"servers:\n  - {{name: till, url: '{stub.url}'}}\nrules:\n  - name: d\n    when: drift\n    trait: upp\n"
        )
        run = CliRunner().invoke(app, ["dashboard", "d.yaml", "--once"])
        assert run.exit_code == 2
        assert "line 6: rules.0.trait is 'upp', which is not there; did you mean up?" in run.stderr

    def test_says_what_it_lacks(self, tmp_path: Path, stub: StubServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        for arguments, words in (
            ([], "Nothing to watch"),
            (["--server", stub.url, "--test", "dwn"], "did you mean down?"),
            (["--server", stub.url, "--test", "down"], "no webhook and no mail"),
            (["--server", stub.url, "--once", "--test", "down"], "give one of them"),
            (["--server", "example.org"], "names no server"),
        ):
            run = CliRunner().invoke(app, ["dashboard", *arguments])
            assert run.exit_code == 2, run.output
            assert words in run.stderr
