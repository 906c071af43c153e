"""Items of ``/v1/responses``: those of an input as the messages of a chat, and a chat's answer as output items."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from poise.serve.requests import QUALIFIERS, PartQualifier
from poise.serve.tool_requests import ArgumentsText, CallID, FunctionName
from poise.steer.request_field import RequestText, StrictRequest

__all__ = [
    "FunctionCallItem",
    "FunctionCallOutputItem",
    "InputMessage",
    "ItemReference",
    "ReasoningItem",
    "call_item",
    "chat_messages",
    "message_item",
    "new_item_id",
    "output_items",
    "reasoning_item",
    "text_part",
]

ItemStatus = Literal["in_progress", "completed", "incomplete"]
ItemID = Annotated[RequestText, Field(max_length=1000)]


class InputText(StrictRequest):
    """A part of a message: words of the user's, or of an earlier answer."""

    type: Literal["input_text", "output_text"]
    text: RequestText
    annotations: list[Any] = Field(default=[], max_length=0)
    logprobs: list[Any] = Field(default=[], description="Accepted without effect.")
    qualifiers: list[PartQualifier] = Field(default=[], max_length=2, description=QUALIFIERS)


class InputMessage(StrictRequest):
    """A turn."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: RequestText | Annotated[list[InputText], Field(fail_fast=True)]
    id: ItemID | None = None
    status: ItemStatus | None = None
    phase: RequestText | None = Field(None, max_length=100, description="Accepted without effect.")

    @property
    def words(self) -> str:
        """All of its parts."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)

    @property
    def chat_content(self) -> str | list[dict[str, Any]]:
        """The same for a chat's message, where parts that are marked stay parts."""
        if isinstance(self.content, str) or not any(part.qualifiers for part in self.content):
            return self.words
        return [{"type": "text", "text": part.text, "qualifiers": part.qualifiers} for part in self.content]


class FunctionCallItem(StrictRequest):
    """A call of a function in an earlier answer."""

    type: Literal["function_call"]
    call_id: CallID
    name: FunctionName
    arguments: ArgumentsText
    id: ItemID | None = None
    status: ItemStatus | None = None


class FunctionCallOutputItem(StrictRequest):
    """What a function gave."""

    type: Literal["function_call_output"]
    call_id: CallID
    output: RequestText | Annotated[list[InputText], Field(fail_fast=True)]
    id: ItemID | None = None
    status: ItemStatus | None = None

    @property
    def words(self) -> str:
        """All of its parts."""
        return self.output if isinstance(self.output, str) else "".join(part.text for part in self.output)


class ReasoningText(StrictRequest):
    """A part of a thought."""

    type: Literal["reasoning_text", "summary_text"]
    text: RequestText


class ReasoningItem(StrictRequest):
    """A thought of an earlier answer, which the template shows or drops."""

    type: Literal["reasoning"]
    summary: list[ReasoningText] = Field(default=[], max_length=1000)
    content: list[ReasoningText] = Field(default=[], max_length=1000)
    encrypted_content: Literal[""] | None = Field(None, description="Not supported: thoughts are given as they are.")
    id: ItemID | None = None
    status: ItemStatus | None = None

    @property
    def words(self) -> str:
        """The thought itself, else what sums it up."""
        return "".join(part.text for part in self.content or self.summary)


class ItemReference(StrictRequest):
    """An item that would have been stored."""

    type: Literal["item_reference"]
    id: ItemID


InputItems = Sequence[InputMessage | FunctionCallItem | FunctionCallOutputItem | ReasoningItem | ItemReference]


def chat_messages(items: str | InputItems, instructions: str | None) -> list[dict[str, Any]]:
    """The messages of a chat: what belongs to one answer is one turn of the assistant, thought and calls included."""
    messages: list[dict[str, Any]] = []
    if instructions:
        messages.append({"role": "system", "content": instructions})
    if isinstance(items, str):
        return [*messages, {"role": "user", "content": items}]
    for item in items:
        if isinstance(item, InputMessage) and item.role == "assistant":
            turn = _assistant_turn(messages, "content")
            turn["content"] = item.words
        elif isinstance(item, InputMessage):
            first = len(messages) == 1 and instructions is not None and item.role != "user"
            if first:  # which most templates take one of
                messages[0]["content"] += f"\n\n{item.words}"
            else:
                messages.append({"role": item.role, "content": item.chat_content})
        elif isinstance(item, ReasoningItem):
            if item.words:
                _assistant_turn(messages, "reasoning_content")["reasoning_content"] = item.words
        elif isinstance(item, FunctionCallItem):
            function = {"name": item.name, "arguments": item.arguments}
            call = {"id": item.call_id, "type": "function", "function": function}
            _assistant_turn(messages).setdefault("tool_calls", []).append(call)
        elif isinstance(item, FunctionCallOutputItem):
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": item.words})
    for message in messages:
        if message["role"] == "assistant" and "tool_calls" not in message:
            message.setdefault("content", "")
    return messages


def _assistant_turn(messages: list[dict[str, Any]], field: str | None = None) -> dict[str, Any]:
    """The turn that an item of an answer belongs to: a new one where it has that field, or its calls, already."""
    last = messages[-1] if messages else None
    fields = {"content": ("content", "tool_calls"), "reasoning_content": ("reasoning_content", "content", "tool_calls")}
    if last is None or last["role"] != "assistant" or any(name in last for name in fields.get(field or "", ())):
        messages.append({"role": "assistant"})
    return messages[-1]


def new_item_id(kind: Literal["msg", "fc", "rs"]) -> str:
    """A name for an item."""
    return f"{kind}_{secrets.token_hex(12)}"


def text_part(text: str, logprobs: Sequence[Any] = ()) -> dict[str, Any]:
    """The words of an answer."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}


def message_item(item_id: str, parts: Sequence[dict[str, Any]], status: ItemStatus) -> dict[str, Any]:
    """The words of an answer as an item."""
    return {"id": item_id, "type": "message", "status": status, "role": "assistant", "content": list(parts)}


def reasoning_item(item_id: str, text: str | None, status: ItemStatus) -> dict[str, Any]:
    """A thought as an item; before any of it has come, without parts."""
    parts = [] if text is None else [{"type": "reasoning_text", "text": text}]
    return {"id": item_id, "type": "reasoning", "summary": [], "content": parts, "status": status}


def call_item(item_id: str, call: dict[str, Any], status: ItemStatus) -> dict[str, Any]:
    """A call of a function as an item; ``call`` as chats have it."""
    function = call["function"]
    return {
        "id": item_id,
        "type": "function_call",
        "status": status,
        "call_id": call["id"],
        "name": function["name"],
        "arguments": function["arguments"],
    }


def output_items(choice: dict[str, Any]) -> list[dict[str, Any]]:
    """A complete answer of a chat, ``choices[i]``, as items; what was cut short is incomplete."""
    message, items = choice["message"], []
    if message.get("reasoning_content"):
        items.append(reasoning_item(new_item_id("rs"), message["reasoning_content"], "completed"))
    calls = message.get("tool_calls") or []
    if message["content"] or not calls:
        logprobs = (choice["logprobs"] or {}).get("content") or []
        items.append(message_item(new_item_id("msg"), [text_part(message["content"] or "", logprobs)], "completed"))
    items += [call_item(new_item_id("fc"), call, "completed") for call in calls]
    if choice["finish_reason"] in ("length", "content_filter"):
        items[-1]["status"] = "incomplete"
    return items
