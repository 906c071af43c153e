"""The grammar of an answer that may call tools: words, and calls as the model's template writes them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from poise.engine.grammar import ANNOTATIONS, Grammar, GrammarCompiler, check_schema, json_options
from poise.engine.schema_faults import schema_fault
from poise.errors import InvalidArgument
from poise.model.tool_format import CALL_ID_LENGTH, ID_PLACE, ToolCallFormat
from poise.serve.offered_tools import OfferedTool
from poise.serve.parameter_grammar import grammar_literal, parameter_rules

__all__ = ["tool_grammar"]

MOST_KEYWORDS = 16  # that are tried to find the one at fault
MOST_PARAMETERS = 262_144  # characters of all schemas of a request
ANY_WORDS = r"/(.|\n)*/"
WORDS_WITHOUT = r"/[^{} \n](.|\n)*/"  # that do not begin as calls do
BLANK = r"/[ \n]{0,4}/"


def tool_grammar(
    compiler: GrammarCompiler,
    call_format: ToolCallFormat,
    tools: Sequence[OfferedTool],
    *,
    required: bool,
    parallel: bool,
    reply: Mapping[str, Any] | None = None,
    blank: bool = False,
    special: Mapping[str, int],
) -> Grammar:
    """What an answer may be that may call these tools.

    Args:
        compiler: The model's.
        call_format: How its template writes calls.
        tools: At least one.
        required: Whether the answer is nothing but calls.
        parallel: Whether there may be more than one call.
        reply: JSON Schema of an answer without calls; ``None`` for any words, before calls too.
        blank: Whether blanks may come before calls, as after a thought.
        special: Tokens by their texts that no text is made of.

    Raises:
        InvalidArgument: the parameters of a tool cannot be kept to; names the tool and the keyword.
    """

    form = call_format
    if (size := sum(len(json.dumps(tool.parameters)) for tool in tools)) > MOST_PARAMETERS:
        raise InvalidArgument(
            f"The parameters of the tools have {size} characters of JSON together; at most {MOST_PARAMETERS} are taken."
        )
    for tool in tools:
        check_schema(tool.parameters)
    if form.parameters is None:
        rules = _object_rules(form, tools, parallel=parallel, special=special)
    else:
        _check_faults(compiler, tools)
        rules = parameter_rules(form, form.parameters, tools, parallel=parallel, special=special)
    start = _start_rules(form, required=required, reply=reply, blank=blank, special=special)
    try:
        return compiler.lark("\n".join([*start, *rules]))
    except InvalidArgument as error:
        _check_faults(compiler, tools)
        raise InvalidArgument(
            f"The tools are too many or too large to be kept to together: {error}; offer fewer."
        ) from error


def _object_rules(
    form: ToolCallFormat, tools: Sequence[OfferedTool], *, parallel: bool, special: Mapping[str, int]
) -> list[str]:
    """Rules for ``calls`` whose arguments are a JSON object."""
    rules = []
    for number, tool in enumerate(tools):
        rules.append(f"arguments_{number}: %json {tool.arguments_options}")
        pieces = [grammar_literal(text, special) for text in (tool.name + form.middle).split(ID_PLACE)]
        rules.append(f"call_{number}: {' ID '.join(pieces)} arguments_{number}")
    if ID_PLACE in form.middle:
        rules.append(f"ID: /[a-zA-Z0-9]{{{CALL_ID_LENGTH}}}/")
    rules.append("call: " + " | ".join(f"call_{number}" for number in range(len(tools))))
    more = f"({grammar_literal(form.between, special)} call)*" if parallel and form.between is not None else ""
    return [*rules, f"calls: call {more} {grammar_literal(form.closing, special)}".strip()]


def _start_rules(
    form: ToolCallFormat,
    *,
    required: bool,
    reply: Mapping[str, Any] | None,
    blank: bool,
    special: Mapping[str, int],
) -> list[str]:
    """Where in an answer ``calls`` may stand."""
    opening, lead = grammar_literal(form.opening, special), "BLANK " if blank else ""
    if required:
        return [f"start: {lead}{opening} calls", f"BLANK: {BLANK}"]
    if reply is not None:
        return [
            f"start: {lead}{opening} calls | {lead}reply",
            f"BLANK: {BLANK}",
            f"reply: %json {json_options(reply)}",
        ]
    if not form.trigger:
        return [f"start: {opening} calls | TEXT |", f"TEXT: {WORDS_WITHOUT.format(re.escape(form.opening[:1]))}"]
    trigger = grammar_literal(form.trigger, special)
    behind = grammar_literal(form.opening.partition(form.trigger)[2], special) + " calls"
    if form.trigger in special:
        return [f"start: TEXT | TEXT {trigger} {behind}", f"TEXT: {ANY_WORDS}"]
    return [f"start: head {behind} | TEXT", f"head[lazy]: TEXT {trigger}", f"TEXT: {ANY_WORDS}"]


def _check_faults(compiler: GrammarCompiler, tools: Sequence[OfferedTool]) -> None:
    """Refuse the tool whose parameters no object fits, or cannot be kept to.

    Raises:
        InvalidArgument: names it.
    """
    for tool in tools:
        options = json_options(tool.parameters, lenient=not tool.strict)
        if fault := _compile_fault(compiler, options):
            raise InvalidArgument(f"The tool {tool.name}: {schema_fault(json.loads(options), fault)}")
        if _compile_fault(compiler, tool.arguments_options):
            raise InvalidArgument(tool.excludes_objects(_excluding_keyword(compiler, tool)))


def _excluding_keyword(compiler: GrammarCompiler, tool: OfferedTool) -> str | None:
    """The keyword of a tool's parameters without which an object would fit them."""
    for keyword in [name for name in tool.parameters if name not in ANNOTATIONS][:MOST_KEYWORDS]:
        fewer = {name: value for name, value in tool.parameters.items() if name != keyword}
        if not _compile_fault(compiler, replace(tool, parameters=fewer).arguments_options):
            return keyword
    return None


def _compile_fault(compiler: GrammarCompiler, options: str) -> str:
    """Why there is no JSON of a schema; empty where there is."""
    try:
        compiler.lark(f"start: %json {options}")
    except InvalidArgument as error:
        return str(error)
    return ""
