"""``POST /v1/responses``: a chat underneath, so that steering, readings, rules and limits are those of chats."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from functools import partial
from itertools import groupby
from typing import Any

from fastapi.sse import format_sse_event

from poise.engine import GeneratedToken
from poise.errors import RequestError
from poise.serve.exchange import CompletionExchange
from poise.serve.rendering import usage_body
from poise.serve.request_body import json_pieces, read_request
from poise.serve.response_events import ResponseEvent, ResponseStream, response_body
from poise.serve.response_items import output_items
from poise.serve.response_requests import CreateResponse, as_chat, in_its_words
from poise.serve.service import Service
from poise.serve.streaming import with_signs_of_life

__all__ = ["open_response", "response_events", "written_response"]

MANY_TOKENS = 1024  # of an answer, from which its last events are written by a worker


async def open_response(
    service: Service, data: bytes, content_type: str, key: str | None
) -> tuple[CreateResponse, CompletionExchange]:
    """Read a request and begin to answer it.

    Raises:
        RequestError: it cannot be answered, or not now.
    """
    body = await service.workers.run(partial(read_request, CreateResponse, data, content_type), size=len(data))
    chat = await service.workers.run(partial(as_chat, body), size=len(data))
    try:
        exchange = await service.open(chat, key, size=len(data))
    except RequestError as error:
        raise in_its_words(error) from error
    exchange.head["id"] = f"resp_{str(exchange.head['id']).removeprefix('chatcmpl-')}"
    return body, exchange


def written_response(body: CreateResponse, exchange: CompletionExchange) -> bytes:
    """The complete response as JSON."""
    choice = exchange.choices[0].body
    response = response_body(
        exchange.head,
        body,
        output=output_items(choice),
        finish=choice["finish_reason"],
        usage=usage_body(exchange.plan, exchange.choices),
        poise=choice.get("poise"),
    )
    return "".join(json_pieces(response)).encode()


async def response_events(body: CreateResponse, exchange: CompletionExchange) -> AsyncIterator[bytes]:
    """The stream of a response, as it comes."""
    stream = ResponseStream(exchange.head, body)
    for event in stream.opening():
        yield _server_event(event)
    try:
        async with contextlib.aclosing(exchange.steps()) as steps:
            async for step in with_signs_of_life(steps):
                if step is None:
                    yield format_sse_event(comment="waiting")
                    continue
                choice, guarded = step
                for event in _step_events(stream, choice.chunks(guarded), _thought_chunks(guarded.output.tokens)):
                    yield _server_event(event)
    except RequestError as error:
        for event in stream.failing(in_its_words(error)):
            yield _server_event(event)
        return

    def written_ending() -> list[bytes]:
        usage = usage_body(exchange.plan, exchange.choices)
        complete = exchange.choices[0].body
        return [_server_event(e) for e in stream.ending(complete["finish_reason"], usage, complete.get("poise"))]

    ending = await exchange.service.workers.run(written_ending) if exchange.size > MANY_TOKENS else written_ending()
    for written in ending:
        yield written


def _thought_chunks(tokens: Sequence[GeneratedToken]) -> int | None:
    """How many chunks without readings come before the end of a thought that nothing had opened."""
    ends = [place for place, token in enumerate(tokens) if token.ends_unopened_thought]
    if not ends:
        return None
    return sum(part != "mark" for part, _ in groupby(token.part for token in tokens[: ends[-1] + 1]))


def _step_events(
    stream: ResponseStream, chunks: Sequence[dict[str, Any]], thought_chunks: int | None
) -> list[ResponseEvent]:
    events = []
    for place, chunk in enumerate(chunks):
        if thought_chunks is not None and place == thought_chunks and "poise" not in chunk:
            events += stream.turn_into_thought()
        events += stream.take(chunk)
        if chunk.get("poise", {}).get("ends_unopened_thought"):
            events += stream.turn_into_thought()
    if thought_chunks is not None and thought_chunks >= len(chunks):
        events += stream.turn_into_thought()
    return events


def _server_event(event: ResponseEvent) -> bytes:
    return format_sse_event(event=event["type"], data_str="".join(json_pieces(event)))
