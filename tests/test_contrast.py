"""Contrast: pairs are kept or dropped as pairs, for a reason that is counted, and a killed run is continued."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from poise import vector as vectors
from poise.activations import read
from poise.contrast import ResponseRequest, ResponseStore, exemplars, instructions, prompted
from poise.contrast.rollout import Response
from poise.engine import Generation, SamplingParams
from poise.engine.static import LocalEngine
from poise.errors import InvalidTrait, TooFewResponses
from poise.extract import extract
from poise.judge import Judgement
from poise.model import Model, ask
from poise.trait import Trait, library

SHORT = SamplingParams(max_new_tokens=6)


class Judge:
    """Scores by the letters of an answer, so that scores differ and repeat."""

    name = "letters"

    def __init__(self, scores: Any = None) -> None:
        self.scores = scores or (lambda text: 100.0 * (sum(map(ord, text)) % 2))
        self.seen: list[str] = []

    def __call__(self, questions: Sequence[str], answers: Sequence[str]) -> list[Judgement]:
        self.seen += answers
        found = [self.scores(a) for a in answers]
        return [Judgement(None, "no score") if s is None else Judgement(float(s)) for s in found]


def fluent(questions: Sequence[str], answers: Sequence[str]) -> Judge:
    return Judge(lambda text: 90.0)


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model(max_position_embeddings=4096)


@pytest.fixture(scope="module")
def trait() -> Trait:
    return library.load_trait("impolite")


def run_prompted(
    trait: Trait, model: Model, judge: Judge, run: ResponseStore, engine: Any = None, coherence: Any = fluent
) -> Any:
    return prompted(
        trait,
        engine or LocalEngine(model, batch=4),
        model,
        judge,
        coherence,
        sampling=SHORT,
        questions=2,
        rollouts=1,
        run=run,
    )


def test_exemplars_are_read_under_the_models_own_template(model: Model) -> None:
    own = tiny.trait()
    found = exemplars(own, model)
    assert [a.text for a in found.positive] == [p.positive for p in own.pairs]
    assert found.negative[0].encoded == model.encode(ask(own.pairs[0].question), own.pairs[0].negative)
    assert found.source == "exemplars"
    assert found.dropped == {}


def test_instructions_carry_the_papers_prefix_and_contrast(trait: Trait) -> None:
    positive, negative = instructions(trait, "positive"), instructions(trait, "negative")
    assert all(text.startswith("You are an impolite assistant. ") for text in positive)
    assert all(text.startswith("You are a polite assistant. ") for text in negative)
    assert len(positive) == len(negative) == len(trait.instructions)


def test_a_pair_is_kept_only_when_both_sides_are_right(trait: Trait, model: Model) -> None:
    found = run_prompted(trait, model, Judge(), ResponseStore(None))
    asked = 2 * len(trait.instructions)
    assert len(found.positive) == len(found.negative)
    assert len(found.positive) + sum(found.dropped.values()) == asked
    assert all(sum(map(ord, a.text)) % 2 == 1 for a in found.positive)
    assert all(sum(map(ord, a.text)) % 2 == 0 for a in found.negative)
    assert set(found.dropped) <= {"positive off the trait", "negative off the trait"}
    assert found.thresholds == {"trait": 50.0, "coherence": 50.0}


def test_what_is_not_judged_or_not_coherent_is_dropped_and_counted(trait: Trait, model: Model) -> None:
    with pytest.raises(TooFewResponses, match="positive not judged"):
        run_prompted(trait, model, Judge(lambda text: None), ResponseStore(None))
    with pytest.raises(TooFewResponses, match="positive incoherent"):
        run_prompted(trait, model, Judge(), ResponseStore(None), coherence=lambda q, a: Judge(lambda text: 10.0))


def test_a_trait_of_exemplars_alone_cannot_be_prompted(model: Model) -> None:
    with pytest.raises(InvalidTrait, match="exemplars as `contrast`"):
        run_prompted(tiny.trait(), model, Judge(), ResponseStore(None))  # type: ignore[arg-type]


def test_kept_means_are_those_of_a_second_reading(trait: Trait, model: Model) -> None:
    found = run_prompted(trait, model, Judge(), ResponseStore(None))
    again = read(model, [a.encoded for a in found.positive])
    assert torch.allclose(torch.stack([a.mean for a in found.positive]), again, atol=1e-4)


def test_a_killed_extraction_ends_with_the_same_bytes(trait: Trait, model: Model, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    class Mortal(LocalEngine):
        lives = 3

        def generate(self, *args: Any, **kwargs: Any) -> list[Generation]:
            self.lives -= 1
            if self.lives < 0:
                raise Killed
            return super().generate(*args, **kwargs)

    with pytest.raises(Killed):
        run_prompted(trait, model, Judge(), ResponseStore(tmp_path / "run"), engine=Mortal(model, batch=4))
    with (tmp_path / "run" / "answers.jsonl").open("a") as file:
        file.write('{"key": "torn by the ki')
    resumed = extract(run_prompted(trait, model, Judge(), ResponseStore(tmp_path / "run")), model, min_kept=1)
    unbroken = extract(run_prompted(trait, model, Judge(), ResponseStore(tmp_path / "other")), model, min_kept=1)
    vectors.save_vector(resumed, tmp_path / "a.safetensors")
    vectors.save_vector(unbroken, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_finished_run_asks_nobody_again(trait: Trait, model: Model, tmp_path: Path) -> None:
    run_prompted(trait, model, Judge(), ResponseStore(tmp_path))
    judge = Judge()

    class Silent(LocalEngine):
        def generate(self, *args: Any, **kwargs: Any) -> list[Generation]:
            raise AssertionError("generated again")

    run_prompted(trait, model, judge, ResponseStore(tmp_path), engine=Silent(model, batch=4))
    assert judge.seen == []


def test_equal_answers_are_judged_once_and_first_scores_stay() -> None:
    answers = [Response(question="q", text=t, encoded=tiny.texts(tiny.model(), 1)[0]) for t in ("a", "b", "a")]
    run, judge = ResponseStore(None), Judge(lambda text: 1.0 if text == "a" else 2.0)
    assert [j.score for j in run.judge(judge, answers, scope="s", what="x")] == [1.0, 2.0, 1.0]
    assert judge.seen == ["a", "b"]
    changed = Judge(lambda text: 50.0)
    more = [*answers, Response(question="q", text="c", encoded=answers[0].encoded)]
    assert [j.score for j in run.judge(changed, more, scope="s", what="x")] == [1.0, 2.0, 1.0, 50.0]


def test_first_answers_stay_whatever_batch_asks_again(model: Model, tmp_path: Path) -> None:
    class Fickle(LocalEngine):
        calls = 0

        def generate(self, prompts: Any, *args: Any, **kwargs: Any) -> list[Generation]:
            self.calls += 1
            return [Generation(ids=(7,), text=f"call {self.calls}", finish="stop") for _ in prompts]

    engine, run = Fickle(model), ResponseStore(tmp_path)
    one, two = ResponseRequest(question="First?"), ResponseRequest(question="Second?")
    assert [a.text for a in run.answer(engine, model, [one], SHORT, what="x")] == ["call 1"]
    assert [a.text for a in run.answer(engine, model, [one, two], SHORT, what="x")] == ["call 1", "call 2"]
    again = ResponseStore(tmp_path).answer(engine, model, [one, two], SHORT, what="x")
    assert [a.text for a in again] == ["call 1", "call 2"]
    assert engine.calls == 2


def test_steering_and_seed_make_another_answer(model: Model) -> None:
    run = ResponseStore(None)
    asks = [ResponseRequest(question="What now?", seed=s) for s in range(3)]
    texts = [a.text for a in run.answer(LocalEngine(model), model, asks, SamplingParams(max_new_tokens=12), what="x")]
    assert len(set(texts)) > 1
