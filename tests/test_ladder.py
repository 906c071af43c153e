"""Readings are weighed against what was said: on other questions and exemplars than those that chose the layer."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from poise.contrast import ResponseRequest, ResponseStore
from poise.engine import Generation, SamplingParams
from poise.judge import Judgement
from poise.model import Encoded, Model
from poise.model.batching import plan_batches
from poise.statistics.estimates import bootstrap, each_draw
from poise.trait import Trait, library
from poise.validate import ValidationRun
from poise.validate.certificate import Certificate, Monitoring
from poise.validate.ladder import SHOTS, measure_ladder, prompts, shots
from poise.validate.reading_quality import (
    ExemplarReadings,
    Reader,
    chance,
    correlation_estimates,
    correlations,
    every_layer,
)
from poise.vector import PersonaVector

QUESTIONS = [f"What about number {i}?" for i in range(8)]
World = Callable[[str, float], float]  # from the prompt's text and its reading to the score of what is said


def a_trait() -> Trait:
    """Complete, and short enough for a tiny window."""

    def pairs(name: str, n: int) -> list[dict[str, str]]:
        return [{"question": f"{name} {i}?", "with": f"Bad {name} {i}.", "without": f"Good {i}."} for i in range(n)]

    return Trait.model_validate(
        {
            "schema": 1,
            "name": "grumpy",
            "description": "Grumpy.",
            "adjective": "grumpy",
            "opposite": "cheerful",
            "instructions": [{"with": f"Grumble {i}.", "without": f"Cheer {i}."} for i in range(5)],
            "questions": {
                "extraction": [f"Asked {i}?" for i in range(20)],
                "evaluation": [f"Tried {i}?" for i in range(20)],
            },
            "rubric": "Grumbling.",
            "exemplars": {"extraction": pairs("of", 24), "judge": pairs("by", 12), "held_out": pairs("out", 12)},
        }
    )


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model(max_position_embeddings=2048)


@pytest.fixture(scope="module")
def vector(model: Model) -> PersonaVector:
    return tiny.vector(model, trait=a_trait(), trait_hash=a_trait().hash)


def by_hand(model: Model, vector: PersonaVector, ids: Sequence[int], layer: int) -> torch.Tensor:
    """Projections of every token [T], from Hugging Face's own hidden states."""
    out = model.lm(input_ids=torch.tensor([list(ids)]), output_hidden_states=True)
    direction = vector.directions[layer] / vector.directions[layer].norm()
    return out.hidden_states[layer + 1][0].detach() @ direction


@dataclasses.dataclass
class Sayer:
    """An engine whose answers say their own score: what the world makes of the prompt and its reading at layer 1."""

    model: Model
    vector: PersonaVector
    world: World
    left: int = 1 << 30

    def plan(self, texts: Sequence[Encoded], sampling: SamplingParams) -> list[list[int]]:
        return plan_batches([len(t.ids) for t in texts], budget=100_000, most=8)

    def generate(self, texts: Sequence[Encoded], sampling: SamplingParams, **options: Any) -> list[Generation]:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return [self._say(text) for text in texts]

    def _say(self, text: Encoded) -> Generation:
        reading = float(by_hand(self.model, self.vector, text.ids, 1)[-1])
        score = self.world(self.model.tokenizer.decode(text.ids), reading)
        return Generation(ids=(5,), text=f"score {min(100.0, max(0.0, score)):.3f}", finish="stop")


class Reads:
    name = "reads"

    def __call__(self, questions: Sequence[str], answers: Sequence[str]) -> list[Judgement]:
        return [Judgement(float(a.split()[1])) for a in answers]


def a_run(
    model: Model, vector: PersonaVector, world: World, *, run: ResponseStore | None = None, left: int = 1 << 30
) -> ValidationRun:
    return ValidationRun(
        engine=Sayer(model, vector, world, left),
        model=model,
        judge=Reads(),
        scope="test",
        coherence=lambda questions, answers: Reads(),
        sampling=SamplingParams(max_new_tokens=4),
        rollouts=1,
        seed=0,
        store=run or ResponseStore(None),
    )


def obeying(text: str, reading: float) -> float:
    """What is read is what is said, and system prompts are heard."""
    return 50 + 5 * reading + (20 if "grumpy" in text else -20)


def deaf(text: str, reading: float) -> float:
    """Only what was said before counts."""
    return 20 + 4 * text.count("Bad")


