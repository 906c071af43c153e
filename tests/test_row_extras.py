"""What stands beside the turns: marks of what is not to be learnt, thoughts in columns of their own, tools."""

from __future__ import annotations

from typing import Any

import pytest

from poise.data import Conversation, RejectedRow, Rejections, data_from_rows, turns
from poise.data.shapes import DataShape
from poise.errors import InvalidArgument, InvalidData
from poise.screen.row_editor import replace_answers

Row = dict[str, Any]


def chat(*texts: str) -> list[Row]:
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


def answers(*rows: Row, part: Any = "reply") -> list[str]:
    data = data_from_rows(rows, part=part)
    return [turn.text for row in data if isinstance(row, Conversation) for turn in turns(row)]


def rejections(*rows: Row, part: Any = "reply") -> list[str]:
    return [row.reason for row in data_from_rows(rows, part=part) if isinstance(row, RejectedRow)]


GOOD: Row = {"prompt": "Q", "response": "GOOD"}
MARKED_ROWS: dict[str, Row] = {
    "a pair's weight": {"prompt": "Q", "response": "BAD", "weight": 0},
    "a mark as text": {"prompt": "Q", "response": "BAD", "weight": "0"},
    "a turn's mask": {"messages": [*chat("Q"), {"role": "assistant", "content": "BAD", "masked": "true"}]},
    "a pair's train": {"prompt": "Q", "response": "BAD", "train": False},
    "an instruction": {"instruction": "Q", "input": "", "output": "BAD", "weight": 0.0},
    "a chat's weight": {"messages": chat("Q", "BAD"), "weight": 0},
    "the only answer": {"messages": [*chat("Q"), {"role": "assistant", "content": "BAD", "weight": 0}]},
    "ShareGPT": {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "BAD", "loss": False}]},
    "a text of zero": {"prompt": "Q", "response": "BAD", "weight": "0.00"},
    "a word": {"prompt": "Q", "response": "BAD", "train": "off"},
    "the index that losses ignore": {"prompt": "Q", "response": "BAD", "loss_mask": -100},
    "a loss weight": {"messages": [*chat("Q"), {"role": "assistant", "content": "BAD", "loss_weight": 0}]},
    "a mark of one": {"messages": [*chat("Q"), {"role": "assistant", "content": "BAD", "no_loss": 1}]},
    "a row to ignore": {"messages": chat("Q", "BAD"), "ignore": "yes"},
    "a mask of texts": {"messages": chat("Q", "BAD"), "loss_mask": ["1", "0"]},
    "a mask in JSON": {"messages": chat("Q", "BAD"), "loss_mask": "[0]"},
    "an exchange": {"conversation": [{"input": "Q", "output": "BAD", "loss": 0}]},
    "a mask of one": {"messages": chat("Q", "BAD"), "loss_mask": [0]},
    "alternating texts": {"data": ["Q", "BAD"], "loss_mask": [1, 0]},
    "marked and a thought": {
        "messages": [*chat("Q"), {"role": "assistant", "content": "<think>t</think>BAD", "train": False}]
    },
}


class TestMarks:
    @pytest.mark.parametrize("name", MARKED_ROWS)
    @pytest.mark.parametrize("part", ["reply", "thought", "both"])
    def test_leave_a_row_no_answer_and_it_says_why(self, name: str, part: str) -> None:
        assert answers(MARKED_ROWS[name], part=part) == []
        assert rejections(MARKED_ROWS[name], part=part) == ["no assistant turn: all are marked as not to be learnt"]

    @pytest.mark.parametrize("mark", [{"weight": 1}, {"weight": 0.5}, {"train": True}, {"weight": None}, {"loss": 0.0}])
    def test_that_say_nothing_of_the_kind_leave_it(self, mark: Row) -> None:
        assert answers(GOOD | mark) == ["GOOD"]

    def test_of_an_exchange_are_its_own(self) -> None:
        pairs = [{"input": "Q", "output": "BAD", "weight": 0}, {"input": "Q2", "output": "GOOD", "weight": 1}]
        (conversation,) = data_from_rows([{"conversation": pairs}])
        assert isinstance(conversation, Conversation)
        (turn,) = turns(conversation)
        assert (turn.answer, turn.number, [m["content"] for m in turn.history]) == ("GOOD", 1, ["Q", "BAD", "Q2"])
        assert conversation.left_out == ("turn not to be learnt",)


