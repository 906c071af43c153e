"""Steering: each row gets its own, only where it was asked for, and nothing is left of it afterwards."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny
from poise.activations import read
from poise.contrast import exemplars
from poise.engine import SamplingParams
from poise.engine.static import LocalEngine
from poise.errors import HookDidNotFire, InvalidArgument, InvalidSteering, OtherModel
from poise.extract import extract
from poise.model import Encoded, Model, wrap
from poise.model.batching import PaddedBatch, Side, pad
from poise.steer import Condition, Phase, Steering, Term, apply_steering

Change = Callable[[torch.Tensor], torch.Tensor]  # of one layer's hidden states [T, d]
GREEDY = SamplingParams(max_new_tokens=10, temperature=0)


@contextlib.contextmanager
def by_hand(model: Model, changes: Mapping[int, Change], where: slice, seen: list[torch.Tensor]) -> Iterator[None]:
    """Changes the outputs of some blocks at some positions of one text, in the plainest way; notes all outputs."""

    def hook(layer: int) -> Any:
        def change(module: Any, args: Any, output: Any) -> Any:
            h = (output[0] if isinstance(output, tuple) else output).clone()
            if layer in changes:
                h[0, where] = changes[layer](h[0, where])
            seen.append(h[0])
            return (h, *output[1:]) if isinstance(output, tuple) else h

        return change

    handles = [block.register_forward_hook(hook(i)) for i, block in enumerate(model.blocks)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def alone(
    model: Model, ids: Sequence[int], changes: Mapping[int, Change], where: slice
) -> tuple[torch.Tensor, torch.Tensor]:
    """One text, unpadded and without cache, changed by hand: all blocks' outputs [L, T, d] and the logits [T, V]."""
    seen: list[torch.Tensor] = []
    with by_hand(model, changes, where, seen):
        logits = model.lm(torch.tensor([list(ids)]), use_cache=False).logits[0]
    return torch.stack(seen), logits


