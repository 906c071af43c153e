"""Drafting a trait from a sentence, against a real HTTP server on this machine that imitates the API."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from imitation import Behaviour, Server, completion, error, servers
from poise.errors import DraftFailed, InvalidTrait, SaveFailed
from poise.trait.draft import draft, write_trait
from poise.trait.json_writer import ATTEMPTS
from poise.trait.library import load_trait
from poise.trait.lint import lint


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


class Writer:
    """A model that does what it is asked: new questions each time, sides of equal length."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, body: dict[str, Any]) -> dict[str, Any]:
        asked = body["messages"][1]["content"]
        shape = re.findall(r'Shape: {"(\w+)"', asked)[0]
        last = body["messages"][-1]["content"]
        wanted = re.findall(r"Write (\d+) questions|(\d+) more needed", f"{asked}{last}")
        if shape == "name":
            return self.definition()
        n = int("".join(wanted[-1]))
        kind = self.question if shape == "questions" else self.toned_pair if '"tone"' in asked else self.pair
        return {shape: [kind() for _ in range(n)]}

    def definition(self) -> dict[str, Any]:
        return {
            "name": "grumpy",
            "description": "Complains about everything.",
            "adjective": "grumpy",
            "opposite": "cheerful",
            "instructions": [{"with": f"Grumble in way {i}.", "without": f"Smile in way {i}."} for i in range(5)],
            "rubric": "0 is no complaint, 50 some, 100 nothing else.",
        }

    def question(self) -> str:
        self.count += 1
        return f"number{self.count} word{self.count} of {self.count}?"

    def pair(self) -> dict[str, str]:
        question = self.question()
        return {"question": question, "with": f"Grr, {question}", "without": f"Yes, {question}"}

    def toned_pair(self) -> dict[str, str]:
        question = self.question()
        return {"question": question, "with": f"Alpha {question}", "without": f"Omega {question}", "tone": "plain"}


def good(writer: Writer) -> Behaviour:
    return lambda body, before: (200, completion(json.dumps(writer(body))))


def bad_first(bad: Callable[[dict[str, Any]], Any]) -> Behaviour:
    """Spoils the first reply to each piece; what a reader of the complaint sends then is right."""
    writer = Writer()

    def behave(body: dict[str, Any], before: int) -> tuple[int, Any]:
        reply = writer(body)
        text = json.dumps(reply if len(body["messages"]) > 2 else bad(reply))
        return 200, completion(text)

    return behave


class TestAGoodServer:
    def test_gives_a_complete_trait_that_the_lint_has_nothing_against(
        self, serve: Callable[[Behaviour], Server]
    ) -> None:
        serve(good(Writer()))
        trait = draft("Complains about everything", model="writer")
        assert lint(trait).findings == ()
        assert (trait.name, len(trait.instructions)) == ("grumpy", 5)
        assert [len(q) for q in (trait.questions.extraction, trait.questions.evaluation)] == [20, 20]
        assert [len(p) for p in (trait.extraction_pairs, trait.judge_pairs, trait.held_out_pairs)] == [24, 12, 12]
        registers = Counter(pair.register_ for pair in trait.exemplars.detector)
        assert (len(registers), set(registers.values())) == (8, {8})

    def test_is_asked_for_strict_json_and_told_which_questions_are_taken(
        self, serve: Callable[[Behaviour], Server]
    ) -> None:
        server = serve(good(Writer()))
        trait = draft("Complains about <everything> {in braces}", model="writer")
        assert "Complains about <everything> {in braces}" in server.requests[0]["messages"][1]["content"]
        last = server.requests[-1]["messages"][1]["content"]
        assert all(q in last for q in trait.questions.evaluation)
        for request in server.requests:
            wanted = request["response_format"]["json_schema"]
            assert request["model"] == "writer"
            assert wanted["strict"] is True
            for part in [wanted["schema"], *wanted["schema"].get("$defs", {}).values()]:
                assert part["additionalProperties"] is False
                assert set(part["required"]) == set(part["properties"])
            assert not re.search("minLength|minItems|pattern", json.dumps(wanted))

    def test_gives_the_name_that_was_asked_for(self, serve: Callable[[Behaviour], Server]) -> None:
        serve(good(Writer()))
        assert draft("Complains", model="writer", name="Bad Mood").name == "bad-mood"

    def test_can_be_any_client(self, serve: Callable[[Behaviour], Server], monkeypatch: pytest.MonkeyPatch) -> None:
        url = serve(good(Writer())).url
        monkeypatch.delenv("OPENAI_BASE_URL")
        with OpenAI(base_url=url, api_key="none") as client:
            assert draft("Complains", model="writer", client=client).name == "grumpy"


