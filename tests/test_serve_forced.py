"""What a policy forces holds at its layer and after it, whatever a request asks for."""

from __future__ import annotations

import random
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
import torch

import serving
import tiny
from poise.activations import Probe
from poise.engine import SamplingParams
from poise.engine.static import LocalEngine
from poise.model import Model, ask
from poise.serve.policy import Policy
from poise.steer import Steering, SteeringExpression, Term
from poise.steer.hold import hold_again, hold_forced, hold_later
from poise.vector import PersonaVector

LAST = tiny.L - 1


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model()


@pytest.fixture(scope="module")
def vectors(model: Model) -> dict[str, PersonaVector]:
    return {name: tiny.vector(model, seed=n) for n, name in enumerate(("up", "down", "side"), start=1)}


def parsed(text: str, vectors: dict[str, PersonaVector]) -> Steering:
    return SteeringExpression.parse(text).steering(vectors) if text else Steering(())


def held(requested: str, forced: str, vectors: dict[str, PersonaVector]) -> Steering:
    return hold_forced(parsed(requested, vectors), parsed(forced, vectors)).steering


def readings(
    model: Model, steering: Steering, vector: PersonaVector, layer: int, tokens: int = 12
) -> tuple[list[float], list[float]]:
    """Along the direction of ``layer``: at that layer and in the last block, token by token."""
    unit = vector.unit(layer)
    [answer] = LocalEngine(model).generate(
        [model.encode([{"role": "user", "content": "Where do the boats go?"}])],
        SamplingParams(tokens, temperature=1.0),
        steering=steering,
        probes=[Probe(layer, unit), Probe(LAST, unit)],
    )
    assert answer.readings is not None
    return answer.readings[1:, 0].tolist(), answer.readings[1:, 1].tolist()


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import forced_steering

    return forced_steering


