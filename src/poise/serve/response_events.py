"""The answer of ``/v1/responses``: as one object, and as the events of a stream, made from a chat's chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel

from poise.errors import RequestError
from poise.serve.response_items import (
    call_item,
    message_item,
    new_item_id,
    reasoning_item,
    text_part,
)
from poise.serve.response_requests import CreateResponse
from poise.serve.responses import Told

__all__ = ["ResponseReply", "ResponseStream", "response_body", "response_usage"]

ResponseEvent = dict[str, Any]
REASONS = {"length": "max_output_tokens", "content_filter": "content_filter"}


class ResponseReply(BaseModel):
    """An answer of ``/v1/responses``, with the settings of its request; ``output`` are OpenAI's items."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete"]
    background: Literal[False]
    error: None
    incomplete_details: dict[str, str] | None
    instructions: str | None
    max_output_tokens: int | None
    model: str
    output: list[dict[str, Any]]
    parallel_tool_calls: bool
    previous_response_id: None
    reasoning: dict[str, str | None]
    service_tier: Literal["default"]
    store: Literal[False]
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"]
    usage: dict[str, Any]
    metadata: dict[str, str]
    poise: Told | None = None


def response_body(
    head: dict[str, Any],
    body: CreateResponse,
    *,
    output: Sequence[dict[str, Any]] = (),
    finish: str | None = None,
    usage: dict[str, Any] | None = None,
    poise: dict[str, Any] | None = None,
    error: RequestError | None = None,
) -> dict[str, Any]:
    """A response.

    Args:
        head: Its id, time and model.
        body: The request, whose settings it repeats.
        output: Items so far.
        finish: Reason why the chat's answer ended; ``None`` while it has not.
        usage: Tokens, as a chat has them.
        poise: What Poise says of the answer, where that was asked for.
        error: What went wrong.
    """
    status = "in_progress" if finish is None else "incomplete" if finish in REASONS else "completed"
    if error:
        status = "failed"
    chosen = body.text.format
    text_format = {"type": "text"} if chosen is None else chosen.model_dump(by_alias=True, exclude_none=True)
    return {
        "id": head["id"],
        "object": "response",
        "created_at": head["created"],
        "status": status,
        "background": False,
        "error": {"code": "server_error", "message": error.body["error"]["message"]} if error else None,
        "incomplete_details": {"reason": REASONS[finish]} if status == "incomplete" and finish else None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "model": head["model"],
        "output": list(output),
        "parallel_tool_calls": body.parallel_tool_calls,
        "previous_response_id": None,
        "reasoning": {"effort": body.reasoning.effort, "summary": None},
        "service_tier": "default",
        "store": False,
        "temperature": body.temperature,
        "text": {"format": text_format, "verbosity": "medium"},
        "tool_choice": _setting_given_back(body.tool_choice) if body.tool_choice is not None else "auto",
        "tools": [{"parameters": None, "strict": None, **_setting_given_back(tool)} for tool in body.tools],
        "top_logprobs": body.top_logprobs,
        "top_p": body.top_p,
        "truncation": "disabled",
        "usage": None if usage is None else response_usage(usage),
        "metadata": body.metadata or {},
        **({} if poise is None else {"poise": poise}),
    }


def _setting_given_back(value: Any) -> Any:
    """A tool or a choice of one, as OpenAI's answers repeat it."""
    return value if isinstance(value, str) else value.model_dump(exclude_none=True)


def response_usage(usage: dict[str, Any]) -> dict[str, Any]:
    """Tokens of a chat under the names that they have here."""
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": usage["completion_tokens_details"],
        "total_tokens": usage["total_tokens"],
    }


