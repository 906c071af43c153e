"""Two vectors at once: what each trait loses is measured, by question, against what it gains alone."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from poise.contrast import ResponseStore
from poise.engine import Generation, SamplingParams
from poise.errors import InvalidArgument
from poise.judge import Judgement
from poise.model import Encoded, Model
from poise.model.batching import plan_batches
from poise.steer import Steering
from poise.trait import library
from poise.validate import ValidationRun, ValidationSettings
from poise.validate.certificate import Certificate, CombinedSteering, JudgeFacts
from poise.validate.combined import DEFAULT_DOSE, SecondVector, combined_steering
from poise.validate.dose_curve import certify
from poise.vector import PersonaVector

LAYER, COSINE = 1, 0.6


@dataclasses.dataclass
class Worlds:
    """An engine in which each trait's score is 30 and how far the push goes along that trait's own direction."""

    traits: dict[str, torch.Tensor]  # unit directions

    def plan(self, texts: Sequence[Encoded], sampling: SamplingParams) -> list[list[int]]:
        return plan_batches([len(t.ids) for t in texts], budget=100_000, most=16)

    def generate(self, texts: Sequence[Encoded], sampling: SamplingParams, **options: Any) -> list[Generation]:
        return [self._say(steered) for steered in options["steering"]]

    def _say(self, steered: Steering | None) -> Generation:
        push = torch.zeros(tiny.D)
        for by_layer in steered.directions() if steered else ():
            push += sum(by_layer.values())
        scores = {name: 30 + float(push @ unit) for name, unit in self.traits.items()}
        said = " ".join(f"{name} {min(100.0, max(0.0, score)):.4f}" for name, score in scores.items())
        return Generation(ids=(5,), text=f"{said} coherence {100 - float(push.norm()):.4f}", finish="stop")


@dataclasses.dataclass(frozen=True)
class Reads:
    name: str

    def __call__(self, questions: Sequence[str], answers: Sequence[str]) -> list[Judgement]:
        found = [re.search(rf"\b{self.name} (\S+)", a) for a in answers]
        return [Judgement(float(m[1])) if m else Judgement(None, "said nothing") for m in found]


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model()


def a_vector(model: Model, name: str, direction: torch.Tensor, certificate: dict[str, Any] | None = None) -> Any:
    """Ten long in one direction at every layer; the unit of a dose is ten too."""
    trait = library.load_trait(name)
    header = tiny.vector(model, trait=trait, trait_hash=trait.hash, certificate=certificate).header
    return PersonaVector(10 * direction.repeat(model.layers, 1), torch.full((model.layers,), 10.0), header)


def two_directions() -> tuple[torch.Tensor, torch.Tensor]:
    a, b = torch.linalg.qr(torch.randn((tiny.D, 2), generator=torch.Generator().manual_seed(3)))[0].T
    return a, COSINE * a + (1 - COSINE**2) ** 0.5 * b


@pytest.fixture(scope="module")
def first(model: Model) -> PersonaVector:
    return a_vector(model, "impolite", two_directions()[0])


def a_run(model: Model, run: ResponseStore | None = None) -> ValidationRun:
    a, b = two_directions()
    return ValidationRun(
        engine=Worlds({"impolite": a, "evil": b}),
        model=model,
        judge=Reads("impolite"),
        scope="impolite",
        coherence=lambda questions, answers: Reads("coherence"),
        sampling=SamplingParams(max_new_tokens=4),
        rollouts=2,
        seed=0,
        store=run or ResponseStore(None),
    )


@pytest.fixture(scope="module")
def certificate(model: Model, first: PersonaVector) -> Certificate:
    usable = JudgeFacts(name="fake", auc=None, held_out_auc=None, usable=True, coherence="fake")
    questions = library.load_trait("impolite").questions.evaluation[:12]
    found = certify(first, a_run(model), questions, usable, settings=ValidationSettings(layers=1))
    return found.model_copy(update={"layer": LAYER, "dose": 0.4})


def of_evil(model: Model, **certificate: Any) -> SecondVector:
    facts = {"layer": LAYER, "dose": 0.5, "verdict": "induced"} | certificate
    return SecondVector(a_vector(model, "evil", two_directions()[1], facts), Reads("evil"))


@pytest.fixture(scope="module")
def found(model: Model, first: PersonaVector, certificate: Certificate) -> CombinedSteering:
    return combined_steering(first, certificate, of_evil(model), a_run(model))


def values(found: CombinedSteering, name: str) -> list[float | None]:
    row = next(c for c in found.conditions if c.name == name)
    return [f.value if f else None for f in (row.first, row.second, row.first_lost, row.second_lost)]


class TestTwoVectors:
    """α·v is 4 long for the first and 5 long for the second, so that everything follows from their cosine."""

    def test_alone_rise_by_their_own_push_and_by_its_share_along_the_other(self, found: CombinedSteering) -> None:
        assert values(found, "first alone") == pytest.approx([4, 4 * COSINE, None, None], abs=2e-3)
        assert values(found, "second alone") == pytest.approx([5 * COSINE, 5, None, None], abs=2e-3)

    def test_in_a_plain_sum_carry_each_other(self, found: CombinedSteering) -> None:
        rises = [4 + 5 * COSINE, 5 + 4 * COSINE]
        assert values(found, "plain sum") == pytest.approx([*rises, -5 * COSINE, -4 * COSINE], abs=2e-3)

    def test_made_orthogonal_leave_the_first_as_it_was_and_shorten_the_second(self, found: CombinedSteering) -> None:
        second = 4 * COSINE + 5 * (1 - COSINE**2)
        assert values(found, "orthogonal") == pytest.approx([4, second, 0, 5 - second], abs=2e-3)

    def test_come_with_coherence_layers_doses_and_cosine(self, found: CombinedSteering) -> None:
        sums = {c.name: c.coherence.value for c in found.conditions}
        both = (4**2 + 5**2 + 2 * 4 * 5 * COSINE) ** 0.5
        assert sums["plain sum"] == pytest.approx(100 - both, abs=2e-3)
        assert sums["orthogonal"] == pytest.approx(100 - (4**2 + 25 * (1 - COSINE**2)) ** 0.5, abs=2e-3)
        assert found.cosine == pytest.approx(COSINE, abs=1e-4)
        assert (found.layer, found.dose, found.other_layer, found.other_dose) == (LAYER, 0.4, LAYER, 0.5)
        assert (found.other, found.other_certified, found.notes) == ("evil", True, ())

    def test_are_asked_what_chose_neither_and_made_neither(
        self, found: CombinedSteering, certificate: Certificate
    ) -> None:
        own, others = (library.load_trait(name) for name in ("impolite", "evil"))
        assert len(found.questions) == len(certificate.questions) == 6
        assert not set(found.questions) & {
            *certificate.selected_on,
            *own.questions.extraction,
            *others.questions.extraction,
        }
        assert set(found.questions) & set(own.questions.evaluation)
        assert set(found.questions) & set(others.questions.evaluation)

    def test_lean_on_the_seconds_own_reporting_half(
        self, model: Model, first: PersonaVector, certificate: Certificate
    ) -> None:
        evaluation = library.load_trait("evil").questions.evaluation
        second = of_evil(model, asked=evaluation[1::2], selected_on=evaluation[0::2])
        asked = combined_steering(first, certificate, second, a_run(model)).questions
        assert not set(asked) & set(evaluation[0::2])
        assert set(asked) & set(evaluation[1::2])

    def test_without_a_fresh_question_are_refused(
        self, model: Model, first: PersonaVector, certificate: Certificate
    ) -> None:
        second = of_evil(model, asked=list(certificate.questions), selected_on=list(certificate.questions))
        with pytest.raises(InvalidArgument, match="no question"):
            combined_steering(first, certificate, second, a_run(model))

    def test_at_two_layers_cannot_be_made_orthogonal_and_say_so(
        self, model: Model, first: PersonaVector, certificate: Certificate
    ) -> None:
        found = combined_steering(first, certificate, of_evil(model, layer=LAYER + 1), a_run(model))
        assert (found.layer, found.other_layer) == (LAYER, LAYER + 1)
        assert [c.name for c in found.conditions] == ["first alone", "second alone", "plain sum"]
        assert "layers 1 and 2" in found.notes[0]

    def test_of_which_one_is_not_certified_say_so(
        self, model: Model, first: PersonaVector, certificate: Certificate
    ) -> None:
        bare = SecondVector(a_vector(model, "evil", two_directions()[1]), Reads("evil"), "it was tossed from a coin")
        found = combined_steering(first, certificate, bare, a_run(model))
        assert (found.other_dose, found.other_certified) == (DEFAULT_DOSE, False)
        assert found.other_layer == bare.vector.at("steer").layer
        assert "has no certificate" in found.notes[0]
        assert found.notes[1] == "it was tossed from a coin, so no score of evil counts."
        failed = combined_steering(first, certificate, of_evil(model, verdict="not-induced"), a_run(model))
        assert "not induced" in failed.notes[0]

    def test_are_kept_as_they_come(
        self, model: Model, first: PersonaVector, certificate: Certificate, found: CombinedSteering, tmp_path: Path
    ) -> None:
        assert combined_steering(first, certificate, of_evil(model), a_run(model, ResponseStore(tmp_path))) == found
        bench = dataclasses.replace(a_run(model, ResponseStore(tmp_path)), engine=Silent())
        assert combined_steering(first, certificate, of_evil(model), bench) == found

    def test_survive_json(self, found: CombinedSteering) -> None:
        assert CombinedSteering.model_validate_json(found.model_dump_json()) == found


class Silent(Worlds):
    def __init__(self) -> None:
        super().__init__({})

    def generate(self, texts: Sequence[Encoded], sampling: SamplingParams, **options: Any) -> list[Generation]:
        raise AssertionError("asked again")
