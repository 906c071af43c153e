"""The public list: every name is there and documented, and it is closed under what its functions make and take."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import poise
import tiny
from poise.errors import InvalidArgument, InvalidSettings

NAMES = sorted(set(poise.__all__) - {"__version__"})
PUBLIC = {name: getattr(poise, name) for name in NAMES}
TOOLS = {"LocalEngine", "PersonaMonitorCallback", "SteeringExpression", "VaccineCallback"}  # made by their own name
# Parts of a public value that its reader meets as attributes; they are made inside and need no name of their own.
INNER = {"ChosenJudges", "ResponseStore", "Estimate", "AppliedSteering", "Condition", "Term", "Header"}


def classes(annotation: Any) -> Iterator[type]:
    """Classes of Poise in a type, whatever it is wrapped in."""
    if inspect.isclass(annotation) and annotation.__module__.startswith("poise"):
        yield annotation
    for part in typing.get_args(annotation):
        if part is not annotation:
            yield from classes(part)


def in_signature(function: Any) -> set[type]:
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError):
        return set()
    return {c for hint in hints.values() for c in classes(hint)}


def made_and_taken(thing: Any) -> set[type]:
    """By a function, or by a class's constructor, fields and public methods."""
    if not inspect.isclass(thing):
        return in_signature(thing)
    methods = [m for name, m in inspect.getmembers(thing, inspect.isfunction) if not name.startswith("_")]
    fields = getattr(thing, "model_fields", {}).values()
    return {
        *in_signature(thing.__init__),
        *(c for method in methods for c in in_signature(method)),
        *(c for field in fields for c in classes(field.annotation)),
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_is_documented_and_no_module(name: str) -> None:
    thing = PUBLIC[name]
    assert not inspect.ismodule(thing)
    doc = inspect.getdoc(thing) or ""
    assert len(doc) > 30
    assert doc.partition("\n")[0].rstrip().endswith((".", "::", ":")), "the first line is a sentence"
    if inspect.isfunction(thing):
        parameters = set(inspect.signature(thing).parameters) - {"kwargs"}
        missing = [p for p in parameters if f"{p}:" not in doc and p not in ("self",)]
        assert len(parameters) < 3 or not missing, f"{name} does not document {missing}"


def test_what_public_functions_make_and_take_is_public_too() -> None:
    functions = {name: thing for name, thing in PUBLIC.items() if not inspect.isclass(thing)}
    missing = {
        f"{name}: {c.__name__}"
        for name, thing in functions.items()
        for c in made_and_taken(thing)
        if c not in PUBLIC.values() and c.__name__ not in INNER
    }
    assert missing == set()


def test_every_public_class_is_made_or_taken_by_something_public() -> None:
    used = {c for thing in PUBLIC.values() for c in made_and_taken(thing)}
    lonely = {name for name, thing in PUBLIC.items() if inspect.isclass(thing) and thing not in used}
    assert lonely <= TOOLS


def test_no_public_name_is_that_of_a_room() -> None:
    rooms = {path.name.removesuffix(".py") for path in Path(poise.__file__).parent.iterdir()}
    assert not rooms & set(NAMES)


def test_values_show_themselves_in_one_short_line() -> None:
    model = tiny.model()
    vector = tiny.vector(model)
    steering = poise.Steering.add(vector, coef=1.5, layer=1) + poise.Steering.cap(vector, level=2.0, layer=1)
    conditional = poise.SteeringExpression.parse("g=1 if prompt g@1>2.5").steering({"g": vector})
    trait = poise.load_trait("evil")
    assert [repr(value) for value in (model, steering, conditional, trait, poise.collect_contrast(trait, model))] == [
        "Model('tiny-llama', LlamaForCausalLM, L=4, d=32, float32 on cpu)",
        "Steering(terms=(Term('grumpy', value=1.5, layers=(1,)), "
        "Term('grumpy', value=2.0, layers=(1,), operation='cap')), orthogonal=False)",
        "Steering(terms=(Term('grumpy', value=1.0, layers=(1,), when=Condition(prompt grumpy@1>2.5)),), "
        "orthogonal=False)",
        "Trait('evil', 80 pairs)",
        "ContrastSet('evil', exemplars, 22 pairs)",
    ]
    assert str(model) == repr(model)


@pytest.mark.parametrize(
    ("room", "name", "public"),
    [
        ("extract", "extract", "extract_vector"),
        ("validate", "validate", "validate_vector"),
        ("train", "train", "fine_tune"),
        ("shift", "shift", "measure_shift"),
        ("shift", "gate", "check_limits"),
    ],
)
def test_a_verb_is_also_found_in_its_room(room: str, name: str, public: str) -> None:
    import importlib

    assert getattr(importlib.import_module(f"poise.{room}"), name) is PUBLIC[public]


def test_settings_given_by_name_are_checked_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="lerning_rate") as caught:
        poise.fine_tune(model="m", data=["d"], out=str(tmp_path), lerning_rate=1, epochs=-1)
    assert "epochs" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(InvalidArgument, match="epochs"):
        poise.fine_tune(poise.TrainConfig(model="m", data=("d",), out=str(tmp_path)), epochs=2)