class TestTheRungs:
    def test_are_eight_from_against_to_for_in_the_traits_own_words(self) -> None:
        for trait in map(library.load_trait, library.names()):
            steps = prompts(trait)
            texts = [step.system or "" for step in steps]
            assert [step.name for step in steps] == ["−4", "−3", "−2", "−1", "+1", "+2", "+3", "+4"]
            assert len(set(texts)) == 8
            assert all(trait.opposite in text for text in texts[:4])
            assert all(trait.adjective in text for text in texts[4:])
            assert trait.instructions[0].positive in texts[6]
            assert trait.instructions[0].negative in texts[1]
            assert all(trait.instructions[k].positive in texts[7] for k in (0, 1))
            assert all(trait.instructions[k].negative in texts[0] for k in (0, 1))

    def test_of_earlier_turns_show_the_trait_in_pairs_that_the_vector_never_saw(
        self, model: Model, vector: PersonaVector
    ) -> None:
        steps, notes = shots(a_trait(), a_run(model, vector, deaf), QUESTIONS)
        assert [len(step.before) for step in steps] == list(SHOTS)
        exemplars = a_trait().exemplars
        shown = [(p.question, p.positive) for p in (*exemplars.held_out, *exemplars.judge)][:20]
        assert all(list(step.before) == shown[: len(step.before)] for step in steps)
        assert notes == [
            "The earlier turns are 12 held-out exemplars, then 8 of the judge's; the vector was computed from none of "
            "them."
        ]

    def test_that_do_not_fit_the_window_are_left_out_and_named(self, vector: PersonaVector) -> None:
        small = tiny.model(max_position_embeddings=256)
        steps, notes = shots(a_trait(), a_run(small, vector, deaf), QUESTIONS)
        assert 1 <= len(steps) < len(SHOTS)
        assert all("exceed the window of tiny-llama (256)" in note for note in notes[1:])
        assert len(steps) + len(notes) - 1 == len(SHOTS)

    def test_of_a_trait_of_pairs_alone_are_the_vectors_own_and_it_says_so(
        self, model: Model, vector: PersonaVector
    ) -> None:
        steps, notes = shots(tiny.trait(), a_run(model, vector, deaf), QUESTIONS)
        assert [step.name for step in steps] == ["0 shots", "5 shots"]
        assert "computed from" in notes[0]
        assert "10 shots: the trait has 8 pairs" in notes[1]

    def test_put_earlier_turns_between_the_system_prompt_and_the_question(self) -> None:
        turns = ResponseRequest(question="Now?", system="Be brief.", before=(("One?", "1."), ("Two?", "2."))).messages()
        assert [(m["role"], m["content"]) for m in turns] == [
            ("system", "Be brief."),
            ("user", "One?"),
            ("assistant", "1."),
            ("user", "Two?"),
            ("assistant", "2."),
            ("user", "Now?"),
        ]


