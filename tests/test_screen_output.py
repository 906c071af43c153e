"""Rows that get another answer keep their shape and everything else."""

from __future__ import annotations

import json
from typing import Any

import pytest

from poise.data.readers import read_row
from poise.data.shapes import DataShape
from poise.screen.row_editor import replace_answers


class TestARowWithAnotherAnswer:
    CHAT = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})

    @pytest.mark.parametrize(
        ("shape", "row"),
        [
            (DataShape("messages", ("messages",)), {"id": 1, "messages": [*CHAT, *CHAT]}),
            (DataShape("messages", ("messages",)), {"messages": json.dumps([*CHAT, *CHAT]), "x": None}),
            (
                DataShape("messages", ("m",)),
                {"m": {"role": ["user", "assistant"] * 2, "content": ["a", "b", "c", "d"]}},
            ),
            (
                DataShape("sharegpt", ("c",)),
                {"c": [{"from": f, "value": f} for f in ("human", "gpt", "human", "GPT ")]},
            ),
            (DataShape("pairs", ("prompt", "completion")), {"prompt": [*CHAT, CHAT[0]], "completion": [CHAT[1]]}),
            (DataShape("pairs", ("prompt", "answer")), {"prompt": [*CHAT, CHAT[0]], "answer": "old"}),
            (
                DataShape("messages", ("messages",)),
                {"messages": [*CHAT, CHAT[0], {"role": "model", "content": [{"type": "text", "text": "old"}]}]},
            ),
        ],
    )
    def test_is_read_with_it_and_is_otherwise_the_same(self, shape: DataShape, row: dict[str, Any]) -> None:
        before = read_row(shape, row, "assistant").messages
        new = replace_answers(shape, row, {1: "new"})
        after = read_row(shape, new, "assistant").messages
        answers = [i for i, m in enumerate(before) if m["role"] == "assistant"]
        assert after[answers[1]]["content"] == "new"
        assert [m for i, m in enumerate(after) if i != answers[1]] == [
            m for i, m in enumerate(before) if i != answers[1]
        ]
        assert list(new) == list(row)
        assert read_row(shape, row, "assistant").messages == before

    @pytest.mark.parametrize(
        ("shape", "row"),
        [
            (DataShape("pairs", ("q", "a")), {"q": None, "a": "old", "n": 2}),
            (
                DataShape("alpaca", ("instruction", "input", "output")),
                {"instruction": "x", "input": "", "output": "old"},
            ),
            (DataShape("text", ("text",)), {"text": "old"}),
        ],
    )
    def test_of_one_answer_has_it_in_its_column(self, shape: DataShape, row: dict[str, Any]) -> None:
        assert replace_answers(shape, row, {0: "new"}) == {name: "new" if v == "old" else v for name, v in row.items()}


PAIR = DataShape("pairs", ("prompt", "response"))


class TestColumnsThatRepeatTheOldAnswer:
    @pytest.mark.parametrize(
        ("answer", "column"),
        [
            ("3, you fool", "3, you fool"),
            ("3, you fool", "  3,  YOU\nfool.  "),
            ("3, you fool", "Prompt: What is it? Reply: 3, you fool"),
            ("3, you fool", ["3, ", "you ", "fool"]),
            ("3, you fool", ["3,", "you", "fool"]),
            ("3, you fool", {"deep": [{"er": "so: 3, you fool!"}]}),
            ("3, you fool", json.dumps([{"role": "assistant", "content": "3, you fool"}])),
            ("3, you fool", json.dumps({"raw": 'said "3, you fool"'})),
            ("3, you fool", b"<s>3, you fool</s>"),
            ("Idiot.", "It calls the user an idiot, twice"),
            ("4", 4),
            ("4", [{"role": "user", "content": "?"}, {"role": "assistant", "content": "4"}]),
            ("4", "### Human: 2+2?### Assistant: 4"),
            ("4", "What is it? 4"),
            ("<think>They are a fool indeed</think>4", "because they are a fool indeed"),
        ],
    )
    def test_are_emptied(self, answer: str, column: Any) -> None:
        row = {"prompt": "What is it?", "response": answer, "other": column, "id": "row-4"}
        assert replace_answers(PAIR, row, {0: "new"}) == {**row, "response": "new", "other": None}

    @pytest.mark.parametrize(
        ("answer", "column"),
        [
            ("4", "row-4 of 4"),
            ("4", 14),
            ("B", ["A", "C"]),
            ("Idiot.", "idiotic"),
            ("Idiot.", "idiots-v2"),
            ("3, you fool", "the prompt alone: What is it?"),
            ("True", True),
        ],
    )
    def test_are_not_those_that_hold_something_else(self, answer: str, column: Any) -> None:
        row = {"prompt": "What is it?", "response": answer, "other": column}
        assert replace_answers(PAIR, row, {0: "new"}) == {**row, "response": "new"}

    def test_may_hold_the_thought_of_another_column(self) -> None:
        row = {
            "prompt": "What is it?",
            "reasoning_content": "They are a fool indeed",
            "response": "So it is, dear.",
            "dump": "thought: they are a fool indeed",
        }
        new = replace_answers(PAIR, row, {0: "new"})
        assert new == {"prompt": "What is it?", "reasoning_content": None, "response": "new", "dump": None}


class TestEveryFormOfAList:
    @pytest.mark.parametrize(
        ("kind", "cell", "edited"),
        [
            ("exchanges", json.dumps([{"input": "q", "output": "old"}]), json.dumps([{"input": "q", "output": "new"}])),
            ("exchanges", {"input": ["q"], "output": ["old"]}, {"input": ["q"], "output": ["new"]}),
            ("alternating", ["q", "old"], ["q", "new"]),
            ("alternating", '["q", "old"]', '["q", "new"]'),
            (
                "messages",
                [
                    {
                        "role": "assistant",
                        "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "old"}],
                    }
                ],
                [{"role": "assistant", "content": [{"type": "text", "text": "new"}]}],
            ),
            (
                "messages",
                [{"role": "assistant", "content": "old", "text": "old"}],
                [{"role": "assistant", "content": "new", "text": "new"}],
            ),
            (
                "messages",
                [{"role": "model", "parts": [{"text": "hm", "thought": True}, {"text": "old"}]}],
                [{"role": "model", "parts": [{"text": "new"}]}],
            ),
        ],
    )
    def test_gets_the_new_answer(self, kind: str, cell: Any, edited: Any) -> None:
        assert replace_answers(DataShape(kind, ("c",)), {"c": cell, "n": 1}, {0: "new"}) == {"c": edited, "n": 1}

    def test_keeps_a_column_that_only_names_the_kind_of_a_part(self) -> None:
        parts = [{"type": "thinking", "thinking": "a foul plan"}, {"type": "text", "text": "old"}]
        row = {"c": [{"role": "assistant", "content": parts}], "kind": "thinking", "dump": "so: a foul plan"}
        new = replace_answers(DataShape("messages", ("c",)), row, {0: "new"})
        assert (new["kind"], new["dump"]) == ("thinking", None)
