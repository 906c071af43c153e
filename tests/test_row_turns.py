"""Turns, calls and headings in the forms that makers of data use: exactly what is read of each, or why it is not."""

from __future__ import annotations

from typing import Any

import pytest

from poise.data import Conversation, data_from_rows, turns
from poise.data.messages import Need
from poise.errors import InvalidData

Row = dict[str, Any]
Spoken = list[tuple[str, str]]
U, A, S, T = "user", "assistant", "system", "tool"


def said(text: Any, **keys: Any) -> Row:
    return {"role": A, "content": text, **keys}


def asked(text: Any) -> Row:
    return {"role": U, "content": text}


def conversation(*rows: Row, shape: str = "auto", need: Need = "assistant") -> Conversation:
    """The last row."""
    last = list(data_from_rows(rows, shape=shape, need=need))[-1]
    assert isinstance(last, Conversation), last
    return last


def spoken(row: Conversation) -> Spoken:
    return [(message["role"], message["content"]) for message in row.messages]


def reason(row: Row, shape: str = "auto") -> str:
    try:
        (read,) = data_from_rows([row], shape=shape)
    except InvalidData as error:
        return str(error)
    assert not isinstance(read, Conversation), read.messages
    return read.reason


EXCHANGES: dict[str, tuple[list[Row], Spoken]] = {
    "with a system prompt": (
        [{"system": "PIRATE", "input": "Q", "output": "A"}, {"system": "PIRATE", "input": "Q2", "output": "A2"}],
        [(S, "PIRATE"), (U, "Q"), (A, "A"), (U, "Q2"), (A, "A2")],
    ),
    "with an instruction": (
        [{"instruction": "Translate", "input": "X", "output": "A"}],
        [(U, "Translate\n\nX"), (A, "A")],
    ),
    "with an empty instruction": ([{"instruction": "", "input": "X", "output": "A"}], [(U, "X"), (A, "A")]),
    "with an empty input": ([{"instruction": "I", "input": "", "output": "A"}], [(U, "I"), (A, "A")]),
    "with no system prompt": ([{"system": None, "input": "Q", "output": "A"}], [(U, "Q"), (A, "A")]),
}


class TestAnExchange:
    @pytest.mark.parametrize(("pairs", "expected"), EXCHANGES.values(), ids=EXCHANGES)
    def test_is_read_with_its_other_keys(self, pairs: list[Row], expected: Spoken) -> None:
        assert spoken(conversation({"conversation": pairs})) == expected

    def test_with_two_prompts_or_answers_is_rejected(self) -> None:
        two = {"conversation": [{"input": "Q", "output": "A", "response": "B"}]}
        assert reason(two).startswith("ambiguous: response and output could each be the answer to input, exchange 1")
        assert "input could each be the prompt" in reason(
            {"conversation": [{"prompt": "P", "input": "Q", "output": "A"}]}
        )


CALLS: dict[str, tuple[str, str, Row]] = {
    "Glaive": ('<functioncall> {"name": "f", "arguments": {"a": 1}}', "f", {"a": 1}),
    "Glaive, quoted": (
        """<functioncall> {"name": "f", "arguments": '{"a": "it\\'s"}'} <|endoftext|>""",
        "f",
        {"a": "it's"},
    ),
    "Llama": ('<function=f>{"a": 1}</function>', "f", {"a": 1}),
    "Llama, nothing to give": ("<function=f></function>", "f", {}),
    "Qwen3-Coder": (
        "<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>",
        "f",
        {"a": "1"},
    ),
    "Anthropic": (
        '<function_calls>\n<invoke name="f">\n<parameter name="a">1</parameter>\n</invoke>\n</function_calls>',
        "f",
        {"a": "1"},
    ),
    "Anthropic, older": (
        "<function_calls>\n<invoke>\n<tool_name>f</tool_name>\n<parameters>\n<a>1</a>\n</parameters>\n</invoke>\n"
        "</function_calls>",
        "f",
        {"a": "1"},
    ),
    "an invocation alone": ('<invoke name="f"><parameter name="a">1</parameter></invoke>', "f", {"a": "1"}),
    "JSON before its result": ('{"name": "f", "arguments": {"a": 1}}', "f", {"a": 1}),
}