class TestAServerWithoutStructuredOutput:
    @pytest.mark.parametrize("known", ["json_object", None])
    def test_is_asked_in_the_ways_it_knows_and_only_once_in_those_it_does_not(
        self, serve: Callable[[Behaviour], Server], known: str | None
    ) -> None:
        writer = Writer()

        def behave(body: dict[str, Any], before: int) -> tuple[int, Any]:
            if (body.get("response_format") or {}).get("type") != known:
                return 400, error("unknown response_format")
            text = json.dumps(writer(body), indent=1)
            return 200, completion(f"<think>{{hm}}</think>Here you are:\n```json\n{text}\n```\nGood luck {{}}!")

        server = serve(behave)
        assert draft("Complains", model="writer").name == "grumpy"
        used = Counter((r.get("response_format") or {}).get("type") for r in server.requests)
        assert used == {"json_schema": 1, known: len(server.requests) - 1} | (
            {} if known else {"json_object": 1, None: 18}
        )


class TestAModelThatErrs:
    def lengthen(self, reply: dict[str, Any]) -> dict[str, Any]:
        for pair in reply.get("pairs", [])[:3]:
            pair["with"] = pair["with"] * 2
        return reply

    def test_is_told_which_pairs_are_uneven_and_keeps_the_others(self, serve: Callable[[Behaviour], Server]) -> None:
        server = serve(bad_first(self.lengthen))
        assert lint(draft("Complains", model="writer")).findings == ()
        told = [r["messages"][-1]["content"] for r in server.requests if len(r["messages"]) > 2]
        assert len(told) == 15  # 3 + 2 + 2 + 8 pieces
        assert all("characters with the trait and" in t and "3 more needed; the others are kept" in t for t in told)

    @pytest.mark.parametrize(
        ("spoil", "said"),
        [
            (lambda r: "I'm sorry, I can't help with that.", "the reply is not a JSON object, or was cut off"),
            (lambda r: {**r, "extra": 1}, "extra is not a known field"),
            (lambda r: {k: v for k, v in r.items() if k != "rubric"}, "rubric is missing"),
            (lambda r: {**r, "rubric": "More is more."} if "rubric" in r else r, "rubric does not say what 100 means"),
            (
                lambda r: {k: v[:1] * len(v) if isinstance(v, list) else v for k, v in r.items()},
                "instructions are the same",
            ),
            (lambda r: {k: v[:2] if isinstance(v, list) else v for k, v in r.items()}, "needs 5 or more"),
            (lambda r: {k: [*v[:-1], ""] if k == "questions" else v for k, v in r.items()}, "questions[19] is empty"),
            (lambda r: {k: v[:1] * len(v) if k == "questions" else v for k, v in r.items()}, "is too close to 'number"),
            (
                lambda r: {k: [{**p, "with": "Ugh."} for p in v] if k == "pairs" else v for k, v in r.items()},
                "characters with the trait and",
            ),
        ],
    )
    def test_is_told_what_is_wrong_and_mends_it(
        self, serve: Callable[[Behaviour], Server], spoil: Callable[[Any], Any], said: str
    ) -> None:
        server = serve(bad_first(spoil))
        assert lint(draft("Complains", model="writer")).ok
        assert any(said in r["messages"][-1]["content"] for r in server.requests)

    def test_answers_are_not_taken_twice(self, serve: Callable[[Behaviour], Server]) -> None:
        def repeat(reply: dict[str, Any]) -> dict[str, Any]:
            for pair in reply.get("pairs", []):
                pair["with"] = "Grr, always the same"
                pair["without"] = f"Yes, {pair['question']}"
            return reply

        server = serve(bad_first(repeat))
        assert lint(draft("Complains", model="writer")).ok
        assert any("has an answer that was given before" in r["messages"][-1]["content"] for r in server.requests)

    @pytest.mark.parametrize("piece", ["name", "questions", "pairs"])
    def test_always_ends_in_an_error_after_four_attempts(
        self, serve: Callable[[Behaviour], Server], piece: str, tmp_path: Path
    ) -> None:
        writer = Writer()

        def behave(body: dict[str, Any], before: int) -> tuple[int, Any]:
            reply = writer(body)
            return 200, completion("I'd rather not." if piece in reply else json.dumps(reply))

        server = serve(behave)
        path = tmp_path / "grumpy.yaml"
        with pytest.raises(DraftFailed, match=r"no usable \w+ in 4 attempts .*I'd rather not.*Nothing was saved"):
            write_trait(draft("Complains", model="writer"), path)
        assert not any(tmp_path.iterdir())
        assert len(server.requests) == ATTEMPTS + {"name": 0, "questions": 1, "pairs": 3}[piece]

    def test_an_empty_reply_is_no_crash(self, serve: Callable[[Behaviour], Server]) -> None:
        serve(lambda body, before: (200, completion(None)))
        with pytest.raises(DraftFailed, match="no usable definition"):
            draft("Complains", model="writer")


