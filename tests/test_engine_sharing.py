"""Answers share the cache and the steps of one engine: by use, in turn, and each still says what it says alone."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch

import tiny
from poise.engine import EngineOutput, GenerationRequest, Probe, SamplingParams
from poise.engine.batch_groups import plan_groups, regroup
from poise.engine.continuous import ContinuousEngine
from poise.engine.prompt_reading import PromptPart
from poise.engine.running_batch import RunningBatch
from poise.engine.static import LocalEngine
from poise.engine.waiting import WaitingSequences, to_put_aside
from poise.model import Encoded, Model
from poise.steer import Steering, SteeringExpression

EXPRESSIONS = [
    "",
    "up=0.5",
    "up=-0.7 first 3",
    "up=0.6 after 2; down=cap:0.1",
    "up=0.5 if prompt down@1>0",
    "up=0.4 if down@1>0",
    "up=0.4 on all; down=0.5; orthogonal",
    "down=clamp:0.3",
]


@pytest.fixture(scope="module")
def llama() -> Model:
    return dataclasses.replace(tiny.model(), stop_ids=frozenset())


def requests(
    model: Model, n: int, tokens: Sequence[int] = (9, 20, 14), clients: Sequence[str | None] = (None,)
) -> list[GenerationRequest]:
    """All different: prompts of nearly one length, sampling, steering and probes."""
    vectors = {"up": tiny.vector(model, seed=1), "down": tiny.vector(model, seed=2)}
    probes = [Probe(i, vectors["up"].unit(i)) for i in range(3)]
    texts = [prompt.ids for prompt in tiny.prompts(model, n)]
    shortest = min(len(ids) for ids in texts)
    prompts = [Encoded(ids[:end], end, end) for i, ids in enumerate(texts) if (end := shortest - i % 3)]
    return [
        GenerationRequest(
            prompt=prompt,
            sampling=SamplingParams(tokens[i % len(tokens)], temperature=(0, 0.8)[i % 2]),
            seed=i,
            steering=SteeringExpression.parse(text).steering(vectors)
            if (text := EXPRESSIONS[i % len(EXPRESSIONS)])
            else None,
            probes=tuple(probes[: 1 + i % 2]),
            client=clients[i % len(clients)],
        )
        for i, prompt in enumerate(prompts)
    ]


def alone(model: Model, request: GenerationRequest) -> Any:
    [answer] = LocalEngine(model).generate(
        [request.prompt], request.sampling, seeds=[request.seed], steering=request.steering, probes=request.probes
    )
    return answer


class Watched:
    """An engine, and what became of it at each step."""

    def __init__(self, engine: ContinuousEngine) -> None:
        self.engine, self.outputs = engine, dict[Any, list[EngineOutput]]()
        self.aside: list[set[Any]] = []
        self.rows: list[set[Any]] = []
        self.order: list[Any] = []  # in which first tokens came

    def step(self) -> None:
        for output in self.engine.step():
            if output.key not in self.outputs:
                self.order.append(output.key)
            self.outputs.setdefault(output.key, []).append(output)
        self.aside.append({sequence.key for sequence in self.engine._waiting.sequences_aside})
        self.rows.append({sequence.key for sequence in self.engine._running})

    def until_one_is_aside(self) -> None:
        while not (self.aside and self.aside[-1]):
            self.step()
            assert self.engine.waiting or self.engine.running

    def finish(self) -> None:
        while self.engine.waiting or self.engine.running:
            self.step()
            assert len(self.rows) < 1000

    def check(self, model: Model, asked: dict[Any, GenerationRequest]) -> None:
        """Every answer and every reading is the lone one."""
        for key, request in asked.items():
            reference = alone(model, request)
            outputs = self.outputs[key]
            assert [output.error for output in outputs if output.error] == []
            tokens = [token for output in outputs for token in output.tokens]
            assert "".join(token.text for token in tokens) == reference.text
            assert outputs[-1].finish == reference.finish
            if request.probes:
                [prompt] = [o.prompt_readings for o in outputs if o.prompt_readings is not None]
                readings = torch.tensor([prompt, *(token.readings for token in tokens)])
                torch.testing.assert_close(readings, reference.readings[: len(readings)], atol=2e-5, rtol=1e-4)


class TestTheCache:
    @pytest.mark.parametrize("architecture", ["llama", "gpt2", "mistral", "gemma3_text"])
    def test_that_grows_full_has_the_newest_wait_as_they_are(
        self, architecture: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("poise.engine.continuous.HEADROOM", 4)
        monkeypatch.setattr("poise.engine.kv_cache.ROOM", 5)
        model = dataclasses.replace(tiny.model(architecture), stop_ids=frozenset())
        asked = dict(enumerate(requests(model, 8)))
        longest = max(request.prompt.end for request in asked.values())
        watched = Watched(ContinuousEngine(model, budget=4 * (longest + 6)))
        for key, request in asked.items():
            watched.engine.add(key, request)
        watched.finish()
        assert set().union(*watched.aside), "nobody was put aside"
        for rows in watched.rows:
            assert len(rows) * (longest + 1) <= watched.engine.budget or len(rows) == 1
        watched.check(model, asked)

    def test_is_shared_by_use_and_not_by_what_an_answer_may_become(self, llama: Model) -> None:
        asked = requests(llama, 8, tokens=[4])
        long = dataclasses.replace(asked[0], sampling=SamplingParams(150, temperature=0))
        engine = ContinuousEngine(llama, budget=8 * 100)
        watched = Watched(engine)
        engine.add("long", long)
        for key, request in enumerate(asked[1:]):
            engine.add(key, request)
        watched.step()
        assert len(watched.rows[0]) == 8, "eight of 150 tokens would need 8 × 160 positions"
        watched.finish()
        watched.check(llama, {"long": long, **dict(enumerate(asked[1:]))})

    @pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3_text"])
    def test_holds_no_more_than_its_budget_with_free_slots_while_others_wait(
        self, architecture: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = dataclasses.replace(tiny.model(architecture), stop_ids=frozenset())
        asked: dict[Any, GenerationRequest] = dict(enumerate(requests(model, 10, tokens=[5, 6, 40])))
        long = Encoded(tuple(range(5, 125)), 120, 120)
        for name in ("first", "second"):
            asked[name] = dataclasses.replace(asked[0], prompt=long, sampling=SamplingParams(30))
        engine = ContinuousEngine(model, budget=420)
        positions, idle = list[int](), list[int]()
        run = engine._pass.run

        def counted(batch: RunningBatch, part: PromptPart) -> Any:
            if part.ids.shape[1] == 1:
                positions[-1] += part.mask.numel()
                idle.append(len(batch.slots) - len(batch.sequences))
            return run(batch, part)

        monkeypatch.setattr(engine._pass, "run", counted)
        watched = Watched(engine)
        for key, request in asked.items():
            engine.add(key, request)
        while engine.waiting or engine.running:
            positions.append(0)
            watched.step()
        assert max(positions) <= engine.budget
        assert max(idle) > 0, "no slot was ever free"
        watched.check(model, asked)

    def test_keeps_free_slots_for_whoever_comes_but_not_for_long(
        self, llama: Model, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("poise.engine.continuous.HEADROOM", 1)
        asked: dict[Any, GenerationRequest] = dict(enumerate(requests(llama, 8, tokens=[18, 3])))
        long = Encoded(tuple(range(5, 245)), 240, 240)
        asked["waits"] = dataclasses.replace(asked[0], prompt=long, sampling=SamplingParams(3))
        longest = max(asked[number].prompt.end for number in range(8))
        watched = Watched(ContinuousEngine(llama, budget=8 * (longest + 20)))
        for key, request in asked.items():
            watched.engine.add(key, request)
        slots = []
        while watched.engine.waiting:
            watched.step()
            slots.append([len(batch.slots) for batch in watched.engine._batches])
        assert slots[3] == [8], "kept for whoever comes next"
        assert slots[10] == [4], "what the free ones have cost is more than what a copy costs"
        watched.finish()
        watched.check(llama, asked)

    def test_goes_to_the_longest_waiting_again(self, llama: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("poise.engine.continuous.HEADROOM", 1)
        asked = dict(enumerate(requests(llama, 6, tokens=[30])))
        longest = max(request.prompt.end for request in asked.values())
        watched = Watched(ContinuousEngine(llama, budget=3 * (longest + 10)))
        for key, request in asked.items():
            watched.engine.add(key, request)
        watched.finish()
        assert watched.order == sorted(watched.order)
        watched.check(llama, asked)

    def test_gives_back_what_is_dropped_while_it_is_aside(self, llama: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("poise.engine.continuous.HEADROOM", 1)
        asked = dict(enumerate(requests(llama, 4, tokens=[30])))
        longest = max(request.prompt.end for request in asked.values())
        watched = Watched(ContinuousEngine(llama, budget=2 * (longest + 10)))
        for key, request in asked.items():
            watched.engine.add(key, request)
        watched.until_one_is_aside()
        [key] = watched.aside[-1]
        watched.engine.abort(key)
        watched.finish()
        assert watched.outputs[key][-1].finish is None
        watched.check(llama, {k: request for k, request in asked.items() if k != key})

    def test_takes_steering_for_one_that_is_aside(self, llama: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("poise.engine.continuous.HEADROOM", 1)
        vector = tiny.vector(llama, seed=1)
        probe = (Probe(2, vector.unit(2)),)
        asked = [dataclasses.replace(r, probes=probe, steering=None) for r in requests(llama, 4, tokens=[30])]
        longest = max(request.prompt.end for request in asked)
        watched = Watched(ContinuousEngine(llama, budget=2 * (longest + 10)))
        for number, request in enumerate(asked):
            watched.engine.add(number, request)
        watched.until_one_is_aside()
        [key] = watched.aside[-1]
        released = sum(len(output.tokens) for output in watched.outputs[key])
        watched.engine.steer(key, Steering.clamp(vector, level=-5.0, layer=2))
        watched.finish()
        readings = [token.readings[0] for output in watched.outputs[key] for token in output.tokens]
        assert readings[released + 1 :] == pytest.approx([-5.0] * (len(readings) - released - 1), abs=1e-3)
        watched.check(llama, {n: request for n, request in enumerate(asked) if n != key})


class TestLongAndShortAnswers:
    @pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3_text"])
    def test_run_together_where_padding_all_to_the_longest_would_not_fit(
        self, architecture: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("poise.engine.continuous.HEADROOM", 4)
        model = dataclasses.replace(tiny.model(architecture), stop_ids=frozenset())
        asked: dict[Any, GenerationRequest] = dict(enumerate(requests(model, 8, tokens=[20, 12, 30])))
        ids = tuple(range(5, 175))
        asked["long"] = dataclasses.replace(asked[0], prompt=Encoded(ids, 170, 170), sampling=SamplingParams(25))
        engine = ContinuousEngine(model, budget=700)
        watched = Watched(engine)
        for key, request in asked.items():
            engine.add(key, request)
        groups = []
        while engine.waiting or engine.running:
            watched.step()
            groups.append([len(batch.sequences) for batch in engine._batches])
            used = sum(len(batch.sequences) * batch.width for batch in engine._batches)
            assert used <= engine.budget
        assert max(map(sum, groups)) == 9, "padded together five rows would fit"
        assert max(map(len, groups)) == 2
        apart = [len(step) == 2 for step in groups].index(True)
        assert any(len(step) == 1 and step[0] > 1 for step in groups[apart:]), "one batch again once that fits"
        watched.check(model, asked)

    @pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
    def test_say_the_same_wherever_they_are_moved(self, architecture: str) -> None:
        model = dataclasses.replace(tiny.model(architecture), stop_ids=frozenset())
        asked: dict[Any, GenerationRequest] = dict(enumerate(requests(model, 8, tokens=[5, 20, 9])))
        engine, rng = ContinuousEngine(model), random.Random(0)

        def shuffle() -> None:
            running = engine._running
            rng.shuffle(running)
            cut = rng.randrange(len(running) + 1)
            groups = [group for group in (running[:cut], running[cut:]) if group]
            engine._batches = regroup(engine._batches, groups, refill=bool(rng.randrange(2)))
            assert sorted(map(len, groups)) == sorted(len(batch.sequences) for batch in engine._batches)

        engine._arrange = shuffle  # type: ignore[method-assign]
        watched = Watched(engine)
        for key, request in asked.items():
            engine.add(key, request)
            watched.step()
        watched.finish()
        watched.check(model, asked)

    def test_share_as_few_batches_as_fit(self) -> None:
        assert plan_groups([], 10, 100) == []
        assert plan_groups([3, 50, 4], 1000, 92) == [[0, 2, 1]], "150 positions and a pass, for 58 and two"
        assert plan_groups([3, 50, 4], 1000, 91) == [[0, 2], [1]]
        assert plan_groups([3, 5, 4], 15, 100) == [[0, 2, 1]]
        assert plan_groups([3, 50, 4], 58, 100) == [[0, 2], [1]]
        assert plan_groups([3, 50, 4], 57, 100) is None
        assert plan_groups([9, 1, 9, 1, 9], 30, 100) == [[1, 3], [0, 2, 4]]

    def test_one_batchs_fault_is_its_own(self, llama: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: dict[Any, GenerationRequest] = dict(enumerate(requests(llama, 4, tokens=[9])))
        ids = tuple(range(5, 175))
        asked["long"] = dataclasses.replace(asked[0], prompt=Encoded(ids, 170, 170))
        engine = ContinuousEngine(llama, budget=480)
        watched = Watched(engine)
        for key, request in asked.items():
            engine.add(key, request)
        while engine.waiting:
            watched.step()
        assert sorted(len(batch.sequences) for batch in engine._batches) == [1, 4]
        run = engine._pass.run

        def broken(batch: Any, part: Any) -> Any:
            return 1 / 0 if len(batch.sequences) == 1 else run(batch, part)

        with monkeypatch.context() as patch:
            patch.setattr(engine._pass, "run", broken)
            watched.step()
        assert isinstance(watched.outputs.pop("long")[-1].error, ZeroDivisionError)
        watched.finish()
        watched.check(llama, {key: request for key, request in asked.items() if key != "long"})


class TestClients:
    def test_take_turns(self, llama: Model) -> None:
        engine = ContinuousEngine(llama, batch=2)
        watched = Watched(engine)
        asked = dict(enumerate(requests(llama, 9, tokens=[3], clients=["a"])))
        asked = {key: dataclasses.replace(r, client="ab"[key >= 6]) for key, r in asked.items()}
        for key, request in asked.items():
            engine.add(key, request)
        watched.finish()
        assert watched.order[:2] == [0, 6]
        places = {key: place for place, key in enumerate(watched.order)}
        assert max(places[key] for key in (6, 7, 8)) <= 6, "three of b are done before six of a"
        watched.check(llama, asked)

    def test_with_many_answers_make_room_for_others(self, llama: Model) -> None:
        engine = ContinuousEngine(llama, batch=4)
        watched = Watched(engine)
        asked: dict[Any, GenerationRequest] = {
            f"a{n}": request for n, request in enumerate(requests(llama, 5, tokens=[40], clients=["a"]))
        }
        for key, request in asked.items():
            engine.add(key, request)
        for _ in range(5):
            watched.step()
        assert watched.rows[-1] == {"a0", "a1", "a2", "a3"}
        late = {f"b{n}": request for n, request in enumerate(requests(llama, 3, tokens=[6], clients=["b"]))}
        for key, request in late.items():
            engine.add(key, request)
        watched.step()
        assert {"b0", "b1"} <= set(watched.outputs)
        assert (watched.aside[-1], "b2" in watched.outputs) == ({"a2", "a3"}, False), "two of each are fair"
        watched.finish()
        watched.check(llama, asked | late)

    def test_alone_keep_their_order(self, llama: Model) -> None:
        waiting = WaitingSequences()
        engine = ContinuousEngine(llama, batch=1)
        for key, request in enumerate(requests(llama, 3)):
            engine.add(key, request)
        waiting.new = engine._waiting.new[::-1]
        upcoming = waiting.next([], lambda sequence: True)
        assert upcoming is not None
        assert upcoming[0].key == 2, "the first in the list; the list is in the order of arrival"
        assert to_put_aside(waiting.new).key == 2


class TestLongPrompts:
    def prompt(self, model: Model, n: int) -> Encoded:
        ids = (model.encode([{"role": "user", "content": "The boats leave before the tide turns. " * 20}]).ids * 9)[:n]
        return Encoded(tuple(ids), n, n)

    @pytest.mark.parametrize(
        ("architecture", "text"),
        [
            *(("llama", text) for text in EXPRESSIONS),
            *((architecture, EXPRESSIONS[3]) for architecture in sorted(tiny.ARCHITECTURES) if architecture != "llama"),
        ],
    )
    def test_read_in_parts_give_what_they_give_in_one(self, architecture: str, text: str) -> None:
        model = tiny.model(architecture)
        vectors = {"up": tiny.vector(model, seed=1), "down": tiny.vector(model, seed=2)}
        request = GenerationRequest(
            prompt=self.prompt(model, 45),
            sampling=SamplingParams(8, temperature=0),
            steering=SteeringExpression.parse(text).steering(vectors) if text else None,
            probes=(Probe(1, vectors["up"].unit(1)), Probe(2, vectors["down"].unit(2))),
        )
        engine = ContinuousEngine(model)
        engine.prompt_budget = 7
        watched = Watched(engine)
        engine.add("long", request)
        watched.step()
        parts = engine._reading is not None
        watched.finish()
        watched.check(model, {"long": request})
        assert parts == engine._joins

    def test_leave_the_others_a_token_a_step(self, llama: Model) -> None:
        engine = ContinuousEngine(llama)
        engine.prompt_budget = 30
        watched = Watched(engine)
        asked: dict[Any, GenerationRequest] = dict(enumerate(requests(llama, 2, tokens=[40])))
        for key, request in asked.items():
            engine.add(key, request)
        watched.step()
        asked["long"] = dataclasses.replace(asked[0], prompt=self.prompt(llama, 150), sampling=SamplingParams(5))
        engine.add("long", asked["long"])
        begun = [len(sequence.detokenizer.tokens) for sequence in engine._running]
        steps = 0
        while "long" not in watched.outputs:
            watched.step()
            steps += 1
            asked.setdefault("late", dataclasses.replace(asked[1], sampling=SamplingParams(3)))
            if steps == 1:
                engine.add("late", asked["late"])
        assert steps == 5, "150 tokens, 30 at a step"
        assert [len(s.detokenizer.tokens) for s in engine._running][:2] == [n + steps for n in begun]
        assert watched.order.index("late") < watched.order.index("long")
        watched.finish()
        watched.check(llama, asked)

    def test_can_be_dropped_half_way(self, llama: Model) -> None:
        engine = ContinuousEngine(llama)
        engine.prompt_budget = 30
        engine.add("long", dataclasses.replace(requests(llama, 1)[0], prompt=self.prompt(llama, 150)))
        assert engine.step() == []
        assert engine.waiting == 1
        engine.abort("long")
        assert (engine.waiting, engine.running, engine.step()) == (0, 0, [])

    def test_steered_by_their_last_token_are_read_in_one(self, llama: Model) -> None:
        vectors = {"up": tiny.vector(llama, seed=1), "down": tiny.vector(llama, seed=2)}
        request = GenerationRequest(
            prompt=self.prompt(llama, 60),
            sampling=SamplingParams(6, temperature=0),
            steering=SteeringExpression.parse("up@2=0.5 on all if prompt down@1>0").steering(vectors),
        )
        engine = ContinuousEngine(llama)
        engine.prompt_budget = 20
        watched = Watched(engine)
        engine.add("long", request)
        watched.step()
        assert "long" in watched.outputs or engine.running == 1
        assert engine._reading is None
        watched.finish()
        watched.check(llama, {"long": request})

    def test_that_fail_end_alone(self, llama: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        engine = ContinuousEngine(llama)
        engine.prompt_budget = 30
        watched = Watched(engine)
        asked: dict[Any, GenerationRequest] = dict(enumerate(requests(llama, 2, tokens=[20])))
        for key, request in asked.items():
            engine.add(key, request)
        watched.step()
        engine.add("long", dataclasses.replace(asked[0], prompt=self.prompt(llama, 150)))
        watched.step()
        assert engine._reading is not None
        monkeypatch.setattr(engine._reading, "advance", lambda tokens: 1 / 0)
        watched.step()
        assert isinstance(watched.outputs["long"][-1].error, ZeroDivisionError)
        watched.finish()
        watched.check(llama, asked)


class TestNewcomers:
    def test_have_their_first_token_when_their_own_prompts_are_read(self, llama: Model) -> None:
        asked = dict(enumerate(requests(llama, 8, tokens=[6])))
        longest = max(request.prompt.end for request in asked.values())
        engine = ContinuousEngine(llama)
        engine.prompt_budget, engine.prefill_budget = 2 * longest, 6 * longest
        watched = Watched(engine)
        for key, request in asked.items():
            engine.add(key, request)
        came: list[int] = []
        while len(watched.outputs) < 8:
            watched.step()
            came.append(len(watched.rows[-1]))
        assert came[0] == 2
        assert len(came) >= 4
        tokens = [len(sequence.detokenizer.tokens) for sequence in engine._running]
        assert max(tokens) <= 3, "prompts are read before the others go on, as many as fit between two tokens"
        watched.finish()
        watched.check(llama, asked)