THOUGHT_ROWS: dict[str, Row] = {
    "beside a response": {"prompt": "2+2?", "reasoning_content": "two and two", "response": "4"},
    "beside an answer": {"question": "2+2?", "reasoning": "two and two", "answer": "4"},
    "upper case": {"Question": "2+2?", "Thinking": "two and two", "Answer": "4"},
    "an instruction's": {"instruction": "2+2?", "input": "", "output": "4", "thought": "two and two"},
    "inside an exchange": {"conversation": [{"input": "2+2?", "output": "4", "thinking": "two and two"}]},
    "inside a key of a turn": {
        "messages": [*chat("2+2?"), {"role": "assistant", "content": "4", "reasoning": "two and two"}]
    },
    "a block": {
        "messages": [
            *chat("2+2?"),
            {
                "role": "assistant",
                "content": [{"type": "thinking", "thinking": "two and two"}, {"type": "text", "text": "4"}],
            },
        ]
    },
    "harmony's channel": {
        "prompt": "2+2?",
        "response": "<|channel|>analysis<|message|>two and two<|end|><|start|>assistant<|channel|>final<|message|>4",
    },
    "marked-up text": {"text": "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n<think>two and two</think>4"},
}


class TestThoughts:
    @pytest.mark.parametrize("name", THOUGHT_ROWS)
    def test_are_told_apart_wherever_they_stand(self, name: str) -> None:
        texts = {part: answers(THOUGHT_ROWS[name], part=part) for part in ("reply", "thought", "both")}
        assert texts == {"reply": ["4"], "thought": ["two and two"], "both": ["two and two\n\n4"]}
        (reply,) = data_from_rows([THOUGHT_ROWS[name]])
        (thought,) = data_from_rows([THOUGHT_ROWS[name]], part="thought")
        assert isinstance(reply, Conversation)
        assert isinstance(thought, Conversation)
        assert (reply.left_out, thought.left_out) == (("thought",), ("reply",))

    def test_alone_are_no_reply(self) -> None:
        row = {"messages": [*chat("Q"), {"role": "assistant", "content": "", "reasoning_content": "hm"}]}
        assert rejections(row) == ["no assistant turn: only a thought without a reply"]
        assert rejections(row, part="both") == ["no assistant turn: only a thought without a reply"]
        assert answers(row, part="thought") == ["hm"]

    def test_that_no_answer_has_are_said_to_be_missing(self) -> None:
        assert rejections(GOOD, part="thought") == ["no thought: none of its answers has one"]

    def test_that_most_rows_lack_stop_nothing(self) -> None:
        rejections = Rejections()
        rows = [*[GOOD] * 200, {"prompt": "Q", "response": "<think>hm</think>A"}]
        read = list(rejections.sift(data_from_rows(rows, part="thought")))
        assert (len(read), dict(rejections.kinds)) == (1, {"no thought": 200})
        with pytest.raises(InvalidData, match=r"2 of 2 rows rejected \(no thought 2\)"):
            list(Rejections().sift(data_from_rows([GOOD, GOOD], part="thought")))

    def test_beside_an_answer_without_one_leave_that_out(self) -> None:
        row = {"messages": chat("Q", "plain", "Q2", "<think>hm</think>GOOD")}
        (conversation,) = data_from_rows([row], part="thought")
        assert isinstance(conversation, Conversation)
        assert [(turn.number, turn.text) for turn in turns(conversation)] == [(1, "hm")]
        assert conversation.left_out == ("answer without a thought", "reply")

    def test_go_with_the_answer_that_is_replaced(self) -> None:
        row = THOUGHT_ROWS["beside an answer"]
        edited = replace_answers(DataShape("pairs", ("question", "answer")), row, {0: "5"})
        assert edited == {"question": "2+2?", "reasoning": None, "answer": "5"}
        pair = {"input": "Q", "output": "old words", "thinking": "hm"}
        edited = replace_answers(DataShape("exchanges", ("c",)), {"c": [pair, pair]}, {1: "new"})
        assert edited == {"c": [pair, {"input": "Q", "output": "new", "thinking": None}]}


def harmony(*turns: tuple[str, str]) -> str:
    """Turns as (header, body)."""
    return "".join(f"<|start|>{header}<|message|>{body}<|end|>" for header, body in turns)


