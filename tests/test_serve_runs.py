"""Runs of agents behind the server: followed by name or history, a key's own, bounded; drift and what is done."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import serving
import tiny
from poise.errors import InvalidArgument, UserError
from poise.model import Model
from poise.serve.requests import ChatMessage
from poise.serve.run_chain import MessageChain
from poise.serve.runs import RunBook, StepRecord
from poise.serve.server import ServerOptions, check_options
from serving import eventually

NAME = "tiny-llama"
ALWAYS = {"mean": -100.0, "sd": 1.0, "h": 5.0}
"""A chart that every step passes: of readings far below."""


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model(max_position_embeddings=2048)


def rules(folder: Path, **runs: Any) -> Path:
    path = folder / "policy.yaml"
    path.write_text(json.dumps({"default": {"runs": runs}}))
    return path


@pytest.fixture(scope="module")
def http(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    policy = rules(tmp_path_factory.mktemp("runs"))
    with (
        serving.running(model, policy=policy) as (address, _),
        httpx.Client(base_url=address, timeout=60) as client,
    ):
        yield client


def say(http: httpx.Client, history: list[Any], session: str | None = None, **more: Any) -> Any:
    """One step, which is added to the history."""
    poise = {"poise": {"session": session}} if session else {}
    body = {"model": NAME, "messages": history, "max_tokens": 6, "temperature": 0, **poise, **more}
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    history.append({"role": "assistant", "content": answer.json()["choices"][0]["message"]["content"]})
    return answer


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def run_of(http: httpx.Client, answer: httpx.Response) -> Any:
    name = answer.headers["x-poise-session"]
    return http.get(f"/v1/poise/sessions/{name}").json()


class TestHistories:
    def messages(self, *turns: tuple[str, str]) -> list[ChatMessage]:
        return [ChatMessage.model_validate({"role": role, "content": text}) for role, text in turns]

    def test_begin_alike_and_part(self) -> None:
        first = MessageChain.of(self.messages(("system", "Be."), ("user", "One.")))
        longer = MessageChain.of(self.messages(("system", "Be."), ("user", " One.\n"), ("assistant", "Two.")))
        other = MessageChain.of(self.messages(("system", "Be it."), ("user", "One.")))
        assert longer.full[1] == first.full[1] != other.full[1]
        assert first.spoken[1] == other.spoken[1]
        assert first.answered({"role": "assistant", "content": "Two. "})[0] == longer.full[2]
        assert longer.answers == 1

    def test_know_calls_by_name_and_arguments_alone(self) -> None:
        def call(name: str, arguments: str, number: str) -> dict[str, Any]:
            return {"id": number, "type": "function", "function": {"name": name, "arguments": arguments}}

        chain = MessageChain.of(self.messages(("user", "One.")))
        same = [
            chain.answered({"content": None, "tool_calls": [call("look", '{"a": 1, "b": 2}', "x")]}),
            chain.answered({"content": "", "tool_calls": [call("look", '{"b":2,"a":1}', "y")]}),
        ]
        assert same[0] == same[1] != chain.answered({"content": None, "tool_calls": [call("look", "{}", "x")]})


class TestARun:
    def test_is_followed_by_its_history(self, http: httpx.Client) -> None:
        history = [user("Where do the boats go?")]
        first = say(http, history)
        history.append(user("And then?"))
        second = say(http, history)
        history += [user("And then?")]
        third = say(http, history, stream=False)
        assert first.headers["x-poise-session"] == second.headers["x-poise-session"] == third.headers["x-poise-session"]
        run = run_of(http, third)
        assert [step["number"] for step in run["data"]] == [1, 2, 3]
        assert (run["named"], run["state"], run["earlier_answers"]) == (False, "open", 0)
        assert set(run["data"][0]["traits"]) == {"up", "down"}
        assert "poise" not in third.json()["choices"][0], "nothing of Poise for those who have not asked"

    def test_is_followed_though_its_system_turn_changes(self, http: httpx.Client) -> None:
        history = [{"role": "system", "content": "It is one o'clock."}, user("Where to?")]
        first = say(http, history)
        history = [{"role": "system", "content": "It is two o'clock."}, *history[1:], user("And then?")]
        assert say(http, history).headers["x-poise-session"] == first.headers["x-poise-session"]

    def test_is_followed_by_field_and_header(self, http: httpx.Client) -> None:
        answer = say(http, [user("One.")], session="errand 7")
        body = {"model": NAME, "messages": [user("Two.")], "max_tokens": 4}
        again = http.post("/v1/chat/completions", json=body, headers={"X-Poise-Session": "errand 7"})
        assert again.headers["x-poise-session"] == "errand 7"
        assert run_of(http, again)["steps"] == 2
        assert answer.json()["choices"][0]["poise"]["run"] == {"session": "errand 7", "step": 1}

    def test_begins_anew_with_the_same_words(self, http: httpx.Client) -> None:
        one, two = (say(http, [user("Hello there.")]).headers["x-poise-session"] for _ in range(2))
        assert one != two

    def test_forks_where_an_earlier_step_is_gone_on_from(self, http: httpx.Client) -> None:
        history = [user("Which way is the sea?")]
        first = say(http, history)
        early = list(history)
        say(http, [*history, user("Left?")])
        fork = run_of(http, say(http, [*early, user("Right?")]))
        assert fork["forked_from"] == [first.headers["x-poise-session"], 1]
        assert [step["number"] for step in fork["data"]] == [1, 2]

    def test_that_was_not_seen_from_its_beginning_is_followed_from_there(self, http: httpx.Client) -> None:
        history = [user("Long ago?"), {"role": "assistant", "content": "Yes."}, user("And now?")]
        run = run_of(http, say(http, history))
        assert (run["earlier_answers"], run["steps"]) == (1, 1)

    def test_of_responses_is_followed_too(self, http: httpx.Client) -> None:
        body = {"model": NAME, "input": "Sail where?", "max_output_tokens": 5, "temperature": 0}
        first = http.post("/v1/responses", json=body)
        items = [{"role": "user", "content": "Sail where?"}, *first.json()["output"], user("And then?")]
        second = http.post("/v1/responses", json={**body, "input": items})
        assert second.status_code == 200, second.text
        assert run_of(http, second)["steps"] == 2
        assert first.headers["x-poise-session"] == second.headers["x-poise-session"]

    def test_keeps_what_was_read_of_each_step(self, http: httpx.Client) -> None:
        history = [user("What did it read?")]
        answer = say(http, history, poise={"watch": True})
        summary = answer.json()["choices"][0]["poise"]["summary"]
        [step] = run_of(http, answer)["data"]
        for trait, reading in step["traits"].items():
            assert {name: reading[name] for name in ("prompt", "mean", "peak")} == pytest.approx(
                {name: summary[trait][name] for name in ("prompt", "mean", "peak")}
            )
        assert (step["finish"], step["tokens"]) == ("length", 6)

    def test_is_not_marked_by_a_stream_that_was_left(self, http: httpx.Client) -> None:
        history = [user("Tell it at length.")]
        body = {"model": NAME, "messages": history, "max_tokens": 400, "stream": True}
        with http.stream("POST", "/v1/chat/completions", json=body) as stream:
            name = stream.headers["x-poise-session"]
            next(stream.iter_lines())
        step = eventually(lambda: http.get(f"/v1/poise/sessions/{name}").json()["data"])[0]
        assert (step["finish"], step["traits"]) == ("aborted", {})

    def test_is_listed_and_deleted(self, http: httpx.Client) -> None:
        say(http, [user("One.")], session="gone/soon")
        assert http.get("/v1/poise/sessions").json()["data"][0]["id"] == "gone/soon"
        assert http.delete("/v1/poise/sessions/gone/soon").json() == {"deleted": True, "id": "gone/soon"}
        missing = http.get("/v1/poise/sessions/gone/soon")
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "session_not_found")

    def test_counts_no_request_that_was_refused(self, http: httpx.Client) -> None:
        body = {"model": NAME, "messages": [user("One.")], "max_tokens": 10**6, "poise": {"session": "refused"}}
        assert http.post("/v1/chat/completions", json=body).status_code == 400
        assert http.get("/v1/poise/sessions/refused").status_code == 404
        assert run_of(http, say(http, [user("One.")], session="refused"))["steps"] == 1
        assert http.post("/v1/chat/completions", json=body).status_code == 400
        assert run_of(http, say(http, [user("Two.")], session="refused"))["steps"] == 2

    @pytest.mark.parametrize("name", ["a\r\nX-Evil: 1", "a\0b", " x ", "   ", "лодка"])
    def test_whose_name_no_header_can_have_is_answered_without_one(self, http: httpx.Client, name: str) -> None:
        answer = say(http, [user("What is a boat?")], session=name)
        assert not {"x-poise-session", "x-evil"} & set(answer.headers)
        assert name in {run["id"] for run in http.get("/v1/poise/sessions").json()["data"]}

    def test_has_one_name_in_field_and_header(self, http: httpx.Client) -> None:
        body = {"model": NAME, "messages": [user("Which boat?")], "max_tokens": 3}
        for _ in range(2):
            headers = {b"X-Poise-Session": "шлюпка".encode()}
            assert http.post("/v1/chat/completions", json=body, headers=headers).status_code == 200
        say(http, [user("And now?")], session="шлюпка")
        assert http.get("/v1/poise/sessions/шлюпка").json()["steps"] == 3

    @pytest.mark.parametrize("name", ["x" * 201, "x" * 6000])
    def test_with_a_huge_name_is_refused(self, http: httpx.Client, name: str) -> None:
        body = {"model": NAME, "messages": [user("One.")], "max_tokens": 2}
        by_header = http.post("/v1/chat/completions", json=body, headers={"X-Poise-Session": name})
        by_field = http.post("/v1/chat/completions", json={**body, "poise": {"session": name}})
        assert by_header.status_code == by_field.status_code == 400
        assert "at most 200" in by_header.json()["error"]["message"]

    def test_is_not_followed_where_no_rule_says_so(self, model: Model) -> None:
        with serving.running(model) as (address, server), httpx.Client(base_url=address, timeout=60) as client:
            assert "x-poise-session" not in say(client, [user("One.")]).headers
            assert say(client, [user("One.")], session="a").headers["x-poise-session"] == "a"
            assert len(server.service.runs.book) == 1


class TestKeys:
    def test_see_and_go_on_with_their_own_runs_alone(self, model: Model, tmp_path: Path) -> None:
        keys, policy = tmp_path / "keys", tmp_path / "policy.yaml"
        keys.write_text("ana 0123456789abcdef-ana\nben 0123456789abcdef-ben\n")
        keys.chmod(0o600)
        policy.write_text(json.dumps({"default": {"runs": {}}, "keys": {"ben": {"admin": True, "runs": {}}}}))
        with serving.running(model, keys=keys, policy=policy) as (address, _):
            ana, ben = (
                httpx.Client(base_url=address, timeout=60, headers={"authorization": f"Bearer 0123456789abcdef-{name}"})
                for name in ("ana", "ben")
            )
            with ana, ben:
                history = [user("Whose is it?")]
                name = say(ben, history).headers["x-poise-session"]
                assert say(ana, [*history, user("Go on.")]).headers["x-poise-session"] != name
                assert ana.get(f"/v1/poise/sessions/{name}").status_code == 404
                assert ana.get(f"/v1/poise/sessions/{name}", params={"key": "ben"}).status_code == 403
                assert ana.delete(f"/v1/poise/sessions/{name}").status_code == 404
                say(ana, [user("One.")], session="same")
                assert run_of(ben, say(ben, [user("Two.")], session="same"))["steps"] == 1
                assert {run["key"] for run in ana.get("/v1/poise/sessions").json()["data"]} == {"ana"}
                assert {run["key"] for run in ben.get("/v1/poise/sessions").json()["data"]} == {"ana", "ben"}
                assert ben.get("/v1/poise/sessions/same", params={"key": "ana"}).json()["steps"] == 1


class TestDrift:
    @pytest.fixture
    def drifting(self, model: Model, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[httpx.Client]:
        policy = rules(tmp_path, traits={"up": request.param})
        with (
            serving.running(model, policy=policy) as (address, _),
            httpx.Client(base_url=address, timeout=60) as client,
        ):
            yield client

    @pytest.mark.parametrize("drifting", [{"chart": ALWAYS, "on_drift": "cap", "level": -0.2}], indirect=True)
    def test_caps_the_trait_from_the_next_step_on(self, drifting: httpx.Client) -> None:
        history = [user("Where do the boats go?")]
        first = say(drifting, history, poise={"watch": True})
        history.append(user("And then?"))
        second = say(drifting, history, poise={"watch": True})
        [raised] = first.json()["choices"][0]["poise"]["run"]["drift"]
        assert (raised["trait"], raised["side"], raised["action"]) == ("up", "above", "cap")
        run = run_of(drifting, second)
        assert run["holds"]["up"].endswith("=cap:-0.2")
        assert [step["steer"] for step in run["data"]] == [None, run["holds"]["up"]]
        readings = second.json()["choices"][0]["poise"]["readings"]["up"]
        assert max(readings) < -0.2 + 1e-4

    @pytest.mark.parametrize(
        "drifting",
        [{"side": "below", "chart": {"mean": 100.0, "sd": 1.0, "h": 5.0, "side": "below"}, "on_drift": "floor"}],
        indirect=True,
    )
    def test_floors_a_persona_at_its_level(self, drifting: httpx.Client) -> None:
        history = [user("Where do the boats go?")]
        say(drifting, history)
        history.append(user("And then?"))
        second = say(drifting, history, poise={"watch": True})
        assert run_of(drifting, second)["holds"]["up"].endswith("=floor:100")
        assert min(second.json()["choices"][0]["poise"]["readings"]["up"]) > 100 - 1e-2

    @pytest.mark.parametrize("drifting", [{"chart": ALWAYS, "on_drift": "stop"}], indirect=True)
    def test_stops_the_run(self, drifting: httpx.Client) -> None:
        history = [user("Where do the boats go?")]
        say(drifting, history)
        history.append(user("And then?"))
        for _ in range(2):  # sent again it is stopped again
            choice = say(drifting, list(history)).json()["choices"][0]
            assert choice["finish_reason"] == "content_filter"
            assert choice["message"]["content"] == "[This run was stopped: up has drifted above what is usual]"
            assert choice["poise"]["run"]["step"] == 2

    def test_is_let_go_on_by_an_admin_alone_where_the_rules_say_so(self, model: Model, tmp_path: Path) -> None:
        keys, policy = tmp_path / "keys", tmp_path / "policy.yaml"
        keys.write_text("".join(f"{name} {name[0] * 40}\n" for name in ("worker", "boss")))
        keys.chmod(0o600)
        runs = {"traits": {"up": {"chart": ALWAYS, "on_drift": "ask"}}, "approved_by": "admin"}
        policy.write_text(json.dumps({"keys": {"worker": {"runs": runs}}}))
        with pytest.raises(InvalidArgument, match="no key is one's"):
            check_options(ServerOptions(keys=keys, policy=policy))
        policy.write_text(json.dumps({"keys": {"worker": {"runs": runs}, "boss": {"admin": True}}}))
        with serving.running(model, keys=keys, policy=policy) as (address, _):
            worker, boss = (
                httpx.Client(base_url=address, timeout=60, headers={"Authorization": f"Bearer {sign * 40}"})
                for sign in "wb"
            )
            history = [user("Where do the boats go?")]
            say(worker, history, "voyage")
            history.append(user("And then?"))
            ask = say(worker, history, "voyage").json()["choices"][0]["poise"]["ask"]
            assert ask["by"] == "admin"
            refusal = worker.post("/v1/poise/sessions/voyage/approve")
            assert (refusal.status_code, refusal.json()["error"]["code"]) == (403, "admin_only")
            approved = boss.post("/v1/poise/sessions/voyage/approve", params={"key": "worker"})
            assert approved.json()["state"] == "open"
            worker.close()
            boss.close()

    @pytest.mark.parametrize("drifting", [{"chart": ALWAYS, "on_drift": "ask"}], indirect=True)
    @pytest.mark.parametrize("stream", [False, True])
    def test_asks_and_goes_on_once_approved(self, drifting: httpx.Client, stream: bool) -> None:
        history = [user("Where do the boats go?")]
        name = say(drifting, history).headers["x-poise-session"]
        history.append(user("And then?"))
        body = {"model": NAME, "messages": history, "max_tokens": 6, "temperature": 0, "stream": stream}
        answer = drifting.post("/v1/chat/completions", json=body)
        last = json.loads(answer.text.split("data: ")[-2]) if stream else answer.json()
        choice = last["choices"][0]
        assert choice["finish_reason"] == "content_filter"
        ask = choice["poise"]["ask"]
        assert (ask["session"], ask["reason"]) == (name, "up has drifted above what is usual")
        waiting = drifting.get("/v1/poise/sessions", params={"state": "asking"}).json()["data"]
        assert [run["id"] for run in waiting] == [name]
        method, path = ask["approve"].split()
        assert drifting.request(method, path).json()["state"] == "open"
        assert drifting.request(method, path).json()["error"]["code"] == "nothing_to_approve"
        done = drifting.post("/v1/chat/completions", json={**body, "stream": False})
        assert done.json()["choices"][0]["finish_reason"] == "length"
        run = run_of(drifting, done)
        assert (run["id"], [step["number"] for step in run["data"]]) == (name, [1, 2])

    def test_follows_a_plan(self, model: Model, tmp_path: Path) -> None:
        plan = [{"from_step": 2, "steer": "up=0.2"}, {"from_step": 3, "steer": "up=0.4"}]
        with (
            serving.running(model, policy=rules(tmp_path, plan=plan)) as (address, _),
            httpx.Client(base_url=address, timeout=60) as client,
        ):
            history: list[Any] = []
            for text in ("One.", "Two.", "Three.", "Four."):
                history.append(user(text))
                answer = say(client, history)
            steered = [step["steer"] for step in run_of(client, answer)["data"]]
        assert steered == [None, "up=0.2", "up=0.4", "up=0.4"]


class TestRules:
    @pytest.mark.parametrize(
        ("runs", "message"),
        [
            ({"traits": {"upp": {}}}, "names the vector 'upp', which is not here"),
            ({"traits": {"up": {"on_drift": "floor"}}}, "is 'floor', which is for drift below"),
            ({"traits": {"up": {"side": "below", "chart": ALWAYS}}}, "is of drift above"),
            ({"traits": {"up": {"on_drift": "stop"}}}, "give it a `chart`"),
            ({"tool_results": "drop"}, "no guardrail here reads them"),
            ({"plan": [{"steer": "up=cap"}]}, "is 'up=cap'"),
            ({"plan": [{"steer": "side=1"}]}, "names the vector 'side', which is not here"),
            ({"plan": [{"from_step": 2, "steer": "up=1"}, {"from_step": 2, "steer": "up=0"}]}, "put them in order"),
            ({"tool_result": "drop"}, "did you mean"),
        ],
    )
    def test_that_cannot_be_kept_are_told_with_their_line(
        self, model: Model, tmp_path: Path, runs: Any, message: str
    ) -> None:
        with pytest.raises(UserError, match=message) as caught, serving.running(model, policy=rules(tmp_path, **runs)):
            pass
        assert "policy.yaml" in str(caught.value)


class TestABook:
    def chain(self, *texts: str) -> MessageChain:
        roles = ("user", "assistant")
        turns = [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]
        return MessageChain.of([ChatMessage.model_validate(turn) for turn in turns])

    def step(self, book: RunBook, key: str | None, *texts: str, session: str | None = None, most: int = 10**6) -> Any:
        chain = self.chain(*texts)
        run, number = book.begin(key, session, chain, most)
        record = StepRecord(number=number, time=0.0, request="r", prompt_tokens=1, tokens=1, finish="stop")
        book.end(run, record, chain.answered({"content": "yes"}))
        return run

    def test_is_bounded_by_runs_keys_and_steps(self) -> None:
        book = RunBook(most=100, most_steps=150)
        for number in range(10_000):
            self.step(book, f"key {number % 3}", "hello", session=f"s{number}")
        assert len(book) == 100
        assert len(book._counts) <= 3
        assert len(book._places) <= 300
        for _ in range(400):
            self.step(book, "long", "on", session="long")
        assert len(book) <= 2
        assert len(book.of("long")[0].steps) <= 400
        assert book.of("long")[0].count == 400

    def test_forgets_the_oldest_of_the_key_that_has_too_many(self) -> None:
        book = RunBook()
        for number in range(5):
            self.step(book, "a", "hello", session=f"s{number}", most=3)
        self.step(book, "b", "hello", session="s0", most=3)
        assert [run.id for run in book.of("a")] == ["s4", "s3", "s2"]
        assert book.find("b", "s0") is not None

    def test_keeps_no_hash_of_what_it_has_forgotten(self) -> None:
        book = RunBook()
        run = self.step(book, None, "hello")
        assert self.step(book, None, "hello", "yes", "go on") is run
        book.forget(run)
        assert (len(book), book._places, book._steps, book._counts) == (0, {}, 0, {})
        assert self.step(book, None, "hello", "yes", "go on") is not run

    def test_lets_two_frameworks_share_a_named_run(self) -> None:
        book = RunBook()
        one = self.step(book, None, "plan it", session="shared")
        two = self.step(book, None, "do it", session="shared")
        assert one is two
        assert [step.number for step in one.steps] == [1, 2]
        assert self.step(book, None, "do it", "yes", "more") is one, "its histories are known as well"
        assert self.step(book, None, "plan it", "yes", "more").forked_from == ("shared", 1)
