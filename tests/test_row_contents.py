"""What stands in a row beside and inside its turns: read to the letter, counted, or refused with a remedy."""

from __future__ import annotations

import json
from typing import Any

import pytest

from poise.data import Conversation, RejectedRow, data_from_rows, turns
from poise.data.readers import read_row
from poise.data.shapes import DataShape
from poise.errors import InvalidData
from poise.screen.row_editor import replace_answers

Row = dict[str, Any]
U, A, S = "user", "assistant", "system"


def chat(*texts: str) -> list[Row]:
    return [{"role": (U, A)[n % 2], "content": text} for n, text in enumerate(texts)]


def answer(text: Any = "A", **keys: Any) -> Row:
    return {"role": A, "content": text, **keys}


def read(row: Row, **options: Any) -> list[tuple[str, str]] | str:
    """The turns of one row, or the reason why there are none."""
    (outcome,) = data_from_rows([row], **options)
    if isinstance(outcome, RejectedRow):
        return outcome.reason
    return [(message["role"], message["content"]) for message in outcome.messages]


def answers(*rows: Row, **options: Any) -> list[str]:
    data = data_from_rows(rows, **options)
    return [turn.answer for row in data if isinstance(row, Conversation) for turn in turns(row)]


def reasons(*rows: Row) -> list[str]:
    return [row.reason for row in data_from_rows(rows) if isinstance(row, RejectedRow)]


def left_out(row: Row, **options: Any) -> tuple[str, ...]:
    (outcome,) = data_from_rows([row], **options)
    assert isinstance(outcome, Conversation), outcome
    return outcome.left_out


QA = [(U, "Q"), (A, "A")]
PARTS = [{"type": "text", "text": "A"}]
ENCODED: dict[str, Row] = {
    "TRL's prompt and completion": {"prompt": json.dumps(chat("Q")), "completion": json.dumps([answer()])},
    "a completion as one turn": {"prompt": "Q", "completion": json.dumps(answer())},
    "turns as JSON texts": {"messages": [json.dumps(turn) for turn in chat("Q", "A")]},
    "turns encoded twice": {"messages": json.dumps(json.dumps(chat("Q", "A")))},
    "content as parts": {"messages": [*chat("Q"), answer(json.dumps(PARTS))]},
    "an answer as parts": {"question": "Q", "answer": json.dumps(PARTS)},
    "an instruction's output": {"instruction": "Q", "input": "", "output": json.dumps(PARTS)},
    "an exchange's parts": {"conversation": [{"input": "Q", "output": json.dumps(PARTS)}]},
    "a chat in text": {"text": json.dumps(chat("Q", "A"))},
}
ORDINARY = (
    '{"a": [1, 2]}', '["A"]', '{"text": "A"}', '[{"name": "x", "type": "y"}]', "{'a': 1}", "[{'a': 1}, {'b': 2}]",
    json.dumps(chat("Q", "A")), '{"role": "admin"}',
)  # fmt: skip
REPRS: dict[str, Row] = {
    "turns in a prompt": {"prompt": str(chat("Q")), "completion": str([answer()])},
    "content as parts": {"messages": [*chat("Q"), answer(str(PARTS))]},
    "a list of texts": {"question": "Q", "answer": "{'text': ['A'], 'answer_start': [3]}"},
    "tools": {"messages": chat("Q", "A"), "tools": "[{'name': 'f'}]"},
    "calls": {"messages": [*chat("Q"), answer("Let me", tool_calls="[{'name': 'f'}]")]},
    "a system prompt": {"messages": chat("Q", "A"), "system": "{'text': 'S'}"},
}


