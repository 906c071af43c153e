"""Models that write JSON under a schema: one that is loaded here, or one behind an endpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from poise.data import Message
from poise.engine import GenerationRequest, SamplingParams
from poise.engine.continuous import ContinuousEngine
from poise.engine.grammar import grammar_compiler
from poise.errors import JudgeUnavailable
from poise.model import Model

__all__ = ["EndpointFactWriter", "LocalFactWriter"]

MOST_FACT_TOKENS = 512
SECOND_TEMPERATURE = 0.7  # of every writing but the first


class LocalFactWriter:
    """A model that is loaded here; what it writes fits the schema, or ends before it is complete.

    Args:
        model: The model.
        most_tokens: Most tokens that it writes.

    Raises:
        MissingExtra: llguidance is not installed.
    """

    def __init__(self, model: Model, *, most_tokens: int = MOST_FACT_TOKENS) -> None:
        self.model, self.most_tokens = model, most_tokens
        self._compiler = grammar_compiler(model)
        self._engine = ContinuousEngine(model)

    def __call__(self, messages: Sequence[Message], schema: Mapping[str, Any], *, seed: int) -> str:
        """What it writes: greedily for seed 0, drawn for others."""
        request = GenerationRequest(
            prompt=self.model.encode(messages),
            sampling=SamplingParams(max_new_tokens=self.most_tokens, temperature=SECOND_TEMPERATURE if seed else 0.0),
            seed=seed,
            grammar=self._compiler.json_schema(schema),
        )
        self._engine.add("facts", request)
        text, finish = "", None
        while finish is None:
            for output in self._engine.step():
                if output.error is not None:
                    raise output.error
                text += "".join(token.text for token in output.tokens if token.part == "reply")
                finish = output.finish
        return text


class EndpointFactWriter:
    """A model behind an OpenAI-compatible server that keeps to JSON schemas.

    Args:
        model: Name that the server knows it by.
        base_url: URL of the server, usually ending in ``/v1``; else ``OPENAI_BASE_URL``, else OpenAI's own.
        api_key: Else ``OPENAI_API_KEY``; local servers need none.
        timeout: Seconds that one request may take.
    """

    def __init__(
        self, model: str, *, base_url: str | None = None, api_key: str | None = None, timeout: float = 120.0
    ) -> None:
        from openai import OpenAI

        self.model = model
        self._client = OpenAI(
            base_url=base_url or os.environ.get("OPENAI_BASE_URL") or None,
            api_key=api_key or os.environ.get("OPENAI_API_KEY") or "none",
            timeout=timeout,
        )

    def __call__(self, messages: Sequence[Message], schema: Mapping[str, Any], *, seed: int) -> str:
        """What it writes.

        Raises:
            JudgeUnavailable: the server does not answer.
        """
        from openai import OpenAIError

        shape = {"name": "facts", "strict": True, "schema": dict(schema)}
        fields: dict[str, Any] = {
            "messages": [{"role": message["role"], "content": message["content"]} for message in messages],
            "response_format": {"type": "json_schema", "json_schema": shape},
            "temperature": SECOND_TEMPERATURE if seed else 0.0,
            "seed": seed,
            "max_tokens": MOST_FACT_TOKENS,
        }
        try:
            completion = self._client.chat.completions.create(model=self.model, **fields)
        except OpenAIError as error:
            raise JudgeUnavailable(
                f"The model {self.model!r} at {self._client.base_url} does not translate ({str(error)[:300]}); start "
                "the server, set OPENAI_BASE_URL to where it runs, or take a model that keeps to JSON schemas."
            ) from error
        return str(completion.choices[0].message.content or "")