@torch.no_grad()
def steered(model: Model, batch: PaddedBatch, rows: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """A whole batch under Poise's steering: all blocks' outputs [L, B, T, d] and the logits [B, T, V]."""
    with apply_steering(model, rows) as applied, contextlib.ExitStack() as hooks:
        seen: list[torch.Tensor] = []
        for block in model.blocks:
            note = block.register_forward_hook(lambda m, a, o: seen.append(o[0] if isinstance(o, tuple) else o))
            hooks.callback(note.remove)
        applied.announce(batch)
        positions = {} if model.lm.config.model_type == "gpt_neox" else {"position_ids": batch.positions}
        logits = model.lm(input_ids=batch.ids, attention_mask=batch.real.long(), use_cache=False, **positions).logits
    return torch.stack(seen), logits


def place(text: Encoded, phase: Phase) -> slice:
    return {"response": slice(text.start, text.end), "prompt": slice(0, text.start), "all": slice(None)}[phase]


def add(v: torch.Tensor, coef: float = 1.0) -> Change:
    return lambda h: h + coef * v


def remove(v: torch.Tensor) -> Change:
    unit = v / v.norm()
    return lambda h: h - (h @ unit)[:, None] * unit[None, :]


@pytest.fixture(scope="module")
def llama() -> Model:
    return tiny.model()


class TestTeacherForced:
    @pytest.mark.parametrize("side", ["left", "right"])
    @pytest.mark.parametrize("phase", ["response", "prompt", "all"])
    @pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "phi3", "mixtral"])
    def test_steering_changes_its_own_positions_and_no_other(self, architecture: str, phase: Phase, side: Side) -> None:
        model = tiny.model(architecture)
        vector, texts = tiny.vector(model, scale=0.3), tiny.texts(model, 5)
        batch = pad(texts, side=side)
        _, logits = steered(model, batch, Steering.add(vector, coef=1.5, layer=1, phase=phase))
        for row, text in enumerate(texts):
            _, expected = alone(model, text.ids, {1: add(vector.directions[1], 1.5)}, place(text, phase))
            torch.testing.assert_close(logits[row][batch.real[row]], expected, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_response_steering_leaves_the_prompt_and_the_padding_bit_for_bit(self, llama: Model, side: Side) -> None:
        batch = pad(tiny.texts(llama, 6), side=side)
        states, _ = steered(llama, batch, Steering.add(tiny.vector(llama), coef=2.0, layer=2))
        plain, _ = steered(llama, batch, [None] * 6)
        response = batch.inside(batch.spans)
        prompt = batch.inside(batch.prompts)
        assert torch.equal(states[:, prompt], plain[:, prompt]), "also the last token of the prompt"
        assert torch.equal(states[2][~batch.real], plain[2][~batch.real])
        assert not torch.isclose(states[2][response], plain[2][response]).all(dim=-1).any()

    def test_each_row_gets_what_it_would_get_alone(self, llama: Model) -> None:
        vector, other = tiny.vector(llama, scale=0.3), tiny.vector(llama, seed=1, scale=0.3)
        v, w = vector.directions, other.directions
        increments: Mapping[int, Change] = {i: add(v[i] - (v[i - 1] if i else 0), 0.7) for i in range(tiny.L)}
        cases: list[tuple[Steering | None, Phase, Mapping[int, Change]]] = [
            (Steering.add(vector, coef=1.5, layer=1), "response", {1: add(v[1], 1.5)}),
            (None, "response", {}),
            (Steering.project_out(vector, layer=1, phase="all"), "all", {1: remove(v[1])}),
            (Steering((Term(vector=vector, value=0.7, layers="increments"),)), "response", increments),
            (
                Steering((Term(vector=vector, value=-2.0, layers=(0, 3)),)),
                "response",
                {0: add(v[0], -2.0), 3: add(v[3], -2.0)},
            ),
            (
                Steering((Term(vector=vector, value=1.0, layers=(2,)), Term(vector=other, value=2.0, layers=(2, 3)))),
                "response",
                {2: add(v[2] + 2 * w[2]), 3: add(w[3], 2.0)},
            ),
            (
                Steering(
                    (
                        Term(vector=other, value=1.0, layers=(1,)),
                        Term(vector=vector, value=1.0, layers=(1,), operation="project_out"),
                    )
                ),
                "response",
                {1: lambda h: remove(v[1])(h) + w[1]},
            ),
            (Steering.add(vector, coef=1.5, layer=2, phase="prompt"), "prompt", {2: add(v[2], 1.5)}),
        ]
        texts = tiny.texts(llama, len(cases))
        for side in ("left", "right"):
            batch = pad(texts, side=side)  # type: ignore[arg-type]
            states, logits = steered(llama, batch, [case[0] for case in cases])
            for row, (text, (_, phase, changes)) in enumerate(zip(texts, cases, strict=True)):
                expected_states, expected = alone(llama, text.ids, changes, place(text, phase))
                torch.testing.assert_close(states[:, row][:, batch.real[row]], expected_states, rtol=0, atol=1e-5)
                torch.testing.assert_close(logits[row][batch.real[row]], expected, rtol=0, atol=1e-5)

    def test_a_row_may_have_one_phase_for_one_vector_and_another_for_the_next(self, llama: Model) -> None:
        vector, [text] = tiny.vector(llama, scale=0.3), tiny.texts(llama, 1)
        both = Steering(
            (
                Term(vector=vector, value=1.0, layers=(1,), phase="prompt"),
                Term(vector=vector, value=1.0, layers=(1,), phase="response"),
            )
        )
        _, logits = steered(llama, pad([text], side="right"), both)
        _, expected = alone(llama, text.ids, {1: add(vector.directions[1])}, slice(None))
        torch.testing.assert_close(logits[0], expected, rtol=0, atol=1e-5)

    def test_projecting_out_leaves_nothing_along_the_direction(self, llama: Model) -> None:
        vector, texts = tiny.vector(llama), tiny.texts(llama, 4)
        batch = pad(texts, side="left")
        states, _ = steered(llama, batch, Steering.project_out(vector, layer=2))
        response, prompt = batch.inside(batch.spans), batch.inside(batch.prompts)
        assert vector.project(states[2][response], 2).abs().max() < 1e-5
        assert vector.project(states[2][prompt], 2).abs().min() > 1e-5

    def test_works_in_the_models_own_dtype_and_returns_new_tensors(self) -> None:
        model = wrap(tiny.lm().to(torch.bfloat16), tiny.chatml(), name="half")
        batch = pad(tiny.texts(model, 3), side="left")
        outputs: list[torch.Tensor] = []
        kept: list[torch.Tensor] = []

        def note(module: Any, args: Any, output: torch.Tensor) -> None:
            outputs.append(output)
            kept.append(output.clone())

        handle = model.blocks[1].register_forward_hook(note)  # before steering's own
        for operation in ("add", "project_out"):
            spec = Steering(
                (Term(vector=tiny.vector(model), value=1.0, layers=(1,), operation=operation, phase="all"),)
            )
            states, _ = steered(model, batch, spec)
            assert states.dtype == torch.bfloat16
            assert torch.equal(outputs[-1], kept[-1])
            assert not torch.equal(states[1], kept[-1])
        handle.remove()

    def test_projecting_several_out_leaves_nothing_of_what_they_span(self, llama: Model) -> None:
        vectors = [tiny.vector(llama, seed=seed) for seed in (0, 1, 0)]  # the first twice: no rounding blown up
        texts = tiny.texts(llama, 3)
        batch = pad(texts, side="left")
        terms = tuple(Term(vector=v, value=1.0, layers=(2,), operation="project_out") for v in vectors)
        states, _ = steered(llama, batch, Steering(terms))
        for vector in vectors:
            assert vector.project(states[2][batch.inside(batch.spans)], 2).abs().max() < 1e-5

    def test_clamping_sets_the_projection_and_nothing_else(self, llama: Model) -> None:
        vector, [text] = tiny.vector(llama), tiny.texts(llama, 1)
        states, _ = steered(llama, pad([text], side="left"), Steering.clamp(vector, level=0.7, layer=2))
        plain, _ = alone(llama, text.ids, {}, slice(None))
        span, u = slice(text.start, text.end), vector.unit(2)
        assert torch.allclose(states[2][0, span] @ u, torch.tensor(0.7), atol=1e-5)
        rest = states[2][0, span] - plain[2][span]
        torch.testing.assert_close(rest, (rest @ u)[:, None] * u, rtol=0, atol=1e-5)

    def test_a_floor_lifts_what_is_under_it_and_leaves_what_is_not_bit_for_bit(self, llama: Model) -> None:
        vector, texts = tiny.vector(llama), tiny.texts(llama, 4)
        batch = pad(texts, side="left")
        plain, _ = steered(llama, batch, [None] * 4)
        along = vector.project(plain[2], 2)
        response = batch.inside(batch.spans)
        middle = along[response].sort().values[int(response.sum()) // 2 :][:2]
        level = float(middle.mean())  # between two, so that rounding decides nothing
        states, _ = steered(llama, batch, Steering.floor(vector, level=level, layer=2))
        under = response & (along < level)
        assert under.any()
        assert torch.equal(states[2][~under], plain[2][~under])
        lifted = vector.project(states[2], 2)[under]
        assert torch.allclose(lifted, torch.full_like(lifted, level), atol=1e-4)

    def test_a_cap_lowers_what_is_over_it_and_leaves_what_is_not_bit_for_bit(self, llama: Model) -> None:
        vector, texts = tiny.vector(llama), tiny.texts(llama, 4)
        batch = pad(texts, side="left")
        plain, _ = steered(llama, batch, [None] * 4)
        along = vector.project(plain[2], 2)
        response = batch.inside(batch.spans)
        middle = along[response].sort().values[int(response.sum()) // 2 :][:2]
        level = float(middle.mean())  # between two, so that rounding decides nothing
        states, _ = steered(llama, batch, Steering.cap(vector, level=level, layer=2))
        over = response & (along > level)
        assert over.any()
        assert torch.allclose(vector.project(states[2][over], 2), torch.tensor(level), atol=1e-5)
        assert torch.equal(states[2][~over], plain[2][~over])

    def test_lets_gradients_through(self, llama: Model) -> None:
        vector = extract(exemplars(tiny.trait(), llama), llama)
        terms = (
            Term(vector=vector, value=1.0, layers="increments"),
            Term(vector=vector, value=1.0, layers=(1,), operation="project_out"),
        )
        batch = pad(tiny.texts(llama, 2), side="right")
        with apply_steering(llama, Steering(terms)) as applied:
            applied.announce(batch)
            loss = llama.lm(batch.ids, labels=batch.ids).loss
        loss.backward()
        gradient = llama.lm.model.embed_tokens.weight.grad
        llama.lm.zero_grad()
        assert gradient.abs().sum() > 0


class TestIncrements:
    def test_telescope_to_the_last_layers_vector(self, llama: Model) -> None:
        vector = tiny.vector(llama)
        added = Term(vector=vector, value=2.5, layers="increments").directions()
        assert sorted(added) == list(range(tiny.L))
        for layer in range(tiny.L):
            so_far = torch.stack([added[i] for i in range(layer + 1)]).sum(0)
            torch.testing.assert_close(so_far, 2.5 * vector.directions[layer])

    def test_are_not_for_projecting_out(self, llama: Model) -> None:
        with pytest.raises(InvalidSteering, match="Increments are for adding"):
            Term(vector=tiny.vector(llama), value=1.0, layers="increments", operation="project_out")


class TestGenerating:
    """The reference runs each prompt alone, all of it again for every token, without a cache."""

    @staticmethod
    def _answer(model: Model, prompt: Encoded, changes: Mapping[int, Change], phase: Phase) -> list[int]:
        ids = list(prompt.ids)
        for _ in range(GREEDY.max_new_tokens):
            where = {"response": slice(prompt.end, None), "prompt": slice(0, prompt.end), "all": slice(None)}[phase]
            _, logits = alone(model, ids, changes, where)
            chosen = int(logits[-1].argmax())
            if chosen in model.stop_ids:
                break
            ids.append(chosen)
        return ids[prompt.end :]

    @pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3_text", "gpt_neox", "qwen3_moe"])
    def test_equals_a_plain_loop_that_changes_the_same_positions(self, architecture: str) -> None:
        model = tiny.model(architecture)
        vector = tiny.vector(model)
        v = vector.directions
        increments: Mapping[int, Change] = {i: add(v[i] - (v[i - 1] if i else 0)) for i in range(tiny.L)}
        cases: list[tuple[Steering | None, Phase, Mapping[int, Change]]] = [
            (Steering.add(vector, coef=4.0, layer=1), "response", {1: add(v[1], 4.0)}),
            (Steering.add(vector, coef=4.0, layer=1, phase="prompt"), "prompt", {1: add(v[1], 4.0)}),
            (Steering.add(vector, coef=4.0, layer=1, phase="all"), "all", {1: add(v[1], 4.0)}),
            (None, "all", {}),
            (Steering((Term(vector=vector, value=1.0, layers="increments"),)), "response", increments),
            (Steering.project_out(vector, layer=2), "response", {2: remove(v[2])}),
        ]
        prompts = tiny.prompts(model, len(cases))
        plain = [list(g.ids) for g in LocalEngine(model).generate(prompts, GREEDY)]
        found = LocalEngine(model).generate(prompts, GREEDY, steering=[case[0] for case in cases])
        for row, (prompt, (spec, phase, changes)) in enumerate(zip(prompts, cases, strict=True)):
            assert list(found[row].ids) == self._answer(model, prompt, changes, phase)
            assert (list(found[row].ids) == plain[row]) == (spec is None) or row == 5, "each steering shows"

    def test_does_not_steer_the_token_that_the_prompt_leads_to(self, llama: Model) -> None:
        prompts = tiny.prompts(llama, 3)
        hard = Steering.add(tiny.vector(llama), coef=50.0, layer=1)
        once = SamplingParams(1, temperature=0)
        engine = LocalEngine(dataclasses.replace(llama, stop_ids=frozenset()))
        assert engine.generate(prompts, once, steering=hard) == engine.generate(prompts, once)
        twice = SamplingParams(2, temperature=0)
        assert engine.generate(prompts, twice, steering=hard) != engine.generate(prompts, twice)

    def test_goes_on_for_the_rows_that_are_left_when_others_have_finished(self, llama: Model) -> None:
        prompts, vector = tiny.prompts(llama, 6), tiny.vector(llama)
        rows = [Steering.add(vector, coef=float(coef), layer=1) if coef else None for coef in range(6)]
        said = LocalEngine(dataclasses.replace(llama, stop_ids=frozenset())).generate(prompts, GREEDY, steering=rows)
        stops = frozenset({g.ids[2] for g in said[:4]} - set(said[5].ids))
        model = dataclasses.replace(llama, stop_ids=stops)
        together = LocalEngine(model).generate(prompts, GREEDY, steering=rows)
        assert together[5].finish == "length"
        for prompt, row, found in zip(prompts, rows, together, strict=True):
            assert LocalEngine(model).generate([prompt], GREEDY, steering=row) == [found]

    def test_works_with_the_models_own_generate_too(self, llama: Model) -> None:
        [prompt] = tiny.prompts(llama, 1)
        spec = Steering.add(tiny.vector(llama), coef=4.0, layer=1)
        with apply_steering(llama, spec):
            ids = torch.tensor([prompt.ids])
            out = llama.lm.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False, pad_token_id=0
            )
        model = dataclasses.replace(llama, stop_ids=frozenset())
        [expected] = LocalEngine(model).generate([prompt], GREEDY, steering=spec)
        assert out[0, prompt.end :].tolist() == list(expected.ids)


class TestWhatCannotBe:
    def test_a_block_that_is_not_run_is_an_error_that_names_it(self, llama: Model) -> None:
        spec = Steering((Term(vector=tiny.vector(llama), value=1.0, layers=(0, 2)),))
        with (
            pytest.raises(HookDidNotFire, match=r"Layers \[0, 2\] of tiny-llama were never run"),
            apply_steering(llama, spec),
        ):
            pass

    def test_steering_that_touched_no_position_is_an_error(self, llama: Model) -> None:
        spec = Steering.add(tiny.vector(llama), coef=1.0)
        with pytest.raises(HookDidNotFire, match="Nothing was steered on tiny-llama"):
            steered(llama, pad(tiny.prompts(llama, 2), side="left"), spec)  # prompts alone have no response
        with pytest.raises(HookDidNotFire, match="Nothing was steered"), torch.no_grad(), apply_steering(llama, spec):
            llama.lm(torch.tensor([[1, 2, 3]]))  # unannounced, and read as a prompt

    def test_steering_of_no_row_is_none(self, llama: Model) -> None:
        with apply_steering(llama, [None, Steering(())]):
            pass

    @pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
    def test_nothing_is_left_after_an_exception_in_the_middle(self, llama: Model, error: type[BaseException]) -> None:
        texts = tiny.texts(llama, 2)
        before = read(llama, texts)

        def fail(module: Any, args: Any) -> None:
            raise error

        handle = llama.blocks[2].register_forward_pre_hook(fail)
        with pytest.raises(error):
            steered(llama, pad(texts, side="left"), Steering.add(tiny.vector(llama), coef=1.0, layer=1))
        with pytest.raises(error):
            LocalEngine(llama).generate(
                tiny.prompts(llama), GREEDY, steering=Steering.add(tiny.vector(llama), coef=1.0, layer=1)
            )
        handle.remove()
        assert not any(block._forward_hooks for block in llama.blocks)
        assert torch.equal(read(llama, texts), before)

    def test_another_models_vector_is_refused_with_both_names(self, llama: Model) -> None:
        spec = Steering.add(tiny.vector(tiny.model("qwen2")), coef=1.0)
        with pytest.raises(OtherModel, match=r"tiny-qwen2.*tiny-llama"), apply_steering(llama, spec):
            pass
        with pytest.raises(OtherModel, match=r"tiny-qwen2.*tiny-llama"):
            LocalEngine(llama).generate(tiny.prompts(llama), GREEDY, steering=spec)
        assert LocalEngine(llama, allow_other_model=True).generate(tiny.prompts(llama), GREEDY, steering=spec)

    @pytest.mark.parametrize("layer", [-1, tiny.L, 99])
    def test_a_layer_out_of_range_is_refused_with_the_range(self, llama: Model, layer: int) -> None:
        vector = tiny.vector(llama)
        for make in (
            lambda: Steering.add(vector, coef=1.0, layer=layer),
            lambda: Term(vector=vector, value=1.0, layers=(0, layer)),
        ):
            with pytest.raises(InvalidSteering, match=f"Layer {layer} is out of range: grumpy has layers 0 to 3"):
                make()

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_a_strength_that_is_no_number_is_refused(self, llama: Model, value: float) -> None:
        vector = tiny.vector(llama)
        for strength in ({"coef": value}, {"dose": value}):
            with pytest.raises(InvalidSteering, match=r"(strength|dose) of grumpy is"):
                Steering.add(vector, **strength)

    def test_no_strength_or_two_are_refused(self, llama: Model) -> None:
        for strengths in ({}, {"coef": 1.0, "dose": 0.5}):
            with pytest.raises(InvalidSteering, match="one strength for grumpy"):
                Steering.add(tiny.vector(llama), **strengths)


class TestStrength:
    @given(dose=st.floats(-5, 5), layer=st.integers(0, tiny.L - 1))
    def test_a_dose_and_its_coefficient_are_one_strength(self, llama: Model, dose: float, layer: int) -> None:
        vector = tiny.vector(llama)
        coef = vector.coef(dose, layer)
        assert vector.dose(coef, layer) == pytest.approx(dose, abs=1e-6)
        added = coef * vector.directions[layer]
        share = float(added.norm() / vector.reference_norm[layer])
        assert share == pytest.approx(abs(dose), abs=1e-5)
        assert Steering.add(vector, dose=dose, layer=layer) == Steering.add(vector, coef=coef, layer=layer)

    def test_of_a_zero_direction_has_no_dose(self, llama: Model) -> None:
        with pytest.raises(InvalidSteering, match="grumpy is zero at layer 1 of 4"):
            Steering.add(tiny.vector(llama, scale=0.0), dose=0.5, layer=1)

    def test_goes_to_the_certificates_layer_where_none_is_named(self, llama: Model) -> None:
        vector = tiny.vector(llama)
        assert Steering.add(vector, coef=1.0).terms[0].layers == (1,)
        assert Steering.add(vector.with_certificate({"layer": 3}), coef=1.0).terms[0].layers == (3,)


class TestMadeFromAVector:
    def test_adds_at_a_dose_or_a_coefficient(self, llama: Model) -> None:
        v = tiny.vector(llama)
        assert Steering.add(v, coef=2.0, layer=1).terms == (Term(vector=v, value=2.0, layers=(1,)),)
        assert Steering.add(v, dose=0.3, layer=1).terms[0].value == pytest.approx(v.coef(0.3, 1))

    def test_combines_by_plus_in_order(self, llama: Model) -> None:
        v, w = tiny.vector(llama), tiny.vector(llama, seed=1)
        first, second = Steering.add(v, coef=1.0), Steering.cap(w, level=2.0, layer=3, phase="all")
        both = first + second
        assert both.terms == (*first.terms, *second.terms)
        assert not both.orthogonal
        assert (both + Steering((), orthogonal=True)).orthogonal
        with pytest.raises(TypeError):
            first + 1  # type: ignore[operator]

    @pytest.mark.parametrize(
        ("make", "error", "fault"),
        [
            (lambda v: Steering.add(v), InvalidSteering, "either coef"),
            (lambda v: Steering.add(v, coef=1.0, dose=0.1), InvalidSteering, "either coef"),
            (lambda v: Steering.add(v, coef="1"), InvalidSteering, "strength of grumpy is '1'"),
            (lambda v: Steering.add(v, coef=True), InvalidSteering, "strength of grumpy is True"),
            (lambda v: Steering.add(v, dose="30%"), InvalidSteering, "dose of grumpy is '30%'"),
            (lambda v: Steering.add(v, coef=1.0, phase="foo"), InvalidArgument, "is 'foo'; it must be one of response"),
            (lambda v: Steering.add(v, coef=1.0, layer=True), InvalidSteering, "layer of grumpy is True"),
            (lambda v: Steering.clamp(v, level=math.nan), InvalidSteering, "strength of grumpy is nan"),
            (lambda v: Term(vector=v, value=1.0, layers=(1,), operation="foo"), InvalidArgument, "must be one of proj"),
            (
                lambda v: Term(vector=v, value=3.0, layers=(1,), operation="project_out"),
                InvalidSteering,
                "takes no strength, but 3 was given",
            ),
            (lambda v: Condition(vector=v, layer=1, value="x"), InvalidSteering, "has the value 'x'"),
            (
                lambda v: Condition(vector=v, layer=1, value=0.0, reading="peak"),
                InvalidArgument,
                "must be one of token",
            ),
            (lambda v: Steering((v,)), InvalidSteering, "made of terms, not of PersonaVector"),
        ],
    )
    def test_bad_input_is_one_sentence(self, llama: Model, make: Any, error: type[Exception], fault: str) -> None:
        with pytest.raises(error, match=re.escape(fault)) as caught:
            make(tiny.vector(llama))
        assert str(caught.value).endswith(".")

    def test_for_another_number_of_rows_is_one_sentence(self, llama: Model) -> None:
        one = Steering.add(tiny.vector(llama), coef=1.0, phase="all")
        with (
            pytest.raises(InvalidSteering, match="2 steerings for a batch of 3 rows"),
            torch.no_grad(),
            apply_steering(llama, [one, one]),
        ):
            llama.lm(torch.ones((3, 4), dtype=torch.long))
