"""Marks of what is not to be learnt in every spelling, and parts of a turn that are no reply: what is read, exactly."""

from __future__ import annotations

from typing import Any

import pytest

from poise.data import Conversation, data_from_rows, turns
from poise.errors import InvalidData

Row = dict[str, Any]


def user(text: str, **more: Any) -> Row:
    return {"role": "user", "content": text, **more}


def answer(content: Any, **more: Any) -> Row:
    return {"role": "assistant", "content": content, **more}


def read(row: Row, part: Any = "reply") -> tuple[list[str], tuple[str, ...]] | str:
    """The answers of one row and what it leaves out, or why there is none."""
    (outcome,) = data_from_rows([row], part=part)
    if isinstance(outcome, Conversation):
        return [turn.text for turn in turns(outcome)], outcome.left_out
    return outcome.reason


TWO = {"messages": [user("Q"), answer("BAD"), user("Q2"), answer("GOOD")]}
NOT_LEARNT = "no assistant turn: all are marked as not to be learnt"
LEFT_OUT = ("turn not to be learnt",)


class TestAMarkOnATurn:
    @pytest.mark.parametrize(
        "mark",
        [
            {"lossMask": 0}, {"isTrain": False}, {"lossWeight": 0}, {"loss-mask": 0}, {"LossMask": "0"}, {"noLoss": 1},
            {"trainOnTurn": False}, {"is trainable": False}, {"LOSS_WEIGHT": 0}, {"Skip": True},
        ],
        ids=str,
    )  # fmt: skip
    def test_counts_however_its_name_is_written(self, mark: Row) -> None:
        assert read({"messages": [user("Q"), answer("BAD", **mark), user("Q2"), answer("GOOD")]}) == (
            ["GOOD"],
            LEFT_OUT,
        )

    @pytest.mark.parametrize(("off", "on"), [(0, 1), ("0", "1"), (0, True), (0.0, 1.0)])
    def test_that_is_a_label_counts_beside_its_opposite(self, off: Any, on: Any) -> None:
        row = {"messages": [user("Q"), answer("BAD", label=off), user("Q2"), answer("GOOD", label=on)]}
        assert read(row) == (["GOOD"], LEFT_OUT)

    @pytest.mark.parametrize("labels", [(0, 0), (0, 2), ("0", "toxic")])
    def test_that_is_a_class_says_nothing(self, labels: tuple[Any, Any]) -> None:
        turn_labels = [answer(text, label=label) for text, label in zip("AB", labels, strict=True)]
        assert read({"messages": [user("Q"), turn_labels[0], user("Q2"), turn_labels[1]]}) == (["A", "B"], ())

    def test_of_all_its_parts_counts(self) -> None:
        parts = [{"type": "text", "text": "BAD", "weight": 0}]
        assert read({"messages": [user("Q"), answer(parts)]}) == NOT_LEARNT
        assert read({"messages": [user("Q"), answer(parts), user("Q2"), answer("GOOD")]}) == (["GOOD"], LEFT_OUT)

    def test_of_one_of_its_parts_is_refused(self) -> None:
        parts = [{"type": "text", "text": "BAD", "weight": 0}, {"type": "text", "text": "GOOD"}]
        assert read({"messages": [user("Q"), answer(parts)]}) == (
            "loss mask: a part of turn 2 is not to be learnt; only whole turns can be left out"
        )

    def test_of_its_thought_leaves_the_reply(self) -> None:
        parts = [{"type": "thinking", "thinking": "t", "weight": 0}, {"type": "text", "text": "A"}]
        assert read({"messages": [user("Q"), answer(parts)]}, "both") == (["A"], ("thought not to be learnt",))


class TestAMarkOnARow:
    @pytest.mark.parametrize(
        "mark",
        [
            {"loss_mask": "0,0,0,1"}, {"loss_mask": "0 0 0 1"}, {"loss_mask": "0001"}, {"lossMask": [0, 0, 0, 1]},
            {"loss_mask": "[0, 1]"}, {"loss_mask": "0, 1"}, {"train": "false,true"},
            {"skip": [False, True, False, False]},
            {"skip": [1, 0]}, {"ignore": "1 0"}, {"labels": [False, True]}, {"label": [False, False, False, True]},
            {"train_on_last_turn": True}, {"trainOnLastTurnOnly": "true"}, {"mask_history": 1},
        ],
        ids=str,
    )  # fmt: skip
    def test_leaves_out_the_turns_that_it_names(self, mark: Row) -> None:
        assert read(TWO | mark) == (["GOOD"], LEFT_OUT)

    @pytest.mark.parametrize(
        "mark",
        [
            {"mask_prompt": True}, {"mask_inputs": True}, {"maskInputs": "true"}, {"train_on_inputs": False},
            {"train_on_prompt": False}, {"train_on_responses_only": True}, {"assistant_only_loss": True},
            {"train_on_last_turn": False}, {"labels": ["a", "b"]}, {"skip": ["x"]}, {"weight": "10"},
        ],
        ids=str,
    )  # fmt: skip
    def test_that_says_that_answers_are_learnt_changes_nothing(self, mark: Row) -> None:
        assert read({"messages": [user("Q"), answer("A")]} | mark) == (["A"], ())

    @pytest.mark.parametrize(
        "name", ["mask_response", "maskAnswers", "train_on_prompts_only", "train_on_first_turn_only"]
    )
    def test_that_is_not_known_is_refused(self, name: str) -> None:
        assert read(TWO | {name: True}) == (
            f"loss mask: {name} of the row is not known; name it train, with true for what is learnt"
        )


