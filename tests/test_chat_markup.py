"""Marks of templates in texts: taken apart to the letter, or refused; ordinary text with signs like them is neither."""

from __future__ import annotations

from typing import Any

import pytest

from poise.data import Conversation, Message, RejectedRow, data_from_rows, turns
from poise.data.chat_markup import has_markup, parse_markup
from poise.errors import InvalidData

Row = dict[str, Any]


def read(row: Row, need: Any = "assistant") -> list[tuple[str, str]] | str:
    """The turns of one row, or the reason why there are none."""
    (outcome,) = data_from_rows([row], need=need)
    if isinstance(outcome, RejectedRow):
        return outcome.reason
    return [(message["role"], message["content"]) for message in outcome.messages]


def pairs(messages: list[Message] | None) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in messages or ()]


HELLO = [("user", "hi"), ("assistant", "hello")]
WITH_SYSTEM = [("system", "S"), *HELLO]
TWICE = [*HELLO, ("user", "hi2"), ("assistant", "hello2")]
TEXTS: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "Vicuna": ("USER: hi ASSISTANT: hello</s>", HELLO),
    "Vicuna, rounds": ("S USER: hi ASSISTANT: hello</s>USER: hi2 ASSISTANT: hello2</s>", [("system", "S"), *TWICE]),
    "User and Bot": ("User: hi\nBot: hello", HELLO),
    "Human and AI": ("Human: hi\nAI: hello", HELLO),
    "small letters": ("user: hi\nassistant: hello", HELLO),
    "bold": ("**User:** hi\n**Assistant:** hello", HELLO),
    "Together": ("<human>: hi\n<bot>: hello", HELLO),
    "questions": ("Question: hi\n\nAnswer: hello", HELLO),
    "questions, rounds": ("Q: hi\nA: hello\nQ: hi2\nA: hello2", TWICE),
    "instructions": ("Instruction: hi\nResponse: hello", HELLO),
    "Chinese": ("问：hi\n答：hello", HELLO),
    "a question that is to come": ("Human: hi\n\nAssistant: hello\n\nHuman:", HELLO),
    "hashes, questions": ("### Question:\nhi\n### Answer:\nhello", HELLO),
    "hashes, prompts": ("### Prompt:\nhi\n### Completion:\nhello", HELLO),
    "hashes without a colon": ("### Instruction\nhi\n### Response\nhello", HELLO),
    "hashes, system": ("### System:\nS\n\n### User:\nhi\n\n### Assistant:\nhello", WITH_SYSTEM),
    "Phind": ("### System Prompt\nS\n\n### User Message\nhi\n\n### Assistant\nhello", WITH_SYSTEM),
    "Alpaca, rounds": (
        "### Instruction:\nhi\n\n### Response:\nhello\n\n### Instruction:\nhi2\n\n### Response:\nhello2",
        TWICE,
    ),
    "Alpaca, a heading in the answer": (
        "### Instruction:\nhi\n\n### Response:\nhello\n\n### Answer:\nB",
        [("user", "hi"), ("assistant", "hello\n\n### Answer:\nB")],
    ),
    "Guanaco, rounds": ("### Human: hi### Assistant: hello### Human: hi2### Assistant: hello2", TWICE),
    "DeepSeek": ("<｜begin▁of▁sentence｜>S<｜User｜>hi<｜Assistant｜>hello<｜end▁of▁sentence｜>", WITH_SYSTEM),
    "Cohere": (
        "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|>hi<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>hello<|END_OF_TURN_TOKEN|>",
        HELLO,
    ),
    "Granite": (
        "<|start_of_role|>user<|end_of_role|>hi<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>hello<|end_of_text|>",
        HELLO,
    ),
    "Llama 3": (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nhello<|eot_id|><|end_of_text|>",
        HELLO,
    ),
    "Llama 4": (
        "<|header_start|>user<|header_end|>\n\nhi<|eot|><|header_start|>assistant<|header_end|>\n\nhello<|eot|>",
        HELLO,
    ),
    "Gemma 3": ("<bos><start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\nhello<end_of_turn>\n<eos>", HELLO),
    "Gemma 4": ("<|turn>user\nhi<turn|>\n<|turn>model\nhello<turn|>", HELLO),
    "Kimi": (
        "<|im_user|>user<|im_middle|>hi<|im_end|><|im_assistant|>assistant<|im_middle|>hello<|im_end|>",
        HELLO,
    ),
    "OpenChat": ("GPT4 Correct User: hi<|end_of_turn|>GPT4 Correct Assistant: hello<|end_of_turn|>", HELLO),
    "Nemotron": ("<extra_id_0>System\nS\n<extra_id_1>User\nhi\n<extra_id_1>Assistant\nhello", WITH_SYSTEM),
    "Phi 3": ("<|system|>S<|end|><|user|>hi<|end|><|assistant|>hello<|end|><|endoftext|>", WITH_SYSTEM),
    "Phi 4": ("<|im_start|>user<|im_sep|>hi<|im_end|><|im_start|>assistant<|im_sep|>hello<|im_end|>", HELLO),
    "Zephyr": ("<|system|>\nS</s>\n<|user|>\nhi</s>\n<|assistant|>\nhello</s>", WITH_SYSTEM),
    "H2O": ("<|prompt|>hi</s><|answer|>hello</s>", HELLO),
    "EXAONE": ("[|system|]S[|endofturn|]\n[|user|]hi\n[|assistant|]hello[|endofturn|]", WITH_SYSTEM),
    "Baize": ("[|Human|]hi[|AI|]hello", HELLO),
    "Ling": ("<role>HUMAN</role>hi<role>ASSISTANT</role>hello", HELLO),
    "Seed": ("<seed:bos>user\nhi<seed:eos><seed:bos>assistant\nhello<seed:eos>", HELLO),
    "Jamba": ("<|bom|><|user|> hi<|eom|><|bom|><|assistant|> hello<|eom|>", HELLO),
    "Apertus": ("<|user_start|>hi<|user_end|><|assistant_start|>hello<|assistant_end|>", HELLO),
    "MiniMax": ("]~!b[]~b]user\nhi[e~[\n]~b]ai\nhello[e~[", HELLO),
    "tags": ("<user>hi</user><assistant>hello</assistant>", HELLO),
    "Mistral": ("<s>[SYSTEM_PROMPT]S[/SYSTEM_PROMPT][INST]hi[/INST]hello</s>", WITH_SYSTEM),
    "Mistral, rounds": ("<s>[INST] hi [/INST] hello</s>[INST] hi2 [/INST] hello2</s>", TWICE),
    "Llama 2": ("<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nhi [/INST] hello </s>", WITH_SYSTEM),
    "GLM": ("[gMASK]<sop><|user|>\nhi<|assistant|>\nhello<|user|>", HELLO),
}
TOOL_TURNS = [("user", "hi"), ("assistant", ""), ("tool", "r"), ("assistant", "hello")]
TOOLS = {
    "ChatML": (
        '<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n'
        "</tool_call><|im_end|>\n<|im_start|>tool\nr<|im_end|>\n<|im_start|>assistant\nhello<|im_end|>"
    ),
    "Mistral": (
        '[INST]hi[/INST][TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}]</s>[TOOL_RESULTS]r[/TOOL_RESULTS]hello</s>'
    ),
    "newer Mistral": '[INST]hi[/INST][TOOL_CALLS]f[ARGS]{"a": 1}</s>[TOOL_RESULTS]r[/TOOL_RESULTS]hello</s>',
    "GLM": '<|user|>\nhi<|assistant|>f\n{"a": 1}<|observation|>\nr<|assistant|>\nhello',
}
UNCLEAR = {
    "a role with a name": "<|im_start|>system name=example_user\nhi<|im_end|>\n<|im_start|>assistant\nhello<|im_end|>",
    "rounds": "[Round 1]\n\n问：hi\n\n答：hello",
    "tokens of no known maker": "<|startoftext|>hi<|extra_0|>hello<|eos|>",
    "a token inside a turn": "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nhello<|fim_middle|>more<|im_end|>",
    "a call that is none": "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<tool_call>{broken</tool_call>",
    "reserved tokens": "<reserved_106>hi<reserved_107>hello",
    "a beginning for each turn": "<s>Human: hi\n</s><s>Assistant: hello\n</s>",
    "two documents": "Once<|endoftext|>Twice",
    "marks that are not closed": "[INST] hi [/INST] hello [INST] more",
}


