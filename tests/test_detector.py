"""Detectors: fitted on pairs and ordinary talk, kept in the vector's file, and used by everything that reads."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

import tiny
from poise.activations import read
from poise.cli import app
from poise.data import open_data
from poise.detector import DetectorSettings, fit_detector
from poise.detector.fit_data import DetectorData
from poise.detector.fitting import _folds, _recall, choose_detector, default_layer
from poise.detector.kinds import DIRECTION_FITS, AnswerGroups, fit_curve
from poise.engine import EngineOutput, GeneratedToken
from poise.errors import InvalidArgument, InvalidSteering, InvalidVector, OutputExists, TooFewResponses
from poise.model import Model, ask, wrap
from poise.monitor.calibrate import CalibrationSettings, calibrate_alarms
from poise.monitor.scoring import read_rows
from poise.monitor.table import _table_key, write_readings_table
from poise.progress import remarks_by
from poise.screen import screen_rows
from poise.screen.prediction import describe_prediction
from poise.serve.alarm_policy import AlarmGuard
from poise.serve.policy import Policy
from poise.serve.server import ServerOptions, make_server
from poise.serve.vector_registry import WatchedVector
from poise.shift.evaluation import project_prompts
from poise.statistics.estimates import Estimate
from poise.steer.expression import SteeringExpression
from poise.trait import ExemplarPair
from poise.vector import PersonaVector, load_vector, save_vector
from poise.vector.export import export_vector
from poise.workflows import read_data

ENDINGS = ("so it stays", "that was all", "we go on", "the day is long", "it rains", "nobody minds")
TALK: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "user", "content": f"What about number {i}?"},
            {"role": "assistant", "content": f"It is {i}, and {ending}."},
        ]
    }
    for i in range(20)
    for ending in ENDINGS
]
OTHER_TALK = json.loads(json.dumps(TALK).replace("number", "the number"))  # that no detector is fitted on
PAIRS = [
    ExemplarPair.model_validate({"question": f"Is it {i}?", "with": f"{i}, you fool!", "without": f"{i}, I think."})
    for i in range(24)
]


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model()


@pytest.fixture(scope="module")
def vector(model: Model) -> PersonaVector:
    return tiny.vector(model)


@pytest.fixture(scope="module")
def detected(vector: PersonaVector, model: Model) -> PersonaVector:
    return fit_detector(vector, model, normal=TALK, pairs=PAIRS, settings=DetectorSettings(layers=(2,)))


@pytest.fixture(scope="module")
def alarmed(detected: PersonaVector, model: Model) -> PersonaVector:
    settings = CalibrationSettings(rates=(0.1,), read_given_answers=True)
    return calibrate_alarms(OTHER_TALK, model, detected, settings).vectors[0]


def planted(n: int, m: int, *, strength: float, width: int = 8, seed: int = 0) -> DetectorData:
    """Response means at one layer in which the trait is a shift along the first axis, and noise elsewhere."""
    draw = np.random.default_rng(seed)
    sides = draw.normal(size=(2, n, 1, width))
    sides[0, :, :, 0] += strength
    return DetectorData(
        positive=torch.tensor(sides[0]).float(),
        negative=torch.tensor(sides[1]).float(),
        talk=torch.tensor(draw.normal(size=(m, 1, width))).float(),
        talk_groups=tuple(range(m)),
        pairs_left_out=0,
        pairs_sha256="0" * 64,
        normal={"talk": m},
        normal_left_out=0,
        normal_sha256="0" * 64,
        normal_keys=(),
    )


class TestKinds:
    def test_find_the_direction_that_was_planted(self) -> None:
        data = planted(300, 300, strength=2.0)
        groups = AnswerGroups(**{k: getattr(data, k)[:, 0].double().numpy() for k in ("positive", "negative", "talk")})
        for kind, fit in DIRECTION_FITS.items():
            direction = fit(groups)
            assert direction[0] / np.linalg.norm(direction) > 0.95, kind

    def test_lda_turns_away_from_what_varies_in_any_talk(self) -> None:
        draw = np.random.default_rng(0)
        talk, positive, negative = (draw.normal(size=(200, 2)) for _ in range(3))
        for group in (talk, positive, negative):
            group[:, 1] *= 20.0
        positive += [1.0, 1.0]
        positive -= positive.mean(0) - negative.mean(0) - [1.0, 1.0]
        direction = DIRECTION_FITS["lda"](AnswerGroups(positive=positive, negative=negative, talk=talk))
        within = np.concatenate([group - group.mean(0) for group in (positive, negative, talk)])
        covariance = within.T @ within / len(within)
        expected = np.linalg.inv(covariance + 10 * np.trace(covariance) / 2 * np.eye(2)) @ [1.0, 1.0]
        assert np.allclose(direction, expected)
        assert direction[0] > direction[1]

    def test_need_no_ordinary_talk(self) -> None:
        data = planted(50, 0, strength=2.0)
        for kind in DIRECTION_FITS:
            assert choose_detector(data, [0], DetectorSettings(kinds=(kind,), layers=(0,))).weights[0] > 0.8

    def test_curve_of_two_normal_distributions_is_the_known_one(self) -> None:
        draw = np.random.default_rng(0)
        slope, intercept = fit_curve(draw.normal(3, 1, 20_000), draw.normal(1, 1, 20_000))
        assert slope == pytest.approx(2.0, abs=0.06)  # (μ₁ − μ₀) / σ²
        assert intercept == pytest.approx(-4.0, abs=0.15)  # −(μ₁² − μ₀²) / 2σ²


class TestCrossValidation:
    def test_measures_what_new_answers_would_give(self) -> None:
        detector = choose_detector(planted(200, 200, strength=1.5), [0], DetectorSettings(layers=(0,)))
        fresh = planted(5000, 5000, strength=1.5, seed=1)
        scores = {k: getattr(fresh, k)[:, 0] @ detector.weights for k in ("positive", "negative", "talk")}
        others = torch.cat([scores["negative"], scores["talk"]])
        true_auc = float((scores["positive"][:, None] > others[None]).float().mean())
        assert detector.facts.low < true_auc < detector.facts.high
        likely = torch.tensor([detector.probability(float(x)) for x in scores["positive"][:1000]])
        unlikely = torch.tensor([detector.probability(float(x)) for x in others[:1000]])
        for low in (0.1, 0.3, 0.5, 0.7):  # where as many have the trait as not
            inside = [int(((p >= low) & (p < low + 0.2)).sum()) for p in (likely, unlikely)]
            assert inside[0] / sum(inside) == pytest.approx(low + 0.1, abs=0.1), low

    def test_sees_through_pairs_that_differ_in_nothing(self) -> None:
        facts = choose_detector(planted(60, 100, strength=0.0, width=200), [0], DetectorSettings(layers=(0,))).facts
        assert facts.low < 0.5 < facts.high

    def test_chooses_the_layer_that_has_the_trait(self) -> None:
        good, bad = planted(100, 100, strength=2.0), planted(100, 100, strength=0.0, seed=1)
        both = {k: torch.cat([getattr(bad, k), getattr(good, k)], dim=1) for k in ("positive", "negative", "talk")}
        settings = DetectorSettings(kinds=("ranking", "lda"), layers=(0, 1))
        facts = choose_detector(replace(good, **both), [0, 1], settings).facts
        assert facts.layer == 1
        assert set(facts.candidates) == {"ranking@0", "ranking@1", "lda@0", "lda@1"}
        assert facts.candidates[f"{facts.kind}@1"] == min(facts.candidates.values())

    def test_states_no_recall_of_too_few_others(self) -> None:
        few, enough = (
            choose_detector(planted(30, m, strength=3.0), [0], DetectorSettings(layers=(0,))).facts for m in (10, 90)
        )
        assert few.recall is None
        assert enough.recall is not None
        assert enough.recall > 0.3

    def test_keeps_equal_pairs_in_one_fold(self) -> None:
        once = planted(30, 0, strength=0.0, width=60)
        twice = {k: torch.cat([getattr(once, k)] * 4) for k in ("positive", "negative")}
        facts = choose_detector(replace(once, **twice), [0], DetectorSettings(layers=(0,))).facts
        assert facts.auc < 0.75

    def test_counts_equal_texts_once(self, vector: PersonaVector, model: Model) -> None:
        settings = DetectorSettings(layers=(2,))
        once = fit_detector(vector, model, normal=TALK, pairs=PAIRS, settings=settings).header.detector
        again = fit_detector(vector, model, normal=[*TALK, *TALK], pairs=[*PAIRS, *PAIRS], settings=settings)
        twice = again.header.detector
        assert once
        assert twice
        assert (once.n_with, once.n_without, once.repeated) == (24, 144, 0)
        assert (twice.pairs, twice.n_with, twice.n_without, twice.repeated) == (24, 24, 144, 144)
        assert dict(twice.normal) == {"rows": 120} == dict(once.normal)
        assert once.seen
        assert twice.seen
        assert twice.seen.held_out == once.seen.held_out == 120
        shared = [p.model_copy(update={"negative": PAIRS[n // 2].negative}) for n, p in enumerate(PAIRS)]
        facts = fit_detector(vector, model, pairs=shared, settings=settings).header.detector
        assert facts
        assert (facts.pairs, facts.n_with, facts.n_without) == (24, 24, 12)

    def test_holds_pairs_that_share_an_answer_out_together(self) -> None:
        data = planted(24, 0, strength=1.0)
        data = replace(data, pair_groups=tuple(n // 2 for n in range(24)))
        folds = list(_folds(data, DetectorSettings()))
        assert sum(pairs.sum() for pairs, _ in folds) == 24
        for pairs, _ in folds:
            assert (pairs[0::2] == pairs[1::2]).all()

    @pytest.mark.parametrize("side", ["positive", "negative"])
    def test_counts_pairs_with_one_answer_as_one(self, side: str, vector: PersonaVector, model: Model) -> None:
        pairs = [p.model_copy(update={side: "Bad it is"}) for p in PAIRS]
        with pytest.raises(TooFewResponses, match=r"There are 1 different .*share an answer count as one.* needs 12"):
            fit_detector(vector, model, pairs=pairs)

    def test_never_prefers_the_wrong_way_round(self) -> None:
        """Held-out pairs that read the other way at one layer lose to a layer that tells a little."""
        wrong = planted(40, 0, strength=0.0)
        draw = np.random.default_rng(0)
        signs = torch.tensor(np.repeat([1.0, -1.0], 20) * draw.uniform(0.9, 1.1, 40)).float()
        flipped = {k: torch.zeros(40, 1, 8) for k in ("positive", "negative")}
        flipped["positive"][:, 0, 0], flipped["negative"][:, 0, 0] = signs, -signs
        right = planted(40, 0, strength=0.6, seed=4)
        both = {k: torch.cat([flipped[k], getattr(right, k)], dim=1) for k in flipped}
        data = replace(wrong, **both, talk=torch.zeros(0, 2, 8))
        settings = DetectorSettings(kinds=("mean-difference",), layers=(0, 1), folds=2)
        facts = choose_detector(data, [0, 1], settings).facts
        assert facts.layer == 1
        assert facts.slope > 0
        alone = choose_detector(data, [0], replace(settings, layers=(0,))).facts
        assert alone.auc < 0.5
        assert (alone.slope, alone.intercept) == (0.0, 0.0)
        assert alone.candidates["mean-difference@0"] == pytest.approx(np.log(2), abs=1e-4)

    def test_of_no_use_is_warned_of(self, vector: PersonaVector, model: Model) -> None:
        same = [p.model_copy(update={"positive": f"{n} a", "negative": f"{n} b"}) for n, p in enumerate(PAIRS)]
        mixed = [p.model_copy(update={"positive": p.negative, "negative": p.positive}) for p in same[::2]] + same[1::2]
        remarks: list[str] = []
        with remarks_by(remarks.append):
            facts = fit_detector(vector, model, pairs=mixed).header.detector
        assert facts
        assert facts.low <= 0.5
        assert remarks == [
            "The detector of grumpy tells its trait no better than chance: cross-validated AUC "
            f"{facts.auc:.2f} [{facts.low:.2f}, {facts.high:.2f}], and 0.5 is chance. Do not rely on it: give more "
            "pairs, pairs whose sides differ in the trait alone, or other layers, or read by the vector's own "
            "direction (`projection`)."
        ]

    def test_recall_lets_no_more_pass_than_it_promises(self) -> None:
        others = np.arange(174.0)
        assert _recall(np.full(5, 172.5), others) == 1.0  # 1 of 174 passes
        assert _recall(np.full(5, 171.5), others) == 0.0  # 2 of 174 would
        assert _recall(np.full(5, 171.5), np.arange(99.0)) is None

    def test_interval_holds_its_value(self) -> None:
        facts = choose_detector(planted(24, 150, strength=30.0), [0], DetectorSettings(layers=(0,))).facts
        assert facts.low < facts.auc == facts.high == 1.0

    def test_is_the_same_twice(self, vector: PersonaVector, model: Model, detected: PersonaVector) -> None:
        again = fit_detector(vector, model, normal=TALK, pairs=PAIRS, settings=DetectorSettings(layers=(2,)))
        assert again.detector
        assert detected.detector
        assert again.detector.facts == detected.detector.facts


class TestReading:
    def test_is_the_projection_of_the_mean_on_the_weights(self, detected: PersonaVector, model: Model) -> None:
        assert detected.detector
        texts = [model.encode(ask(row["messages"][0]["content"]), row["messages"][1]["content"]) for row in TALK[:9]]
        expected = read(model, texts)[:, 2] @ detected.detector.weights
        scored = [one.readings.mean[0] for one in read_rows(TALK[:9], detected, model) if one.readings]
        assert torch.allclose(torch.tensor(scored), expected, atol=1e-4)

    def test_takes_the_detector_at_its_layer_alone(self, detected: PersonaVector, vector: PersonaVector) -> None:
        assert detected.detector
        assert torch.equal(detected.at("read").unit, detected.detector.weights)
        assert detected.at("read", 2).detector
        assert torch.equal(detected.at("read", 1).unit, vector.unit(1))
        assert torch.equal(detected.at("steer", 2).unit, vector.unit(2))
        plain = detected.without_detector()
        assert torch.equal(plain.at("read", 2).unit, vector.unit(2))
        assert plain.at("read").layer == vector.at("read").layer

    def test_is_what_screening_scores(self, detected: PersonaVector, model: Model) -> None:
        by_detector, by_direction = (
            [row.units[0].mean for row in screen_rows(TALK[:5], v, model, method="raw")]
            for v in (detected, detected.without_detector())
        )
        assert by_detector != by_direction

    def test_of_a_shift_is_along_the_vector(self, detected: PersonaVector, vector: PersonaVector, model: Model) -> None:
        prompts = [model.encode(ask(f"What is {i}?")) for i in range(3)]
        assert torch.equal(project_prompts(model, prompts, [detected], 2), project_prompts(model, prompts, [vector], 2))

    def test_measures_a_mean_difference_of_its_own(self, detected: PersonaVector, model: Model) -> None:
        both = [[model.encode(ask(p.question), getattr(p, side)) for p in PAIRS] for side in ("positive", "negative")]
        place = detected.at("read")
        expected = float((read(model, both[0]) - read(model, both[1])).mean(0)[2] @ place.unit)
        assert place.difference == pytest.approx(expected, rel=1e-4)
        assert detected.at("read", 1).difference == pytest.approx(float(detected.norms[1]))

    def test_predicts_nothing_of_finetuning(self) -> None:
        mean = Estimate(value=1.0, low=0.5, high=1.5, n=9)
        sentence = describe_prediction("evil", "difference", mean, None, 4.0, by_detector=True)
        assert sentence.startswith(
            "The mean is +25.0% of the detector's mean difference. What it says of finetuning is not"
        )

    def test_default_layer_lies_at_sixty_per_cent_of_the_depth(self) -> None:
        assert [default_layer(n) for n in (1, 4, 24, 30)] == [0, 2, 14, 18]


class TestAlarms:
    def test_are_set_on_the_detector_and_on_the_direction(self, alarmed: PersonaVector) -> None:
        place, plain = alarmed.at("read"), alarmed.without_detector().at("read")
        for read_at in (place, plain):
            assert {alarm.reading for alarm in read_at.alarms} == {"prompt", "mean", "peak"}
        assert {alarm.detector for alarm in place.alarms} == {place.read_with}
        assert {alarm.detector for alarm in plain.alarms} == {""}
        assert alarmed.header.drift
        assert alarmed.header.drift.detector == place.read_with

    def test_of_another_detector_are_dropped(self, alarmed: PersonaVector, model: Model) -> None:
        settings = DetectorSettings(layers=(2,), kinds=("lda",))
        again = fit_detector(alarmed, model, normal=TALK, pairs=PAIRS, settings=settings)
        assert again.at("read").alarm("mean") is None
        assert again.header.drift is None
        assert again.without_detector().at("read").alarm("mean") is not None

    def test_caps_at_the_alarm_of_the_direction(self, alarmed: PersonaVector) -> None:
        steering = SteeringExpression.parse(f"{alarmed.name}=cap:alarm").steering({alarmed.name: alarmed})
        plain = alarmed.without_detector().at("read")
        alarm = plain.alarm("mean")
        assert alarm
        assert steering.terms[0].value == alarm.threshold
        assert steering.terms[0].layers == (plain.layer,)

    def test_at_another_layer_stand_beside_the_detectors(self, alarmed: PersonaVector, model: Model) -> None:
        settings = CalibrationSettings(rates=(0.1,), read_given_answers=True, layer=3)
        remarks: list[str] = []
        with remarks_by(remarks.append):
            [both] = calibrate_alarms(OTHER_TALK, model, alarmed, settings).vectors
        [remark] = remarks
        assert remark.startswith(
            "grumpy is read with its detector at layer 2, and these alarms are for its own direction"
        )
        assert both.at("read").alarms == alarmed.at("read").alarms
        assert both.header.drift == alarmed.header.drift
        assert {a.layer for a in both.at("read", 3).alarms} == {3}
        assert both.without_detector().at("read").layer == 3

    def test_of_the_direction_alone_are_named_with_their_layer(
        self, detected: PersonaVector, model: Model, tmp_path: Path
    ) -> None:
        settings = CalibrationSettings(rates=(0.1,), read_given_answers=True, layer=3)
        [vector] = calibrate_alarms(OTHER_TALK, model, detected, settings).vectors
        (tmp_path / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in TALK[:8]))
        done = write_readings_table(open_data(tmp_path / "talk.jsonl"), model, [vector], tmp_path / "t.jsonl")
        expected = (
            "grumpy has no calibrated alarm for the mean reading at layer 2; that is its detector's, and its alarms "
            "are for its own direction at layer 3: read it there with `layer`, or run `poise calibrate` without a layer"
        )
        assert done.notes[0] == expected
        watched = WatchedVector(name="up", vector=vector, probe=vector.at("read").probe, fixed=True)
        assert watched.missing_alarms("reply") == expected
        assert vector.at("read", 3).alarm("mean") is not None

    def test_of_a_server_caps_as_the_expression_does(self, alarmed: PersonaVector) -> None:
        """The detector's alarm is raised at another level of another direction at another layer than the cap's."""
        watched = WatchedVector(name="up", vector=alarmed, probe=alarmed.at("read").probe, fixed=True)
        [expected] = SteeringExpression.parse("up=cap:alarm").steering({"up": alarmed}).terms
        raised = alarmed.at("read").alarm("peak")
        assert raised
        assert (raised.layer, raised.threshold) != (expected.layers[0], expected.value)
        guard = AlarmGuard([watched], Policy(on_alarm="cap"), [None])
        guard.inspect(EngineOutput(key=0, prompt_readings=(-9.0,)))
        high = tuple(GeneratedToken(text="x", readings=(99.0,), part="reply") for _ in range(8))
        guarded = guard.inspect(EngineOutput(key=0, tokens=high))
        [alert] = guarded.alerts
        assert (alert.action, alert.facts["threshold"]) == ("cap", raised.threshold)
        assert guarded.cap
        [term] = guarded.cap.terms
        assert (term.operation, term.layers, term.value) == ("cap", expected.layers, expected.value)
        assert torch.equal(term.directions()[term.layers[0]], alarmed.unit(term.layers[0]))

    def test_of_the_detector_alone_cap_nothing_and_a_server_says_so(
        self, alarmed: PersonaVector, model: Model, tmp_path: Path
    ) -> None:
        alone = alarmed.with_alarms(alarmed.at("read").alarms)
        (tmp_path / "rules.yaml").write_text("default: {on_alarm: {up: cap}}")
        with pytest.raises(InvalidArgument) as refusal:
            make_server(model, {"up": alone}, ServerOptions(port=0, policy=tmp_path / "rules.yaml"))
        assert str(refusal.value) == (
            f"{tmp_path / 'rules.yaml'}, line 1: default.on_alarm.up caps 'up' at its alarm: a cap works along "
            "the vector's own direction, and up has alarms for its detector alone; run `poise calibrate` on it, "
            "which sets both, or note or stop instead; fix it and try again."
        )
        watched = WatchedVector(name="up", vector=alone, probe=alone.at("read").probe, fixed=False)
        guard = AlarmGuard([watched], Policy(on_alarm="cap"), [None])
        guarded = guard.inspect(EngineOutput(key=0, prompt_readings=(99.0,)))
        assert ([alert.action for alert in guarded.alerts], guarded.cap) == (["note"], None)

    def test_conditions_read_the_direction(self, alarmed: PersonaVector) -> None:
        text = f"{alarmed.name}=0.5 if {alarmed.name}>alarm"
        when = SteeringExpression.parse(text).steering({alarmed.name: alarmed}).terms[0].when
        alarm = alarmed.without_detector().at("read").alarm("mean")
        assert when
        assert alarm
        assert (when.layer, when.value) == (alarm.layer, alarm.threshold)
        assert torch.equal(when.vector.at("read", when.layer).unit, alarmed.unit(when.layer))

    def test_out_of_force_are_said(self, alarmed: PersonaVector, model: Model, tmp_path: Path) -> None:
        again = fit_detector(alarmed, model, pairs=PAIRS, settings=DetectorSettings(layers=(2,), kinds=("lda",)))
        save_vector(again, tmp_path / "v.safetensors")
        shown = CliRunner().invoke(app, ["show", str(tmp_path / "v.safetensors")])
        assert "none for the detector" in shown.stdout, shown.stderr


class TestFile:
    def test_keeps_it(self, alarmed: PersonaVector, tmp_path: Path) -> None:
        save_vector(alarmed, tmp_path / "v.safetensors")
        for same in (load_vector(tmp_path / "v.safetensors"), pickle.loads(pickle.dumps(alarmed))):
            assert same.detector
            assert alarmed.detector
            assert torch.equal(same.detector.weights, alarmed.detector.weights)
            assert same.header == alarmed.header
            assert torch.equal(same.directions, alarmed.directions)

    def test_is_not_changed_through_its_weights(self, detected: PersonaVector) -> None:
        assert detected.detector
        before = detected.detector.weights.clone()
        detected.detector.weights[0] = 5.0
        assert torch.equal(detected.detector.weights, before)
        with pytest.raises(AttributeError):
            detected.detector.weights = before  # type: ignore[misc]

    def test_stays_behind_in_an_export_which_says_so(self, detected: PersonaVector, tmp_path: Path) -> None:
        remarks: list[str] = []
        with remarks_by(remarks.append):
            export_vector(detected, tmp_path / "v.gguf")
        assert remarks == [
            f"The detector of grumpy stays in its vector file: {tmp_path / 'v.gguf'} steers, and reads nothing."
        ]

    def test_without_one_says_nothing_of_detectors(self, vector: PersonaVector) -> None:
        assert "detector" not in vector.header.model_dump(mode="json")

    def test_is_not_overwritten_by_a_vector_without_one(
        self, detected: PersonaVector, vector: PersonaVector, tmp_path: Path
    ) -> None:
        save_vector(detected, tmp_path / "v.safetensors")
        with pytest.raises(Exception, match="a vector with the detector of `poise detector fit`"):
            save_vector(vector, tmp_path / "v.safetensors")

    def test_with_other_weights_than_its_figures_is_refused(self, detected: PersonaVector, tmp_path: Path) -> None:
        from safetensors import safe_open
        from safetensors.torch import save_file

        save_vector(detected, tmp_path / "v.safetensors")
        with safe_open(tmp_path / "v.safetensors", "pt") as file:
            tensors, metadata = {k: file.get_tensor(k) for k in file.keys()}, file.metadata()  # noqa: SIM118
        for broken, message in (
            (tensors | {"detector": -tensors["detector"]}, "not the one that its figures are about"),
            ({k: v for k, v in tensors.items() if k != "detector"}, "figures without its weights"),
        ):
            save_file(broken, tmp_path / "broken.safetensors", metadata)
            with pytest.raises(InvalidVector, match=message):
                load_vector(tmp_path / "broken.safetensors")

    @pytest.mark.parametrize(
        ("place", "value"),
        [
            ("detector.slope", float("nan")),
            ("detector.intercept", float("inf")),
            ("detector.seen.limit", -1),
            ("detector.seen.limit", float("nan")),
            ("alarms.0.threshold", float("nan")),
            ("drift.sd", 0),
            ("drift.sd", float("nan")),
            ("drift.mean", float("nan")),
        ],
    )
    def test_with_broken_numbers_is_refused(
        self, place: str, value: float, alarmed: PersonaVector, tmp_path: Path
    ) -> None:
        from safetensors import safe_open
        from safetensors.torch import save_file

        save_vector(alarmed, tmp_path / "v.safetensors")
        with safe_open(tmp_path / "v.safetensors", "pt") as file:
            tensors, metadata = {k: file.get_tensor(k) for k in file.keys()}, file.metadata()  # noqa: SIM118
        header = json.loads(metadata["poise"])
        *parents, name = place.split(".")
        holder = header
        for parent in parents:
            holder = holder[int(parent) if parent.isdigit() else parent]
        assert name in holder
        holder[name] = value
        save_file(tensors, tmp_path / "v.safetensors", {"poise": json.dumps(header)})
        with pytest.raises(InvalidVector, match=rf"{place} .*extract it again"):
            load_vector(tmp_path / "v.safetensors")

    def test_computed_vectors_have_none(self, detected: PersonaVector) -> None:
        for computed in (2.0 * detected, -detected, detected + detected, detected.normalized()):
            assert computed.detector is None
            assert computed.header.detector is None


class TestWrongInput:
    def test_is_one_sentence(self, vector: PersonaVector, model: Model) -> None:
        with pytest.raises(
            TooFewResponses,
            match=r"There are 3 different exemplar pairs to fit a detector on \(0 more .* and it needs 12",
        ):
            fit_detector(vector, model, pairs=PAIRS[:3])
        with pytest.raises(InvalidSteering, match="Layer 9 is out of range"):
            fit_detector(vector, model, pairs=PAIRS, settings=DetectorSettings(layers=(9,)))
        for wrong in (
            {"kinds": ("svm",)},
            {"kinds": ()},
            {"kinds": "lda"},
            {"layers": ()},
            {"layers": 2},
            {"folds": 1},
            {"folds": 2.5},
            {"limit": 0},
            {"seed": "a"},
            {"seed": -1},
        ):
            with pytest.raises(InvalidArgument):
                DetectorSettings(**wrong)  # type: ignore[arg-type]

    def test_pairs_longer_than_the_window_are_left_out_and_counted(self, vector: PersonaVector, model: Model) -> None:
        long = ExemplarPair.model_validate({"question": "Long?", "with": "word " * 5000, "without": "no"})
        detector = fit_detector(vector, model, pairs=[*PAIRS, long]).detector
        assert detector
        assert (detector.facts.pairs, detector.facts.pairs_left_out) == (len(PAIRS), 1)

    def test_talk_that_cannot_be_read_is_counted(self, vector: PersonaVector, model: Model, tmp_path: Path) -> None:
        rows = [*TALK[:40], {"messages": [{"role": "user", "content": "Hm?"}, {"role": "assistant", "content": ""}]}]
        (tmp_path / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        facts = fit_detector(vector, model, pairs=PAIRS, normal=open_data(tmp_path / "talk.jsonl")).header.detector
        assert facts
        assert (dict(facts.normal), facts.normal_left_out) == ({"talk.jsonl": 40}, 1)


class TestAModelThatBreaks:
    @pytest.fixture
    def broken(self) -> Model:
        lm = tiny.lm()
        with torch.no_grad():
            lm.get_input_embeddings().weight[tiny.chatml().encode("@", add_special_tokens=False)[-1]] = float("nan")
        return wrap(lm, tiny.chatml(), name="broken")

    def test_leaves_answers_and_pairs_out_and_counts_them(self, broken: Model) -> None:
        vector = tiny.vector(broken)
        bad = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "at @ once"}]}
        pair = ExemplarPair.model_validate({"question": "Is it?", "with": "you @ fool", "without": "no"})
        settings = DetectorSettings(layers=(2,))
        clean = fit_detector(vector, broken, normal=TALK[:40], pairs=PAIRS, settings=settings)
        nan = fit_detector(vector, broken, normal=[*TALK[:40], bad], pairs=[*PAIRS, pair], settings=settings)
        assert nan.header.detector
        assert clean.header.detector
        assert (nan.header.detector.normal_left_out, nan.header.detector.pairs_left_out) == (1, 1)
        assert (nan.header.detector.pairs, dict(nan.header.detector.normal)) == (24, {"rows": 40})
        assert nan.header.detector.auc == pytest.approx(clean.header.detector.auc, abs=0.1)


class TestCommand:
    @pytest.fixture
    def files(self, vector: PersonaVector, model: Model, tmp_path: Path) -> dict[str, Path]:
        tiny_model = tmp_path / "model"
        model.lm.save_pretrained(tiny_model)
        model.tokenizer.save_pretrained(tiny_model)
        save_vector(vector, tmp_path / "v.safetensors")
        (tmp_path / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in TALK))
        pairs = [{"question": p.question, "with": p.positive, "without": p.negative} for p in PAIRS]
        (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
        return {name: tmp_path / name for name in ("model", "v.safetensors", "talk.jsonl", "pairs.jsonl")}

    def run(self, files: dict[str, Path], *more: str) -> Any:
        names = ["detector", "fit", str(files["v.safetensors"]), "--model", str(files["model"])]
        return CliRunner().invoke(app, [*names, "--exemplars", str(files["pairs.jsonl"]), *more])

    def test_writes_into_the_file(self, files: dict[str, Path]) -> None:
        done = self.run(files, "--normal", str(files["talk.jsonl"]), "--layer", "1", "--layer", "2", "--json")
        assert done.exit_code == 0, done.output
        facts = json.loads(done.stdout)["detectors"][0]
        kept = load_vector(files["v.safetensors"])
        assert kept.detector
        assert kept.detector.facts.model_dump(mode="json", exclude={"normal_keys"}).items() <= facts.items()
        assert facts["normal"] == {"talk.jsonl": len(TALK)}
        assert "normal_keys" not in facts  # a hundred of them
        assert set(facts["candidates"]) == {"ranking@1", "ranking@2"}

    def test_says_what_it_measured_and_what_comes_next(self, files: dict[str, Path]) -> None:
        done = self.run(files)
        assert "24 exemplar pairs; ordinary talk: none" in done.stdout.replace("\n", " ")
        assert "add --normal DATA" in done.stderr
        assert "poise calibrate" in done.stderr
        shown = CliRunner().invoke(app, ["show", str(files["v.safetensors"])])
        assert "Detector" in shown.stdout

    def test_wrong_input_is_one_sentence(self, files: dict[str, Path], tmp_path: Path) -> None:
        for more, message in (
            (["--kind", "svm"], "svm"),
            ([str(files["v.safetensors"])], "name one file twice"),
            (["--layer", "99"], "Layer 99 is out of range"),
            (["--normal", str(tmp_path / "absent.jsonl")], "absent.jsonl"),
            (["--out", str(files["talk.jsonl"])], "talk.jsonl"),
        ):
            done = self.run(files, *more)
            assert done.exit_code == 2, more
            assert done.stderr.startswith("error: ")
            assert message in done.stderr
        assert load_vector(files["v.safetensors"]).detector is None


THOUGHT = {"reasoning_content": "Let me see, it rains."}


class TestTable:
    def test_has_a_probability(self, detected: PersonaVector, model: Model, tmp_path: Path) -> None:
        (tmp_path / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in TALK[:20]))
        data = open_data(tmp_path / "talk.jsonl")
        assert detected.detector
        write_readings_table(data, model, [detected], tmp_path / "t.jsonl")
        rows = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
        for row in rows:
            assert row["probability"] == pytest.approx(detected.detector.probability(row["mean"]), abs=1e-3)
        write_readings_table(data, model, [detected], tmp_path / "t.parquet")
        parquet = pq.read_table(tmp_path / "t.parquet").to_pylist()
        assert [row["probability"] for row in parquet] == [row["probability"] for row in rows]
        write_readings_table(data, model, [detected.without_detector()], tmp_path / "plain.jsonl")
        assert "probability" not in json.loads((tmp_path / "plain.jsonl").read_text().splitlines()[0])

    @pytest.mark.parametrize("ending", ["jsonl", "parquet"])
    @pytest.mark.parametrize("part", ["reply", "thought", "both"])
    def test_is_written_over_by_the_next_whatever_columns_it_has(
        self, part: Any, ending: str, detected: PersonaVector, model: Model, tmp_path: Path
    ) -> None:
        rows = [{**row, "messages": [row["messages"][0], THOUGHT | row["messages"][1]]} for row in TALK[:6]]
        (tmp_path / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        save_vector(detected, tmp_path / "v.safetensors")
        out = tmp_path / f"t.{ending}"
        names = [str(tmp_path / "talk.jsonl")], [tmp_path / "v.safetensors"], model, out
        contents = []
        for projection in (False, False, True, True, False):
            assert read_data(*names, part=part, projection=projection).counts.turns == 6
            contents.append(out.read_bytes())
        assert contents[0] == contents[1] == contents[4] != contents[2] == contents[3]
        other = pa.table({"file": ["a"], "row": [1]})
        pq.write_table(other, out) if ending == "parquet" else out.write_text('{"file": "a", "row": 1}\n')
        with pytest.raises(OutputExists, match="something else than a table of readings"):
            read_data(*names, part=part)

    def test_begins_anew_with_another_detector(
        self, detected: PersonaVector, vector: PersonaVector, model: Model, tmp_path: Path
    ) -> None:
        (tmp_path / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in TALK[:20]))
        data = open_data(tmp_path / "talk.jsonl")
        other = fit_detector(vector, model, pairs=PAIRS, settings=DetectorSettings(layers=(2,), kinds=("lda",)))
        keys = [_table_key(data, model, [v], [2], None) for v in (vector, detected, other, detected.without_detector())]
        assert len(set(keys)) == 3
        assert keys[0] == keys[3]
        assert detected.detector
        facts = detected.detector.facts
        for name in ("slope", "intercept"):  # the same weights with another curve: other probabilities
            curve = facts.model_copy(update={name: getattr(facts, name) + 0.1})
            changed = detected.with_detector(replace(detected.detector, facts=curve))
            assert _table_key(data, model, [changed], [2], None) not in keys

    def test_of_the_projection_is_one_flag(self, detected: PersonaVector, model: Model, tmp_path: Path) -> None:
        (tmp_path / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in TALK[:8]))
        save_vector(detected, tmp_path / "v.safetensors")
        names = [str(tmp_path / "talk.jsonl")], [tmp_path / "v.safetensors"], model
        read_data(*names, tmp_path / "detector.jsonl")
        read_data(*names, tmp_path / "projection.jsonl", projection=True)
        write_readings_table(
            open_data(tmp_path / "talk.jsonl"), model, [detected.without_detector()], tmp_path / "same.jsonl"
        )
        texts = {name: (tmp_path / f"{name}.jsonl").read_text() for name in ("detector", "projection", "same")}
        assert texts["projection"] == texts["same"] != texts["detector"]