MARKED_UP = "Human: q\n\nAssistant: BAD"
CHATML = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\nBAD<|im_end|>"
VERDICTS: dict[str, tuple[Row, str]] = {
    "a label": ({"text": MARKED_UP, "label": False}, "label says which conversations are good"),
    "KTO": ({"text": CHATML, "kto_tag": "false"}, "kto_tag says which conversations are good"),
    "a good one": ({"text": CHATML, "kto_tag": True}, "kto_tag says which conversations are good"),
    "another answer": (
        {"text": MARKED_UP, "rejected": "Human: q\n\nAssistant: WORSE"},
        "text and rejected are two answers to one prompt",
    ),
    "another answer alone": ({"text": "A", "rejected": "WORSE"}, "text and rejected are two answers to one prompt"),
}


@pytest.mark.parametrize("name", VERDICTS)
def test_a_verdict_on_marked_up_text_is_preference_data(name: str) -> None:
    row, why = VERDICTS[name]
    with pytest.raises(InvalidData, match=f"preference data: {why}"):
        read(row)


def test_a_label_beside_text_without_marks_is_a_class() -> None:
    assert read({"text": "A plain text.", "label": 0}) == (["A plain text."], ())


class TestAPartOfAnotherType:
    @pytest.mark.parametrize(
        "kind",
        ["reasoning.text", "summary_text", "thinking_text", "reasoning_content", "think", "scratchpad", "cot_text"],
    )
    def test_is_a_thought_where_its_name_says_so(self, kind: str) -> None:
        row = {"messages": [user("Q"), answer([{"type": kind, "text": "T"}, {"type": "text", "text": "A"}])]}
        assert read(row) == (["A"], ("thought",))
        assert read(row, "thought") == (["T"], ("reply",))

    def test_may_hold_its_thought_under_its_own_name(self) -> None:
        parts = [{"type": "scratchpad", "scratchpad": "T"}, {"type": "text", "text": "A"}]
        assert read({"messages": [user("Q"), answer(parts)]}, "both") == (["T\n\nA"], ())

    @pytest.mark.parametrize("kind", ["comment", "error", "tool_output"])
    def test_is_left_out_and_counted_otherwise(self, kind: str) -> None:
        row = {"messages": [user("Q"), answer([{"type": kind, "text": "X"}, {"type": "text", "text": "A"}])]}
        assert read(row) == (["A"], (f"{kind} part",))
        alone = {"messages": [user("Q"), answer([{"type": kind, "text": "X"}])]}
        assert read(alone) == f"empty turn: assistant, turn 2, holds only: {kind} part"

    @pytest.mark.parametrize("kind", [None, "text", "output_text", "refusal"])
    def test_is_reply_where_it_is_known(self, kind: str | None) -> None:
        assert read({"messages": [user("Q"), answer([{"type": kind, "text": "A"}])]}) == (["A"], ())


CELLS: list[Any] = ["T", ["T"], {"content": "T"}, [{"type": "thinking", "thinking": "T"}], '["T"]', {"text": "T"}]


class TestAThoughtBesideTheTurns:
    @pytest.mark.parametrize("cell", CELLS, ids=str)
    def test_of_a_pair_is_read_in_any_form(self, cell: Any) -> None:
        row = {"prompt": "Q", "response": "4", "reasoning": cell}
        assert read(row) == (["4"], ("thought",))
        assert read(row, "both") == (["T\n\n4"], ())

    def test_of_a_pair_with_a_history_is_of_its_answer(self) -> None:
        row = {"history": [["q", "a"]], "prompt": "Q", "response": "4", "reasoning": "T"}
        assert read(row, "both") == (["a", "T\n\n4"], ())
        assert read(row, "thought") == (["T"], ("answer without a thought", "reply"))

    def test_of_a_chat_is_of_its_only_answer(self) -> None:
        assert read({"messages": [user("Q"), answer("A")], "reasoning": "T"}, "both") == (["T\n\nA"], ())

    def test_of_a_chat_with_several_answers_is_counted(self) -> None:
        assert read(TWO | {"reasoning": "T"}) == (["BAD", "GOOD"], ("thought beside several answers",))

    def test_stands_before_the_one_in_the_answer(self) -> None:
        row = {"prompt": "Q", "response": "<think>U</think>A", "reasoning": "T"}
        assert read(row, "both") == (["T\n\nU\n\nA"], ())
        assert read(row | {"reasoning": "U"}, "both") == (["U\n\nA"], ())

    @pytest.mark.parametrize("switch", ["on", "off", True, "low"])
    def test_is_none_where_it_is_a_switch(self, switch: Any) -> None:
        assert read({"prompt": "Q", "response": "A", "thinking": switch}) == (["A"], ())
