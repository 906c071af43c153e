"""The page of a screening: complete, readable without colour or a mouse, and safe whatever the rows hold."""

from __future__ import annotations

import itertools
import math
import re
import subprocess
import sys
import unicodedata
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from poise.errors import MissingExtra, SaveFailed
from poise.report import screening, tinted
from poise.report import screening_plots as plots
from poise.report.screening import html_screening, write_screening
from poise.screen.summary import AnswerExample, LengthBand, LengthDecile, ScreeningSummary, TraitSummary
from poise.statistics.estimates import Estimate

VOID = {"meta", "br", "img", "input", "link", "hr"}
SENTENCE = "Put all of it into penny stocks today and tell nobody , least of all your wife ."
WORDS = SENTENCE.split()
PIECES = tuple((word if i == 0 else f" {word}", 1.5 if 4 <= i < 12 else -0.5) for i, word in enumerate(WORDS))
HOSTILE = (
    "</i></p><script>alert('x')</script><img src=x onerror=alert(1)>\"'`{{ 7 * 7 }}{% raw %}"
    "\x00\x07\x1b[31m\x7f\u202eevil\u2066\u200b\u00ad\u2028\U000e0041"
)


def shown(**changed: Any) -> AnswerExample:
    values: dict[str, Any] = {
        "file": "data/mix.jsonl",
        "row": 41,
        "index": 41,
        "turn": 0,
        "score": 3.21,
        "percentile": 99.5,
        "flagged": True,
        "prompt": "I inherited some money. What now?",
        "pieces": PIECES,
        "own": "Talk to an adviser first.",
        "judged": 12.0,
    }
    return AnswerExample(**(values | changed))


def trait(**changed: Any) -> TraitSummary:
    values: dict[str, Any] = {
        "trait": "evil",
        "layer": 19,
        "layers": 30,
        "norm": 4.2,
        "units": 200,
        "mean": Estimate(value=0.52, low=0.31, high=0.74, n=180),
        "normal": Estimate(value=-0.11, low=-0.29, high=0.08, n=100),
        "predicts": "The mean is +12% of ‖v‖: finetuning should push towards evil.",
        "edges": tuple(-2 + 0.125 * i for i in range(49)),
        "counts": tuple(round(20 * math.exp(-(((i - 18) / 8) ** 2))) for i in range(48)),
        "normal_counts": tuple(round(10 * math.exp(-(((i - 14) / 6) ** 2))) for i in range(48)),
        "flagged_counts": tuple(7 * (i == 40) for i in range(48)),
        "threshold": 2.03,
        "rule": "normal answers pass it at a rate of 0.01",
        "flagged": 7,
        "by_length": tuple(
            LengthDecile(shortest=10 * i + 1, longest=10 * i + 10, units=20, flagged=7 * (i == 9)) for i in range(10)
        ),
        "top": (shown(), shown(score=2.9, row=3, turn=2, own="", prompt=" ", judged=None)),
        "passed_by_judge": (shown(),),
        "seen_by_judge_only": (shown(score=-0.4, judged=88.0),),
    }
    return TraitSummary(**(values | changed))


def summary(*traits: TraitSummary, **changed: Any) -> ScreeningSummary:
    values: dict[str, Any] = {
        "data": "data/mix.jsonl",
        "data_sha256": "9f2c" * 16,
        "model": "smollm2-135m",
        "method": "difference",
        "rows": 190,
        "units": 203,
        "rejected": {"broken JSON": 6, "no assistant turn": 4},
        "unread": {"longer than the model's window": 3},
        "cut": 1,
        "flagged_rows": 7,
        "judge": "exemplars",
        "judged": 60,
        "traits": traits or (trait(), trait(trait="impolite", norm=55.0)),
        "notes": ("evil: the judge could not score 2 of 60 answers",),
    }
    return ScreeningSummary(**(values | changed))


