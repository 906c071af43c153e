"""Wrong input to the public API: an error of Poise's tree, in one sentence that says what to do."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

import poise
from poise.errors import InvalidArgument, InvalidSettings, InvalidSteering, InvalidTrait, UserError

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