class TestAForcedCap:
    def test_is_undone_by_a_later_layer_where_nothing_holds_it(
        self, model: Model, vectors: dict[str, PersonaVector]
    ) -> None:
        """The fault that this file is about: the reading at the cap's layer does not see it."""
        together = parsed("up@2=300%", vectors) + parsed("up@1=cap:-1", vectors)
        at_layer, _ = readings(model, together, vectors["up"], 1)
        pushed = Probe(2, vectors["up"].unit(2))
        [answer] = LocalEngine(model).generate(
            [model.encode([{"role": "user", "content": "Hi"}])], SamplingParams(6), steering=together, probes=[pushed]
        )
        assert max(at_layer) <= -1 + 1e-4
        assert answer.readings is not None
        assert float(answer.readings[1:].min()) > 1

    @pytest.mark.parametrize(
        "requested",
        [
            "up@2=300%",
            "up@3=300%",
            "up@1=300%",
            "up@0=300%",
            "side@2=300%; down@3=-300%",
            "up@increments=2",
            "up@3=floor:9",
            "up@2,3=clamp:9",
            "side@3=cap:-9",
            "up@2=300% first 3",
            "up@3=300% in both",
            "up@3=100% on all",
            "up@1=out; up@3=200% if prompt side@0>-100",
            "side@3=200%; up@3=200%; orthogonal",
        ],
    )
    def test_holds_at_its_layer_and_in_the_last_block(
        self, model: Model, vectors: dict[str, PersonaVector], requested: str
    ) -> None:
        at_layer, in_last = readings(model, held(requested, "up@1=cap:-1", vectors), vectors["up"], 1)
        assert max(at_layer) <= -1 + 1e-4
        assert max(in_last) <= -1 + 1e-4

    def test_leaves_no_push_along_its_vector_at_later_layers(self, vectors: dict[str, PersonaVector]) -> None:
        for text in ("up@2=300%", "up@3=-1; up@2=2", "side@2=300%", "up@increments=2", "up@2=1; side@2=1; orthogonal"):
            requested, steering = parsed(text, vectors), held(text, "up@1=cap:-1", vectors)
            for before, after in zip(requested.terms, steering.terms[:-1], strict=True):
                assert after.value == before.value
                for layer, v in after.directions().items():
                    push = float(v @ vectors["up"].unit(layer))
                    assert layer <= 1 or push <= 1e-4, text

    def test_leaves_what_does_not_work_against_it(self, vectors: dict[str, PersonaVector]) -> None:
        for text in ("up@2=-300%", "up@0,1=20%", "up@1=out", "side@1=clamp:3"):
            requested = parsed(text, vectors)
            both = hold_forced(requested, parsed("up@1=cap:-1", vectors))
            assert both.steering.terms[:-1] == requested.terms
            assert both.notes == ()

    def test_says_what_of_a_request_it_leaves_out(self, vectors: dict[str, PersonaVector]) -> None:
        both = hold_forced(parsed("up@2=300%", vectors), parsed("up@1=cap:-1", vectors))
        assert both.notes == (
            "grumpy at layer 2 acts without its part along grumpy, which this server caps from layer 1 on.",
        )

    def test_alone_is_what_it_was(self, vectors: dict[str, PersonaVector]) -> None:
        forced = parsed("up@1=cap:-1; down=30%", vectors)
        assert hold_forced(Steering(()), forced).steering is forced
        requested = parsed("up@2=300%", vectors)
        assert hold_forced(requested, Steering(())).steering is requested

    @pytest.mark.parametrize(
        ("requested", "phase", "part"),
        [
            ("up=1", "response", "reply"),
            ("up=1 on prompt", "all", "reply"),
            ("up=1 on all", "all", "reply"),
            ("up=1 in thought", "response", "both"),
            ("up=1 on all; up=1 in both", "all", "both"),
        ],
    )
    def test_works_wherever_the_request_does(
        self, vectors: dict[str, PersonaVector], requested: str, phase: str, part: str
    ) -> None:
        cap = held(requested, "up@1=cap:-1", vectors).terms[-1]
        assert (cap.phase, cap.part, cap.layers, cap.value) == (phase, part, (1, LAST), -1)
        scheduled = held(requested, "up@1=cap:-1 first 5", vectors).terms[-1]
        assert (scheduled.phase, scheduled.part, scheduled.tokens) == ("response", "reply", (0, 5))

    @pytest.mark.parametrize("forced", ["up@1=out", "up@1=clamp:2", "up@1=floor:2", "up@0,2=cap:-1"])
    @pytest.mark.parametrize(
        "requested", ["up@3=-300%", "up@1=300%; side@2=200%", "up@1,3=floor:9", "side@3=cap:-9", "down@2=out; up@3=1"]
    )
    def test_has_siblings_that_hold_too(
        self, model: Model, vectors: dict[str, PersonaVector], forced: str, requested: str
    ) -> None:
        steering = held(requested, forced, vectors)
        for layer in (0, 2) if "@0" in forced else (1,):
            for values in readings(model, steering, vectors["up"], layer):
                low, high = {"out": (0, 0), "clamp": (2, 2), "floor": (2, 1e9), "cap": (-1e9, -1)}[
                    forced.partition("=")[2].partition(":")[0]
                ]
                if "cap" in forced and layer == 0:
                    low, high = -1e9, 1e9  # two caps of one vector: the later one is done last
                assert min(values) >= low - 1e-3
                assert max(values) <= high + 1e-3

    def test_of_an_addition_is_a_push_that_orthogonal_terms_do_not_take_away(
        self, vectors: dict[str, PersonaVector]
    ) -> None:
        [_, push] = held("up@1=1%; orthogonal", "up@1=-30%", vectors).terms
        assert torch.allclose(push.directions()[1], parsed("up@1=-30%", vectors).directions()[0][1], atol=1e-6)


