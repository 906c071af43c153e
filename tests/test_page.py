"""The page of ``poise serve`` in a real Chromium, against a stand-in for the server whose answers are known."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (extra dev) to drive a browser")
pytest.importorskip("uvicorn", reason="needs the extra serve")

import serving  # noqa: E402
import tiny  # noqa: E402
from page_tab import NARROW, Tab, chromium_tab  # noqa: E402
from poise import vector as vectors  # noqa: E402
from stub_server import SAID, THOUGHT, Stub, alarm  # noqa: E402

expect = playwright.expect
pytestmark = pytest.mark.browser

N = len(SAID.split(" "))
READINGS = [1.0 + 5.0 * math.sin(i / 3) for i in range(N)]  # of an answer of the stub on impolite, unsteered
VIEWS = ("chat", "compare", "vectors", "day")


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    """One tab for all tests: a new one for each would be most of their time."""
    with chromium_tab() as opened:
        yield opened


@pytest.fixture
def tab(page: Any, stub: Stub) -> Iterator[Tab]:
    opened = Tab(page, stub.url)
    yield opened
    opened.close()
    opened.check()


def words(part: str) -> re.Pattern[str]:
    """What holds these words."""
    return re.compile(re.escape(part))


def tone(value: float, normal: float = 1.0, spread: float = 2.0) -> str:
    level = max(-3, min(3, int((value - normal) / spread)))
    return f"a{level}" if level > 0 else f"b{-level}" if level < 0 else ""


def peak(values: list[float]) -> float:
    return max(sum(values[i : i + 8]) / 8 for i in range(len(values) - 7))


class TestAGuardrail:
    def test_says_what_it_masked_by_which_rule_and_where(self, tab: Tab) -> None:
        tab.ask("masked")
        lines = tab.answer().locator(".intervention")
        expect(lines).to_have_text(
            [
                "▨ Masked in the question: credit debit card number, by the guardrail bank/2.",
                "▨ Masked in the answer: email, 2 times, by the guardrail bank/2.",
                "□ Noted in the question: the word “grey fog”, by the guardrail bank/2.",
            ]
        )

    def test_says_what_it_blocked_with_the_reading_and_what_had_left(self, tab: Tab) -> None:
        tab.ask("blocked")
        lines = tab.answer().locator(".intervention.blocked")
        expect(lines).to_have_text(
            [
                "■ Blocked in the answer: the topic “investment advice” (+3.21, above +2.00; 1 % of normal texts are), "
                "by the guardrail bank/2.",
                "■ Blocked in the answer: the word “rival bank”, by the guardrail bank/2. "
                "10 of its characters had left by then.",
            ]
        )
        expect(tab.answer()).to_contain_text("Stopped by the server’s guardrail.")
        expect(tab.answer()).not_to_contain_text("policy")

    def test_is_still_told_after_a_reload(self, tab: Tab) -> None:
        tab.ask("masked")
        tab.page.reload()
        expect(tab.answer().locator(".intervention")).to_have_count(3)

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_is_readable_on_a_narrow_page_in_light_and_dark(self, tab: Tab, scheme: str) -> None:
        tab.page.set_viewport_size(NARROW)
        tab.page.emulate_media(color_scheme=scheme)
        tab.ask("blocked")
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]
        contrast = tab.page.evaluate(CONTRAST, ".intervention.blocked")
        assert contrast >= 4.5, contrast


CONTRAST = """(selector) => {
  const numbers = (colour) => colour.match(/[0-9.]+/g).map(Number);
  const light = (colour) => numbers(colour).slice(0, 3)
    .map((v) => v / 255).map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  let behind = document.querySelector(selector);
  const text = light(getComputedStyle(behind).color);
  const clear = (node) => (numbers(getComputedStyle(node).backgroundColor)[3] ?? 1) === 0;
  while (behind.parentElement && clear(behind)) behind = behind.parentElement;
  const ground = light(getComputedStyle(behind).backgroundColor);
  return (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05);
}"""


class TestAConversation:
    def test_shows_the_answer_as_text_never_as_markup(self, tab: Tab) -> None:
        tab.ask("What do you think of my plan?")
        expect(tab.answer().locator(".tokens")).to_have_text(SAID)
        expect(tab.answer().locator("b")).to_have_count(0)

    def test_sends_the_whole_of_it_with_the_settings(self, tab: Tab, stub: Stub) -> None:
        tab.page.get_by_label("System prompt").fill("Be brief.")
        tab.page.get_by_label("Temperature").fill("0")
        tab.page.get_by_label("Longest answer").fill("32")
        tab.page.get_by_label("Seed").fill("7")
        tab.ask("One?")
        tab.ask("Two?")
        request = stub.requests[-1]
        assert [m["role"] for m in request["messages"]] == ["system", "user", "assistant", "user"]
        assert [m["content"] for m in request["messages"]] == ["Be brief.", "One?", SAID, "Two?"]
        assert (request["temperature"], request["max_tokens"], request["seed"]) == (0, 32, 8)
        assert request["model"] == "tiny-llama"
        assert request["poise"] == {"watch": True}

    def test_stops_at_escape_keeps_what_was_said_and_frees_the_server(self, tab: Tab, stub: Stub) -> None:
        tab.ask("slow", wait=False)
        expect(tab.answer().locator(".tokens .token").nth(3)).to_be_visible()
        tab.page.keyboard.press("Escape")
        tab.done()
        expect(tab.answer()).to_contain_text("You stopped it here.")
        expect(tab.answer().locator(".tokens")).to_contain_text("Well, I would")
        assert stub.hung_up.wait(5)

    def test_is_still_there_after_a_reload(self, tab: Tab) -> None:
        tab.dial("impolite", "20")
        tab.page.get_by_label("Tint the text by").select_option("evil")
        tab.ask("What do you think of my plan?")
        tones = tab.tones()
        tab.page.get_by_label("Your question").fill("half a quest")
        tab.page.reload()
        expect(tab.answer().locator(".tokens")).to_have_text(SAID)
        expect(tab.page.get_by_label("Your question")).to_have_value("half a quest")
        expect(tab.page.get_by_label("impolite: exact value")).to_have_value("20")
        expect(tab.page.get_by_label("Tint the text by")).to_have_value("evil")
        assert tab.tones() == tones

    def test_keeps_a_half_told_answer_over_a_reload(self, tab: Tab) -> None:
        tab.ask("slow", wait=False)
        expect(tab.answer().locator(".tokens .token").nth(3)).to_be_visible()
        tab.page.reload()
        expect(tab.answer().locator(".tokens")).to_contain_text("Well, I would")
        expect(tab.answer()).to_contain_text("It broke off here.")

    def test_keeps_the_newest_words_in_sight(self, tab: Tab) -> None:
        tab.ask("One?")
        tab.ask("slow", wait=False)
        expect(tab.answer(2).locator(".tokens .token").nth(60)).to_be_attached()
        tab.page.keyboard.press("Escape")
        tab.done()
        last = tab.answer(2).locator(".tokens .token").last.bounding_box()
        form = tab.page.locator("#ask").bounding_box()
        assert 0 < last["y"] < last["y"] + last["height"] < form["y"]

    def test_is_asked_again_with_the_next_seed_or_begun_anew(self, tab: Tab, stub: Stub) -> None:
        tab.ask("One?")
        tab.page.get_by_role("button", name="Ask again").click()
        tab.done()
        assert [r["messages"][-1]["content"] for r in stub.requests] == ["One?", "One?"]
        assert [r["seed"] for r in stub.requests] == [0, 1]
        expect(tab.page.locator("article.turn")).to_have_count(1)
        tab.page.get_by_role("button", name="New").click()
        expect(tab.page.locator("article.turn")).to_have_count(0)

    def test_is_saved_with_its_readings(self, tab: Tab, tmp_path: Path) -> None:
        tab.dial("impolite", "20")
        tab.ask("What do you think of my plan? alarm")
        with tab.page.expect_download() as waited:
            tab.page.get_by_role("button", name="Save").click()
        waited.value.save_as(tmp_path / "chat.json")
        saved = json.loads((tmp_path / "chat.json").read_text(encoding="utf-8"))
        assert [m["role"] for m in saved["messages"]] == ["user", "assistant"]
        (turn,) = saved["turns"]
        assert turn["answer"] == saved["messages"][1]["content"] == SAID
        assert [t["readings"]["impolite"] for t in turn["tokens"]] == [[pytest.approx(r + 4.0)] for r in READINGS]
        assert turn["push"]["impolite"] == {"prompt": 0.0, "response": 2.0}
        assert turn["prompt"] == {"impolite": 2.5, "evil": None}
        assert turn["steer"] == {"terms": [{"vector": "impolite", "dose": 0.2}]}
        assert [a["reading"] for a in turn["alarms"]] == ["peak"]
        assert [(w["name"], w["layer"], w["norm"]) for w in saved["watched"]] == [
            ("impolite", 2, 8.0),
            ("evil", 2, 8.0),
        ]


class TestTheTint:
    def test_is_each_token_s_distance_from_normal_in_spreads(self, tab: Tab) -> None:
        tab.ask("What do you think of my plan?")
        assert tab.tones() == [tone(value) for value in READINGS]
        assert {"a1", "a2", "b1", "b2"} <= set(tab.tones())

    def test_leaves_out_what_steering_adds_by_itself(self, tab: Tab) -> None:
        tab.dial("impolite", "20")
        tab.ask("What do you think of my plan?")
        assert tab.tones() == [tone(value + 2.0) for value in READINGS]

    def test_has_a_legend_in_numbers(self, tab: Tab) -> None:
        tab.ask("What do you think of my plan?")
        steps = tab.page.get_by_label("Steps of the tint of impolite").get_by_role("listitem").all_inner_texts()
        assert steps == ["≤ −5.0", "−3.0", "−1.0", "+1.0", "+3.0", "+5.0", "≥ +7.0"]
        expect(tab.page.locator("#legend-words")).to_contain_text("normal +1.0 (mean of 800 tokens")

    def test_takes_the_conversation_s_own_mean_where_no_normal_is_known(self, tab: Tab) -> None:
        tab.page.get_by_label("Tint the text by").select_option("evil")
        tab.ask("What do you think of my plan?")
        values = [value / 2 for value in READINGS]
        mean = sum(values) / N
        spread = math.sqrt(sum((v - mean) ** 2 for v in values) / N)
        assert tab.tones() == [tone(value, mean, spread) for value in values]
        expect(tab.page.locator("#legend-words")).to_contain_text("is the mean of what was said here")

    def test_says_where_the_push_of_the_steering_is_left_in(self, tab: Tab) -> None:
        tab.dial("impolite", "20")
        tab.ask("What do you think of my plan?")
        expect(tab.card("evil")).to_contain_text("what that adds to the readings by itself is left in")
        expect(tab.card("impolite")).not_to_contain_text("left in")

    def test_can_be_another_trait_s_or_none_at_all(self, tab: Tab) -> None:
        tab.ask("What do you think of my plan?")
        tab.page.get_by_label("Tint the text by").select_option("nothing")
        assert set(tab.tones()) == {""}

    def test_is_more_than_colour(self, tab: Tab) -> None:
        tab.ask("What do you think of my plan?")
        style = "(i) => { const s = getComputedStyle(i); return s.borderBottomStyle + ' ' + s.borderBottomWidth; }"
        lines = {name: tab.answer().locator(f"i.{name}").last.evaluate(style) for name in ("a1", "a2", "b1", "b2")}
        assert lines == {"a1": "solid 1px", "a2": "solid 2px", "b1": "dotted 1px", "b2": "dotted 2px"}


class TestADial:
    def test_steers_by_dose_or_by_alpha(self, tab: Tab, stub: Stub) -> None:
        tab.dial("impolite", "20")
        tab.ask("One?")
        assert stub.requests[-1]["poise"]["steer"] == {"terms": [{"vector": "impolite", "dose": 0.2}]}
        expect(tab.page.locator(".turn .how")).to_have_text("impolite at dose 20 %")
        tab.page.get_by_label("Dials in").select_option("α")
        expect(tab.page.get_by_label("impolite: exact value")).to_have_value("2")
        tab.dial("evil", "-1.5")
        tab.ask("Two?")
        terms = [{"vector": "impolite", "coef": 2}, {"vector": "evil", "coef": -1.5}]
        assert stub.requests[-1]["poise"]["steer"] == {"terms": terms}

    def test_turns_by_arrow_keys_and_says_where_it_stands(self, tab: Tab, stub: Stub) -> None:
        slider = tab.card("impolite").get_by_role("slider")
        slider.focus()
        for _ in range(3):
            tab.page.keyboard.press("ArrowRight")
        expect(slider).to_have_attribute("aria-valuetext", "dose 3 %, α +0.30")
        tab.page.keyboard.press("Home")
        expect(tab.card("impolite")).to_contain_text("Warning: Beyond −20 % to 27 %")
        tab.card("impolite").get_by_role("button", name="Turn impolite off").click()
        expect(slider).to_have_attribute("aria-valuetext", "off")
        tab.ask("One?")
        assert "steer" not in stub.requests[-1]["poise"]

    def test_warns_in_words_beyond_what_the_certificate_covers(self, tab: Tab) -> None:
        card = tab.card("impolite")
        expect(card).to_contain_text("Hatched: certified range, −20 % to 27 %.")
        tab.dial("impolite", "27")
        expect(card.locator(".caution")).to_be_hidden()
        tab.dial("impolite", "28")
        expect(card.locator(".caution")).to_have_text(
            "Warning: Beyond −20 % to 27 %, the doses at which the certificate saw coherent text: expect broken text."
        )
        expect(card.get_by_role("slider")).to_have_attribute("aria-valuetext", words("expect broken text"))

    def test_warns_of_several_that_are_strong_together(self, tab: Tab) -> None:
        warning = tab.page.locator("#dials-warning")
        tab.dial("impolite", "27")
        tab.dial("evil", "-33")
        expect(warning).to_be_hidden()
        tab.dial("evil", "-34")
        expect(warning).to_have_text(
            "Warning: The dials come to a dose of 61 % in all (27 % of impolite + 34 % of evil): text usually breaks "
            "near 100 %, and certificates cover one vector at one layer."
        )

    def test_marks_the_certified_range_where_it_lies(self, tab: Tab) -> None:
        marked = tab.card("impolite").locator("rect.usable").bounding_box()
        slider = tab.card("impolite").locator(".marks svg").bounding_box()
        low, high = ((marked["x"] + w - slider["x"]) / slider["width"] for w in (0, marked["width"]))
        most = float(tab.card("impolite").get_by_role("slider").get_attribute("max"))
        assert [low, high] == pytest.approx([0.5 - 0.1 / most, 0.5 + 0.135 / most], abs=0.01)

    def test_says_so_where_nothing_was_measured(self, tab: Tab) -> None:
        expect(tab.card("evil")).to_contain_text("No range is marked")
        tab.dial("evil", "10")
        expect(tab.card("evil")).to_contain_text("Warning: Nobody has measured what this vector does here")

    def test_warns_of_a_vector_that_was_not_induced(self, tab: Tab, stub: Stub) -> None:
        stub.vectors["impolite"]["certificate"]["verdict"] = "not-induced"
        tab.page.reload()
        expect(tab.card("impolite").get_by_role("button", name="✕ not induced")).to_be_visible()
        words = "Hatched: doses with coherent text, −20 % to 27 %. Its certificate says: not induced."
        expect(tab.card("impolite")).to_contain_text(words)
        expect(tab.card("impolite").locator("rect.usable")).to_have_count(1)
        tab.dial("impolite", "10")
        expect(tab.card("impolite")).to_contain_text("certified as not induced on this model")

    def test_says_which_layer_the_certificate_is_for(self, tab: Tab, stub: Stub) -> None:
        stub.vectors["impolite"]["default_layer"] = 3
        tab.page.reload()
        words = "No range is marked: its certificate is for layer 2, and the dial turns layer 3."
        expect(tab.card("impolite")).to_contain_text(words)


class TestGaugesAndTimelines:
    def test_show_prompt_mean_and_peak_of_the_last_answer(self, tab: Tab) -> None:
        tab.ask("What do you think of my plan?")
        shown = tab.card("impolite").locator(".readings dd").all_inner_texts()
        assert shown == ["+2.5", f"+{sum(READINGS) / N:.1f}", f"+{peak(READINGS):.1f}", str(N)]
        assert tab.card("evil").locator(".readings dd").first.inner_text() == "–"

    def test_tell_the_whole_conversation_and_the_alarm_s_threshold(self, tab: Tab) -> None:
        tab.ask("One?")
        tab.ask("Two? alarm")
        drawing = tab.card("impolite").locator(".timeline svg")
        mean = f"+{sum(READINGS) / N:.1f}"
        expect(drawing).to_have_attribute(
            "aria-label",
            f"impolite over 2 answers, {2 * N} tokens. Means: {mean}, {mean}. "
            "Alarm thresholds: prompt +6.0, mean +4.0, peak +7.0. 1 alarm.",
        )
        expect(drawing.locator("line.threshold")).to_have_count(3)
        assert [
            d.count("M")
            for d in drawing.locator("path.token").evaluate_all("(all) => all.map((p) => p.getAttribute('d'))")
        ] == [N, N]
        expect(drawing.locator("path.alarm")).to_have_count(1)
        expect(tab.card("impolite").locator(".timeline")).to_contain_text("5 % of normal answers raise it")
        expect(tab.card("evil").locator(".timeline")).to_contain_text("No alarm is set")

    def test_write_each_alarm_s_name_at_its_own_line(self, tab: Tab, stub: Stub) -> None:
        close = [alarm("prompt", 6.6), alarm("mean", 6.4), alarm("peak", 6.8)]
        stub.vectors["impolite"]["alarms"] = close
        tab.page.reload()
        tab.ask("One?")
        lines, names = (
            tab.card("impolite")
            .locator(f".gauge {part}")
            .evaluate_all("(all) => all.map((n) => [n.textContent, n.getBBox().x, n.getBBox().y, n.getBBox().width])")
            for part in ("line.threshold", "text.alarm-name")
        )
        assert [name for name, *_ in names] == ["peak", "prompt", "mean"], "from the right line to the left one"
        for (_, at, top, _), (name, start, above, width) in zip(lines, names, strict=True):
            assert 0 < start - at < 6, name
            assert above <= top + 3, "the line goes up to its name"
            crossing = [x for _, x, y, _ in lines if start < x < start + width and y < above + 8]
            assert crossing == [], name
        drawing = tab.card("impolite").locator(".timeline svg")
        right = float(drawing.locator("line.threshold").first.get_attribute("x2"))
        places = drawing.locator("text.named").evaluate_all(
            "(all) => all.map((n) => [n.textContent, +n.getAttribute('x'), +n.getAttribute('y')])"
        )
        assert [name for name, *_ in places] == ["peak +6.8", "prompt +6.6", "mean +6.4"]
        assert all(x > right for _, x, _ in places)
        heights = [y for *_, y in places]
        assert all(below - above >= 11 for above, below in itertools.pairwise(heights))

    @pytest.mark.parametrize("width", [400, 1400])
    def test_leave_each_step_of_the_legend_in_one_line(self, tab: Tab, width: int) -> None:
        tab.page.set_viewport_size({"width": width, "height": 800})
        tab.ask("One?")
        cells = tab.page.locator(".legend li").evaluate_all(
            "(all) => all.map((n) => [n.scrollWidth - n.clientWidth, n.clientHeight])"
        )
        assert all(beyond <= 0 and height < 36 for beyond, height in cells), cells


class TestSideBySide:
    def test_asks_the_same_twice_once_plain_and_once_steered(self, tab: Tab, stub: Stub) -> None:
        tab.view("compare")
        tab.dial("impolite", "20")
        tab.page.get_by_label("Prompt", exact=True).fill("Tell me about tea.")
        tab.page.get_by_role("button", name="Ask both").click()
        table = tab.page.get_by_role("region", name="Plain and steered in numbers")
        expect(table).to_be_visible()
        plain, steered = sorted(stub.requests, key=lambda r: "steer" in r["poise"])
        assert plain["poise"] == {"watch": True}
        assert steered["poise"] == {"watch": True, "steer": {"terms": [{"vector": "impolite", "dose": 0.2}]}}
        assert {k: v for k, v in plain.items() if k != "poise"} == {k: v for k, v in steered.items() if k != "poise"}
        for name in ("Plain answer", "Steered answer"):
            expect(tab.page.get_by_role("group", name=name).locator(".tokens")).to_have_text(SAID)
        row = table.get_by_role("row").nth(1).locator("td").all_inner_texts()
        assert row[:3] == [f"+{sum(READINGS) / N:.1f}", f"+{sum(READINGS) / N + 2:.1f}", "+2.0"]
        tab.page.reload()
        expect(tab.page.get_by_role("group", name="Steered answer").locator(".tokens")).to_have_text(SAID)

    def test_says_that_nothing_is_turned(self, tab: Tab, stub: Stub) -> None:
        tab.view("compare")
        tab.page.get_by_label("Prompt", exact=True).fill("Tell me about tea.")
        tab.page.get_by_role("button", name="Ask both").click()
        expect(tab.page.get_by_text("All dials are at 0")).to_be_visible()
        assert stub.requests == []


class TestAlarms:
    def test_are_listed_in_words_and_lead_to_their_token(self, tab: Tab) -> None:
        tab.ask("One?")
        tab.ask("Two? alarm")
        expect(tab.page.locator("#alarm-count")).to_have_text("▲ 1 alarm")
        tab.page.locator("#alarm-list").get_by_role("button").click()
        lit = tab.answer(2).locator(".at")
        expect(lit).to_have_text(SAID.split(" ")[4])
        expect(tab.answer(2).get_by_role("slider")).to_be_focused()
        expect(tab.card("impolite").locator(".readings .raised")).to_contain_text("▲ alarm")
        expect(tab.page.locator("#live")).to_contain_text("impolite peak +8.25 by token 5, above +7.00")

    def test_stand_in_one_order_in_the_panel_and_below_the_answer(self, tab: Tab, stub: Stub) -> None:
        for n in (1, 2):
            tab.ask(f"{n}? alarm")
        tab.page.evaluate(
            """async () => {
              const { state, change } = await import("/page/state.js");
              for (const turn of state.turns) turn.alarms.push({ ...turn.alarms[0], reading: "mean" });
              change({ turns: [...state.turns] });
            }"""
        )
        listed = [
            text.split("impolite ")[1].split()[0] for text in tab.page.locator("#alarm-list li").all_inner_texts()
        ]
        numbers = [text.split()[1] for text in tab.page.locator("#alarm-list li").all_inner_texts()]
        assert (numbers, listed) == (["2", "2", "1", "1"], ["peak", "mean"] * 2)

    def test_may_stop_the_answer(self, tab: Tab) -> None:
        tab.ask("stopped")
        expect(tab.answer()).to_contain_text("[This answer was stopped.]")
        expect(tab.answer()).to_contain_text("Stopped by the server’s policy.")
        expect(tab.answer()).to_contain_text("The answer was stopped.")


class TestVectors:
    @staticmethod
    def upload(tab: Tab, name: str, body: bytes) -> None:
        tab.view("vectors")
        file = {"name": name, "mimeType": "application/octet-stream", "buffer": body}
        tab.page.get_by_label("File (.safetensors)").set_input_files(files=[file])
        tab.page.get_by_role("button", name="Upload", exact=True).click()

    def test_show_the_certificate_with_curve_bands_and_controls(self, tab: Tab) -> None:
        tab.card("impolite").get_by_role("button", name="✓ induced").click()
        certificate = tab.page.locator("#certificate-impolite")
        expect(certificate).to_contain_text("the trait score rises with the dose: Spearman 1.00")
        curve = certificate.locator("svg.wide")
        expect(curve.locator("polygon")).to_have_count(2)
        expect(curve).to_have_attribute("aria-label", words("dose 20 %: trait 65.5, coherence 71.3"))
        controls = certificate.get_by_role("region", name="Controls")
        expect(controls.get_by_role("row").nth(3)).to_have_text(
            "Random directions (3 draws)12.9 [3.9, 21.9]88.0 [83.0, 93.0]10"
        )
        expect(certificate.get_by_role("region", name="Alarms")).to_contain_text("5 % [1 %, 9 %]")

    def test_are_taken_and_have_a_dial_from_then_on(self, tab: Tab) -> None:
        self.upload(tab, "kind one.safetensors", b"\x08\0\0\0\0\0\0\0{}      ")
        expect(tab.page.locator("#upload-said")).to_contain_text("kind-one is loaded")
        tab.view("chat")
        expect(tab.card("kind-one").get_by_role("slider")).to_be_visible()

    def test_are_not_asked_for_where_the_key_may_not_upload(self, tab: Tab, stub: Stub) -> None:
        stub.policy |= {"may_change_vectors": False}
        tab.page.goto(f"{stub.url}/#vectors")
        tab.page.reload()
        expect(tab.page.locator("#upload-closed")).to_contain_text("Your key may not upload vectors")
        expect(tab.page.locator("#upload")).to_be_hidden()
        expect(tab.page.locator("#vector-list").get_by_role("button", name="Delete")).to_have_count(0)

    def test_that_are_refused_say_why(self, tab: Tab) -> None:
        tab.expected = ("Failed to load resource",)
        for name, body, why in (
            ("impolite.safetensors", b"", "There is a vector impolite already"),
            ("other.safetensors", b"\x80\x04pickle", "This is no safetensors file"),
            ("other.pt", b"", "other.pt is no .safetensors file"),
        ):
            self.upload(tab, name, body)
            expect(tab.page.locator("#upload-said")).to_contain_text(why)

    def test_are_deleted_at_the_second_click_only(self, tab: Tab, stub: Stub) -> None:
        tab.view("vectors")
        tab.page.get_by_role("button", name="Delete evil").click()
        assert "evil" in stub.vectors
        tab.page.get_by_role("button", name="Really delete evil from the server?").click()
        expect(tab.page.get_by_role("heading", name="evil")).to_have_count(0)
        assert "evil" not in stub.vectors


class TestAThought:
    @pytest.fixture
    def thinking(self, tab: Tab, stub: Stub) -> Tab:
        """The page of a model that can be told to think, and is."""
        stub.thinks = True
        tab.page.reload()
        tab.page.get_by_label("Think before the reply").check()
        return tab

    def test_has_a_switch_only_where_the_model_has_one(self, tab: Tab, stub: Stub) -> None:
        expect(tab.page.get_by_label("Think before the reply")).to_be_hidden()
        tab.ask("One?")
        stub.thinks = True
        tab.page.reload()
        expect(tab.page.get_by_label("Think before the reply")).not_to_be_checked()
        tab.ask("Two?")
        assert ["chat_template_kwargs" in request for request in stub.requests] == [False, False]

    def test_is_folded_above_the_reply_as_text(self, thinking: Tab) -> None:
        thinking.ask("What do you think of my plan?")
        thought = thinking.answer().locator("details.thought")
        expect(thought).to_be_visible()
        expect(thought.locator("summary")).to_have_text("Thought before the reply")
        expect(thought.locator(".thoughts")).to_be_hidden()
        expect(thinking.answer().locator(".tokens")).to_have_text(SAID)
        thought.locator("summary").click()
        expect(thought.locator(".thoughts")).to_be_visible()
        expect(thought.locator(".thoughts")).to_have_text("".join(THOUGHT))
        expect(thought.locator("b")).to_have_count(0)
        assert thought.locator(".thoughts > span").count() == len(THOUGHT)
        assert thinking.tones() == [tone(value) for value in READINGS], "gauges and tint are of the reply"
        expect(thinking.card("impolite").locator("dl")).to_contain_text(f"tokens{N}")

    def test_is_asked_for_and_sent_back(self, thinking: Tab, stub: Stub) -> None:
        thinking.ask("One?")
        thinking.ask("Two?")
        assert [request["chat_template_kwargs"] for request in stub.requests] == [{"enable_thinking": True}] * 2
        reply = {"role": "assistant", "content": SAID, "reasoning_content": "".join(THOUGHT)}
        assert stub.requests[-1]["messages"][1] == reply
        thinking.page.get_by_label("Think before the reply").uncheck()
        thinking.ask("Three?")
        assert "chat_template_kwargs" not in stub.requests[-1]
        assert [m.get("reasoning_content") for m in stub.requests[-1]["messages"]][1::2] == ["".join(THOUGHT)] * 2
        expect(thinking.answer(3).locator("details.thought")).to_be_hidden()

    def test_is_there_after_a_reload_and_in_the_saved_conversation(self, thinking: Tab, tmp_path: Path) -> None:
        thinking.ask("One?")
        thinking.page.reload()
        expect(thinking.page.get_by_label("Think before the reply")).to_be_checked()
        expect(thinking.answer().locator(".thoughts")).to_have_text("".join(THOUGHT))
        with thinking.page.expect_download() as waited:
            thinking.page.get_by_role("button", name="Save").click()
        waited.value.save_as(tmp_path / "chat.json")
        saved = json.loads((tmp_path / "chat.json").read_text(encoding="utf-8"))
        assert saved["messages"][1] == {
            "role": "assistant", "content": SAID, "reasoning_content": "".join(THOUGHT),
        }  # fmt: skip
        [turn] = saved["turns"]
        assert (turn["answer"], turn["reasoning_content"], turn["thinking"]) == (SAID, "".join(THOUGHT), True)

    def test_that_nothing_had_opened_is_folded_once_it_is_known(self, tab: Tab) -> None:
        tab.ask("unopened alarm")
        expect(tab.answer().locator(".thoughts")).to_have_text("".join(THOUGHT))
        expect(tab.answer().locator(".tokens")).to_have_text(SAID)
        assert tab.tones() == [tone(value) for value in READINGS]
        expect(tab.card("impolite").locator("dl")).to_contain_text(f"tokens{N}")
        tab.answer().locator(".alarm button").click()
        expect(tab.answer().locator(".tokens .token.at")).to_have_text(words(SAID.split(" ")[4]))

    def test_has_alarms_of_its_own_and_those_of_the_reply_lead_to_their_token(self, thinking: Tab) -> None:
        thinking.ask("alarm")
        buttons = thinking.answer().locator(".alarm button")
        expect(buttons).to_have_text(
            [words("by token 3, in the thought, above +7.00"), words("by token 10, above +7.00")]
        )
        buttons.nth(1).click()
        expect(thinking.answer().locator(".tokens .token.at")).to_have_text(words(SAID.split(" ")[4]))
        expect(thinking.answer().locator(".thoughts")).to_be_hidden()
        buttons.nth(0).click()
        expect(thinking.answer().locator(".thoughts")).to_be_visible()


class TestTheLastDay:
    def test_shows_means_with_intervals_alarms_and_the_same_in_numbers(self, tab: Tab) -> None:
        tab.view("day")
        expect(tab.page.locator("#day-impolite")).to_be_visible()
        charts = tab.page.locator("section.day")
        shown = sum((i * 7) % 5 > 0 for i in range(48))
        expect(charts.first.locator("svg.wide line.interval")).to_have_count(shown)
        expect(charts.locator("h3")).to_have_text(["impolite", "impolite, thoughts"])
        expect(tab.page.locator(".day p").first).to_have_text("96 answers; an alarm in 4 of 96 (4 % [2 %, 10 %]).")
        expect(tab.page.locator("#day-alarms")).to_contain_text(
            "impolite mean +4.60 over the whole answer, above +4.00"
        )
        tab.page.get_by_label("Show the last").select_option("6 hours")
        expect(charts.first.locator("figcaption")).to_contain_text("mean of 10 minutes’ answers")


class TestWhatGoesWrong:
    def test_a_key_is_asked_for_and_kept_in_this_tab(self, tab: Tab, stub: Stub) -> None:
        tab.expected = ("Failed to load resource",)
        stub.key = "near-miss-1"
        tab.page.reload()
        dialog = tab.page.get_by_role("dialog")
        for key, why in (("near-miss-2", "was not taken"), ("near-miss-1", "")):
            dialog.get_by_label("Key").fill(key)
            tab.page.keyboard.press("Enter")
            if why:
                expect(dialog).to_contain_text(why)
        expect(dialog).to_be_hidden()
        expect(tab.page.locator("#status")).to_have_text("connected to tiny-llama")
        tab.page.reload()
        tab.ask("One?")
        expect(tab.answer().locator(".tokens")).to_have_text(SAID)

    def test_a_full_queue_says_when_to_retry_and_keeps_the_question(self, tab: Tab) -> None:
        tab.expected = ("Failed to load resource",)
        tab.ask("busy")
        notice = tab.page.get_by_role("alert").filter(has_text="busy")
        expect(notice).to_contain_text("The queue is full (8 requests). It says to try again in 1 second.")
        expect(tab.page.get_by_label("Your question")).to_have_value("busy")
        notice.get_by_role("button", name="Try again", exact=True).click()
        tab.done()
        expect(tab.answer().locator(".tokens")).to_have_text(SAID)
        expect(tab.page.locator("#notice")).to_be_hidden()

    @pytest.mark.parametrize(
        ("question", "why"), [("cut", "The connection ended"), ("broken", "The model broke down.")]
    )
    def test_an_answer_that_breaks_off_keeps_what_was_said(self, tab: Tab, question: str, why: str) -> None:
        tab.ask(question)
        expect(tab.page.locator("#notice")).to_contain_text(why)
        expect(tab.answer().locator(".tokens")).to_have_text(" ".join(SAID.split(" ")[:5]))
        expect(tab.answer()).to_contain_text("It broke off here.")

    def test_a_server_that_is_gone_is_named_and_can_be_tried_again(self, tab: Tab) -> None:
        tab.expected = ("Failed to load resource",)
        tab.page.route("**/v1/chat/completions", lambda route: route.abort("connectionrefused"))
        tab.ask("One?")
        expect(tab.page.locator("#notice")).to_contain_text("is “poise serve” still running?")
        tab.page.unroute("**/v1/chat/completions")
        tab.page.locator("#notice").get_by_role("button", name="Try again").click()
        tab.done()
        expect(tab.answer().locator(".tokens")).to_have_text(SAID)


class TestEveryone:
    def test_can_use_it_by_keyboard_alone(self, tab: Tab) -> None:
        keys = tab.page.keyboard
        keys.press("Tab")
        expect(tab.page.get_by_role("link", name="Skip to the content")).to_be_focused()
        keys.press("Enter")
        expect(tab.page.get_by_label("Your question")).to_be_focused()
        keys.type("One?")
        keys.press("Enter")
        tab.done()
        expect(tab.answer().locator(".tokens")).to_have_text(SAID)
        for control in (("button", "Regenerate"), ("button", "Copy"), ("slider", "Answer 1: read token by token")):
            keys.press("Shift+Tab")
            expect(tab.answer().get_by_role(control[0], name=control[1])).to_be_focused()
        keys.press("ArrowRight")
        told = f"token 2 of {N} “I”: impolite +{READINGS[1]:.1f} (+{(READINGS[1] - 1) / 2:.1f} spreads)"
        expect(tab.answer().locator(".readout")).to_have_text(told)
        expect(tab.answer().get_by_role("slider")).to_have_attribute("aria-valuetext", told)

    def test_hears_whole_sentences_not_tokens(self, tab: Tab) -> None:
        tab.ask("One?")
        said = tab.page.locator("#live p").all_inner_texts()
        assert said[0] == "The model answers."
        assert said[-1] == f"End of the answer. {N} tokens."
        assert " ".join(said[1:-1]) == SAID
        assert len(said) <= 5

    def test_finds_a_name_on_every_control(self, tab: Tab) -> None:
        tab.ask("One? alarm")
        client = tab.page.context.new_cdp_session(tab.page)
        client.send("Accessibility.enable")
        roles = {"button", "link", "slider", "textbox", "combobox", "spinbutton", "image", "region"}
        for view in VIEWS:
            tab.view(view)
            expect(tab.page.locator(f"#{view}")).to_be_visible()
            nodes = client.send("Accessibility.getFullAXTree")["nodes"]
            shown = [n for n in nodes if not n["ignored"] and n["role"]["value"] in roles]
            nameless = [n for n in shown if not n.get("name", {}).get("value", "").strip()]
            assert [n["role"]["value"] for n in nameless] == [], view
            assert len(shown) > 5

    def test_sees_it_on_a_narrow_screen_without_scrolling_sideways(self, tab: Tab) -> None:
        tab.page.set_viewport_size(NARROW)
        tab.ask("W" * 120 + " alarm")
        tab.page.locator("#chat .sheet-open").click()
        tab.dial("impolite", "30")
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]
        for view in VIEWS:
            tab.view(view)
            expect(tab.page.locator(f"#{view}")).to_be_visible()
            assert tab.page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"], view
        tab.view("chat")
        tab.page.get_by_role("button", name="Close", exact=True).click()
        for span in tab.answer().locator(".tokens .token").all()[1:8]:
            span.hover()  # its number beside it
            assert tab.page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]

    def test_can_read_every_colour_by_day_and_by_night(self, tab: Tab) -> None:
        script = "(name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim()"
        for scheme in ("light", "dark"):
            tab.page.emulate_media(color_scheme=scheme)
            colour = {name: tab.page.evaluate(script, f"--{name}") for name in COLOURS}
            for name in ("a1", "a2", "a3", "b1", "b2", "b3"):
                assert contrast(colour["ink"], colour[name]) >= 4.5, (scheme, name)
            for name in ("ink", "muted", "trait", "prompt", "yes", "no", "unsure", "random"):
                assert contrast(colour[name], colour["surface"]) >= 4.5, (scheme, name)
                assert contrast(colour[name], colour["raised"]) >= 4.5, (scheme, name)
            assert contrast(colour["on-main"], colour["trait"]) >= 4.5, scheme
            for name in ("a-line", "b-line", "edge"):
                assert contrast(colour[name], colour["surface"]) >= 3, (scheme, name)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The real server on a tiny random model, with a vector whose alarms go off at once, and a second one as a file."""
    model = tiny.model()
    file = tmp_path_factory.mktemp("page") / "kind.safetensors"
    vectors.save_vector(tiny.vector(model, seed=1), file)
    watched = tiny.vector(model, alarms=(serving.alarm(reading="mean", threshold=-1e6),))
    with serving.running(model, {"grumpy": watched}, policy=serving.uploading(file.parent)) as (address, _):
        yield address, file