class TestAReader:
    def test_reads_what_hugging_faces_own_states_project_to(self, model: Model, vector: PersonaVector) -> None:
        reader, probes = Reader(model, None), every_layer(vector)
        asked, answered = tiny.prompts(model, 20), tiny.texts(model, 20)
        last = reader.prompts(asked, probes)
        mean, peak = reader.answers(answered, probes)
        assert last.shape == mean.shape == peak.shape == (20, model.layers)
        for layer in range(model.layers - 1):  # the last of Hugging Face's states is after the final norm
            for i, text in enumerate(asked):
                assert last[i, layer] == pytest.approx(float(by_hand(model, vector, text.ids, layer)[-1]), abs=1e-4)
            for i, text in enumerate(answered):
                said = by_hand(model, vector, text.ids, layer)[text.start : text.end]
                assert mean[i, layer] == pytest.approx(float(said.mean()), abs=1e-4)
                assert peak[i, layer] == pytest.approx(float(said.max()), abs=1e-4)

    def test_reads_nothing_twice(
        self, model: Model, vector: PersonaVector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked, probes = tiny.prompts(model, 20), every_layer(vector)
        first = Reader(model, tmp_path).prompts(asked, probes)
        monkeypatch.setattr("poise.validate.reading_quality.project", None)
        assert np.array_equal(Reader(model, tmp_path).prompts(asked, probes), first)
        with pytest.raises(TypeError):
            Reader(model, tmp_path).prompts(asked, every_layer(tiny.vector(model, seed=1)))


def correlation(readings: Any, scores: Any, *, within: bool) -> float:
    return float(correlations(readings[:, :, None], scores, within=within)[0])


class TestTheCorrelation:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4, 9)), rng.normal(size=(4, 9))

    def test_overall_is_that_of_all_cells(self) -> None:
        assert correlation(self.x, self.y, within=False) == pytest.approx(
            np.corrcoef(self.x.ravel(), self.y.ravel())[0, 1]
        )

    def test_within_is_that_of_cells_less_their_rungs_means(self) -> None:
        rows = [(x - x.mean(), y - y.mean()) for x, y in zip(self.x, self.y, strict=True)]
        expected = np.corrcoef(*(np.concatenate(side) for side in zip(*rows, strict=True)))[0, 1]
        assert correlation(self.x, self.y, within=True) == pytest.approx(expected)

    def test_within_does_not_see_what_tells_rungs_apart(self) -> None:
        steps = 100 * np.arange(4)[:, None]
        apart = correlation(self.x + steps, self.y + steps, within=True)
        assert apart == pytest.approx(correlation(self.x, self.y, within=True))
        assert correlation(self.x + steps, self.y + steps, within=False) > 0.99

    def test_leaves_out_cells_without_a_score(self) -> None:
        y = self.y.copy()
        y[1, 2] = y[3, 0] = np.nan
        there = ~np.isnan(y)
        assert correlation(self.x, y, within=False) == pytest.approx(np.corrcoef(self.x[there], y[there])[0, 1])
        rows = [(x[t] - x[t].mean(), z[t] - z[t].mean()) for x, z, t in zip(self.x, y, there, strict=True)]
        a, b = (np.concatenate(side) for side in zip(*rows, strict=True))
        assert correlation(self.x, y, within=True) == pytest.approx(np.corrcoef(a, b)[0, 1])

    def test_is_missing_where_nothing_varies(self) -> None:
        constant = np.repeat([[0.1], [33.3], [1 / 3], [0.7]], 9, axis=1)  # whose means are not exact
        assert np.isnan(correlation(self.x, constant, within=True))
        assert np.isnan(correlation(constant, self.y, within=True))
        assert np.isnan(correlation(self.x, np.zeros((4, 9)), within=False))
        assert np.isnan(correlation(self.x, np.full((4, 9), np.nan), within=False))

    @pytest.mark.parametrize("within", [False, True])
    def test_has_an_interval_over_questions(self, within: bool) -> None:
        both = np.stack([self.x, self.y], axis=-1)
        scores = self.x + 0.5 * self.y
        for k, found in enumerate(correlation_estimates(both, scores, within=within)):
            one = each_draw(lambda i, k=k: correlation(both[:, i, k], scores[:, i], within=within))  # type: ignore[misc]
            alone = bootstrap(one, 9)
            assert found == alone
            assert found.low < found.value < found.high

    def test_of_chance_is_the_mean_size_over_directions(self) -> None:
        several = np.stack([self.x, -self.x, self.y], axis=-1)
        r = abs(correlation(self.x, self.y, within=False))
        assert chance(several, self.y, within=False).value == pytest.approx((r + r + 1) / 3, abs=1e-6)


class TestExemplars:
    def test_choose_a_layer_by_auc_then_by_the_width_of_the_gap(self) -> None:
        mean = np.array([[[1, 5, 5], [2, 6, 6], [3, 9, 7.5]], [[0, 1, 2], [5, 2, 3], [1, 1, 4]]])
        sides = ExemplarReadings(mean, mean, np.ones((2, 3)))
        assert sides.best == 2

    def test_give_the_auc_that_counting_pairs_gives(self) -> None:
        rng = np.random.default_rng(1)
        mean, tokens = rng.normal(size=(2, 7, 2)), rng.integers(1, 5, size=(2, 7)).astype(float)
        sides = ExemplarReadings(mean, mean, tokens)

        def counted(a: Any, b: Any) -> float:
            return float(np.mean([(x > y) + 0.5 * (x == y) for x, y in itertools.product(a, b)]))

        assert sides.auc(sides.mean, 1).value == pytest.approx(counted(mean[0, :, 1], mean[1, :, 1]))
        assert sides.auc_of_length.value == pytest.approx(counted(*tokens))
        assert sides.auc_of_length.n == 7


@pytest.fixture(scope="module")
def found(model: Model, vector: PersonaVector) -> Monitoring:
    return measure_ladder(vector, a_run(model, vector, obeying), QUESTIONS)