class TestAServerThatFails:
    def draft(self, server: Server) -> None:
        with OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
            draft("Complains", model="writer", client=client)

    @pytest.mark.parametrize(
        ("status", "said"),
        [
            (401, r"HTTP 401: no.*set OPENAI_API_KEY"),
            (404, r"HTTP 404: no.*correct the model's name, or OPENAI_BASE_URL"),
            (400, r"HTTP 400: no.*choose another model"),
            (500, r"HTTP 500: no.*fix the server"),
        ],
    )
    def test_is_named_with_the_remedy(self, serve: Callable[[Behaviour], Server], status: int, said: str) -> None:
        server = serve(lambda body, before: (status, error("no")))
        with pytest.raises(DraftFailed, match=said):
            self.draft(server)

    def test_midway_ends_in_an_error(self, serve: Callable[[Behaviour], Server]) -> None:
        writer = Writer()
        server = serve(lambda body, before: (500, {}) if before == 5 else (200, completion(json.dumps(writer(body)))))
        with pytest.raises(DraftFailed, match="HTTP 500"):
            self.draft(server)

    @pytest.mark.parametrize("page", [b"<html>hello</html>", {"hello": 1}])
    def test_by_not_being_one_is_named(self, serve: Callable[[Behaviour], Server], page: Any) -> None:
        server = serve(lambda body, before: (200, page))
        with pytest.raises(DraftFailed, match=r"sends no chat completions; set OPENAI_BASE_URL"):
            self.draft(server)

    def test_by_being_down_is_named(self) -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        with (
            OpenAI(base_url=url, api_key="none", max_retries=0) as client,
            pytest.raises(DraftFailed, match=r"Connection refused\); start the server, or set OPENAI_BASE_URL"),
        ):
            draft("Complains", model="writer", client=client)


class TestBeforeAnythingIsAsked:
    def test_an_empty_sentence_is_refused(self) -> None:
        with pytest.raises(DraftFailed, match="The description is empty"):
            draft("  ", model="writer")

    def test_an_impossible_name_is_refused(self) -> None:
        with pytest.raises(InvalidTrait, match="cannot be the name of a trait"):
            draft("Complains", model="writer", name="a/b")

    def test_the_client_is_not_imported(self) -> None:
        code = "import sys, poise.trait.draft; sys.exit('openai' in sys.modules or 'torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class TestWrite:
    def test_saves_what_loads_equal(self, tmp_path: Path) -> None:
        trait = load_trait("humorous")
        write_trait(trait, tmp_path / "new" / "t.yaml")
        assert load_trait(str(tmp_path / "new" / "t.yaml")) == trait

    def test_leaves_the_old_file_where_the_disk_refuses(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "t.yaml"
        path.write_text("old")

        def full(*_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "write_text", full)
        with pytest.raises(SaveFailed, match="No space left"):
            write_trait(load_trait("humorous"), path, force=True)
        monkeypatch.undo()
        assert path.read_text() == "old"
        assert list(tmp_path.iterdir()) == [path]
