"""Readings in the answers of vLLM's OpenAI server, whole and streamed: ``choices[i].poise``."""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

from poise.vllm.front import OutputReadings, check_places, refuse_without_numbers
from poise.vllm.runner import FIELD

__all__ = ["StreamedReadings", "install_http"]

DATA = "data: "


class StreamedReadings:
    """The readings of a stream's answers, and how many rows of each have been sent."""

    def __init__(self) -> None:
        self._readings: dict[int, OutputReadings] = {}
        self._sent: dict[int, int] = {}

    async def tap(self, results: AsyncGenerator[Any], choices: int) -> AsyncIterator[Any]:
        """The same results, of which the readings are remembered; of plain completions with the prompt's number."""
        async with contextlib.aclosing(results):  # an answer that ends with an error is not generated to its end
            async for result in results:
                prompt, outputs = (result[0], result[1].outputs) if isinstance(result, tuple) else (0, result.outputs)
                for output in outputs:
                    if getattr(output, "poise", None) is not None:
                        refuse_without_numbers(output.poise)
                        self._readings[prompt * choices + output.index] = output.poise
                yield result

    def add_to(self, event: str) -> str:
        """A server-sent event, with the readings that its answers have by now and that were not sent yet."""
        if not event.startswith(DATA + "{"):
            return event
        body = json.loads(event[len(DATA) :])
        changed = False
        for choice in body.get("choices") or ():
            readings, sent = self._readings.get(choice["index"]), self._sent.get(choice["index"], 0)
            if readings is not None and len(readings.values) > sent:
                choice[FIELD] = readings.body(sent)
                self._sent[choice["index"]] = len(readings.values)
                changed = True
        return f"{DATA}{json.dumps(body, ensure_ascii=False)}\n\n" if changed else event


def install_http() -> None:
    """Patch the OpenAI server of this process."""
    from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest
    from vllm.entrypoints.anthropic.serving import AnthropicServingMessages
    from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
    from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion

    AnthropicServingMessages.create_messages = _with_places_checked(
        AnthropicServingMessages.create_messages, frozenset(AnthropicMessagesRequest.model_fields)
    )
    OpenAIServingChat.chat_completion_stream_generator = _streaming(OpenAIServingChat.chat_completion_stream_generator)
    OpenAIServingCompletion.completion_stream_generator = _streaming(
        OpenAIServingCompletion.completion_stream_generator
    )
    OpenAIServingChat.chat_completion_full_generator = _whole_chat(OpenAIServingChat.chat_completion_full_generator)
    OpenAIServingCompletion.request_output_to_completion_response = _whole_completion(
        OpenAIServingCompletion.request_output_to_completion_response
    )


def _with_places_checked(create: Any, known: frozenset[str]) -> Any:
    """Messages whose body is looked at again: vLLM has dropped from the request what it does not know."""

    @functools.wraps(create)
    async def checked(self: Any, request: Any, raw_request: Any = None, *args: Any, **kwargs: Any) -> Any:
        body = await raw_request.json() if raw_request is not None else {}
        check_places({name: value for name, value in body.items() if name not in known}, request.vllm_xargs or {})
        return await create(self, request, raw_request, *args, **kwargs)

    return checked


def _watches(request: Any) -> bool:
    return FIELD in (getattr(request, "vllm_xargs", None) or {})


def _streaming(generate: Any) -> Any:
    parameters = list(inspect.signature(generate).parameters)

    @functools.wraps(generate)
    async def stream(self: Any, request: Any, *args: Any, **kwargs: Any) -> AsyncIterator[str]:
        readings = StreamedReadings()
        if _watches(request):
            choices = getattr(request, "n", None) or 1
            if "result_generator" in kwargs:
                kwargs["result_generator"] = readings.tap(kwargs["result_generator"], choices)
            else:
                place = parameters.index("result_generator") - 2
                args = (*args[:place], readings.tap(args[place], choices), *args[place + 1 :])
        async for event in generate(self, request, *args, **kwargs):
            yield readings.add_to(event)

    return stream


def _whole_chat(generate: Any) -> Any:
    @functools.wraps(generate)
    async def whole(self: Any, request: Any, result_generator: Any, *args: Any, **kwargs: Any) -> Any:
        outputs: list[Any] = []

        async def last_outputs() -> AsyncIterator[Any]:
            async for result in result_generator:
                outputs[:] = result.outputs
                yield result

        response = await generate(self, request, last_outputs(), *args, **kwargs)
        _add_to_choices(response, outputs)
        return response

    return whole


def _whole_completion(respond: Any) -> Any:
    @functools.wraps(respond)
    def whole(self: Any, final_res_batch: Any, *args: Any, **kwargs: Any) -> Any:
        response = respond(self, final_res_batch, *args, **kwargs)
        _add_to_choices(response, [output for result in final_res_batch for output in result.outputs])
        return response

    return whole


def _add_to_choices(response: Any, outputs: Sequence[Any]) -> None:
    for choice, output in zip(getattr(response, "choices", None) or (), outputs, strict=False):
        if getattr(output, "poise", None) is not None:
            refuse_without_numbers(output.poise)
            setattr(choice, FIELD, output.poise.body())
