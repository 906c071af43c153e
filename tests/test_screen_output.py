"""Rows that get another answer keep their shape and everything else."""

from __future__ import annotations

import json
from typing import Any

import pytest

from poise.data.readers import DataShape, read_row
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
