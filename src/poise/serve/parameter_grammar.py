"""The grammar of calls whose arguments are written one at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence

from poise.engine.grammar import json_options
from poise.errors import InvalidArgument
from poise.model.tool_format import ToolCallFormat
from poise.model.tool_parameters import ParameterFormat
from poise.serve.offered_tools import OfferedTool, ToolParameter

__all__ = ["grammar_literal", "parameter_rules"]

MOST_GRAMMAR = 1_000_000  # characters: the schema of each value stands there by itself, with all that it refers to
VALUE_TEXT = r"/(.|\n)*/"


def grammar_literal(text: str, special: Mapping[str, int]) -> str:
    """A text in a grammar: special tokens by their numbers, all else between quotation marks."""
    marks = sorted((mark for mark in special if mark in text), key=len, reverse=True)
    pieces = re.split("(" + "|".join(map(re.escape, marks)) + ")", text) if marks else [text]
    return " ".join(f"<[{special[one]}]>" if one in special else json.dumps(one) for one in pieces if one)


def parameter_rules(
    call_format: ToolCallFormat,
    form: ParameterFormat,
    tools: Sequence[OfferedTool],
    *,
    parallel: bool,
    special: Mapping[str, int],
) -> list[str]:
    """Rules for ``calls``: all that may stand from the first call's name to the end of the last.

    A parameter may be left out where it is not required; they stand in the order of the tool's properties. What of a
    text's schema is no choice between listed values is not kept to.

    Raises:
        InvalidArgument: a tool's parameters cannot be written so; names the tool.
    """

    def literal(text: str) -> str:
        return grammar_literal(text, special)

    following = [call_format.closing]
    if parallel and call_format.between is not None:
        following.append(call_format.between)
    ends = [literal(text) + (" calls" if number else "") for number, text in enumerate(following)]
    behind = [form.end + text for text in following]
    after_value = [literal(text[len(form.stop) :]) + (" calls" if n else "") for n, text in enumerate(behind)]
    rules = [
        "calls: " + " | ".join(f"call_{number}" for number in range(len(tools))),
        "ends: " + " | ".join(f"{literal(form.bare)} {end}".strip() or '""' for end in ends),
        "done: " + " | ".join(end or '""' for end in after_value),
    ]
    for number, tool in enumerate(tools):
        parameters = tool.listed_parameters(form)
        rules.append(f"call_{number}: {literal(tool.name)} none_{number}_0")
        for place, parameter in enumerate(parameters):
            here, onward = f"{number}_{place}", f"{number}_{place + 1}"
            skipped = "" if parameter.required else f" | none_{onward}"
            name = parameter.name + form.assign
            rules.append(f"none_{here}: {literal(form.first + name)} value_{here} some_{onward}{skipped}")
            skipped = "" if parameter.required else f" | some_{onward}"
            more = form.more[len(form.stop) :]
            rules.append(f"some_{here}: {literal(more + name)} value_{here} some_{onward}{skipped}")
            rules += _value_rules(f"value_{here}", parameter, form, literal, strict=tool.strict)
        rules += [f"none_{number}_{len(parameters)}: ends", f"some_{number}_{len(parameters)}: done"]
        if sum(map(len, rules)) > MOST_GRAMMAR:
            raise InvalidArgument(
                f"The tool {tool.name}: this model writes arguments one at a time, and its parameters are too many, or "
                "refer to too much, to be held to so; describe fewer."
            )
    return rules


def _value_rules(
    rule: str, parameter: ToolParameter, form: ParameterFormat, literal: Callable[[str], str], *, strict: bool
) -> list[str]:
    """What a value may be, up to and with the text at which values end."""
    stop = literal(form.stop)
    if parameter.choices is not None:
        words = [literal(word) or '""' for word in parameter.written_choices(form)]
        return [f"{rule}: ({' | '.join(words)}) {stop}"]
    if form.stop and "string" in parameter.types:
        lazy = "" if stop.startswith("<") else "[lazy]"
        return [f"{rule}{lazy}: {VALUE_TEXT} {stop}"]
    words = [literal(word) for name, word in form.literals.items() if word != name and _may_be(name, parameter)]
    schema = f"%json {json_options(parameter.schema, lenient=not strict)}"
    return [f"{rule}: ({' | '.join([f'{rule}_json', *words])}) {stop}", f"{rule}_json: {schema}"]


def _may_be(word: str, parameter: ToolParameter) -> bool:
    return ("null" if word == "null" else "boolean") in parameter.types
