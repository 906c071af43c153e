"""What ``POST /v1/responses`` takes, in OpenAI's schema, and the chat that it comes to."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationError, model_validator

from poise.errors import RequestError
from poise.serve.request_faults import fault
from poise.serve.requests import ChatCompletionRequest, ReasoningEffort, ServedPoiseField
from poise.serve.response_items import (
    FunctionCallItem,
    FunctionCallOutputItem,
    InputMessage,
    ItemReference,
    ReasoningItem,
    chat_messages,
)
from poise.serve.tool_requests import FunctionName, kind_of_choice
from poise.settings import placed_fault
from poise.steer.request_field import RequestName, RequestText, StrictRequest

__all__ = ["CreateResponse", "as_chat", "in_its_words"]

STATELESS = (
    "Nothing is stored here: send the items of earlier turns in input, with store=false (of the AI SDK "
    "providerOptions.openai.store)"
)
FIELDS = {
    r"messages\b.*": "input",
    r"tools\.(\d+)\.function": r"tools.\1",
    r"response_format(\.json_schema)?": "text.format",
    "reasoning_effort": "reasoning.effort",
    "chat_template_kwargs": "reasoning.effort",
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
}
"""How fields of a chat begin, and what they are here."""


def _item_kind(item: Any) -> str:
    """Which item of the input it is: one without a type is a message."""
    return str(item.get("type") or "message") if isinstance(item, dict) else "message"


InputItem = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionCallOutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")]
    | Annotated[ItemReference, Tag("item_reference")],
    Discriminator(_item_kind),
]


class ResponseTool(StrictRequest):
    """A function that the model may call; functions are the only tools."""

    type: Literal["function"]
    name: FunctionName
    description: RequestText | None = None
    parameters: dict[str, Any] | None = Field(
        None, description="JSON Schema of its arguments; without one, any object."
    )
    strict: bool | None = None


class ChosenFunction(StrictRequest):
    """A tool by its name."""

    type: Literal["function"]
    name: FunctionName


class ChosenSubset(StrictRequest):
    """Of the tools those that may be called."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[ChosenFunction] = Field(min_length=1, max_length=128)


ResponseToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("word")]
    | Annotated[ChosenFunction, Tag("function")]
    | Annotated[ChosenSubset, Tag("allowed_tools")],
    Discriminator(kind_of_choice),
]


class PlainFormat(StrictRequest):
    """Text of any form, or a JSON object."""

    type: Literal["text", "json_object"]


class SchemaFormat(StrictRequest):
    """JSON of a schema."""

    type: Literal["json_schema"]
    name: RequestText = Field(min_length=1, max_length=64)
    json_schema: dict[str, Any] = Field(alias="schema")
    description: RequestText | None = Field(None, max_length=4000)
    strict: bool | None = None


class TextSettings(StrictRequest):
    """Of the answer's text."""

    format: Annotated[PlainFormat | SchemaFormat, Field(discriminator="type")] | None = None
    verbosity: Literal["medium"] | None = Field(None, description="Not supported; may only be medium.")


class ReasoningSettings(StrictRequest):
    """Of the thought before the answer."""

    effort: ReasoningEffort | None = Field(None, description="Think first, as much as the template has levels for.")
    summary: Literal["auto", "concise", "detailed"] | None = Field(
        None, description="Accepted without effect: thoughts are given as they are."
    )


class ResponseStreamOptions(StrictRequest):
    """Of a streamed answer."""

    include_obfuscation: bool = Field(False, description="Accepted without effect: nothing is padded here.")


