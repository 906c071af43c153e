"""Columns beside a prompt, an answer or a chat: none is read in their place, and none that belongs there is lost."""

from __future__ import annotations

import re
from typing import Any

import pytest

from poise.data import Conversation, data_from_rows
from poise.data.messages import Need
from poise.errors import InvalidData, InvalidRow
from poise.screen.row_editor import replace_answers

Row = dict[str, Any]
Spoken = list[tuple[str, str]]
PAIR = {"prompt": "Q", "response": "A"}


def chat(*texts: str) -> list[Row]:
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


def spoken(*rows: Row, shape: str = "auto", need: Need = "assistant") -> Spoken:
    """The turns of the last row."""
    last = list(data_from_rows(rows, shape=shape, need=need))[-1]
    assert isinstance(last, Conversation), last
    return [(message["role"], message["content"]) for message in last.messages]


def refusal(*rows: Row) -> str:
    """Why the rows, or the last of them, are not read."""
    try:
        last = list(data_from_rows(rows))[-1]
    except InvalidData as error:
        return str(error)
    assert not isinstance(last, Conversation), last.messages
    return last.reason


def read_by_remedies(row: Row) -> list[Spoken]:
    """What each shape that a refusal offers reads."""
    shapes = re.findall(r"\b(?:pairs|alpaca|messages|alternating|exchanges|text):[\w,]+", refusal(row))
    assert shapes, refusal(row)
    return [spoken(row, shape=shape) for shape in shapes]


U, A, S = "user", "assistant", "system"
READ: dict[str, tuple[Row, Spoken]] = {
    "names of files beside a pair": (
        {"prompt": "Sum.", "response": "5.", "data": ["sales.csv", "costs.csv"]},
        [(U, "Sum."), (A, "5.")],
    ),
    "passages beside a pair": (
        {"question": "Q", "answer": "A", "contents": ["one passage", "two passages"]},
        [(U, "Q"), (A, "A")],
    ),
    "examples beside a pair": ({**PAIR, "data": [{"input": "ex", "output": "shot"}]}, [(U, "Q"), (A, "A")]),
    "names of files beside a chat": ({"messages": chat("Q", "A"), "data": ["a.csv", "b.csv"]}, [(U, "Q"), (A, "A")]),
    "an answer after a dialogue": (
        {"dialog": ["hi", "hello", "how are you?"], "response": "fine"},
        [(U, "hi"), (A, "hello"), (U, "how are you?"), (A, "fine")],
    ),
    "turns with the names of who speaks": ({"turns": ["Human: hi", "Assistant: ho"]}, [(U, "hi"), (A, "ho")]),
    "an instruction with inputs": (
        {"instruction": "Translate", "inputs": "X", "targets": "Y"},
        [(U, "Translate\n\nX"), (A, "Y")],
    ),
    "an input that the prompt was filled in with": (
        {"prompt": "Summarise: THE TEXT", "input": "THE TEXT", "output": "A"},
        [(U, "Summarise: THE TEXT"), (A, "A")],
    ),
    "an empty input first": ({"input": "", "query": "Q", "response": "A"}, [(U, "Q"), (A, "A")]),
    "a user's number": ({**PAIR, "user": "u17"}, [(U, "Q"), (A, "A")]),
    "a user's name": ({**PAIR, "user": "Jane van Doe"}, [(U, "Q"), (A, "A")]),
    "an empty system prompt": ({"system": "", "system_prompt": "S", **PAIR}, [(S, "S"), (U, "Q"), (A, "A")]),
    "one system prompt twice": ({"system": "S", "system_prompt": "S", **PAIR}, [(S, "S"), (U, "Q"), (A, "A")]),
    "a history that the chat has": (
        {"history": [["q", "a"]], "messages": chat("q", "a", "Q", "A")},
        [(U, "q"), (A, "a"), (U, "Q"), (A, "A")],
    ),
}


@pytest.mark.parametrize(("row", "turns"), READ.values(), ids=READ)
def test_read(row: Row, turns: Spoken) -> None:
    assert spoken(row) == turns


REFUSED: dict[str, tuple[Row, list[str]]] = {
    "a user's turns alone": (
        {"question_id": 81, "turns": ["Compose it.", "Rewrite it."]},
        ["turns is a list of texts, and does not say who speaks", "alternating:turns"],
    ),
    "passages alone": ({"contents": ["one", "two"]}, ["contents is a list of texts"]),
    "a table by columns": (
        {"columns": ["response", "prompt"], "index": [0, 1, 2], "data": [["A", "Q"]] * 3},
        ['orient="split"', 'orient="records", lines=True'],
    ),
    "its rows": ({"columns": "response", "index": 0, "data": ["A1", "Q1"]}, ['orient="records", lines=True']),
    "an answer after a whole dialogue": (
        {"dialog": ["hi", "hello"], "response": "fine"},
        ["dialog ends with an answer, and response holds another", "alternating:dialog"],
    ),
    "a dialogue beside a pair": (
        {**PAIR, "dialog": ["hi", "hello"]},
        ["prompt could be the prompt, or what dialog holds", "alternating:dialog"],
    ),
    "a prompt with its input": (
        {"prompt": "Summarise:", "input": "TEXT", "output": "A"},
        ["ambiguous: prompt and input could each be the prompt", "alpaca:prompt,input,output"],
    ),
    "a question with its input": ({"question": "Q", "input": "I", "output": "A"}, ["alpaca:question,input,output"]),
    "a query with its input": ({"query": "Q", "input": "I", "response": "A"}, ["alpaca:query,input,response"]),
    "an instruction and a user": (
        {"instruction": "S", "user": "Q", "assistant": "A"},
        ["alpaca:instruction,user,assistant"],
    ),
    "an instruction and a question": (
        {"instruction": "S", "question": "Q", "answer": "A"},
        ["alpaca:instruction,question,answer"],
    ),
    "a prompt and a user": ({"prompt": "S", "user": "Q", "assistant": "A"}, ["alpaca:prompt,user,assistant"]),
    "two system prompts": (
        {"system": "S1", "system_prompt": "S2", **PAIR},
        ["ambiguous: system and system_prompt are two system prompts", "keep the one that is meant"],
    ),
    "a history beside a chat": (
        {"history": [["q", "a"]], "messages": chat("Q", "A")},
        ["history holds turns that messages does not", "messages:messages"],
    ),
    "a prompt beside a chat without an answer": (
        {"prompt": "P", "response": "A", "messages": chat("Q")},
        ["prompt could be the prompt, or what messages holds", "messages:messages,response or pairs:prompt,response"],
    ),
}