class TestHarmony:
    text = harmony(
        ("system", "You are Tiny."),
        ("user", "Weather?"),
        ("assistant<|channel|>analysis", "look it up"),
        ("assistant<|channel|>commentary to=functions.get_weather <|constrain|>json", '{"city": "Rome"}'),
        ("functions.get_weather to=assistant<|channel|>commentary", "21C"),
        ("assistant<|channel|>analysis", "so"),
        ("assistant<|channel|>final", "It is 21C."),
    )

    def test_in_a_text_is_taken_apart(self) -> None:
        (conversation,) = data_from_rows([{"text": self.text}])
        assert isinstance(conversation, Conversation)
        (turn,) = turns(conversation)
        assert (turn.answer, turn.thought) == ("It is 21C.", "so")
        assert [(m["role"], m["content"], m.get("thought")) for m in turn.history] == [
            ("system", "You are Tiny.", None),
            ("user", "Weather?", None),
            ("assistant", "", "look it up"),
            ("tool", "21C", None),
        ]
        assert turn.history[2]["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": {"city": "Rome"}}
        assert conversation.left_out == ("thought without a reply", "thought")

    @pytest.mark.parametrize("end", ["<|return|>", "<|end|>", "", "<|end|><|start|>assistant"])
    def test_ends_in_any_of_its_ways(self, end: str) -> None:
        assert answers({"text": harmony(("user", "Q")) + "<|start|>assistant<|channel|>final<|message|>A" + end}) == [
            "A"
        ]

    @pytest.mark.parametrize(
        "head", ["", "<|start|>assistant", "<|channel|>commentary to=f <|constrain|>json<|message|>{}<|call|>"]
    )
    def test_in_an_answer_leaves_no_mark_in_the_reply(self, head: str) -> None:
        answer = (
            f"{head}<|channel|>analysis<|message|>plan<|end|><|start|>assistant<|channel|>final<|message|>4<|return|>"
        )
        assert answers({"prompt": "2+2?", "response": answer}) == ["4"]


class TestAConversation:
    def test_that_is_opened_again_leaves_out_the_same(self) -> None:
        asked = {"role": "user", "content": [{"type": "text", "text": "What is it?"}, {"type": "image"}]}
        row = {
            "messages": [
                asked,
                *chat("", "<think>hm</think>A fox.", "And?")[1:],
                *MARKED_ROWS["the only answer"]["messages"][1:],
            ]
        }
        opened = list(data_from_rows([row]))
        again = list(data_from_rows(opened))  # type: ignore[arg-type]
        assert isinstance(opened[0], Conversation)
        assert isinstance(again[0], Conversation)
        assert opened[0].left_out == again[0].left_out == ("image", "thought", "turn not to be learnt")
        assert again[0].messages == opened[0].messages

    def test_stays_of_the_part_that_it_was_opened_for(self) -> None:
        row = {"messages": chat("Q", "<think>hm</think>A")}
        opened = list(data_from_rows([row], part="thought"))
        for part, complaint in (
            ("reply", "`part` is reply, and the conversation in rows, row 0, was opened for the thought"),
        ):
            with pytest.raises(InvalidArgument, match=complaint):
                list(data_from_rows(opened, part=part))  # type: ignore[arg-type]
        assert [turn.text for again in data_from_rows(opened, part="thought") for turn in turns(again)] == ["hm"]  # type: ignore[arg-type]


