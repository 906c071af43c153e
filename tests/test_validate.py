"""A verdict is earned: the trait rises, beats chance directions and leaves the text whole, by a judge that can tell."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from poise import vector as vectors
from poise.contrast import ResponseStore
from poise.engine import Generation, Probe, SamplingParams
from poise.errors import InvalidArgument, OutputExists
from poise.judge import Judgement
from poise.model import Encoded, Model
from poise.model.batching import plan_batches
from poise.progress import remarks_by
from poise.statistics.estimates import Estimate
from poise.steer import Steering
from poise.validate import Certificate, ValidationRun, ValidationSettings, dose_curve
from poise.validate.certificate import JudgeFacts
from poise.validate.conditions import nanmean
from poise.validate.cost import time_in_words
from poise.validate.verdict import usable_doses
from poise.vector import PersonaVector
from poise.workflows import GenerationBudget, validate_vector

QUESTIONS = [f"What about number {i}?" for i in range(20)]
USABLE = JudgeFacts(name="fake", auc=None, held_out_auc=None, usable=True, coherence="fake")
World = Callable[[float, bool, float], tuple[float | None, float | None]]


@dataclasses.dataclass
class Puppet:
    """An engine whose answers say their own scores: what the world makes of (dose, own direction?, noise)."""

    vector: PersonaVector
    world: World

    def plan(self, prompts: Sequence[Encoded], sampling: SamplingParams) -> list[list[int]]:
        return plan_batches([len(p.ids) for p in prompts], budget=10_000, most=16)

    def generate(
        self,
        prompts: Sequence[Encoded],
        sampling: SamplingParams,
        *,
        seeds: Sequence[int] | None = None,
        steering: Steering | Sequence[Steering | None] | None = None,
        probes: Sequence[Probe] | Sequence[Sequence[Probe]] = (),
        keep_means: bool = False,
    ) -> list[Generation]:
        assert seeds is not None
        assert isinstance(steering, list)
        return [self._say(seed, steered) for seed, steered in zip(seeds, steering, strict=True)]

    def _say(self, seed: int, steered: Steering | None) -> Generation:
        noise = float(np.random.default_rng(seed).normal())
        dose, own = 0.0, True
        if steered:
            term = steered.terms[0]
            assert isinstance(term.layers, tuple)
            own = torch.equal(term.vector.directions, self.vector.directions)
            dose = term.vector.dose(term.value, term.layers[0])
        trait, coherence = self.world(dose, own, noise)
        text = f"trait {trait} coherence {coherence} own {own} dose {dose:.4f} noise {noise:.6f}"
        return Generation(ids=(5,), text=text, finish="stop")


def reads(word: str) -> Any:
    class Reader:
        name = word

        def __call__(self, questions: Sequence[str], answers: Sequence[str]) -> list[Judgement]:
            found = [re.search(rf"{word} (\S+)", a) for a in answers]
            values = [None if m is None or m[1] == "None" else float(m[1]) for m in found]
            return [Judgement(v) if v is not None else Judgement(None, "said none") for v in values]

    return Reader()


def clip(x: float) -> float:
    return min(100.0, max(0.0, x))


def good(dose: float, own: bool, noise: float) -> tuple[float | None, float | None]:
    """The trait follows the own direction alone, and text holds up to a dose of about 0.7."""
    return clip(30 + (150 * dose if own else 0) + 4 * noise), clip(95 - 60 * abs(dose) + noise)


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model()


@pytest.fixture(scope="module")
def vector(model: Model) -> PersonaVector:
    return tiny.vector(model)


def certify(
    model: Model, vector: PersonaVector, world: World, judge: JudgeFacts = USABLE, **changes: Any
) -> Certificate:
    bench = ValidationRun(
        engine=Puppet(vector, world),
        model=model,
        judge=reads("trait"),
        scope="test",
        coherence=lambda questions, answers: reads("coherence"),
        sampling=SamplingParams(max_new_tokens=4),
        rollouts=2,
        seed=0,
        store=changes.pop("run", ResponseStore(None)),
    )
    return dose_curve.certify(
        vector,
        bench,
        changes.pop("questions", QUESTIONS),
        judge,
        settings=ValidationSettings(**{"layers": 2, "random_searches": 0} | changes),
    )


def test_a_vector_that_moves_the_trait_alone_is_induced(model: Model, vector: PersonaVector) -> None:
    found = certify(model, vector, good, random_searches=39)
    assert found.verdict == "induced"
    assert found.monotone.low is not None
    assert found.monotone.low > 0
    assert found.random.margin.low is not None
    assert found.random.margin.low > 0
    assert found.rise.value == pytest.approx(150 * found.dose, abs=8)
    assert found.random.rise.value == pytest.approx(0, abs=4)
    assert found.spread.wrong_way == 0


class TestRandomDirectionsThatChoose:
    def test_are_thirty_nine_and_choose_layer_and_dose_as_the_vector_does(
        self, model: Model, vector: PersonaVector
    ) -> None:
        found = certify(model, vector, good, doses=(0.1, 0.3), random_searches=39)
        search = found.random.search
        assert search is not None
        assert (len(search.rises), search.as_high, search.p) == (39, 0, 0.025)
        assert set(search.layers) <= set(ValidationSettings(layers=2).candidates(vector.layers))
        assert set(search.doses) <= {0.1, 0.2, 0.3, 0.35}
        assert search.highest is not None
        assert found.rise.value is not None
        assert search.highest < found.rise.value
        assert any("beats 39 random directions that chose" in reason for reason in found.reasons)

    def test_that_rise_as_far_elsewhere_speak_against_the_vector(self, model: Model, vector: PersonaVector) -> None:
        def lucky(dose: float, own: bool, noise: float) -> tuple[float | None, float | None]:
            """At a larger dose than the vector stands, any direction rises farther."""
            if own:
                return clip(30 + 150 * dose + 4 * noise), 95.0 if dose < 0.21 else 20.0
            return clip(30 + (300 * (dose - 0.21) if dose > 0.21 else 0) + 4 * noise), 95.0

        found = certify(model, vector, lucky, doses=(0.1, 0.45), random_searches=39)
        assert found.random.margin.above(0), "where the vector steers they do nothing"
        assert found.verdict == "not-induced"
        search = found.random.search
        assert search is not None
        assert len(search.rises) == 13, "the first round decides"
        assert search.as_high == 13
        assert found.reasons == (
            "the vector does not beat random directions that chose layer and dose as it did: 13 of 13 rose as far "
            "(p = 1.00)",
        )

    def test_whose_text_breaks_do_not_count(self, model: Model, vector: PersonaVector) -> None:
        def broken(dose: float, own: bool, noise: float) -> tuple[float | None, float | None]:
            if own or not dose:
                return clip(30 + 150 * dose + 4 * noise), 95.0 if dose < 0.21 else 20.0
            return 100.0 if dose > 0.3 else 30.0, 20 + 10 * dose

        found = certify(model, vector, broken, doses=(), random_searches=5)
        assert found.random.search is not None
        assert set(found.random.search.doses) == {0.35}
        assert (found.random.search.as_high, found.random.search.highest) == (0, None)
        assert found.random.search.rises == pytest.approx([70] * 5, abs=5)

    @pytest.mark.parametrize(("draws", "why"), [(0, "this is a first look"), (12, "are too few to tell (p = 0.08)")])
    def test_of_which_there_are_too_few_give_no_verdict(
        self, model: Model, vector: PersonaVector, draws: int, why: str
    ) -> None:
        found = certify(model, vector, good, random_searches=draws)
        assert found.verdict == "indicative"
        assert why in found.reasons[0]

    def test_pass_as_a_trait_in_one_case_of_forty_at_most(self) -> None:
        """Whatever the law: a direction that is one of them has the highest rise of forty in one case of forty."""
        rng = np.random.default_rng(0)
        for rises in (rng.normal(0, 6, (4000, 40)), rng.exponential(6, (4000, 40)) ** 2):
            share = (rises[:, 0] > rises[:, 1:].max(1)).mean()
            assert share == pytest.approx(0.025, abs=0.008)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(3, "less than a minute"), (240, "about 4 minutes"), (5000, "about 83 minutes"), (9e4, "about 25 hours")],
)
def test_time_is_said_in_the_unit_that_people_wait_in(seconds: float, words: str) -> None:
    assert time_in_words(seconds) == words


class TestTooThinForAVerdict:
    def test_are_fewer_than_ten_questions(self, model: Model, vector: PersonaVector) -> None:
        found = certify(model, vector, good, questions=QUESTIONS[:18], random_searches=39)
        assert found.verdict == "indicative"
        assert found.reasons == (
            "a verdict needs 10 questions to report on, and there are 9; ask 20, of which every other one reports",
        )

    def test_is_coherence_whose_interval_includes_the_floor(self, model: Model, vector: PersonaVector) -> None:
        def frail(dose: float, own: bool, noise: float) -> tuple[float | None, float | None]:
            return good(dose, own, noise)[0], 95.0 if dose == 0 or noise < 0.6 else 5.0

        found = certify(model, vector, frail, doses=(), random_searches=39)
        chosen = next(p.coherence for p in found.curve if p.dose == found.dose)
        assert chosen.value is not None
        assert chosen.low is not None
        assert chosen.low < 50 < chosen.value
        assert found.verdict == "indicative"
        assert "the text may break" in found.reasons[0]

    def test_says_what_it_costs_before_it_begins(self, model: Model, vector: PersonaVector) -> None:
        said: list[str] = []
        calls = 0

        def counted(dose: float, own: bool, noise: float) -> tuple[float | None, float | None]:
            nonlocal calls
            calls += 1
            assert said or not dose, "steered answers come after the line"
            return good(dose, own, noise)

        with remarks_by(said.append):
            certify(model, vector, counted, random_searches=39)
        alone, search = (int(n.replace(",", "")) for n in re.findall(r"([\d,]+) answers, ", said[0]))
        assert "if nothing speaks against the vector, 39 random directions" in said[0]
        assert "less than a minute" in said[0]
        assert calls <= alone + search + 4 * len(QUESTIONS)
        assert calls >= alone + search - 39 * 10 * 2, "doses of the sweep that the curve has too are answered once"


def test_a_direction_that_does_nothing_is_not(model: Model, vector: PersonaVector) -> None:
    found = certify(model, vector, lambda dose, own, noise: (clip(30 + 4 * noise), 95.0))
    assert found.verdict == "not-induced"
    assert any("does not rise" in r for r in found.reasons) or any("random directions" in r for r in found.reasons)


def test_what_any_push_does_is_no_trait(model: Model, vector: PersonaVector) -> None:
    found = certify(model, vector, lambda dose, own, noise: (clip(30 + 100 * abs(dose) + 4 * noise), 95.0))
    assert found.verdict == "not-induced"
    assert any("random directions" in reason for reason in found.reasons)
    assert found.random.search is None, "what fails anyway is not searched for"


def test_broken_text_is_no_trait_however_high_it_scores(model: Model, vector: PersonaVector) -> None:
    found = certify(model, vector, lambda d, own, noise: (good(d, own, noise)[0], 20.0 if d > 0 else 95.0))
    assert found.verdict == "not-induced"
    assert any("text breaks" in reason for reason in found.reasons)


def test_a_judge_that_cannot_tell_certifies_nothing(model: Model, vector: PersonaVector) -> None:
    blind = JudgeFacts(
        name="blind",
        auc=Estimate.of(0.55, 0.4, 0.7, 20),
        held_out_auc=None,
        usable=False,
        why_unusable="it was tossed from a coin",
        coherence="fake",
    )
    found = certify(model, vector, good, judge=blind)
    assert (found.verdict, found.reasons) == ("not-induced", ("it was tossed from a coin, so no score of it counts",))
    silent = certify(model, vector, good, judge=blind.model_copy(update={"why_unusable": ""}))
    assert silent.reasons == ("the judge blind is unusable, so no score of it counts",)


def test_a_judge_that_learnt_from_too_few_pairs_is_said_to_have_just_that(
    model: Model, vector: PersonaVector, tmp_path: Path
) -> None:
    vectors.save_vector(vector, tmp_path / "v.safetensors")  # its trait has eight pairs
    budget = GenerationBudget(questions=4, rollouts=1, max_new_tokens=4)
    narrow = ValidationSettings(layers=1, sweep_doses=(0.2,), doses=(), curve=(-1.0, 1.0), random_draws=1)
    done = validate_vector(tmp_path / "v.safetensors", model, tmp_path / "out", budget=budget, settings=narrow)
    why = "the exemplar judge learnt from 8 pairs, and fewer than 12 prove nothing"
    assert done.certificate.judge.why_unusable == why
    assert f"{why}, so no score of it counts" in done.certificate.reasons
    assert not any("cannot tell" in reason for reason in done.certificate.reasons)


def test_a_certificate_is_not_replaced_by_one_that_rests_on_less(
    model: Model, vector: PersonaVector, tmp_path: Path
) -> None:
    path = tmp_path / "v.safetensors"
    vectors.save_vector(vector, path)
    narrow = ValidationSettings(layers=1, sweep_doses=(0.2,), doses=(), curve=(-1.0, 1.0), random_draws=1)
    budgets = [GenerationBudget(questions=4, rollouts=n, max_new_tokens=4) for n in (2, 1)]
    validate_vector(path, model, tmp_path / "out", budget=budgets[0], settings=narrow)
    before = path.read_bytes()
    with pytest.raises(OutputExists, match=r"by 4 questions × 2 answers, which 4 answers would replace; .*copy"):
        validate_vector(path, model, tmp_path / "less", budget=budgets[1], settings=narrow)
    assert path.read_bytes() == before
    validate_vector(path, model, tmp_path / "out", budget=budgets[0], settings=narrow)  # as much is taken
    done = validate_vector(path, model, tmp_path / "less", budget=budgets[1], settings=narrow, force=True)
    assert done.vector.header.certificate
    assert done.vector.header.certificate["rollouts"] == 1


def test_facts_of_a_judge_from_before_reasons_were_kept_still_load() -> None:
    old = {"name": "fake", "auc": None, "held_out_auc": None, "usable": False, "coherence": "fake"}
    assert JudgeFacts.model_validate(old).why_unusable == ""


def test_layer_and_dose_are_chosen_on_questions_that_are_not_reported_on(model: Model, vector: PersonaVector) -> None:
    found = certify(model, vector, good)
    assert set(found.selected_on).isdisjoint(found.questions)
    assert set(found.selected_on) | set(found.questions) == set(QUESTIONS)
    assert found.rise.n == len(found.questions) == 10


def test_the_chosen_dose_balances_the_trait_against_the_text(model: Model, vector: PersonaVector) -> None:
    found = certify(model, vector, good, doses=(0.1, 0.3, 0.45), sweep_doses=(0.2,))
    assert found.dose == 0.45
    fragile = certify(
        model,
        vector,
        lambda d, own, n: (good(d, own, n)[0], clip(95 - 150 * abs(d) + n)),
        doses=(0.1, 0.3, 0.45),
        sweep_doses=(0.2,),
    )
    assert fragile.dose < 0.3


def test_missing_scores_are_counted_and_never_zero(model: Model, vector: PersonaVector) -> None:
    found = certify(model, vector, lambda d, own, n: (None if n > 0.8 else good(d, own, n)[0], 95.0))
    plain = next(p for p in found.curve if p.dose == 0)
    assert plain.missing > 0
    assert plain.trait.value == pytest.approx(30, abs=6)
    nothing = certify(model, vector, lambda d, own, n: (None, 95.0))
    assert nothing.verdict == "not-induced"
    assert nothing.rise.value is None


def test_the_curve_goes_from_minus_to_plus_with_zero_in_it(model: Model, vector: PersonaVector) -> None:
    doses = [p.dose for p in certify(model, vector, good).curve]
    assert doses == sorted(doses)
    assert doses[0] < 0 < doses[-1]
    assert 0 in doses


def test_random_directions_of_the_vectors_norm_are_three_where_it_steers(model: Model, vector: PersonaVector) -> None:
    from poise.validate.random_control import random_like

    steered = random_like(vector, 1, 0.3, seed=4)
    drawn = steered.terms[0].vector
    assert torch.allclose(drawn.norms, vector.norms)
    assert abs(float(torch.cosine_similarity(drawn.directions[1], vector.directions[1], dim=0))) < 0.9
    assert not torch.equal(drawn.directions, random_like(vector, 1, 0.3, seed=5).terms[0].vector.directions)
    assert certify(model, vector, good).random.draws == 3


def test_too_few_questions_are_refused(model: Model, vector: PersonaVector) -> None:
    with pytest.raises(InvalidArgument, match="at least 4"):
        certify(model, vector, good, questions=QUESTIONS[:3])


def test_a_resumed_validation_is_the_unbroken_one(model: Model, vector: PersonaVector, tmp_path: Any) -> None:
    class Killed(Exception):
        pass

    calls = 0

    def world(dose: float, own: bool, noise: float) -> tuple[float | None, float | None]:
        nonlocal calls
        calls += 1
        if calls == 250:
            raise Killed
        return good(dose, own, noise)

    with pytest.raises(Killed):
        certify(model, vector, world, run=ResponseStore(tmp_path), random_searches=3)
    broken = len((tmp_path / "answers.jsonl").read_text().splitlines())
    assert 0 < broken < 250
    resumed = certify(model, vector, good, run=ResponseStore(tmp_path), random_searches=3)
    assert resumed == certify(model, vector, good, random_searches=3)


def test_certificates_survive_json(model: Model, vector: PersonaVector) -> None:
    found = certify(model, vector, good)
    assert Certificate.model_validate_json(found.model_dump_json()) == found


def test_usable_doses_end_at_the_first_break(model: Model, vector: PersonaVector) -> None:
    curve = certify(model, vector, good).curve
    points = [p.model_copy(update={"coherence": p.coherence.model_copy(update={"value": 90.0})}) for p in curve]
    assert usable_doses(points, 50) == (points[0].dose, points[-1].dose)
    broken = next(p for p in points if p.dose > 0)
    points[points.index(broken)] = broken.model_copy(
        update={"coherence": broken.coherence.model_copy(update={"value": 10.0})}
    )
    assert usable_doses(points, 50) == (points[0].dose, 0.0)


def test_nanmean_leaves_out_what_is_missing() -> None:
    values = np.array([[1.0, np.nan, 3.0], [np.nan, np.nan, np.nan]])
    assert nanmean(values)[0] == 2.0
    assert np.isnan(nanmean(values)[1])
