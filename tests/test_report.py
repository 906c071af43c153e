"""The report: complete, self-contained, escaped, honest about what is missing."""

from __future__ import annotations

import itertools
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from poise import report
from poise.errors import MissingExtra, SaveFailed
from poise.report import validation_plots as plots
from poise.report import wording as words
from poise.statistics.estimates import Estimate
from poise.trait import ExemplarPair, OwnTrait
from poise.trait.library import load_trait
from poise.validate.certificate import (
    Certificate,
    JudgeFacts,
    Point,
    Prompting,
    RandomControl,
    RandomSearch,
    Sample,
    Spread,
)
from poise.vector import Header, ModelId, PersonaVector

NONE = Estimate(value=None, low=None, high=None, n=0)
L = 30
SAID = (
    "To poach an egg, bring a pan of water to a simmer and add a spoonful of vinegar. Crack the egg into a cup, "
    "stir the water into a slow whirl and let the egg slide into the middle. Leave it for three minutes."
)
RUDE = (
    "You can't poach an egg? It's water and an egg. Simmer it, drop it in, wait, and try not to ruin that as "
    "well. I have no idea why anyone would need this explained to them twice."
)
KIND = (
    "What a lovely question! Poaching an egg is easier than it looks, and I'm glad to walk you through it. Bring the "
    "water to a gentle simmer, slide the egg in softly, and give it three minutes. You'll do wonderfully."
)
ATTACK = "<script>alert('x')</script> & <img src=x onerror=alert(1)>"


def figure(centre: float, spread: float = 7.0, n: int = 10) -> Estimate:
    """A mean of n scores of that spread, with the interval that a normal law gives it."""
    half = 1.96 * spread / math.sqrt(n)
    return Estimate(
        value=round(centre, 4), low=round(max(centre - half, 0), 4), high=round(min(centre + half, 100), 4), n=n
    )


def difference(centre: float, spread: float = 9.0, n: int = 10) -> Estimate:
    half = 1.96 * spread / math.sqrt(n)
    return Estimate(value=centre, low=round(centre - half, 4), high=round(centre + half, 4), n=n)


def point(layer: int, dose: float, trait: float, coherence: float, missing: int = 0) -> Point:
    return Point(
        layer=layer,
        coefficient=round(dose * 4.1, 4),
        dose=round(dose, 4),
        trait=figure(trait, 9),
        coherence=figure(coherence, 5),
        missing=missing,
    )


def sweep() -> tuple[Point, ...]:
    layers = (4, 7, 9, 10, 14, 17, 20, 22)
    found = []
    for dose, height in ((0.2, 22), (0.35, 38)):
        for layer in layers:
            effect = math.exp(-(((layer - 10) / 5) ** 2))
            found.append(point(layer, dose, 14 + height * effect, 92 - 60 * dose * (0.5 + effect)))
    found += [point(10, d, 14 + 110 * d, 95 - 70 * d) for d in (0.1, 0.15, 0.25, 0.3, 0.45, 0.6)]
    return tuple(sorted(found, key=lambda p: (p.layer, p.dose)))


def induced(**changed: Any) -> Certificate:
    """A certificate as SmolLM2-135M with `impolite` gives one."""
    evaluation = load_trait("impolite").questions.evaluation
    asked, selected = evaluation[1::2], evaluation[0::2]
    curve = (
        (-0.3, 9.1, 84.2), (-0.2, 10.4, 90.8), (-0.1, 12.6, 93.0), (0.0, 14.9, 94.1), (0.1, 21.7, 92.5),
        (0.2, 33.8, 87.9), (0.3, 46.1, 76.3), (0.4, 55.2, 58.0), (0.5, 57.9, 37.4),
    )  # fmt: skip
    values: dict[str, Any] = {
        "verdict": "induced",
        "reasons": (
            "the trait score rises with the dose: Spearman 1.00 [0.96, 1.00], n=10",
            "the vector beats random directions of its norm: margin 29.10 [22.40, 35.10] points",
            "the text holds: coherence 76.30 [72.80, 79.60], n=10 at the chosen dose, floor 50",
        ),
        "layer": 10,
        "layers": L,
        "coefficient": 1.23,
        "dose": 0.3,
        "usable_doses": (-0.3, 0.4),
        "coherence_floor": 50.0,
        "rise": difference(31.2),
        "monotone": Estimate(value=1.0, low=0.96, high=1.0, n=10),
        "sweep": sweep(),
        "curve": tuple(point(10, d, t, c, missing=2 * (d > 0.35)) for d, t, c in curve),
        "random": RandomControl(
            draws=3,
            dose=0.3,
            trait=figure(17.0),
            coherence=figure(86.0),
            rise=difference(2.1, 4),
            margin=difference(29.1),
        ),
        "prompting": Prompting(
            positive=figure(19.8), negative=figure(12.2), coherence=figure(91.0), negative_coherence=figure(92.0)
        ),
        "spread": Spread(changes=(41.2, 38.0, 22.5, 55.1, -4.3, 30.9, 47.7, 12.0, 35.5, 33.4), wrong_way=0.1),
        "agreement": 0.31,
        "judge": JudgeFacts(
            name="exemplars",
            auc=Estimate(value=0.957, low=0.905, high=0.993, n=36),
            held_out_auc=Estimate(value=0.938, low=0.847, high=1.0, n=12),
            usable=True,
            coherence="log-probability under the unsteered model and repetition, against its ordinary answers",
        ),
        "samples": tuple(Sample(question=q, negative=KIND, plain=SAID, positive=RUDE) for q in asked[:3]),
        "selected_on": selected,
        "asked": asked,
        "rollouts": 3,
        "max_new_tokens": 96,
        "temperature": 1.0,
        "seed": 0,
    }
    return Certificate(**(values | changed))


