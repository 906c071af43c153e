"""Models that write JSON under a schema: one that is loaded here, or one behind an endpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from poise.data import Message
from poise.endpoint_address import endpoint_address
from poise.errors import JudgeUnavailable

if TYPE_CHECKING:
    from poise.engine import GenerationRequest
    from poise.model import Model

__all__ = ["EndpointFactWriter", "LocalFactWriter", "facts_request"]

MOST_FACT_TOKENS = 512
SECOND_TEMPERATURE = 0.7  # of every writing but the first


def facts_request(
    model: Model,
    messages: Sequence[Message],
    schema: Mapping[str, Any],
    *,
    seed: int,
    most_tokens: int = MOST_FACT_TOKENS,
) -> GenerationRequest:
    """What a model is to generate, held to the schema: greedily for seed 0, drawn for others.

    Raises:
        MissingExtra: llguidance is not installed.
    """
    from poise.engine import GenerationRequest, SamplingParams
    from poise.engine.grammar import grammar_compiler

    return GenerationRequest(
        prompt=model.encode(messages),
        sampling=SamplingParams(max_new_tokens=most_tokens, temperature=SECOND_TEMPERATURE if seed else 0.0),
        seed=seed,
        grammar=grammar_compiler(model).json_schema(schema),
    )


class LocalFactWriter:
    """A model that is loaded here; what it writes fits the schema, or ends before it is complete.

    Args:
        model: The model.
        most_tokens: Most tokens that it writes.

    Raises:
        MissingExtra: llguidance is not installed.
    """

    def __init__(self, model: Model, *, most_tokens: int = MOST_FACT_TOKENS) -> None:
        from poise.engine.continuous import ContinuousEngine
        from poise.engine.grammar import grammar_compiler

        self.model, self.most_tokens = model, most_tokens
        grammar_compiler(model)  # says now what is missing
        self._engine = ContinuousEngine(model)

    def __call__(self, messages: Sequence[Message], schema: Mapping[str, Any], *, seed: int) -> str:
        """What it writes: greedily for seed 0, drawn for others."""
        self._engine.add("facts", facts_request(self.model, messages, schema, seed=seed, most_tokens=self.most_tokens))
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
        url, key = endpoint_address(base_url, api_key)
        self._client = OpenAI(
            base_url=url,
            api_key=key,
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
