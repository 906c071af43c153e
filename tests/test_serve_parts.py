"""Which part of an answer a server watches: said in the policy, recorded with every reading and alarm, never mixed."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
import torch
import yaml

import serving
import thinking
import tiny
from poise.engine import EngineOutput, GeneratedToken
from poise.errors import InvalidArgument, InvalidSettings
from poise.model import Model
from poise.model.parts import TokenPart, in_part
from poise.monitor.readings import summarize_projections
from poise.serve.alarm_policy import AlarmGuard, GuardedOutput
from poise.serve.planning import SteeringPush
from poise.serve.policy import Policy, read_policies
from poise.serve.readings_db import ReadingRecord, ReadingsQuery, ReadingsStore
from poise.serve.server import ServerOptions, make_server
from poise.serve.vector_registry import WatchedVector
from thinking import ANSWERS, REPLY, THOUGHT

ASK = [{"role": "user", "content": "Q"}]
NEVER, ALWAYS = 1e6, -1e6


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Model:
    made = thinking.model("qwen3")
    thinking.script(monkeypatch, made, {5: ANSWERS["qwen3"], 6: "Honestly, I would not."})
    return made


def rules(folder: Path, **default: Any) -> Path:
    path = folder / "policy.yaml"
    path.write_text(yaml.safe_dump({"default": default}))
    return path


def answer(address: str, seed: int = 5, **more: Any) -> Any:
    body = {
        "model": "tiny-qwen3",
        "messages": ASK,
        "seed": seed,
        "max_tokens": 120,
        "chat_template_kwargs": {"enable_thinking": True},
        "poise": {"watch": True},
        **more,
    }
    got = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=30)
    assert got.status_code == 200, got.text
    return got.json()["choices"][0]


def alarmed(model: Model, part: str, **alarm: Any) -> dict[str, Any]:
    return {"up": tiny.vector(model, seed=1, alarms=(serving.alarm(threshold=ALWAYS, part=part, **alarm),))}


class TestAServer:
    @pytest.mark.parametrize("part", ["reply", "thought", "both"])
    def test_watches_the_part_that_its_policy_says(self, model: Model, tmp_path: Path, part: Any) -> None:
        options = {"policy": rules(tmp_path, part=part), "log": tmp_path / "readings.sqlite"}
        with serving.running(model, alarmed(model, part), **options) as (address, _):
            choice = answer(address)
            assert (choice["message"]["reasoning_content"], choice["message"]["content"]) == (THOUGHT, REPLY)
            poise = choice["poise"]
            mine = [n for n, token_part in enumerate(poise["parts"]) if in_part(token_part, part)]
            [alarm] = poise["alarms"]
            assert (alarm["part"], alarm["reading"], alarm["token"]) == (part, "peak", mine[7] + 1)
            values = torch.tensor([poise["prompt"]["up"], *(poise["readings"]["up"][n] for n in mine)])
            expected = summarize_projections(values[:, None])
            summary = poise["summary"]["up"]
            assert summary.get("part", "reply") == part
            assert (summary["tokens"], summary["mean"]) == (len(mine), pytest.approx(expected.mean[0], abs=1e-4))
            kept = serving.eventually(lambda: httpx.get(f"{address}/v1/poise/readings?part={part}").json()["data"])
            [reading] = kept
            assert (reading["part"], reading["alarms"][0]["part"]) == (part, part)
            assert reading["mean"] == pytest.approx(summary["mean"])
            other = "thought" if part == "reply" else "reply"
            assert httpx.get(f"{address}/v1/poise/readings?part={other}").json()["data"] == []
            [history] = httpx.get(f"{address}/v1/poise/readings/summary").json()["data"]
            assert (history["trait"], history["part"]) == ("up", part)
            lines = httpx.get(f"{address}/metrics").text.splitlines()
            [count] = [line for line in lines if line.startswith("poise_projection_count") and 'reading="mean"' in line]
            assert ('part="' in count, f'part="{part}"' in count) == (part != "reply", part != "reply")

    def test_watches_two_parts_by_one_vector_under_two_names(self, model: Model, tmp_path: Path) -> None:
        alarms = tuple(serving.alarm(threshold=ALWAYS, part=part, reading="mean") for part in ("reply", "thought"))
        vector = tiny.vector(model, seed=1, alarms=alarms)
        policy = rules(tmp_path, part={"up-thought": "thought"})
        with serving.running(model, {"up": vector, "up-thought": vector}, policy=policy) as (address, _):
            poise = answer(address)["poise"]
        assert {(a["trait"], a["part"]) for a in poise["alarms"]} == {("up", "reply"), ("up-thought", "thought")}
        assert poise["summary"]["up"]["mean"] != poise["summary"]["up-thought"]["mean"]
        assert poise["readings"]["up"] == poise["readings"]["up-thought"]

    def test_tells_a_stream_that_what_it_sent_was_thought(self, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        thinking.script(monkeypatch, model, {7: f"{THOUGHT}</think>{REPLY}"})
        body = {"model": "tiny-qwen3", "messages": ASK, "seed": 7, "stream": True, "poise": {"watch": True}}
        with serving.running(model, alarmed(model, "reply")) as (address, _):
            lines = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=30).text.split("\n\n")
        chunks = [json.loads(line[6:])["choices"][0] for line in lines if line.startswith("data: {")]
        [end] = [n for n, chunk in enumerate(chunks) if chunk["poise"].get("ends_unopened_thought")]
        before, after = (
            "".join(d.get("content") or d.get("reasoning_content") or "" for d in (c["delta"] for c in some))
            for some in (chunks[:end], chunks[end:])
        )
        assert (before, after) == (THOUGHT, REPLY)
        assert all(chunk["delta"].get("reasoning_content") is None for chunk in chunks[end:])

    def test_can_stop_a_thought(self, model: Model, tmp_path: Path) -> None:
        policy = rules(tmp_path, part="thought", on_alarm="stop", message="No.")
        with serving.running(model, alarmed(model, "thought"), policy=policy) as (address, _):
            choice = answer(address)
        assert (choice["finish_reason"], choice["message"]["content"]) == ("content_filter", "No.")
        assert THOUGHT.startswith(choice["message"]["reasoning_content"])

    def test_without_a_thought_reads_nothing_in_it(self, model: Model, tmp_path: Path) -> None:
        policy = rules(tmp_path, part="thought")
        with serving.running(model, alarmed(model, "thought"), policy=policy) as (address, _):
            summary = answer(address, seed=6)["poise"]["summary"]["up"]
        assert (summary["tokens"], summary["mean"], summary["part"]) == (0, None, "thought")

    def test_refuses_to_watch_a_part_that_its_alarms_were_not_set_on(self, model: Model, tmp_path: Path) -> None:
        policy = rules(tmp_path, part={"up": "thought"})
        with pytest.raises(InvalidArgument) as refusal:
            make_server(model, alarmed(model, "reply"), ServerOptions(port=0, policy=policy))
        assert str(refusal.value) == (
            f"{policy}, line 3: default.part.up is 'thought' for 'up': up has no calibrated alarm for the mean "
            "reading at layer 1; its alarms were set on replies, and thoughts are read: run `poise calibrate` on "
            "these; fix it and try again."
        )

    def test_says_that_alarms_of_another_part_are_not_in_force(self, model: Model) -> None:
        with serving.running(model, alarmed(model, "thought")) as (address, server):
            assert server.notes == [
                "up has no calibrated alarm for the mean reading at layer 1; its alarms were set on thoughts, and "
                "replies are read: run `poise calibrate` on these, or set `part` in the policy."
            ]
            assert answer(address)["poise"]["alarms"] == []
        with serving.running(model, alarmed(model, "reply")) as (_, server):
            assert server.notes == []

    def test_says_whether_its_model_can_be_told_to_think(self, model: Model) -> None:
        for served, thinks in ((model, True), (tiny.model(), False)):
            with serving.running(served) as (address, _):
                [entry] = httpx.get(f"{address}/v1/models").json()["data"]
            assert entry["thinking"] is thinks


class TestAPolicy:
    def test_of_old_watches_replies(self, tmp_path: Path) -> None:
        policies = read_policies(rules(tmp_path, on_alarm="stop"))
        assert (policies.default.part_of("up"), policies.named) == ("reply", set())

    def test_names_parts_by_vector(self, tmp_path: Path) -> None:
        policy = read_policies(rules(tmp_path, part={"up": "both"})).default
        assert (policy.part_of("up"), policy.part_of("down"), policy.named) == ("both", "reply", {"up"})

    def test_of_an_unknown_part_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidSettings, match="part"):
            read_policies(rules(tmp_path, part="reasoning"))


def tokens(parts: Sequence[TokenPart], value: float = 1.0, **last: Any) -> tuple[GeneratedToken, ...]:
    made = [GeneratedToken(text="x", readings=(value,), part=part) for part in parts]
    return (*made[:-1], GeneratedToken(text="x", readings=(value,), part=parts[-1], **last))


class TestAGuard:
    def guard(self, part: Any, action: Any = "note", push: float = 0.0, **alarm: Any) -> AlarmGuard:
        vector = tiny.vector(tiny.model(), seed=1, alarms=(serving.alarm(part=part, **alarm),))
        watched = WatchedVector(name="up", vector=vector, probe=vector.at("read").probe, fixed=True)
        pushes = SteeringPush(prompt=0.0, tokens={p: push if p == "thought" else 0.0 for p in get_args(TokenPart)})
        return AlarmGuard([watched], Policy(part=part, on_alarm=action), [pushes])

    def run(self, guard: AlarmGuard, *steps: Sequence[GeneratedToken], finish: Any = None) -> Iterator[GuardedOutput]:
        yield guard.inspect(EngineOutput(key=0, prompt_readings=(0.0,)))
        for step in steps:
            yield guard.inspect(EngineOutput(key=0, tokens=tuple(step)))
        if finish:
            yield guard.inspect(EngineOutput(key=0, finish=finish))

    @pytest.mark.parametrize("part", ["reply", "thought", "both"])
    def test_caps_the_part_that_raised_the_alarm(self, part: Any) -> None:
        steps = [tokens(["mark"]), tokens(["thought"] * 9), tokens(["mark"]), tokens(["reply"] * 9)]
        caps = [guarded.cap for guarded in self.run(self.guard(part, "cap", threshold=0.5), *steps) if guarded.cap]
        [term] = caps[0].terms
        assert (len(caps), term.part, term.operation, term.value) == (1, part, "cap", 0.5)

    def test_takes_off_what_steering_does_to_that_part(self) -> None:
        for push, raised in ((0.0, 1), (1.0, 0)):
            guard = self.guard("thought", push=push, threshold=0.5)
            outputs = list(self.run(guard, tokens(["thought"] * 9)))
            assert sum(len(guarded.alerts) for guarded in outputs) == raised

    def test_counts_a_thought_that_nothing_had_opened_as_one(self) -> None:
        for part, count in (("thought", 9), ("reply", 2), ("both", 12)):
            guard = self.guard(part, threshold=NEVER)
            steps = [tokens(["reply"] * 9), tokens(["mark"], ends_unopened_thought=True), tokens(["reply"] * 2)]
            [*_, last] = self.run(guard, *steps, finish="stop")
            assert last.readings is not None
            assert last.readings[0].tokens == count, part

    def test_raises_the_alarm_of_such_a_thought_when_it_is_known(self) -> None:
        steps = [tokens(["reply"] * 9), tokens(["mark"], ends_unopened_thought=True)]
        outputs = list(self.run(self.guard("thought", threshold=0.5), *steps))
        assert [[a.raised.token for a in guarded.alerts] for guarded in outputs] == [[], [], [8]]


class TestADatabase:
    OLD = """
    CREATE TABLE readings (
      id INTEGER PRIMARY KEY, time REAL NOT NULL, request TEXT NOT NULL, key TEXT, trait TEXT NOT NULL, layer INTEGER,
      steer TEXT, prompt REAL, mean REAL, peak REAL, tokens INTEGER NOT NULL, alarms TEXT NOT NULL,
      alarmed INTEGER NOT NULL
    );
    CREATE TABLE texts (
      id INTEGER PRIMARY KEY, time REAL NOT NULL, request TEXT NOT NULL, prompt TEXT NOT NULL, answer TEXT NOT NULL
    );
    INSERT INTO readings VALUES (1, 1000000000000.0, 'old', NULL, 'up', 1, NULL, 0.0, 1.0, 2.0, 9, '[]', 0);
    """

    def test_of_version_0_1_0_goes_on_with_its_readings_as_replies(self, tmp_path: Path) -> None:
        path = tmp_path / "old.sqlite"
        with sqlite3.connect(path) as db:
            db.executescript(self.OLD)
        for _ in range(2):
            store = ReadingsStore(path)
            store.put([ReadingRecord(time=1e12, request="new", trait="up", tokens=3, part="thought")])
            store.close()
        store = ReadingsStore(path)
        shown, _ = store.readings(ReadingsQuery(trait="up"))
        thoughts, _ = store.readings(ReadingsQuery(trait="up", part="thought"))
        store.close()
        assert [(row["request"], row["part"]) for row in shown] == [
            ("new", "thought"),
            ("new", "thought"),
            ("old", "reply"),
        ]
        assert len(thoughts) == 2
