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
from poise.trait.library import dump

ROWS = [{"question": f"Why {i}?", "answer": f"Because {i}."} for i in range(40)]

VECTOR = "evil.safetensors=1"
CONSTRUCTION: dict[str, tuple[Callable[[], Any], type[UserError], str]] = {
    "rank": (lambda: poise.LoraSettings(r=0), InvalidSettings, "LoraSettings: r is 0; it must be at least 1"),
    "unknown": (lambda: poise.LoraSettings(bogus=0), InvalidSettings, "bogus is an unknown setting"),  # type: ignore[call-arg]
    "every": (lambda: poise.MonitorSettings(every=0), InvalidSettings, "every is 0; it must be at least 1"),
    "warmup": (lambda: poise.VaccineSettings(warmup=3), InvalidSettings, "warmup is 3; it must be at most 1"),
    "questions": (lambda: poise.MeasurementSettings(questions=0), InvalidSettings, "questions is 0"),
    "a number for a list": (
        lambda: poise.TrainConfig(model="M", data=3, out="o"),  # type: ignore[arg-type]
        InvalidSettings,
        "data is 3; it must be a list",
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
    "save to None": lambda m, v: poise.save_vector(v, None),
    "save a name": lambda m, v: poise.save_vector("v", "v.safetensors"),
    "activations of a name": lambda m, v: poise.read_activations("m", []),
    "activations of texts": lambda m, v: poise.read_activations(m, ["hi"]),
    "activations of None": lambda m, v: poise.read_activations(m, None),
    "tokens by a name": lambda m, v: list(poise.read_answer_tokens(ROWS, ["evil"], m)),
    "tokens without a model": lambda m, v: list(poise.read_answer_tokens(ROWS, [v], "m")),
    "shift of None": lambda m, v: poise.measure_shift(m, None, v),
    "shift by a name": lambda m, v: poise.measure_shift(m, m, "evil"),
    "a report of None": lambda m, v: poise.load_shift_report(None),
    "save no report": lambda m, v: poise.save_shift_report(None, "x"),
    "limits of None": lambda m, v: poise.read_limits(None),
    "check None": lambda m, v: poise.check_limits(None, None),
    "a tuned model of None": lambda m, v: poise.load_tuned_model(None, "x"),
    "a capability of 3": lambda m, v: poise.parse_capability(3),
    "an expression of None": lambda m, v: poise.SteeringExpression.parse(None),
    "an expression's vector": lambda m, v: poise.SteeringExpression.parse("g=1").steering(v),
    "an expression's name": lambda m, v: poise.SteeringExpression.parse("g=1").steering({"g": "x"}),
    "an answer of 3": lambda m, v: m.encode(ask("hi"), 3),
    "part of an answer": lambda m, v: m.encode(ask("hi"), "x", part="foo"),
    "a shape of 3": lambda m, v: poise.open_data("x.jsonl", shape=3),
    "validate a name": lambda m, v: poise.validate_vector("v", m),
    "train by a file's name": lambda m, v: poise.fine_tune("x.yaml"),
    "a judge of 3": lambda m, v: poise.collect_contrast(poise.load_trait("evil"), m, "prompted", judge=3),
    "questions of text": lambda m, v: poise.collect_contrast(poise.load_trait("evil"), m, questions="x"),
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


WRONG_TYPES: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "a trait's name": (
        lambda m, v: poise.collect_contrast("evil", m),
        "trait is str; give a Trait, as load_trait(name) gives.",
    ),
    "contrast of a model's name": (
        lambda m, v: poise.collect_contrast(poise.load_trait("evil"), "m"),
        "model is str; give a Model, as load_model(name) gives.",
    ),
    "extract without a model": (
        lambda m, v: poise.extract_vector(poise.collect_contrast(poise.load_trait("evil"), m), "m"),
        "model is str; give a Model, as load_model(name) gives.",
    ),
    "extract from a trait": (
        lambda m, v: poise.extract_vector(poise.load_trait("evil"), m),
        "contrast is Trait; give a ContrastSet, as collect_contrast(trait, model) gives.",
    ),
    "open a number": (
        lambda m, v: poise.open_data(3),
        "source is 3; give a file, a folder, an address, or a list of these. Rows in memory need no opening: give them "
        "as they are.",
    ),
    "open rows": (
        lambda m, v: poise.open_data([{"a": 1}]),
        "source is [{'a': 1}]; give a file, a folder, an address, or a list of these. Rows in memory need no opening: "
        "give them as they are.",
    ),
    "open nothing": (
        lambda m, v: poise.open_data([]),
        "source is []; name a file, a folder, an address, or several of these.",
    ),
    "open no name": (
        lambda m, v: poise.open_data(""),
        "source is ''; name a file, a folder, an address, or several of these.",
    ),
    "a vector of None": (
        lambda m, v: poise.load_vector(None),
        "path is NoneType; give the path of a vector file, such as 'evil.safetensors'.",
    ),
    "a vector in a folder": (
        lambda m, v: poise.load_vector("."),
        ". is a folder; name the vector file in it, which ends in .safetensors.",
    ),
    "a trait of None": (
        lambda m, v: poise.load_trait(None),
        "name_or_path is NoneType; give one of apathetic, evil, hallucinating, humorous, impolite, optimistic, "
        "sycophantic, or the path of a trait file.",
    ),
    "a role": (
        lambda m, v: m.encode([{"role": "usr", "content": "hi"}]),
        "Message 0 of the conversation has the role 'usr', which the model's chat template does not name; use system, "
        "developer, user, assistant or tool; did you mean user?",
    ),
    "a role like none": (
        lambda m, v: m.encode([*ask("hi"), {"role": "xyz", "content": "hi"}]),
        "Message 1 of the conversation has the role 'xyz', which the model's chat template does not name; use system, "
        "developer, user, assistant or tool.",
    ),
    "a steering's word": (
        lambda m, v: poise.SteeringExpression.parse("evil=30% fisrt 20"),
        "Cannot read 'fisrt 20' in the steering 'evil=30% fisrt 20'; after the strength come, in this order, "
        "`on prompt|all`, `in thought|both`, `first N`, `after N` or `tokens A-B`, and `if [prompt] NAME>VALUE`.",
    ),
    "read one vector twice": (
        lambda m, v: poise.read_rows(ROWS, [v, v], m),
        "Two vectors are named grumpy, and readings go by the name; give one of them at a time.",
    ),
    "read tokens by one vector twice": (
        lambda m, v: list(poise.read_answer_tokens(ROWS, [v, v], m)),
        "Two vectors are named grumpy, and readings go by the name; give one of them at a time.",
    ),
    "a row use": (
        lambda m, v: poise.show_rows(ROWS, m, use="lern"),
        "use is 'lern'; it must be one of score, learn, answer.",
    ),
    "no rows to show": (
        lambda m, v: poise.show_rows(ROWS, m, n=0),
        "n is 0; it must be a whole number, at least 1.",
    ),
    "messages as text": (
        lambda m, v: m.encode("hi"),
        "messages is str; give a list of messages, such as ask('Who are you?').",
    ),
}


@pytest.mark.parametrize("slip", WRONG_TYPES)
def test_of_another_type_or_kind_says_what_to_give(slip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = tiny.model()
    call, sentence = WRONG_TYPES[slip]
    with pytest.raises(UserError) as caught:
        call(model, tiny.vector(model))
    assert str(caught.value) == sentence


def test_a_trait_file_with_a_misspelt_field_names_the_one_that_was_meant(tmp_path: Path) -> None:
    text = dump(poise.load_trait("evil")).replace("rubric:", "rubrik:")
    (tmp_path / "t.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(InvalidTrait, match=r"rubrik is not a known field; did you mean rubric\?"):
        poise.load_trait(tmp_path / "t.yaml")


def test_roles_that_a_template_names_are_taken_as_are_tools_and_developers(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model()
    for role in ("system", "developer", "tool"):
        assert model.encode([*ask("hi"), {"role": role, "content": "so"}, *ask("and?")]).ids
    named = model.tokenizer.chat_template + "{% if messages[0]['role'] == 'critic' %}{% endif %}"
    monkeypatch.setattr(model.tokenizer, "chat_template", named)  # the tokenizer is other tests' as well
    assert model.encode([{"role": "critic", "content": "so"}, *ask("and?")]).ids


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
