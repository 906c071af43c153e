"""Shapes that people keep conversations in: exactly what is read of each, or the sentence that refuses it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from poise.data import Conversation, open_data, turns
from poise.data.readers import read_row
from poise.data.shapes import DataShape
from poise.data.thoughts import split_thought
from poise.errors import InvalidData, InvalidRow
from poise.screen.row_editor import replace_answers

Row = dict[str, Any]


def chat(*texts: str) -> list[Row]:
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


def write(path: Path, *rows: Row | str) -> Path:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def conversations(path: Path) -> list[Conversation]:
    rows = list(open_data(path))
    assert all(isinstance(row, Conversation) for row in rows), rows
    return [row for row in rows if isinstance(row, Conversation)]


def answers(path: Path) -> list[str]:
    return [turn.answer for row in conversations(path) for turn in turns(row)]


TOOL_CALL = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Rome"}'}}

READ: dict[str, tuple[Row, list[str], list[tuple[str, str]]]] = {
    "input and output pairs": (
        {"source": "Airoboros", "conversation": [{"input": "q", "output": "a"}, {"input": "q2", "output": "a2"}]},
        ["a", "a2"],
        [("user", "q"), ("assistant", "a"), ("user", "q2"), ("assistant", "a2")],
    ),
    "human and assistant pairs": (
        {"conversation": [{"human": "H", "assistant": "A"}], "category": "Brainstorming"},
        ["A"],
        [("user", "H"), ("assistant", "A")],
    ),
    "alternating texts": (
        {"id": "0", "data": ["How can I?", "You can so."]},
        ["You can so."],
        [("user", "How can I?"), ("assistant", "You can so.")],
    ),
    "inputs and targets": ({"inputs": "Q", "targets": "A"}, ["A"], [("user", "Q"), ("assistant", "A")]),
    "inputs and targets as lists of one": (
        {"inputs": ["Q"], "targets": ["A"], "task": "name_of_task"},
        ["A"],
        [("user", "Q"), ("assistant", "A")],
    ),
    "Bedrock": (
        {
            "schemaVersion": "bedrock-conversation-2024",
            "system": [{"text": "S"}],
            "messages": [
                {"role": "user", "content": [{"text": "Q"}]},
                {"role": "assistant", "content": [{"text": "A"}]},
            ],
        },
        ["A"],
        [("system", "S"), ("user", "Q"), ("assistant", "A")],
    ),
    "Gemini": (
        {
            "systemInstruction": {"role": "system", "parts": [{"text": "S"}]},
            "contents": [{"role": "user", "parts": [{"text": "Q"}]}, {"role": "model", "parts": [{"text": "A"}]}],
        },
        ["A"],
        [("system", "S"), ("user", "Q"), ("assistant", "A")],
    ),
    "Anthropic with a thinking block": (
        {
            "system": "SYS",
            "messages": [
                {"role": "user", "content": "Q"},
                {
                    "role": "assistant",
                    "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "A"}],
                },
            ],
        },
        ["A"],
        [("system", "SYS"), ("user", "Q"), ("assistant", "A")],
    ),
    "Anthropic's tool use": (
        {
            "messages": [
                {"role": "user", "content": "Q"},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "text", "text": "Let me check"},
                        {"type": "tool_use", "id": "1", "name": "x", "input": {}},
                    ],
                },
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "R"}]},
                {"role": "assistant", "content": "done"},
            ]
        },
        ["Let me check", "done"],
        [("user", "Q"), ("assistant", "Let me check"), ("tool", "R"), ("assistant", "done")],
    ),
    "OpenAI's tools": (
        {
            "messages": [
                {"role": "user", "content": "Weather in Rome?"},
                {"role": "assistant", "content": None, "tool_calls": [TOOL_CALL]},
                {"role": "tool", "tool_call_id": "c1", "content": "21C"},
                {"role": "assistant", "content": "It is 21C in Rome."},
            ],
            "tools": [{"type": "function", "function": {"name": "get_weather", "parameters": {}}}],
        },
        ["It is 21C in Rome."],
        [("user", "Weather in Rome?"), ("assistant", ""), ("tool", "21C"), ("assistant", "It is 21C in Rome.")],
    ),
    "OpenAI's older function call": (
        {
            "messages": [
                *chat("Q"),
                {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
                {"role": "function", "name": "f", "content": "R"},
                {"role": "assistant", "content": "A"},
            ]
        },
        ["A"],
        [("user", "Q"), ("assistant", ""), ("tool", "R"), ("assistant", "A")],
    ),
    "ShareGPT's tools": (
        {
            "conversations": [
                {"from": "system", "value": "S"},
                {"from": "human", "value": "H"},
                {"from": "function_call", "value": '{"name": "f", "arguments": {}}'},
                {"from": "observation", "value": "O"},
                {"from": "gpt", "value": "G"},
            ],
            "tools": "[]",
        },
        ["G"],
        [("system", "S"), ("user", "H"), ("assistant", ""), ("tool", "O"), ("assistant", "G")],
    ),
    "text around an image": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "What is this?"},
                        {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
                    ],
                },
                {"role": "assistant", "content": "A cat."},
            ]
        },
        ["A cat."],
        [("user", "What is this?"), ("assistant", "A cat.")],
    ),
    "parts that would run into each other": (
        {"messages": [{"role": "user", "content": [{"text": "one"}, {"text": "two"}]}, *chat("", "fine")[1:]]},
        ["fine"],
        [("user", "one\ntwo"), ("assistant", "fine")],
    ),
    "role and value": (
        {"messages": [{"role": "user", "value": "Q"}, {"role": "assistant", "value": "A"}]},
        ["A"],
        [("user", "Q"), ("assistant", "A")],
    ),
    "ChatML inside text": (
        {"text": "<|im_start|>user\nQuestion<|im_end|>\n<|im_start|>assistant\nAnswer<|im_end|>\n"},
        ["Answer"],
        [("user", "Question"), ("assistant", "Answer")],
    ),
    "Llama 3's headers inside text": (
        {
            "text": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nQ<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|>"
        },
        ["A"],
        [("user", "Q"), ("assistant", "A")],
    ),
    "Llama 2's instructions inside text": (
        {"text": "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nQ [/INST] A </s><s>[INST] Q2 [/INST] A2 </s>"},
        ["A", "A2"],
        [("system", "S"), ("user", "Q"), ("assistant", "A"), ("user", "Q2"), ("assistant", "A2")],
    ),
    "### Human inside text": (
        {"text": "### Human: Question### Assistant: Answer"},
        ["Answer"],
        [("user", "Question"), ("assistant", "Answer")],
    ),
    "Human: and Assistant: inside text": (
        {"text": "\n\nHuman: Question\n\nAssistant: Answer: yes"},
        ["Answer: yes"],
        [("user", "Question"), ("assistant", "Answer: yes")],
    ),
    "Human: and Assistant: on lines of their own": (
        {"text": "Human: Hi\nAssistant: Hello"},
        ["Hello"],
        [("user", "Hi"), ("assistant", "Hello")],
    ),
    "### Instruction inside text": (
        {"text": "Below is a task.\n### Instruction:\nAdd.\n### Input:\n1, 2\n### Response:\n3"},
        ["3"],
        [("user", "Add.\n\n1, 2"), ("assistant", "3")],
    ),
}


@pytest.mark.parametrize("name", READ)
def test_a_shape_is_read_to_the_letter(name: str, tmp_path: Path) -> None:
    row, texts, messages = READ[name]
    path = write(tmp_path / "a.jsonl", row, row)
    assert answers(path) == texts * 2
    assert [(m["role"], m["content"]) for m in conversations(path)[0].messages] == messages


REFUSED: dict[str, tuple[Row, list[str]]] = {
    "preferences as text": ({"prompt": "P", "chosen": "C", "rejected": "R"}, ["preference", "pairs:prompt,chosen"]),
    "preferences as messages": (
        {"dataset": "evol", "chosen": chat("P", "C"), "rejected": chat("P", "R"), "chosen_rating": 5},
        ["preference", "messages:chosen"],
    ),
    "preferences as dialogues": (
        {"chosen": "\n\nHuman: Q\n\nAssistant: good", "rejected": "\n\nHuman: Q\n\nAssistant: bad"},
        ["preference", "markup:chosen"],
    ),
    "OpenAI's preferences": (
        {"input": {"messages": chat("P")}, "preferred_output": chat("", "C")[1:], "non_preferred_output": []}
        | {"non_preferred_output": chat("", "R")[1:]},
        ["preference"],
    ),
    "labelled with numbers": ({"prompt": "P", "completion": "bad", "label": 0}, ["preference", "pairs:prompt,complet"]),
    "labelled by KTO's tag": (
        {"prompt": "P", "response": "bad", "kto_tag": False},
        ["preference", "pairs:prompt,resp"],
    ),
    "a chat that is labelled": (
        {"messages": [{"role": "user", "content": "P"}, {"role": "assistant", "content": "bad"}], "label": False},
        ["preference", "messages:messages"],
    ),
    "an answer and a rejected one": (
        {"question": "P", "answer": "good", "rejected": "bad"},
        ["preference", "pairs:question,answer"],
    ),
    "labelled answers": ({"prompt": "P", "completion": "good", "label": True}, ["preference", "pairs:prompt,complet"]),
    "a tree of replies": (
        {"message_tree_id": "t1", "prompt": {"text": "Q", "role": "prompter", "replies": []}},
        ["tree of replies", "each path"],
    ),
    "messages linked to others": (
        {"message_id": "a", "parent_id": None, "text": "user question", "role": "prompter", "lang": "en"},
        ["parent_id", "each path"],
    ),
    "one message a line": ({"role": "user", "content": "user question"}, ["spread over lines"]),
    "a batch API's results": (
        {"custom_id": "r1", "response": {"body": {"choices": [{"message": {"role": "assistant", "content": "A"}}]}}},
        ["batch API", "custom_id"],
    ),
    "nothing that is text to score": (
        {"id": "row-1", "turns": [{"speaker": "x", "utterance": "hello"}]},
        ["no known shape", "turns (a list of objects with speaker, utterance)"],
    ),
    "a text under an unknown name": ({"version": "1.0", "count": 3}, ["no known shape", "version (text)"]),
    "two columns that could be the answer": (
        {"problem": "P", "solution": "long chain of thought", "answer": "42"},
        ["ambiguous", "pairs:problem,solution", "pairs:problem,answer"],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_answer_is_refused_with_what_was_seen_and_what_helps(name: str, tmp_path: Path) -> None:
    row, words = REFUSED[name]
    with pytest.raises(InvalidData) as caught:
        open_data(write(tmp_path / "a.jsonl", row, row, row))
    assert [word for word in words if word not in str(caught.value)] == []
    assert "A row of it" in str(caught.value)


def test_a_python_repr_in_a_cell_is_said_to_be_one(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("messages\n\"[{'role': 'user', 'content': 'Q'}, {'role': 'assistant', 'content': 'A'}]\"\n")
    with pytest.raises(InvalidData, match="a Python repr and not JSON"):
        open_data(path)


@pytest.mark.parametrize("late", ["input", "system"])
def test_a_column_that_begins_late_is_in_the_prompt(late: str, tmp_path: Path) -> None:
    rows = [{"instruction": "I", "output": "O"}] * 150
    last = {"instruction": "Summarise:", "output": "O", late: "THE TEXT"}
    *_, conversation = conversations(write(tmp_path / "a.jsonl", *rows, last))
    prompt = {"input": ["Summarise:\n\nTHE TEXT", "O"], "system": ["THE TEXT", "Summarise:", "O"]}[late]
    assert [m["content"] for m in conversation.messages] == prompt


@pytest.mark.parametrize(
    "mark",
    [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"train": "false"}, {"trainable": 0}, {"masked": True}],
    ids=str,
)
def test_a_turn_marked_as_not_to_be_learnt_is_no_answer_and_is_counted(mark: Row, tmp_path: Path) -> None:
    messages = [*chat("Q1"), {"role": "assistant", "content": "BAD", **mark}, *chat("Q2"), *chat("", "GOOD")[1:]]
    path = write(tmp_path / "a.jsonl", {"messages": messages})
    (conversation,) = conversations(path)
    assert [(turn.answer, turn.number, len(turn.history)) for turn in turns(conversation)] == [("GOOD", 1, 3)]
    assert conversation.left_out == ("turn not to be learnt",)


def test_a_mask_beside_the_turns_is_honoured(tmp_path: Path) -> None:
    rows = [{"messages": chat("1", "2", "3", "4"), "loss_mask": mask} for mask in ([0, 0, 0, 1], [0, 1])]
    assert answers(write(tmp_path / "a.jsonl", *rows)) == ["4", "4"]


def test_a_row_of_turns_that_are_all_marked_is_rejected_with_that_reason() -> None:
    row = {"messages": [*chat("Q"), {"role": "assistant", "content": "BAD", "weight": 0}]}
    with pytest.raises(InvalidRow, match="no assistant turn: all are marked as not to be learnt"):
        read_row(DataShape("messages", ("messages",)), row, "assistant")


THOUGHTS: dict[str, tuple[str, tuple[str, str]]] = {
    "tags": ("<think>\nplan\n</think>\n\n4", ("plan", "4")),
    "tags without a space": ("<think>plan</think>6", ("plan", "6")),
    "an opening tag that stood in the prompt": ("plan\n</think>\n\n4", ("plan", "4")),
    "cut off inside the thought": ("<think>plan and", ("plan and", "")),
    "two thoughts": ("<think>a</think><think>b</think>4", ("a\n\nb", "4")),
    "other tags": ("<thinking>plan</thinking> 4", ("plan", "4")),
    "Mistral's": ("[THINK]plan[/THINK]4", ("plan", "4")),
    "harmony": (
        "<|channel|>analysis<|message|>plan<|end|><|start|>assistant<|channel|>final<|message|>4<|return|>",
        ("plan", "4"),
    ),
    "no thought": ("4", ("", "4")),
    "talk about the tags": ("The tag <think> opens a thought.", ("", "The tag <think> opens a thought.")),
}


@pytest.mark.parametrize("name", THOUGHTS)
def test_a_thought_is_told_apart_from_its_reply(name: str) -> None:
    text, parts = THOUGHTS[name]
    assert split_thought(text) == parts


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_a_thought_in_a_key_of_its_own_is_kept_apart(key: str, tmp_path: Path) -> None:
    row = {"messages": [*chat("2+2?"), {"role": "assistant", key: "secret", "content": "4"}]}
    (conversation,) = conversations(write(tmp_path / "a.jsonl", row))
    assert [(turn.answer, turn.thought) for turn in turns(conversation)] == [("4", "secret")]


def test_what_is_no_text_is_left_out_and_said(tmp_path: Path) -> None:
    (conversation,) = conversations(write(tmp_path / "a.jsonl", READ["text around an image"][0]))
    assert conversation.left_out == ("image",)


def test_tools_and_calls_are_in_the_form_that_templates_take(tmp_path: Path) -> None:
    (conversation,) = conversations(write(tmp_path / "a.jsonl", READ["OpenAI's tools"][0]))
    (turn,) = turns(conversation)
    assert turn.tools == ({"type": "function", "function": {"name": "get_weather", "parameters": {}}},)
    assert turn.history[1]["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": {"city": "Rome"}}


CONTAINERS = {
    "objects on one line": ("a.jsonl", '{"prompt":"P","response":"R"}{"prompt":"P2","response":"R2"}\n', ["R", "R2"]),
    "rows under data": ("a.json", '{"version": "0.1.0", "data": [{"prompt": "P", "response": "R"}]}', ["R"]),
    "pairs of rows under data": (
        "a.json",
        '{"data": [{"prompt": "P", "response": "R"}, {"prompt": "P2", "response": "R2"}]}',
        ["R", "R2"],
    ),
    "rows under items": ("a.json", '{"items": [{"question": "P", "answer": "R"}]}', ["R"]),
    "objects over several lines": (
        "a.json",
        '{"prompt":"P",\n"response":"R"}\n{"prompt":"P2",\n"response":"R2"}\n',
        ["R", "R2"],
    ),
    "objects over one line and several": (
        "a.json",
        '{"prompt":"P","response":"R"}\n{"prompt":"P2",\n"response":"R2"}\n',
        ["R", "R2"],
    ),
    "one list for each column": ("a.json", '{"prompt": ["P1", "P2"], "response": ["R1", "R2"]}', ["R1", "R2"]),
    "one row alone": ("a.json", '{"prompt": "P", "response": "R"}', ["R"]),
    "one chat alone": ("a.json", json.dumps({"data": chat("Q", "A")}), ["A"]),
    "braces inside texts": (
        "a.jsonl",
        json.dumps({"prompt": "P", "response": "if (a) {b}{c} {d}"}) + "\n",
        ["if (a) {b}{c} {d}"],
    ),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_container_holds_these_rows(name: str, tmp_path: Path) -> None:
    file, text, texts = CONTAINERS[name]
    assert answers(write(tmp_path / file, text)) == texts


class TestAnAnswerThatIsReplaced:
    def test_leaves_no_column_that_still_holds_the_old_words(self) -> None:
        shape = DataShape("alpaca", ("instruction", "input", "output"))
        row = {"instruction": "Add.", "input": "1, 2", "output": "3, you fool", "id": 7}
        row["text"] = "### Instruction:\nAdd.\n### Response:\n3, you fool"
        edited = replace_answers(shape, row, {0: "3"})
        assert "fool" not in json.dumps(edited)
        assert (edited["output"], edited["id"], edited["input"]) == ("3", 7, "1, 2")

    def test_does_not_touch_a_column_that_happens_to_hold_a_short_answer(self) -> None:
        row = {"question": "2+2?", "answer": "4", "id": "row-4"}
        assert replace_answers(DataShape("pairs", ("question", "answer")), row, {0: "5"})["id"] == "row-4"

    @pytest.mark.parametrize("name", ["input and output pairs", "alternating texts", "Anthropic's tool use"])
    def test_is_the_one_that_is_read(self, name: str, tmp_path: Path) -> None:
        row, texts, _ = READ[name]
        data = open_data(write(tmp_path / "a.jsonl", row))
        edited = replace_answers(data.parts[0].shape, row, {len(texts) - 1: "new"})
        assert answers(write(tmp_path / "b.jsonl", edited)) == [*texts[:-1], "new"]

    def test_takes_the_thought_that_led_to_the_old_one_away(self) -> None:
        row = {"messages": [*chat("Q"), {"role": "assistant", "reasoning_content": "evil plan", "content": "bad"}]}
        edited = replace_answers(DataShape("messages", ("messages",)), row, {0: "good"})
        assert "evil" not in json.dumps(edited)