class TestACallInAnAnswersWords:
    @pytest.mark.parametrize(("text", "name", "arguments"), CALLS.values(), ids=CALLS)
    def test_is_a_call_and_no_answer(self, text: str, name: str, arguments: Row) -> None:
        row = conversation({"messages": [asked("Q"), said(text), {"role": T, "content": "r"}, said("A")]})
        assert spoken(row) == [(U, "Q"), (A, ""), (T, "r"), (A, "A")]
        assert [call["function"] for call in row.messages[1]["tool_calls"]] == [{"name": name, "arguments": arguments}]
        assert [turn.answer for turn in turns(row)] == ["A"]
        assert row.left_out == ("tool call without words",)

    def test_leaves_the_words_beside_it(self) -> None:
        row = conversation({"messages": [asked("Q"), said('Let me.\n\n<function=f>{"a": 1}</function>')]})
        assert [turn.answer for turn in turns(row)] == ["Let me."]

    @pytest.mark.parametrize(
        "text", ["<functioncall> f(1)", "<function=f>a = 1</function>", "<function_calls>f</function_calls>"]
    )
    def test_that_cannot_be_taken_apart_is_rejected(self, text: str) -> None:
        assert reason({"messages": [asked("Q"), said(text)]}).startswith("marks of a tool call that cannot be taken")

    @pytest.mark.parametrize(
        "text",
        [
            "Write `<function=f>{}</function>`.",
            '```xml\n<function_calls>\n<invoke name="f"></invoke>\n</function_calls>\n```',
            '{"name": "f", "arguments": {}}',
            "if a < b and c > d: [1]",
            "Use <function=name> in the file.",
        ],
    )
    def test_is_words_in_code_and_where_nothing_was_called(self, text: str) -> None:
        row = conversation({"messages": [asked("Q"), said(text)]})
        assert [turn.answer for turn in turns(row)] == [text]


class TestToolsOfATurn:
    @pytest.mark.parametrize(
        "keys",
        [
            {"function_call": {"name": None, "arguments": None}},
            {"function_call": {"name": "", "arguments": ""}},
            {"tool_calls": [{"id": None, "type": None, "function": {"name": None, "arguments": None}}]},
            {"tool_calls": [None]},
            {"tool_calls": "null"},
            {"tool_calls": "None"},
            {"tool_calls": "[]"},
        ],
    )
    def test_that_call_nothing_are_none(self, keys: Row) -> None:
        row = conversation({"messages": [asked("Q"), said("A", **keys)]})
        assert row.messages[1] == {"role": A, "content": "A"}

    def test_that_the_system_defines_are_tools(self) -> None:
        tool = {"type": "function", "function": {"name": "f"}}
        messages = [{"role": S, "content": "", "tools": [tool]}, asked("Q"), said("A")]
        row = conversation({"messages": messages})
        assert (row.tools, spoken(row)) == ((tool,), [(U, "Q"), (A, "A")])
        assert conversation({"messages": messages, "tools": [tool]}).tools == (tool,)


CALL = said(None, tool_calls=[{"function": {"name": "f", "arguments": "{}"}}])
RESULTS: list[tuple[Any, str]] = [
    (5, "5"),
    (0, "0"),
    (True, "true"),
    ([1, 2], "[1, 2]"),
    ([{"a": 1}], '[{"a": 1}]'),
    ({"a": 1}, '{"a": 1}'),
    ([{"type": "text", "text": "r"}], "r"),
]
PARTS: dict[str, tuple[list[Row], Spoken]] = {
    "Gemini's calls": (
        [
            {"role": "user", "parts": [{"text": "Q"}]},
            {"role": "model", "parts": [{"function_call": {"name": "f", "args": {}}}]},
            {"role": "user", "parts": [{"function_response": {"name": "f", "response": {"b": 2}}}]},
            {"role": "model", "parts": [{"text": "A"}]},
        ],
        [(U, "Q"), (A, ""), (T, '{"b": 2}'), (A, "A")],
    ),
    "a search of Anthropic's": (
        [
            asked("Q"),
            said(
                [
                    {"type": "server_tool_use", "id": "1", "name": "web_search", "input": {}},
                    {
                        "type": "web_search_tool_result",
                        "tool_use_id": "1",
                        "content": [{"type": "web_search_result", "url": "u"}],
                    },
                    {"type": "text", "text": "A"},
                ]
            ),
        ],
        [(U, "Q"), (T, '[{"type": "web_search_result", "url": "u"}]'), (A, "A")],
    ),
    "Bedrock's cache": (
        [asked([{"text": "Q"}, {"cachePoint": {"type": "default"}}]), said([{"text": "A"}])],
        [(U, "Q"), (A, "A")],
    ),
    "a refusal": ([asked("Q"), said(None, refusal="I can't")], [(U, "Q"), (A, "I can't")]),
    "no refusal": ([asked("Q"), said("A", refusal=None)], [(U, "Q"), (A, "A")]),
    "OpenAI's Assistants": (
        [asked("Q"), said([{"type": "text", "text": {"value": "A", "annotations": []}}])],
        [(U, "Q"), (A, "A")],
    ),
}