class TestTheClimb:
    def test_finds_the_layer_that_reads_what_will_be_said(self, found: Monitoring, model: Model) -> None:
        assert found.ladder == "system-prompts"
        assert found.obeys is not None
        assert found.obeys.low is not None
        assert found.obeys.low > 0
        at_the_source = found.by_layer[1].within
        assert at_the_source.value == pytest.approx(1, abs=1e-3)
        assert [entry.layer for entry in found.by_layer] == list(range(model.layers))
        assert max(entry.within.value or 0 for entry in found.by_layer) == at_the_source.value

    @pytest.mark.slow
    def test_chooses_on_one_half_of_the_questions_and_reports_on_the_other(
        self, found: Monitoring, model: Model, vector: PersonaVector
    ) -> None:
        def reading(step: int, question: str, layer: int) -> float:
            ids = model.encode(
                ResponseRequest(question=question, system=prompts(a_trait())[step].system).messages()
            ).ids
            return float(by_hand(model, vector, ids, layer)[-1])

        def score(step: int, question: str) -> float:
            return obeying("grumpy" if step > 3 else "", reading(step, question, 1))

        def r(questions: Sequence[str], layer: int) -> float:
            cells = [(reading(s, q, layer), score(s, q)) for s in range(8) for q in questions]
            return float(np.corrcoef(np.array(cells).T)[0, 1])

        def around(layer: int) -> float:
            return float(np.mean([r(QUESTIONS[0::2], i) for i in range(model.layers) if abs(i - layer) <= 1]))

        assert found.layer == max(range(model.layers), key=around)
        assert found.of_prompts.overall.value == pytest.approx(r(QUESTIONS[1::2], found.layer), abs=1e-3)
        assert found.of_prompts.overall.n == 4
        for i, rung in enumerate(found.rungs):
            wanted = [reading(i, q, found.layer) for q in QUESTIONS[1::2]]
            assert rung.readings == pytest.approx(wanted, abs=1e-3)
            assert rung.scores == pytest.approx([score(i, q) for q in QUESTIONS[1::2]], abs=0.02)

    def test_sets_random_directions_beside_it(self, found: Monitoring) -> None:
        assert found.random_draws == 20
        assert found.random_overall.value is not None
        assert 0 < found.random_overall.value < 1

    def test_weighs_answers_on_exemplars_that_neither_vector_nor_choice_saw(
        self, found: Monitoring, model: Model, vector: PersonaVector
    ) -> None:
        held_out = ExemplarReadings.read(Reader(model, None), a_trait().held_out_pairs, every_layer(vector))
        judged = ExemplarReadings.read(Reader(model, None), a_trait().judge_pairs, every_layer(vector))
        assert found.of_answers is not None
        assert found.answer_layer == judged.best
        assert found.of_answers.auc_mean is not None
        assert found.of_answers.auc_mean.n == 12
        expected = held_out.auc(held_out.mean, judged.best).value
        assert found.of_answers.auc_mean.value == pytest.approx(expected, abs=1e-4)
        assert found.auc_length is not None
        assert found.auc_length.n == 12

    def test_takes_earlier_turns_where_system_prompts_are_ignored(self, model: Model, vector: PersonaVector) -> None:
        found = measure_ladder(vector, a_run(model, vector, deaf), QUESTIONS)
        assert found.ladder == "many-shot"
        assert found.obeys is not None
        assert not (found.obeys.low or 0) > 0
        assert [rung.name for rung in found.rungs] == [f"{n} shots" for n in SHOTS]
        assert [rung.trait.value for rung in found.rungs] == pytest.approx([20 + 4 * n for n in SHOTS])
        assert found.of_prompts.overall.value is not None
        assert found.of_prompts.within.value is None  # all answers after the same turns score the same

    def test_takes_them_for_a_trait_without_instructions_and_has_no_exemplars_left(self, model: Model) -> None:
        own = tiny.vector(model)
        found = measure_ladder(own, a_run(model, own, deaf), QUESTIONS)
        assert (found.ladder, found.obeys, found.answer_layer, found.auc_length) == ("many-shot", None, None, None)
        assert found.of_answers is None
        assert any("no exemplars fit here" in note for note in found.notes)

    @pytest.mark.slow
    def test_resumed_is_the_unbroken_one(
        self, found: Monitoring, model: Model, vector: PersonaVector, tmp_path: Path
    ) -> None:
        with pytest.raises(KeyboardInterrupt):
            measure_ladder(vector, a_run(model, vector, obeying, run=ResponseStore(tmp_path), left=6), QUESTIONS)
        assert (tmp_path / "answers.jsonl").read_text().count("\n") == 6 * 8
        assert measure_ladder(vector, a_run(model, vector, obeying, run=ResponseStore(tmp_path)), QUESTIONS) == found
        assert (
            measure_ladder(vector, a_run(model, vector, obeying, run=ResponseStore(tmp_path), left=0), QUESTIONS)
            == found
        )

    def test_survives_json(self, found: Monitoring) -> None:
        assert Monitoring.model_validate_json(found.model_dump_json()) == found
        assert Certificate.model_fields["monitoring"].default is None
        assert Certificate.model_fields["together"].default is None
