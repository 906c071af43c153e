"""The engine says what transformers says, whatever shares the batch, and keeps what was there."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from poise.activations import read, read_tokens
from poise.engine import Generation, Probe, SamplingParams
from poise.engine.continuous import ContinuousEngine
from poise.engine.static import LocalEngine
from poise.engine.static_batch import StaticBatch
from poise.errors import InvalidArgument, NonFiniteActivation
from poise.model import Encoded, Model, ask, wrap
from poise.steer import Steering

GREEDY = SamplingParams(max_new_tokens=12, temperature=0)
SAMPLED = SamplingParams(max_new_tokens=12, temperature=1.3, top_p=0.95)


def stopping(model: Model, prompts: Sequence[Encoded], sampling: SamplingParams = GREEDY) -> Model:
    """The same model with stop tokens that end some of these answers early, each elsewhere, and the last not at all."""
    said = LocalEngine(dataclasses.replace(model, stop_ids=frozenset())).generate(prompts, sampling)
    stops = {g.ids[1 + 3 * row] for row, g in enumerate(said[:3])} - set(said[-1].ids)
    return dataclasses.replace(model, stop_ids=frozenset(stops))


def transformers_says(model: Model, prompt: Encoded, sampling: SamplingParams) -> list[int]:
    """Transformers' own greedy answer to one prompt alone, without the token that ended it."""
    ids = torch.tensor([prompt.ids])
    out = model.lm.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=sampling.max_new_tokens,
        do_sample=False,
        eos_token_id=sorted(model.stop_ids) or None,
        pad_token_id=0,
    )
    said = out[0, len(prompt.ids) :].tolist()
    return said[:-1] if said[-1] in model.stop_ids else said


def whole(prompt: Encoded, said: Generation) -> Encoded:
    """Prompt and answer as a text to be read."""
    return Encoded((*prompt.ids, *said.ids), len(prompt.ids), len(prompt.ids) + len(said.ids))


def same(found: Generation, expected: Generation) -> bool:
    return (found.ids, found.text, found.finish) == (expected.ids, expected.text, expected.finish)


@pytest.fixture(scope="module")
def llama() -> Model:
    return tiny.model()


