"""The page in Firefox: asking, formatting, keeping and reloading, with nothing to complain of in its console."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("aiohttp", reason="needs aiohttp (extra data) to drive Firefox")

from firefox import FIREFOX, Firefox
from stub_server import SAID, Stub

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(FIREFOX is None, reason="needs Firefox (Debian's firefox-esr) to show the page"),
]

READY = "document.getElementById('status').textContent.startsWith('connected')"
DONE = "document.getElementById('send').textContent === 'Ask' && document.querySelectorAll('article.turn').length"
HOSTILE = "say:**bold** <img src=x onerror='window.hit=1'> [a](javascript:window.hit=2) ![b](https://example.org/b.png)"

PASSAGES = [{"path": "", "title": "", "headings": ["fees.md<script>"], "text": "A berth costs 12 euros.", "marks": []}]
SENTENCES = [
    {
        "text": "It costs 12 euros.",
        "start": 0,
        "end": 22,
        "passages": [1],
        "cited_by": "model",
        "score": 1,
        "supported": True,
    },
    {
        "text": "Olga said so.",
        "start": 23,
        "end": 36,
        "passages": [],
        "score": 0,
        "supported": False,
        "problem": "Olga",
    },
]


@pytest.fixture(scope="module")
def firefox() -> Iterator[Firefox]:
    browser = Firefox()
    yield browser
    browser.close()


def text(firefox: Firefox, selector: str) -> str:
    return str(firefox.evaluate(f"document.querySelector({selector!r})?.textContent.trim()"))


class TestInFirefox:
    def test_chats_steers_formats_and_keeps(self, firefox: Firefox, stub: Stub) -> None:
        firefox.open(stub.url)
        firefox.wait_for(READY)
        firefox.evaluate("document.querySelector('.card .exact').focus()")
        firefox.evaluate("document.querySelector('.card .exact').select()")
        firefox.type("20")
        firefox.evaluate("document.getElementById('question').focus()")
        firefox.type("What do you think of my plan?\n")
        firefox.wait_for(f"{DONE} === 1")
        assert text(firefox, ".tokens") == SAID
        assert stub.requests[-1]["poise"]["steer"] == {"terms": [{"vector": "impolite", "dose": 0.2}]}
        tones = firefox.evaluate(
            "[...document.querySelectorAll('.tokens .token i:last-child')].map((i) => i.className)"
        )
        assert {"a1", "a2"} <= set(tones)
        firefox.evaluate(f"document.getElementById('question').value = {HOSTILE!r}")
        firefox.evaluate("document.getElementById('question').focus()")
        firefox.type("\n")
        firefox.wait_for(f"{DONE} === 2")
        last = "article.turn:last-child .tokens"
        assert text(firefox, f"{last} strong") == "bold"
        assert firefox.evaluate(f"document.querySelector({last!r}).querySelectorAll('img, [onerror]').length") == 0
        links = f"[...document.querySelectorAll({last + ' a[href]'!r})].map((a) => a.getAttribute('href'))"
        assert firefox.evaluate(links) == ["https://example.org/b.png"]
        assert firefox.evaluate("window.hit") is None
        firefox.wait_for("import('/page/store.js').then((s) => s.list()).then((all) => all[0]?.count === 2)")
        firefox.reload()
        firefox.wait_for(f"{DONE} === 2")
        assert text(firefox, ".tokens") == SAID
        assert firefox.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert firefox.complaints == []

    def test_shows_sources_and_what_they_do_not_support(self, firefox: Firefox, stub: Stub) -> None:
        stub.knowledge = lambda said: {
            "passages": PASSAGES,
            **({"answered": True, "sentences": SENTENCES} if said else {}),
        }
        firefox.open(stub.url)
        firefox.wait_for(READY)
        firefox.evaluate("document.getElementById('question').value = 'say:It costs 12 euros [1]. Olga said so.'")
        firefox.evaluate("document.getElementById('question').focus()")
        firefox.type("\n")
        firefox.wait_for("document.querySelectorAll('article.turn:last-child .cite').length")
        firefox.evaluate("document.querySelector('.cite').dispatchEvent(new MouseEvent('mouseenter'))")
        assert text(firefox, "article.turn:last-child .peek") == "[1] fees.md<script>A berth costs 12 euros."
        assert text(firefox, "article.turn:last-child .tokens") == "It costs 12 euros1. Olga said so.✕ unsupported"
        assert firefox.evaluate(
            "[...document.querySelectorAll('.unsupported')].map((s) => s.textContent).join('')"
        ) == (" Olga said so.")
        assert firefox.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert firefox.complaints == []
