"""The form of an answer: words, JSON of a schema, or calls of tools; and the grammar that holds it to that."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from poise.data.messages import Message
from poise.engine.grammar import Grammar, grammar_compiler
from poise.errors import InvalidArgument, RequestError, UserError
from poise.model import Model
from poise.model.tool_format import CALL_ID_LENGTH, ToolCallFormat, tool_call_format
from poise.serve.offered_tools import OfferedTool
from poise.serve.tool_calls import ToolCallReader
from poise.serve.tool_grammar import tool_grammar
from poise.serve.tool_requests import (
    AllowedTools,
    FunctionTool,
    JSONObjectFormat,
    JSONSchemaFormat,
    NamedTool,
    TextFormat,
    ToolChoice,
)

__all__ = [
    "AnswerForm",
    "answer_form",
    "check_tool_history",
    "check_tools_shown",
    "template_call_id",
    "template_tools",
]

NO_TOOLS = (
    "This model's chat template has no tools, or writes calls in a form that is not supported; leave {0} out, or serve "
    "a model whose template has them, such as Qwen2.5, Llama 3 or Mistral."
)
TEMPLATE_ID = re.compile(rf"[a-zA-Z0-9]{{{CALL_ID_LENGTH}}}")
ResponseFormat = TextFormat | JSONObjectFormat | JSONSchemaFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerForm:
    """What an answer may be.

    Attributes:
        grammar: What it is held to; ``None`` for nothing.
        tools: Definitions of tools as the template takes them.
        callable_tools: Those that may be called.
        call_format: How calls are written; ``None`` where there can be none.
    """

    grammar: Grammar | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    callable_tools: tuple[OfferedTool, ...] = ()
    call_format: ToolCallFormat | None = None

    def reader(self) -> ToolCallReader | None:
        """What tells an answer's calls from its words; ``None`` where there can be none."""
        return ToolCallReader(self.call_format, self.callable_tools) if self.call_format else None

    @property
    def shown(self) -> Mapping[int, str]:
        """Texts of tokens that belong to calls and that the tokenizer would decode to nothing."""
        return self.call_format.marks if self.call_format else {}


def answer_form(
    model: Model,
    *,
    tools: Sequence[FunctionTool] = (),
    choice: ToolChoice | None = None,
    parallel: bool = True,
    response_format: ResponseFormat | None = None,
    may_think: bool = False,
) -> AnswerForm:
    """What a request's answer may be.

    Args:
        model: The model that answers.
        tools: Tools of the request; with the choice ``none`` it is as if there were none.
        choice: Which of them may or must be called; ``auto`` by default.
        parallel: Whether one answer may have several calls; of a named function there is one.
        response_format: What the answer is where it calls nothing.
        may_think: Whether a thought may come before it.

    Raises:
        RequestError: the template has no tools, a tool is not there, or a schema cannot be kept to; names the field.
    """
    schema = _schema(response_format)
    allowed, required = _callable_tools(tools, choice)
    if not allowed:
        grammar = None if schema is None else _schema_grammar(model, response_format, schema, blank=may_think)
        return AnswerForm(grammar=grammar)
    call_format = tool_call_format(model.tokenizer)
    if call_format is None:
        raise RequestError(400, NO_TOOLS.format("tools"), code="tools_unsupported", param="tools")
    if schema is not None and not call_format.trigger and not required:
        text = "This model writes its calls without a mark, so that response_format and tools cannot both be given."
        raise RequestError(400, text, code="unsupported", param="response_format")
    offered = [
        OfferedTool(
            name=tool.function.name,
            parameters=tool.function.parameters or {"type": "object"},
            strict=tool.function.strict,
        )
        for tool in allowed
    ]
    try:
        compiler = grammar_compiler(model)
        grammar = tool_grammar(
            compiler,
            call_format,
            offered,
            required=required,
            parallel=parallel and not isinstance(choice, NamedTool),
            reply=schema,
            blank=may_think,
            special=compiler.special,
        )
    except UserError as error:
        raise RequestError(400, str(error), code="invalid_schema", param="tools") from error
    return AnswerForm(
        grammar=grammar,
        tools=template_tools(tools, choice),
        callable_tools=tuple(offered),
        call_format=call_format,
    )


