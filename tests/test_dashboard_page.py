"""The dashboard's page in a real Chromium, at two widths, dark and light."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (extra dev) to drive a browser")

from page_tab import Tab, chromium_tab  # noqa: E402
from poise.dashboard.dashboard_server import DashboardServer  # noqa: E402
from poise.dashboard.rules import AlertRule, DashboardSettings, WatchedSource  # noqa: E402
from poise.serve.auth import ApiKeys  # noqa: E402
from poise.serve.readings_db import ReadingRecord, ReadingsStore  # noqa: E402
from test_dashboard import OPERATOR, VIEWER, StubServer  # noqa: E402

expect = playwright.expect
pytestmark = pytest.mark.browser
DAY = 86400.0


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    with chromium_tab() as opened:
        yield opened


def some_days(path: Path, *, last: float) -> None:
    """A week of readings, the last of which may have moved."""
    rng, now = np.random.default_rng(0), time.time()
    store = ReadingsStore(path)
    alarm = [{"trait": "impolite", "reading": "mean", "threshold": 8.0}]
    for day in range(7):
        values = 5 + rng.standard_normal(80) + (last if day == 6 else 0)
        store.put(
            [
                ReadingRecord(
                    time=now - (7 - day) * DAY + i * 900,
                    request=f"{day}-{i}",
                    trait="impolite",
                    mean=float(value),
                    peak=float(value) + 1,
                    prompt=1.0,
                    tokens=9,
                    alarms=alarm if value > 8 else (),
                )
                for i, value in enumerate(values)
            ]
        )
    store.close(30)


@pytest.fixture
def dashboard(tmp_path: Path) -> Iterator[str]:
    well, sick = StubServer(), StubServer()
    some_days(tmp_path / "readings.sqlite", last=2.0)
    some_days(tmp_path / "run.sqlite", last=0.0)
    for stub in (well, sick):
        stub.vectors = [{"name": "impolite", "alarms": [{"reading": "mean", "threshold": 8.0}]}]
    sick.ready = 0.0
    settings = DashboardSettings(
        servers=(
            WatchedSource(name="till", url=well.url, readings=str(tmp_path / "readings.sqlite")),
            WatchedSource(name="counter", url=sick.url),
            WatchedSource(name="run of May", readings=str(tmp_path / "run.sqlite")),
        ),
        rules=(
            AlertRule(name="down", when="down", seconds=0, severity="page"),
            AlertRule(name="drift", when="drift", baseline=300, every=500),
        ),
        operators=("ada",),
        every_seconds=0.2,
        webhook="http://127.0.0.1:9/",
    )
    server = DashboardServer(settings, tmp_path / "out", keys=ApiKeys({"ada": OPERATOR, "vera": VIEWER}), port=0)
    address = server.start()
    time.sleep(0.5)
    well.answer(200)
    well.answer(3, status=500, seconds=3)
    yield address
    server.stop()
    well.close()
    sick.close()


def entered(page: Any, address: str, key: str) -> Tab:
    tab = Tab(page, address)
    tab.expected = ("Failed to load resource: the server responded with a status of 401",)
    page.get_by_label("Key", exact=True).fill(key)
    page.get_by_role("button", name="Use it").click()
    return tab


def test_an_operator_sees_and_acknowledges(page: Any, dashboard: str) -> None:
    tab = entered(page, dashboard, OPERATOR)
    expect(page.locator("#alert-list article").first).to_contain_text("down: counter")
    expect(page.locator("#alert-list")).to_contain_text("impolite drifts upwards", timeout=30_000)
    expect(page.get_by_role("article", name="till", exact=True)).to_contain_text("Drift charts")
    expect(page.get_by_role("region", name="impolite").first).to_be_visible()
    expect(page.get_by_role("article", name="till").locator("svg.wide line.threshold")).to_have_count(1)
    drift = page.locator("#alert-list article", has_text="drifts upwards").first
    drift.get_by_role("button", name="Acknowledge").click()
    page.get_by_label("What was done").fill("the new prompt <b>is meant</b>")
    page.locator("#acknowledge").get_by_role("button", name="Acknowledge").click()
    page.get_by_text("Alerts that are over").click()
    expect(page.locator("#past-list")).to_contain_text("ada: the new prompt <b>is meant</b>")
    page.get_by_role("row", name="down").get_by_role("button", name="Test").click()
    expect(page.locator("#notified")).to_contain_text("webhook: the webhook cannot be reached")
    page.locator("#silence").get_by_label("Why").fill("tonight")
    page.locator("#silence").get_by_role("button", name="Silence").click()
    expect(page.locator("#silence-list")).to_contain_text("Every rule of everything until")
    page.get_by_role("button", name="Lift").click()
    expect(page.locator("#silence-list")).to_contain_text("None.")
    tab.close()
    tab.check()


def test_a_viewer_sees_and_may_change_nothing(page: Any, dashboard: str) -> None:
    tab = entered(page, dashboard, VIEWER)
    expect(page.locator("#alert-list article").first).to_contain_text("down: counter")
    expect(page.get_by_role("button", name="Acknowledge")).to_have_count(0)
    expect(page.locator("#silence")).to_be_hidden()
    tab.close()
    tab.check()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_fits_its_window(page: Any, dashboard: str, width: int, scheme: str) -> None:
    tab = entered(page, dashboard, OPERATOR)
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    expect(page.locator("#alert-list")).to_contain_text("impolite drifts upwards", timeout=30_000)
    expect(page.get_by_role("region", name="impolite").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if folder := os.environ.get("POISE_PICTURES"):
        page.screenshot(path=Path(folder) / f"dashboard-{width}-{scheme}.png", full_page=True)
    tab.close()
    tab.check()
