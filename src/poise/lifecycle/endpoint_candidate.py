"""A candidate behind an OpenAI-compatible endpoint: how fast it answers and what it says; its files are not seen."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from poise.endpoint_address import endpoint_address
from poise.errors import EndpointUnavailable, InvalidArgument

__all__ = ["EndpointAnswer", "EndpointCandidate", "is_endpoint"]

ENDPOINT = "endpoint:"


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointAnswer:
    """One answer.

    Attributes:
        text: Answer.
        tokens: Tokens of it, as the endpoint counts them, or else its pieces.
        first: Seconds to its first piece.
        seconds: Seconds to its end.
    """

    text: str
    tokens: int
    first: float
    seconds: float


def is_endpoint(name: str) -> bool:
    """Whether a candidate is behind an endpoint."""
    return name.startswith(ENDPOINT)


class EndpointCandidate:
    """Asks a model behind an endpoint, one question at a time.

    Args:
        name: ``endpoint:MODEL@URL``, or ``endpoint:MODEL`` for the one of the environment.
        timeout: Seconds that an answer may take.

    Raises:
        InvalidArgument: there is no name of a model in it.
    """

    def __init__(self, name: str, *, timeout: float = 120.0) -> None:
        model, _, url = name.removeprefix(ENDPOINT).partition("@")
        if not model or (url and not url.startswith(("http://", "https://"))):
            raise InvalidArgument(
                f"The candidate {name!r} is no endpoint; write endpoint:MODEL@URL, such as "
                "endpoint:qwen@http://127.0.0.1:8000/v1."
            )
        self.model, self._timeout = model, timeout
        self._base_url, self._key = endpoint_address(url or None)

    def ask(self, question: str, most_tokens: int) -> EndpointAnswer:
        """Its answer to one question, greedy.

        Raises:
            EndpointUnavailable: it cannot be reached, refuses, or breaks off.
        """
        from openai import OpenAI, OpenAIError

        begun, first, pieces, tokens = time.perf_counter(), 0.0, [], 0
        messages: Any = [{"role": "user", "content": question}]
        with OpenAI(base_url=self._base_url, api_key=self._key, timeout=self._timeout, max_retries=1) as client:
            try:
                stream: Any = client.chat.completions.create(
                    model=self.model,
                    messages=messages,
                    temperature=0,
                    max_tokens=most_tokens,
                    stream=True,
                    stream_options={"include_usage": True},
                )
                for chunk in stream:
                    tokens = chunk.usage.completion_tokens if chunk.usage else tokens
                    piece = chunk.choices[0].delta.content if chunk.choices else None
                    if piece:
                        first = first or time.perf_counter() - begun
                        pieces.append(piece)
            except (OpenAIError, ValueError, AttributeError) as error:
                cause = str(error.__cause__ or error)[:200]
                raise EndpointUnavailable(
                    f"The model {self.model!r} at {client.base_url} does not answer ({cause}); start it, or set "
                    "OPENAI_API_KEY to its key."
                ) from error
        seconds = time.perf_counter() - begun
        return EndpointAnswer(
            text="".join(pieces), tokens=tokens or len(pieces), first=first or seconds, seconds=seconds
        )
