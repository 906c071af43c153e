"""Calls that are not JSON: what templates write is found out, answers are held to it, and read back as JSON."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from typing import Any

import jsonschema
import pytest
from transformers.utils.chat_parsing import parse_response

import tiny
import tool_templates
from poise.engine.grammar import GrammarCompiler, grammar_compiler
from poise.errors import InvalidArgument
from poise.model import Model
from poise.model.rendering import render_prompt
from poise.model.tool_format import ToolCallFormat, tool_call_format
from poise.serve.offered_tools import OfferedTool
from poise.serve.tool_calls import ToolCallReader
from poise.serve.tool_grammar import tool_grammar

FORMS = list(tool_templates.NEW_STYLES)
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "unit": {"enum": ["celsius", "kelvin"]},
        "days": {"type": "integer"},
        "exact": {"type": "boolean"},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "spots": {"type": "array", "items": {"$ref": "#/$defs/spot"}},
    },
    "required": ["city", "days"],
    "$defs": {"spot": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}},
}
FORECAST = OfferedTool(name="forecast", parameters=SCHEMA)
LONGER = OfferedTool(name="forecast_all", parameters={"type": "object", "properties": {"city": {"type": "string"}}})
TOOLS = [FORECAST, LONGER]
ARGUMENTS: list[dict[str, Any]] = [
    {"city": "Rome", "days": 3},
    {"city": 'A "b" <c>\n</p>, d)', "unit": "kelvin", "days": -2, "exact": True, "note": None, "spots": [{"x": 1.5}]},
    {"city": "7", "days": 0, "exact": False, "note": "true enough, Łódź 😀"},
]


@pytest.fixture(scope="module")
def models() -> dict[str, Model]:
    return {style: tiny.model(tokenizer=tool_templates.tokenizer(style)) for style in FORMS}


def form_of(model: Model) -> ToolCallFormat:
    form = tool_call_format(model.tokenizer)
    assert form is not None
    return form


def written(model: Model, calls: list[tuple[str, Mapping[str, Any]]]) -> str:
    """An answer with these calls as the model's own template writes it, up to the end of the turn."""
    turn = [
        {"id": f"{n:09d}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for n, (name, arguments) in enumerate(calls)
    ]
    ask: Any = {"role": "user", "content": "?"}
    tools = [{"type": "function", "function": {"name": t.name, "parameters": t.parameters}} for t in TOOLS]
    prompt = render_prompt(model.tokenizer, [ask], tools=tools)
    answer: Any = {"role": "assistant", "content": "", "tool_calls": turn}
    text = render_prompt(model.tokenizer, [ask, answer], tools=tools, header=False)
    assert text.startswith(prompt), text
    return re.sub(r"(<\|im_end\|>|</s>)\s*\Z", "", text.removeprefix(prompt)).strip("\n")


def accepts(model: Model, text: str, *, tools: list[OfferedTool] = TOOLS, required: bool = True) -> bool:
    """Whether an answer held to the tools may be this text."""
    compiler: GrammarCompiler = grammar_compiler(model)
    grammar = tool_grammar(compiler, form_of(model), tools, required=required, parallel=True, special=compiler.special)
    matcher = grammar.matcher()
    for token in model.tokenizer(text, add_special_tokens=False)["input_ids"]:
        if not matcher.consume_token(token):
            return False
    return bool(matcher.is_accepting())


def read(form: ToolCallFormat, text: str, size: int) -> tuple[str, list[tuple[str, str]], list[str]]:
    """Words, calls, and the pieces that a stream would bring, of a text that comes so many characters at a time."""
    reader = ToolCallReader(form, TOOLS)
    words, pieces = "", list[str]()
    for at in range(0, len(text), size):
        more, deltas = reader.add(text[at : at + size])
        words, pieces = words + more, pieces + [delta.arguments for delta in deltas]
    more, _ = reader.finish()
    assert all(call.complete for call in reader.calls)
    return words + more, [(call.name, call.arguments) for call in reader.calls], pieces


@pytest.mark.parametrize("style", FORMS)
class TestACallInTheTemplatesOwnText:
    @pytest.mark.parametrize("arguments", ARGUMENTS, ids=["required", "all", "texts"])
    @pytest.mark.parametrize("size", [1, 7, 1000])
    def test_is_read_back(self, models: dict[str, Model], style: str, arguments: dict[str, Any], size: int) -> None:
        model = models[style]
        words, calls, pieces = read(form_of(model), written(model, [("forecast", arguments)]), size)
        assert words == ""
        assert [name for name, _ in calls] == ["forecast"]
        assert json.loads(calls[0][1]) == arguments
        assert "".join(pieces) == calls[0][1]

    @pytest.mark.parametrize("arguments", ARGUMENTS, ids=["required", "all", "texts"])
    def test_is_what_an_answer_may_be(self, models: dict[str, Model], style: str, arguments: dict[str, Any]) -> None:
        assert accepts(models[style], written(models[style], [("forecast", arguments)]))

    def test_that_is_one_of_two_is_read_back(self, models: dict[str, Model], style: str) -> None:
        model, several = models[style], [("forecast_all", {}), ("forecast", ARGUMENTS[0]), ("forecast_all", {})]
        text = written(model, several)
        assert accepts(model, text)
        for size in (1, 5, 1000):
            _, calls, _ = read(form_of(model), text, size)
            assert [(name, json.loads(arguments)) for name, arguments in calls] == several

    @pytest.mark.parametrize(
        "arguments",
        [{"city": "Rome"}, {"city": "Rome", "days": "two"}, {"city": "Rome", "unit": "miles", "days": 1}, {"days": 1}],
        ids=["missing", "type", "choice", "text"],
    )
    def test_that_does_not_fit_its_tool_is_not_one(
        self, models: dict[str, Model], style: str, arguments: dict[str, Any]
    ) -> None:
        assert not accepts(models[style], written(models[style], [("forecast", arguments)]))
        assert not accepts(models[style], written(models[style], [("forecasts", ARGUMENTS[0])]))

    def test_comes_after_words(self, models: dict[str, Model], style: str) -> None:
        model = models[style]
        call = written(model, [("forecast", ARGUMENTS[0])])
        words, calls, _ = read(form_of(model), f"{'Let me see.' if form_of(model).trigger else ''}\n{call}", 3)
        assert words.strip() == ("Let me see." if form_of(model).trigger else "")
        assert json.loads(calls[0][1]) == ARGUMENTS[0]
        assert accepts(model, "Only words.", required=False)


class TestATagForEachParameter:
    def test_is_read_as_transformers_reads_it(self, models: dict[str, Model]) -> None:
        schema = {
            "start_anchor": "<|im_start|>assistant\n",
            "fields": {
                "tool_calls": {
                    "open_pattern": r"<tool_call>\n<function=(?P<name>\w+)>\n",
                    "close": "</function>\n</tool_call>",
                    "repeats": True,
                    "content": "xml-inline",
                    "content_args": {"tag_pattern": r"<parameter=(?P<key>\w+)>\n(?P<value>.*?)\n</parameter>"},
                    "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
                }
            },
        }
        arguments = {"city": "two\nlines", "days": 3, "exact": True}
        text = written(models["coder"], [("forecast", arguments)])
        function: dict[str, Any] = {"name": "forecast", "parameters": SCHEMA}
        message = parse_response(text, schema, prefix="", tools=[{"type": "function", "function": function}])
        [call] = message["tool_calls"]
        assert call["function"] == {"name": "forecast", "arguments": arguments}
        assert json.loads(read(form_of(models["coder"]), text, 4)[1][0][1]) == arguments

    def test_may_be_a_number_or_a_text(self, models: dict[str, Model]) -> None:
        either = {"type": "object", "properties": {"a": {"type": ["string", "integer"]}, "b": {}}}
        reader = ToolCallReader(form_of(models["coder"]), [OfferedTool(name="f", parameters=either)])
        text = "<tool_call>\n<function=f>\n<parameter=a>\n{0}\n</parameter>\n<parameter=b>\n{1}\n</parameter>\n"
        reader.add((text + "</function>\n</tool_call>").format("12", "[1, 2]"))
        assert json.loads(reader.calls[0].arguments) == {"a": 12, "b": [1, 2]}
        reader = ToolCallReader(form_of(models["coder"]), [OfferedTool(name="f", parameters=either)])
        reader.add((text + "</function>\n</tool_call>").format("1.5", "[1, 2"))
        assert json.loads(reader.calls[0].arguments) == {"a": "1.5", "b": "[1, 2"}

    @pytest.mark.parametrize(
        ("parameters", "match"),
        [
            ({"properties": {"a": {"type": "string", "pattern": "x+"}}}, "The tool f: .*pattern at properties.a"),
            ({"properties": {"a": {"type": "string"}}, "patternProperties": {"^x": {}}}, "f: .*patternProperties"),
            ({"properties": {"a": {"type": "string"}}, "required": ["b"]}, "required parameter 'b' is not among"),
            ({"properties": {"a>\n": {"type": "string"}}}, "cannot name a parameter"),
        ],
        ids=["pattern", "object", "required", "name"],
    )
    def test_is_refused_where_it_cannot_be_held_to(
        self, models: dict[str, Model], parameters: dict[str, Any], match: str
    ) -> None:
        tool = OfferedTool(name="f", parameters={"type": "object", **parameters}, strict=True)
        with pytest.raises(InvalidArgument, match=match):
            accepts(models["coder"], "", tools=[tool])

    def test_is_refused_where_references_multiply(self, models: dict[str, Model]) -> None:
        names = [f"d{n}" for n in range(40)]
        doubled = {a: {"anyOf": [{"$ref": f"#/$defs/{b}"}] * 2} for a, b in itertools.pairwise(names)}
        definitions: dict[str, Any] = {
            **doubled,
            names[-1]: {"type": "string"},
            "self": {"anyOf": [{"$ref": "#/$defs/self"}] * 2},
        }
        parameters = {"a": {"$ref": "#/$defs/d0"}, "b": {"$ref": "#/$defs/self"}}
        tool = OfferedTool(name="f", parameters={"type": "object", "properties": parameters, "$defs": definitions})
        form = form_of(models["coder"]).parameters
        assert form is not None
        assert [each.name for each in tool.listed_parameters(form)] == ["a", "b"]
        large = {"type": "object", "properties": {"x": {"type": "string", "description": "x" * 9000}}}
        properties = {f"p{n}": {"type": "array", "items": {"$ref": "#/$defs/large"}} for n in range(200)}
        tool = OfferedTool(name="f", parameters={"properties": properties, "$defs": {"large": large}})
        with pytest.raises(InvalidArgument, match=r"The tool f: .*describe fewer"):
            accepts(models["coder"], "", tools=[tool])

    def test_that_a_tool_does_not_ask_to_be_strict_is_held_to_as_far_as_it_goes(self, models: dict[str, Model]) -> None:
        parameters = {"type": "object", "properties": {"a": {"type": "string", "pattern": "x+"}}}
        tool = OfferedTool(name="f", parameters=parameters)
        text = "<tool_call>\n<function=f>\n<parameter=a>\ny\n</parameter>\n</function>\n</tool_call>"
        assert accepts(models["coder"], text, tools=[tool])


class TestPythonsQuotationMarks:
    def test_are_those_of_json_in_answers(self) -> None:
        tokenizer = tool_templates.tokenizer("pythonic")
        tokenizer.chat_template = tokenizer.chat_template.replace(
            "value | tojson", '"\'" + value + "\'" if value is string else value | tojson'
        )
        model = tiny.model(tokenizer=tokenizer)
        form = form_of(model)
        assert form.parameters is not None
        assert (form.parameters.assign, form.parameters.more, form.closing) == ("=", ", ", ")]")
        text = '[forecast(city="it\'s, \\"Rome\\")]", days=2, exact=True)]'
        assert accepts(model, text)
        assert json.loads(read(form, text, 2)[1][0][1]) == {"city": 'it\'s, "Rome")]', "days": 2, "exact": True}

    def test_may_stand_around_every_value(self) -> None:
        tokenizer = tool_templates.tokenizer("marked")
        tokenizer.chat_template = (
            tokenizer.chat_template.replace("|>[{%", "|>{%")
            .replace("%}]{%", "%}{%")
            .replace("{{ f.name }}(", "{{ f.name }}.call(")
            .replace("{{ key }}=", '{{ key }}="')
            .replace("value | tojson }}", 'value }}"')
        )
        model = tiny.model(tokenizer=tokenizer)
        text = '<|python_tag|>forecast.call(city="Rome, Via (a=1)", days="2", exact="False")'
        assert accepts(model, text)
        assert json.loads(read(form_of(model), text, 3)[1][0][1]) == {
            "city": "Rome, Via (a=1)",
            "days": 2,
            "exact": False,
        }


class TestArgumentsThatHaveToBeText:
    def test_are_shown_in_earlier_turns(self, models: dict[str, Model]) -> None:
        text = written(models["deepseek"], [("forecast", ARGUMENTS[0])])
        assert text == (
            '<|calls|><|call|>function<|sep|>forecast\n```json\n{"city": "Rome", "days": 3}\n```<|end|><|calls_end|>'
        )


class TestAnIdThatTheModelWrites:
    def test_is_that_of_the_call(self, models: dict[str, Model]) -> None:
        text = '[TOOL_CALLS]forecast[CALL_ID]aB3456789[ARGS]{"city": "Rome", "days": 3}'
        assert accepts(models["ids"], text)
        assert not accepts(models["ids"], text.replace("aB3456789", "aB"))
        reader = ToolCallReader(form_of(models["ids"]), TOOLS)
        for character in text:
            reader.add(character)
        assert [(call.id, call.name, call.complete) for call in reader.calls] == [("aB3456789", "forecast", True)]


class TestHarmony:
    def test_is_not_a_form_that_calls_are_read_in(self) -> None:
        assert tool_call_format(tool_templates.tokenizer("harmony")) is None


def test_schemas_of_the_tests_are_what_they_seem() -> None:
    for arguments in ARGUMENTS:
        jsonschema.validate(arguments, SCHEMA)
