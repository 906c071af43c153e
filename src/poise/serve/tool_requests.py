"""What a request says of tools and of the form of its answer, in OpenAI's schema."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag

from poise.steer.request_field import RequestText, StrictRequest, check_characters

__all__ = [
    "AllowedTools",
    "ArgumentsText",
    "CallID",
    "CalledFunction",
    "FunctionName",
    "FunctionTool",
    "JSONObjectFormat",
    "JSONSchemaFormat",
    "NamedTool",
    "TextFormat",
    "ToolCallMessage",
    "ToolChoice",
    "kind_of_choice",
]


FunctionName = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-zA-Z0-9_.-]+$")]
CallID = Annotated[RequestText, Field(min_length=1, max_length=200)]
Schema = dict[str, Any]
HALF_ESCAPED = re.compile(r"\\u[dD][89a-fA-F]")


def _complete_when_parsed(text: str) -> str:
    """Templates show arguments as they parse, with every character that is escaped in them."""
    if HALF_ESCAPED.search(text):
        try:
            parsed = json.loads(text)
        except (ValueError, RecursionError):  # which templates show as it is
            return text
        check_characters(json.dumps(parsed, ensure_ascii=False))
    return text


def kind_of_choice(choice: Any) -> str:
    """Which of its shapes a choice of tools has, so that it is not judged by another's fields."""
    if isinstance(choice, dict):
        return "allowed_tools" if choice.get("type") == "allowed_tools" else "function"
    return "word" if isinstance(choice, str) or choice is None else str(getattr(choice, "type", "word"))


ArgumentsText = Annotated[RequestText, AfterValidator(_complete_when_parsed)]


class FunctionDefinition(StrictRequest):
    """A function that the model may call."""

    name: FunctionName
    description: RequestText | None = None
    parameters: Schema | None = Field(None, description="JSON Schema of its arguments; without one, any object.")
    strict: bool = Field(False, description="Refuse parameters that cannot be kept to, instead of skipping those.")


class FunctionTool(StrictRequest):
    """A tool; functions are the only kind."""

    type: Literal["function"]
    function: FunctionDefinition


class FunctionChoice(StrictRequest):
    """A function by its name."""

    name: FunctionName


class NamedTool(StrictRequest):
    """The one tool that has to be called."""

    type: Literal["function"]
    function: FunctionChoice


class ToolSubset(StrictRequest):
    """Of the tools those that may be called."""

    mode: Literal["auto", "required"]
    tools: list[NamedTool] = Field(min_length=1, max_length=128)


class AllowedTools(StrictRequest):
    """Fewer tools than the prompt shows."""

    type: Literal["allowed_tools"]
    allowed_tools: ToolSubset


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("word")]
    | Annotated[NamedTool, Tag("function")]
    | Annotated[AllowedTools, Tag("allowed_tools")],
    Discriminator(kind_of_choice),
]


class CalledFunction(StrictRequest):
    """The function of a call, and its arguments as JSON."""

    name: FunctionName
    arguments: ArgumentsText


class ToolCallMessage(StrictRequest):
    """A call in an earlier turn of the assistant."""

    id: CallID
    type: Literal["function"] = "function"
    function: CalledFunction


class TextFormat(StrictRequest):
    """The format that answers have anyway."""

    type: Literal["text"]


class JSONObjectFormat(StrictRequest):
    """The answer is a JSON object."""

    type: Literal["json_object"]


class NamedSchema(StrictRequest):
    """A schema, its name, and what it is for."""

    name: RequestText = Field(max_length=64)
    description: RequestText | None = Field(None, max_length=4000)
    json_schema: Schema = Field(alias="schema", description="JSON Schema; keywords that cannot be kept to are refused.")
    strict: bool = Field(True, description="Accepted without effect: answers always fit the schema.")


class JSONSchemaFormat(StrictRequest):
    """The answer is JSON that fits a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema
