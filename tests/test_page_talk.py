"""Conversations of the page: kept, branched, queued, formatted; tool calls; dials of all kinds; hostile answers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (extra dev) to drive a browser")

from page_tab import NARROW, Tab, chromium_tab  # noqa: E402
from stub_server import SAID, Stub, tokens_of  # noqa: E402

expect = playwright.expect
pytestmark = pytest.mark.browser

FORGET = "() => import('/page/store.js').then((store) => store.removeAll())"


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    with chromium_tab() as opened:
        opened.context.grant_permissions(["clipboard-read", "clipboard-write"])
        yield opened


@pytest.fixture
def tab(page: Any, stub: Stub) -> Iterator[Tab]:
    opened = Tab(page, stub.url)
    yield opened
    page.evaluate(FORGET)
    opened.close()
    opened.check()


def button(tab: Tab, name: str) -> Any:
    return tab.page.get_by_role("button", name=name, exact=True)


def questions(stub: Stub) -> list[str]:
    return [request["messages"][-1]["content"] for request in stub.requests]


class TestBranches:
    def test_come_of_an_edited_question_and_of_a_second_answer(self, tab: Tab, stub: Stub) -> None:
        tab.ask("One?")
        tab.ask("Two?")
        turn = tab.page.get_by_role("article", name="Question and answer 1")
        turn.get_by_role("button", name="Edit").click()
        turn.get_by_label("Edit the question").fill("Another?")
        tab.page.keyboard.press("Enter")
        tab.done()
        expect(tab.page.locator("article.turn")).to_have_count(1)
        expect(turn.locator(".asked")).to_have_text("Another?")
        expect(turn.locator(".branches")).to_contain_text("2 of 2")
        turn.get_by_role("button", name="Regenerate").click()
        tab.done()
        expect(turn.locator(".branches")).to_contain_text("3 of 3")
        assert questions(stub) == ["One?", "Two?", "Another?", "Another?"]
        assert [request["seed"] for request in stub.requests] == [0, 1, 0, 1]
        assert [len(request["messages"]) for request in stub.requests] == [1, 3, 1, 1]
        turn.get_by_role("button", name="The branch before").click()
        turn.get_by_role("button", name="The branch before").click()
        expect(tab.page.locator(".asked")).to_have_text(["One?", "Two?"])

    def test_are_still_there_after_a_reload(self, tab: Tab) -> None:
        tab.ask("One?")
        button(tab, "Regenerate").click()
        tab.done()
        tab.page.reload()
        expect(tab.page.locator(".branches")).to_contain_text("2 of 2")

    def test_of_a_question_that_fails_leave_the_one_before(self, tab: Tab) -> None:
        tab.expected = ("Failed to load resource",)
        tab.ask("One?")
        tab.page.route("**/v1/chat/completions", lambda route: route.abort("connectionrefused"))
        button(tab, "Regenerate").click()
        tab.done()
        tab.page.unroute("**/v1/chat/completions")
        expect(tab.page.locator(".branches")).to_have_count(0)
        expect(tab.answer().locator(".tokens")).to_have_text(SAID)


class TestAQuestionDuringAnAnswer:
    def test_waits_and_is_asked_when_the_answer_has_come(self, tab: Tab, stub: Stub) -> None:
        tab.ask("Is it slow?", wait=False)
        tab.page.get_by_label("Your question").fill("And then?")
        tab.page.keyboard.press("Enter")
        expect(tab.page.locator("#queued")).to_contain_text("And then?")
        expect(tab.page.get_by_label("Your question")).to_have_value("")
        expect(tab.answer(1).locator(".tokens")).to_contain_text(
            "Well,"
        )  # else nothing was answered, and it is taken back
        button(tab, "Ask now").click()
        expect(tab.answer(2).locator(".tokens")).to_have_text(SAID)
        expect(tab.answer(1)).to_contain_text("You stopped it here.")
        expect(tab.page.locator("#queued")).to_be_hidden()
        assert questions(stub) == ["Is it slow?", "And then?"]

    def test_goes_back_into_the_box_when_the_answer_is_stopped(self, tab: Tab, stub: Stub) -> None:
        tab.ask("slow", wait=False)
        tab.page.get_by_label("Your question").fill("And then?")
        tab.page.keyboard.press("Enter")
        expect(tab.page.locator("#queued")).to_be_visible()
        expect(tab.answer().locator(".tokens")).to_contain_text("Well,")
        tab.page.keyboard.press("Escape")
        tab.done()
        expect(tab.page.get_by_label("Your question")).to_have_value("And then?")
        assert len(stub.requests) == 1


class TestKeptConversations:
    @staticmethod
    def opened(tab: Tab) -> Any:
        button(tab, "Conversations").click()
        return tab.page.get_by_role("dialog", name="Conversations")

    def test_are_listed_opened_exported_imported_and_deleted(self, tab: Tab, stub: Stub, tmp_path: Path) -> None:
        tab.ask("Tell me of tea.")
        button(tab, "Regenerate").click()
        tab.done()
        button(tab, "New").click()
        expect(tab.page.locator("article.turn")).to_have_count(0)
        tab.ask("Tell me of <b>coffee</b>.")
        dialog = self.opened(tab)
        items = dialog.get_by_role("listitem")
        expect(items).to_have_count(2)
        expect(items.first).to_contain_text("Tell me of <b>coffee</b>.")
        with tab.page.expect_download() as waited:
            dialog.get_by_role("button", name="Export Tell me of tea.").click()
        waited.value.save_as(tmp_path / "tea.json")
        saved = json.loads((tmp_path / "tea.json").read_text(encoding="utf-8"))
        assert (len(saved["turns"]), len(saved["other_branches"])) == (1, 1)
        dialog.get_by_role("button", name="Tell me of tea.", exact=True).click()
        expect(tab.page.locator(".asked")).to_have_text(["Tell me of tea."])
        expect(tab.page.locator(".branches")).to_contain_text("2 of 2")
        dialog = self.opened(tab)
        dialog.get_by_role("button", name="Delete Tell me of tea.").click()
        dialog.get_by_role("button", name="Really delete?").click()
        expect(items).to_have_count(1)
        dialog.locator("#kept-file").set_input_files(tmp_path / "tea.json")
        expect(items).to_have_count(2)
        dialog.get_by_role("button", name="Tell me of tea.", exact=True).click()
        expect(tab.answer().locator(".tokens")).to_have_text(SAID)
        expect(tab.page.locator(".branches")).to_contain_text("2 of 2")
        dialog = self.opened(tab)
        dialog.get_by_role("button", name="Delete all").click()
        dialog.get_by_role("button", name="Really delete all?").click()
        expect(items).to_have_count(0)
        expect(tab.page.locator("article.turn")).to_have_count(0)

    def test_of_another_file_are_refused_in_a_sentence(self, tab: Tab, tmp_path: Path) -> None:
        (tmp_path / "other.json").write_text('{"page": 2}')
        dialog = self.opened(tab)
        dialog.locator("#kept-file").set_input_files(tmp_path / "other.json")
        expect(dialog).to_contain_text("Not imported: Entry 1 of this file is no conversation of this page")

    def test_are_not_kept_where_that_is_not_wanted(self, tab: Tab) -> None:
        dialog = self.opened(tab)
        dialog.get_by_label("Keep conversations in this browser").uncheck()
        dialog.get_by_role("button", name="Close").click()
        tab.ask("One?")
        tab.page.reload()
        expect(tab.answer().locator(".tokens")).to_have_text(SAID)
        expect(self.opened(tab).get_by_role("listitem")).to_have_count(0)

    def test_of_two_tabs_lose_nothing_of_each_other(self, tab: Tab, stub: Stub) -> None:
        tab.ask("One?")
        other = Tab(tab.page.context.new_page(), stub.url)
        self.opened(other).get_by_role("button", name="One?", exact=True).click()
        expect(other.answer().locator(".tokens")).to_have_text(SAID)
        other.ask("From the other?")
        other.page.close()
        tab.ask("From the first?")
        tab.page.reload()
        expect(tab.page.locator(".asked")).to_have_text(["One?", "From the first?"])
        button(tab, "The branch before").click()
        expect(tab.page.locator(".asked")).to_have_text(["One?", "From the other?"])


MARKDOWN = """# Tea

