"""Questions that follow others: what is looked for, what a prompt shows of the conversation, and its file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from poise.cli import app
from poise.data import Message
from poise.errors import InvalidArgument
from poise.knowledge import AnswerSettings, Knowledge, answer_question
from poise.knowledge.follow_ups import (
    append_turns,
    joined_question,
    latest_turns,
    read_turns,
    rewriting_prompt,
    search_text,
    usable_rewriting,
)
from test_knowledge import WordEncoder, built, docs
from test_knowledge_answers import Scripted, length

__all__ = ["docs"]

ASKED = ["What does a berth cost?", "And for two nights?"]
TURNS: list[Message] = [
    {"role": "user", "content": ASKED[0]},
    {"role": "assistant", "content": "A berth costs 12 euros."},
]


class TestSearchText:
    def test_a_question_of_few_words_is_joined_to_the_one_before(self) -> None:
        assert joined_question(ASKED) == "What does a berth cost?\nAnd for two nights?"
        long = "When does the ferry to Lund island leave pier three?"
        assert joined_question([ASKED[0], long]) == long
        assert joined_question(["Alone?"]) == "Alone?"

    def test_is_the_last_question_where_that_is_wanted_or_there_is_one(self) -> None:
        assert search_text(ASKED, "last") == ASKED[1]
        assert search_text(ASKED[:1], "rewrite", lambda *_: "never asked") == ASKED[0]

    @pytest.mark.parametrize(
        ("written", "sought"),
        [
            ("What do two nights at a berth cost?\nMore text.", "What do two nights at a berth cost?"),
            ("\n Rewritten: How much for two nights?", "How much for two nights?"),
            ("", "What does a berth cost?\nAnd for two nights?"),
            ("...", "What does a berth cost?\nAnd for two nights?"),
            ("very long " * 100, "What does a berth cost?\nAnd for two nights?"),
        ],
    )
    def test_is_what_the_model_writes_where_that_is_a_question(self, written: str, sought: str) -> None:
        prompts: list[str] = []

        def write(messages: list[Message], most: int) -> str:
            prompts.append(messages[-1]["content"])
            assert most < 100
            return written

        assert search_text(["Who rows?", *ASKED], "rewrite", write) == sought
        assert prompts[0].endswith("Before: What does a berth cost?\nFollow-up: And for two nights?\nRewritten:")
        assert "Who rows?" not in prompts[0]

    def test_the_prompt_for_it_is_short_and_in_lines(self) -> None:
        (turn,) = rewriting_prompt(["a\nb " * 5000, "c\n\nd"])
        assert "Follow-up: c d\n" in turn["content"]
        assert len(turn["content"]) < 1300
        assert usable_rewriting("the of") == ""


class TestHistory:
    def test_finds_and_shows_what_it_is_about(self, docs: Path, tmp_path: Path) -> None:
        built(docs, tmp_path / "kb")
        knowledge, writer = Knowledge(tmp_path / "kb", WordEncoder()), Scripted("It costs 12 euros [1].")
        answer = answer_question(knowledge, "And a week?", writer, history=TURNS)
        assert answer.sought == "What does a berth cost?\nAnd a week?"
        assert answer.passages[0].headings == ("Fees",)
        assert answer.question == "And a week?"
        alone = answer_question(knowledge, "And a week?", writer, AnswerSettings(follow_up="last"), history=TURNS)
        assert alone.sought == "And a week?"

    def test_what_the_user_said_before_may_be_repeated(self, docs: Path, tmp_path: Path) -> None:
        built(docs, tmp_path / "kb")
        knowledge = Knowledge(tmp_path / "kb", WordEncoder())
        writer = Scripted("Okonkwo pays 12 euros a night for a berth [1].")
        before: list[Message] = [
            {"role": "user", "content": "Does Okonkwo have a berth?"},
            {"role": "assistant", "content": "Yes."},
        ]
        answer = answer_question(knowledge, "What does it cost a night?", writer, history=before)
        assert answer.unsupported == 0

    def test_has_a_third_of_the_room(self) -> None:
        turns: list[Message] = [{"role": "system", "content": "Be brief."}, *TURNS * 20]
        most = length(turns) // 2
        latest = latest_turns(turns, length, most)
        assert latest[0] == turns[0]
        assert latest[1]["role"] == "user"
        assert latest[1:] == turns[-len(latest) + 1 :]
        assert most - length(TURNS) < length(latest) <= most
        assert latest_turns(turns, length, 1) == [turns[0]]
        assert latest_turns([], length, 100) == []

    def test_shows_no_numbers_of_other_passages(self) -> None:
        answer = "A berth costs 12 euros [1][2]. It is red [3, 4] [unsupported]. See a[0]."
        turns: list[Message] = [{"role": "user", "content": "What [1]?"}, {"role": "assistant", "content": answer}]
        user, assistant = latest_turns(turns, length, 1000)
        assert user["content"] == "What [1]?"
        assert assistant["content"] == "A berth costs 12 euros. It is red. See a."


class TestFile:
    def test_begins_and_goes_on(self, tmp_path: Path) -> None:
        path = tmp_path / "chat.jsonl"
        assert read_turns(path) == []
        append_turns(path, "Wann?", "Um sechs – früh.")
        path.write_text(path.read_text().rstrip("\n"))
        append_turns(path, "And then?", "At seven.")
        assert [turn["content"] for turn in read_turns(path)] == ["Wann?", "Um sechs – früh.", "And then?", "At seven."]

    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            ("{", "line 1 is no turn"),
            ('\n{"role": "tool", "content": "x"}', "line 2 is no turn"),
            ('{"role": "user", "content": null}', "line 1 is no turn"),
            ("[]", "line 1 is no turn"),
            ('{"role": "user", "content": "x"}', "no conversation that a question can follow"),
            ('{"role": "assistant", "content": "x"}', "no conversation that a question can follow"),
        ],
    )
    def test_that_is_none_is_a_sentence(self, text: str, sentence: str, tmp_path: Path) -> None:
        (tmp_path / "chat.jsonl").write_text(text)
        with pytest.raises(InvalidArgument, match=sentence):
            read_turns(tmp_path / "chat.jsonl")

    def test_that_is_binary_is_a_sentence(self, tmp_path: Path) -> None:
        (tmp_path / "chat.jsonl").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(InvalidArgument, match="cannot be read"):
            read_turns(tmp_path / "chat.jsonl")


def test_the_command_keeps_the_conversation(docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built(docs, tmp_path / "kb")
    writer = Scripted("A berth costs 12 euros a night.")
    monkeypatch.setattr("poise.knowledge.searching.text_encoder", lambda *_, **__: WordEncoder())
    monkeypatch.setattr("poise.cli.ask._answer_writer", lambda *_: (writer, None))
    chat = tmp_path / "chat.jsonl"
    command = ["--knowledge", str(tmp_path / "kb"), "--model", "m", "--history", str(chat)]
    done = CliRunner().invoke(app, ["ask", "What does a berth cost?", *command])
    assert done.exit_code == 0, done.output
    assert "Looked for" not in done.stderr
    done = CliRunner().invoke(app, ["ask", "And why?", *command])
    assert "Looked for: What does a berth cost? And why?" in done.stderr
    assert [json.loads(line)["role"] for line in chat.read_text().splitlines()] == ["user", "assistant"] * 2
    done = CliRunner().invoke(app, ["ask", "And why?", *command, "--follow-up", "rewrite", "--json"])
    assert json.loads(done.stdout)["sought"] == "A berth costs 12 euros a night."