class TestJsonInCells:
    @pytest.mark.parametrize("name", ENCODED)
    def test_of_the_form_of_turns_or_parts_is_decoded(self, name: str) -> None:
        assert read(ENCODED[name]) == QA

    @pytest.mark.parametrize("text", ORDINARY)
    def test_that_somebody_asked_for_is_the_answer(self, text: str) -> None:
        assert read({"prompt": "Q", "response": text}) == [(U, "Q"), (A, text)]
        assert read({"messages": [*chat("Q"), answer(text)]}) == [(U, "Q"), (A, text)]

    @pytest.mark.parametrize("name", REPRS)
    def test_of_python_is_refused(self, name: str) -> None:
        reason = read(REPRS[name])
        assert isinstance(reason, str)
        assert "Python repr" in reason or "not JSON" in reason

    def test_of_python_in_place_of_a_chat_is_no_text(self) -> None:
        for row in ({"text": str(chat("Q", "A"))}, {"messages": str(chat("Q", "A")), "text": "x"}):
            with pytest.raises(InvalidData, match="a Python repr and not JSON"):
                data_from_rows([row])

    @pytest.mark.parametrize(
        "calls",
        [
            json.dumps([{"function": {"name": "f", "arguments": {"a": 1}}}]),
            {"name": "f", "arguments": {"a": 1}},
            [json.dumps({"name": "f", "arguments": '{"a": 1}'})],
        ],
        ids=["text", "object", "list of texts"],
    )
    @pytest.mark.parametrize("words", ["Let me", None])
    def test_of_calls_is_calls(self, calls: Any, words: str | None) -> None:
        row = {"messages": [*chat("Q"), answer(words, tool_calls=calls), {"role": "tool", "content": "r"}, answer("B")]}
        (outcome,) = data_from_rows([row])
        assert isinstance(outcome, Conversation)
        (call,) = outcome.messages[1]["tool_calls"]
        assert call["function"] == {"name": "f", "arguments": {"a": 1}}
        assert [turn.answer for turn in turns(outcome)] == ["Let me", "B"][words is None :]

    def test_of_several_calls_in_one_turn_names_each(self) -> None:
        calls = json.dumps([{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}])
        turns_in_file = [("human", "Q"), ("function_call", calls), ("observation", "r"), ("gpt", "A")]
        row = {"conversations": [{"from": role, "value": text} for role, text in turns_in_file]}
        (outcome,) = data_from_rows([row])
        assert isinstance(outcome, Conversation)
        assert [call["function"]["name"] for call in outcome.messages[1]["tool_calls"]] == ["f", "g"]

    def test_of_a_system_prompt_is_its_text(self) -> None:
        system = json.dumps([{"type": "text", "text": "Be rude."}])
        assert read({"messages": chat("Q", "A"), "system": system}) == [(S, "Be rude."), *QA]
        assert (
            read({"messages": chat("Q", "A"), "system": 5}) == "not text: system holds a number, and no system prompt"
        )

    def test_of_a_tools_result_is_its_text(self) -> None:
        row = {"messages": [*chat("Q"), {"role": "tool", "content": {"temp": 3}}, answer()]}
        assert read(row) == [(U, "Q"), ("tool", '{"temp": 3}'), (A, "A")]
        row = {"messages": [*chat("Q"), {"role": "tool", "content": "<tool_response>\nr\n</tool_response>"}, answer()]}
        assert read(row) == [(U, "Q"), ("tool", "r"), (A, "A")]


