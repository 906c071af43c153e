"""A server with documents: who gets passages, what the answer says of them, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import serving
import tiny
from poise.data import Message
from poise.errors import EncoderUnavailable, InvalidArgument
from poise.knowledge import (
    BundledEncoder,
    EndpointAnswerWriter,
    EndpointEncoder,
    LocalAnswerWriter,
    text_reranker,
)
from poise.serve.knowledge_use import read_knowledge
from poise.serve.server import ServerOptions, check_options
from test_knowledge import GUIDE, WordEncoder, built
from test_knowledge_reranking import cross_encoder

ASKED = [{"role": "user", "content": "What does a berth cost a night?"}]


@pytest.fixture(scope="module")
def knowledge_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    (folder / "docs").mkdir()
    (folder / "docs" / "guide.md").write_text(GUIDE)
    (folder / "docs" / "crew.txt").write_text("The crew pays nothing for a berth a night.")
    built(folder / "docs", folder / "kb", labels=("crew=*crew*",))
    return folder


@pytest.fixture(scope="module")
def address(knowledge_folder: Path) -> Iterator[str]:
    patch = pytest.MonkeyPatch()
    patch.setattr("poise.knowledge.searching.text_encoder", lambda *_, **__: WordEncoder())
    keys, policy = knowledge_folder / "keys", knowledge_folder / "policy.yaml"
    keys.write_text("anna " + "a" * 40 + "\ncrew " + "c" * 40 + "\n")
    keys.chmod(0o600)
    rules = {"documents": ["crew"], "answer_from_documents": True}
    policy.write_text(json.dumps({"keys": {"crew": rules}}))
    model = tiny.model("llama", max_position_embeddings=4096)
    with serving.running(model, knowledge=knowledge_folder / "kb", keys=keys, policy=policy) as (where, server):
        assert server.service.knowledge is not None
        yield where
    patch.undo()


def chat(address: str, key: str = "a", **more: Any) -> httpx.Response:
    body = {"model": "tiny-llama", "messages": ASKED, "max_tokens": 4, "temperature": 0, **more}
    body["model"] = httpx.get(f"{address}/v1/models", headers=bearer(key)).json()["data"][0]["id"]
    return httpx.post(f"{address}/v1/chat/completions", json=body, headers=bearer(key), timeout=60)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key * 40}"}


class TestKnowledge:
    def test_is_used_where_it_is_asked_for(self, address: str) -> None:
        plain = chat(address).json()
        assert "knowledge" not in plain["choices"][0].get("poise", {})
        answer = chat(address, poise={"knowledge": {"top": 2, "paths": ["*.md"]}}).json()
        facts = answer["choices"][0]["poise"]["knowledge"]
        assert facts["passages"][0]["text"] == "A berth costs 12 euros a night."
        assert [passage["number"] for passage in facts["passages"]] == [1, 2]
        assert {"answered", "sentences", "unsupported"} <= facts.keys()
        assert answer["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"] + 50

    def test_a_key_sees_what_it_may_see(self, address: str) -> None:
        def paths(answer: httpx.Response) -> set[str]:
            return {Path(p["path"]).name for p in answer.json()["choices"][0]["poise"]["knowledge"]["passages"]}

        assert "crew.txt" not in paths(chat(address, poise={"knowledge": True}))
        assert "crew.txt" in paths(chat(address, "c"))  # its rules say so for all of its chats
        assert "poise" not in chat(address, "c", poise={"knowledge": False}).json()["choices"][0]

    def test_of_a_stream_begins_with_the_passages_and_ends_with_the_sentences(self, address: str) -> None:
        text = chat(address, stream=True, poise={"knowledge": True}).text
        lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: {")]
        facts = [
            choice["poise"]["knowledge"]
            for line in lines
            for choice in json.loads(line)["choices"]
            if "poise" in choice
        ]
        assert len(facts) == 2
        assert facts[0]["passages"] == facts[1]["passages"]
        assert "sentences" not in facts[0]
        assert "sentences" in facts[1]

    def test_wrong_requests_are_refused(self, address: str) -> None:
        assert chat(address, poise={"knowledge": {"top": 0}}).status_code == 400
        long = [{"role": "user", "content": "berth " * 3000}]
        refusal = chat(address, messages=long, poise={"knowledge": True})
        assert (refusal.status_code, refusal.json()["error"]["code"]) in [
            (400, "context_length_exceeded"),
            (503, "knowledge_unavailable"),
        ]

    def test_an_empty_question_is_the_request_s_fault(self, address: str) -> None:
        refusal = chat(address, messages=[{"role": "user", "content": "  "}], poise={"knowledge": True})
        assert (refusal.status_code, refusal.json()["error"]["param"]) == (400, "messages")

    def test_follow_ups_are_looked_for_with_what_came_before(self, address: str) -> None:
        turns = [*ASKED, {"role": "assistant", "content": "12 euros."}, {"role": "user", "content": "And why?"}]

        def best(follow_up: str) -> list[str]:
            answer = chat(address, messages=turns, poise={"knowledge": {"mode": "sparse", "follow_up": follow_up}})
            return [passage["text"] for passage in answer.json()["choices"][0]["poise"]["knowledge"]["passages"]]

        assert best("join")[0] == "A berth costs 12 euros a night."
        assert best("last") == []
        assert chat(address, messages=turns, poise={"knowledge": {"follow_up": "rewrite"}}).status_code == 200
        assert chat(address, messages=turns, poise={"knowledge": {"follow_up": "guess"}}).status_code == 400

    def test_passages_are_reranked_where_the_server_is_told_so(
        self, knowledge_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("poise.knowledge.searching.text_encoder", lambda *_, **__: WordEncoder())
        folder = cross_encoder(tmp_path / "ce")
        knowledge = read_knowledge(knowledge_folder / "kb", str(folder))
        assert knowledge is not None
        scores = [passage.score for passage in knowledge.knowledge.search("berth", 3)]
        pairs = [f"{p.heading}\n{p.text}" for p in knowledge.knowledge.search("berth", 3)]
        assert scores == pytest.approx(text_reranker(str(folder))("berth", pairs), abs=1e-5)
        with pytest.raises(InvalidArgument, match="`rerank` orders passages of documents"):
            check_options(ServerOptions(rerank=str(folder)))

    def test_labels_are_the_policy_s_and_not_the_request_s(self, address: str) -> None:
        refusal = chat(address, poise={"knowledge": {"labels": ["crew"]}})
        assert refusal.status_code == 400
        assert "labels" in refusal.json()["error"]["message"]
        answer = chat(address, poise={"knowledge": {"paths": ["*crew*"]}}).json()
        assert answer["choices"][0]["poise"]["knowledge"]["passages"] == []

    def test_rules_that_need_documents_are_refused_without_any(self, tmp_path: Path) -> None:
        policy = tmp_path / "policy.yaml"
        policy.write_text("default:\n  answer_from_documents: true\n")
        with pytest.raises(InvalidArgument, match=r"line 2.*answer_from_documents.*start it with `knowledge`"):
            check_options(ServerOptions(policy=policy))

    def test_without_one_is_refused(self) -> None:
        with serving.running() as (where, _):
            body = {"model": "x", "messages": ASKED, "poise": {"knowledge": True}}
            refusal = httpx.post(f"{where}/v1/chat/completions", json=body)
        assert refusal.status_code == 400
        assert refusal.json()["error"]["code"] == "no_knowledge"


class TestEndpoints:
    """What asks other servers, against a real one."""

    def test_embeddings_are_those_of_the_bundled_encoder(self) -> None:
        texts = ["The tide turns at six.", "A berth costs 12 euros."] * 40
        with serving.running() as (where, _):
            encoder = EndpointEncoder("all-MiniLM-L6-v2", base_url=f"{where}/v1")
            vectors = encoder(texts)
            with pytest.raises(EncoderUnavailable, match="no embedding model 'another'"):
                EndpointEncoder("another", base_url=f"{where}/v1", retries=0)(texts)
        assert (encoder.width, vectors.shape) == (384, (80, 384))
        assert np.abs(vectors[:2] - BundledEncoder()(texts[:2])).max() < 1e-3

    def test_answers_are_those_of_the_model(self) -> None:
        model = tiny.model("llama")
        messages: list[Message] = [{"role": "user", "content": "What does it cost?"}]
        with serving.running(model) as (where, server):
            writer = EndpointAnswerWriter(server.service.name, base_url=f"{where}/v1")
            written = writer(messages, 5)
        assert written == LocalAnswerWriter(model)(messages, 5)
        assert 0 < written.tokens <= 5
