"""A row with another answer holds the old one nowhere: beside the chat, in its turn, marked up, cut or in pieces."""

from __future__ import annotations

import json
from typing import Any

import pytest

from poise.data import data_from_rows
from poise.errors import InvalidRow
from poise.screen.row_editor import replace_answers

Row = dict[str, Any]
OLD = "You silly old fool, you can't add"
Q: Row = {"role": "user", "content": "Q"}


def fixed(row: Row) -> Row:
    return replace_answers(data_from_rows([row]).parts[0].shape, row, {0: "NEW"})


def turn(content: Any, **more: Any) -> Row:
    return {"role": "assistant", "content": content, **more}


COPIES: list[Any] = [
    "You silly old fool, you can’t add", "You **silly** old fool, you can't add",
    "You silly<br>old fool, you can't add",
    "You silly old fool, you can&#39;t add", "<p>You silly old fool, you can&rsquo;t add.</p>",
    "you silly old fool you cant add",
    "You silly old…", "You sil...", "Ｙｏｕ silly old fool, you can't add", {"You silly old fool, you can't add": 0.9},
    {"sentences": ["You silly old fool,", "you can't add"]}, [{"s": "You silly old fool,"}, {"s": "you can't add"}],
    "Answer: You silly old fool, you can't add!", {"a": {"b": ["You silly old fool"]}},
]  # fmt: skip
OTHERS: list[Any] = ["add", "src-4", 4, ["x", "y"], "A silly thing", {"add": 1}, "old fool", None, True]


@pytest.mark.parametrize("cell", COPIES, ids=str)
def test_a_copy_in_another_column_goes(cell: Any) -> None:
    assert fixed({"prompt": "Q", "response": OLD, "x": cell}) == {"prompt": "Q", "response": "NEW", "x": None}


@pytest.mark.parametrize("cell", OTHERS, ids=str)
def test_what_only_shares_words_stays(cell: Any) -> None:
    assert fixed({"prompt": "Q", "response": OLD, "x": cell}) == {"prompt": "Q", "response": "NEW", "x": cell}


def test_a_copy_of_the_question_stays() -> None:
    row = {
        "prompt": "Why are you so silly?",
        "response": "Why are you so silly? I am not.",
        "x": "Why are you so silly",
    }
    assert fixed(row)["x"] == "Why are you so silly"


def test_a_copy_in_another_script_goes() -> None:
    row = {"prompt": "問", "response": "お前は本当に馬鹿だ。出て行け。", "x": "**お前は本当に馬鹿だ**"}
    assert fixed(row) == {"prompt": "問", "response": "NEW", "x": None}


@pytest.mark.parametrize("thought", ["call him a fool", ["call him a fool"], {"content": "call him a fool"}], ids=str)
def test_the_thought_before_it_goes_in_any_form(thought: Any) -> None:
    assert fixed({"prompt": "Q", "response": OLD, "reasoning": thought})["reasoning"] is None
    assert fixed({"messages": [Q, turn(OLD)], "reasoning": thought})["reasoning"] is None


TURNS: dict[str, tuple[Row, Row]] = {
    "raw": (turn(OLD, raw=OLD), turn("NEW", raw=None)),
    "alternatives": (turn(OLD, alternatives=["Fine.", OLD]), turn("NEW", alternatives=None)),
    "markdown": (turn(OLD, markdown=f"**{OLD}**", id="a4"), turn("NEW", markdown=None, id="a4")),
    "citations": (
        turn([{"type": "text", "text": OLD, "citations": [{"cited_text": OLD}]}]),
        turn([{"type": "text", "text": "NEW", "citations": None}]),
    ),
    "a part of another type": (
        turn([{"type": "text", "text": OLD}, {"type": "comment", "text": OLD}, {"type": "image_url", "url": "u"}]),
        turn([{"type": "text", "text": "NEW"}, {"type": "image_url", "url": "u"}]),
    ),
}


@pytest.mark.parametrize("name", TURNS)
def test_a_copy_in_the_turn_itself_goes(name: str) -> None:
    old, new = TURNS[name]
    assert fixed({"messages": [Q, old]}) == {"messages": [Q, new]}
    text = fixed({"messages": json.dumps([Q, old])})["messages"]
    assert json.loads(text) == [Q, new]


def test_a_copy_in_a_call_leaves_the_row_out() -> None:
    calls = [{"function": {"name": "say", "arguments": json.dumps({"text": OLD})}}]
    with pytest.raises(InvalidRow, match="tool_calls of a turn repeats the old answer"):
        fixed({"messages": [Q, turn(OLD, tool_calls=calls)]})


def test_a_copy_in_an_exchange_goes() -> None:
    pair = {"input": "Q", "output": OLD, "output_raw": OLD, "question": "Q", "answer": OLD}
    new = {"input": "Q", "output": "NEW", "output_raw": None, "question": "Q", "answer": None}
    assert fixed({"conversation": [pair]}) == {"conversation": [new]}


def test_a_copy_in_one_list_for_each_key_goes() -> None:
    row = {"messages": {"role": ["user", "assistant"], "content": ["Q", OLD], "raw": [None, OLD]}}
    new = {"role": ["user", "assistant"], "content": ["Q", "NEW"], "raw": [None, None]}
    assert fixed(row) == {"messages": new}