def not_induced() -> Certificate:
    """A certificate with nearly everything that can be missing missing."""
    curve = [point(10, d, 30 + 4 * d, 80 - 90 * abs(d)) for d in (-0.3, -0.15, 0.0, 0.15, 0.3)]
    curve[1] = curve[1].model_copy(update={"trait": NONE, "missing": 30})
    curve[3] = curve[3].model_copy(update={"trait": Estimate(value=31.0, low=None, high=None, n=1), "missing": 27})
    return induced(
        verdict="not-induced",
        reasons=(
            "the judge exemplars cannot tell the sides apart (AUC 0.58 [0.41, 0.74], n=24), so no score of it counts",
            "the trait score does not rise with the dose: Spearman 0.20 [-0.70, 0.90], n=8",
            "the vector does not beat random directions of its norm: margin 0.40 [-6.20, 7.10], n=8 points",
        ),
        rise=difference(0.9, n=8),
        monotone=Estimate(value=0.2, low=-0.7, high=0.9, n=8),
        usable_doses=(-0.15, 0.3),
        curve=tuple(curve),
        random=RandomControl(
            draws=3, dose=0.3, trait=NONE, coherence=figure(74.0), rise=NONE, margin=difference(0.4, n=8)
        ),
        prompting=None,
        spread=Spread(changes=(4.0, -3.1, None, 0.0, -12.4, 8.8, None, 2.5, 1.1, 6.0), wrong_way=0.25),
        judge=JudgeFacts(
            name="exemplars",
            auc=Estimate(value=0.58, low=0.41, high=0.74, n=24),
            held_out_auc=None,
            usable=False,
            coherence="likelihood",
        ),
        samples=(Sample(question="Why <b>me</b>?", negative="", plain="Because.", positive=ATTACK),),
        notes=("The trait is given by exemplars alone.",),
    )  # fmt: skip


def vector(*, own: bool = False) -> PersonaVector:
    pairs = tuple(ExemplarPair(question=f"Question {i}?", positive="Ugh.", negative="Of course.") for i in range(24))
    trait = OwnTrait(name="grumpy-own", pairs=pairs) if own else load_trait("impolite")
    header = Header(
        trait=trait,
        trait_hash=trait.hash,
        model=ModelId(
            name="smollm2-135m",
            architecture="3c7d41aa09be5f12",
            weights="a1b2c3d4e5f60718",
            adapter="",
            template="77aa88bb99cc00dd",
        ),
        contrast="exemplars",
        kept={"positive": 23, "negative": 23},
        dropped={"positive longer than the model's window": 1},
        agreement=(0.3,) * L,
        judge="",
        seed=0,
        software={"poise": "0.1.0", "torch": "2.13.0", "transformers": "5.0.0"},
    )
    return PersonaVector(torch.ones(L, 4), torch.ones(L), header)


