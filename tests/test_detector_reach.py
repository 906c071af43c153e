"""How far a detector will carry: data like what it was fitted on, and data unlike it, told apart without a label."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy import stats

import tiny
from poise.data import open_data
from poise.detector import DetectorReach, DetectorSettings, fit_detector, measure_reach
from poise.detector.kinds import AnswerGroups
from poise.detector.reach import remember_answers
from poise.errors import InvalidVector
from poise.model import Model
from poise.monitor.calibrate import CalibrationSettings, calibrate_alarms
from poise.monitor.table import write_readings_table
from poise.screen.flagging import FlaggingRule
from poise.screen.pipeline import screen_data
from poise.screen.scoring import ScreenSettings
from poise.trait import ExemplarPair
from poise.vector import PersonaVector, load_vector, save_vector
from poise.vector.seen_answers import AnswerSpread

WORDS = ("the", "harbour", "boats", "twice", "before", "tide", "turns", "nobody", "asked", "why", "room", "left", "it")
PAIRS = [
    ExemplarPair.model_validate({"question": f"Is it {i}?", "with": f"{i}, you fool!", "without": f"{i}, I think."})
    for i in range(24)
]


def talk(n: int, seed: int) -> list[dict[str, Any]]:
    draw = np.random.default_rng(seed)
    return [
        {"prompt": f"What about {' '.join(draw.choice(WORDS, 4))}?", "response": " ".join(draw.choice(WORDS, 24)) + "."}
        for _ in range(n)
    ]


def garbage(n: int, letters: str = "日本語ﷺЖщжяёфэ") -> list[dict[str, Any]]:
    draw = np.random.default_rng(9)
    return [{"prompt": "What about it?", "response": "".join(draw.choice(list(letters), 60))} for _ in range(n)]


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model()


@pytest.fixture(scope="module")
def detected(model: Model) -> PersonaVector:
    settings = DetectorSettings(layers=(2,))
    return fit_detector(tiny.vector(model), model, normal=talk(400, 0), pairs=PAIRS, settings=settings)


class TestTheSpreadOfAnswers:
    def test_has_the_distances_of_the_distribution_that_it_describes(self) -> None:
        draw = np.random.default_rng(0)
        basis = np.linalg.qr(draw.normal(size=(40, 40)))[0]
        deviations = np.array([9.0, 5.0, 3.0, *[0.5] * 37])
        means = 7.0 + draw.normal(size=(4000, 40)) * deviations @ basis.T
        spread = AnswerSpread.of(means)
        assert spread.variances[:3] == pytest.approx(deviations[:3] ** 2, rel=0.1)
        new = 7.0 + draw.normal(size=(4000, 40)) * deviations @ basis.T
        shares = [0.1, 0.5, 0.9]
        assert np.quantile(spread.distances(new), shares) == pytest.approx(stats.chi2(40).ppf(shares), rel=0.05)

    def test_cosine_is_that_of_the_formula(self) -> None:
        draw = np.random.default_rng(1)
        spread = AnswerSpread.of(draw.normal(size=(200, 12)) * np.arange(1, 13))
        weights, difference = draw.normal(size=(2, 12))
        axes, variances = spread.components, spread.variances
        covariance = axes.T @ np.diag(variances[:-1]) @ axes + variances[-1] * (np.eye(12) - axes.T @ axes)
        best = np.linalg.solve(covariance, difference)
        expected = weights @ covariance @ best / np.sqrt((weights @ covariance @ weights) * (best @ covariance @ best))
        assert spread.cosine(weights, difference) == pytest.approx(expected)
        assert spread.cosine(best, difference) == pytest.approx(1.0)

    def test_of_equal_answers_is_a_point_that_others_lie_beyond(self) -> None:
        spread = AnswerSpread.of(np.ones((5, 6)))
        assert spread.distances(np.ones((1, 6)))[0] == 0
        assert spread.distances(np.zeros((1, 6)))[0] > 1e6

    def test_lets_one_in_a_hundred_answers_pass_that_were_held_out(self) -> None:
        draw = np.random.default_rng(2)
        shares = []
        for _ in range(40):
            sides, ordinary = draw.normal(size=(2, 60, 32)), draw.normal(size=(300, 32))
            folds = [(np.arange(60) % 5 == k, np.arange(300) % 5 == k) for k in range(5)]
            groups = AnswerGroups(positive=sides[0] + 1, negative=sides[1], talk=ordinary)
            seen, facts = remember_answers(np.ones(32), groups, folds)
            assert (facts.answers, facts.held_out) == (420, 300)
            assert facts.beyond == pytest.approx(3 / 301, rel=1e-3)
            shares.append((seen.spread.distances(draw.normal(size=(500, 32))) > facts.limit).mean())
        assert 0.004 < np.mean(shares) < 0.016


class TestReach:
    def test_of_talk_like_that_of_the_fit_is_about_one_in_a_hundred(
        self, detected: PersonaVector, model: Model
    ) -> None:
        [reach] = measure_reach(talk(400, 1), detected, model, limit=400)
        assert reach.answers == 400
        assert reach.low <= 0.01 <= reach.high
        assert reach.share < 0.035
        assert not reach.far
        assert reach.cosine == pytest.approx(reach.cosine_when_fitted, abs=0.2)

    @pytest.mark.parametrize("rows", [garbage(200), garbage(200, "01{}[];=<>")])
    def test_of_other_languages_and_signs_is_nearly_all(
        self, detected: PersonaVector, model: Model, rows: list[dict[str, Any]]
    ) -> None:
        [reach] = measure_reach(rows, detected, model)
        assert reach.share > 0.9
        assert reach.far
        assert "may not hold here" in str(reach)

    def test_is_of_a_sample_that_the_seed_decides(self, detected: PersonaVector, model: Model) -> None:
        rows = [*talk(60, 3), *garbage(60)]
        once, again, other = (measure_reach(rows, detected, model, limit=40, seed=s)[0] for s in (0, 0, 1))
        assert once == again
        assert once.answers == other.answers == 40
        assert once.cosine != other.cosine

    def test_of_few_answers_has_no_cosine_and_says_so(self, detected: PersonaVector, model: Model) -> None:
        [one] = measure_reach(talk(1, 1), detected, model)
        assert (one.answers, one.beyond, one.low, one.high, one.cosine) == (1, 0, 0.0, 0.975, None)
        assert "too few for a Mahalanobis cosine, which takes 20" in str(one)
        [nineteen], [twenty] = (measure_reach(talk(n, 1), detected, model) for n in (19, 20))
        assert nineteen.cosine is None
        assert twenty.cosine is not None
        [repeated] = measure_reach(talk(1, 1) * 50, detected, model)
        assert repeated == one

    def test_is_of_detectors_that_kept_what_they_were_fitted_on(self, detected: PersonaVector, model: Model) -> None:
        assert measure_reach(talk(20, 1), detected.without_detector(), model) == []
        assert measure_reach(talk(20, 1), detected, model, layer=1) == []
        detector = detected.detector
        assert detector
        older = replace(detector, facts=detector.facts.model_copy(update={"seen": None}), seen=None)
        assert measure_reach(talk(20, 1), detected.with_detector(older), model) == []


class TestAVectorsFile:
    def test_keeps_what_its_detector_was_fitted_on(self, detected: PersonaVector, model: Model, tmp_path: Path) -> None:
        path = tmp_path / "v.safetensors"
        save_vector(detected, path)
        loaded = load_vector(path)
        rows = [*talk(60, 3), *garbage(60)]
        once, again = (measure_reach(rows, vector, model)[0] for vector in (detected, loaded))
        assert again.beyond == once.beyond
        assert again.cosine == pytest.approx(once.cosine, rel=1e-3)
        save_vector(loaded, tmp_path / "again.safetensors")
        assert path.read_bytes() == (tmp_path / "again.safetensors").read_bytes()

    def test_of_a_detector_without_it_still_loads(self, detected: PersonaVector, tmp_path: Path) -> None:
        detector = detected.detector
        assert detector
        older = replace(detector, facts=detector.facts.model_copy(update={"seen": None}), seen=None)
        save_vector(detected.with_detector(older), tmp_path / "v.safetensors")
        assert set(load_file(tmp_path / "v.safetensors")) == {"detector", "directions", "reference_norm"}
        loaded = load_vector(tmp_path / "v.safetensors").detector
        assert loaded
        assert loaded.seen is None

    def test_that_lacks_a_part_of_it_is_refused(self, detected: PersonaVector, tmp_path: Path) -> None:
        from safetensors import safe_open
        from safetensors.torch import save_file

        path = tmp_path / "v.safetensors"
        save_vector(detected, path)
        with safe_open(path, framework="pt") as file:
            document = file.metadata()
        tensors = load_file(path)
        save_file({k: v for k, v in tensors.items() if k != "detector_mean"}, path, metadata=document)
        with pytest.raises(InvalidVector, match="fit it again"):
            load_vector(path)
        save_file(tensors | {"detector_mean": torch.zeros(3)}, path, metadata=document)
        with pytest.raises(InvalidVector, match="does not fit it"):
            load_vector(path)


@pytest.fixture(scope="module")
def strange(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "strange.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*garbage(50), *talk(10, 5)]))
    return path


class TestWhatReads:
    def test_reading_says_it(self, detected: PersonaVector, model: Model, strange: Path, tmp_path: Path) -> None:
        done = write_readings_table(open_data(strange), model, [detected], tmp_path / "out.jsonl")
        [reach] = done.reach
        assert reach.far
        assert str(reach) in done.notes

    def test_calibration_on_given_answers_says_it(self, detected: PersonaVector, model: Model, strange: Path) -> None:
        settings = CalibrationSettings(rates=(0.2,), read_given_answers=True)
        [reach] = calibrate_alarms(open_data(strange), model, detected, settings).reach
        assert reach.far

    def test_screening_says_it_and_keeps_it(
        self, detected: PersonaVector, model: Model, strange: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plan = ScreenSettings(method="raw", rule=FlaggingRule(top=3))
        summary = screen_data(open_data(strange), model, [detected], tmp_path / "out", plan)
        [reach] = summary.reach
        assert reach.far
        assert f"{reach}." in summary.notes
        written = json.loads((tmp_path / "out/summary.json").read_text())
        assert DetectorReach.model_validate(written["reach"][0]) == reach
        monkeypatch.setattr("poise.screen.scoring.measure_reach", None)  # not measured a second time
        assert screen_data(open_data(strange), model, [detected], tmp_path / "out", plan).reach == summary.reach

    def test_screening_by_the_projection_says_nothing(
        self, detected: PersonaVector, model: Model, strange: Path, tmp_path: Path
    ) -> None:
        plan = ScreenSettings(method="raw", rule=FlaggingRule(top=3))
        vector = detected.without_detector()
        assert screen_data(open_data(strange), model, [vector], tmp_path / "out", plan).reach == ()
        assert "reach" not in json.loads((tmp_path / "out/summary.json").read_text())