GOOD, BAD = [answer("good")], [answer("bad")]
PREFERENCES: dict[str, Row] = {
    "two texts": {"prompt": "Q", "chosen": "good", "rejected": "bad"},
    "two answers": {"prompt": chat("Q"), "chosen": GOOD, "rejected": BAD},
    "two chats": {"chosen": chat("Q", "good"), "rejected": chat("Q", "bad")},
    "a prompt and two chats": {"prompt": "Q", "chosen": chat("Q", "good"), "rejected": chat("Q", "bad")},
    "torchtune's": {"chosen_conversations": chat("Q", "good"), "rejected_conversations": chat("Q", "bad")},
    "OpenAI's": {"input": {"messages": chat("Q")}, "preferred_output": GOOD, "non_preferred_output": BAD},
    "ShareGPT's": {
        "conversations": [{"from": "human", "value": "Q"}],
        "chosen": {"from": "gpt", "value": "good"},
        "rejected": {"from": "gpt", "value": "bad"},
    },
    "a chat and two texts": {"messages": chat("Q"), "chosen": "good", "rejected": "bad"},
    "ms-swift's": {"messages": chat("Q", "good"), "rejected_response": "bad"},
    "ms-swift's chats": {"messages": chat("Q", "good"), "rejected_messages": chat("Q", "bad")},
    "an answer and a rejected one": {"prompt": "Q", "response": "good", "rejected_response": "bad"},
    "question, answer, rejected": {"question": "Q", "answer": "good", "rejected": "bad"},
    "an instruction with an input": {"instruction": "Q", "input": "more", "chosen": "good", "rejected": "bad"},
    "dialogues": {"chosen": "\n\nHuman: Q\n\nAssistant: good", "rejected": "\n\nHuman: Q\n\nAssistant: bad"},
    "a prompt with its header": {"prompt": "\n\nHuman: Q\n\nAssistant:", "chosen": "good", "rejected": "bad"},
    "JSON texts": {"prompt": json.dumps(chat("Q")), "chosen": json.dumps(GOOD), "rejected": json.dumps(BAD)},
}
VERDICTS: list[Row] = [
    *({"label": mark} for mark in (True, False, 0, 1, "0", "1", "false", "True", 0.0, "bad", "desirable", -1)),
    {"kto_tag": False}, {"is_chosen": False}, {"is_chosen": 0}, {"chosen": False}, {"Label": "no"},
    {"desirable": False},
]  # fmt: skip


class TestPreferences:
    @pytest.mark.parametrize("name", PREFERENCES)
    def test_are_refused_with_a_shape_that_reads_the_good_answer_and_its_prompt(self, name: str) -> None:
        with pytest.raises(InvalidData, match="preference data") as caught:
            data_from_rows([PREFERENCES[name]])
        shape = str(caught.value).split("give the shape ")[1].split(". A row")[0].split(";")[0]
        question = "Q\n\nmore" if "input" in name else "Q"
        assert read(PREFERENCES[name], shape=shape) == [(U, question), (A, "good")]

    @pytest.mark.parametrize("verdict", VERDICTS, ids=str)
    @pytest.mark.parametrize(
        "row", [{"prompt": "Q", "completion": "A"}, {"messages": chat("Q", "A")}], ids=["a pair", "a chat"]
    )
    def test_are_answers_with_a_verdict_too(self, row: Row, verdict: Row) -> None:
        with pytest.raises(InvalidData, match="preference data") as caught:
            data_from_rows([row | verdict])
        shape = str(caught.value).split("give the shape ")[1].split(". A row")[0].split(";")[0]
        assert read(row | verdict, shape=shape) == QA

    @pytest.mark.parametrize("label", ["toxic", 3, 0.8, ["a"], None])
    def test_are_not_answers_of_a_class(self, label: Any) -> None:
        assert read({"prompt": "Q", "completion": "A", "label": label}) == QA

    @pytest.mark.parametrize(
        ("late", "word"),
        [
            ({"prompt": "Q", "response": "BAD", "label": False}, "preference data: label"),
            ({"prompt": "Q", "response": "BAD", "chosen": "g", "rejected": "b"}, "preference data: chosen"),
            ({"prompt": "Q", "response": "BAD", "answer": "other"}, "ambiguous: response and answer"),
            ({"prompt": "Q", "question": "other", "response": "BAD"}, "ambiguous: prompt and question"),
        ],
        ids=["a verdict", "two answers", "a second answer", "a second prompt"],
    )
    def test_that_begin_late_in_a_file_are_rejected(self, late: Row, word: str) -> None:
        rows = [{"prompt": "Q", "response": "A"}] * 101
        assert answers(*rows, late) == ["A"] * 101
        (reason,) = reasons(*rows, late)
        assert reason.startswith(word)
        assert "give the shape" in reason
        assert answers(*rows, late, shape="pairs:prompt,response")[-1] == "BAD"


