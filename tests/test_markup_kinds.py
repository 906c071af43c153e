"""Chats in one text: in other languages, with words for marks, with marks that close; and several in one text."""

from __future__ import annotations

import pytest

from poise.data import Conversation, data_from_rows

HELLO = [("user", "hi"), ("assistant", "A")]
TEXTS: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "Japanese": ("### 指示:\nhi\n\n### 応答:\nA", HELLO),
    "Japanese with an input": (
        "以下は、タスクを説明する指示です。\n\n### 指示:\nhi\n\n### 入力:\nx\n\n### 応答:\nA",
        [("user", "hi\n\nx"), ("assistant", "A")],
    ),
    "Korean": ("### 질문: hi\n\n### 답변: A", HELLO),
    "Chinese": ("### 问题：\nhi\n\n### 回答：\nA", HELLO),
    "Chinese instructions": ("### 指令:\nhi\n\n### 输出:\nA", HELLO),
    "Russian": ("### Инструкция:\nhi\n\n### Ответ:\nA", HELLO),
    "French": ("### Instruction:\nhi\n\n### Réponse:\nA", HELLO),
    "Spanish": ("### Instrucción:\nhi\n\n### Respuesta:\nA", HELLO),
    "Phi 2": ("Instruct: hi\nOutput: A", HELLO),
    "a question and a response": ("Question: hi\nResponse: A", HELLO),
    "a context": ("Context: c\nQuestion: hi\nAnswer: A", [("user", "c\n\nhi"), ("assistant", "A")]),
    "an input": ("Instruction: hi\nInput: x\nOutput: A", [("user", "hi\n\nx"), ("assistant", "A")]),
    "brackets": ("[Human]: hi\n[Assistant]: A", HELLO),
    "ChatML without its tokens": ("user\nhi\nassistant\nA", HELLO),
    "with a system prompt": ("system\nS\nuser\nhi\nassistant\nA", [("system", "S"), *HELLO]),
    "Gemma without its tokens": ("user\nhi\nmodel\nA", HELLO),
    "marks that close": ("<|user|>hi</|user|><|assistant|>A</|assistant|>", HELLO),
    "marks that close, the other way": ("<|user|>hi<|/user|>\n<|assistant|>A<|/assistant|>", HELLO),
    "marks and colons": ("<|user|>: hi\n<|assistant|>: A", HELLO),
    "a smile": ("<|user|>: hi\n<|assistant|>:) A", [("user", ": hi"), ("assistant", ":) A")]),
    "an end of text after every turn": ("<|user|>\nhi<|endoftext|>\n<|assistant|>\nA<|endoftext|>", HELLO),
}


def read(text: str) -> list[tuple[str, str]]:
    (row,) = data_from_rows([{"text": text}])
    assert isinstance(row, Conversation), row
    return [(message["role"], message["content"]) for message in row.messages]


@pytest.mark.parametrize("name", TEXTS)
def test_a_chat_in_one_text_is_taken_apart(name: str) -> None:
    text, turns = TEXTS[name]
    assert read(text) == turns


CHATML = "<|im_start|>user\nq{0}<|im_end|>\n<|im_start|>assistant\na{0}<|im_end|>\n"
HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n{}<|eot_id|>"
LLAMA = HEADER.format("user", "q") + HEADER.format("assistant", "a")
SEVERAL: dict[str, str] = {
    "ChatML": f"{CHATML.format(1)}<|endoftext|>{CHATML.format(2)}<|endoftext|>",
    "Llama": f"<|begin_of_text|>{LLAMA}<|begin_of_text|>{LLAMA}",
    "Gemma": "<bos><start_of_turn>user\nq<end_of_turn>\n<start_of_turn>model\na<end_of_turn>\n" * 2,
    "texts": "Once<|endoftext|>Twice",
}


@pytest.mark.parametrize("name", SEVERAL)
def test_several_conversations_in_one_text_are_refused(name: str) -> None:
    (row,) = list(data_from_rows([{"text": CHATML.format(1)}, {"text": SEVERAL[name]}]))[1:]
    assert not isinstance(row, Conversation)
    assert row.reason.startswith("chat marks that cannot be taken apart: ")


@pytest.mark.parametrize(
    "text",
    [
        "Input: [1, 2]\nOutput: 3", "The answer.\n\nContext: none", "# Notes\n\n### 背景\nText.", "model\nof a car",
        "Output: 5 lines\nInput: 3", "[Human] nature is odd.", "An instruction: none.\nOutput: none.",
    ],
)  # fmt: skip
def test_ordinary_text_stays_one_answer(text: str) -> None:
    assert read(text) == [("assistant", text)]


def test_one_conversation_may_end_with_both_marks() -> None:
    assert read(f"{CHATML.format(1)}<|endoftext|>") == [("user", "q1"), ("assistant", "a1")]
