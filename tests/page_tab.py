"""The page in a browser, for the tests that look at it."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (extra dev) to drive a browser")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("needs Chromium to show the page", allow_module_level=True)

expect = playwright.expect
WIDE, NARROW = {"width": 1400, "height": 900}, {"width": 400, "height": 800}


@contextlib.contextmanager
def chromium_tab() -> Iterator[Any]:
    """One tab for all tests of a file: a new one for each would be most of their time."""
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = chromium.new_context().new_page()
        opened.set_default_timeout(8000)
        opened.set_default_navigation_timeout(30_000)  # a machine may be busy when the first page is opened
        yield opened
        chromium.close()


class Tab:
    """The page of a server, opened afresh; ``check`` fails the test for whatever the console complained about."""

    def __init__(self, page: Any, url: str) -> None:
        self.page, self.url = page, url
        self.complaints: list[str] = []
        self.expected: tuple[str, ...] = ()
        page.set_viewport_size(WIDE)
        page.emulate_media(color_scheme="light")
        page.on("console", self._hear)
        page.on("pageerror", self._hear_error)
        page.goto(url)

    def _hear(self, said: Any) -> None:
        if said.type in ("error", "warning"):
            self.complaints.append(said.text)

    def _hear_error(self, error: Any) -> None:
        self.complaints.append(str(error))

    def close(self) -> None:
        self.page.evaluate("addEventListener('pagehide', () => sessionStorage.clear())")  # after the page's own saving
        self.page.evaluate("localStorage.clear()")
        self.page.goto("about:blank")
        self.page.remove_listener("console", self._hear)
        self.page.remove_listener("pageerror", self._hear_error)

    def check(self) -> None:
        assert [c for c in self.complaints if not c.startswith(self.expected or "\0")] == []

    def view(self, name: str) -> None:
        self.page.goto(f"{self.url}/#{name}")

    def ask(self, question: str, *, wait: bool = True) -> None:
        self.page.get_by_label("Your question").fill(question)
        self.page.get_by_role("button", name="Ask", exact=True).click()
        if wait:
            self.done()

    def done(self) -> None:
        expect(self.page.get_by_role("button", name="Ask", exact=True)).to_be_enabled()
        self.page.evaluate("() => new Promise((then) => setTimeout(then, 160))")  # the drawings follow at ease

    def dial(self, name: str, value: str) -> None:
        self.page.get_by_label(f"{name}: exact value").fill(value)

    def answer(self, n: int = 1) -> Any:
        return self.page.get_by_role("group", name=f"Answer {n}", exact=True)

    def card(self, name: str) -> Any:
        return self.page.locator(".card", has=self.page.get_by_role("heading", name=name, exact=True))

    def tones(self, n: int = 1) -> list[str]:
        script = "(node) => [...node.querySelectorAll('.tokens .token')].map((span) => span.lastChild.className)"
        return self.answer(n).evaluate(script)
