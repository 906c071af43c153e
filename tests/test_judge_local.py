"""Judges that run a model here: a number's probability, however it is spelt in tokens, and likelihood as coherence."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

import tiny
from poise.errors import InvalidArgument
from poise.judge.coherence import LikelihoodCoherence, repetition
from poise.judge.factory import trait_judge
from poise.judge.local_model import LocalJudge, _numbers
from poise.model import Encoded, Model, ask, wrap
from poise.model.batching import pad
from poise.model.logprobs import token_logprobs
from poise.trait import library


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model(max_position_embeddings=4096)


def by_hand(model: Model, prompt: tuple[int, ...], number: str) -> float:
    """The product over a number's tokens, and of no digit after it where another number goes on from there."""
    spell = lambda text: model.tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    digits = [spell(str(d))[0] for d in range(10)]
    longer = [spell(str(n)) for n in range(101)]
    ids, p = list(prompt), 1.0
    for token in spell(number):
        p *= float(torch.softmax(model.lm(torch.tensor([ids])).logits[0, -1].float(), -1)[token])
        ids.append(token)
    if any(len(other) > len(spell(number)) and other[: len(spell(number))] == spell(number) for other in longer):
        p *= 1 - float(torch.softmax(model.lm(torch.tensor([ids])).logits[0, -1].float(), -1)[digits].sum())
    return p


@torch.inference_mode()
def test_numbers_have_the_probability_of_their_digits_and_of_not_going_on(model: Model) -> None:
    prompts = [model.encode(ask("Rate it.")), model.encode(ask("Rate this longer thing, if you please."))]
    found = _numbers(model, pad(prompts, side="left"))
    for row, number in itertools.product(range(2), ("0", "7", "10", "42", "100")):
        assert found[row][number] == pytest.approx(by_hand(model, prompts[row].ids, number), rel=1e-3)
        assert set(found[row]) == {str(n) for n in range(101)}
    assert all(sum(row.values()) <= 1 + 1e-6 for row in found)


def test_a_random_model_gives_no_score_and_says_why(model: Model) -> None:
    judged = LocalJudge.of_trait(model, library.load_trait("impolite"))(["Q?", "R?"], ["One.", "Another answer."])
    assert all(j.score is None and j.reason for j in judged)


def test_judges_are_chosen_by_what_the_user_writes(model: Model) -> None:
    trait = library.load_trait("evil")
    assert trait_judge("model:any", trait, local=lambda name: model).name == f"model:{model.name}"
    for spec in ("nobody", "model:", "endpoint:", "exemplars:x"):
        with pytest.raises(InvalidArgument, match="use exemplars, model:NAME or endpoint:NAME"):
            trait_judge(spec, trait)
    with pytest.raises(InvalidArgument, match="no rubric"):
        trait_judge("model:any", tiny.trait())


@torch.inference_mode()
def test_likelihood_is_that_of_a_plain_forward_pass(model: Model) -> None:
    texts = tiny.texts(model, 6)
    for text, found in zip(texts, token_logprobs(model, texts), strict=True):
        logits = model.lm(torch.tensor([text.ids])).logits[0].float().log_softmax(-1)
        expected = [float(logits[i - 1, text.ids[i]]) for i in range(text.start, text.end)]
        assert found.tolist() == pytest.approx(expected, abs=1e-4)


def test_repetition_is_the_share_of_trigrams_said_before() -> None:
    assert repetition("a b c d e f") == 0
    assert repetition("no no no no no no") == pytest.approx(3 / 4)
    assert repetition("") == repetition("one two") == 0


def test_coherence_is_high_for_the_ordinary_and_falls_with_both_faults(model: Model) -> None:
    questions = [f"Question {i}?" for i in range(8)]
    ordinary = [
        f"The {w} one is good and so are the others here."
        for w in ["red", "big", "old", "new", "odd", "shy", "raw", "dry"]
    ]
    judge = LikelihoodCoherence.fit(model, questions, ordinary)
    plain = [j.score for j in judge(questions, ordinary)]
    looping = judge(["Question?"], ["go on and go on and go on and go on and go on and go on"])[0].score
    assert sum(s for s in plain if s is not None) / len(plain) > 80
    assert looping is not None
    assert looping < 30


def test_an_empty_answer_has_no_coherence(model: Model) -> None:
    judge = LikelihoodCoherence.fit(model, ["Q?"], ["An answer."])
    assert judge(["Q?"], ["  "])[0].score is None
    nobody = LikelihoodCoherence.fit(model, ["Q?"], [""])
    assert nobody(["Q?"], ["An answer."])[0].reason == "no ordinary answers to compare with"


CACHES = ("gemma2", "mistral", "rwkv", "mamba", "jamba", "recurrent_gemma", "qwen3_next", "minimax", "roberta/decoder")


@torch.inference_mode()
@pytest.mark.parametrize("kind", CACHES)
def test_any_model_that_can_be_read_can_judge(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows that slide, states that cannot be cropped, caches that do not fit, rows that padding changes."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import tiny_models

    lm = tiny.lm(kind) if kind in tiny.ARCHITECTURES else tiny_models.build(kind)
    model = wrap(lm, tiny.chatml(), name=kind)
    prompts = [model.encode(ask("Rate it.")), model.encode(ask("Rate this longer thing, if you please."))]
    numbers = _numbers(model, pad(prompts, side="left"))
    for row, number in itertools.product(range(2), ("7", "42")):
        assert numbers[row][number] == pytest.approx(by_hand(model, prompts[row].ids, number), rel=2e-3, abs=1e-12)


@torch.inference_mode()
def test_a_number_that_crosses_the_switch_of_longrope_is_read_anew() -> None:
    switch = 18
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "factor": 6.0}
    rope |= {"long_factor": [8.0, 4.0, 3.0, 2.0], "original_max_position_embeddings": switch}
    lm = tiny.lm("phi3", rope_parameters=rope, original_max_position_embeddings=switch, pad_token_id=0)
    model = wrap(lm, tiny.chatml(), name="phi3")
    prompts = [model.encode(ask(words)) for words in ("Who?", "Rate it.", "Rate this longer thing, if you can.")]
    lengths = [len(prompt.ids) for prompt in prompts]
    assert lengths[0] <= switch < lengths[2]
    crossing = Encoded(prompts[2].ids[-switch + 1 :], switch - 1, switch - 1)
    rows = [*prompts, crossing]
    numbers = _numbers(model, pad(rows, side="left"))
    for row, number in itertools.product(range(len(rows)), ("7", "42", "100")):
        assert numbers[row][number] == pytest.approx(by_hand(model, rows[row].ids, number), rel=2e-3, abs=1e-12)
