"""What a guardrail asks about whole answers in chats, completions and responses: sources, reasoning, and its judge."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

import serving
import thinking
from imitation import Behaviour, Server, completion, error, servers
from poise.errors import InvalidArgument
from poise.grounding import Grounding, SentenceGrounding
from poise.grounding.facts import MissingFacts
from poise.guardrail import Guardrail
from poise.guardrail.fitting import fit_guard
from poise.guardrail.guard_file import FittedGuard
from poise.serve import planning, whole_answer
from poise.serve.guarding import ServerGuard
from poise.serve.guardrail_set import read_guardrails
from poise.serve.requests import ChatCompletionRequest
from poise.serve.whole_answer import AnswerContext, WholeAnswerChecks, answer_context
from test_guardrail_fit import RULES, SETTINGS, TALK
from test_guardrail_reasoning import CASES, guardrail_file
from test_serve_guardrail import chat, chunks, said

RIGHT, WRONG = "A ticket for the boat is 12 euros, as the table says.", "A ticket for the boat is 55 euros, or more."
ANSWERS = {1: RIGHT, 2: WRONG, 3: f"<think>\nIs it 12 euros then?\n</think>\n\n{WRONG}"}
SOURCED = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "A ticket is 12 euros. ", "qualifiers": ["grounding_source"]},
            {"type": "text", "text": "How much is it?", "qualifiers": ["query"]},
        ],
    }
]
MESSAGE = "I do not know."


class SourceReader:
    """In the model's place: an answer that says 55 rests on no source."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[str], str, str]] = []
        self.fault: Exception | None = None

    def __call__(self, sources: Sequence[str], query: str, answer: str) -> Grounding:
        self.calls.append((list(sources), query, answer))
        if self.fault:
            raise self.fault
        sentence = SentenceGrounding(
            start=0,
            end=len(answer),
            text=answer,
            score=0.1 if "55" in answer else 0.9,
            passage=0,
            missing=MissingFacts(),
            features={},
        )
        return Grounding(sentences=(sentence,), passages=tuple(sources), relevance=0.8, unread=(), tokens=3)


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> SourceReader:
    reader = SourceReader()
    monkeypatch.setattr(whole_answer, "grounding_reader", lambda model, between: reader)
    return reader


@contextlib.contextmanager
def served(folder: Path, guardrail: dict[str, Any] | Path, patch: pytest.MonkeyPatch) -> Iterator[httpx.Client]:
    path = guardrail if isinstance(guardrail, Path) else folder / "guard.yaml"
    if isinstance(guardrail, dict):
        path.write_text(json.dumps(guardrail))
    model = thinking.model("qwen3")
    thinking.script(patch, model, ANSWERS)
    with (
        serving.running(model, {}, guardrail=path) as (address, _),
        httpx.Client(base_url=address, timeout=120) as client,
    ):
        yield client


def sources(**more: Any) -> dict[str, Any]:
    grounding = [{"type": "GROUNDING", "threshold": 0.5, **more.pop("rule", {})}]
    return {"name": "sources", "messages": {"output": MESSAGE}, "grounding": grounding, **more}


def outcome(answer: httpx.Response, *, stream: bool) -> tuple[str, str, list[dict[str, Any]]]:
    """Text, finish and what the guardrail did."""
    if stream:
        events = chunks(answer)
        last = events[-1]["choices"][0]
        return said(events), last["finish_reason"], last.get("poise", {}).get("guardrail", [])
    [choice] = answer.json()["choices"]
    return choice["message"]["content"], choice["finish_reason"], choice.get("poise", {}).get("guardrail", [])


