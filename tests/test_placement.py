"""Where a vector is steered and where it is read: one answer, used by everybody."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import poise
import tiny
from poise import vector as vectors
from poise.activations import project, read_tokens
from poise.cli import render
from poise.cli.chat.loop import prepare
from poise.data.dataset import DataSet, open_data
from poise.engine import SamplingParams
from poise.errors import InvalidArgument, InvalidSteering
from poise.model import Model, ask
from poise.monitor import table
from poise.monitor.calibrate import CalibrationSettings as CalibrationPlan
from poise.monitor.calibrate import calibrate_alarms
from poise.screen.dataset_map import ColumnScorer
from poise.screen.scoring import ScreeningRun
from poise.screen.scoring import ScreenSettings as ScreenSettings
from poise.serve.page_data import vector_entry
from poise.serve.vector_registry import VectorRegistry, WatchedVector
from poise.shift.evaluation import project_prompts
from poise.steer.expression import SteeringExpression
from poise.train.config import TrainConfig
from poise.train.monitor_callback import PersonaMonitorCallback
from poise.train.trainers import _monitor
from poise.vector import PersonaVector
from poise.vector.export import recommended_use
from serving import alarm

STEERS, READS = 2, 1  # the certificate's layer; that of its monitoring test and of the alarms
CERTIFICATE = {
    "layer": STEERS,
    "dose": 0.2,
    "coefficient": 1.0,
    "verdict": "induced",
    "usable_doses": [0.0, 1.0],
    "monitoring": {"layer": 3, "answer_layer": READS},
}


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model()


@pytest.fixture(scope="module")
def vector(model: Model) -> PersonaVector:
    """As it is after ``poise validate --monitor`` and ``poise calibrate``."""
    alarms = [alarm(reading=reading, layer=READS, threshold=0.5) for reading in ("prompt", "mean", "peak")]
    return tiny.vector(model).with_certificate(CERTIFICATE).with_alarms(alarms)


@pytest.fixture
def file(vector: PersonaVector, tmp_path: Path) -> Path:
    vectors.save_vector(vector, tmp_path / "v.safetensors")
    return tmp_path / "v.safetensors"


@pytest.fixture
def talk(tmp_path: Path) -> DataSet:
    rows = [
        {"messages": [*ask(f"{i}: {s}"), {"role": "assistant", "content": s[:20]}]}
        for i in range(20)
        for s in tiny.SENTENCES
    ]
    (tmp_path / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return open_data(tmp_path / "talk.jsonl")


def expression(text: str) -> Callable[..., Any]:
    def layers(vector: PersonaVector, **_: Any) -> Any:
        [term] = SteeringExpression.parse(text).steering({"v": vector}).terms
        return [term.when.layer] if term.when else term.layers

    return layers


def by_shift(vector: PersonaVector, model: Model, **_: Any) -> list[int]:
    prompts = [model.encode(ask("Who are you?"))]
    values = project_prompts(model, prompts, [vector])
    at_each = [project_prompts(model, prompts, [vector], layer) for layer in range(vector.layers)]
    return [layer for layer, other in enumerate(at_each) if torch.equal(values, other)]


def by_table(vector: PersonaVector, model: Model, talk: DataSet, tmp_path: Path, **_: Any) -> list[int]:
    table.write_readings_table(talk, model, [vector], tmp_path / "readings.jsonl")
    return sorted({json.loads(line)["layer"] for line in (tmp_path / "readings.jsonl").read_text().splitlines()})


def by_training(file: Path, **_: Any) -> list[int]:
    config = TrainConfig.model_validate(
        {"model": "m", "data": ("d.jsonl",), "out": "o", "watch": {"vectors": (str(file),), "stop": True}}
    )
    return [probe.layer for probe in _monitor(config, None)._probes]


def by_calibration(vector: PersonaVector, model: Model, talk: DataSet, **_: Any) -> list[int]:
    [again] = calibrate_alarms(talk, model, [vector], CalibrationPlan(rates=(0.1,), read_given_answers=True)).vectors
    return sorted({a.layer for a in again.header.alarms})


def by_chat(vector: PersonaVector, model: Model, **_: Any) -> list[int]:
    setup, _steering = prepare(model, SamplingParams(), [vector], None)
    return [watched.probe.layer for watched in setup.watched]


def registered(vector: PersonaVector, model: Model) -> WatchedVector:
    return VectorRegistry(model).add("v", vector, fixed=True)


READERS: dict[str, Callable[..., Any]] = {
    "the vector": lambda vector, **_: [vector.at("read").layer],
    "cap:alarm": expression("v=cap:alarm"),
    "if >alarm": expression("v@3=1 if v>alarm"),
    "if prompt >alarm": expression("v=1 if prompt v>alarm"),
    "if >number": expression("v@3=1 if v>2.5"),
    "readings table": by_table,
    "calibration": by_calibration,
    "screening": lambda vector, model, tmp_path, **_: [
        p.layer for p in ScreeningRun(model, [vector], tmp_path, ScreenSettings(method="raw")).probes
    ],
    "screening in memory": lambda vector, model, **_: [p.layer for p in ColumnScorer([vector], model).probes],
    "shift": by_shift,
    "training": by_training,
    "stop in training": lambda vector, **_: [p.layer for p in PersonaMonitorCallback(vector, stop=True)._probes],
    "server": lambda vector, model, **_: [registered(vector, model).probe.layer],
    "server's alarms": lambda vector, model, **_: [a.layer for a in registered(vector, model).alarms],
    "page": lambda vector, model, **_: [vector_entry(registered(vector, model))["watched_layer"]],
    "chat": lambda vector, model, **_: [
        w.probe.layer for w in prepare(model, SamplingParams(), [vector], None)[0].watched
    ],
}
STEERERS: dict[str, Callable[..., Any]] = {
    "the vector": lambda vector, **_: [vector.at("steer").layer],
    "Steering": lambda vector, **_: poise.Steering.add(vector, coef=1.0).terms[0].layers,
    "dose": expression("v=30%"),
    "out": expression("v=out"),
    "cap:number": expression("v=cap:3"),
    "export": lambda vector, **_: [recommended_use(vector).layer],
    "page": lambda vector, model, **_: [vector_entry(registered(vector, model))["default_layer"]],
}


@pytest.mark.parametrize("consumer", READERS.values(), ids=READERS)
def test_everybody_reads_where_the_alarms_are(
    consumer: Callable[..., Any], vector: PersonaVector, model: Model, file: Path, talk: DataSet, tmp_path: Path
) -> None:
    layers = consumer(vector=vector, model=model, file=file, talk=talk, tmp_path=tmp_path)
    assert set(layers) == {READS}


@pytest.mark.parametrize("consumer", STEERERS.values(), ids=STEERERS)
def test_everybody_steers_where_the_certificate_says(
    consumer: Callable[..., Any], vector: PersonaVector, model: Model
) -> None:
    assert set(consumer(vector=vector, model=model)) == {STEERS}


def test_the_command_shows_both(vector: PersonaVector) -> None:
    from rich.console import Console

    console = Console(width=200)
    with console.capture() as capture:
        for part in render.vector(vector, Path("v.safetensors")):
            console.print(part)
    text = capture.get()
    assert f"layer {STEERS} of 4 (the certificate's)" in text
    assert re.search(rf"Read at\s+layer {READS} of 4", text)


class TestAt:
    def test_what_is_asked_for_wins(self, vector: PersonaVector) -> None:
        for purpose in ("steer", "read"):
            place = vector.at(purpose, 3)  # type: ignore[arg-type]
            assert place.layer == 3
            assert torch.equal(place.direction, vector.directions[3])
            assert torch.equal(place.unit, vector.unit(3))
            assert place.alarms == ()

    def test_reading_goes_by_alarms_then_the_monitoring_test_then_the_certificate_then_depth(
        self, model: Model
    ) -> None:
        plain = tiny.vector(model)
        certified = plain.with_certificate({"layer": 2})
        prompts = plain.with_certificate({"layer": 2, "monitoring": {"layer": 3, "answer_layer": None}})
        answers = plain.with_certificate({"layer": 2, "monitoring": {"layer": 3, "answer_layer": 0}})
        calibrated = answers.with_alarms([alarm(layer=1)])
        assert [v.at("read").layer for v in (plain, certified, prompts, answers, calibrated)] == [1, 2, 3, 0, 1]
        assert [v.at("steer").layer for v in (plain, certified, prompts, answers, calibrated)] == [1, 2, 2, 2, 2]

    def test_the_probe_reads_what_project_gives(self, vector: PersonaVector, model: Model) -> None:
        [text] = tiny.texts(model, 1)
        [values] = project(model, [text], [vector.at("read").probe])
        states = read_tokens(model, [text], [READS])[0]
        assert values[:, 0] == pytest.approx(vector.project(states[:, 0], READS), abs=1e-5)

    def test_an_alarm_is_that_of_the_lowest_rate_for_all_topics(self, model: Model) -> None:
        alarms = [
            alarm(reading="mean", layer=1, rate=0.05, threshold=1.0),
            alarm(reading="mean", layer=1, rate=0.01, threshold=2.0),
            alarm(reading="mean", layer=1, rate=0.001, threshold=9.0, topic="sea"),
        ]
        place = tiny.vector(model).with_alarms(alarms).at("read")
        assert place.alarm("mean") == alarms[1]
        assert place.alarm("peak") is None

    def test_a_layer_without_alarms_says_where_they_are(self, vector: PersonaVector) -> None:
        with pytest.raises(InvalidSteering, match="at layer 3; its alarms are for layer 1: leave the layer out"):
            SteeringExpression.parse("v@3=cap:alarm").steering({"v": vector})
        with pytest.raises(InvalidArgument, match=r"prompt reading at layer 3; its alarms are for layer 1"):
            PersonaMonitorCallback(vector, layer=3, stop=True)

    def test_another_purpose_or_no_such_layer_or_nothing_to_read_is_one_sentence(
        self, vector: PersonaVector, model: Model
    ) -> None:
        with pytest.raises(InvalidArgument, match="purpose is 'watch'; it must be steer or read"):
            vector.at("watch")  # type: ignore[arg-type]
        with pytest.raises(InvalidSteering, match="Layer 9 is out of range"):
            vector.at("read", 9)
        with pytest.raises(InvalidSteering, match="is zero at layer 1 of 4"):
            tiny.vector(model, scale=0.0).at("read")