@pytest.mark.parametrize(("row", "words"), REFUSED.values(), ids=REFUSED)
def test_refused_from_the_first_row_and_later(row: Row, words: list[str]) -> None:
    first = refusal(row)
    assert [word for word in words if word not in first] == []
    assert refusal(*[PAIR] * 100, row) != ""


@pytest.mark.parametrize(
    ("row", "readings"),
    [
        (REFUSED["a user's turns alone"][0], [[(U, "Compose it."), (A, "Rewrite it.")]]),
        (
            REFUSED["a prompt with its input"][0],
            [
                [(U, "Summarise:\n\nTEXT"), (A, "A")],
                [(U, "Summarise:"), (A, "A")],
                [(U, "TEXT"), (A, "A")],
            ],
        ),
        (
            REFUSED["an instruction and a question"][0],
            [[(U, "S\n\nQ"), (A, "A")], [(U, "S"), (A, "A")], [(U, "Q"), (A, "A")]],
        ),
        (REFUSED["a history beside a chat"][0], [[(U, "Q"), (A, "A")]]),
        ({"history": [["q", "a"]], "messages": chat("Q"), "response": "A"}, [[(U, "Q"), (A, "A")]]),
        (
            REFUSED["a prompt beside a chat without an answer"][0],
            [[(U, "Q"), (A, "A")], [(U, "P"), (A, "A")]],
        ),
        (
            REFUSED["a dialogue beside a pair"][0],
            [[(U, "hi"), (A, "hello")], [(U, "Q"), (A, "A")]],
        ),
    ],
)
def test_each_shape_that_a_refusal_offers_reads_the_row(row: Row, readings: list[Spoken]) -> None:
    assert read_by_remedies(row) == readings


def test_what_begins_late_in_a_file_is_read_or_rejected() -> None:
    chats = [{"messages": chat("Q", "A")}] * 100
    late = {"messages": chat("Q", "A", "Q2"), "response": "B"}
    assert spoken(*chats, late) == [(U, "Q"), (A, "A"), (U, "Q2"), (A, "B")] == spoken(late)
    assert "history holds turns" in refusal(*chats, {"history": [["q", "a"]], "messages": chat("Q", "A")})
    assert "alpaca:prompt,input,response" in refusal(*[PAIR] * 100, {**PAIR, "input": "LATE"})
    assert spoken(*[{"system": "S1", **PAIR}] * 2, {"system_prompt": "S2", **PAIR})[0] == (S, "S2")
    assert "two system prompts" in refusal(*[PAIR] * 100, {**PAIR, "system": "S1", "systemPrompt": "S2"})


def test_a_user_s_turns_are_prompts_of_calibration() -> None:
    assert spoken({"turns": ["Compose it.", "Rewrite it."]}, need="user")[0] == (U, "Compose it.")
    assert spoken({"prompt": "Q", "data": ["a.csv", "b.csv"]}, need="user") == [(U, "Q")]


def test_a_list_that_is_no_chat_is_named_as_not_read() -> None:
    assert "prompt, response, without data (" in data_from_rows([READ["names of files beside a pair"][0]]).how


def test_a_new_answer_is_written_where_the_old_one_was_read_or_not_at_all() -> None:
    shape = data_from_rows([{"messages": chat("Q", "A")}]).parts[0].shape
    late = {"messages": chat("Q"), "response": "OLD"}
    assert replace_answers(shape, late, {0: "NEW"}) == {"messages": chat("Q"), "response": "NEW"}
    refused = {"messages": [chat("Q")[0], {"role": "assistant", "content": None, "refusal": "OLD"}]}
    assert replace_answers(shape, refused, {0: "NEW"})["messages"][1] == {
        "role": "assistant",
        "content": "NEW",
        "refusal": None,
    }
    row = READ["an answer after a dialogue"][0]
    shape = data_from_rows([row]).parts[0].shape
    assert replace_answers(shape, row, {1: "NEW"}) == {**row, "response": "NEW"}
    assert replace_answers(shape, row, {0: "NEW"}) == {**row, "dialog": ["hi", "NEW", "how are you?"]}
    with pytest.raises(InvalidRow, match="answer 3 cannot be replaced"):
        replace_answers(shape, row, {2: "NEW"})
