"""Rotary embeddings that a batch's longest row decides: what is read and generated is what each text gives alone."""

from __future__ import annotations

import pytest
import torch

import tiny
from poise.activations import project, read, read_layers, read_tokens, reference_norm
from poise.engine import GenerationRequest, SamplingParams
from poise.engine.continuous import ContinuousEngine
from poise.engine.static import LocalEngine
from poise.errors import InvalidArgument
from poise.model import Encoded, Model, ask
from poise.model.diagnosis import diagnose
from poise.model.logprobs import token_logprobs
from poise.model.rotary import RotarySwitch

SWITCH = 40
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [8.0, 4.0, 3.0, 2.0],
    "original_max_position_embeddings": SWITCH,
    "factor": 6.0,
}


@pytest.fixture(scope="module")
def phi() -> Model:
    return tiny.model("phi3", rope_parameters=LONGROPE, original_max_position_embeddings=SWITCH, pad_token_id=0)


@pytest.fixture(scope="module")
def dynamic() -> Model:
    parameters = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    return tiny.model("llama", rope_parameters=parameters, max_position_embeddings=SWITCH)


def both(model: Model) -> list[Encoded]:
    short = model.encode(ask("Who are you?"), "A fox.")
    long = model.encode(ask("Who are you? " * 12), "A fox, and so on. " * 6)
    assert len(short.ids) < SWITCH < len(long.ids)
    return [short, long]


def alone(model: Model, text: Encoded) -> torch.Tensor:
    """``hidden_states`` of the text by itself, float32 [L - 1, T, d]."""
    with torch.inference_mode():
        states = model.lm(input_ids=torch.tensor([text.ids]), use_cache=False, output_hidden_states=True).hidden_states
    return torch.stack([h[0].float() for h in states[1:-1]])


def uncached(model: Model, prompt: Encoded, new: int) -> tuple[int, ...]:
    """Greedy ids of a loop that reads the whole text anew for every token."""
    ids = list(prompt.ids)
    with torch.inference_mode():
        for _ in range(new):
            token = int(model.lm(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
            if token in model.stop_ids:
                break
            ids.append(token)
    return tuple(ids[len(prompt.ids) :])


def test_the_switch_is_that_of_the_rotary_module(phi: Model, dynamic: Model) -> None:
    assert phi.rotary_switch == RotarySwitch(SWITCH, "longrope")
    assert dynamic.rotary_switch == RotarySwitch(SWITCH, "dynamic")
    assert not tiny.model().rotary_switch.kind
    parameters = {**LONGROPE, "rope_type": "yarn"}
    assert not tiny.model("llama", rope_parameters=parameters).rotary_switch.kind


def test_a_text_is_read_beside_a_longer_one_as_alone(phi: Model) -> None:
    texts = both(phi)
    values = read(phi, texts)
    left = read(phi, texts, padding="left")
    tokens = read_tokens(phi, texts, [1])
    layers = read_layers(phi, texts, [1])
    for i, text in enumerate(texts):
        states = alone(phi, text)
        expected = states[:, text.start : text.end].mean(1)
        assert torch.allclose(values[i, :-1], expected, atol=1e-4)
        assert torch.allclose(left[i, :-1], expected, atol=1e-4)
        assert torch.allclose(layers[i, 0], expected[1], atol=1e-4)
        assert torch.allclose(tokens[i][:, 0], states[1], atol=1e-4)
    probe = tiny.probes([tiny.vector(phi)], 1)
    for one, together in zip(texts, project(phi, texts, probe), strict=True):
        assert torch.allclose(project(phi, [one], probe)[0], together, atol=1e-4)
    for one, together in zip(texts, token_logprobs(phi, texts), strict=True):
        assert torch.allclose(token_logprobs(phi, [one])[0], together, atol=1e-4)
    counts = [t.end - t.start for t in texts]
    mean = sum(reference_norm(phi, [t]) * n for t, n in zip(texts, counts, strict=True)) / sum(counts)
    assert torch.allclose(reference_norm(phi, texts), mean, atol=1e-4)


def test_answers_of_both_sides_are_those_of_uncached_passes(phi: Model) -> None:
    prompts = [phi.encode(ask("Who are you?")), phi.encode(ask("Who are you? " * 12)), phi.encode(ask("Why?"))]
    new = SWITCH - max(len(prompts[0].ids), len(prompts[2].ids))
    expected = [uncached(phi, prompt, new) for prompt in prompts]
    sampling = SamplingParams(max_new_tokens=new, temperature=0)
    answers = LocalEngine(phi).generate(prompts, sampling)
    assert [answer.ids for answer in answers] == expected
    engine = ContinuousEngine(phi)
    for key, prompt in enumerate(prompts):
        engine.add(key, GenerationRequest(prompt=prompt, sampling=sampling))
    texts: dict[object, str] = {0: "", 1: "", 2: ""}
    while engine.running or engine.waiting:
        for output in engine.step():
            assert output.error is None
            texts[output.key] += "".join(token.text for token in output.tokens)
    assert list(texts.values()) == [answer.text for answer in answers]


def test_an_answer_ends_before_the_switch(phi: Model) -> None:
    prompt = phi.encode(ask("Who are you? " * 3))
    room = SWITCH - len(prompt.ids)
    assert 0 < room < 20
    fits = SamplingParams(max_new_tokens=room, temperature=0)
    assert LocalEngine(phi).generate([prompt], fits)[0].ids == uncached(phi, prompt, room)
    crosses = SamplingParams(max_new_tokens=room + 1, temperature=0)
    with pytest.raises(InvalidArgument, match=f"go past {SWITCH}, where the rotary .* at most {room} new tokens"):
        LocalEngine(phi).generate([prompt], crosses)
    with pytest.raises(InvalidArgument, match=f"go past {SWITCH}"):
        ContinuousEngine(phi).check(GenerationRequest(prompt=prompt, sampling=crosses))


def test_lengths_that_each_have_their_own_frequencies_are_refused(dynamic: Model) -> None:
    texts = both(dynamic)
    with pytest.raises(InvalidArgument, match=r"beyond 40 the rotary embeddings of tiny-llama \(dynamic NTK\)"):
        read(dynamic, texts)
    expected = alone(dynamic, texts[0])[:, texts[0].start : texts[0].end].mean(1)
    assert torch.allclose(read(dynamic, texts[:1])[0, :-1], expected, atol=1e-4)


@pytest.mark.parametrize(("kind", "words"), [("phi", "from 41 tokens"), ("dynamic", "beyond 40 tokens")])
def test_the_diagnosis_names_it(kind: str, words: str, request: pytest.FixtureRequest) -> None:
    findings = {finding.name: finding for finding in diagnose(request.getfixturevalue(kind)).findings}
    assert words in findings["reading: a batch's longest text changes no other"].detail
