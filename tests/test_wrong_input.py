"""Wrong input to the public API: an error of Poise's tree, in one sentence that says what to do."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest

import poise
import tiny
from poise.engine import SamplingParams
from poise.engine.static import LocalEngine
from poise.errors import (
    InvalidArgument,
    InvalidSettings,
    InvalidSteering,
    InvalidTrait,
    OutputExists,
    PoiseError,
    UserError,
)
from poise.model import ask
from poise.shift.report import load_report, save_report
from poise.steer import Steering, apply_steering

ROWS = [{"question": f"Why {i}?", "answer": f"Because {i}."} for i in range(40)]

VECTOR = "evil.safetensors=1"
CONSTRUCTION: dict[str, tuple[Callable[[], Any], type[UserError], str]] = {
    "rank": (lambda: poise.LoraSettings(r=0), InvalidSettings, "LoraSettings: r is 0; it must be at least 1"),
    "unknown": (lambda: poise.LoraSettings(bogus=0), InvalidSettings, "bogus is an unknown setting"),  # type: ignore[call-arg]
    "every": (lambda: poise.MonitorSettings(every=0), InvalidSettings, "every is 0; it must be at least 1"),
    "warmup": (lambda: poise.VaccineSettings(warmup=3), InvalidSettings, "warmup is 3; it must be at most 1"),
    "questions": (lambda: poise.MeasurementSettings(questions=0), InvalidSettings, "questions is 0"),
    "text for a list": (
        lambda: poise.TrainConfig(model="M", data="d.jsonl", out="o"),  # type: ignore[arg-type]
        InvalidSettings,
        "data is 'd.jsonl'; it must be a list",
    ),
    "no limits": (lambda: poise.ShiftLimits(), InvalidSettings, "name a trait or a capability"),
    "confidence": (lambda: poise.ShiftLimits(confidence=3), InvalidSettings, "confidence is 3"),
    "slip": (lambda: poise.TraitLimits(shfit=1), InvalidSettings, "did you mean shift?"),  # type: ignore[call-arg]
    "own trait": (lambda: poise.OwnTrait(name="A B", pairs=()), InvalidTrait, "name is 'A B'; use up to 64"),
    "empty trait": (lambda: poise.Trait(), InvalidTrait, "name is missing"),  # type: ignore[call-arg]
    "by position": (lambda: poise.LoraSettings(3), InvalidArgument, "takes its fields by name"),  # type: ignore[call-arg]
    "no steering": (lambda: poise.VaccineCallback([]), InvalidSteering, "The steering is []; give an expression"),
    "negative layer": (lambda: poise.VaccineCallback(VECTOR, layers=-1), InvalidArgument, "layers is -1; give"),
    "layers misspelt": (lambda: poise.VaccineCallback(VECTOR, layers="inc"), InvalidArgument, "layers is 'inc'; give"),  # type: ignore[arg-type]
    "no layers": (lambda: poise.VaccineCallback(VECTOR, layers=[]), InvalidArgument, "layers is []; give"),
    "positions": (
        lambda: poise.VaccineCallback(VECTOR, positions="foo"),  # type: ignore[arg-type]
        InvalidArgument,
        "positions is 'foo'; it must be one of all, response",
    ),
    "share": (lambda: poise.VaccineCallback(VECTOR, warmup=float("nan")), InvalidArgument, "warmup is nan"),
}


@pytest.mark.parametrize("case", CONSTRUCTION)
def test_a_value_that_cannot_be_built_says_why_in_plain_words(case: str) -> None:
    build, kind, sentence = CONSTRUCTION[case]
    with pytest.raises(UserError) as caught:
        build()
    assert type(caught.value) is kind
    assert sentence in str(caught.value)
    assert "pydantic" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_settings_value_cannot_be_changed_and_travels_whole() -> None:
    settings = poise.LoraSettings(r=4)
    with pytest.raises(FrozenInstanceError, match="LoraSettings cannot be changed"):
        settings.r = 3  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        del settings.r
    assert pickle.loads(pickle.dumps(settings)) == copy.deepcopy(settings) == settings


NATURAL_SLIPS = {
    "screen a file's name": lambda m, v: poise.screen_rows("d.jsonl", [v], m),
    "screen by no method": lambda m, v: poise.screen_rows(ROWS, [v], m, method="foo"),
    "screen by None": lambda m, v: poise.screen_rows(ROWS, [v], m, method=None),
    "screen without a model": lambda m, v: poise.screen_rows(ROWS, [v], "M"),
    "screen by a name": lambda m, v: poise.screen_rows(ROWS, ["evil"], m),
    "read a file's name": lambda m, v: poise.read_rows("d.jsonl", [v], m),
    "read None": lambda m, v: poise.read_rows(None, [v], m),
    "read by None": lambda m, v: poise.read_rows(ROWS, None, m),
    "read without a model": lambda m, v: poise.read_rows(ROWS, [v], None),
    "calibrate on a name": lambda m, v: poise.calibrate_alarms("n.jsonl", m, [v]),
    "calibrate a name": lambda m, v: poise.calibrate_alarms(ROWS, m, "evil"),
    "no rates": lambda m, v: poise.CalibrationSettings(rates=()),
    "a rate": lambda m, v: poise.CalibrationSettings(rates=0.1),
    "rates None": lambda m, v: poise.CalibrationSettings(rates=None),
    "a rate that is no number": lambda m, v: poise.CalibrationSettings(rates=("a",)),
    "limit None": lambda m, v: poise.CalibrationSettings(limit=None),
    "questions as text": lambda m, v: poise.validate_vector(v, m, questions="abcdefgh"),
    "a model's name": lambda m, v: poise.validate_vector(v, "M"),
    "no judge": lambda m, v: poise.validate_vector(v, m, judge=None),
    "a huge seed": lambda m, v: poise.validate_vector(v, m, seed=2**70),
    "an engine of a name": lambda m, v: LocalEngine("M"),
    "an engine of None": lambda m, v: LocalEngine(None),
    "a prompt as text": lambda m, v: LocalEngine(m).generate("hi", SamplingParams()),
    "prompts as texts": lambda m, v: LocalEngine(m).generate(["hi"], SamplingParams()),
    "one prompt": lambda m, v: LocalEngine(m).generate(m.encode(ask("hi")), SamplingParams()),
    "sampling as a dictionary": lambda m, v: LocalEngine(m).generate([m.encode(ask("hi"))], {}),
    "a vector as steering": lambda m, v: LocalEngine(m).generate([m.encode(ask("hi"))], SamplingParams(), steering=v),
    "steer by None": lambda m, v: apply_steering(m, None).__enter__(),
    "steer by a vector": lambda m, v: apply_steering(m, v).__enter__(),
    "steer by text": lambda m, v: apply_steering(m, "x").__enter__(),
    "steer a name": lambda m, v: apply_steering("M", Steering.add(v, dose=0.1)).__enter__(),
    "the mean of None": lambda m, v: poise.PersonaVector.mean(None),
    "load None": lambda m, v: poise.load_model(None),
    "a device": lambda m, v: poise.load_model("smollm2-135m", device="foo"),
    "a dtype": lambda m, v: poise.load_model("smollm2-135m", dtype="foo"),
    **{
        f"validation settings {name}": lambda m, v, name=name, value=value: poise.ValidationSettings(**{name: value})
        for name, value in {
            "depth": (1, 0),
            "sweep_doses": (),
            "curve": (),
            "random_draws": 0,
            "layers": True,
            "coherence_floor": math.nan,
            "doses": "abc",
        }.items()
    },
    "no report": lambda m, v: poise.load_shift_report("none.json"),
}


@pytest.mark.parametrize("slip", NATURAL_SLIPS)
def test_is_one_sentence_of_the_tree(slip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = tiny.model()
    with pytest.raises(PoiseError, match=r"^[^\n]{20,}[.]$"):
        NATURAL_SLIPS[slip](model, tiny.vector(model))


def test_one_vector_is_as_good_as_a_list() -> None:
    model = tiny.model()
    vector = tiny.vector(model)
    assert list(poise.read_rows(ROWS, vector, model)) == list(poise.read_rows(ROWS, [vector], model))
    assert list(poise.screen_rows(ROWS, vector, model)) == list(poise.screen_rows(ROWS, [vector], model))
    plan = poise.CalibrationSettings(rates=(0.2,), read_given_answers=True)
    assert len(poise.calibrate_alarms(ROWS, model, vector, plan).vectors) == 1


def test_a_report_is_not_written_over_another_file(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("years of work\n")
    report = load_report(Path(__file__).parent / "fixtures" / "v0_1_0" / "shift" / "shift.json")
    with pytest.raises(OutputExists, match=r"something else than a shift.json"):
        save_report(report, str(tmp_path / "precious.txt"))
    for _ in range(2):
        save_report(report, str(tmp_path / "shift.json"))