Boil **water** and *wait*, see [the guide](https://example.org/tea "a title") & more.

1. Warm the pot
2. Add `leaves`

| kind | minutes |
|---|--:|
| green | 2 |

```python
print("tea")  # not *emphasis*
```

7. Pour
"""
HOSTILE = """<script>window.hit = 1</script> <img src=x onerror="window.hit = 2"> <svg onload="window.hit = 3">

[a](javascript:window.hit=4) [b](data:text/html,<script>window.hit=5</script>) <javascript:window.hit=6> [c](vbscript:x)

![remote](https://example.org/pixel.png) ![inline](data:image/svg+xml,<svg/onload=window.hit=7>)

<iframe src="/"></iframe> <form action="/v1"><input name="key"></form> <style>body { display: none }</style>

<a href="https://example.org" onclick="window.hit=8" style="position:fixed;inset:0">x</a> <b id="question">y</b>

| a | <img src=x onerror=window.hit=9> |
|---|---|
| [d](JaVaScRiPt:window.hit=10) | \u202egnp.exe |
"""


class TestFormatting:
    def test_shows_markdown_with_every_token_tinted(self, tab: Tab) -> None:
        tab.ask("say:" + MARKDOWN)
        body = tab.answer().locator(".tokens")
        expect(body.locator("h4")).to_have_text("Tea")
        expect(body.locator("strong")).to_have_text("water")
        expect(body.locator("ol > li")).to_have_text(["Warm the pot", "Add leaves", "Pour"])
        expect(body.locator("td")).to_have_text(["green", "2"])
        expect(body.locator("td").last).to_have_css("text-align", "right")
        expect(body.locator("ol").last).to_have_attribute("start", "7")
        expect(body.locator("pre code")).to_have_text('print("tea")  # not *emphasis*\n')
        link = body.get_by_role("link", name="the guide")
        expect(link).to_have_attribute("href", "https://example.org/tea")
        expect(link).to_have_attribute("rel", "noopener noreferrer nofollow")
        script = "(node) => [...node.querySelectorAll('.token')].map((s) => [Number(s.dataset.token), s.textContent])"
        tokens = tokens_of("say:" + MARKDOWN)
        for i, text in body.evaluate(script):
            assert text.strip() in tokens[i], (i, text, tokens[i])
        shown = {i for i, _ in body.evaluate(script)}
        left_out = {"", "#", '"a', 'title")', "1.", "2.", "7.", "|", "|---|--:|", "```python", "```"}
        assert {token.strip() for i, token in enumerate(tokens) if i not in shown} <= left_out

    def test_can_be_switched_off(self, tab: Tab) -> None:
        tab.ask("say:" + MARKDOWN)
        tab.page.get_by_label("Formatted").uncheck()
        expect(tab.answer().locator(".tokens")).to_have_text(MARKDOWN.rstrip(), use_inner_text=False)
        expect(tab.answer().locator("strong")).to_have_count(0)

    def test_is_copied_as_it_was_written(self, tab: Tab) -> None:
        tab.ask("say:" + MARKDOWN)
        tab.answer().get_by_role("button", name="Copy", exact=True).click()
        expect(tab.answer().get_by_role("button", name="Copied")).to_be_visible()
        assert tab.page.evaluate("navigator.clipboard.readText()").strip() == MARKDOWN.strip()
        tab.answer().get_by_role("button", name="Copy code").click()
        assert tab.page.evaluate("navigator.clipboard.readText()").strip() == 'print("tea")  # not *emphasis*'

    def test_lets_nothing_of_a_hostile_answer_run_load_or_pose(self, tab: Tab, stub: Stub) -> None:
        asked = []
        tab.page.on("request", lambda request: asked.append(request.url))
        tab.ask("say:" + HOSTILE)
        body = tab.answer().locator(".tokens")
        expect(body).to_contain_text("<script>window.hit = 1</script>")
        expect(body).to_contain_text('<img src=x onerror="window.hit = 2">')
        expect(body).to_contain_text("[U+202E]gnp.exe")
        banned = "script, img, svg, iframe, form, input, style, object, [style], [id], [onclick], [onerror], [onload]"
        expect(body.locator(banned)).to_have_count(0)
        links = body.locator("a[href]").evaluate_all("(all) => all.map((a) => a.getAttribute('href'))")
        assert links == ["https://example.org/pixel.png", "https://example.org"]
        body.get_by_text("a", exact=True).first.click()
        assert tab.page.evaluate("window.hit") is None
        assert [url for url in asked if not url.startswith(stub.url)] == []

    @pytest.mark.parametrize(
        "text",
        [
            "> " * 600 + "deep",
            "[" * 2000,
            "*a " * 600,
            "`" * 3000 + "a",
            "|" + "a|" * 100 + "\n|" + "-|" * 100 + ("\n|" + " b |" * 100) * 8,
            "- " * 600 + "x",
            "a" * 200 + "\n```js\nlet unclosed = '<b>';",
        ],
        ids=["deep quotes", "brackets", "stars", "backticks", "a huge table", "deep list", "an open fence"],
    )
    def test_of_what_is_costly_or_open_shows_it_all_the_same(self, tab: Tab, text: str) -> None:
        tab.ask("say:" + text, wait=False)
        expect(button(tab, "Ask")).to_be_enabled(timeout=30_000)
        expect(tab.answer().locator(".tokens")).to_contain_text(text[-2:].strip().strip("|>` ") or "a")
        expect(tab.page.get_by_label("Your question")).to_be_enabled()
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= 1400

    def test_does_not_jump_while_an_answer_comes(self, tab: Tab) -> None:
        script = """() => {
          const tops = (window.tops = new Map());
          const note = () => {
            for (const node of document.querySelectorAll('.tokens.formatted .token')) {
              const [id, top] = [node.dataset.token + node.textContent, node.getBoundingClientRect().top + scrollY];
              if (!tops.has(id)) tops.set(id, new Set());
              tops.get(id).add(Math.round(top));
            }
            window.noting = requestAnimationFrame(note);
          };
          note();
        }"""
        tab.page.evaluate(script)
        lines = "\n".join(f"Line {i} with **bold {i}** and `code`.\n" for i in range(6))
        tab.ask(f"say:slow {lines}\n| a | b |\n|---|---|\n| 1 | 2 |\n")
        tab.page.evaluate("cancelAnimationFrame(window.noting)")
        assert tab.page.evaluate("[...window.tops].filter(([, tops]) => tops.size > 1).map(([token]) => token)") == []


class TestToolCalls:
    def test_are_folded_and_their_results_go_back(self, tab: Tab, stub: Stub) -> None:
        tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
        tab.page.get_by_text("Tools", exact=True).click()
        tab.page.get_by_label("What the model may call").fill("[{]")
        expect(tab.page.locator("#tools-problem")).to_contain_text("The tools are not JSON.")
        tab.page.get_by_label("What the model may call").fill(json.dumps(tools))
        tab.ask("How is the weather?")
        assert stub.requests[-1]["tools"] == tools
        call = tab.answer().locator("details.call")
        expect(call.locator("summary")).to_have_text("Calls weather")
        expect(call.locator("pre")).to_be_hidden()
        call.locator("summary").click()
        expect(call.locator("pre")).to_have_text('{\n  "city": "<b>Oslo</b>"\n}')
        tab.page.get_by_label("Result of weather").fill("rain")
        button(tab, "Send the result").click()
        tab.done()
        function = {"name": "weather", "arguments": '{"city": "<b>Oslo</b>"}'}
        call_sent = {"id": "call_1", "type": "function", "function": function}
        assert stub.requests[-1]["messages"][1:] == [
            {
                "role": "assistant",
                "content": SAID,
                "tool_calls": [call_sent],
            },
            {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
        ]
        expect(tab.answer(2).locator(".tokens")).to_have_text(SAID)
        tab.page.reload()
        expect(tab.answer(1).locator("details.call summary")).to_have_text("Calls weather")
        expect(tab.page.get_by_label("Result of weather")).to_have_count(0)


class TestDialsOfOtherKinds:
    def steer(self, stub: Stub) -> Any:
        return stub.requests[-1]["poise"].get("steer")

    def test_cap_by_level_or_at_the_alarm(self, tab: Tab, stub: Stub) -> None:
        card = tab.card("impolite")
        card.get_by_text("How and when").click()
        card.get_by_label("impolite: it works as").select_option("cap: no higher than")
        tab.dial("impolite", "2.5")
        tab.ask("One?")
        assert self.steer(stub) == {"terms": [{"vector": "impolite", "operation": "cap", "level": 2.5}]}
        expect(tab.page.locator(".turn .how")).to_have_text("impolite capped at +2.50")
        card.get_by_label("at the threshold of its alarm").check()
        tab.ask("Two?")
        assert self.steer(stub) == {"terms": [{"vector": "impolite", "operation": "cap", "level": "alarm"}]}
        card.get_by_role("button", name="Turn impolite off").click()
        tab.ask("Three?")
        assert self.steer(stub) is None

    def test_clamp_and_project_out(self, tab: Tab, stub: Stub) -> None:
        for name in ("impolite", "evil"):
            tab.card(name).get_by_text("How and when").click()
        tab.page.get_by_label("impolite: it works as").select_option("clamp: hold at")
        tab.dial("impolite", "-1")
        tab.page.get_by_label("evil: it works as").select_option("project out")
        expect(tab.card("evil").get_by_role("slider")).to_be_hidden()
        tab.ask("One?")
        clamp = {"vector": "impolite", "operation": "clamp", "level": -1}
        assert self.steer(stub) == {"terms": [clamp, {"vector": "evil", "operation": "project_out"}]}
        expect(tab.page.locator(".turn .how")).to_have_text("impolite held at −1.00, evil projected out")

    def test_work_on_a_schedule_a_layer_and_a_condition(self, tab: Tab, stub: Stub) -> None:
        tab.dial("impolite", "20")
        card = tab.card("impolite")
        card.get_by_text("How and when").click()
        for name, value in (("layer", "1"), ("from token", "5"), ("to token", "20"), ("value of the condition", "1.5")):
            if name == "value of the condition":
                card.get_by_label("impolite: condition on").select_option("evil")
            card.get_by_label(f"impolite: {name}", exact=True).fill(value)
        tab.ask("One?")
        term = {"vector": "impolite", "dose": 0.2, "layers": [1], "tokens": [4, 20]}
        when = {"vector": "evil", "value": 1.5, "above": True}
        assert self.steer(stub) == {"terms": [{**term, "when": when}]}
        words = "impolite at dose 20 %, layer 1, tokens 5 to 20, if evil > +1.50"
        expect(tab.page.locator(".turn .how")).to_have_text(words)
        tab.page.reload()
        expect(tab.card("impolite")).to_contain_text("How and when (changed)")

    def test_show_what_the_policy_forces(self, tab: Tab, stub: Stub) -> None:
        expect(tab.page.locator("#policy")).to_be_hidden()
        stub.policy = {"steer": "impolite=cap:2.0", "may_steer": False, "most_dose": 3.0, "most_tokens": 64}
        tab.page.reload()
        expect(tab.page.locator("#policy")).to_contain_text("by its policy, whatever the dials say: impolite=cap:2.0.")
        expect(tab.page.locator("#policy")).to_contain_text("lets this key not steer")
        expect(tab.page.get_by_label("Longest answer")).to_have_value("64")


class TestWhatIsShownMeanwhile:
    def test_window_and_pace(self, tab: Tab) -> None:
        expect(tab.page.locator("#window")).to_have_text("0 of 2,048 tokens")
        tab.ask("One?")
        n = len(tokens_of("One?"))
        expect(tab.page.locator("#window")).to_have_text(f"{1000 + n:,} of 2,048 tokens")
        expect(tab.answer().locator(".pace")).to_contain_text(
            re.compile(rf"{n} tokens, [\d,.]+ a second, the first after")
        )

    def test_figures_side_by_side(self, tab: Tab) -> None:
        tab.view("compare")
        tab.dial("impolite", "20")
        tab.page.get_by_label("Prompt", exact=True).fill("slow")
        button(tab, "Ask both").click()
        row = tab.page.get_by_role("region", name="Plain and steered in numbers").get_by_role("row").nth(1)
        expect(row).to_contain_text(re.compile(r"impolite[+−][\d.]+[+−][\d.]+[+−][\d.]+"))
        expect(tab.page.locator("#differences")).to_contain_text("So far.")
        expect(tab.page.locator(".pair-gauges .gauge")).to_have_count(2)
        tab.page.keyboard.press("Escape")
        expect(tab.page.locator("#differences")).not_to_contain_text("So far.")

    def test_a_new_server_s_day_fills_the_chart(self, tab: Tab, stub: Stub) -> None:
        stub.hours_up = 2
        tab.view("day")
        expect(tab.page.locator("#day-said")).to_contain_text("so less is shown")
        xs = (
            tab.page.locator("section.day svg.wide")
            .first.locator("circle.mean")
            .evaluate_all("(all) => all.map((c) => Number(c.getAttribute('cx')))")
        )
        assert len(xs) > 15
        assert max(xs) - min(xs) > 0.7 * 880


class TestANarrowScreen:
    def test_has_dials_above_the_composer_with_the_answer_in_sight(self, tab: Tab) -> None:
        tab.page.set_viewport_size(NARROW)
        tab.ask("One?")
        opener = button(tab, "Dials: off")
        opener.click()
        slider = tab.card("impolite").get_by_role("slider")
        slider.scroll_into_view_if_needed()
        panel, form = (tab.page.locator(s).bounding_box() for s in ("#panel", "#ask"))
        assert panel["y"] > 200
        assert panel["y"] + panel["height"] == pytest.approx(form["y"], abs=2)
        assert panel["y"] < slider.bounding_box()["y"] < form["y"]
        tab.dial("impolite", "20")
        tab.page.keyboard.press("Escape")
        expect(tab.page.locator("#panel")).to_be_hidden()
        expect(button(tab, "Dials: impolite at dose 20 %")).to_be_focused()


@pytest.mark.parametrize(
    ("text", "shown", "links"),
    [
        ("Take f[0 and go on", "Take f[0 and go on", 0),
        ("An array [1, 2 and **more", "An array [1, 2 and more", 0),
        ("See [this", "See [this", 0),
        ("See ![this", "See ![this", 0),
        ("See [this](https://exam", "See this", 1),
        ("See [this](https://example.com) and [1", "See this and [1", 1),
    ],
)
def test_a_bracket_that_is_open_yet_stays_as_it_was_written(tab: Tab, text: str, shown: str, links: int) -> None:
    result = tab.page.evaluate(
        """async (text) => {
          const { blocksOf } = await import("/page/markdown.js");
          const node = document.createElement("div");
          for (const block of blocksOf(text, true)) node.append(block.nodes());
          return [node.textContent.trim(), node.querySelectorAll("a").length];
        }""",
        text,
    )
    assert result == [shown, links]
