"""Conditions, schedules and several vectors: each row of a batch gets exactly what it gets alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from poise.engine import Generation, SamplingParams
from poise.engine.static import LocalEngine
from poise.errors import InvalidSteering
from poise.model import Model
from poise.model.batching import pad
from poise.model.hooks import rewrite
from poise.steer import AppliedSteering, Condition, Steering, Term
from poise.steer.operators import OPERATORS
from poise.vector import PersonaVector

GREEDY = SamplingParams(max_new_tokens=9, temperature=0)
Change = Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor]  # token of the response, h [d], last prompt h [d]


@pytest.fixture(scope="module")
def llama() -> Model:
    return tiny.model()


@torch.no_grad()
def by_hand(model: Model, ids: Sequence[int], n: int, layer: int, change: Change) -> list[int]:
    """Greedy decoding without cache or padding: the whole text again for each token, changed position by position."""
    said: list[int] = []

    def hook(module: object, args: object, output: torch.Tensor) -> torch.Tensor:
        h = output.clone()
        for token in range(len(said)):
            h[0, len(ids) + token] = change(token, h[0, len(ids) + token], output[0, len(ids) - 1])
        return h

    handle = model.blocks[layer].register_forward_hook(hook)
    try:
        while len(said) < n:
            logits = model.lm(torch.tensor([[*ids, *said]]), use_cache=False).logits[0, -1]
            if int(logits.argmax()) in model.stop_ids:
                break
            said.append(int(logits.argmax()))
    finally:
        handle.remove()
    return said


def answer(model: Model, prompts: Sequence[object], rows: Sequence[Steering | None]) -> list[Generation]:
    return LocalEngine(model).generate(list(prompts), GREEDY, steering=list(rows))  # type: ignore[arg-type]


class TestGenerating:
    def test_on_a_schedule_steers_those_tokens_of_the_answer_and_no_others(self, llama: Model) -> None:
        v = tiny.vector(llama, scale=1.5)
        windows: list[tuple[int, int | None]] = [(0, 3), (3, None), (2, 5), (0, None), (8, 9)]
        prompts = tiny.prompts(llama, len(windows))
        rows = [Steering((Term(vector=v, value=1.0, layers=(1,), tokens=w),)) for w in windows]
        for prompt, (first, last), found in zip(prompts, windows, answer(llama, prompts, rows), strict=True):

            def change(
                token: int, h: torch.Tensor, _: torch.Tensor, a: int = first, b: int = last or 99
            ) -> torch.Tensor:
                return h + v.directions[1] if a <= token < b else h

            assert list(found.ids) == by_hand(llama, prompt.ids, 9, 1, change)

    @pytest.mark.parametrize("above", [True, False])
    def test_on_a_tokens_own_reading_steers_the_tokens_that_meet_it(self, llama: Model, above: bool) -> None:
        v, probe = tiny.vector(llama, scale=1.5), tiny.vector(llama, seed=3)
        prompts = tiny.prompts(llama, 6)
        when = Condition(vector=probe, layer=1, value=0.0, above=above)
        steered = Steering((Term(vector=v, value=1.0, layers=(1,), when=when),))

        def change(token: int, h: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
            return h + v.directions[1] if bool(probe.project(h, 1) > 0) == above else h

        found = answer(llama, prompts, [steered] * 6)
        assert [list(g.ids) for g in found] == [by_hand(llama, p.ids, 9, 1, change) for p in prompts]

    def test_on_the_prompts_reading_steers_a_whole_answer_or_none_of_it(self, llama: Model) -> None:
        v, probe = tiny.vector(llama, scale=1.5), tiny.vector(llama, seed=3)
        prompts = tiny.prompts(llama, 6)
        readings = [float(g.readings[0, 0]) for g in _watched(llama, prompts, probe, layer=1) if g.readings is not None]
        middle = sorted(readings)[2] + 1e-4
        steered = Steering(
            (
                Term(
                    vector=v,
                    value=1.0,
                    layers=(1,),
                    when=Condition(vector=probe, layer=1, value=middle, reading="prompt"),
                ),
            )
        )

        def change(token: int, h: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
            return h + v.directions[1] if float(probe.project(prompt, 1)) > middle else h

        found = answer(llama, prompts, [steered] * 6)
        plain, all_of_it = (
            answer(llama, prompts, [None] * 6),
            answer(llama, prompts, [Steering.add(v, coef=1.0, layer=1)] * 6),
        )
        assert [list(g.ids) for g in found] == [by_hand(llama, p.ids, 9, 1, change) for p in prompts]
        chosen = [(full if r > middle else bare).ids for r, bare, full in zip(readings, plain, all_of_it, strict=True)]
        assert [g.ids for g in found] == chosen
        assert sum(r > middle for r in readings) == 3

    def test_on_a_prompts_reading_at_a_later_layer_is_known_when_the_answer_begins(self, llama: Model) -> None:
        v, probe = tiny.vector(llama, scale=1.5), tiny.vector(llama, seed=3)
        prompts = tiny.prompts(llama, 4)
        for value, expected in ((-1e6, Steering.add(v, coef=1.0, layer=1)), (1e6, None)):
            late = Steering(
                (
                    Term(
                        vector=v,
                        value=1.0,
                        layers=(1,),
                        when=Condition(vector=probe, layer=3, value=value, reading="prompt"),
                    ),
                )
            )
            found, wanted = answer(llama, prompts, [late] * 4), answer(llama, prompts, [expected] * 4)
            assert [g.ids for g in found] == [g.ids for g in wanted]

    def test_under_a_cap_that_is_never_reached_is_the_unsteered_answer_bit_for_bit(self, llama: Model) -> None:
        v = tiny.vector(llama)
        prompts = tiny.prompts(llama, 5)
        engine = LocalEngine(llama)
        plain = engine.generate(prompts, GREEDY, keep_means=True)
        capped = engine.generate(
            prompts, GREEDY, keep_means=True, steering=Steering.cap(v, level=1e4, layer=2, phase="all")
        )
        for a, b in zip(plain, capped, strict=True):
            assert a.ids == b.ids
            assert a.mean is not None
            assert b.mean is not None
            assert torch.equal(a.mean, b.mean)

    @settings(max_examples=25, deadline=None)
    @given(data=st.data())
    def test_gives_each_row_of_a_mixed_batch_what_it_gets_alone(self, llama: Model, data: st.DataObject) -> None:
        n = data.draw(st.integers(2, 6))
        rows = [data.draw(_steerings(llama)) for _ in range(n)]
        prompts = tiny.prompts(llama, n)
        engine = LocalEngine(llama)
        together = engine.generate(prompts, GREEDY, steering=rows, keep_means=True)
        for prompt, row, found in zip(prompts, rows, together, strict=True):
            [lone] = engine.generate([prompt], GREEDY, steering=[row], keep_means=True)
            assert found.ids == lone.ids
            if lone.mean is not None and found.mean is not None and lone.ids:
                torch.testing.assert_close(found.mean, lone.mean, rtol=0, atol=1e-5)


def _watched(model: Model, prompts: Sequence[object], probe: PersonaVector, layer: int) -> list[Generation]:
    from poise.activations import Probe

    return LocalEngine(model).generate(list(prompts), GREEDY, probes=[Probe(layer, probe.unit(layer))])  # type: ignore[arg-type]


@st.composite
def _steerings(draw: st.DrawFn, model: Model) -> Steering | None:
    """Any of the operations, phases, schedules and conditions, in any mixture."""
    if draw(st.integers(0, 5)) == 0:
        return None
    terms = []
    for _ in range(draw(st.integers(1, 3))):
        operation = draw(st.sampled_from(list(OPERATORS)))
        layer = draw(st.integers(0, tiny.L - 1))
        phase = draw(st.sampled_from(["response", "response", "prompt", "all"]))
        tokens = draw(st.sampled_from([(0, None), (0, 2), (3, None)])) if phase == "response" else (0, None)
        when = None
        if draw(st.booleans()):
            probe, value = tiny.vector(model, seed=draw(st.integers(3, 5))), draw(st.floats(-1, 1))
            reading = draw(st.sampled_from(["token", "prompt"]))
            when = Condition(
                vector=probe, layer=draw(st.integers(0, layer)), value=value, above=draw(st.booleans()), reading=reading
            )  # type: ignore[arg-type]
        vector = tiny.vector(model, seed=draw(st.integers(0, 2)), scale=0.5)
        terms.append(
            Term(
                vector=vector,
                value=1.0 if operation == "project_out" else draw(st.floats(-2, 2)),
                layers=(layer,),
                operation=operation,
                phase=phase,
                tokens=tokens,
                when=when,
            )
        )  # type: ignore[arg-type]
    return Steering(tuple(terms), orthogonal=draw(st.booleans()))


class TestTeacherForced:
    def test_a_schedule_counts_from_the_first_token_of_each_rows_response(self, llama: Model) -> None:
        v = tiny.vector(llama)
        texts = tiny.texts(llama, 5)
        batch = pad(texts, side="left")
        applied = AppliedSteering(llama, [Steering((Term(vector=v, value=1.0, layers=(1,), tokens=(1, 3)),))] * 5)
        applied.announce(batch)
        changed = applied.change(1, torch.zeros((*batch.ids.shape, tiny.D)))
        where = (changed != 0).any(-1)
        for row, (first, last) in enumerate(batch.spans):
            assert where[row].nonzero().flatten().tolist() == list(range(first, last))[1:3]

    def test_a_condition_that_is_read_too_late_in_the_same_pass_is_an_error(self, llama: Model) -> None:
        v = tiny.vector(llama)
        late = Steering(
            (Term(vector=v, value=1.0, layers=(1,), when=Condition(vector=v, layer=3, value=0.0, reading="prompt")),)
        )
        batch = pad(tiny.texts(llama, 2), side="left")
        applied = AppliedSteering(llama, [late] * 2)
        applied.announce(batch)
        with pytest.raises(InvalidSteering, match="layer 3 is not known"), rewrite(llama, applied.change, [1, 3]):
            llama.lm(batch.ids, attention_mask=batch.real.long(), use_cache=False)


class TestSeveralVectors:
    def test_made_orthogonal_add_only_what_the_earlier_ones_lack(self, llama: Model) -> None:
        a, b, c = (tiny.vector(llama, seed=seed) for seed in range(3))
        terms = tuple(Term(vector=v, value=2.0, layers=(1,)) for v in (a, b, c))
        first, second, third = (d[1] for d in Steering(terms, orthogonal=True).directions())
        torch.testing.assert_close(first, 2 * a.directions[1])
        for x, y in ((first, second), (first, third), (second, third)):
            assert abs(float(torch.cosine_similarity(x, y, dim=0))) < 1e-5
        q, _ = torch.linalg.qr(torch.stack([a.directions[1], b.directions[1]], 1).double())
        expected = c.directions[1].double() - q @ (q.T @ c.directions[1].double())
        torch.testing.assert_close(third.double(), 2 * expected, rtol=0, atol=1e-5)

    def test_at_different_layers_leave_each_other_alone(self, llama: Model) -> None:
        a, b = (tiny.vector(llama, seed=seed) for seed in range(2))
        pair = Steering(
            (Term(vector=a, value=1.0, layers=(1,)), Term(vector=b, value=1.0, layers=(2,))), orthogonal=True
        )
        torch.testing.assert_close(pair.directions()[1][2], b.directions[2])


class TestWhatCannotBe:
    def test_is_refused_with_the_remedy(self, llama: Model) -> None:
        v = tiny.vector(llama)
        cases: list[tuple[Callable[[], object], str]] = [
            (lambda: Term(vector=v, value=1.0, layers=(1,), tokens=(3, 3)), "Tokens 3 to 3 for grumpy are none"),
            (lambda: Term(vector=v, value=1.0, layers=(1,), phase="all", tokens=(0, 3)), "counted in the response"),
            (lambda: Term(vector=v, value=1.0, layers=()), "No layer is named for grumpy"),
            (lambda: Term(vector=v, value=1.0, layers="increments", operation="cap"), "cap grumpy at named layers"),
            (
                lambda: Term(vector=v, value=1.0, layers=(1,), when=Condition(vector=v, layer=2, value=0.0)),
                "read it at layer 1 or below",
            ),
            (
                lambda: Term(
                    vector=v,
                    value=1.0,
                    layers=(1,),
                    phase="all",
                    when=Condition(vector=v, layer=2, value=0.0, reading="prompt"),
                ),
                "layer 1 or below",
            ),
            (lambda: Condition(vector=v, layer=9, value=0.0), "Layer 9 is out of range"),
            (lambda: Condition(vector=v, layer=1, value=float("nan")), "give a finite number"),
            (lambda: Steering.cap(v, level=None), "strength of grumpy is None"),
        ]
        for make, words in cases:
            with pytest.raises(InvalidSteering, match=words):
                make()
