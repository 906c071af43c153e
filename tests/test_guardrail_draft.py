"""Drafting a denied topic from a sentence, against a real HTTP server that imitates the API."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from imitation import Behaviour, Server, completion, error, servers
from poise.cli import app
from poise.errors import DraftFailed, InvalidArgument, OutputExists
from poise.guardrail import load_guardrail
from poise.guardrail.draft import EXAMPLE_KINDS, NEAR_KINDS, TOPIC_CHUNK, draft_guardrail, write_guardrail
from poise.trait.json_writer import ATTEMPTS

SENTENCE = "Nobody gets {investment} advice from us"


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Behaviour], Server]]:
    """Starts a server that the environment names."""
    with servers() as start:

        def named(behave: Behaviour) -> Server:
            server = start(behave)
            monkeypatch.setenv("OPENAI_BASE_URL", server.url)
            monkeypatch.setenv("OPENAI_API_KEY", "key")
            return server

        yield named


class TopicWriter:
    """A model that does what it is asked."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, body: dict[str, Any]) -> dict[str, Any]:
        if '"name": "..."' in body["messages"][1]["content"]:
            return {
                "name": "Investment advice",
                "definition": "What to buy or sell.",
                "prompt_message": "Ask me about accounts.",
                "answer_message": "I cannot say.",
            }
        wanted = re.findall(r"Write (\d+) texts|(\d+) more needed", "".join(m["content"] for m in body["messages"]))
        return {"texts": [self.text() for _ in range(int("".join(wanted[-1])))]}

    def text(self) -> str:
        self.count += 1
        return f"word{self.count} number{self.count}: yes?"


def good(writer: TopicWriter) -> Behaviour:
    return lambda body, before: (200, completion(json.dumps(writer(body))))


def bad_first(spoil: Callable[[dict[str, Any]], Any]) -> Behaviour:
    """Spoils the first reply to each piece."""
    writer = TopicWriter()

    def behave(body: dict[str, Any], before: int) -> tuple[int, Any]:
        reply = writer(body)
        return 200, completion(json.dumps(reply if len(body["messages"]) > 2 else spoil(reply)))

    return behave


class TestAGoodServer:
    def test_gives_a_guardrail_that_is_read_as_it_was_written(
        self, serve: Callable[[Behaviour], Server], tmp_path: Path
    ) -> None:
        server = serve(good(TopicWriter()))
        guardrail = draft_guardrail(SENTENCE, model="writer")
        [topic] = guardrail.topics
        assert (guardrail.name, topic.name) == ("investment-advice", "Investment advice")
        assert guardrail.messages.input == "Ask me about accounts."
        assert len(topic.examples) == TOPIC_CHUNK * len(EXAMPLE_KINDS)
        assert len(topic.near_misses) == TOPIC_CHUNK * len(NEAR_KINDS)
        assert len(server.requests) == 1 + len(EXAMPLE_KINDS) + len(NEAR_KINDS)
        write_guardrail(guardrail, tmp_path / "a.yaml")
        assert load_guardrail(tmp_path / "a.yaml") == guardrail
        with pytest.raises(OutputExists, match="edited since"):
            write_guardrail(guardrail.model_copy(update={"name": "b"}), tmp_path / "a.yaml")

    def test_is_told_what_is_taken_and_asked_for_strict_json(self, serve: Callable[[Behaviour], Server]) -> None:
        server = serve(good(TopicWriter()))
        [topic] = draft_guardrail(SENTENCE, model="writer", name="bank").topics
        last = server.requests[-1]["messages"][1]["content"]
        assert all(text in last for text in (*topic.examples, *topic.near_misses[:-TOPIC_CHUNK], SENTENCE))
        for request in server.requests:
            shape = request["response_format"]["json_schema"]
            assert shape["strict"] is True
            assert set(shape["schema"]["required"]) == set(shape["schema"]["properties"])
            assert not re.search("maxLength|minLength", json.dumps(shape))

    def test_writes_a_file_from_the_command_line(self, serve: Callable[[Behaviour], Server], tmp_path: Path) -> None:
        server = serve(good(TopicWriter()))
        arguments = ["guardrail", "draft", SENTENCE, "-o", str(tmp_path / "a.yaml"), "--model", "w", "--name", "bank"]
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
        assert load_guardrail(tmp_path / "a.yaml").name == "bank"
        asked = len(server.requests)
        (tmp_path / "a.yaml").write_text("name: mine")
        again = CliRunner().invoke(app, arguments)
        assert (again.exit_code, "edited since" in again.output) == (2, True)
        assert len(server.requests) == asked


class TestAModelThatErrs:
    @pytest.mark.parametrize(
        ("spoil", "complaint"),
        [
            (lambda r: "I cannot.", "the reply is not a JSON object, or was cut off"),
            (lambda r: {**r, "extra": 1}, "extra is an unknown setting"),
            (lambda r: {**r, "name": "投资"} if "name" in r else r, "use words in Latin letters"),
            (lambda r: {**r, "name": "a" * 101} if "name" in r else r, "name has 101 characters; at most 100"),
            (lambda r: {**r, "texts": r["texts"][:6]} if "texts" in r else r, "2 more needed; the others are kept"),
            (lambda r: {**r, "texts": r["texts"][:1] * 8} if "texts" in r else r, "is too close to 'word"),
            (lambda r: {**r, "texts": ["x" * 1001]} if "texts" in r else r, "has 1,001 characters; at most 1,000"),
            (lambda r: {**r, "texts": [""]} if "texts" in r else r, "texts.0 is empty"),
        ],
    )
    def test_is_told_what_is_wrong(
        self, serve: Callable[[Behaviour], Server], spoil: Callable[[Any], Any], complaint: str
    ) -> None:
        server = serve(bad_first(spoil))
        assert len(draft_guardrail(SENTENCE, model="writer").topics[0].examples) == 32
        assert any(complaint in request["messages"][-1]["content"] for request in server.requests)

    @pytest.mark.parametrize("piece", ["name", "texts"])
    def test_ends_in_an_error_after_its_attempts(self, serve: Callable[[Behaviour], Server], piece: str) -> None:
        writer = TopicWriter()

        def behave(body: dict[str, Any], before: int) -> tuple[int, Any]:
            reply = writer(body)
            return 200, completion("I'd rather not." if piece in reply else json.dumps(reply))

        server = serve(behave)
        with pytest.raises(DraftFailed, match=r"no usable \w+ in 4 attempts .*I'd rather not.*Nothing was saved"):
            draft_guardrail(SENTENCE, model="writer")
        assert len(server.requests) == ATTEMPTS + (piece == "texts")

    def test_or_a_server_that_fails_is_named(self, serve: Callable[[Behaviour], Server]) -> None:
        serve(lambda body, before: (401, error("no")))
        with pytest.raises(DraftFailed, match=r"HTTP 401: no.*set OPENAI_API_KEY"):
            draft_guardrail(SENTENCE, model="writer")


class TestBeforeAnythingIsAsked:
    def test_an_empty_sentence_and_an_impossible_name_are_refused(self) -> None:
        with pytest.raises(DraftFailed, match="description is empty"):
            draft_guardrail(" ", model="writer")
        with pytest.raises(InvalidArgument, match="name is 'A B'"):
            draft_guardrail(SENTENCE, model="writer", name="A B")

    def test_the_client_is_not_imported(self) -> None:
        code = "import sys, poise.guardrail.draft; sys.exit('openai' in sys.modules or 'torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
