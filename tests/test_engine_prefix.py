"""Prompts that begin like an earlier text are not read again, and say and read what they would have without it."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest
import torch

import tiny
from poise.engine import GenerationRequest, Probe, SamplingParams, prompt_reading
from poise.engine.continuous import ContinuousEngine
from poise.engine.prefix_cache import PrefixCache
from poise.model import Encoded, Model
from poise.steer import Steering, SteeringExpression
from test_engine_sharing import Watched, alone

BLOCK = 4
EXPRESSIONS = [
    "",
    "up=0.5",
    "up=0.6 after 2; down=cap:0.1",
    "up=0.5 if prompt down@1>0",
    "up=0.4 if down@1>0",
    "up=0.4 on all",
    "up=0.4 on all; down=0.5; orthogonal",
    "down=0.5; up=0.4 on all; orthogonal",
    "up=-0.4 on prompt",
    "up@1=0.4 on prompt",
    "up=out on prompt",
    "up=cap:0.1 on prompt",
    "up=floor:0.1 on all",
    "down=clamp:0.3 on prompt",
    "up=0.5 on prompt if down@1>0",
    "up=0.5 on prompt if down@1>0.5",
    "up@2=0.5 on all if prompt down@1>0",
]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("poise.engine.prefix_cache.BLOCK_TOKENS", BLOCK)


@pytest.fixture(scope="module")
def llama() -> Model:
    return dataclasses.replace(tiny.model(), stop_ids=frozenset())


def words(model: Model, n: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(random.Random(seed).randrange(5, 380) for _ in range(n))


def request(
    model: Model, ids: tuple[int, ...], text: str = "", probes: int = 1, tokens: int = 6, **more: Any
) -> GenerationRequest:
    vectors = {"up": tiny.vector(model, seed=1), "down": tiny.vector(model, seed=2)}
    return GenerationRequest(
        prompt=Encoded(ids, len(ids), len(ids)),
        sampling=more.pop("sampling", SamplingParams(tokens, temperature=0)),
        steering=SteeringExpression.parse(text).steering(vectors) if text else None,
        probes=tuple(Probe(layer, vectors["up"].unit(layer)) for layer in range(probes)),
        **more,
    )


def answer(watched: Watched, key: Any, asked: GenerationRequest) -> int:
    """Have it answered before anything else comes; how many tokens of its prompt were not read."""
    watched.engine.add(key, asked)
    watched.finish()
    return watched.outputs[key][-1].reused_tokens


class TestAPromptThatBeginsLikeAnother:
    def test_is_read_from_where_they_part(self, llama: Model) -> None:
        watched, system = Watched(ContinuousEngine(llama)), words(llama, 22)
        asked = {n: request(llama, system + words(llama, 5 + n, seed=n)) for n in range(3)}
        assert [answer(watched, n, asked[n]) for n in asked] == [0, 20, 20]
        watched.check(llama, asked)

    def test_has_the_readings_of_its_last_token_by_probes_that_watch_only_now(self, llama: Model) -> None:
        watched, ids = Watched(ContinuousEngine(llama)), words(llama, 24)
        asked = {n: request(llama, ids, probes=n) for n in range(4)}
        assert [answer(watched, n, asked[n]) for n in asked] == [0, 20, 20, 20], "the last token is always read"
        watched.check(llama, asked)

    @pytest.mark.parametrize("architecture", sorted(tiny.ARCHITECTURES))
    @pytest.mark.parametrize("budget", [512, 9])
    def test_is_answered_as_ever_by_any_model(self, architecture: str, budget: int) -> None:
        model = dataclasses.replace(tiny.model(architecture), stop_ids=frozenset())
        engine = ContinuousEngine(model)
        engine.prompt_budget = budget
        watched, system = Watched(engine), words(model, 21)
        asked = {n: request(model, system + words(model, 3 * n + 2, seed=n)) for n in range(4)}
        reused = [answer(watched, n, asked[n]) for n in asked]
        watched.check(model, asked)
        assert reused == ([0, 20, 20, 20] if engine._joins else [0] * 4)

    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3_text"])
    def test_is_answered_as_ever_among_others_of_any_steering(self, architecture: str, seed: int) -> None:
        model = dataclasses.replace(tiny.model(architecture), stop_ids=frozenset())
        rng = random.Random(seed)
        engine = ContinuousEngine(model, batch=5, budget=900)
        engine.prompt_budget = 40
        watched, asked = Watched(engine), dict[Any, GenerationRequest]()
        texts = [words(model, 30, seed=n) for n in range(2)]
        for key in range(30):
            ids = rng.choice(texts)[: rng.choice([13, 22, 30])] + words(model, rng.randrange(1, 20), seed=key)
            asked[key] = request(
                model,
                ids,
                rng.choice(EXPRESSIONS),
                probes=rng.randrange(3),
                sampling=SamplingParams(rng.randrange(1, 9), temperature=rng.choice([0, 0.8])),
                seed=key,
                client=rng.choice("ab"),
            )
            engine.add(key, asked[key])
            for _ in range(rng.randrange(3)):
                watched.step()
            if asked[key].sampling.temperature == 0 and rng.random() < 0.3:  # the conversation's next turn
                watched.finish()
                said = tuple(alone(model, asked[key]).ids)
                asked[f"{key}, then"] = request(model, ids + said + words(model, 3, seed=key), client=asked[key].client)
                engine.add(f"{key}, then", asked[f"{key}, then"])
        watched.finish()
        watched.check(model, asked)
        assert sum(outputs[-1].reused_tokens > 0 for outputs in watched.outputs.values()) > 5


class TestTheScope:
    @pytest.mark.parametrize("text", EXPRESSIONS)
    def test_has_whatever_steers_the_prompt(self, llama: Model, text: str) -> None:
        watched, ids = Watched(ContinuousEngine(llama)), words(llama, 24)
        asked = {other: request(llama, ids, other, probes=3) for other in EXPRESSIONS if other != text}
        for key, each in asked.items():
            answer(watched, key, each)
        asked["at last"] = request(llama, ids, text, probes=3)
        reused = answer(watched, "at last", asked["at last"])
        watched.check(llama, asked)
        alike = ("up=0.4 on all", "up=0.4 on all; down=0.5; orthogonal")  # what is added first stays as it is
        prompt_steered = ("on all" in text or "on prompt" in text) and text not in alike
        assert reused == (0 if prompt_steered else 20)
        again = answer(watched, "again", asked["at last"])
        assert again == (0 if "on all if prompt" in text else 20)

    def test_would_be_missed(self, llama: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        """The tests above notice a scope that leaves the steering out."""
        monkeypatch.setattr(prompt_reading, "prompt_steering_digest", lambda steering: b"")
        watched, ids = Watched(ContinuousEngine(llama)), words(llama, 24)
        asked = {text: request(llama, ids, text, probes=3) for text in ("", "up=0.4 on all")}
        for key, each in asked.items():
            answer(watched, key, each)
        with pytest.raises(AssertionError):
            watched.check(llama, asked)

    def test_is_one_clients(self, llama: Model) -> None:
        watched, ids = Watched(ContinuousEngine(llama)), words(llama, 24)
        clients = ["a", "b", "a", None, "b", None]
        reused = [answer(watched, n, request(llama, ids, client=client)) for n, client in enumerate(clients)]
        assert reused == [0, 0, 20, 0, 20, 20]

    def test_is_one_adapters(self) -> None:
        lm = tiny.adapted(tiny.lm())
        lm.add_adapter("second", lm.peft_config["default"])
        model = dataclasses.replace(tiny.wrap(lm, tiny.chatml(), name="adapted"), stop_ids=frozenset())
        watched, ids = Watched(ContinuousEngine(model)), words(model, 24)
        reused = [answer(watched, "first", request(model, ids))]
        lm.set_adapter("second")
        reused.append(answer(watched, "second", request(model, ids)))
        watched.check(model, {"second": request(model, ids)})
        with lm.disable_adapter():
            reused.append(answer(watched, "none", request(model, ids)))
            watched.check(model, {"none": request(model, ids)})
        assert reused == [0, 0, 0]


class TestTheNextTurn:
    def test_goes_on_from_the_answer_before(self, llama: Model) -> None:
        watched, ids = Watched(ContinuousEngine(llama)), words(llama, 16)
        first = request(llama, ids, tokens=13)
        said = tuple(alone(llama, first).ids)
        then = request(llama, ids + said + words(llama, 6, seed=1), "up=0.5", probes=2)
        assert [answer(watched, "first", first), answer(watched, "then", then)] == [0, 28]
        watched.check(llama, {"first": first, "then": then})

    def test_reads_the_answer_that_was_steered(self, llama: Model) -> None:
        watched, ids = Watched(ContinuousEngine(llama)), words(llama, 16)
        first = request(llama, ids, "up=0.5", tokens=13)
        then = request(llama, ids + tuple(alone(llama, first).ids) + words(llama, 6, seed=1))
        assert [answer(watched, "first", first), answer(watched, "then", then)] == [0, 16]
        watched.check(llama, {"first": first, "then": then})

    def test_reads_the_answer_that_an_alarm_has_capped(self, llama: Model) -> None:
        watched, ids = Watched(ContinuousEngine(llama)), words(llama, 16)
        watched.engine.add("first", request(llama, ids, tokens=13))
        watched.step()
        watched.engine.steer("first", Steering.clamp(tiny.vector(llama, seed=1), level=-5.0, layer=2))
        said = watched.engine._running[0].detokenizer
        watched.finish()
        then = request(llama, ids + tuple(said.tokens) + words(llama, 6, seed=1))
        assert answer(watched, "then", then) == 16
        watched.check(llama, {"then": then})


class TestItsRoom:
    def test_is_a_share_of_the_cache_and_the_oldest_go_first(self, llama: Model) -> None:
        watched = Watched(ContinuousEngine(llama, budget=200))
        asked = {n: request(llama, words(llama, 40, seed=n), tokens=1) for n in range(4)}
        assert [answer(watched, n, asked[n]) for n in asked] == [0] * 4
        assert watched.engine.prefixes.tokens == 100
        assert [answer(watched, f"{n} again", asked[n]) for n in (3, 2, 0)] == [36, 36, 0]

    def test_is_given_back_before_anybody_waits(self, llama: Model) -> None:
        rows = []
        for share in (0, 1):
            engine = ContinuousEngine(llama, budget=200)
            engine.prefixes.capacity *= share
            watched = Watched(engine)
            for n in range(4):
                answer(watched, n, request(llama, words(llama, 40, seed=n), tokens=1))
            assert bool(engine.prefixes.tokens) == bool(share)
            for n in range(9):
                engine.add(f"late {n}", request(llama, words(llama, 30, seed=n), tokens=12))
            while engine.waiting or engine.running:
                watched.step()
                used = sum(len(batch.sequences) * batch.width for batch in engine._batches)
                assert used + engine.prefixes.tokens <= 200
            rows.append([len(each) for each in watched.rows if each])
        assert rows[0] == rows[1]

    def test_holds_a_beginning_of_what_is_longer(self, llama: Model) -> None:
        watched, ids = Watched(ContinuousEngine(llama, budget=100)), words(llama, 60)
        asked = {n: request(llama, ids) for n in range(2)}
        assert [answer(watched, n, asked[n]) for n in asked] == [0, 32]
        watched.check(llama, asked)


def test_blocks_that_others_follow_outlive_them() -> None:
    prefixes, cache = PrefixCache(16), tiny_cache(40)
    prefixes.add("s", tuple(range(12)), cache, 0)
    prefixes.add("s", (0, 1, 2, 3, 9, 9, 9, 9), cache, 0)
    assert prefixes.tokens == 16
    prefixes.leave(8)
    assert [block.ids for block in prefixes.match("s", (0, 1, 2, 3, 9, 9, 9, 9, 5))] == [(0, 1, 2, 3), (9, 9, 9, 9)]
    assert prefixes.match("s", tuple(range(13)))[1:] == []
    assert prefixes.match("t", tuple(range(13))) == []
    prefixes.leave(0)
    assert (prefixes.tokens, prefixes._roots) == (0, {})


def tiny_cache(length: int) -> Any:
    from poise.engine.kv_cache import roomy_cache

    cache = roomy_cache(tiny.model().lm.config)
    for layer in range(tiny.L):
        cache.update(torch.randn(1, 2, length, 8), torch.randn(1, 2, length, 8), layer)
    return cache