AMBIGUOUS: dict[str, tuple[Row, dict[str, list[tuple[str, str]]]]] = {
    "a prompt and a text": (
        {"prompt": "Q", "text": "A"},
        {"pairs:prompt,text": QA, "text:text": [(A, "A")]},
    ),
    "an instruction and a content": ({"instruction": "Q", "content": "A"}, {"pairs:instruction,content": QA}),
    "a query and a document": ({"query": "Q", "document": "A"}, {"pairs:query,document": QA}),
    "a chat and another answer": (
        {"messages": chat("Q", "A"), "response": "B"},
        {"messages:messages": QA, "messages:messages,response": [*QA, (A, "B")]},
    ),
    "a chat and another pair": (
        {"messages": chat("Q", "A"), "prompt": "P", "response": "R"},
        {"messages:messages": QA, "pairs:prompt,response": [(U, "P"), (A, "R")]},
    ),
    "two chats": (
        {"messages": chat("Q", "A"), "conversations": chat("X", "Y")},
        {"messages:messages": QA, "messages:conversations": [(U, "X"), (A, "Y")]},
    ),
    "an id alone": ({"content": "abc-123"}, {"text:content": [(A, "abc-123")]}),
}


class TestColumns:
    @pytest.mark.parametrize("name", AMBIGUOUS)
    def test_that_may_mean_either_are_refused_with_shapes_that_read_them(self, name: str) -> None:
        row, shapes = AMBIGUOUS[name]
        with pytest.raises(InvalidData) as caught:
            data_from_rows([row])
        assert [shape for shape in shapes if shape not in str(caught.value).replace(" or ", "|")] in ([], [*shapes][1:])
        for shape, messages in shapes.items():
            assert read(row, shape=shape) == messages

    def test_that_differ_in_upper_case_alone_are_refused(self) -> None:
        with pytest.raises(InvalidData, match="Prompt and prompt differ in upper case"):
            data_from_rows([{"Prompt": "P1", "prompt": "P2", "response": "A"}])

    @pytest.mark.parametrize("column", ["response", "completion", "output", "answer", "solution"])
    def test_with_an_answer_beside_a_chat_that_ends_with_a_question_answer_it(self, column: str) -> None:
        row = {"messages": chat("Q", "A", "Q2"), column: "B"}
        assert read(row) == [*QA, (U, "Q2"), (A, "B")]
        assert answers(row) == ["A", "B"]

    @pytest.mark.parametrize("beside", [{"response": "A"}, {"response": ""}, {"answer": "42"}, {"prompt": "Q"}])
    def test_beside_a_chat_that_say_the_same_or_are_no_reply_change_nothing(self, beside: Row) -> None:
        assert read({"messages": chat("Q", "A")} | beside) == QA

    def test_of_material_that_is_not_read_are_named(self) -> None:
        data = data_from_rows([{"context": "C", "question": "Q", "answer": "A"}])
        assert "pairs from question, answer, without context" in data.how

    @pytest.mark.parametrize(
        "history",
        [[["q0", "a0"]], json.dumps([["q0", "a0"]]), [{"q": "q0", "a": "a0"}], chat("q0", "a0")],
        ids=["pairs", "JSON", "objects", "turns"],
    )
    def test_of_history_stand_before_the_question(self, history: Any) -> None:
        row = {"instruction": "Q", "input": "", "output": "A", "history": history}
        assert read(row) == [(U, "q0"), (A, "a0"), *QA]
        assert read({"query": "Q", "response": "A", "history": history}) == [(U, "q0"), (A, "a0"), *QA]

    def test_of_history_that_is_none_are_said_to_be_so(self) -> None:
        row = {"query": "Q", "response": "A", "history": [["q0"]]}
        assert read(row) == "not a history: history holds a list; it takes pairs [question, answer] or turns"
        assert read(row | {"history": []}) == QA
        assert read(row | {"history": "a text"}) == QA

    @pytest.mark.parametrize(
        "row",
        [
            {
                "image": "x.jpg",
                "conversations": [{"from": "human", "value": "<image>\nQ"}, {"from": "gpt", "value": "A"}],
            },
            {"images": ["x.jpg"], "prompt": "<image>Q", "response": "A"},
            {"image": {"bytes": "xx", "path": "a"}, "question": "Q", "answer": "A"},
            {"messages": [{"role": U, "content": "Q", "images": ["x"]}, answer()]},
            {"messages": [{"role": U, "content": "Q<image>"}, answer()], "images": ["x"]},
            {"messages": [{"role": U, "content": [{"type": "image"}, {"type": "text", "text": "<image>Q"}]}, answer()]},
        ],
        ids=["beside a chat", "beside a pair", "as an object", "in a turn", "after the words", "in a part"],
    )
    def test_of_images_are_counted_and_their_places_taken_out(self, row: Row) -> None:
        assert read(row) == QA
        assert left_out(row) == ("image",)
        assert left_out(row, need="user") == ("image",)

    def test_of_other_media_are_counted(self) -> None:
        row = {"prompt": "Q", "response": "A", "audio": "x.wav", "videos": ["a", "b"], "images": []}
        assert left_out(row) == ("audio", "video", "video")

    def test_of_no_images_leave_the_word_where_it_is(self) -> None:
        row = {"prompt": "What does <image> mean?", "response": "A"}
        assert read(row) == [(U, "What does <image> mean?"), (A, "A")]
        assert left_out(row) == ("image placeholder",)

    def test_with_an_image_and_no_words_say_so(self) -> None:
        row = {"prompt": "<image>", "response": "A", "image": "x"}
        assert read(row) == "empty turn: user, turn 1, holds only: image"