class TestGreedy:
    @pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
    def test_equals_transformers_generate_token_for_token(self, architecture: str) -> None:
        model = tiny.model(architecture)
        prompts = tiny.prompts(model, 5)
        model = stopping(model, prompts)
        found = LocalEngine(model).generate(prompts, GREEDY)
        assert [list(g.ids) for g in found] == [transformers_says(model, p, GREEDY) for p in prompts]
        assert {g.finish for g in found} == {"stop", "length"}

    def test_equals_transformers_generate_under_a_lora_wrapper(self) -> None:
        model = wrap(tiny.adapted(tiny.lm()), tiny.chatml(), name="adapted")
        prompts = tiny.prompts(model, 3)
        found = LocalEngine(model).generate(prompts, GREEDY)
        assert [list(g.ids) for g in found] == [transformers_says(model, p, GREEDY) for p in prompts]

    @pytest.mark.parametrize("architecture", ["llama", "mistral"])
    def test_goes_on_past_the_room_that_its_cache_began_with(
        self, architecture: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("poise.engine.kv_cache.ROOM", 4)
        model = dataclasses.replace(tiny.model(architecture), stop_ids=frozenset())
        [prompt] = tiny.prompts(model, 1)
        [found] = LocalEngine(model).generate([prompt], GREEDY)
        assert list(found.ids) == transformers_says(model, prompt, GREEDY)
        assert len(found.ids) == GREEDY.max_new_tokens

    def test_is_what_a_very_small_top_p_draws(self, llama: Model) -> None:
        prompts = tiny.prompts(llama)
        drawn = LocalEngine(llama).generate(prompts, SamplingParams(12, temperature=1.0, top_p=1e-6))
        assert all(same(a, b) for a, b in zip(drawn, LocalEngine(llama).generate(prompts, GREEDY), strict=True))


class TestABatch:
    @pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
    @pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3_text"])
    def test_does_not_change_what_a_row_says_or_is(self, architecture: str, sampling: SamplingParams) -> None:
        model = tiny.model(architecture)
        prompts = tiny.prompts(model, 6)
        model = stopping(model, prompts, sampling)
        probes = [Probe(2, torch.ones(tiny.D))]
        seeds = [7 * i for i in range(6)]
        alone = [
            LocalEngine(model).generate([p], sampling, seeds=[s], keep_means=True, probes=probes)[0]
            for p, s in zip(prompts, seeds, strict=True)
        ]
        for most in (2, 6):
            together = LocalEngine(model, batch=most).generate(
                prompts, sampling, seeds=seeds, keep_means=True, probes=probes
            )
            for a, b in zip(alone, together, strict=True):
                assert same(a, b)
                torch.testing.assert_close(a.mean, b.mean, rtol=0, atol=1e-4, equal_nan=True)
                torch.testing.assert_close(a.readings, b.readings, rtol=0, atol=1e-4)

    def test_drops_rows_that_have_finished_without_disturbing_the_others(self, llama: Model) -> None:
        prompts = tiny.prompts(llama, 6)
        said = LocalEngine(dataclasses.replace(llama, stop_ids=frozenset())).generate(prompts, GREEDY)
        model = dataclasses.replace(llama, stop_ids=frozenset({g.ids[2] for g in said[1:]} - set(said[0].ids)))
        run = StaticBatch(model, prompts, GREEDY, seeds=range(6), steering=[None] * 6, keep_means=True)
        with torch.inference_mode():
            finished = [row for step in run.steps() for row in step]
        assert sorted(finished) == list(range(6)), "each row is reported once"
        assert 0 in run.rows
        assert len(run.rows) < 6
        for row, found in enumerate(run.generations()):
            assert list(found.ids) == transformers_says(model, prompts[row], GREEDY)

    def test_is_planned_so_that_planning_its_members_again_gives_it(self, llama: Model) -> None:
        engine = LocalEngine(llama, batch=4)
        prompts = tiny.prompts(llama, 11)
        batches = engine.plan(prompts, GREEDY)
        assert sorted(i for batch in batches for i in batch) == list(range(11))
        for batch in batches:
            assert engine.plan([prompts[i] for i in batch], GREEDY) == [list(range(len(batch)))]

    def test_of_no_prompts_gives_no_answers(self, llama: Model) -> None:
        assert LocalEngine(llama).generate([], GREEDY) == []


class TestStopping:
    def test_leaves_the_stop_token_out_of_the_answer(self, llama: Model) -> None:
        prompts = tiny.prompts(llama, 4)
        model = stopping(llama, prompts)
        for found in LocalEngine(model).generate(prompts, GREEDY):
            assert not model.stop_ids & set(found.ids)
            assert found.text == model.tokenizer.decode(list(found.ids), skip_special_tokens=True)
            assert (found.finish == "length") == (len(found.ids) == GREEDY.max_new_tokens)

    def test_at_once_gives_an_empty_answer_with_no_mean(self, llama: Model) -> None:
        [prompt] = tiny.prompts(llama, 1)
        mute = dataclasses.replace(llama, stop_ids=frozenset(range(512)))
        [found] = LocalEngine(mute).generate([prompt], GREEDY, keep_means=True, probes=[Probe(1, torch.ones(tiny.D))])
        assert (found.ids, found.text, found.finish) == ((), "", "stop")
        assert found.mean is not None
        assert found.mean.isnan().all()
        assert found.readings is not None
        assert found.readings.shape == (1, 1)

    @pytest.mark.parametrize("limit", [1, 12])
    def test_at_once_is_no_fault_of_the_steering(self, llama: Model, limit: int) -> None:
        [prompt] = tiny.prompts(llama, 1)
        steering = Steering.add(tiny.vector(llama), coef=2.0, layer=1)
        mute = dataclasses.replace(llama, stop_ids=frozenset(range(512)) if limit > 1 else frozenset())
        [found] = LocalEngine(mute).generate([prompt], SamplingParams(limit, temperature=0), steering=steering)
        assert len(found.ids) == (0 if limit > 1 else 1)


class TestWhatIsKept:
    @pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "mistral", "mixtral"])
    def test_means_equal_a_reading_of_the_same_ids_for_both_endings(self, architecture: str) -> None:
        model = tiny.model(architecture)
        prompts = tiny.prompts(model, 6)
        model = stopping(model, prompts)
        said = LocalEngine(model).generate(prompts, GREEDY, keep_means=True)
        assert {g.finish for g in said} == {"stop", "length"}
        means = torch.stack([g.mean for g in said if g.mean is not None])
        again = read(model, [whole(p, g) for p, g in zip(prompts, said, strict=True)])
        torch.testing.assert_close(means, again, rtol=0, atol=1e-4, equal_nan=True)

    @pytest.mark.parametrize("keep_means", [False, True])
    def test_readings_equal_projections_of_the_last_prompt_token_and_of_every_token_after(
        self, llama: Model, keep_means: bool
    ) -> None:
        prompts = tiny.prompts(llama, 6)
        model = stopping(llama, prompts)
        directions = torch.randn(3, tiny.D, generator=torch.Generator().manual_seed(0))
        layers = [3, 0, 3]
        probes = [Probe(layer, d) for layer, d in zip(layers, directions, strict=True)]
        said = LocalEngine(model).generate(prompts, GREEDY, probes=probes, keep_means=keep_means)
        for prompt, found in zip(prompts, said, strict=True):
            [states] = read_tokens(model, [whole(prompt, found)], layers)
            expected = torch.einsum("tkd,kd->tk", states[len(prompt.ids) - 1 :], directions)
            assert found.readings is not None
            torch.testing.assert_close(found.readings, expected, rtol=0, atol=1e-4)

    def test_each_row_may_be_watched_by_probes_of_its_own(self, llama: Model) -> None:
        prompts = tiny.prompts(llama, 3)
        a, b = (Probe(layer, torch.full((tiny.D,), 0.1 * (layer + 1))) for layer in (1, 3))
        every = LocalEngine(llama).generate(prompts, GREEDY, probes=[a, b])
        own = LocalEngine(llama).generate(prompts, GREEDY, probes=[[b], [], [b, a]])
        assert own[1].readings is None
        for row, columns in ((0, [1]), (2, [1, 0])):
            readings, whole_readings = own[row].readings, every[row].readings
            assert readings is not None
            assert whole_readings is not None
            assert torch.equal(readings, whole_readings[:, columns])
        with pytest.raises(InvalidArgument, match="2 lists of probes for 3 prompts"):
            LocalEngine(llama).generate(prompts, GREEDY, probes=[[a], [b]])

    def test_nothing_is_unless_it_was_asked_for(self, llama: Model) -> None:
        [found] = LocalEngine(llama).generate(tiny.prompts(llama, 1), GREEDY)
        assert found.mean is None
        assert found.readings is None

    def test_a_notebook_shows_each_token_tinted_by_the_first_probe(self, llama: Model) -> None:
        probe = Probe(1, torch.ones(tiny.D))
        [watched] = LocalEngine(llama).generate(tiny.prompts(llama, 1), GREEDY, probes=[probe])
        assert "".join(watched.pieces) == watched.text
        assert watched._repr_html_().count("<span") == len(watched.pieces) == len(watched.ids)
        readings = torch.tensor([[9.0], [-1.0], [1.0]])
        marked_up = dataclasses.replace(watched, text="<b>&", pieces=("<b>", "&"), readings=readings)
        assert marked_up._repr_html_() == (
            '<div>-1 to 1<div style="white-space:pre-wrap"><span title="-1" style="background:rgba(47,107,214,0.60)">'
            '&lt;b&gt;</span><span title="1" style="background:rgba(214,64,47,0.60)">&amp;</span></div></div>'
        )
        unwatched = dataclasses.replace(marked_up, pieces=(), readings=None)
        assert unwatched._repr_html_() == '<div style="white-space:pre-wrap">&lt;b&gt;&amp;</div>'

    def test_no_hook_is_left_behind(self, llama: Model) -> None:
        prompts = tiny.prompts(llama, 2)
        steering = Steering.add(tiny.vector(llama), coef=1.0)
        LocalEngine(llama).generate(prompts, GREEDY, steering=steering, keep_means=True)
        assert not any(block._forward_hooks for block in llama.blocks)