class TestAgainstTheRealServer:
    def test_chats_steers_warns_and_remembers(self, page: Any, served: tuple[str, Path], tmp_path: Path) -> None:
        url, _ = served
        tab = Tab(page, url)
        tab.page.get_by_label("Temperature").fill("0")
        tab.page.get_by_label("Longest answer").fill("12")
        tab.ask("What do you think of my plan?")
        asked = {"model": "tiny-llama", "messages": [{"role": "user", "content": "What do you think of my plan?"}]}
        rest = {"temperature": 0, "max_tokens": 12, "seed": 0, "poise": {"watch": True}}
        alone = tab.page.request.post(f"{url}/v1/chat/completions", data={**asked, **rest}).json()["choices"][0]
        tab.dial("grumpy", "-20")
        tab.ask("And now?")
        expect(tab.page.locator("#alarm-count")).to_have_text("▲ 2 alarms")
        expect(tab.page.locator(".turn .how").nth(1)).to_have_text("grumpy at dose −20 %")
        with tab.page.expect_download() as waited:
            tab.page.get_by_role("button", name="Save").click()
        waited.value.save_as(tmp_path / "chat.json")
        first, second = json.loads((tmp_path / "chat.json").read_text(encoding="utf-8"))["turns"]
        assert first["answer"] == alone["message"]["content"]
        read = [value for token in first["tokens"] for value in token["readings"]["grumpy"]]
        assert read == pytest.approx(alone["poise"]["readings"]["grumpy"], abs=1e-4)
        assert first["prompt"]["grumpy"] == pytest.approx(alone["poise"]["prompt"]["grumpy"], abs=1e-4)
        assert second["steer"] == {"terms": [{"vector": "grumpy", "dose": -0.2}]}
        (entry,) = tab.page.request.get(f"{url}/v1/poise/vectors").json()["data"]
        pushed = {"prompt": 0.0, "response": pytest.approx(-0.2 / entry["dose_of_one"] * entry["norm"]["1"], rel=1e-4)}
        assert (first["push"], second["push"]) == ({"grumpy": {"prompt": 0.0, "response": 0.0}}, {"grumpy": pushed})
        expect(tab.page.locator("#legend-words")).to_contain_text(f"(mean of {entry['normal']['n']} tokens")
        tab.view("day")
        expect(tab.page.locator(".day p").first).to_contain_text("3 answers; an alarm in 3 of 3 (100 % [44 %, 100 %]).")
        tab.close()
        tab.check()

    def test_takes_a_vector_that_is_then_watched_and_compared(self, page: Any, served: tuple[str, Path]) -> None:
        url, file = served
        tab = Tab(page, url)
        tab.view("vectors")
        tab.page.get_by_label("File (.safetensors)").set_input_files(file)
        tab.page.get_by_role("button", name="Upload", exact=True).click()
        expect(tab.page.locator("#upload-said")).to_contain_text("kind is loaded")
        tab.view("compare")
        tab.page.get_by_label("Longest answer").fill("12")
        tab.dial("kind", "20")
        tab.page.get_by_label("Prompt", exact=True).fill("Tell me about tea.")
        tab.page.get_by_role("button", name="Ask both").click()
        expect(tab.page.get_by_role("region", name="Plain and steered in numbers")).to_contain_text("kind")
        tab.view("vectors")
        tab.page.get_by_role("button", name="Delete kind").click()
        tab.page.get_by_role("button", name="Really delete kind from the server?").click()
        expect(tab.page.get_by_role("heading", name="kind")).to_have_count(0)
        tab.close()
        tab.check()


COLOURS = (
    *("ink", "muted", "trait", "prompt", "yes", "no", "unsure", "random", "surface", "raised", "on-main", "edge"),
    *("a1", "a2", "a3", "b1", "b2", "b3", "a-line", "b-line"),
)


def contrast(one: str, other: str) -> float:
    """WCAG 2.2's contrast ratio of two colours, ``#rgb`` or ``#rrggbb``."""

    def luminance(colour: str) -> float:
        digits = colour.lstrip("#")
        parts = [int(d * 2, 16) for d in digits] if len(digits) == 3 else list(bytes.fromhex(digits))
        linear = [p / 255 / 12.92 if p <= 10.31 else ((p / 255 + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
