"""Answers that come and go say what they say alone, whatever runs beside them."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch

import tiny
from poise.engine import EngineOutput, GenerationRequest, Probe, SamplingParams
from poise.engine.continuous import ContinuousEngine
from poise.engine.detokenizer import Detokenizer
from poise.engine.static import LocalEngine
from poise.errors import InvalidArgument, OtherModel
from poise.model import Model, ask
from poise.steer import Steering, SteeringExpression

EXPRESSIONS = [
    "",
    "up=0.5",
    "up=-0.7 first 3",
    "up=out",
    "up=0.6 after 2; down=cap:0.1",
    "up=0.5 if prompt down@1>0",
    "up=0.5 if prompt down@1<0",
    "up=0.4 if down@1>0",
    "up=0.4 on all; down=0.5; orthogonal",
    "down=clamp:0.3",
]


def jobs(model: Model, n: int = 10) -> list[GenerationRequest]:
    """All different: prompts, lengths, sampling, steering and probes."""
    vectors = {"up": tiny.vector(model, seed=1), "down": tiny.vector(model, seed=2)}
    probes = [Probe(i, vectors["up"].unit(i)) for i in range(3)]
    samplings = [
        SamplingParams(9, temperature=0),
        SamplingParams(6, temperature=0.8),
        SamplingParams(12, temperature=1.2, top_p=0.9),
    ]
    return [
        GenerationRequest(
            prompt=prompt,
            sampling=samplings[i % 3],
            seed=i,
            steering=SteeringExpression.parse(text).steering(vectors)
            if (text := EXPRESSIONS[i % len(EXPRESSIONS)])
            else None,
            probes=tuple(probes[: i % 3]),
        )
        for i, prompt in enumerate(tiny.prompts(model, n))
    ]


def alone(model: Model, job: GenerationRequest) -> Any:
    [found] = LocalEngine(model).generate(
        [job.prompt], job.sampling, seeds=[job.seed], steering=job.steering, probes=job.probes
    )
    return found


def finish(
    engine: ContinuousEngine, steps: Sequence[Sequence[tuple[int, GenerationRequest]]] = ()
) -> dict[Any, list[EngineOutput]]:
    """Add jobs before the steps that are named, and go on until nothing runs."""
    out: dict[Any, list[EngineOutput]] = {}
    step = 0
    while step < len(steps) or engine.waiting or engine.running:
        for key, job in steps[step] if step < len(steps) else ():
            engine.add(key, job)
        for said in engine.step():
            out.setdefault(said.key, []).append(said)
        step += 1
        assert step < 500
    return out


def text(outputs: Sequence[EngineOutput]) -> str:
    return "".join(token.text for output in outputs for token in output.tokens)


@pytest.fixture(scope="module")
def llama() -> Model:
    return tiny.model()


class TestAnswersThatComeAndGo:
    @pytest.mark.parametrize("order", range(3))
    @pytest.mark.parametrize("architecture", ["llama", "gpt2", "mistral", "gemma3_text"])
    def test_are_those_that_each_job_gets_alone(
        self, architecture: str, order: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("poise.engine.kv_cache.ROOM", 5)
        model = tiny.model(architecture)
        asked = jobs(model)
        said_alone = [alone(model, job) for job in asked]
        stops = {g.ids[4] for g in said_alone[:2] if len(g.ids) > 4}
        model = dataclasses.replace(model, stop_ids=frozenset(stops))
        said_alone = [alone(model, job) for job in asked]
        rng = random.Random(order)
        come: list[list[tuple[int, GenerationRequest]]] = [[] for _ in range(9)]
        for key in rng.sample(range(len(asked)), len(asked)):
            come[rng.randrange(9)].append((key, asked[key]))
        found = finish(ContinuousEngine(model, batch=4 + order), come)
        for key, expected in enumerate(said_alone):
            pieces = found[key]
            assert text(pieces) == expected.text
            assert pieces[-1].finish == expected.finish
            assert sum(len(one.tokens) for one in pieces) == len(expected.ids)
            if asked[key].probes:
                read = [pieces[0].prompt_readings, *(t.readings for one in pieces for t in one.tokens)]
                torch.testing.assert_close(torch.tensor(read), expected.readings, rtol=0, atol=1e-4)
            else:
                assert pieces[0].prompt_readings is None

    def test_free_their_place_when_they_are_dropped(self, llama: Model) -> None:
        engine = ContinuousEngine(llama, batch=3)
        asked = jobs(llama, 6)
        for key, job in enumerate(asked):
            engine.add(key, job)
        engine.step()
        assert (engine.running, engine.waiting) == (3, 3)
        engine.abort(1)
        engine.abort(5)
        assert (engine.running, engine.waiting) == (2, 2)
        found = finish(engine)
        assert sorted(found) == [0, 2, 3, 4]
        assert text(found[4]) == alone(llama, asked[4]).text

    def test_are_bounded_by_the_cached_tokens_that_they_may_need(self, llama: Model) -> None:
        asked = [dataclasses.replace(job, sampling=SamplingParams(60, temperature=0)) for job in jobs(llama, 3)]
        longest = max(len(job.prompt.ids) for job in asked) + 60
        engine = ContinuousEngine(llama, budget=2 * longest)
        for key, job in enumerate(asked):
            engine.add(key, job)
        engine.step()
        assert engine.running == 2
        assert sorted(finish(engine)) == [0, 1, 2]

    def test_join_only_an_empty_batch_where_the_cache_cannot_be_joined(
        self, llama: Model, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("poise.engine.continuous.joinable", lambda cache: False)
        engine, asked = ContinuousEngine(llama), jobs(llama, 4)
        found = finish(engine, [[(0, asked[0]), (1, asked[1])], [(2, asked[2])], [(3, asked[3])]])
        assert [text(found[key]) for key in range(4)] == [alone(llama, job).text for job in asked]


@pytest.mark.real
class TestSmolLM:
    def test_says_to_those_who_come_late_what_it_says_to_each_alone(self, smollm: Model) -> None:
        asked = [
            GenerationRequest(prompt=smollm.encode(ask(question)), sampling=SamplingParams(10, temperature=0))
            for question in ("What is a fox?", "Name three colours of boats that one sees at sea.", "Why?")
        ]
        found = finish(ContinuousEngine(smollm), [[(0, asked[0])], [], [(1, asked[1])], [(2, asked[2])]])
        assert [text(found[key]) for key in range(3)] == [alone(smollm, job).text for job in asked]


class TestAFault:
    def test_of_one_row_ends_that_row_alone(self, llama: Model) -> None:
        asked = jobs(llama, 4)
        broken = dataclasses.replace(
            asked[1], steering=Steering.add(tiny.vector(llama, scale=1e30), coef=1e30, phase="all")
        )
        found = finish(ContinuousEngine(llama), [[(0, asked[0]), (1, broken)], [(2, asked[2])]])
        assert "NaN or infin" in str(found[1][-1].error)
        assert [text(found[key]) for key in (0, 2)] == [alone(llama, asked[key]).text for key in (0, 2)]

    def test_in_a_decoding_pass_ends_its_batch_and_the_next_one_runs(
        self, llama: Model, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine, asked = ContinuousEngine(llama), jobs(llama, 4)
        engine.add(0, asked[0])
        engine.add(1, asked[1])
        engine.step()
        with monkeypatch.context() as patch:
            patch.setattr("poise.engine.model_pass.newest_logits", lambda *a: 1 / 0)
            lost = engine.step()
        assert {said.key for said in lost if isinstance(said.error, ZeroDivisionError)} == {0, 1}
        assert engine.running == 0
        assert text(finish(engine, [[(2, asked[2])]])[2]) == alone(llama, asked[2]).text

    def test_in_reading_a_prompt_ends_only_the_culprit(self, llama: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        from poise.engine import model_pass

        asked = jobs(llama, 3)
        real, bad = model_pass.newest_logits, torch.tensor(asked[1].prompt.ids)

        def fails(model: Model, cache: Any, ids: torch.Tensor, *rest: Any) -> torch.Tensor:
            if any(row[-len(bad) :].equal(bad) for row in ids):
                raise RuntimeError("this prompt")
            return real(model, cache, ids, *rest)

        monkeypatch.setattr(model_pass, "newest_logits", fails)
        found = finish(ContinuousEngine(llama), [list(enumerate(asked))])
        assert str(found[1][-1].error) == "this prompt"
        assert [text(found[key]) for key in (0, 2)] == [alone(llama, asked[key]).text for key in (0, 2)]

    def test_leaves_no_hook_behind(self, llama: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("poise.engine.model_pass.newest_logits", lambda *a: 1 / 0)
        finish(ContinuousEngine(llama), [list(enumerate(jobs(llama, 4)))])
        assert not any(block._forward_hooks for block in llama.blocks)


class TestAJob:
    def test_longer_than_the_window_is_refused(self, llama: Model) -> None:
        [prompt] = tiny.prompts(llama, 1)
        with pytest.raises(InvalidArgument, match="exceed the window"):
            ContinuousEngine(llama).check(GenerationRequest(prompt=prompt, sampling=SamplingParams(250)))

    def test_steered_by_another_models_vector_is_refused(self, llama: Model) -> None:
        [prompt] = tiny.prompts(llama, 1)
        foreign = Steering.add(tiny.vector(tiny.model(seed=7)), coef=1)
        with pytest.raises(OtherModel):
            ContinuousEngine(llama).check(
                GenerationRequest(prompt=prompt, sampling=SamplingParams(5), steering=foreign)
            )

    def test_reports_the_log_probability_of_what_it_says(self, llama: Model) -> None:
        job = dataclasses.replace(jobs(llama, 1)[0], top_logprobs=3)
        tokens = [t for said in finish(ContinuousEngine(llama), [[(0, job)]])[0] for t in said.tokens]
        ids = torch.tensor([[*job.prompt.ids, *alone(llama, job).ids]])
        with torch.inference_mode():
            expected = llama.lm(ids).logits[0, len(job.prompt.ids) - 1 : -1].log_softmax(-1)
        best, _ = expected.max(-1)  # greedy
        torch.testing.assert_close(torch.tensor([t.logprob for t in tokens]), best, rtol=0, atol=1e-4)
        torch.testing.assert_close(
            torch.tensor([[p for _, p in t.top_logprobs] for t in tokens]), expected.topk(3).values, rtol=0, atol=1e-4
        )
        assert all(t.top_logprobs[0][0] == t.decoded for t in tokens)


class TestSteeringThatComesLater:
    def test_holds_from_the_next_token_on_and_for_that_row_alone(self, llama: Model) -> None:
        vector = tiny.vector(llama, seed=1)
        probe = Probe(2, vector.unit(2))
        asked = [dataclasses.replace(job, steering=None, probes=(probe,)) for job in jobs(llama, 2)]
        asked = [dataclasses.replace(job, sampling=SamplingParams(8, temperature=0)) for job in asked]
        engine = ContinuousEngine(llama)
        for key, job in enumerate(asked):
            engine.add(key, job)
        said = [s for _ in range(4) for s in engine.step() if s.key == 1]
        begun = len(engine._running[1].detokenizer.tokens) - 1  # the newest is read by the next pass
        engine.steer(1, Steering.clamp(vector, level=-5.0, layer=2))
        rest = finish(engine)
        read = [t.readings[0] for s in (*said, *rest[1]) for t in s.tokens]
        before, after = read[:begun], read[begun:]
        torch.testing.assert_close(torch.tensor(before), alone(llama, asked[1]).readings[1 : 1 + begun, 0])
        assert after == pytest.approx([-5.0] * len(after), abs=1e-4)
        assert all(t.readings[0] != pytest.approx(-5.0) for s in rest[0] for t in s.tokens)


class TestWords:
    def heard(self, words: str, stop: Sequence[str] = ()) -> tuple[Detokenizer, list[int]]:
        tokenizer = tiny.chatml()
        detokenizer, safe = Detokenizer(tokenizer, stop), []
        for token in tokenizer(words)["input_ids"]:
            ended = detokenizer.add(token)
            safe.append(detokenizer.releasable)
            if ended:
                break
        detokenizer.finish()
        return detokenizer, safe

    @pytest.mark.parametrize("tokenizer", [tiny.chatml, tiny.gemma, tiny.llama3], ids=["bytes", "unigram", "llama3"])
    def test_are_what_the_tokenizer_makes_of_all_tokens(self, tokenizer: Any) -> None:
        for sentence in [*tiny.SENTENCES, "Zażółć gęślą jaźń 🦊🦊 – 漢字", "a  b   c"]:
            ids = tokenizer()(sentence, add_special_tokens=False)["input_ids"]
            detokenizer = Detokenizer(tokenizer())
            for token in ids:
                detokenizer.add(token)
            detokenizer.finish()
            assert detokenizer.text == "".join(detokenizer.pieces) == tokenizer().decode(ids, skip_special_tokens=True)
            assert len(detokenizer.pieces) == len(ids)

    def test_never_show_a_part_of_a_character(self) -> None:
        tokenizer = tiny.chatml()
        detokenizer = Detokenizer(tokenizer)
        for token in tokenizer("🦊")["input_ids"]:
            assert detokenizer.releasable in (0, len(detokenizer.tokens))
            detokenizer.add(token)
        assert detokenizer.pieces == [""] * (len(detokenizer.tokens) - 1) + ["🦊"]

    def test_end_before_a_stop_string_wherever_tokens_end(self) -> None:
        detokenizer, _ = self.heard("The boats leave before the tide turns.", ["ore the"])
        assert detokenizer.text == "".join(detokenizer.pieces) == "The boats leave bef"

    def test_end_at_the_earliest_of_several(self) -> None:
        assert self.heard("one two three four", ["four", "two", "three"])[0].text == "one "

    def test_hold_back_what_may_become_a_stop_string(self) -> None:
        tokenizer = tiny.chatml()
        detokenizer, shown = Detokenizer(tokenizer, ["tide out"]), []
        for token in tokenizer("the tide turns, the tide out there")["input_ids"]:
            ended = detokenizer.add(token)
            shown.append("".join(detokenizer.pieces[: detokenizer.releasable]))
            if ended:
                break
        assert detokenizer.text == shown[-1] == "the tide turns, the "
        assert all("the tide turns, the ".startswith(text) for text in shown)
        assert "the tide" in shown