class ResponseStream:
    """The events of one response, numbered from 0.

    Args:
        head: Its id, time and model.
        body: The request.
    """

    def __init__(self, head: dict[str, Any], body: CreateResponse) -> None:
        self.head, self.body = head, body
        self.items: list[dict[str, Any]] = []
        self._number = 0
        self._open: str | None = None  # type of the item that is being written, which is the last one
        self._logprobs: list[Any] = []
        self._calls: dict[int, dict[str, Any]] = {}  # items of calls, by their place among the answer's

    def opening(self) -> list[ResponseEvent]:
        """Before anything has come."""
        response = response_body(self.head, self.body)
        return [
            self._event("response.created", response=response),
            self._event("response.in_progress", response=response),
        ]

    def take(self, choice: dict[str, Any]) -> list[ResponseEvent]:
        """What a chunk of a chat, ``choices[i]``, comes to."""
        delta, poise = choice["delta"], choice.get("poise")
        more = {} if poise is None else {"poise": poise}
        events = []
        if delta.get("reasoning_content") is not None:
            events += self._begin("reasoning")
            events.append(self._delta("response.reasoning_text.delta", delta["reasoning_content"], more))
        if delta.get("content") is not None:  # of a part of a character it is empty
            events += self._begin("message")
            logprobs = (choice["logprobs"] or {}).get("content") or []
            self._logprobs += logprobs
            more = {**more, "logprobs": logprobs}
            events.append(self._delta("response.output_text.delta", delta["content"], more))
        for call in delta.get("tool_calls") or ():
            events += self._take_call(call, more)
        return events

    def turn_into_thought(self) -> list[ResponseEvent]:
        """What has come as words was thought: their item ends, and the complete response has it as thought."""
        events = self._end() if self._open == "message" else []
        for place, item in enumerate(self.items):
            if item["type"] == "message":
                text = "".join(part["text"] for part in item["content"])
                self.items[place] = reasoning_item(item["id"], text, "completed")
        return events

    def ending(self, finish: str, usage: dict[str, Any], poise: dict[str, Any] | None = None) -> list[ResponseEvent]:
        """The end of an answer that ended."""
        events = [] if any(item["type"] != "reasoning" for item in self.items) else self._begin("message")
        events += self._end("incomplete" if finish in REASONS else "completed")
        response = response_body(self.head, self.body, output=self.items, finish=finish, usage=usage, poise=poise)
        return [*events, self._event(f"response.{response['status']}", response=response)]

    def failing(self, error: RequestError) -> list[ResponseEvent]:
        """The end of an answer that went wrong."""
        response = response_body(self.head, self.body, output=self.items, error=error)
        return [self._event("response.failed", response=response)]

    def _take_call(self, call: dict[str, Any], more: dict[str, Any]) -> list[ResponseEvent]:
        events = []
        if call["index"] not in self._calls:
            events += self._end()
            item = call_item(
                new_item_id("fc"), {**call, "function": {**call["function"], "arguments": ""}}, "in_progress"
            )
            self._calls[call["index"]] = item
            self.items.append(item)
            self._open = "function_call"
            events.append(self._event("response.output_item.added", output_index=self._place, item=dict(item)))
        if arguments := call["function"].get("arguments"):
            item = self._calls[call["index"]]
            item["arguments"] += arguments
            facts = {"item_id": item["id"], "output_index": self.items.index(item), "delta": arguments}
            events.append(self._event("response.function_call_arguments.delta", **facts, **more))
        return events

    @property
    def _place(self) -> int:
        return len(self.items) - 1

    def _event(self, kind: str, **facts: Any) -> ResponseEvent:
        event = {"type": kind, "sequence_number": self._number, **facts}
        self._number += 1
        return event

    def _at(self) -> dict[str, Any]:
        return {"item_id": self.items[-1]["id"], "output_index": self._place, "content_index": 0}

    def _begin(self, kind: str) -> list[ResponseEvent]:
        """Begin an item of words or thought, unless the open one is that."""
        if self._open == kind:
            return []
        events = self._end()
        if kind == "message":
            item, part = message_item(new_item_id("msg"), [], "in_progress"), text_part("")
        else:
            item, part = reasoning_item(new_item_id("rs"), None, "in_progress"), {"type": "reasoning_text", "text": ""}
        self.items.append(item)
        self._open, self._logprobs = kind, []
        added = self._event("response.output_item.added", output_index=self._place, item={**item, "content": []})
        events += [added, self._event("response.content_part.added", **self._at(), part=part)]
        item["content"] = [dict(part)]
        return events

    def _delta(self, kind: str, text: str, more: dict[str, Any]) -> ResponseEvent:
        self.items[-1]["content"][0]["text"] += text
        return self._event(kind, **self._at(), delta=text, **more)

    def _end(self, status: str = "completed") -> list[ResponseEvent]:
        """End the item that is being written."""
        if self._open is None:
            return []
        item, events = self.items[-1], []
        item["status"] = status
        if self._open == "function_call":
            facts = {"item_id": item["id"], "output_index": self._place, "arguments": item["arguments"]}
            events.append(self._event("response.function_call_arguments.done", **facts, name=item["name"]))
        else:
            part = item["content"][0]
            text = {"text": part["text"]}
            if self._open == "message":
                part["logprobs"] = text["logprobs"] = list(self._logprobs)
            kind = "response.output_text.done" if self._open == "message" else "response.reasoning_text.done"
            events.append(self._event(kind, **self._at(), **text))
            events.append(self._event("response.content_part.done", **self._at(), part=dict(part)))
        events.append(self._event("response.output_item.done", output_index=self._place, item=dict(item)))
        self._open = None
        return events
