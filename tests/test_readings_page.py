"""What validation says of readings and of two vectors: on the page, in the terminal and as JSON."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import tiny
from poise import report, workflows
from poise import vector as vectors
from poise.cli import facts, render
from poise.errors import InvalidArgument
from poise.report import wording as words
from poise.statistics.estimates import Estimate
from poise.validate.certificate import Certificate, CombinedSteering, CombinedTrait, LayerReading, Monitoring, Rung
from test_report import NONE, Page, difference, figure, induced, vector

LAYERS = 6


def r(value: float, half: float = 0.1, n: int = 10) -> Estimate:
    return Estimate(value=value, low=value - half, high=value + half, n=n)


def rung(name: str, at: float, **changed: Any) -> Rung:
    facts: dict[str, Any] = {
        "name": name,
        "prompt": f"Be {name} <b>grumpy</b>.",
        "trait": figure(50 + 8 * at),
        "coherence": figure(90),
        "reading": Estimate(value=3 * at, low=3 * at - 1, high=3 * at + 1, n=10),
        "readings": tuple(3 * at + 0.1 * i for i in range(10)),
        "scores": tuple(None if i == 3 else 50.0 + 8 * at + i for i in range(10)),
        "missing": 3,
    }
    return Rung(**(facts | changed))


def monitoring(**changed: Any) -> Monitoring:
    names = ("−4", "−3", "−2", "−1", "+1", "+2", "+3", "+4")
    layers = [
        LayerReading(layer=i, overall=r(0.1 * i), within=r(0.05 * i), auc_mean=r(0.8), auc_peak=r(0.7))
        for i in range(LAYERS)
    ]
    values: dict[str, Any] = {
        "ladder": "system-prompts",
        "obeys": r(0.9),
        "rungs": tuple(rung(name, at - 3.5) for at, name in enumerate(names)),
        "layer": 4,
        "random_overall": r(0.21),
        "random_within": r(0.17),
        "random_draws": 20,
        "answer_layer": 3,
        "auc_length": r(0.55, n=16),
        "by_layer": tuple(layers),
    }
    return Monitoring(**(values | changed))


def together(**changed: Any) -> CombinedSteering:
    alone: dict[str, Any] = {"coherence": figure(80), "first_lost": None, "second_lost": None}
    both: dict[str, Any] = {"first": difference(20), "second": difference(9), "coherence": figure(60)}
    values: dict[str, Any] = {
        "other": "evil",
        "other_hash": "0" * 64,
        "other_certified": False,
        "layer": 10,
        "dose": 0.3,
        "other_layer": 10,
        "other_dose": 0.25,
        "cosine": 0.62,
        "conditions": (
            CombinedTrait(name="first alone", first=difference(31.2), second=difference(12), **alone),
            CombinedTrait(name="second alone", first=difference(11), second=difference(25), **alone),
            CombinedTrait(name="plain sum", first_lost=difference(11.2), second_lost=difference(-16), **both),
            CombinedTrait(name="orthogonal", first_lost=difference(1.2), second_lost=difference(14), **both),
        ),
        "asked": ("What of it?",),
        "notes": ("evil has no certificate, so its rise may be small for reasons of its own.",),
    }
    return CombinedSteering(**(values | changed))


def whole(**changed: Any) -> Certificate:
    return induced(**({"monitoring": monitoring(), "together": together()} | changed))


@pytest.fixture(scope="module")
def page() -> str:
    return report.html(vector(), whole())


class TestThePage:
    def test_has_both_sections_in_their_place_and_neither_unasked(self, page: str) -> None:
        ids = [attrs["id"] for attrs in Page(page).all("h2")]
        assert ids[ids.index("spread") : ids.index("answers") + 1] == ["spread", "readings", "together", "answers"]
        assert {"readings", "together"}.isdisjoint(a["id"] for a in Page(report.html(vector(), induced())).all("h2"))

    def test_is_sound_and_stands_alone(self, page: str) -> None:
        read = Page(page)
        assert not read.unbalanced
        ids = [i for _, attrs in read.tags if (i := attrs.get("id"))]
        assert len(ids) == len(set(ids))
        wanted = {w for _, attrs in read.tags for w in (attrs.get("aria-labelledby") or "").split()}
        assert wanted | set(re.findall(r"url\(#(.*?)\)", page)) <= set(ids)
        assert len(read.all("table")) == len(read.all("caption")) == 8
        assert all(attrs.get("scope") in {"col", "row"} for attrs in read.all("th"))
        assert "http" not in page
        assert "<b>grumpy" not in page
        assert page == report.html(vector(), whole())

    def test_lists_every_rung_layer_and_prompt(self, page: str) -> None:
        said = Page(page).words
        for step in monitoring().rungs:
            assert step.prompt in said
            assert words.interval(step.reading) in said
            assert words.interval(step.trait) in said
        for entry in monitoring().by_layer:
            assert words.interval(entry.overall, 2) in said
        assert "0.55" in said
        assert "3 of 30" in said

    def test_draws_a_dot_for_each_score_and_names_each_rung(self, page: str) -> None:
        for step in monitoring().rungs:
            assert len(re.findall(rf">\s*{re.escape(step.name)}\s*<", page)) >= 2

    def test_shows_what_each_trait_loses(self, page: str) -> None:
        said = Page(page).words
        assert "Together with evil" in said
        assert "+31.2" in said
        assert "−16.0" in said
        assert "cosine of the two directions at layer 10 is 0.62" in said
        assert "(not certified)" in said
        assert together().notes[0] in said

    def test_of_a_many_shot_ladder_says_that_system_prompts_are_ignored(self) -> None:
        shots = tuple(rung(f"{n} shots", n / 5, prompt="") for n in (0, 5, 10))
        said = Page(report.html(vector(), whole(monitoring=monitoring(ladder="many-shot", rungs=shots)))).words
        assert "system prompts are ignored" in said
        assert "3 lengths of history" in said
        assert "and the prompts" not in said

    def test_without_scores_or_exemplars_says_what_is_missing(self) -> None:
        silent = tuple(rung(n, 0, trait=NONE, scores=(None,) * 10) for n in ("−1", "+1"))
        bare = tuple(
            LayerReading(layer=i, overall=NONE, within=NONE, auc_mean=None, auc_peak=None) for i in range(LAYERS)
        )
        empty = monitoring(rungs=silent, by_layer=bare, answer_layer=None, auc_length=None, random_overall=NONE)
        said = Page(report.html(vector(), whole(monitoring=empty))).words
        assert "No correlation of prompt readings and trait scores could be had" in said
        assert "– Readings of answers were not tested" in said
        assert "None" not in re.findall(r"\w+", said)


class TestTheWords:
    def test_of_few_questions_are_only_indicative(self) -> None:
        few = r(0.4).model_copy(update={"n": 6})
        by_layer = tuple(layer.model_copy(update={"overall": few}) for layer in monitoring().by_layer)
        said = words.monitored(monitoring(by_layer=by_layer))
        assert "is only indicative (n = 6, and a verdict takes 10) of the trait score" in said
        assert "goes with" not in said

    def test_say_how_far_prompts_tell_beside_random_directions(self) -> None:
        said = words.monitored(monitoring())
        assert "At layer 4" in said
        assert "goes with the trait score" in said
        assert "r = 0.40 [0.30, 0.50] over 8 system prompts and n = 10 questions, 0.20 [0.10, 0.30] within" in said
        assert "|r| 0.21 [0.11, 0.31] and 0.17 [0.07, 0.27]" in said

    def test_claim_nothing_that_the_interval_does_not(self) -> None:
        assert "is not shown to go with" in words.monitored(monitoring(layer=0))
        assert "is not shown to go with" in words.monitored(monitoring(layer=1))  # an interval that begins at 0

    def test_call_a_loss_what_is_one(self) -> None:
        said = words.beside(together(), "impolite")
        assert "as a plain sum, impolite loses 11.2 [5.6, 16.8] points and evil gains 16.0 [10.4, 21.6] points" in said
        assert "Alone, coherence is 80.0 [75.7, 84.3] and 80.0 [75.7, 84.3]." in said
        assert "made orthogonal, impolite changes by −1.2 [−6.8, +4.4] points and evil loses 14.0" in said

    def test_stand_in_the_terminal(self, capsys: pytest.CaptureFixture[str]) -> None:
        render.show(render.certificate("impolite", "smollm2-135m", whole()))
        said = capsys.readouterr().out
        assert "Reading prompts" in said
        assert "Reading answers" in said
        assert "With evil" in said
        render.show(render.certificate("impolite", "smollm2-135m", induced()))
        assert "Reading" not in capsys.readouterr().out

    def test_come_as_json_too(self, tmp_path: Path) -> None:
        given = facts.of_certificate(whole(), tmp_path)
        assert given["monitoring"]["layer"] == 4
        assert given["monitoring"]["prompts"]["overall"]["value"] == pytest.approx(0.4)
        assert given["monitoring"]["answers"]["auc_mean"]["value"] == 0.8
        assert given["together"]["conditions"][2]["name"] == "plain sum"
        facts.print_json(given)
        bare = facts.of_certificate(induced(), tmp_path)
        assert (bare["monitoring"], bare["together"]) == (None, None)


def test_a_vector_is_not_steered_together_with_itself(tmp_path: Path) -> None:
    model = tiny.model()
    vectors.save_vector(tiny.vector(model), tmp_path / "a.safetensors")
    with pytest.raises(InvalidArgument, match="same directions"):
        workflows.validate_vector(tmp_path / "a.safetensors", model, tmp_path, beside=tmp_path / "a.safetensors")


def test_old_certificates_still_load() -> None:
    old = induced().model_dump(mode="json")
    del old["monitoring"], old["together"]
    assert Certificate.model_validate(old) == induced()