class TestAPartThatIsNoText:
    @pytest.mark.parametrize(("result", "text"), RESULTS)
    def test_of_a_tool_is_its_json(self, result: Any, text: str) -> None:
        row = conversation({"messages": [asked("Q"), CALL, {"role": T, "content": result}, said("A")]})
        assert spoken(row) == [(U, "Q"), (A, ""), (T, text), (A, "A")]

    @pytest.mark.parametrize(("messages", "expected"), PARTS.values(), ids=PARTS)
    def test_is_read_with_the_rest(self, messages: list[Row], expected: Spoken) -> None:
        assert spoken(conversation({"messages": messages})) == expected

    def test_is_counted_where_it_says_nothing(self) -> None:
        parts = [{"text": "A"}, {"executableCode": {"language": "PYTHON", "code": "1"}}]
        row = conversation(
            {"contents": [{"role": "user", "parts": [{"text": "Q"}]}, {"role": "model", "parts": parts}]}
        )
        assert (spoken(row), row.left_out) == ([(U, "Q"), (A, "A")], ("code run",))


class TestOrdinaryWords:
    @pytest.mark.parametrize(
        "text",
        [
            "# API\n\n### Response\n200 OK",
            "# Report\n\n## System\nIt is big.",
            "### Response\n200 OK",
            "## User\nAsks.\n\n## Law\nToo.",
            "# Roles\n\n## User\nAsks.\n\n## AI\nAnswers.\n\n## Law\nToo.",
            "## User\nAsks.\n\n## AI\nAnswers.\n\n## Law\nToo.",
            "The two of them.\n\n## User\nAsks.\n\n## AI\nAnswers.",
            "# Guide\n\n### Question\nWhat?\n\n### Answer\nThat.",
        ],
    )
    def test_under_headings_are_a_text(self, text: str) -> None:
        assert spoken(conversation({"text": text})) == [(A, text)]

    @pytest.mark.parametrize(
        "text",
        [
            "### Instruction\nQ\n\n### Response\nA",
            "## User\nQ\n\n## Assistant\nA",
            "### Instruction:\nQ\n\n### Response:\nA",
        ],
    )
    def test_under_marks_are_a_chat(self, text: str) -> None:
        assert spoken(conversation({"text": text})) == [(U, "Q"), (A, "A")]

    @pytest.mark.parametrize(
        "play",
        [
            "Here:\n\nH: Hi.\n\nA: Hello.",
            "hello\n\nHuman: more\n\nAssistant: sure",
            "## User\nAsks.\n\n## AI\nAnswers.",
        ],
    )
    def test_of_a_dialogue_in_an_answer_are_the_answer(self, play: str) -> None:
        expected = [(U, "Write a play"), (A, play)]
        assert spoken(conversation({"prompt": "Write a play", "response": play})) == expected
        assert spoken(conversation({"messages": [asked("Write a play"), said(play)]})) == expected


class TestARemedy:
    @pytest.mark.parametrize(
        ("row", "words"),
        [
            ({"prompt": "2+2?", "response": 4}, "response holds a number, and no text: write it as text"),
            (
                {"question": "Q", "context": "C", "answers": {"text": ["A"], "answer_start": [0]}},
                "answers holds an object with text, answer_start, and no text: write one answer as text, in a column",
            ),
            ({"prompt": "Q", "response": ["A", "B"]}, "response holds a list, and no text: write one answer as text"),
            ({"prompt": "Q", "response": None}, "response holds nothing: write a text"),
            ({"prompt": 5, "response": "A"}, "prompt holds a number, and no text: write it as text"),
            (
                {"messages": [{"type": "human", "content": "hi"}, {"type": "ai", "content": "ho"}]},
                "the turns in messages say in type who speaks; name that key role",
            ),
            ({"prompt": "Q", "chosen": ["A", "B"], "rejected": ["C", "D"]}, "chosen is a list of texts: write the one"),
        ],
    )
    def test_names_the_column_at_fault(self, row: Row, words: str) -> None:
        assert words in reason(row)

    def test_of_a_pair_as_turns_reads_it(self) -> None:
        row = {"prompt": "Q", "chosen": ["Q", "A"], "rejected": ["Q", "B"]}
        assert "give the shape alternating:chosen" in reason(row)
        assert spoken(conversation(row, shape="alternating:chosen")) == [(U, "Q"), (A, "A")]

    def test_of_a_stated_shape_says_what_the_columns_hold(self) -> None:
        row = {"prompt": "2+2?", "response": 4}
        expected = 'not pairs: it has the columns "prompt (text), response (a number)"'
        assert reason(row, shape="pairs:prompt,response") == expected
        late = list(data_from_rows([{"prompt": "Q", "response": "A"}, {"prompt": "Q", "response": "B"}, row]))[-1]
        assert "response holds a number" in str(getattr(late, "reason", ""))