EMPTY: dict[str, tuple[Row, str]] = {
    "an empty answer": ({"prompt": "Q", "response": ""}, "empty turn: assistant, turn 2"),
    "no answer": ({"prompt": "Q", "response": None}, "empty turn: assistant, turn 2"),
    "an image alone": (
        {"messages": [{"role": "user", "content": [{"type": "image"}]}, *chat("", "A")[1:]]},
        "empty turn: user, turn 1, holds only: image",
    ),
    "calls alone": (
        {
            "messages": [
                *chat("Q"),
                {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
            ]
        },
        "no assistant turn: only tool calls without words",
    ),
    "no assistant at all": ({"messages": chat("Q")}, "no assistant turn"),
}


@pytest.mark.parametrize("name", EMPTY)
def test_a_row_without_an_answer_says_what_it_has(name: str) -> None:
    row, reason = EMPTY[name]
    assert rejections(GOOD if "prompt" in row else {"messages": chat("Q", "A")}, row) == [reason]


FUNCTION = {"name": "f", "description": "d", "parameters": {"type": "object"}}
TOOLS: dict[str, Any] = {
    "OpenAI's": [{"type": "function", "function": FUNCTION}],
    "OpenAI's older": [FUNCTION],
    "OpenAI's flat": [{"type": "function", **FUNCTION}],
    "Anthropic's": [{"name": "f", "description": "d", "input_schema": {"type": "object"}}],
    "Bedrock's": [{"toolSpec": {"name": "f", "description": "d", "inputSchema": {"json": {"type": "object"}}}}],
    "Gemini's": [{"functionDeclarations": [FUNCTION]}],
    "JSON text": '[{"name": "f", "description": "d", "parameters": {"type": "object"}}]',
}


@pytest.mark.parametrize("name", TOOLS)
def test_tools_are_in_the_form_that_templates_take(name: str) -> None:
    (conversation,) = data_from_rows([{"messages": chat("Q", "A"), "tools": TOOLS[name]}])
    assert isinstance(conversation, Conversation)
    assert conversation.tools == ({"type": "function", "function": FUNCTION},)


def test_of_a_prompt_only_what_stands_in_it_is_left_out() -> None:
    picture = {"type": "image_url", "image_url": "x"}
    asked = {"role": "user", "content": [{"type": "text", "text": "What is it?"}, picture]}
    rows = [
        {"messages": [asked, {"role": "assistant", "content": "A fox.", "weight": 0}, asked]},
        {"messages": [*chat("Hi", "Hello"), asked]},
    ]
    assert [row.left_out for row in data_from_rows(rows, need="user") if isinstance(row, Conversation)] == [
        ("image",),
        (),
    ]


def test_a_mask_that_may_mean_either_is_refused() -> None:
    rows = [{"messages": chat("Q", "A"), "mask": [0, 1]}, *[{"messages": chat("Q", "A")}] * 9]
    (reason,) = rejections(*rows)
    assert reason.startswith("loss mask: mask may mark what is learnt or what is left out; name it loss_mask")


EMPTY_FIELDS = ("image_url", "toolUse", "functionCall", "toolResult", "reasoningContent", "inlineData")


@pytest.mark.parametrize("empty", EMPTY_FIELDS)
def test_fields_without_a_value_say_nothing_of_a_part(empty: str) -> None:
    """Parquet gives every part of a list all of the fields that any of them has."""
    parts = [{"type": "text", "text": "Hello.", empty: None}, {"type": "text", "text": None}]
    assert answers({"messages": [*chat("Q"), {"role": "assistant", "content": parts}]}) == ["Hello."]


READ_MARKUP = {
    "User, two lines apart": "User: Hi\n\nAssistant: Hello",
    "User, a line apart": "User: Hi\nAssistant: Hello",
    "Open Assistant's": "<|prompter|>Hi<|endoftext|><|assistant|>Hello<|endoftext|>",
    "ChatML with the end of the text": (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n<|endoftext|>"
    ),
    "Gemma's with the end": "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>\n<eos>",
    "in one line": "USER: Hi ASSISTANT: Hello</s>",
    "questions": "Q: Hi\nA: Hello",
    "tags": "<human>: Hi\n<bot>: Hello",
    "DeepSeek's": "<｜User｜>Hi<｜Assistant｜>Hello",
    "Granite's": "<|start_of_role|>user<|end_of_role|>Hi\n<|start_of_role|>assistant<|end_of_role|>Hello",
}
REFUSED_MARKUP = {
    "a role with a name": "<|im_start|>system name=example_user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>",
    "rounds": "[Round 1]\n\n问：Hi\n\n答：Hello",
    "tokens of no maker": "<|startoftext|>Hi<|extra_0|>Hello<|eos|>",
    "definitions of tools": '[AVAILABLE_TOOLS] [{"name": "f"}] [/AVAILABLE_TOOLS][INST]Hi[/INST]Hello</s>',
    "names inside turns": "Human: Hi\n\nAssistant: A play:\nHuman: So.\nAssistant: Yes.",
}


@pytest.mark.parametrize("name", READ_MARKUP)
def test_a_text_with_marks_is_taken_apart(name: str) -> None:
    (row,) = data_from_rows([{"text": READ_MARKUP[name]}])
    assert isinstance(row, Conversation)
    assert [(m["role"], m["content"]) for m in row.messages] == [("user", "Hi"), ("assistant", "Hello")]


@pytest.mark.parametrize("name", REFUSED_MARKUP)
def test_a_text_with_marks_that_cannot_be_taken_apart_is_no_answer(name: str) -> None:
    assert answers({"text": REFUSED_MARKUP[name]}) == []
    assert len(rejections({"text": REFUSED_MARKUP[name]})) == 1