class TestFiveHundredRandomRequests:
    def test_never_pass_the_caps_level(
        self, model: Model, vectors: dict[str, PersonaVector], benchmark: ModuleType
    ) -> None:
        prompts = [
            model.encode(ask(f"{word} and {n}?")) for n, word in enumerate(" ".join(tiny.SENTENCES).split()[:50])
        ]
        found, together = benchmark.compare(model, vectors, prompts, number=500, tokens=6, margin=1e-3)
        assert (found.requests, len(prompts)) == (500, 50)
        assert found.tokens > 2000
        assert found.above == (0, 0), str(found)
        assert together.above[1] > 100, "requests that would have undone it"

    def test_are_of_every_operator_and_layer(self, vectors: dict[str, PersonaVector], benchmark: ModuleType) -> None:
        requests = benchmark.requests_within(Policy(), vectors, 300, 1)
        terms = [term for request in requests for term in request.terms]
        assert {term.operation for term in terms} == {"add", "project_out", "clamp", "floor", "cap"}
        assert {layer for term in terms for layer in term.layers} == set(range(tiny.L))
        assert {term.phase for term in terms} == {"response", "prompt", "all"}
        assert any(term.when for term in terms)


class TestAnAlarmsCap:
    def test_is_done_again_where_the_request_steers_later(self, vectors: dict[str, PersonaVector]) -> None:
        cap = Steering((Term(vector=vectors["up"], value=-1.0, layers=(1,), operation="cap"),))
        assert hold_again(cap, None) is cap
        [again] = hold_again(cap, parsed("up@2=300%", vectors)).terms
        assert again.layers == (1, 2, LAST)
        assert torch.equal(again.vector.unit(LAST), vectors["up"].unit(1))

    def test_holds_in_a_server(self, model: Model, tmp_path: Path) -> None:
        (tmp_path / "rules.yaml").write_text("default: {on_alarm: cap}")
        given = serving.vectors(model)
        up = given["up"]
        given["up"] = up.with_alarms([serving.alarm(reading="prompt", threshold=-5.0)])
        everywhere = PersonaVector(up.directions[1].expand(tiny.L, -1), up.reference_norm, up.header)
        given["seen"] = everywhere.with_alarms([serving.alarm(reading="mean", layer=LAST, threshold=1e6)])
        body: dict[str, Any] = {
            "model": "tiny-llama",
            "messages": [{"role": "user", "content": "Where do the boats go?"}],
            "max_tokens": 8,
            "temperature": 1.0,
            "seed": 1,
            "poise": {"steer": "up@2=200%", "watch": True},
        }
        with serving.running(model, given, policy=tmp_path / "rules.yaml") as (address, _):
            poise = httpx.post(f"{address}/v1/chat/completions", json=body).json()["choices"][0]["poise"]
        assert poise["alarms"][0]["action"] == "cap"
        assert poise["layers"]["seen"] == LAST
        assert max(poise["readings"]["up"]) <= -5 + 1e-4
        assert max(poise["readings"]["seen"]) <= -5 + 1e-4

    @pytest.mark.parametrize("cosine", [-1.0, -0.6])
    @pytest.mark.parametrize(
        ("rules", "uploads", "action"),
        [
            ({}, False, "cap"),
            ({"may_steer": False, "most_dose": 0.1}, False, "cap"),
            ({"may_steer": False}, True, "note"),
            ({}, True, "note"),
            ({"most_dose": 1e9}, True, "cap"),
        ],
    )
    def test_undoes_no_forced_one(
        self, model: Model, tmp_path: Path, rules: dict[str, Any], uploads: bool, action: str, cosine: float
    ) -> None:
        """Of a vector that points against the forced one, which is pushed up where the other is held down."""
        given = serving.vectors(model)
        up, side = given["up"].directions, given["down"].directions
        against = cosine * up / up.norm(dim=1, keepdim=True) + (1 - cosine**2) ** 0.5 * side / side.norm(
            dim=1, keepdim=True
        )
        anti = PersonaVector(against, given["up"].reference_norm, given["up"].header)
        anti = anti.with_alarms([serving.alarm(reading="peak", threshold=-50.0)])
        given["last"] = PersonaVector(up[1].expand(tiny.L, -1), anti.reference_norm, given["up"].header).with_alarms(
            [serving.alarm(reading="mean", layer=LAST, threshold=1e6)]
        )
        policy = serving.uploading(tmp_path, on_alarm="cap", steer="up@1=cap:0", **rules)
        body: dict[str, Any] = {
            "model": "tiny-llama",
            "messages": [{"role": "user", "content": "Where do the boats go?"}],
            "max_tokens": 20,
            "temperature": 1.0,
            "seed": 1,
            "poise": {"watch": True},
        }
        with serving.running(model, given if uploads else {**given, "anti": anti}, policy=policy) as (address, server):
            if uploads:
                server.service.registry.add("anti", anti, fixed=False)
            poise = httpx.post(f"{address}/v1/chat/completions", json=body).json()["choices"][0]["poise"]
        assert poise["alarms"][0]["action"] == action
        assert max(poise["readings"]["up"]) <= 1e-4
        assert [alarm["token"] for alarm in poise["alarms"]] == [8]
        assert (max(poise["readings"]["last"][8:]) <= 1e-4) == (action == "cap")

    def test_of_an_upload_undoes_no_alarms_cap_of_the_servers_own(self, vectors: dict[str, PersonaVector]) -> None:
        up = vectors["up"]
        anti = PersonaVector(-up.directions, up.reference_norm, up.header)
        upload, servers = parsed("anti@2=cap:-9", {"anti": anti}), parsed("up@1=cap:1", vectors)
        low, high = hold_later([upload, servers], None).terms
        assert not low.directions()[2].abs().max() > 1 - 1e-6
        assert (high.layers, high.value) == ((1, 2, LAST), 1)

    def test_counts_tokens_and_conditions_of_what_is_forced_as_the_answer_does(
        self, vectors: dict[str, PersonaVector]
    ) -> None:
        forced = parsed("up@1=cap:-1 after 4; up@1=cap:-2 if prompt side@0>-100; up@1=-30%", vectors)
        first, second = hold_later([forced], parsed("side@2=1", vectors)).terms
        assert (first.tokens, first.layers) == ((4, None), (1, 2, LAST))
        assert (second.value, second.when) == (-2, None)

    def test_is_told_of_in_a_server_that_forces_one(self, model: Model, tmp_path: Path) -> None:
        (tmp_path / "rules.yaml").write_text("default: {steer: 'up@1=cap:-1'}")
        body = {"model": "tiny-llama", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
        with serving.running(model, policy=tmp_path / "rules.yaml") as (address, _):
            answer = httpx.post(f"{address}/v1/chat/completions", json={**body, "poise": {"steer": "up@2=5%"}}).json()
        assert answer["choices"][0]["poise"]["cautions"] == [
            "up at layer 2 acts without its part along up, which this server caps from layer 1 on."
        ]


class TestRowsOfABatch:
    def test_are_capped_last_whatever_the_rows_beside_them(
        self, model: Model, vectors: dict[str, PersonaVector]
    ) -> None:
        """A row's own order of work is that of its terms, not of the rows before it."""
        rows = [
            parsed("down@1=1; up@1=cap:-1", vectors),
            parsed("side@1=cap:-9; up@1=cap:-1", vectors),
            parsed("up@1=cap:-1; side@1=cap:-9; down@1=cap:-9", vectors),
        ]
        prompts = [model.encode([{"role": "user", "content": "Where do the boats go?"}])] * 3
        probe = [Probe(1, vectors["up"].unit(1))]
        for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
            answers = LocalEngine(model).generate(
                prompts, SamplingParams(6), steering=[rows[i] for i in order], probes=probe, seeds=order
            )
            for i, answer in zip(order, answers, strict=True):
                [alone] = LocalEngine(model).generate(
                    prompts[:1], SamplingParams(6), steering=rows[i], probes=probe, seeds=[i]
                )
                assert answer.readings is not None
                assert alone.readings is not None
                assert torch.allclose(answer.readings, alone.readings, atol=1e-4)
                if i < 2:
                    assert float(answer.readings[1:].max()) <= -1 + 1e-4


def test_random_requests_are_the_same_for_a_seed(benchmark: ModuleType) -> None:
    drawn = [benchmark.random_request(random.Random(5), ["a", "b"], 4, 10.0) for _ in range(2)]
    assert drawn[0] == drawn[1]