NOT_LEARNT = "no assistant turn: all are marked as not to be learnt"
MARKS: list[Row] = [
    {"weight": [0]}, {"weight": -1}, {"Weight": 0}, {"label": -100}, {"labels": -100}, {"labels": [-100, -100]},
    {"skip": True}, {"deleted": True}, {"loss": 0}, {"loss": False}, {"loss": "0"}, {"loss_scale": 0},
    {"is_trainable": False}, {"mask": "assistant"}, {"label": False}, {"rejected": True},
]  # fmt: skip
NO_MARKS: list[Row] = [
    {"loss": 0.0}, {"loss": "0.0"}, {"label": 0}, {"label": "toxic"}, {"skip": False}, {"weight": [1]},
    {"mask": "User"},    {"train_detail": [{"begin_offset": 0, "end_offset": 1, "train": True}]}, {"rank": 0},
    {"deleted": False},
]  # fmt: skip
UNCLEAR: dict[str, tuple[Row, str]] = {
    "an object": ({"weight": {"a": 0}}, "loss mask: weight of turn 2 is not one mark; write 0 or 1"),
    "several": ({"loss_mask": [0, 1]}, "loss mask: loss_mask of turn 2 is not one mark; write 0 or 1"),
    "a part of the turn": (
        {"train_detail": [{"begin_offset": 0, "end_offset": 1, "train": False}]},
        "loss mask: train_detail of turn 2 marks a part of it; only whole turns can be left out",
    ),
    "an unknown name": (
        {"should_train": False},
        "loss mask: should_train of turn 2 is not known; name it train, with true for what is learnt",
    ),
}