class TestAText:
    @pytest.mark.parametrize("name", TEXTS)
    def test_with_marks_is_taken_apart_to_the_letter(self, name: str) -> None:
        text, messages = TEXTS[name]
        assert has_markup(text)
        assert read({"text": text}) == messages
        assert pairs(parse_markup(text)) == messages

    @pytest.mark.parametrize("name", TOOLS)
    def test_with_a_call_and_its_result_scores_neither(self, name: str) -> None:
        (row,) = data_from_rows([{"text": TOOLS[name]}])
        assert isinstance(row, Conversation)
        assert [(m["role"], m["content"]) for m in row.messages] == TOOL_TURNS
        assert row.messages[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"a": 1}}
        assert [turn.answer for turn in turns(row)] == ["hello"]
        assert row.left_out == ("tool call without words",)

    @pytest.mark.parametrize("name", UNCLEAR)
    def test_with_marks_that_are_not_clear_is_rejected(self, name: str) -> None:
        reason = read({"text": UNCLEAR[name]})
        assert isinstance(reason, str)
        assert reason.startswith("chat marks that cannot be taken apart")

    @pytest.mark.parametrize(
        "text",
        [
            "Note: this is prose.\nWarning: so is this.",
            "He asked: why?\nShe: because.",
            "<p>Hello <b>there</b></p>\n<user-agent>x</user-agent>",
            "x <| y |> z, and [|1; 2|] in OCaml",
            "The FAQ says\nQ: What?\nA: That.",
            "### Summary\nGood.\n### Details\nBetter.",
            "Use `<|im_start|>` to begin a turn.",
            'tokens = "<|im_start|>"',
            "A: first one sounds good. B: second.",
            "Assistant managers: a study",
        ],
    )
    def test_of_ordinary_words_is_an_answer_as_it_is(self, text: str) -> None:
        assert read({"text": text}) == [("assistant", text)]

    def test_that_is_a_chat_among_plain_ones_is_read_as_one(self) -> None:
        rows = [{"text": "plain"}, {"text": "User: hi\nAssistant: hello"}, {"text": "plain too"}]
        texts = [[m["content"] for m in row.messages] for row in data_from_rows(rows) if isinstance(row, Conversation)]
        assert texts == [["plain"], ["hi", "hello"], ["plain too"]]

    @pytest.mark.parametrize("text", ["<s>Once</s>", "<|begin_of_text|>Once<|end_of_text|>", "Once<|endoftext|>"])
    def test_between_the_marks_of_a_document_is_without_them(self, text: str) -> None:
        assert read({"text": text}) == [("assistant", "Once")]

    def test_in_the_column_of_a_chat_is_read_with_the_system_prompt_beside_it(self) -> None:
        row = {"system": "S", "chat": "USER: hi\n\n\nASSISTANT: hello <|endoftext|>"}
        assert read(row) == WITH_SYSTEM

    def test_that_is_a_row_as_json_is_refused(self) -> None:
        with pytest.raises(InvalidData, match="a row of its own as JSON in text, with prompt, response"):
            data_from_rows([{"text": '{"prompt": "hi", "response": "hello"}'}])

    def test_that_is_a_chat_as_json_is_read(self) -> None:
        text = '[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]'
        assert read({"text": text}) == HELLO


