"""Documents on the page: sources beside an answer, what supports each sentence, and what was retrieved."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (extra dev) to drive a browser")
pytest.importorskip("fastapi", reason="needs the extra serve")

from page_tab import NARROW, Tab, chromium_tab  # noqa: E402
from poise.knowledge import AnswerSettings, RetrievedPassage  # noqa: E402
from poise.serve.knowledge_use import KnowledgeUse  # noqa: E402
from stub_server import Stub  # noqa: E402
from test_page import CONTRAST  # noqa: E402

expect = playwright.expect
pytestmark = pytest.mark.browser

HOSTILE = "<img src=x onerror='window.hit=1'><script>window.hit=2</script> The **bold** office closes at noon."
TEXTS = (
    ("docs/tides.md", ("Guide", "Tides"), "The tide turns at 14:40 in summer and at 15:10 in winter.", ()),
    ("docs/<b>fees</b>.md", ("Fees",), "A berth costs 12 euros a night. " + "Long words follow. " * 60, ()),
    ("docs/office.html", (), HOSTILE, ("ignore-instructions",)),
)
ANSWER = "The tide turns at 14:40 in summer [1]. A 🚢 berth costs 12 euros a night. The harbour master is called Olga."


def passages() -> tuple[RetrievedPassage, ...]:
    made = []
    for number, (path, headings, text, marks) in enumerate(TEXTS):
        facts = {"title": "", "page": None, "score": 0.5 - number / 10, "labels": ()}
        made.append(RetrievedPassage(id=str(number), path=path, headings=headings, text=text, marks=marks, **facts))  # type: ignore[arg-type]
    return tuple(made)


def facts(text: str) -> dict[str, Any]:
    return KnowledgeUse("When does the tide turn?", passages(), AnswerSettings()).facts(text)


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    with chromium_tab() as opened:
        yield opened


@pytest.fixture
def tab(page: Any, stub: Stub) -> Iterator[Tab]:
    stub.knowledge = facts
    opened = Tab(page, stub.url)
    yield opened
    opened.close()
    opened.check()


def sources(tab: Tab) -> Any:
    return tab.page.get_by_role("region", name="Sources of Answer 1")


def citation(tab: Tab, name: str) -> Any:
    return tab.answer().locator(".tokens").get_by_role("button", name=name)


class TestTheSwitch:
    def test_is_there_only_where_the_server_has_documents(self, tab: Tab, stub: Stub) -> None:
        switch = tab.page.get_by_label("Answer from the server’s documents")
        expect(switch).to_be_checked()
        tab.ask("One?")
        switch.uncheck()
        tab.ask("Two?")
        assert [request["poise"]["knowledge"] for request in stub.requests] == [True, False]
        stub.knowledge = None
        tab.page.reload()
        expect(switch).to_be_hidden()
        tab.ask("Three?")
        assert "knowledge" not in stub.requests[-1]["poise"]
        expect(tab.answer(3).locator(".sources")).to_be_hidden()


class TestSources:
    def test_stand_beside_the_answer_cited_ones_first(self, tab: Tab) -> None:
        tab.ask(f"say:{ANSWER}")
        region = sources(tab)
        expect(region).to_contain_text("The documents support 2 of 3 sentences. 3 passages retrieved, 2 cited.")
        cited = region.get_by_role("list", name="Cited passages").get_by_role("listitem")
        expect(cited.locator("button")).to_have_text(
            ["[1] docs/tides.md › Guide › Tides", "[2] docs/<b>fees</b>.md › Fees"]
        )
        region.get_by_text("Also retrieved (1)").click()
        expect(region).to_contain_text("Reads as an instruction to the model: ignore-instructions.")
        box, words = region.bounding_box(), tab.answer().locator(".tokens").bounding_box()
        assert box["x"] >= words["x"] + words["width"]
        assert abs(box["y"] - words["y"]) < 40

    def test_say_which_sentences_no_passage_supports(self, tab: Tab) -> None:
        tab.ask(f"say:{ANSWER}")
        marked = tab.answer().locator(".tokens .token.unsupported").all_inner_texts()
        assert "".join(marked).split() == ["The", "harbour", "master", "is", "called", "Olga."]
        expect(citation(tab, "Unsupported: ")).to_have_text("✕ unsupported")
        sources(tab).get_by_text("Sentence by sentence").click()
        lines = sources(tab).locator(".support li .small")
        expect(lines).to_have_text(
            [
                "✓ supported ([1] cited by the model, score 1.00)",
                "✓ supported ([2] found by its words, score 1.00)",
                f"✕ unsupported: {facts(ANSWER)['sentences'][2]['problem']} "
                f"(score {facts(ANSWER)['sentences'][2]['score']:.2f})",
            ]
        )

    def test_are_text_whatever_a_document_says(self, tab: Tab) -> None:
        tab.ask("say:The bold office closes at noon [3].")
        expect(citation(tab, "Passage 3")).to_be_visible()
        citation(tab, "Passage 3").hover()
        expect(tab.answer().locator(".peek")).to_contain_text("<script>window.hit=2</script>")
        expect(sources(tab).locator("li").first).to_contain_text("<img src=x onerror")
        assert tab.answer().locator(".sources img, .sources script, .sources b:not(button > b), .peek img").count() == 0
        assert tab.page.evaluate("window.hit") is None

    def test_show_what_was_retrieved_where_the_documents_do_not_say_it(self, tab: Tab) -> None:
        tab.ask("say:Not in the documents.")
        expect(sources(tab)).to_contain_text("The answer is that the documents do not say it. 3 passages retrieved.")
        expect(tab.answer().locator(".cite")).to_have_count(0)
        sources(tab).get_by_text("Retrieved (3)").click()
        expect(sources(tab).get_by_role("list", name="Retrieved").get_by_role("listitem")).to_have_count(3)

    def test_are_kept_over_a_reload_and_in_the_saved_file(self, tab: Tab, tmp_path: Path) -> None:
        tab.ask(f"say:{ANSWER}")
        tab.page.reload()
        expect(citation(tab, "Passage 1")).to_be_visible()
        with tab.page.expect_download() as waited:
            tab.page.get_by_role("button", name="Save", exact=True).click()
        waited.value.save_as(tmp_path / "chat.json")
        (turn,) = json.loads((tmp_path / "chat.json").read_text(encoding="utf-8"))["turns"]
        assert turn["knowledge"]["sentences"] == facts(ANSWER)["sentences"]
        assert turn["answer"] == ANSWER


class TestACitation:
    @pytest.mark.parametrize("formatted", [True, False], ids=["formatted", "as written"])
    def test_stands_where_the_model_wrote_it_or_behind_its_sentence(self, tab: Tab, formatted: bool) -> None:
        tab.page.get_by_label("Formatted").set_checked(formatted)
        tab.ask(f"say:{ANSWER}")
        expect(tab.answer().locator(".tokens")).to_have_text(
            "The tide turns at 14:40 in summer1. A 🚢 berth costs 12 euros a night.2 "
            "The harbour master is called Olga.✕ unsupported"
        )
        expect(citation(tab, "Passage 2, found by the sentence’s words: docs/<b>fees</b>.md › Fees")).to_be_visible()

    def test_that_names_several_has_a_button_for_each_and_code_stays_as_it_is(self, tab: Tab) -> None:
        tab.ask("say:The tide turns at 14:40 [1, 2]. Write `x[1]` and [9].")
        expect(citation(tab, "Passage 1: ")).to_have_count(1)
        expect(citation(tab, "Passage 2: ")).to_have_count(1)
        expect(tab.answer().locator(".tokens code")).to_have_text("x[1]")
        expect(tab.answer().locator(".tokens")).to_contain_text("[9]")

    def test_shows_its_passage_while_it_is_pointed_at(self, tab: Tab) -> None:
        tab.ask(f"say:{ANSWER}")
        citation(tab, "Passage 1").hover()
        peek = tab.answer().locator(".peek")
        expect(peek).to_contain_text("docs/tides.md › Guide › Tides")
        expect(peek).to_contain_text("at 15:10 in winter")
        expect(sources(tab).locator("li.lit")).to_contain_text("docs/tides.md")
        peek.hover()
        expect(peek).to_be_visible()
        tab.page.mouse.move(5, 5)
        expect(peek).to_be_hidden()

    def test_works_by_keyboard_alone(self, tab: Tab) -> None:
        tab.ask(f"say:{ANSWER}")
        one, peek, keys = citation(tab, "Passage 1"), tab.answer().locator(".peek"), tab.page.keyboard
        one.focus()
        expect(peek).to_contain_text("The tide turns at 14:40")
        described = one.evaluate("(node) => document.getElementById(node.getAttribute('aria-describedby')).textContent")
        assert described == TEXTS[0][2]
        keys.press("Tab")
        expect(citation(tab, "Passage 2")).to_be_focused()
        expect(peek).to_contain_text("A berth costs 12 euros")
        keys.press("Tab")
        expect(peek).to_contain_text("Unsupported: ")
        keys.press("Escape")
        expect(peek).to_be_hidden()
        keys.press("Shift+Tab")
        keys.press("Enter")
        head = sources(tab).get_by_role("button", name="[2]")
        expect(head).to_be_focused()
        expect(head).to_have_attribute("aria-expanded", "true")
        keys.press("Escape")
        expect(citation(tab, "Passage 2")).to_be_focused()

    def test_is_told_at_the_end_of_the_answer(self, tab: Tab) -> None:
        tab.ask(f"say:{ANSWER}")
        expect(tab.page.locator("#live p").last).to_contain_text("The documents support 2 of 3 sentences.")


class TestOnANarrowPage:
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_everything_is_in_sight_and_readable(self, tab: Tab, scheme: str) -> None:
        tab.page.set_viewport_size(NARROW)
        tab.page.emulate_media(color_scheme=scheme)
        tab.ask(f"say:{ANSWER}")
        words, box = tab.answer().locator(".tokens").bounding_box(), sources(tab).bounding_box()
        assert box["y"] >= words["y"] + words["height"]
        for name in ("Passage 1", "Passage 2", "Unsupported"):
            citation(tab, name).focus()
            shown = tab.answer().locator(".peek").bounding_box()
            assert shown["x"] >= 0
            assert shown["x"] + shown["width"] <= NARROW["width"]
            assert tab.page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]
        for summary in sources(tab).locator("summary").all():
            summary.click()
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]
        for selector in (".cite", ".cite.unsaid", ".peek p", ".excerpt", ".sources .small", ".source .caution"):
            assert tab.page.evaluate(CONTRAST, selector) >= 4.5, selector