class CreateResponse(StrictRequest):
    """``POST /v1/responses``: one answer to the items of its input; nothing is kept between requests."""

    model: RequestName
    input: RequestText | Annotated[list[InputItem], Field(min_length=1, max_length=1000, fail_fast=True)]
    instructions: RequestText | None = Field(None, description="A system prompt before all of the input.")
    max_output_tokens: int | None = Field(None, ge=1, le=10_000_000)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    stream: bool = False
    stream_options: ResponseStreamOptions | None = None
    tools: list[ResponseTool] = Field(default=[], max_length=128)
    tool_choice: ResponseToolChoice | None = None
    parallel_tool_calls: bool = True
    text: TextSettings = Field(default_factory=TextSettings)
    reasoning: ReasoningSettings = Field(default_factory=ReasoningSettings)
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] = Field(
        default=[],
        max_length=8,
        description="`message.output_text.logprobs`; encrypted thoughts are accepted without effect: they are given.",
    )
    top_logprobs: int = Field(0, ge=0, le=20)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, description="Seed of the answer, as in chat completions.")
    store: bool | None = Field(None, description="Not supported; may only be false, and is that where it is not given.")
    previous_response_id: str | None = Field(None, description="Not supported: nothing is stored.")
    conversation: Any = Field(None, description="Not supported: nothing is stored.")
    background: Literal[False] | None = Field(None, description="Not supported; may only be false.")
    truncation: Literal["disabled"] | None = Field(None, description="Not supported; may only be disabled.")
    user: RequestText | None = Field(None, max_length=1000, description="Accepted without effect, and not kept.")
    safety_identifier: RequestText | None = Field(None, max_length=1000, description="Accepted, like `user`.")
    prompt_cache_key: RequestText | None = Field(None, max_length=1000, description="Accepted, like `user`.")
    metadata: dict[RequestName, Annotated[RequestText, Field(max_length=512)]] | None = Field(
        None, max_length=16, description="Given back in the answer."
    )
    service_tier: Literal["auto", "default", "flex", "scale", "priority"] | None = Field(
        None, description="Accepted without effect: there is one."
    )
    poise: ServedPoiseField | None = None

    @model_validator(mode="after")
    def _calls_answered(self) -> CreateResponse:
        called: set[str] = set()
        for place, item in enumerate(self.input if isinstance(self.input, list) else ()):
            if isinstance(item, FunctionCallItem):
                called.add(item.call_id)
            elif isinstance(item, FunctionCallOutputItem) and item.call_id not in called:
                text = f"is {item.call_id!r}, a call that no item before it has"
                raise placed_fault(text, "input", place, "call_id")
        return self

    @property
    def wants_logprobs(self) -> bool:
        """Whether log-probabilities are given beside the text."""
        return bool(self.top_logprobs) or "message.output_text.logprobs" in self.include


def as_chat(body: CreateResponse) -> ChatCompletionRequest:
    """The chat that a request comes to.

    Raises:
        RequestError: it cannot be one; names the field.
    """
    _check_nothing_stored(body)
    chat: dict[str, Any] = {
        "model": body.model,
        "messages": chat_messages(body.input, body.instructions),
        "temperature": body.temperature,
        "top_p": body.top_p,
        "max_completion_tokens": body.max_output_tokens,
        "seed": body.seed,
        "logprobs": body.wants_logprobs,
        "top_logprobs": body.top_logprobs,
        "reasoning_effort": body.reasoning.effort,
        "poise": None if body.poise is None else body.poise.model_dump(exclude_unset=True),
    }
    if body.tools:
        chat["tools"] = [{"type": "function", "function": _without_nulls(tool, "type")} for tool in body.tools]
        chat["tool_choice"] = _tool_choice(body.tool_choice)
        chat["parallel_tool_calls"] = body.parallel_tool_calls
    elif body.tool_choice is not None:
        chat["tool_choice"] = _tool_choice(body.tool_choice)
    if isinstance(body.text.format, SchemaFormat):
        schema = _without_nulls(body.text.format, "type")
        chat["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif body.text.format is not None and body.text.format.type != "text":
        chat["response_format"] = {"type": body.text.format.type}
    try:
        return ChatCompletionRequest.model_validate(chat)
    except ValidationError as error:
        faults: list[Any] = list(error.errors(include_url=False))
        raise in_its_words(fault([{**each, "loc": ("body", *each["loc"])} for each in faults], chat)) from error


def _check_nothing_stored(body: CreateResponse) -> None:
    items = body.input if isinstance(body.input, list) else []
    faults = {
        "store": (bool(body.store), "store may only be false."),
        "previous_response_id": (body.previous_response_id is not None, "previous_response_id is not supported."),
        "conversation": (body.conversation is not None, "conversation is not supported."),
        "input": (any(isinstance(item, ItemReference) for item in items), "input refers to an item by its id."),
    }
    for param, (is_there, fault_text) in faults.items():
        if is_there:
            raise RequestError(400, f"{fault_text} {STATELESS}.", code="unsupported", param=param)


def _tool_choice(choice: str | ChosenFunction | ChosenSubset | None) -> Any:
    if isinstance(choice, ChosenFunction):
        return {"type": "function", "function": {"name": choice.name}}
    if isinstance(choice, ChosenSubset):
        tools = [{"type": "function", "function": {"name": tool.name}} for tool in choice.tools]
        return {"type": "allowed_tools", "allowed_tools": {"mode": choice.mode, "tools": tools}}
    return choice


def _without_nulls(model: StrictRequest, *omitted: str) -> dict[str, Any]:
    return model.model_dump(by_alias=True, exclude_none=True, exclude=set(omitted))


def in_its_words(error: RequestError) -> RequestError:
    """A fault of a chat, with the field that it has here."""
    body = error.body["error"]
    param, message = body["param"], body["message"]
    begins = next((pattern for pattern in FIELDS if re.match(rf"{pattern}(\.|$)", param or "")), None)
    if begins is None:
        return error
    field = re.sub(rf"^{begins}", FIELDS[begins], param)
    message = message.replace(param, field, 1)
    return RequestError(error.status, message, code=body["code"], param=field, headers=error.headers)
