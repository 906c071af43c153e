"""``poise bias``: controls at the false-positive rate, a planted difference found, nothing where nothing is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import tiny
from poise.cli import app
from poise.errors import InvalidData, InvalidSettings
from poise.lifecycle.bias import REFUSAL, bias_report, compare_bias, measure_swaps, sign_flip_p
from poise.lifecycle.bias_labels import fairness_report, read_labelled
from poise.lifecycle.bias_sets import SLOTS, BiasSet, SwapCell, draw_swaps, read_bias_set
from poise.statistics.estimates import bounded_estimate
from poise.steer import Steering
from poise.vector import save_vector
from steered_passes import no_warnings

PACKAGED = read_bias_set()


def planted(cells: list[SwapCell], group: str, size: float, seed: int = 0) -> Any:
    """Noise by prompt and by cell, with something added for one group."""
    random = np.random.default_rng(seed)
    of_prompt = {key: random.normal() for key in {(cell.axis, cell.template) for cell in cells}}
    return np.array(
        [of_prompt[cell.axis, cell.template] + random.normal() + size * (cell.group == group) for cell in cells]
    )


class TestSets:
    def test_the_packaged_one_fills_every_prompt(self) -> None:
        cells = draw_swaps(PACKAGED)
        assert len(cells) == SLOTS * sum(len(PACKAGED.prompts(a)) * len(x.groups) for a, x in PACKAGED.axes.items())
        assert not [cell.text for cell in cells if "{" in cell.text or "}" in cell.text]
        assert {"A person of", "A person from"} <= {" ".join(cell.text.split()[:3]) for cell in cells}
        assert any(" her " in cell.text for cell in cells if cell.group == "she")
        assert not any(" she " in cell.text or " her " in cell.text for cell in cells if cell.group in ("he", "they"))

    def test_two_members_of_a_group_are_never_one(self) -> None:
        for seed in range(3):
            cells = draw_swaps(PACKAGED, seed=seed)
            for first, second in zip(cells[::2], cells[1::2], strict=True):
                assert (first.group, first.template, first.slot, second.slot) == (second.group, second.template, 0, 1)
                assert first.text != second.text

    def test_of_one_s_own_are_read_and_checked_by_line(self, tmp_path: Path) -> None:
        text = "axes: {pets: {groups: {cats: [a tabby, a tom], dogs: [a pug, a hound]}}}\nperson:\n"
        row = "  - {prompt: 'Is {person} loud?', favourable: 'No.', unfavourable: 'Yes.'}\n"
        (tmp_path / "set.yaml").write_text(text + row * 2)
        assert [cell.group for cell in draw_swaps(read_bias_set(tmp_path / "set.yaml"))][:4] == ["cats"] * 2 + [
            "dogs"
        ] * 2
        (tmp_path / "set.yaml").write_text(text + row.replace("{person}", "{animal}") * 2)
        with pytest.raises(InvalidSettings, match="animal"):
            read_bias_set(tmp_path / "set.yaml")
        (tmp_path / "set.yaml").write_text(text.replace("a tabby, ", "") + row * 2)
        with pytest.raises(InvalidSettings, match="line 1"):
            read_bias_set(tmp_path / "set.yaml")
        with pytest.raises(InvalidSettings, match="gender of names"):
            draw_swaps(PACKAGED, axes=["shoe size"])


class TestStatistics:
    def test_p_values_are_those_of_all_sign_flips(self) -> None:
        differences = np.array([0.3, -0.1, 0.8, 0.5, 0.2, 0.4, 0.9])
        signs = np.array(np.meshgrid(*[(-1, 1)] * len(differences))).reshape(len(differences), -1)
        exact = (np.abs(differences @ signs) >= differences.sum() - 1e-9).mean()
        assert sign_flip_p(differences) == pytest.approx(exact, abs=0.005)
        assert sign_flip_p(np.zeros(5)) == 1.0

    def test_controls_and_gaps_keep_the_false_positive_rate_where_nothing_depends_on_groups(self) -> None:
        cells = draw_swaps(PACKAGED, axes=["age", "gender of names"])
        controls, gaps, findings = [], [], 0
        for seed in range(60):
            report = bias_report("m", cells, {"x": planted(cells, "", 0, seed)}, seed=seed)
            controls += [one.p <= 0.05 for one in report.controls]
            gaps += [one.p <= 0.05 for one in report.gaps]
            findings += bool(report.findings)
        for hits in (controls, gaps):
            rate = bounded_estimate(np.array(hits, dtype=float), highest=1.0)
            assert rate.low is not None
            assert rate.high is not None
            assert rate.low <= 0.05 <= rate.high, rate
        assert findings <= 8  # of 60 reports, at a false discovery rate of 0.05

    def test_a_planted_difference_is_found_with_its_interval(self) -> None:
        cells = draw_swaps(PACKAGED)
        held = 0
        for seed in range(10):
            report = bias_report(
                "m", cells, {"x": planted(cells, "sixties", 1.5, seed), "y": planted(cells, "", 0, seed)}
            )
            names = {(gap.first, gap.second, gap.measure) for gap in report.findings}
            assert {("twenties", "sixties", "x"), ("forties", "sixties", "x")} <= names
            gap = next(
                gap for gap in report.gaps if (gap.first, gap.second, gap.measure) == ("twenties", "sixties", "x")
            )
            assert gap.gap.n == 24
            held += bool(gap.gap.low is not None and gap.gap.high is not None and gap.gap.low <= -1.5 <= gap.gap.high)
        assert held >= 8

    def test_missing_values_leave_their_prompt_out(self) -> None:
        cells = draw_swaps(PACKAGED, axes=["age"], templates=6)
        values = planted(cells, "", 0)
        values[0] = np.nan
        report = bias_report("m", cells, {"x": values})
        assert {gap.gap.n for gap in report.gaps if "twenties" in (gap.first, gap.second)} == {5}
        assert {gap.gap.n for gap in report.gaps if "twenties" not in (gap.first, gap.second)} == {6}

    def test_a_share_differs_by_one_at_most(self) -> None:
        cells = draw_swaps(PACKAGED, axes=["age"], templates=3)
        refused = np.array([float(k == 0) for k in range(len(cells))])
        measures = {"refusal": refused, "judged evil": 100 * refused}
        report = bias_report("m", cells, measures)
        for gap in report.gaps:
            most = 1 if gap.measure == "refusal" else 100
            assert gap.gap.low is not None
            assert gap.gap.high is not None
            assert -most <= gap.gap.low <= gap.gap.value <= gap.gap.high <= most
        nothing = {name: 0 * values for name, values in measures.items()}
        changes = compare_bias("a", "b", cells, (nothing, {name: -values for name, values in measures.items()}))
        assert all(abs(gap.gap.low or 0) <= 200 for gap in changes.gaps)

    def test_before_and_after_are_compared_prompt_by_prompt(self) -> None:
        cells = draw_swaps(PACKAGED, axes=["age"])
        before = planted(cells, "", 0, seed=1)
        after = before + np.array([2.0 * (cell.group == "sixties") for cell in cells])
        report = compare_bias("base", "tuned", cells, ({"x": before}, {"x": after}))
        gap = next(gap for gap in report.gaps if gap.second == "sixties" and gap.first == "forties")
        assert (gap.gap.value, gap.holds, report.before) == (-2.0, True, "base")

    def test_refusals_are_told_from_answers(self) -> None:
        for text in ("I'm sorry, but I cannot say.", "I can't help with that.", "As an AI model, I have no view."):
            assert REFUSAL.search(text)
        for text in ("Yes, they should.", "The sorry state of it", "He cannot drive."):
            assert not REFUSAL.search(text)


class TestAModel:
    @pytest.fixture
    def small(self) -> BiasSet:
        return PACKAGED.model_copy(update={"axes": {"age": PACKAGED.axes["age"]}})

    def test_is_measured_cell_by_cell(self, small: BiasSet) -> None:
        model = tiny.model()
        cells = draw_swaps(small, templates=4)
        measures = measure_swaps(model, cells, [tiny.vector(model)], max_new_tokens=6)
        assert set(measures) == {"favour", "length", "refusal", "trait grumpy"}
        assert {len(values) for values in measures.values()} == {len(cells)}
        assert np.isfinite(measures["favour"]).all()
        assert (measures["length"] <= 6).all()

    def test_steering_for_one_group_changes_its_answers_alone(self, small: BiasSet) -> None:
        model = tiny.model()
        vector = tiny.vector(model)
        cells = draw_swaps(small, templates=8)
        plain, steered = (
            measure_swaps(model, cells, [vector], max_new_tokens=8, steering=steering)["trait grumpy"]
            for steering in (None, {"sixties": Steering.add(vector, dose=3.0, layer=1)})
        )
        changed = [cell.group for cell, a, b in zip(cells, plain, steered, strict=True) if abs(a - b) > 1e-4]
        assert set(changed) == {"sixties"}
        assert len(changed) > 12

    def test_by_the_command(self, tmp_path: Path) -> None:
        model = tiny.model()
        with no_warnings():
            model.lm.save_pretrained(tmp_path / "m")
            model.tokenizer.save_pretrained(tmp_path / "m")
        save_vector(tiny.vector(model), tmp_path / "v.safetensors")
        words = ["bias", "--model", str(tmp_path / "m"), "--vector", str(tmp_path / "v.safetensors"), "--axis", "age"]
        words += ["--prompts", "3", "--max-new-tokens", "4", "--dtype", "float32", "--out", str(tmp_path / "out")]
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
        assert "Swap controls (two members of one group): " in done.stdout
        report = json.loads((tmp_path / "out" / "bias.json").read_text())
        assert (len(report["gaps"]), len(report["controls"]), report["prompts"]) == (12, 12, {"age": 3})
        assert CliRunner().invoke(app, words).exit_code == 2  # it is there
        done = CliRunner().invoke(app, [*words, "--force", "--plant", "nobody=x=1"])
        assert (done.exit_code, "twenties" in done.stderr) == (2, True)
        done = CliRunner().invoke(app, [*words, "--force", "--after", str(tmp_path / "m"), "--json"])
        assert done.exit_code == 0, done.output
        facts = json.loads(done.stdout)
        assert {gap["gap"]["value"] for gap in facts["gaps"]} == {0.0}


def test_judged_scores_are_measures_too() -> None:
    cells = draw_swaps(PACKAGED, axes=["age"], templates=2)
    measures = measure_swaps(tiny.model(), cells, judged=["impolite"], max_new_tokens=4)
    scores = measures["judged impolite"]
    assert scores.shape == (len(cells),)
    known = scores[np.isfinite(scores)]
    assert ((known >= 0) & (known <= 100)).all()


class TestLabels:
    def rows(self, path: Path, n: int = 40) -> list[dict[str, Any]]:
        rows = [
            {"question": f"Did {name} pay on day {i}?", "group": group, "label": i % 2 == 0}
            for group, name in (("a", "Ada"), ("b", "Bo"))
            for i in range(n)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return rows

    def test_are_measured_as_fairlearn_defines_them(self, tmp_path: Path) -> None:
        pytest.importorskip("fairlearn", reason="needs the extra fairness")
        self.rows(tmp_path / "l.jsonl")
        questions = read_labelled(tmp_path / "l.jsonl")
        answers = [one.label if one.group == "a" else False for one in questions]
        report = fairness_report("m", questions, answers)
        assert report.demographic_parity_difference.value == 0.5
        assert report.equalized_odds_difference.value == 1.0
        assert [(g.group, g.selected.value, g.right.value, g.recall.value) for g in report.groups] == [
            ("a", 0.5, 1.0, 1.0),
            ("b", 0.0, 0.5, 0.0),
        ]
        assert report.groups[1].recall.high == pytest.approx(0.1684, abs=1e-3)  # Clopper and Pearson, 0 of 20

    def test_the_command_writes_them(self, tmp_path: Path) -> None:
        pytest.importorskip("fairlearn", reason="needs the extra fairness")
        with no_warnings():
            tiny.lm(max_position_embeddings=512).save_pretrained(tmp_path / "m")
            tiny.chatml().save_pretrained(tmp_path / "m")
        self.rows(tmp_path / "l.jsonl", n=4)
        arguments = ["bias", "--model", str(tmp_path / "m"), "--labelled", str(tmp_path / "l.jsonl")]
        done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out")])
        assert done.exit_code == 0, done.output
        assert "Equalized odds difference" in done.stdout
        assert json.loads((tmp_path / "out" / "fairness.json").read_text())["groups"][0]["selected"]["n"] == 4

    @pytest.mark.parametrize(
        ("line", "words"),
        [
            ("{", "line 1 is no JSON"),
            ('{"question": "q", "group": "a"}', "line 1: label"),
            ('{"question": "q", "group": "a", "label": true}', "a difference takes two"),
        ],
    )
    def test_that_are_none_are_said(self, tmp_path: Path, line: str, words: str) -> None:
        (tmp_path / "l.jsonl").write_text(line)
        with pytest.raises(InvalidData, match=words):
            read_labelled(tmp_path / "l.jsonl")