class TestSampling:
    def test_is_repeatable_by_seed(self, llama: Model) -> None:
        prompts = [*tiny.prompts(llama, 2), *tiny.prompts(llama, 2)]

        def texts(*seeds: int) -> list[str]:
            return [g.text for g in LocalEngine(llama).generate(prompts, SAMPLED, seeds=seeds)]

        assert texts(1, 2, 1, 2) == texts(1, 2, 1, 2)
        one, two, three, four = texts(1, 2, 3, 2)
        assert one != three
        assert two == four
        assert texts(0, 1, 2, 3) == [g.text for g in LocalEngine(llama).generate(prompts, SAMPLED)]

    @pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (2.0, 0.7)])
    def test_draws_each_token_as_often_as_the_model_says(self, llama: Model, temperature: float, top_p: float) -> None:
        [prompt] = tiny.prompts(llama, 1)
        n = 2000
        engine = LocalEngine(dataclasses.replace(llama, stop_ids=frozenset()), batch=n)
        drawn = engine.generate([prompt] * n, SamplingParams(1, temperature=temperature, top_p=top_p))
        with torch.no_grad():
            p = (llama.lm(torch.tensor([prompt.ids])).logits[0, -1] / temperature).softmax(-1).tolist()
        nucleus, mass = [], 0.0
        for token in sorted(range(len(p)), key=lambda t: -p[t]):
            if mass >= top_p:
                break
            nucleus.append(token)
            mass += p[token]
        counts = Counter(g.ids[0] for g in drawn)
        assert set(counts) <= set(nucleus)
        expected = {token: n * p[token] / mass for token in nucleus}
        often = [token for token in nucleus if expected[token] >= 5]
        chi = sum((counts[token] - expected[token]) ** 2 / expected[token] for token in often)
        assert chi < len(often) + 5 * (2 * len(often)) ** 0.5, "five standard deviations of a chi-square"

    @pytest.mark.parametrize(
        "bad",
        [{"max_new_tokens": 0}, {"temperature": -0.1}, {"temperature": float("nan")}, {"temperature": float("inf")}]
        + [{"top_p": p} for p in (0.0, 1.5, float("nan"))],
    )
    def test_refuses_values_out_of_range(self, bad: dict[str, Any]) -> None:
        with pytest.raises(InvalidArgument, match=f"{next(iter(bad))} is {next(iter(bad.values()))}"):
            SamplingParams(**bad)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"seeds": [1, 2]}, "2 seeds for 3 prompts"),
            ({"seeds": [1, 2, -3]}, "seed -3"),
            ({"seeds": [1, 2, 0.5]}, "seed 0.5"),
            ({"steering": ["up=1"] * 3}, "steering is a str"),
            ({"probes": [[], [], ["up"]]}, "probe is a str"),
            ({"probes": [1, 2, 3]}, "probe is a int"),
        ],
    )
    def test_of_a_wrong_length_or_type_is_one_sentence(
        self, llama: Model, arguments: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(InvalidArgument, match=message):
            LocalEngine(llama).generate(tiny.prompts(llama, 3), GREEDY, **arguments)

    @pytest.mark.parametrize("batch", [0, -1, 1.5, True, None])
    @pytest.mark.parametrize("engine", [LocalEngine, ContinuousEngine])
    def test_batch_is_a_whole_number_of_at_least_one(self, llama: Model, engine: Any, batch: Any) -> None:
        with pytest.raises(InvalidArgument, match=f"batch is {batch}"):
            engine(llama, batch=batch)

    @pytest.mark.parametrize(
        "bad",
        [
            {"max_new_tokens": 1.5},
            {"max_new_tokens": True},
            {"max_new_tokens": "9"},
            {"temperature": float("nan")},
            {"temperature": True},
            {"temperature": "hot"},
            {"top_p": float("nan")},
            {"top_p": None},
        ],
    )
    def test_of_sampling_with_a_wrong_type_is_one_sentence(self, bad: dict[str, Any]) -> None:
        with pytest.raises(InvalidArgument, match=f"{next(iter(bad))} is "):
            SamplingParams(**bad)

    def test_needs_as_many_steerings_as_prompts(self, llama: Model) -> None:
        with pytest.raises(InvalidArgument, match="2 steerings for 3 prompts"):
            LocalEngine(llama).generate(tiny.prompts(llama, 3), GREEDY, steering=[None, None])

    def test_from_a_model_that_gives_nan_is_an_error_that_names_the_token(self, llama: Model) -> None:
        lm = copy.deepcopy(llama.lm)
        lm.model.norm.weight.data[:] = float("nan")
        with pytest.raises(NonFiniteActivation, match="broken gave NaN or infinite logits at token 0"):
            LocalEngine(wrap(lm, tiny.chatml(), name="broken")).generate(tiny.prompts(llama, 1), GREEDY)


class TestAStream:
    @settings(max_examples=30)
    @given(seed=st.integers(0, 10_000))
    def test_joined_is_the_answer_and_no_piece_is_half_a_character(self, llama: Model, seed: int) -> None:
        [prompt] = tiny.prompts(llama, 1)
        sampling = SamplingParams(6, temperature=2.0)
        engine = LocalEngine(llama)
        pieces = list(engine.stream(prompt, sampling, seed=seed))
        [expected] = engine.generate([prompt], sampling, seeds=[seed])
        assert "".join(p.text for p in pieces) == expected.text
        assert not any(p.text.endswith("\N{REPLACEMENT CHARACTER}") for p in pieces[:-1])
        assert [p.finish for p in pieces] == [None] * (len(pieces) - 1) + [expected.finish]

    @settings(max_examples=30)
    @given(seed=st.integers(0, 10_000), length=st.integers(1, 6))
    def test_that_is_watched_gives_the_prompt_first_and_each_token_with_its_text(
        self, llama: Model, seed: int, length: int
    ) -> None:
        [prompt] = tiny.prompts(llama, 1)
        sampling = SamplingParams(length, temperature=2.0)
        probes = [Probe(0, torch.ones(tiny.D)), Probe(2, torch.arange(tiny.D).float())]
        engine = LocalEngine(llama)
        first, *pieces = engine.stream(prompt, sampling, seed=seed, probes=probes)
        [expected] = engine.generate([prompt], sampling, seeds=[seed], probes=probes)
        assert expected.readings is not None
        assert (first.text, len(first.readings)) == ("", 1)
        assert torch.equal(torch.cat([p.readings.reshape(-1, 2) for p in (first, *pieces)]), expected.readings)
        said, tokens = "", 0
        for piece in pieces:
            said, tokens = said + piece.text, tokens + len(piece.readings)
            assert said == llama.tokenizer.decode(expected.ids[:tokens], skip_special_tokens=True)

    def test_is_steered_like_an_answer(self, llama: Model) -> None:
        [prompt] = tiny.prompts(llama, 1)
        steering = Steering.add(tiny.vector(llama), coef=3.0, layer=1)
        engine = LocalEngine(llama)
        [expected] = engine.generate([prompt], GREEDY, steering=steering)
        assert "".join(p.text for p in engine.stream(prompt, GREEDY, steering=steering)) == expected.text
        assert expected.text != engine.generate([prompt], GREEDY)[0].text

    def test_that_is_left_early_leaves_nothing_behind(self, llama: Model) -> None:
        [prompt] = tiny.prompts(llama, 1)
        steering = Steering.add(tiny.vector(llama), coef=3.0, layer=1)
        stream = LocalEngine(llama).stream(prompt, GREEDY, steering=steering)
        next(stream)
        stream.close()  # type: ignore[attr-defined]
        assert not any(block._forward_hooks for block in llama.blocks)

    def test_runs_in_inference_mode_and_its_reader_does_not(self, llama: Model) -> None:
        [prompt] = tiny.prompts(llama, 1)
        inside: list[bool] = []
        handle = llama.lm.register_forward_hook(lambda *_: inside.append(torch.is_inference_mode_enabled()))
        outside = [torch.is_inference_mode_enabled() for _ in LocalEngine(llama).stream(prompt, GREEDY)]
        handle.remove()
        assert inside
        assert all(inside)
        assert not any(outside)


@pytest.mark.real
class TestSmolLM:
    def test_says_what_transformers_says(self, smollm: Model) -> None:
        prompts = [smollm.encode(ask(q)) for q in ("What is the capital of France?", "Hi!")]
        sampling = SamplingParams(12, temperature=0)
        found = LocalEngine(smollm).generate(prompts, sampling, keep_means=True)
        assert [list(g.ids) for g in found] == [transformers_says(smollm, p, sampling) for p in prompts]
        means = torch.stack([g.mean for g in found if g.mean is not None])
        again = read(smollm, [whole(p, g) for p, g in zip(prompts, found, strict=True)])
        assert ((means - again).norm(dim=-1) / again.norm(dim=-1)).max() < 1e-4
        assert "Paris" in found[0].text