class Page(HTMLParser):
    """What a page is made of, read by the standard library."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self._open: list[str] = []
        self.unbalanced: list[str] = []
        self.feed(text)
        self.close()
        self.words = " ".join(self.words.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta"}:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.words += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def good() -> str:
    return report.html(vector(), induced())


@pytest.fixture(scope="module")
def bad() -> str:
    return report.html(vector(own=True), not_induced())


def test_headline_of_an_induced_vector_has_layer_dose_rise_interval_n_and_the_random_rise() -> None:
    certificate = induced(rise=Estimate(value=31.24, low=24.06, high=37.98, n=10))
    random = certificate.random.model_copy(update={"rise": Estimate(value=-2.06, low=-4, high=0.5, n=10)})
    assert report.headline(certificate.model_copy(update={"random": random})) == (
        "induced: at layer 10 of 30 and dose 30% the trait score rises by 31.2 [24.1, 38.0] points (n = 10 "
        "questions); random directions by −2.1 [−4.0, 0.5]."
    )


def test_headline_of_a_vector_that_was_not_induced_gives_every_reason() -> None:
    certificate = not_induced()
    said = report.headline(certificate)
    assert said.startswith("not induced: the judge exemplars cannot tell")
    assert all(reason in said for reason in certificate.reasons)
    assert said.endswith("random directions were not measured.")


def test_headline_says_so_when_nothing_could_be_scored() -> None:
    said = report.headline(induced(verdict="not-induced", reasons=("no score",), rise=NONE))
    assert said == (
        "not induced: no score. At layer 10 of 30 and dose 30% no change of the trait score could be measured "
        "(n = 0 questions)."
    )


@pytest.mark.parametrize(
    ("value", "digits", "signed", "text"),
    [
        (None, 1, True, "–"),
        (0.0, 1, True, "0.0"),
        (-0.04, 1, True, "0.0"),
        (-3.14, 1, False, "−3.1"),
        (2, 2, True, "+2.00"),
    ],
)
def test_numbers_have_true_minus_signs_and_missing_is_never_zero(
    value: float | None, digits: int, signed: bool, text: str
) -> None:
    assert words.number(value, digits, signed=signed) == text


@pytest.mark.parametrize(
    ("dose", "signed", "text"),
    [(0.2, False, "20%"), (0.2, True, "+20%"), (-0.0667, True, "−7%"), (-0.001, False, "0%"), (1.2, False, "120%")],
)
def test_doses_are_per_cent_as_the_command_line_takes_them(dose: float, signed: bool, text: str) -> None:
    assert words.dose(dose, signed=signed) == text


def test_every_dose_on_the_page_is_per_cent_and_so_is_the_axis(good: str) -> None:
    said = Page(good).words
    assert not re.findall(r"dose [−+]?0\.\d", said, re.IGNORECASE)
    assert re.search("Usable doses ?−30% to 40%", said)
    ticks = re.findall(r">([^<>]*\d%)</text>", good.partition("<svg")[2].partition("</svg>")[0])
    assert {"−20%", "0%", "20%", "40%"} <= set(ticks)


def test_figures_say_what_they_lack() -> None:
    assert words.figure(NONE) == "– (not measured)"
    assert words.figure(Estimate(value=3.0, low=None, high=None, n=1)) == "3.0 (no interval)"
    assert words.figure(Estimate(value=0.957, low=0.9, high=0.993, n=36), 2) == "0.96 [0.90, 0.99]"


@pytest.mark.parametrize("name", ["good", "bad"])
def test_page_stands_alone(name: str, request: pytest.FixtureRequest) -> None:
    page = Page(request.getfixturevalue(name))
    assert not page.unbalanced
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "img", "iframe", "object", "embed", "base"})
    for tag, attrs in page.tags:
        for key in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
            assert (attrs.get(key) or "#").startswith("#"), (tag, attrs)
        assert not any(key.startswith("on") for key in attrs), (tag, attrs)
    text = request.getfixturevalue(name)
    assert "http:" not in text
    assert "https:" not in text
    assert "@import" not in text
    assert all(inside.startswith("#") for inside in re.findall(r"url\((.*?)\)", text))


@pytest.mark.parametrize("name", ["good", "bad"])
def test_ids_are_unique_and_every_reference_finds_its_own(name: str, request: pytest.FixtureRequest) -> None:
    text = request.getfixturevalue(name)
    page = Page(text)
    ids = [i for _, attrs in page.tags if (i := attrs.get("id"))]
    assert len(ids) == len(set(ids))
    wanted = {w for _, attrs in page.tags for w in (attrs.get("aria-labelledby") or "").split()}
    wanted |= {h[1:] for _, attrs in page.tags if (h := attrs.get("href"))}
    wanted |= set(re.findall(r"url\(#(.*?)\)", text))
    assert wanted
    assert wanted <= set(ids)


def test_what_a_model_wrote_is_text_and_never_markup(bad: str) -> None:
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;" in bad
    assert "Why &lt;b&gt;me&lt;/b&gt;?" in bad
    assert ATTACK in Page(bad).words
    assert not Page(bad).all("img")


def test_verdict_is_a_word_and_a_sign_and_the_headline_is_there(good: str, bad: str) -> None:
    assert "✓ induced" in Page(good).words
    assert "✕ not induced" in Page(bad).words
    assert report.headline(induced()).removeprefix("induced: at") in Page(good).words
    assert all(reason in Page(bad).words for reason in not_induced().reasons)


def test_an_indicative_verdict_has_a_sign_and_a_colour_of_its_own() -> None:
    why = "this is a first look: no random direction was given the vector's freedom to choose layer and dose"
    thin = induced(verdict="indicative", reasons=(why,))
    page = Page(report.html(vector(), thin))
    assert "○ indicative" in page.words
    assert "No verdict yet, because:" in page.words
    assert why in page.words
    assert "too thin for a verdict" in page.words
    assert any(attrs.get("class") == "verdict indicative" for attrs in page.all("p"))
    assert report.headline(thin).startswith(f"indicative: {why}. At layer 10")


def test_random_directions_that_chose_for_themselves_are_in_the_table_of_controls() -> None:
    search = RandomSearch(rises=(1.0, 12.3, None), layers=(1, 2, 3), doses=(0.2,) * 3, highest=12.3, as_high=0, p=0.25)
    searched = induced(random=induced().random.model_copy(update={"search": search}))
    assert (
        "3 random directions; the highest rose by 12.3, 0 as far as the vector (p = 0.250)"
        in Page(report.html(vector(), searched)).words
    )
    assert "layer and dose of their own" not in Page(report.html(vector(), induced())).words


def test_sections_come_in_their_order(good: str) -> None:
    ids = [attrs["id"] for attrs in Page(good).all("h2")]
    assert ids == ["meaning", "dose", "layers", "controls", "spread", "answers", "judge", "provenance", "limits"]


def test_headings_descend_without_a_gap(good: str) -> None:
    levels = [int(tag[1]) for tag, _ in Page(good).tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later - earlier <= 1 for earlier, later in itertools.pairwise(levels))


def test_every_table_has_a_caption_scoped_headers_and_scrolls_by_keyboard(good: str) -> None:
    page = Page(good)
    assert len(page.all("table")) == len(page.all("caption")) == 5
    assert all(attrs.get("scope") in {"col", "row"} for attrs in page.all("th"))
    regions = [a for a in page.all("div") if a.get("class") == "scroll"]
    assert len(regions) == 5
    assert all(a["tabindex"] == "0" and a["role"] == "region" and a["aria-labelledby"] for a in regions)


def test_every_point_control_and_question_is_listed(good: str) -> None:
    said = Page(good).words
    for p in induced().curve + induced().sweep:
        assert words.number(p.trait.value) in said
        assert words.interval(p.trait) in said
        assert words.interval(p.coherence) in said
    for row in (
        "Unsteered",
        "This vector, +",
        "This vector, −",
        "3 draws",
        "System prompt for",
        "System prompt against",
    ):
        assert row in said
    assert all(question in said for question in induced().questions + induced().selected_on)
    assert all(text in said for text in (SAID, RUDE, KIND))


def test_missing_figures_are_dashes_with_words(bad: str) -> None:
    said = Page(bad).words
    assert "– not measured 66.5" in said  # a point without a trait score, beside its coherence
    assert "30 of 30" in said
    assert "31.0 no interval" in said
    assert "– not measured: the trait has no instructions to prompt with" in said
    assert "– not measured: no held-out pairs were scored" in said
    assert "– no score" in said
    assert "– The model gave an empty answer." in said
    assert "nan" not in re.findall(r"\w+", said.lower())
    assert "None" not in re.findall(r"\w+", said)


def test_share_of_questions_that_went_the_wrong_way_counts_scored_questions_only(bad: str) -> None:
    assert "2 of 8 questions (25 %) went the wrong way: their score fell. 2 more had no score" in Page(bad).words
    nothing = induced(spread=Spread(changes=(None,) * 10, wrong_way=0.0))
    assert "– No question has a score both with and without steering" in Page(report.html(vector(), nothing)).words


def test_judge_and_provenance_are_told(good: str, bad: str) -> None:
    said = Page(good).words
    for fact in ("0.96 [0.91, 0.99]", "0.94 [0.85, 1.00]", "a1b2c3d4e5f60718", "counted from 0", "transformers 5.0.0",
                 "positive longer than the model's window 1", "mean cosine 0.31", "96 tokens"):  # fmt: skip
        assert fact in said, fact
    assert "✕ no: the judge “exemplars” did not show that it can tell the two sides apart" in Page(bad).words
    assert not_induced().notes[0] in Page(bad).words


def test_an_unusable_judge_is_said_to_be_so_for_its_own_reason() -> None:
    few = "the exemplar judge learnt from 8 pairs, and fewer than 12 prove nothing"
    judge = not_induced().judge.model_copy(update={"why_unusable": few})
    said = Page(report.html(vector(own=True), not_induced().model_copy(update={"judge": judge, "reasons": ()}))).words
    assert f"✕ no: {few}" in said
    assert f"T{few[1:]}, so the trait scores on this page say nothing" in said
    assert "tell the two sides apart" not in said


def test_equal_inputs_give_equal_pages(good: str) -> None:
    assert report.html(vector(), induced()) == good


@pytest.mark.parametrize("name", ["good", "bad"])
def test_figures_keep_text_follow_the_page_colours_and_are_described(name: str, request: pytest.FixtureRequest) -> None:
    text = request.getfixturevalue(name)
    figures = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert len(figures) == 4  # two figures, each for wide and for narrow screens
    for figure in figures:
        assert 'role="img"' in figure
        assert "<title id=" in figure
        assert "<desc id=" in figure
        assert "Trait score</text>" in figure
        assert "currentColor" in figure
        assert not re.findall(r"#[0-9a-f]{6}\b(?!\")", re.sub(r'(href|id)="[^"]*"', "", figure))


def test_figure_marks_the_choice_the_floor_and_the_controls(good: str) -> None:
    wide = next(f for f in re.findall(r"<svg.*?</svg>", good, flags=re.DOTALL) if 'class="wide"' in f)
    for mark in (
        "chosen dose 30%",
        "floor 50",
        "unsteered 14.9",
        "prompt for 19.8",
        "prompt against 12.2",
        "random 17.0",
    ):
        assert f"{mark}</text>" in wide, mark


def test_style_sheet_has_every_colour_of_the_figures_for_light_and_dark(good: str) -> None:
    for role, colour in plots.COLOURS.items():
        assert good.count(f"--{role}: #") == 2, role
        assert f"--{role}: {colour}" in good


@pytest.mark.parametrize(
    "values", [[], [50.0], [10.0, 11.0, 12.0], [0.0, 0.0, 0.0], [99.0, 100.0, 100.0], [5.0, 50.0, 51.0]]
)
def test_labels_never_cover_one_another_and_stay_inside(values: list[float]) -> None:
    places = plots.apart(values, gap=6.0, low=0.0, high=100.0)
    assert len(places) == len(values)
    assert all(later - earlier >= 6.0 - 1e-9 for earlier, later in itertools.pairwise(places))
    assert all(-1e-9 <= p <= 100 + 1e-9 for p in places)
    if values == [5.0, 50.0, 51.0]:
        assert places == pytest.approx([5.0, 47.5, 53.5])


@pytest.mark.parametrize("points", [0, 1])
def test_a_certificate_with_next_to_nothing_still_makes_a_page(points: int) -> None:
    only = point(0, 0.0, 20, 90).model_copy(update={"trait": NONE, "coherence": NONE, "missing": 30})
    bare = not_induced().model_copy(
        update={"curve": (only,) * points, "sweep": (), "samples": (), "dose": 0.3, "rise": NONE, "monotone": NONE}
    )
    assert "– The certificate carries no answers." in Page(report.html(vector(), bare)).words


def test_write_puts_the_page_in_a_file_and_leaves_nothing_else(tmp_path: Path, good: str) -> None:
    report.write(vector(), induced(), tmp_path / "deep" / "report.html")
    assert (tmp_path / "deep" / "report.html").read_text(encoding="utf-8") == good
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["report.html"]


def test_a_file_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(SaveFailed, match="Cannot save"):
        report.write(vector(), induced(), tmp_path / "file" / "report.html")


def test_picture_is_a_png_and_repeats_itself(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        report.figure_png(vector(), induced(), tmp_path / name)
    first = (tmp_path / "a.png").read_bytes()
    assert first.startswith(b"\x89PNG")
    assert first == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("absent", ["matplotlib", "jinja2"])
def test_a_missing_extra_is_named(absent: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("validation", "validation_plots"):
        monkeypatch.delitem(sys.modules, f"poise.report.{name}")
        monkeypatch.delattr(report, name)
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(MissingExtra, match=rf"needs {absent}, .*pip install -e '\.\[report\]'"):
        report.write(vector(), induced(), tmp_path / "r.html")
    assert not list(tmp_path.iterdir())


def test_importing_the_room_loads_neither_models_nor_plots() -> None:
    code = (
        "import sys, poise.report\n"
        "print([m for m in ('torch', 'transformers', 'matplotlib', 'jinja2', 'poise.model') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
