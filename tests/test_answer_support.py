"""What becomes of sentences that documents do not support: in words, in tokens, and in a server's answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")

import serving
import tiny
from poise.engine import EngineOutput, GeneratedToken
from poise.knowledge import AnswerSettings, RetrievedPassage
from poise.knowledge.prompting import NOT_IN_DOCUMENTS
from poise.serve.alarm_policy import GuardedOutput
from poise.serve.answer_support import HeldAnswer
from poise.serve.knowledge_use import KnowledgeUse, stricter
from poise.serve.policy import UnsupportedRule
from test_knowledge import GUIDE, WordEncoder, built

TEXT = "A berth costs 12 euros [1]. Whales sing songs. 🚢 A berth costs 12 euros a night."
PASSAGE = RetrievedPassage("1", "fees.md", "", (), None, "A berth costs 12 euros a night.", 1.0, (), ())


def use(unsupported: UnsupportedRule, **more: Any) -> KnowledgeUse:
    return KnowledgeUse("What does a berth cost?", (PASSAGE,), AnswerSettings(), unsupported, **more)


def outputs(text: str, size: int = 5) -> list[GuardedOutput]:
    """The text in tokens of so many characters, two a step, after a thought."""
    tokens = [GeneratedToken(text=text[n : n + size], logprob=-1.0) for n in range(0, len(text), size)]
    steps = [EngineOutput(key=0, tokens=(GeneratedToken(text="Hm.", part="thought"),))]
    steps += [EngineOutput(key=0, tokens=tuple(tokens[n : n + 2])) for n in range(0, len(tokens), 2)]
    return [GuardedOutput(output=step) for step in [*steps[:-1], replace(steps[-1], finish="stop")]]


def held(unsupported: UnsupportedRule, text: str = TEXT, size: int = 5) -> tuple[list[str], str, dict[str, Any]]:
    """What left before the end, what came with it, and the facts."""
    answer = HeldAnswer(use(unsupported))
    *before, last = [answer.hold(step) for step in outputs(text, size)]
    end = answer.release(last)
    assert answer.facts is not None
    early = [token.text for step in before for token in step.output.tokens]
    return early, "".join(token.text for token in end.output.tokens if token.part == "reply"), answer.facts


class TestHeldAnswer:
    @pytest.mark.parametrize("size", [1, 5, 200])
    @pytest.mark.parametrize(
        ("unsupported", "text"),
        [
            ("mark", "A berth costs 12 euros [1]. Whales sing songs. [unsupported] 🚢 A berth costs 12 euros a night."),
            ("remove", "A berth costs 12 euros [1]. 🚢 A berth costs 12 euros a night."),
            ("refuse", NOT_IN_DOCUMENTS),
        ],
    )
    def test_says_what_may_be_said(self, unsupported: UnsupportedRule, text: str, size: int) -> None:
        early, late, facts = held(unsupported, size=size)
        assert early == ["Hm."]  # thoughts do not wait
        assert late == text
        assert facts["answered"] == (unsupported != "refuse")
        assert [sentence["supported"] for sentence in facts["sentences"]] == [True, False, True]
        for sentence in facts["sentences"]:
            if sentence["start"] is not None:
                place = late[sentence["start"] : sentence["end"]].replace(" [1]", "").removesuffix(" [unsupported]")
                assert place == sentence["text"]
        gone = [sentence["start"] is None for sentence in facts["sentences"]]
        assert gone == {"mark": [False] * 3, "remove": [False, True, False], "refuse": [True] * 3}[unsupported]

    def test_of_which_nothing_is_left_is_refused(self) -> None:
        assert held("remove", "Whales sing songs. Mars is red.")[1] == NOT_IN_DOCUMENTS

    @pytest.mark.parametrize("text", ["A berth costs 12 euros.", NOT_IN_DOCUMENTS, "", "…"])
    def test_that_is_supported_or_no_answer_is_left_alone(self, text: str) -> None:
        for unsupported in ("mark", "remove", "refuse"):
            assert held(unsupported, text)[1] == text

    @pytest.mark.parametrize("size", [1, 5, 200])
    def test_has_no_headings_and_signs_of_its_passages(self, size: int) -> None:
        for copied in ("fees.md\n\n", "<passage>\n", "Question: What does a berth cost?\n", "[1] fees.md:\n"):
            for unsupported in ("mark", "remove", "refuse"):
                late, facts = held(unsupported, f"{copied}A berth costs 12 euros [1].", size)[1:]
                assert late == "A berth costs 12 euros [1]."
                assert [(one["start"], one["end"]) for one in facts["sentences"]] == [(0, 27)]

    def test_keeps_tokens_that_are_left_alone_and_tells_no_other_choices_of_changed_ones(self) -> None:
        answer = HeldAnswer(use("remove"))
        *_, last = [answer.hold(step) for step in outputs(TEXT)]
        tokens = answer.release(last).output.tokens
        assert {token.text for token in tokens if token.logprob == -1.0} < {TEXT[n : n + 5] for n in range(0, 99, 5)}
        assert [token.text for token in tokens if token.logprob != -1.0] == ["]. ", "🚢 A"]

    def test_that_was_a_thought_leaves_when_that_is_known(self) -> None:
        answer = HeldAnswer(use("refuse"))
        first = answer.hold(GuardedOutput(output=EngineOutput(key=0, tokens=(GeneratedToken(text="Whales sing."),))))
        end = GeneratedToken(text="", part="mark", ends_unopened_thought=True)
        second = answer.hold(GuardedOutput(output=EngineOutput(key=0, tokens=(end,))))
        assert first.output.tokens == ()
        assert [(token.text, token.part) for token in second.output.tokens] == [
            ("Whales sing.", "thought"),
            ("", "mark"),
        ]


class TestKnowledgeUse:
    def test_asks_the_model_where_it_may(self) -> None:
        support = use("leave", score=lambda *_: [(0, 99, 0.1)]).support("At night a berth costs 12 euros.")
        assert (support.checked_by, [s.supported for s in support.sentences]) == ("model", [False])

    def test_goes_by_words_where_the_window_is_too_small(self) -> None:
        model = tiny.model("llama", max_position_embeddings=64)
        from poise.knowledge import model_scores

        support = use("leave", score=model_scores(model)).support("A berth costs 12 euros. " * 20)
        assert support.checked_by.startswith("words, since the model's window")
        assert all(sentence.supported for sentence in support.sentences)

    def test_of_two_rules_the_stricter_holds(self) -> None:
        assert stricter("mark", "remove") == stricter("remove", "mark") == "remove"
        assert stricter("leave", "leave") == "leave"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("served")
    (folder / "docs").mkdir()
    (folder / "docs" / "guide.md").write_text(GUIDE)
    built(folder / "docs", folder / "kb")
    (folder / "policy.yaml").write_text("keys:\n  strict: {unsupported: refuse, check_by_model: true}\n")
    (folder / "keys").write_text("anna " + "a" * 40 + "\nstrict " + "s" * 40 + "\n")
    (folder / "keys").chmod(0o600)
    patch = pytest.MonkeyPatch()
    patch.setattr("poise.knowledge.searching.text_encoder", lambda *_, **__: WordEncoder())
    model = tiny.model("llama", max_position_embeddings=4096)
    with serving.running(model, knowledge=folder / "kb", keys=folder / "keys", policy=folder / "policy.yaml") as (
        where,
        server,
    ):
        yield f"{where} {server.service.name}"
    patch.undo()


def chat(address: str, knowledge: Any, key: str = "a", **more: Any) -> httpx.Response:
    where, name = address.split()
    body = {"model": name, "max_tokens": 24, "temperature": 1, "seed": 0, "poise": {"knowledge": knowledge}, **more}
    body["messages"] = [{"role": "user", "content": "What does a berth cost a night?"}]
    headers = {"Authorization": f"Bearer {key * 40}"}
    return httpx.post(f"{where}/v1/chat/completions", json=body, headers=headers, timeout=60)


class TestServer:
    """Of a random model, whose words no document supports."""

    def test_leaves_marks_removes_or_refuses(self, address: str) -> None:
        texts = {}
        for rule in ("leave", "mark", "remove", "refuse"):
            answer = chat(address, {"unsupported": rule}).json()
            texts[rule] = answer["choices"][0]["message"]["content"]
            facts = answer["choices"][0]["poise"]["knowledge"]
            assert facts["answered"] == (rule in ("leave", "mark"))
            assert facts["unsupported"] == len(facts["sentences"]) > 0
            assert answer["usage"]["completion_tokens"] == 24  # what was written, whatever is left of it
        assert texts["mark"].replace(" [unsupported]", "") == texts["leave"] != texts["mark"]
        assert texts["remove"] == texts["refuse"] == NOT_IN_DOCUMENTS

    def test_holds_a_stream_back_until_it_is_checked(self, address: str) -> None:
        lines = chat(address, {"unsupported": "refuse"}, stream=True).text.splitlines()
        chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
        said = [choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"]]
        assert "".join(said) == NOT_IN_DOCUMENTS
        assert chunks[-1]["choices"][0]["poise"]["knowledge"]["answered"] is False

    def test_does_what_the_key_s_rules_say_whatever_is_asked(self, address: str) -> None:
        answer = chat(address, {"unsupported": "leave"}, "s").json()["choices"][0]
        assert answer["message"]["content"] == NOT_IN_DOCUMENTS
        assert answer["poise"]["knowledge"]["checked_by"] == "model"

    def test_has_the_model_score_sentences_where_it_is_asked(self, address: str) -> None:
        facts = chat(address, {"by_model": True}).json()["choices"][0]["poise"]["knowledge"]
        assert facts["checked_by"] == "model"
        assert chat(address, True).json()["choices"][0]["poise"]["knowledge"]["checked_by"] == "words"

    def test_does_not_change_calls_and_json(self, address: str) -> None:
        refusal = chat(address, {"unsupported": "remove"}, response_format={"type": "json_object"})
        assert refusal.status_code == 400
        assert "removed, which would break calls and JSON" in refusal.json()["error"]["message"]