def template_tools(tools: Sequence[FunctionTool], choice: ToolChoice | None = None) -> tuple[dict[str, Any], ...]:
    """All tools as templates take them; none where none may be called."""
    return () if choice == "none" else tuple(_template_tool(tool) for tool in tools)


def _template_tool(tool: FunctionTool) -> dict[str, Any]:
    """A tool as templates take it."""
    function = tool.function
    described = {} if function.description is None else {"description": function.description}
    parameters = function.parameters or {"type": "object", "properties": {}}
    return {"type": "function", "function": {"name": function.name, **described, "parameters": parameters}}


def _callable_tools(tools: Sequence[FunctionTool], choice: ToolChoice | None) -> tuple[Sequence[FunctionTool], bool]:
    """The tools that may be called, and whether one must be."""
    if choice == "none":
        return (), False
    if choice is None or isinstance(choice, str):
        if choice == "required" and not tools:
            raise RequestError(400, "tool_choice is required, and there are no tools; give some.", param="tool_choice")
        return tools, choice == "required"
    subset = [choice] if isinstance(choice, NamedTool) else choice.allowed_tools.tools
    names = {tool.function.name for tool in subset}
    if missing := sorted(names - {tool.function.name for tool in tools}):
        raise RequestError(400, f"tool_choice names {missing[0]!r}, which is not among the tools.", param="tool_choice")
    allowed = [tool for tool in tools if tool.function.name in names]
    return allowed, not isinstance(choice, AllowedTools) or choice.allowed_tools.mode == "required"


def _schema(response_format: ResponseFormat | None) -> Mapping[str, Any] | None:
    if isinstance(response_format, JSONSchemaFormat):
        return response_format.json_schema.json_schema
    return {"type": "object"} if isinstance(response_format, JSONObjectFormat) else None


def _schema_grammar(
    model: Model, response_format: ResponseFormat | None, schema: Mapping[str, Any], *, blank: bool
) -> Grammar:
    by_schema = isinstance(response_format, JSONSchemaFormat)
    param = "response_format.json_schema.schema" if by_schema else "response_format"
    try:
        return grammar_compiler(model).json_schema(schema, blank=blank)
    except InvalidArgument as error:
        raise RequestError(400, str(error), code="invalid_schema", param=param) from error
    except UserError as error:
        raise RequestError(400, str(error), code="unsupported", param="response_format") from error


def check_tool_history(messages: Sequence[Message], model: Model) -> None:
    """Refuse calls and results in earlier turns that the template cannot show.

    Raises:
        RequestError: it has no tools.
    """
    calls = any(message["role"] == "tool" or message.get("tool_calls") for message in messages)
    if calls and tool_call_format(model.tokenizer) is None:
        text = NO_TOOLS.format("messages of tools and calls of earlier turns")
        raise RequestError(400, text, code="tools_unsupported", param="messages")


def check_tools_shown(prompt: str, form: AnswerForm) -> None:
    """Refuse a prompt in which the template has left tools out, as it does where it cannot take a definition.

    Raises:
        RequestError: names the tool.
    """
    for tool in form.tools:
        if (name := tool["function"]["name"]) not in prompt:
            text = f"This model's chat template cannot show the tool {name!r} with these definitions; simplify them."
            raise RequestError(400, text, code="invalid_prompt", param="tools")


def template_call_id(call_id: str) -> str:
    """A call's id as every template takes it: as it is where it was made here, else one that goes with it."""
    if TEMPLATE_ID.fullmatch(call_id):
        return call_id
    return hashlib.sha256(call_id.encode()).hexdigest()[:CALL_ID_LENGTH]