@pytest.mark.parametrize("stream", [False, True])
class TestSources:
    def test_that_a_request_marks_hold_the_answer_back_until_it_is_scored(
        self, stream: bool, reader: SourceReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with served(tmp_path, sources(), monkeypatch) as http:
            assert outcome(chat(http, *SOURCED, seed=1, stream=stream), stream=stream) == (RIGHT, "stop", [])
            text, finish, [fact] = outcome(chat(http, *SOURCED, seed=2, stream=stream), stream=stream)
        assert (text, finish) == (MESSAGE, "content_filter")
        assert fact["guardrail"] == "sources/DRAFT"
        assert (fact["source"], fact["policy"], fact["rule"], fact["action"]) == (
            "OUTPUT",
            "grounding",
            "GROUNDING",
            "BLOCK",
        )
        assert (fact["score"], fact["threshold"]) == (0.1, 0.5)
        assert reader.calls == [(["A ticket is 12 euros. "], "How much is it?", text) for text in (RIGHT, WRONG)]

    def test_are_tools_results_too(
        self, stream: bool, reader: SourceReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        body = ChatCompletionRequest.model_validate(
            {
                "model": "a",
                "messages": [
                    {"role": "user", "content": "Hello."},
                    {"role": "assistant", "content": "", "tool_calls": [call("c1")]},
                    {"role": "tool", "tool_call_id": "c1", "content": "An old result."},
                    {"role": "user", "content": "How much?"},
                    {"role": "assistant", "content": "", "tool_calls": [call("c2")]},
                    {"role": "tool", "tool_call_id": "c2", "content": "12 euros."},
                ],
            }
        )
        earlier = "user: Hello.\ntool: An old result."
        expected = AnswerContext(
            sources=("12 euros.",),
            question="How much?",
            prompt="How much?",
            result="12 euros.",
            before=earlier,
            before_result=f"{earlier}\nuser: How much?",
            conversation=f"{earlier}\nuser: How much?\ntool: 12 euros.",
        )
        assert answer_context(body, thinking.model("qwen3")) == expected

    def test_that_nobody_marks_are_not_asked_about(
        self, stream: bool, reader: SourceReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with served(tmp_path, sources(), monkeypatch) as http:
            assert outcome(chat(http, "How much is it?", seed=2, stream=stream), stream=stream)[:2] == (WRONG, "stop")
        assert reader.calls == []

    def test_that_cannot_be_read_close_or_open_as_the_rule_says(
        self, stream: bool, reader: SourceReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reader.fault = InvalidArgument("Source and answer have 9,000 tokens.")
        for rule, ends in (({}, (MESSAGE, "content_filter")), ({"on_failure": "PASS"}, (RIGHT, "stop"))):
            with served(tmp_path, sources(rule=rule), monkeypatch) as http:
                text, finish, [fact] = outcome(chat(http, *SOURCED, seed=1, stream=stream), stream=stream)
            assert (text, finish) == ends
            assert "(Source and answer have 9,000 tokens)" in fact["note"]
            assert "as its `on_failure` says" in fact["note"]

    def test_are_for_the_reply_alone_and_thoughts_leave(
        self, stream: bool, reader: SourceReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with served(tmp_path, sources(), monkeypatch) as http:
            answer = chat(http, *SOURCED, seed=3, stream=stream, chat_template_kwargs={"enable_thinking": True})
            text, finish, _ = outcome(answer, stream=stream)
        assert (text, finish) == (MESSAGE, "content_filter")
        assert reader.calls[0][2].strip() == WRONG

    def test_of_several_answers_stop_those_that_do_not_rest_on_them(
        self, stream: bool, reader: SourceReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with served(tmp_path, sources(), monkeypatch) as http:
            answer = chat(http, *SOURCED, seed=1, n=2, stream=stream)
        if stream:
            events = chunks(answer)
            texts = [said(events, index=index) for index in (0, 1)]
        else:
            texts = [choice["message"]["content"] for choice in answer.json()["choices"]]
        assert texts == [RIGHT, MESSAGE]


def call(name: str) -> dict[str, Any]:
    return {"id": name, "type": "function", "function": {"name": "look", "arguments": "{}"}}


def test_an_asynchronous_stream_says_how_much_had_left(
    reader: SourceReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(tmp_path, sources(streaming="asynchronous"), monkeypatch) as http:
        text, finish, [fact] = outcome(chat(http, *SOURCED, seed=2, stream=True), stream=True)
        assert outcome(chat(http, *SOURCED, seed=2), stream=False)[0] == MESSAGE
    assert finish == "content_filter"
    assert text.endswith(MESSAGE)
    assert WRONG.startswith(text.removesuffix(MESSAGE))
    assert 0 < fact["left"] == len(text.removesuffix(MESSAGE))


def test_the_servers_own_model_scores_between_its_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = {"threshold": 0.99, "action": "NONE"}
    with served(tmp_path, sources(rule=rule), monkeypatch) as http:
        text, finish, [fact] = outcome(chat(http, *SOURCED, seed=1), stream=False)
    assert (text, finish) == (RIGHT, "stop")
    assert 0 <= fact["score"] < fact["threshold"] == 0.99


def test_responses_mark_sources_too(reader: SourceReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [{**part, "type": "input_text"} for part in SOURCED[0]["content"]]  # type: ignore[dict-item,index]
    body = {"model": "tiny-qwen3", "input": [{"role": "user", "content": parts}], "max_output_tokens": 200}
    with served(tmp_path, sources(), monkeypatch) as http:
        monkeypatch.setattr(planning.secrets, "randbits", lambda bits: 2)
        answer = http.post("/v1/responses", json=body)
        assert answer.status_code == 200, answer.text
        streamed = http.post("/v1/responses", json={**body, "stream": True}).text
    assert len(reader.calls) == 2
    assert "A ticket is 12 euros. " in reader.calls[0][0]
    assert "55" not in streamed


def test_an_answer_of_calls_alone_rests_on_nothing(reader: SourceReader) -> None:
    checks = WholeAnswerChecks(
        name="sources/DRAFT",
        guardrail=Guardrail.model_validate(sources()),
        context=AnswerContext(sources=("12",)),
        judge=None,
        reason=None,
        score=reader,
    )
    assert checks.findings([], "{}", " \n") == []
    assert reader.calls == []


@pytest.fixture
def serve() -> Iterator[Callable[[Behaviour], Server]]:
    with servers() as start:
        yield start


def writes(kind: Any) -> Behaviour:
    return lambda body, before: (200, completion(json.dumps(CASES[kind][0])))


class TestReasoning:
    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize("kind", ["VALID", "INVALID"])
    def test_of_answers_in_chats(
        self,
        kind: str,
        stream: bool,
        serve: Callable[[Behaviour], Server],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        server = serve(writes(kind))
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        path = guardrail_file(tmp_path, action="BLOCK", writer="endpoint:some", translations=1)
        with served(tmp_path, path, monkeypatch) as http:
            text, finish, facts = outcome(chat(http, "May I take leave?", seed=1, stream=stream), stream=stream)
        assert "May I take leave?" in str(server.requests[0]["messages"])
        assert RIGHT in str(server.requests[0]["messages"])
        if kind == "VALID":
            assert (text, finish, facts) == (RIGHT, "stop", [])
        else:
            assert (text, finish) == ("Sorry, I cannot answer this.", "content_filter")
            assert (facts[0]["policy"], facts[0]["kind"], facts[0]["rule"]) == ("reasoning", kind, "parental-leave")
            assert facts[0]["reasoning"]["rules"]
            assert facts[0]["reasoning"]["correction"]

    @pytest.mark.parametrize(("without_writer", "finish"), [("BLOCK", "content_filter"), ("PASS", "stop")])
    def test_without_its_writer_closes_or_opens_and_says_so(
        self, without_writer: str, finish: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
        path = guardrail_file(tmp_path, action="BLOCK", writer="endpoint:some", without_writer=without_writer)
        with served(tmp_path, path, monkeypatch) as http:
            _, ended, [fact] = outcome(chat(http, "May I take leave?", seed=1), stream=False)
            body = {"model": "tiny-qwen3", "prompt": "May I take leave?", "max_tokens": 30, "seed": 1}
            [choice] = http.post("/v1/completions", json=body).json()["choices"]
        assert (ended, choice["finish_reason"] == "content_filter") == (finish, finish == "content_filter")
        assert "The answer was not reasoned about" in fact["note"]


def unsure(fitted: FittedGuard, source: str, url: str, on_failure: str = "BLOCK") -> FittedGuard:
    """The guard with all readings of one way in the judge's band, and none of the other above anything."""
    detectors = []
    for d in fitted.header.detectors:
        assert d.band
        asks = d.band.asks.model_copy(update={"value": -1e9 if d.source == source else 1e9})
        acts = d.band.acts.model_copy(update={"value": 1e9})
        band = d.band.model_copy(update={"asks": asks, "acts": acts})
        detectors.append(d.model_copy(update={"band": band}))
    judge = {"by": "endpoint:judge", "band": (0.02, 0.3), "url": url, "on_failure": on_failure}
    guardrail = Guardrail.model_validate({**fitted.guardrail.model_dump(exclude_unset=True), "judge": judge})
    header = fitted.header.model_copy(update={"detectors": tuple(detectors), "guardrail": guardrail})
    return FittedGuard(header, fitted.directions, fitted.encoder_directions)


@pytest.fixture(scope="module")
def guards() -> dict[str, FittedGuard]:
    judge = {"by": "endpoint:judge", "band": (0.02, 0.3)}
    rules = {**RULES, "judge": judge}
    encoded = {**rules, "topics": [{**RULES["topics"][0], "read_by": "encoder"}]}
    return {
        "activations": fit_guard(Guardrail.model_validate(rules), thinking.model("qwen3"), TALK, SETTINGS),
        "encoder": fit_guard(Guardrail.model_validate(encoded), None, TALK, type(SETTINGS)(rate=0.05)),
    }


def sure(score: str) -> Behaviour:
    return lambda body, before: (200, completion(score, [{score: 1.0}]))


@pytest.mark.parametrize("prompt", ["Tell me of it.", [9, 8, 7]])
def test_the_judge_is_asked_about_prompts_of_completions(
    prompt: Any,
    guards: dict[str, FittedGuard],
    serve: Callable[[Behaviour], Server],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = serve(sure("90"))
    unsure(guards["activations"], "INPUT", server.url).save(tmp_path / "a.guard")
    text = prompt if isinstance(prompt, str) else str(thinking.model("qwen3").tokenizer.decode(prompt))
    with served(tmp_path, tmp_path / "a.guard", monkeypatch) as http:
        body = {"model": "tiny-qwen3", "prompt": prompt, "max_tokens": 30, "seed": 1, "n": 2}
        choices = http.post("/v1/completions", json=body).json()["choices"]
    assert [choice["finish_reason"] for choice in choices] == ["content_filter"] * 2
    assert len(server.requests) == 1
    assert text in server.requests[0]["messages"][0]["content"]


def test_a_thought_of_an_earlier_turn_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guardrail = {"name": "bank", "words": {"custom": ["rival bank"]}, "sensitive": {"types": ["EMAIL"]}}
    with served(tmp_path, guardrail, monkeypatch) as http:
        turns: list[dict[str, Any]] = [{"role": "assistant", "content": "Yes."}, {"role": "user", "content": "And?"}]
        guard = make_guard(tmp_path)
        for thought, read in (
            ("Mail a@mail.example.", "Mail {EMAIL}."),
            ("A rival bank is.", None),
            ("Well.", "Well."),
        ):
            turns[0]["reasoning_content"] = thought
            body = ChatCompletionRequest.model_validate({"model": "tiny-qwen3", "messages": turns})
            guarded = guard.guard_request(body, thinking.model("qwen3"))
            assert isinstance(guarded.body, ChatCompletionRequest)
            assert guarded.body.messages[0].reasoning_content == read
            assert chat(http, *turns, seed=1).json()["choices"][0]["finish_reason"] == "stop"


def make_guard(folder: Path) -> ServerGuard:
    [guard] = read_guardrails(folder / "guard.yaml").guards.values()
    return guard


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("reads", ["activations", "encoder"])
class TestTheJudge:
    @pytest.mark.parametrize(("source", "message"), [("INPUT", "No boats."), ("OUTPUT", "Not of boats.")])
    def test_decides_before_text_leaves(
        self,
        source: str,
        message: str,
        reads: str,
        stream: bool,
        guards: dict[str, FittedGuard],
        serve: Callable[[Behaviour], Server],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        for score, ends in (("90", (message, "content_filter")), ("10", (RIGHT, "stop"))):
            server = serve(sure(score))
            unsure(guards[reads], source, server.url).save(tmp_path / "a.guard", force=True)
            with served(tmp_path, tmp_path / "a.guard", monkeypatch) as http:
                text, finish, facts = outcome(chat(http, "Tell me of it.", seed=1, stream=stream), stream=stream)
            assert (text, finish) == ends
            assert len(server.requests) == 1
            assert ("Tell me of it." if source == "INPUT" else RIGHT) in str(server.requests[0]["messages"])
            assert [(f["source"], f["judge"]) for f in facts] == ([(source, 90.0)] if score == "90" else [])

    @pytest.mark.parametrize(("on_failure", "finish"), [("BLOCK", "content_filter"), ("PASS", "stop")])
    def test_that_is_down_closes_or_opens_and_says_so(
        self,
        on_failure: str,
        finish: str,
        reads: str,
        stream: bool,
        guards: dict[str, FittedGuard],
        serve: Callable[[Behaviour], Server],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        server = serve(lambda body, before: (500, error("down")))
        for source in ("INPUT", "OUTPUT"):
            unsure(guards[reads], source, server.url, on_failure).save(tmp_path / "a.guard", force=True)
            with served(tmp_path, tmp_path / "a.guard", monkeypatch) as http:
                for _ in range(2):  # nothing of a judge that failed is remembered
                    before = len(server.requests)
                    _, ended, [fact] = outcome(chat(http, "Tell me of it.", seed=1, stream=stream), stream=stream)
                    assert ended == finish
                    assert "The judge did not answer" in fact["note"]
                    assert len(server.requests) > before
