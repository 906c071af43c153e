"""The page of a run that goes on: what it shows, who may decide on it, and that the first word counts."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from agent_server import ScriptedModel, finish
from poise.agent import AgentSettings, EndpointModel, LiveRunPage, PendingCall, ToolsFile, open_tools, run_agent
from poise.agent.approval import ApprovalDecision
from poise.agent.live_page import shown_signs
from poise.agent.records import read_records
from poise.cli.agent import TerminalPerson
from poise.errors import InvalidArgument, UserError
from poise.settings import check_settings

FILES = {"files": {"folder": "files", "write": True}}
CALL = PendingCall(tool="write_file", arguments={"path": "a.txt", "text": "<b>\u202egnp</b>"}, touches=("write",))
WRITES = [("write_file", {"path": "a.txt", "text": "<b>&"}), finish()]


class PageOnly:
    """Nobody at a terminal; a page."""

    def __init__(self, page: LiveRunPage) -> None:
        self.page = page

    def approves(self, call: PendingCall) -> bool | None:
        return self.page.approves(call)

    def answer(self, question: str) -> str | None:
        return None


class Going:
    """A run that goes on in a thread of its own, with its page."""

    def __init__(self, folder: Path, script: list[Any], seconds: float = 60.0) -> None:
        self.folder, self.server = folder, ScriptedModel(script)
        self.page = LiveRunPage(folder / "run", seconds=seconds)
        self.http = httpx.Client()
        self.result: Any = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        with contextlib.suppress(UserError), open_tools(check_settings(FILES, ToolsFile), self.folder) as tools:
            self.result = run_agent(
                "a goal",
                EndpointModel(self.server.url),
                tools,
                self.folder / "run",
                AgentSettings(),
                person=PageOnly(self.page),
                listen=self.page.take,
            )

    def waiting(self) -> str:
        """The page, once a call waits."""
        end = time.monotonic() + 60
        while "A call waits for you" not in (text := self.http.get(self.page.address).text):
            assert time.monotonic() < end, text[:500]
            time.sleep(0.05)
        return text

    def decide(self, decision: str, **changes: str) -> httpx.Response:
        form = {"token": self.page.token, "number": "1", "decision": decision} | changes
        return self.http.post(self.page.address.replace("/?", "/decide?"), data=form)

    def ended(self) -> Any:
        self.thread.join(60)
        return self.result

    def close(self) -> None:
        end = time.monotonic() + 60
        while self.thread.is_alive() and time.monotonic() < end:
            for number in (1, 2, 3):
                self.page.decide(number, approved=False)
            self.thread.join(0.1)
        self.http.close()
        self.page.close()
        self.server.stop()


@pytest.fixture
def going(tmp_path: Path) -> Iterator[Going]:
    run = Going(tmp_path, WRITES)
    yield run
    run.close()


class TestLivePage:
    def test_shows_the_call_and_lets_it_happen(self, going: Going) -> None:
        text = going.waiting()
        assert "<code>write_file</code> touches write" in text
        assert "&lt;b&gt;&amp;" in text
        assert not (going.folder / "files" / "a.txt").exists()
        assert going.decide("allow").status_code == 303
        assert going.ended().outcome == "done"
        assert (going.folder / "files" / "a.txt").read_text() == "<b>&"
        assert "done" in going.http.get(going.page.address).text

    def test_denies_it(self, going: Going) -> None:
        going.waiting()
        going.decide("deny")
        going.ended()
        assert not (going.folder / "files" / "a.txt").exists()
        [row] = [row for row in read_records(going.folder / "run") if row["kind"] == "approval"]
        assert row["decision"] == "refused"

    def test_that_nobody_opens_times_out(self, tmp_path: Path) -> None:
        run = Going(tmp_path, WRITES, seconds=0.2)
        try:
            run.ended()
            [row] = [row for row in read_records(tmp_path / "run") if row["kind"] == "approval"]
            assert row["decision"] == "nobody"
            assert not (tmp_path / "files" / "a.txt").exists()
            late = run.decide("allow")
            assert late.status_code == 409
            assert "Nobody decided it in time" in late.text
        finally:
            run.close()

    def test_is_nobody_s_without_its_token(self, going: Going) -> None:
        going.waiting()
        address = going.page.address.partition("?")[0]
        tries = [
            going.http.get(address),
            going.http.get(f"{address}?token=x"),
            going.http.get(f"{address}?token=\u00e9"),
            going.decide("allow", token="x"),
            going.decide("allow", token=""),
            going.http.get(going.page.address, headers={"Host": "evil.example"}),
            going.http.post(f"{address}decide", data={"token": going.page.token, "number": "1", "decision": "allow"},
                            headers={"Host": "evil.example:80"}),
        ]  # fmt: skip
        assert {answer.status_code for answer in tries} == {403}
        assert all(going.page.token not in answer.text for answer in tries)
        odd = [
            going.decide("maybe"),
            going.decide("allow", number="x"),
            going.decide("allow", number="9" * 400),
            going.http.post(going.page.address, content=b"x" * 20_000),
            going.http.get(going.page.address.replace("/?", "/other?")),
        ]
        assert [answer.status_code for answer in odd] == [400, 400, 400, 413, 404]
        assert going.decide("allow", number="2").status_code == 409
        going.waiting()
        assert not (going.folder / "files" / "a.txt").exists()

    def test_keeps_its_token_out_of_the_run(self, going: Going) -> None:
        going.waiting()
        going.decide("allow")
        going.ended()
        texts = [path.read_bytes() for path in (going.folder / "run").iterdir() if path.is_file()]
        assert texts
        assert all(going.page.token.encode() not in text for text in texts)

    def test_that_cannot_listen_says_so(self, tmp_path: Path) -> None:
        page = LiveRunPage(tmp_path)
        try:
            assert "The run begins" in httpx.get(page.address).text
            port = int(re.search(r":(\d+)/", page.address)[1])  # type: ignore[index]
            with pytest.raises(InvalidArgument, match="choose another `page`"):
                LiveRunPage(tmp_path / "other", port=port)
        finally:
            page.close()


class TestDecision:
    def test_is_the_first_word_s(self) -> None:
        wins = []
        for _ in range(20):
            decision = ApprovalDecision(CALL, 1, 60)
            barrier = threading.Barrier(2)

            def say(yes: bool, decision: ApprovalDecision = decision, barrier: threading.Barrier = barrier) -> None:
                barrier.wait()
                if decision.settle(yes, "the page" if yes else "the terminal"):
                    wins.append((yes, decision))

            threads = [threading.Thread(target=say, args=(yes,)) for yes in (True, False)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert len(wins) == 20
        assert all(decision.approved is yes for yes, decision in wins)

    def test_that_time_made_stays_so(self) -> None:
        decision = ApprovalDecision(CALL, 1, 0.0)
        assert decision.wait(5)
        assert (decision.approved, decision.by) == (None, "time")
        assert not decision.settle(True, "the page")

    def test_shows_every_sign(self) -> None:
        assert shown_signs("a\u202eb\n\tc\x07\u200b") == "a\\u202eb\n\tc\\u0007\\u200b"


@contextlib.contextmanager
def terminal(patch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], int]]:
    """Have the process sit at a terminal; types into it."""
    there, here = os.openpty()
    with os.fdopen(os.dup(here), "w") as shown, os.fdopen(here, "r") as typed_in, patch.context() as patched:
        patched.setattr(sys, "stdin", typed_in)
        patched.setattr(sys, "stderr", shown)
        yield lambda text: os.write(there, text)
    os.close(there)


class Asked:
    """A call that is asked about in a thread of its own."""

    def __init__(self, page: LiveRunPage) -> None:
        self.answers: list[bool | None] = []
        person = TerminalPerson(None, page)
        self.thread = threading.Thread(target=lambda: self.answers.append(person.approves(CALL)), daemon=True)
        self.thread.start()

    @property
    def answer(self) -> bool | None:
        self.thread.join(60)
        return self.answers[0]


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal")
class TestAtTheTerminalToo:
    @pytest.mark.parametrize(("line", "yes"), [(b"y\n", True), (b"\n", False)])
    def test_the_terminal_decides_and_the_page_is_told(
        self, line: bytes, yes: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        page = LiveRunPage(tmp_path, seconds=60)
        with terminal(monkeypatch) as typed:
            asked = Asked(page)
            typed(line)
            assert asked.answer is yes
        verdict = "It was allowed" if yes else "It was refused"
        assert page.decide(1, approved=True) == f"{verdict} at the terminal; nothing was changed."
        page.close()

    def test_the_page_decides_and_the_terminal_goes_on(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        page = LiveRunPage(tmp_path, seconds=60)
        with terminal(monkeypatch):
            asked = Asked(page)
            end = time.monotonic() + 60
            while page.decide(1, approved=True):
                assert time.monotonic() < end
                time.sleep(0.05)
            assert asked.answer is True
        page.close()

    def test_nobody_decides_in_time(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        page = LiveRunPage(tmp_path, seconds=0.3)
        with terminal(monkeypatch):
            assert Asked(page).answer is None
        page.close()


@pytest.mark.browser
class TestInABrowser:
    @pytest.mark.parametrize("width", [1280, 400])
    def test_a_call_is_allowed_by_a_click(self, going: Going, width: int) -> None:
        playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (extra dev)")
        from page_tab import chromium_tab

        going.waiting()
        with chromium_tab() as tab:
            tab.set_viewport_size({"width": width, "height": 900})
            tab.goto(going.page.address)
            playwright.expect(tab.get_by_role("heading", name="A call waits for you")).to_be_visible()
            assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
            tab.get_by_role("button", name="Allow this call").click()
            playwright.expect(tab.get_by_role("heading", name="A call waits for you")).to_have_count(0)
            going.ended()
            playwright.expect(tab.locator(".verdict")).to_contain_text("done", timeout=15_000)
        assert (going.folder / "files" / "a.txt").exists()
