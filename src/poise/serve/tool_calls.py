"""Calls of tools in an answer: what the answer may be, and the calls in it, told apart while it comes.

An answer with tools is held to its template's format, so that whatever follows the mark of a call is one: a name that
was offered, and arguments that fit its parameters. Only the end of the tokens can cut it short.
"""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from poise.engine.grammar import ANNOTATIONS, Grammar, GrammarCompiler, check_schema, json_options
from poise.engine.schema_faults import schema_fault
from poise.errors import InvalidArgument
from poise.model.tool_format import CALL_ID_LENGTH, ToolCallFormat

__all__ = ["CallDelta", "OfferedTool", "ToolCall", "ToolCallReader", "tool_grammar"]

MOST_KEYWORDS = 16  # that are tried to find the one at fault
MOST_PARAMETERS = 262_144  # characters of all schemas of a request
ANY_WORDS = r"/(.|\n)*/"
WORDS_WITHOUT_BRACE = r"/[^{ \n](.|\n)*/"
BLANK = r"/[ \n]{0,4}/"
OTHER_TYPES = ("array", "boolean", "integer", "null", "number", "string")


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferedTool:
    """A function that the model may call.

    Attributes:
        name: Name that calls use.
        parameters: JSON Schema of its arguments, which are an object whatever else it allows.
        strict: Whether a schema that cannot be kept to is refused; else what of it cannot be kept to is skipped.
    """

    name: str
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object"})
    strict: bool = False

    @property
    def arguments_options(self) -> str:
        """What its arguments are held to, as text.

        Raises:
            InvalidArgument: the type that the parameters have is none of an object's.
        """
        schema, types = self.parameters, self.parameters.get("type", "object")
        types = [types] if isinstance(types, str) else types
        if isinstance(types, list) and "object" in types:
            schema = {**schema, "type": "object"}
        elif isinstance(types, list) and all(isinstance(name, str) and name in OTHER_TYPES for name in types):
            raise InvalidArgument(self.excludes_objects("type"))
        return json_options(schema, lenient=not self.strict)

    def excludes_objects(self, keyword: str | None) -> str:
        """What is wrong with parameters that no object fits, because of this keyword where one is to blame."""
        reason = f" because of their keyword {keyword}" if keyword else ""
        return (
            f"The tool {self.name}: no JSON object fits its parameters{reason}, and arguments are always one; write "
            "what the function takes as properties of an object."
        )


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

    def literal(text: str) -> str:
        return _grammar_literal(text, special)

    form, rules = call_format, []
    if (size := sum(len(json.dumps(tool.parameters)) for tool in tools)) > MOST_PARAMETERS:
        raise InvalidArgument(
            f"The parameters of the tools have {size} characters of JSON together; at most {MOST_PARAMETERS} are taken."
        )
    for number, tool in enumerate(tools):
        check_schema(tool.parameters)
        rules.append(f"arguments_{number}: %json {tool.arguments_options}")
        rules.append(f"call_{number}: {literal(tool.name + form.middle)} arguments_{number}")
    rules.append("call: " + " | ".join(f"call_{number}" for number in range(len(tools))))
    more = f"({literal(form.between)} call)*" if parallel and form.between is not None else ""
    calls = f"call {more} {literal(form.closing)}".strip()
    lead = "BLANK " if blank else ""
    if required:
        rules.insert(0, f"start: {lead}{literal(form.opening)} {calls}\nBLANK: {BLANK}")
    elif reply is not None:
        rules.insert(0, f"start: {lead}{literal(form.opening)} {calls} | {lead}reply\nBLANK: {BLANK}")
        rules.append(f"reply: %json {json_options(reply)}")
    elif not form.trigger:
        rules.insert(0, f"start: {literal(form.opening)} {calls} | TEXT |\nTEXT: {WORDS_WITHOUT_BRACE}")
    else:
        behind = form.opening[form.opening.index(form.trigger) + len(form.trigger) :]
        behind = f"{literal(behind)} {calls}" if behind else calls
        if form.trigger in special:
            head = f"start: TEXT | TEXT {literal(form.trigger)} {behind}"
        else:
            head = f"start: head {behind} | TEXT\nhead[lazy]: TEXT {literal(form.trigger)}"
        rules.insert(0, f"{head}\nTEXT: {ANY_WORDS}")
    try:
        return compiler.lark("\n".join(rules))
    except InvalidArgument as error:
        raise InvalidArgument(_tool_fault(compiler, tools, str(error))) from error


def _tool_fault(compiler: GrammarCompiler, tools: Sequence[OfferedTool], reason: str) -> str:
    for tool in tools:
        options = json_options(tool.parameters, lenient=not tool.strict)
        if fault := _compile_fault(compiler, options):
            return f"The tool {tool.name}: {schema_fault(json.loads(options), fault)}"
        if _compile_fault(compiler, tool.arguments_options):
            return tool.excludes_objects(_excluding_keyword(compiler, tool))
    return f"The tools are too many or too large to be kept to together: {reason}; offer fewer."


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


def _grammar_literal(text: str, special: Mapping[str, int]) -> str:
    """A text in a grammar: special tokens by their numbers, all else between quotation marks."""
    marks = sorted((mark for mark in special if mark in text), key=len, reverse=True)
    pieces = re.split("(" + "|".join(map(re.escape, marks)) + ")", text) if marks else [text]
    return " ".join(f"<[{special[one]}]>" if one in special else json.dumps(one) for one in pieces if one)