class TestMarksOfWhatIsLearnt:
    @pytest.mark.parametrize("mark", MARKS, ids=str)
    def test_on_a_turn_leave_it_out(self, mark: Row) -> None:
        row = {"messages": [*chat("Q"), answer("BAD", **mark), *chat("Q2"), answer("GOOD")]}
        assert answers(row) == ["GOOD"]
        assert left_out(row) == ("turn not to be learnt",)

    @pytest.mark.parametrize("mark", NO_MARKS, ids=str)
    def test_that_are_none_change_nothing(self, mark: Row) -> None:
        assert read({"messages": [*chat("Q"), answer(**mark)]}) == QA
        assert left_out({"messages": [*chat("Q"), answer(**mark)]}) == ()

    @pytest.mark.parametrize("name", UNCLEAR)
    def test_that_are_not_clear_are_refused(self, name: str) -> None:
        mark, reason = UNCLEAR[name]
        assert read({"messages": [*chat("Q"), answer(**mark)]}) == reason

    @pytest.mark.parametrize(
        "mark",
        [{"loss": 0}, {"mask": "Assistant"}, {"skip": True}, {"labels": [-100] * 10}, {"Weight": "0"}, {"weight": -1}],
        ids=str,
    )
    def test_on_a_row_leave_all_of_it_out(self, mark: Row) -> None:
        assert read({"messages": chat("Q", "A")} | mark) == NOT_LEARNT

    @pytest.mark.parametrize(
        "mark",
        [
            {"labels": ["toxic", "rude"]},
            {"labels": [0, 1]},
            {"loss": 0.0},
            {"attention_mask": [1, 0]},
            {"mask": "User"},
        ],
        ids=str,
    )
    def test_on_a_row_that_are_none_change_nothing(self, mark: Row) -> None:
        assert read({"messages": chat("Q", "A")} | mark) == QA

    @pytest.mark.parametrize(
        ("mark", "reason"),
        [
            ({"loss_mask": {"0": 0}}, "loss mask: loss_mask holds an object; write a list of 0 and 1"),
            (
                {"labels": [-100, 5, 6], "input_ids": [4, 5, 6]},
                "loss mask: labels marks tokens of input_ids; write a loss_mask with 0 or 1 for each turn",
            ),
            ({"labels": [-100, 5, 6]}, "loss mask: labels has 3 marks for 2 turns"),
            (
                {"completion_mask": [0, 1]},
                "loss mask: completion_mask may mark tokens; name it loss_mask if it marks turns, with 1 for the "
                "learnt",
            ),
            (
                {"train_on_first_turn_only": True},
                "loss mask: train_on_first_turn_only of the row is not known; name it train, with true for what is "
                "learnt",
            ),
        ],
        ids=["an object", "labels of tokens", "too many labels", "a mask of tokens", "an unknown name"],
    )
    def test_on_a_row_that_are_not_clear_are_refused(self, mark: Row, reason: str) -> None:
        assert read({"messages": chat("Q", "A")} | mark) == reason

    @pytest.mark.parametrize("mask", [[0, 0, 0, 1], [0, 1]])
    def test_are_counted_by_the_turns_of_the_file(self, mask: list[int]) -> None:
        results = [{"type": "tool_result", "content": "r1"}, {"type": "tool_result", "content": "r2"}]
        row = {
            "messages": [*chat("Q"), answer("one"), {"role": U, "content": results}, answer("two")],
            "loss_mask": mask,
        }
        assert answers(row) == ["two"]

    def test_as_labels_are_counted_too(self) -> None:
        assert answers({"messages": chat("Q", "A", "Q2", "B"), "labels": [-100, -100, -100, 5]}) == ["B"]


class TestAnAnswerThatIsReplaced:
    """What is read from a place can be written there."""

    @pytest.mark.parametrize(
        ("row", "shape", "number"),
        [
            ({"messages": chat("Q"), "response": "A"}, DataShape("messages", ("messages", "response")), 0),
            ({"query": "Q", "response": "A", "history": [["q", "a"]]}, DataShape("pairs", ("query", "response")), 0),
            ({"query": "Q", "response": "A", "history": [["q", "a"]]}, DataShape("pairs", ("query", "response")), 1),
            ({"query": "Q", "response": "A", "history": chat("q", "a")}, DataShape("pairs", ("query", "response")), 0),
            (ENCODED["turns as JSON texts"], DataShape("messages", ("messages",)), 0),
            (ENCODED["turns encoded twice"], DataShape("messages", ("messages",)), 0),
            (ENCODED["TRL's prompt and completion"], DataShape("pairs", ("prompt", "completion")), 0),
            (ENCODED["a completion as one turn"], DataShape("pairs", ("prompt", "completion")), 0),
        ],
    )
    def test_is_read_in_its_place(self, row: Row, shape: DataShape, number: int) -> None:
        def texts(columns: Row) -> list[str]:
            messages = read_row(shape, columns, "assistant").messages
            return [message["content"] for message in messages if message["role"] == A]

        expected = texts(row)
        expected[number] = "new words"
        assert texts(replace_answers(shape, row, {number: "new words"})) == expected

    def test_keeps_the_calls_in_its_text(self) -> None:
        call = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
        row = {"messages": [*chat("Q"), answer(f"old words\n{call}")]}
        edited = replace_answers(DataShape("messages", ("messages",)), row, {0: "new"})
        assert edited["messages"][1]["content"] == f"new\n{call}"