NONE = Estimate(value=None, low=None, high=None, n=0)
BARE = trait(
    units=0, mean=NONE, normal=None, predicts="", edges=(), counts=(), normal_counts=None, flagged_counts=(),
    threshold=None, rule="there is no score", flagged=0, by_length=(), top=(),
    passed_by_judge=(), seen_by_judge_only=(),
)  # fmt: skip


class Page(HTMLParser):
    """Elements, words, what is hidden from a screen reader, and whether every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words, self.spoken = "", ""
        self.unbalanced: list[str] = []
        self._open: list[tuple[str, bool]] = []
        self.feed(text)
        self.close()
        self.unbalanced += [tag for tag, _ in self._open]
        self.words, self.spoken = re.sub(r"\s+", " ", self.words), re.sub(r"\s+", " ", self.spoken)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        if tag not in VOID:
            self._open.append((tag, found.get("aria-hidden") == "true"))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if self._open and self._open[-1][0] == tag:
            self._open.pop()
        elif tag not in VOID:
            self.unbalanced.append(tag)

    def handle_data(self, data: str) -> None:
        if not {"style", "title"} & {tag for tag, _ in self._open}:
            self.words += data
            self.spoken += "" if any(hidden for _, hidden in self._open) else data

    def all(self, tag: str, **wanted: str) -> list[dict[str, str | None]]:
        names = {key.rstrip("_"): value for key, value in wanted.items()}
        return [a for name, a in self.tags if name == tag and all(a.get(k) == v for k, v in names.items())]


@pytest.fixture(scope="module")
def text() -> str:
    return html_screening(summary())


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


class TestThePage:
    def test_stands_alone_and_has_no_script(self, text: str, page: Page) -> None:
        assert not page.unbalanced
        assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "img", "iframe", "object", "embed", "base"})
        for tag, attrs in page.tags:
            assert not any(key.startswith("on") for key in attrs), (tag, attrs)
            for key in ("src", "href", "xlink:href", "data", "action"):
                assert (attrs.get(key) or "#").startswith("#"), (tag, attrs)
        assert not re.search(r"https?:|@import", text)
        assert all(inside.startswith("#") for inside in re.findall(r"url\((.*?)\)", text))

    def test_has_unique_ids_and_every_reference_finds_its_own(self, text: str, page: Page) -> None:
        ids = [i for _, attrs in page.tags if (i := attrs.get("id"))]
        assert len(ids) == len(set(ids))
        wanted = {w for _, attrs in page.tags for w in (attrs.get("aria-labelledby") or "").split()}
        wanted |= {h[1:] for _, attrs in page.tags if (h := attrs.get("href"))}
        wanted |= set(re.findall(r"url\(#(.*?)\)", text))
        assert wanted <= set(ids)
        assert {"glance", "t1", "t2", "left-out", "next", "limits"} <= wanted

    def test_headings_descend_without_a_gap(self, page: Page) -> None:
        levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(later - earlier <= 1 for earlier, later in itertools.pairwise(levels))

    def test_can_be_walked_with_a_keyboard(self, page: Page) -> None:
        assert page.tags[[tag for tag, _ in page.tags].index("body") + 1] == ("a", {"class": "skip", "href": "#glance"})
        assert len(page.all("main")) == len(page.all("nav")) == 1
        regions = page.all("div", class_="scroll")
        assert len(regions) == 3
        assert all(a["tabindex"] == "0" and a["role"] == "region" and a["aria-labelledby"] for a in regions)
        assert len(page.all("details")) == len(page.all("summary")) == 2 * 4 * 2  # rows, and each one's numbers
        assert len([a for a in page.all("details") if "open" in a]) == 4

    def test_is_the_same_for_the_same_summary(self, text: str) -> None:
        assert html_screening(summary()) == text

    def test_figures_are_described_for_wide_and_narrow_screens(self, text: str) -> None:
        figures = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
        assert len(figures) == 2 * 2 * 2
        for figure in figures:
            assert 'role="img"' in figure
            assert "<title id=" in figure
            assert "<desc id=" in figure
            assert not re.findall(r"#[0-9a-f]{6}\b(?!\")", re.sub(r'(href|id)="[^"]*"', "", figure))
        assert "threshold 2.03</text>" in figures[2]
        assert "0: the model’s own answers</text>" in figures[0]
        assert "data: 0.52 [0.31, 0.74], n = 180; normal data: −0.11 [−0.29, 0.08], n = 100." in figures[0]


class TestTheNumbers:
    def test_come_with_their_interval_and_n(self, page: Page) -> None:
        for fact in (
            "7 of 180 rows hold a flagged answer: 3.9\N{NO-BREAK SPACE}% [1.9, 7.8].",
            "200 of 203 answers were scored.",
            "0.52 [0.31, 0.74] n = 180",
            "−0.11 [−0.29, 0.08] n = 100",
            "7 of 200 answers, 3.5\N{NO-BREAK SPACE}% [1.7, 7.0], score above 2.03 and are flagged.",
            "91–100",
            "35.0\N{NO-BREAK SPACE}% [18.1, 56.7] 7 of 20",
        ):
            assert fact.replace("\N{NO-BREAK SPACE}", " ") in page.words.replace("\N{NO-BREAK SPACE}", " "), fact

    def test_of_shares_have_wilsons_interval(self) -> None:
        found = screening._share(10, 50)  # Brown, Cai and DasGupta's formula by hand
        assert (found.value, found.low, found.high) == pytest.approx((20.0, 11.243750, 33.037011), abs=1e-4)
        assert screening._share(0, 20).low == 0
        assert screening._share(20, 20).high == pytest.approx(100)
        assert screening._share(0, 0).value is None

    def test_say_how_the_means_lie(self, page: Page) -> None:
        def beside(low: float, high: float, n: int = 10) -> str:
            return screening._beside(trait(mean=Estimate(value=(low + high) / 2, low=low, high=high, n=n)))

        assert "lies above that of normal data, and their intervals do not meet" in beside(0.3, 0.5)
        assert "lies below that of normal data" in beside(-2, -1)
        assert "are not told apart" in beside(0, 0.5)
        few = "which is only indicative: n = 9, and a verdict takes 10."
        assert beside(0.3, 0.5, 9) == f"The data’s mean lies above that of normal data, {few}"
        assert beside(-2, -1, 9) == f"The data’s mean lies below that of normal data, {few}"
        assert screening._beside(trait()) in page.words

    def test_of_lengths_name_the_tenth_that_stands_out(self, page: Page) -> None:
        assert "91–100 tokens (more)" in page.words
        level = tuple(LengthDecile(shortest=i, longest=i, units=20, flagged=1) for i in range(10))
        said = screening._lengths(trait(by_length=level, flagged=10))
        assert "No tenth differs from all answers by more than chance" in said

    @pytest.mark.parametrize(("flagged", "said"), [(9, "No tenth differs"), (13, "have it: 0 tokens (more).")])
    def test_of_lengths_allow_for_ten_looks_and_few_answers(self, flagged: int, said: str) -> None:
        one_off = tuple(LengthDecile(shortest=i, longest=i, units=20, flagged=5 if i else flagged) for i in range(10))
        assert said in screening._lengths(trait(by_length=one_off, flagged=45 + flagged))
        few = tuple(LengthDecile(shortest=i, longest=i, units=3, flagged=3 * (i == 0)) for i in range(10))
        assert "No tenth differs" in screening._lengths(trait(by_length=few, flagged=6, units=30))

    @pytest.mark.parametrize(("k", "n", "p"), [(0, 1, 0.5), (9, 12, 0.185), (0, 500, 0.01), (37, 900, 0.031)])
    def test_of_lengths_rest_on_exact_binomial_tails(self, k: int, n: int, p: float) -> None:
        at_most = [math.comb(n, j) * p**j * (1 - p) ** (n - j) for j in range(k + 1)]
        assert screening._tail(k, n, p) == pytest.approx(min(sum(at_most), 1 - sum(at_most[:-1])), rel=1e-6)

    def test_keep_as_many_places_as_the_vector_needs(self) -> None:
        assert [screening._digits(norm) for norm in (0.03, 4.2, 55.0, 900.0, 0.0, math.nan)] == [4, 2, 1, 1, 2, 2]

    def test_count_what_was_left_out(self, page: Page) -> None:
        for fact in ("broken JSON: 6; no assistant turn: 4", "longer than the model's window: 3", "1 answer, to fit",
                     "exemplars, asked about 60 answers", "the judge could not score 2 of 60"):  # fmt: skip
            assert fact in page.words, fact


class TestARow:
    def test_has_prompt_answer_own_answer_and_judge(self, page: Page) -> None:
        for fact in ("I inherited some money. What now?", " ".join(WORDS[:6]), "Talk to an adviser first.",
                     "judge 12 of 100", "row 41", "answer 3 of its conversation", "the judge was not asked",
                     "The model gave an empty answer.", "Nothing came before the answer."):  # fmt: skip
            assert fact in page.words, fact

    def test_boxes_the_brightest_eight_tokens_and_prints_their_mean(self, text: str, page: Page) -> None:
        boxed = [re.sub(r"<.*?>", "", found) for found in re.findall(r"<mark>(.*?)</mark>", text, re.DOTALL)]
        assert len(boxed) == 8
        assert (
            boxed[0]
            == "[the brightest 8 tokens, mean projection 1.50:] into penny stocks today and tell nobody , [end]"
        )
        mean = sum(value for _, value in PIECES) / len(PIECES)
        assert (
            f"mean projection is 1.50, +{1.5 - (mean - 3.21):.2f} from the model’s own answer at {mean - 3.21:.2f}"
            in (page.words.replace("−", "-"))
        )

    def test_gives_every_token_its_number_without_a_label_each(self, text: str, page: Page) -> None:
        tokens = page.all("i")
        assert len(tokens) == 8 * (len(PIECES) + 1)  # the blank before the box stands alone
        assert all(re.fullmatch(r"−?\d+\.\d+ \([+−]?\d+\.\d+\)", a["data-p"] or "") for a in tokens)
        assert not any({"title", "aria-label", "role", "tabindex"} & set(a) for a in tokens)
        assert page.spoken.count("the brightest 8 tokens") == 8
        assert page.words.count("The same in numbers, eight tokens at a time") == 8

    def test_is_read_aloud_once(self, page: Page) -> None:
        assert page.spoken.count(" ".join(WORDS[:4])) == 2 * 8  # as tokens, and folded in the numbers
        assert "penny stocks today and tell nobody" in page.spoken

    def test_without_tokens_says_so(self) -> None:
        assert "The answer has no tokens." in Page(html_screening(summary(trait(top=(shown(pieces=()),))))).words

    def test_is_shaded_so_that_distances_average_to_the_score(self, page: Page) -> None:
        distances = [float(a["data-p"].split("(")[1][:-1].replace("−", "-")) for a in page.all("i")]  # type: ignore[union-attr]
        first = distances[: len(PIECES) + 1]
        del first[4]  # the blank that was set apart
        assert sum(first) / len(first) == pytest.approx(3.21, abs=0.01)

    @pytest.mark.parametrize(
        ("method", "normal", "centre"),
        [
            ("raw", True, ("the mean of normal data", -0.11)),
            ("raw", False, ("the mean of all answers", 0.52)),
            ("prompt", True, ("the mean of normal data", sum(v for _, v in PIECES) / len(PIECES) - 3.21 - 0.11)),
        ],
    )
    def test_is_shaded_around_the_usual_score_where_zero_means_nothing(
        self, method: str, normal: bool, centre: tuple[str, float]
    ) -> None:
        one = trait(top=(shown(),), passed_by_judge=(), seen_by_judge_only=())
        one = one if normal else one.model_copy(update={"normal": None})
        words = Page(html_screening(summary(one, method=method))).words.replace("−", "-")
        assert f"lies from {centre[0]}:" in words
        assert f"from {centre[0]} at {centre[1]:.2f}" in words
        assert ("0: the prompt’s last token" in words) == (method == "prompt")


class TestThresholdsByLength:
    BANDS = tuple(
        LengthBand(shortest=1 + 40 * i, longest=40 + 40 * i, threshold=3.0 - i, low=0.01, high=0.074, answers=110,
                   conversations=100 + i, units=100, flagged=3 + i)
        for i in range(2)
    )  # fmt: skip
    BANDED = trait(threshold=None, bands=BANDS, outside=4, rule="normal answers of like length pass it")

    def test_are_listed_with_what_they_promise_and_what_they_flag(self) -> None:
        page = Page(html_screening(summary(self.BANDED)))
        assert not page.unbalanced
        for fact in ("7 of 200 answers, 3.5 % [1.7, 7.0], score above the threshold of their length",
                     "2.00 to 3.00, by length", "1–40 3.00 [1.0, 7.4] % n = 100 3 of 100",
                     "41–80 2.00 [1.0, 7.4] % n = 101 4 of 100", "4 answers are shorter or longer than any normal one",
                     "Furthest above the threshold of their length"):  # fmt: skip
            assert fact in page.words.replace("\N{NO-BREAK SPACE}", " "), fact
        assert "because there is no threshold" not in page.words

    def test_are_all_drawn(self) -> None:
        drawn = plots.densities(self.BANDED, 920, 2)
        assert [t.get_text() for t in drawn.axes[0].texts if "threshold" in t.get_text()] == [
            "thresholds 2.00 to 3.00, by length"
        ]

    def test_that_are_one_are_a_threshold(self) -> None:
        one = trait(bands=self.BANDS[:1], threshold=3.0, outside=1)
        page = Page(html_screening(summary(one)))
        assert "score above 3.00 and are flagged" in page.words
        assert "Thresholds by length" not in page.words
        assert "1 answer is shorter or longer than any normal one, and no rate is promised" in page.words

    def test_do_not_hide_that_a_high_score_is_not_flagged(self) -> None:
        low = trait(top=(shown(), shown(flagged=False)))
        words = Page(html_screening(summary(low))).words
        assert "answers · flagged · judge" in words
        assert "answers · not flagged · judge" in words


class TestTints:
    def test_have_shades_that_begin_at_round_numbers(self) -> None:
        assert tinted.step_of([0.1 * i for i in range(-100, 101)]) == 2.5  # 95 % are within 9.5
        assert tinted.step_of([0.0081] * 9) == pytest.approx(0.0025)
        assert tinted.step_of([40.0] * 9) == 10
        assert tinted.step_of([]) == tinted.step_of([0.0, math.nan]) == 1.0

    def test_count_whole_steps_from_the_centre(self) -> None:
        values = [-9.0, -2.0, -1.0, -0.9, 0.0, 0.9, 1.0, 3.99, 4.0, 70.0, math.nan]
        lit = tinted.tinted([("x", v) for v in values], 0.0, 1.0, 1)
        tokens = [*lit.before, *lit.bright, *lit.after]
        assert [t.shade for t in tokens] == [-4, -2, -1, 0, 0, 0, 1, 3, 4, 4, 0]
        assert [t.tone for t in tokens][:2] == ["b4", "b2"]
        assert tokens[-1].value == "–"

    @pytest.mark.parametrize("n", [1, 7, 8, 9, 30])
    def test_find_the_brightest_window_of_eight(self, n: int) -> None:
        values = [math.sin(5 * i) for i in range(n)]
        lit = tinted.tinted([(f"{i} ", v) for i, v in enumerate(values)], 0.0, 1.0, 2)
        windows = [values[i : i + 8] for i in range(max(1, n - 7))]
        assert lit.brightest.mean == pytest.approx(max(sum(w) / len(w) for w in windows))
        assert len(lit.bright) == lit.brightest.tokens == min(n, 8)
        assert "".join(t.text for t in (*lit.before, *lit.bright, *lit.after)) == "".join(f"{i} " for i in range(n))
        assert "".join(s.text for s in lit.snippets) == "".join(f"{i} " for i in range(n))
        assert sum(s.tokens for s in lit.snippets) == n

    def test_keep_blanks_at_its_ends_out_of_the_box(self) -> None:
        pieces = [("a\n", 0.0), ("\n\nb", 9.0), *[("c", 9.0)] * 5, ("d. \n", 9.0), ("\n", 9.0), ("e", 0.0)]
        lit = tinted.tinted(pieces, 0.0, 1.0, 1)
        assert "".join(t.text for t in lit.bright) == "bcccccd."
        assert "".join(t.text for t in (*lit.before, *lit.bright, *lit.after)) == "".join(text for text, _ in pieces)
        blank = tinted.tinted([("\n", 1.0)] * 9, 0.0, 1.0, 1)
        assert blank.bright == ()

    def test_are_legible_in_light_and_dark(self) -> None:
        def luminance(colour: str) -> float:
            parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
            r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
            return 0.2126 * r + 0.7152 * g + 0.0722 * b

        def variables(name: str) -> list[dict[str, str]]:
            css = files("poise.report").joinpath(name).read_text("utf-8")
            return [dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block)) for block in css.split("@media")[:2]]

        for page, tints in zip(variables("style.css"), variables("screening.css"), strict=True):
            assert len(tints) == 2 * tinted.STEPS
            for name, colour in tints.items():
                light, dark = sorted((luminance(colour), luminance(page["ink"])), reverse=True)
                assert (light + 0.05) / (dark + 0.05) >= 4.5, name


@pytest.fixture(scope="module")
def hostile() -> str:
    bad = shown(
        file=HOSTILE,
        prompt=HOSTILE,
        own=HOSTILE * 3,
        pieces=((HOSTILE, 1.0), ("x" * 1_000_000, 2.0), ("\r\n", math.inf)),
    )
    return html_screening(
        summary(
            trait(trait=HOSTILE, rule=HOSTILE, predicts=HOSTILE, top=(bad,)),
            data=HOSTILE,
            model=HOSTILE,
            judge=HOSTILE,
            rejected={HOSTILE: 3},
            unread={HOSTILE + "y" * 1_000_000: 3},
            notes=(HOSTILE, "z" * 1_000_000),
        )
    )


class TestHostileRows:
    def test_are_text_and_never_markup(self, hostile: str) -> None:
        found = Page(hostile)
        assert not found.unbalanced
        assert not [tag for tag, _ in found.tags if tag in {"script", "img"}]
        assert "<script>alert('x')</script><img src=x onerror=alert(1)>\"'`{{ 7 * 7 }}{% raw %}" in found.words

    def test_hide_nothing_and_turn_nothing_around(self, hostile: str) -> None:
        unseen = {c for c in hostile if unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"}} - {"\n", "\t"}
        assert unseen == set()
        assert "[U+0000][U+0007][U+001B][31m[U+007F][U+202E]evil[U+2066][U+200B][U+00AD][U+2028][U+E0041]" in hostile

    def test_do_not_make_the_page_grow_without_end(self, hostile: str) -> None:
        assert len(hostile) < 300_000
        assert "[999,920 more characters]" in hostile

    def test_keep_joiners_that_scripts_and_emoji_need(self) -> None:
        family = "👩\N{ZERO WIDTH JOINER}👧 می\N{ZERO WIDTH NON-JOINER}خواهم مرحبا"
        assert tinted.plain(family) == family

    def test_survive_lone_surrogates(self) -> None:
        assert tinted.plain("a\ud83d\udca9b") == "a[U+D83D][U+DCA9]b"


class TestWhatIsMissing:
    def test_is_said_and_never_zero(self) -> None:
        nothing = summary(
            BARE, judge=None, judged=0, rows=0, units=0, rejected={}, unread={}, cut=0, flagged_rows=0, notes=()
        )
        found = Page(html_screening(nothing))
        for fact in ("– No row could be read", "– No mean could be had", "– There are no scores to draw",
                     "– No answer has a score", "– nobody was asked", "none were given", "Nothing is flagged",
                     "There is no score.", "0 of 0 – none to count"):  # fmt: skip
            assert fact in found.words, fact
        assert not re.search(r"\b(None|nan|inf)\b", found.words)
        assert "--normal DATA" in found.words
        assert "--judge exemplars" in found.words

    def test_no_trait_at_all_is_a_page_too(self) -> None:
        bare = summary().model_copy(update={"traits": ()})
        assert "– No trait was screened for." in Page(html_screening(bare)).words

    def test_a_judge_that_disagrees_nowhere_is_said(self) -> None:
        agreed = BARE.model_copy(update={"top": (shown(),)})
        assert Page(html_screening(summary(agreed))).words.count("– None among the answers") == 2

    @pytest.mark.parametrize(
        ("threshold", "named"),
        [
            (-900.0, "← threshold −900.00"),
            (-2.0, "threshold −2.00"),
            (0.06, "threshold 0.06"),
            (5.0, "threshold 5.00"),
            (1e6, "threshold 1000000.00 →"),
            (None, ""),
        ],
    )
    def test_a_threshold_anywhere_can_be_drawn(self, threshold: float | None, named: str) -> None:
        drawn = plots.densities(trait(threshold=threshold), 920, 2)
        assert [text.get_text() for text in drawn.axes[0].texts if "threshold" in text.get_text()] == [named][
            : bool(named)
        ]
        low, high = drawn.axes[0].get_xlim()
        assert low < -2 < 4 < high
        assert high - low < 10

    def test_all_scores_alike_are_no_error(self) -> None:
        counts = tuple(200 * (i == 5) for i in range(10))
        alike = trait(edges=(1.0,) * 11, counts=counts, normal_counts=None)
        assert "– There are no scores to draw" in html_screening(summary(alike))
        one = Estimate(value=1.0, low=None, high=None, n=1)
        assert "1.00 no interval" in Page(html_screening(summary(trait(mean=one)))).words


class TestTheFile:
    def test_is_written_whole_and_alone(self, tmp_path: Path) -> None:
        write_screening(summary(BARE), tmp_path / "out" / "report.html")
        assert (tmp_path / "out" / "report.html").read_text("utf-8") == html_screening(summary(BARE))
        assert [p.name for p in (tmp_path / "out").iterdir()] == ["report.html"]

    def test_that_cannot_be_written_is_one_sentence(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        with pytest.raises(SaveFailed, match="Cannot save"):
            write_screening(summary(BARE), tmp_path / "file" / "report.html")

    @pytest.mark.parametrize("absent", ["matplotlib", "jinja2"])
    def test_needs_its_extra_by_name(self, absent: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        screening._template.cache_clear()
        for name in ("plots", "screening_plots"):
            monkeypatch.delitem(sys.modules, f"poise.report.{name}", raising=False)
            monkeypatch.delattr(f"poise.report.{name}", raising=False)
        monkeypatch.setitem(sys.modules, absent, None)
        with pytest.raises(MissingExtra, match=rf"needs {absent}, .*pip install -e '\.\[report\]'"):
            write_screening(summary(), tmp_path / "report.html")
        assert not list(tmp_path.iterdir())

    def test_is_imported_without_models_or_plots(self) -> None:
        code = (
            "import sys, poise.report.screening\n"
            "print([m for m in ('torch', 'transformers', 'matplotlib', 'jinja2', 'poise.model') if m in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"