@dataclass(slots=True, kw_only=True)
class ToolCall:
    """A call as far as it has come.

    Attributes:
        id: Made here: nine letters and digits, as Mistral's templates insist on.
        name: Name of the tool.
        arguments: Arguments as JSON.
        complete: Whether all of its arguments have come.
    """

    id: str
    name: str = ""
    arguments: str = ""
    complete: bool = False

    @property
    def body(self) -> dict[str, Any]:
        """As an assistant's message has it."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclass(frozen=True, slots=True, kw_only=True)
class CallDelta:
    """What a piece of an answer adds to a call; the first one of a call has its id and name.

    Attributes:
        index: Which of the answer's calls, from 0.
        call: Call that it is a piece of.
        arguments: Text that is added to its arguments.
        first: Whether the call begins with it.
    """

    index: int
    call: ToolCall
    arguments: str
    first: bool

    @property
    def body(self) -> dict[str, Any]:
        """As a chunk has it."""
        if not self.first:
            return {"index": self.index, "function": {"arguments": self.arguments}}
        function = {"name": self.call.name, "arguments": self.arguments}
        return {"index": self.index, "id": self.call.id, "type": "function", "function": function}


class ToolCallReader:
    """Tells the calls of one answer from its words, in pieces of any length.

    Args:
        call_format: How calls are written.
        names: Names of the tools.

    Attributes:
        calls: Calls so far.
        begins: Character at which the first call begins, with the blanks before it; ``None`` while there is none.
        settled: Number of characters of which it is known whether they are words or a call.
    """

    def __init__(self, call_format: ToolCallFormat, names: Collection[str]) -> None:
        self.format, self.names = call_format, frozenset(names)
        self.calls: list[ToolCall] = []
        self.begins: int | None = None
        self.settled = 0
        self._text = ""  # of the answer
        self._at = 0  # what of it has been read
        self._state: Literal["text", "name", "arguments", "after", "end"] = "text"
        self._scanner = JSONScanner()

    def add(self, text: str) -> tuple[str, list[CallDelta]]:
        """The words and the pieces of calls that a next piece of the answer brings."""
        self._text += text
        return self._read(last=False)

    def finish(self) -> tuple[str, list[CallDelta]]:
        """No more follows: what may have become a call is words."""
        return self._read(last=True)

    def _read(self, *, last: bool) -> tuple[str, list[CallDelta]]:
        words, deltas = "", list[CallDelta]()
        if self._state == "text":
            words = self._read_words(last=last)
        while self._state != "text" and self._read_call(deltas):
            pass
        self.settled = self._at if self._state == "text" else len(self._text)
        return words, deltas

    def _read_words(self, *, last: bool) -> str:
        """Words up to a call, without the blanks before it."""
        trigger, opening = self.format.trigger, self.format.opening
        if not trigger:
            lead = self._text.lstrip()
            if not last and len(lead) < len(opening) and opening.startswith(lead):
                return ""
            place = len(self._text) - len(lead) if lead.startswith(opening) else -1
            begin, end = place, place + len(opening)
        else:
            place = self._text.find(trigger, self._at)
            begin = place
            end = place - opening.index(trigger) + len(opening) if place >= 0 else 0
        if place >= 0 and len(self._text) < end and not last:
            return self._words_until(len(self._text[:begin].rstrip()))
        if place >= 0 and self._text[begin:end].endswith(opening[-1:]) and len(self._text) >= end:
            words = self._words_until(len(self._text[:begin].rstrip()))
            self.begins, self._at, self._state = self._at, end, "name"
            return words
        until = len(self._text) if last else self._certain(trigger)
        return self._words_until(until)

    def _certain(self, trigger: str) -> int:
        """Up to where words are words, whatever follows."""
        held = max((n for n in range(1, len(trigger)) if self._text.endswith(trigger[:n])), default=0)
        return len(self._text[: len(self._text) - held].rstrip()) if trigger else len(self._text)

    def _words_until(self, end: int) -> str:
        words = self._text[self._at : max(end, self._at)]
        self._at = max(end, self._at)
        return words

    def _read_call(self, deltas: list[CallDelta]) -> bool:
        """Go on in a call; false where more text is needed."""
        if self._state == "name":
            end = self._text.find(self.format.middle, self._at)
            if end < 0:
                return False
            call = ToolCall(id=new_call_id(), name=self._text[self._at : end])
            self.calls.append(call)
            self._at, self._state, self._scanner = end + len(self.format.middle), "arguments", JSONScanner()
            deltas.append(CallDelta(index=len(self.calls) - 1, call=call, arguments="", first=True))
            return True
        if self._state == "arguments":
            piece = self._scanner.take(self._text[self._at :])
            self._at += len(piece)
            call = self.calls[-1]
            call.arguments += piece
            if piece:
                deltas.append(CallDelta(index=len(self.calls) - 1, call=call, arguments=piece, first=False))
            if self._scanner.done:
                call.complete, self._state = True, "after"
            return self._scanner.done
        between = self.format.between
        if self._state == "after" and between and self._text.startswith(between, self._at):
            self._at, self._state = self._at + len(between), "name"
            return True
        return False


def new_call_id() -> str:
    """Nine letters and digits."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(CALL_ID_LENGTH))


class JSONScanner:
    """Finds the end of a JSON object that comes in pieces: arguments are held to be one.

    Attributes:
        done: Whether the end has come.
    """

    def __init__(self) -> None:
        self.done = False
        self._depth = 0
        self._quoted = self._escaped = False

    def take(self, text: str) -> str:
        """What of a next piece belongs to it."""
        for place, character in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._quoted:
                self._escaped = character == "\\"
                self._quoted = character != '"'
            elif character == '"':
                self._quoted = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if not self._depth:
                    self.done = True
                    return text[: place + 1]
        return text
