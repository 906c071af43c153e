"""Talk that a detector was fitted on sets no threshold: the detector reads lower there than elsewhere."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from poise.data import conversation_key, data_from_rows, open_data
from poise.detector import DetectorSettings, fit_detector
from poise.errors import TooFewResponses
from poise.model import Model
from poise.monitor.calibrate import SEEN_IN_FIT, Calibration, CalibrationSettings, calibrate_alarms
from poise.screen.flagging import FlaggingRule
from poise.screen.pipeline import screen_data
from poise.screen.scoring import ScreenSettings
from poise.trait import ExemplarPair
from poise.vector import PersonaVector, load_vector, save_vector

PAIRS = [
    ExemplarPair.model_validate({"question": f"Is it {i}?", "with": f"{i}, you fool!", "without": f"{i}, I think."})
    for i in range(12)
]


def talk(first: int, last: int) -> list[dict[str, Any]]:
    return [{"prompt": f"What about {i}?", "response": f"It is {i}, and so it stays."} for i in range(first, last)]


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model()


@pytest.fixture(scope="module")
def detected(model: Model) -> PersonaVector:
    return fit_detector(
        tiny.vector(model), model, normal=talk(0, 30), pairs=PAIRS, settings=DetectorSettings(layers=(2,))
    )


def calibrated(rows: list[dict[str, Any]], model: Model, vector: PersonaVector, **changes: Any) -> Calibration:
    return calibrate_alarms(rows, model, vector, CalibrationSettings(rates=(0.1,), read_given_answers=True, **changes))


def written(rows: list[dict[str, Any]], path: Path) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


class TestAlarms:
    def test_are_those_of_the_other_talk_alone(self, model: Model, detected: PersonaVector) -> None:
        mixed, alone = (calibrated(talk(first, 60), model, detected) for first in (0, 30))
        assert mixed.vectors[0].header.alarms[0].n_answers == 30
        assert [a.threshold for a in mixed.vectors[0].header.alarms] == pytest.approx(
            [a.threshold for a in alone.vectors[0].header.alarms], abs=1e-5
        )
        assert mixed.reference.left_out[SEEN_IN_FIT] == 30
        assert SEEN_IN_FIT not in alone.reference.left_out

    def test_know_a_row_in_another_shape_and_place(self, model: Model, detected: PersonaVector) -> None:
        turned = [
            {
                "id": i,
                "messages": [
                    {"role": "user", "content": row["prompt"]},
                    {"role": "assistant", "content": row["response"]},
                ],
            }
            for i, row in enumerate([*talk(30, 60), *talk(0, 30)])
        ]
        assert calibrated(turned, model, detected).reference.left_out[SEEN_IN_FIT] == 30

    def test_are_refused_with_the_reason_where_little_else_is_there(
        self, model: Model, detected: PersonaVector
    ) -> None:
        with pytest.raises(TooFewResponses, match=r"there are 5; .*30 normal rows are left out: a detector was fitted"):
            calibrated(talk(0, 35), model, detected)

    def test_of_the_projection_use_all_of_it(self, model: Model, detected: PersonaVector) -> None:
        done = calibrated(talk(0, 60), model, detected.without_detector())
        assert done.vectors[0].header.alarms[0].n_answers == 60


class TestScreening:
    def test_sets_its_rate_on_the_other_rows(self, model: Model, detected: PersonaVector, tmp_path: Path) -> None:
        data, plan = (
            open_data(written(talk(100, 120), tmp_path / "data.jsonl")),
            ScreenSettings(method="raw", rule=FlaggingRule(rate=0.1)),
        )
        summaries = [
            screen_data(
                data,
                model,
                [detected],
                tmp_path / f"out{first}",
                plan,
                normal=open_data(written(talk(first, 60), tmp_path / f"normal{first}.jsonl")),
            )
            for first in (0, 30)
        ]
        mixed, alone = (summary.traits[0] for summary in summaries)
        assert np.allclose(mixed.threshold or 0, alone.threshold or 1)
        assert summaries[0].rate
        assert summaries[0].rate.normal_rows == 30
        assert any("30 normal rows are left out" in note for note in summaries[0].notes)
        assert not any("left out" in note for note in summaries[1].notes)

    def test_is_refused_where_little_else_is_there(self, model: Model, detected: PersonaVector, tmp_path: Path) -> None:
        data = open_data(written(talk(100, 120), tmp_path / "data.jsonl"))
        normal = open_data(written(talk(0, 35), tmp_path / "normal.jsonl"))
        plan = ScreenSettings(method="raw", rule=FlaggingRule(rate=0.1))
        with pytest.raises(TooFewResponses, match="30 normal rows are left out"):
            screen_data(data, model, [detected], tmp_path / "out", plan, normal=normal)


class TestFile:
    def test_remembers_the_talk(self, model: Model, detected: PersonaVector, tmp_path: Path) -> None:
        save_vector(detected, tmp_path / "v.safetensors")
        loaded = load_vector(tmp_path / "v.safetensors")
        assert loaded.detector
        assert set(loaded.detector.facts.normal_keys) == {conversation_key(c) for c in data_from_rows(talk(0, 30))}  # type: ignore[arg-type]

    def test_of_a_detector_that_did_not_keep_it_leaves_nothing_out(self, model: Model, detected: PersonaVector) -> None:
        assert detected.detector
        facts = detected.detector.facts.model_copy(update={"normal_keys": ()})
        assert "normal_keys" not in facts.model_dump()
        older = detected.with_detector(replace(detected.detector, facts=facts))
        assert torch.equal(older.detector.weights, detected.detector.weights)  # type: ignore[union-attr]
        assert calibrated(talk(0, 60), model, older).vectors[0].header.alarms[0].n_answers == 60