CELLS: dict[str, Row] = {
    "a prompt that ends in a header": {"prompt": "Human: hi\n\nAssistant:", "response": "hello"},
    "a prompt in ChatML": {
        "prompt": "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
        "response": "hello<|im_end|>",
    },
    "a prompt in Vicuna's words": {"prompt": "USER: hi ASSISTANT:", "response": "hello</s>"},
    "an instruction in Alpaca's": {
        "prompt": "Below is an instruction.\n\n### Instruction:\nhi\n\n### Response:\n",
        "completion": "hello",
    },
    "a prompt in Mistral's": {"prompt": "<s>[INST] hi [/INST]", "completion": " hello</s>"},
    "an answer with its header": {"prompt": "hi", "response": "<|im_start|>assistant\nhello<|im_end|>"},
    "a turn with its header": {
        "messages": [
            {"role": "user", "content": "<|im_start|>user\nhi<|im_end|>"},
            {"role": "assistant", "content": "<|im_start|>assistant\nhello<|im_end|>"},
        ]
    },
    "texts with the names of who speaks": {"data": ["Human: hi", "Assistant: hello"]},
}


class TestACell:
    @pytest.mark.parametrize("name", CELLS)
    def test_that_was_put_into_a_template_is_taken_out_of_it(self, name: str) -> None:
        outcome = read(CELLS[name])
        assert [(role, text.strip()) for role, text in outcome if isinstance(outcome, list)] == HELLO

    @pytest.mark.parametrize(
        ("answer", "mark"),
        [
            ("hello<|im_end|>\n<|im_start|>user\nmore", "<|im_start|>"),
            ("hello<|endoftext|>and more", "<|endoftext|>"),
            ("hello [INST] more [/INST] sure", "[INST]"),
            ("hello<｜User｜>more", "<｜User｜>"),
        ],
    )
    def test_of_an_answer_that_goes_on_with_other_turns_is_rejected(self, answer: str, mark: str) -> None:
        assert read({"prompt": "hi", "response": answer}) == (
            f"chat marks inside one turn: assistant, turn 2, holds {mark}"
        )

    @pytest.mark.parametrize(
        "answer",
        [
            "Q: What?\nA: That.",
            "User: hi\nBot: hello",
            "### Question:\nx\n### Answer:\ny",
            "Human: hi, I said.",
            "<p>It is <s>old</s></p>",
            "It was <s>old</s>",
            "Write `<|im_start|>user` first.",
            "```\n<|im_start|>user\nhi<|im_end|>\n```",
            '{"role": "system"}',
            "Put it into <tool_call> and </tool_call>.",
        ],
    )
    def test_of_an_answer_in_ordinary_words_stays_as_it_is(self, answer: str) -> None:
        assert read({"prompt": "hi", "response": answer}) == [("user", "hi"), ("assistant", answer)]

    @pytest.mark.parametrize(
        "prompt", ["Question: Which?\n (A) x\n\nAnswer:", "Go on:\nUser: a\nBot: b", "Q: 1+1?\nA:", "Hi <user>"]
    )
    def test_of_a_prompt_in_ordinary_words_stays_as_it_is(self, prompt: str) -> None:
        assert read({"prompt": prompt, "response": "x"}) == [("user", prompt), ("assistant", "x")]
        assert read({"prompt": prompt}, need="user") == [("user", prompt)]

    def test_of_calls_as_text_is_a_call(self) -> None:
        text = 'Let me look.\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
        row = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": text}]}
        (outcome,) = data_from_rows([row])
        assert isinstance(outcome, Conversation)
        assert [(m["content"], len(m.get("tool_calls", ()))) for m in outcome.messages] == [
            ("hi", 0),
            ("Let me look.", 1),
        ]
