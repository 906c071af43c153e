"""What writes an answer from a prompt: a model that is loaded here, or one behind an endpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from poise.data import Message
from poise.endpoint_address import endpoint_address
from poise.engine import GenerationRequest, SamplingParams
from poise.engine.continuous import ContinuousEngine
from poise.errors import EndpointUnavailable, InvalidArgument
from poise.model import Model
from poise.steer import Steering

__all__ = ["AnswerWriter", "EndpointAnswerWriter", "LocalAnswerWriter", "WrittenAnswer"]

CHARACTERS_EACH_TOKEN = 3  # of an endpoint's model, whose tokenizer is not here; on the safe side for English


@dataclass(frozen=True, slots=True)
class WrittenAnswer:
    """What a model wrote.

    Attributes:
        text: The reply, without a thought before it.
        tokens: Tokens that it wrote, the thought's too.
    """

    text: str
    tokens: int


class AnswerWriter(Protocol):
    """Writes answers."""

    @property
    def name(self) -> str:
        """The model's name."""

    @property
    def window(self) -> int:
        """Most tokens of prompt and answer together."""

    def count(self, messages: Sequence[Message]) -> int:
        """Tokens of a prompt."""

    def __call__(self, messages: Sequence[Message], most_tokens: int) -> WrittenAnswer:
        """Answer it with at most that many tokens."""


class LocalAnswerWriter:
    """A model that is loaded here, answering greedily.

    Args:
        model: The model.
        steering: What is done to it while it answers.
    """

    def __init__(self, model: Model, steering: Steering | None = None) -> None:
        self.model, self.steering = model, steering
        self._engine = ContinuousEngine(model)

    @property
    def name(self) -> str:
        """The model's name."""
        return self.model.name

    @property
    def window(self) -> int:
        """Most tokens of prompt and answer together."""
        return self.model.generation_window()

    def count(self, messages: Sequence[Message]) -> int:
        """Tokens of a prompt."""
        return len(self.model.encode(messages).ids)

    def __call__(self, messages: Sequence[Message], most_tokens: int) -> WrittenAnswer:
        """Answer a prompt."""
        sampling = SamplingParams(max_new_tokens=most_tokens, temperature=0.0)
        prompt = self.model.encode(messages)
        self._engine.add("answer", GenerationRequest(prompt=prompt, sampling=sampling, steering=self.steering))
        text, tokens, finish = "", 0, None
        while finish is None:
            for output in self._engine.step():
                if output.error is not None:
                    raise output.error
                text += "".join(token.text for token in output.tokens if token.part == "reply")
                tokens += len(output.tokens)
                finish = output.finish
        return WrittenAnswer(text.strip(), tokens)


class EndpointAnswerWriter:
    """A model behind an OpenAI-compatible server.

    Args:
        model: Name that the server knows it by.
        window: Most tokens of prompt and answer together.
        base_url: URL of the server, usually ending in ``/v1``; else ``OPENAI_BASE_URL``, else OpenAI's own.
        api_key: Else ``OPENAI_API_KEY``; local servers need none.
        timeout: Seconds that one request may take.
    """

    def __init__(
        self,
        model: str,
        *,
        window: int = 8192,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout: float = 300.0,
    ) -> None:
        if not model:
            raise InvalidArgument("`model` is 'endpoint:' without a name; write endpoint:NAME.")
        self.name, self.window = model, window
        self._base_url, self._api_key = endpoint_address(base_url, api_key)
        self._timeout = timeout

    def count(self, messages: Sequence[Message]) -> int:
        """Tokens of a prompt, by its length."""
        return sum(len(message["content"]) // CHARACTERS_EACH_TOKEN + 8 for message in messages)

    def __call__(self, messages: Sequence[Message], most_tokens: int) -> WrittenAnswer:
        """Answer a prompt.

        Raises:
            EndpointUnavailable: the server does not answer.
        """
        from openai import OpenAI, OpenAIError

        listed: Any = [{"role": message["role"], "content": message["content"]} for message in messages]
        with OpenAI(base_url=self._base_url, api_key=self._api_key, timeout=self._timeout) as client:
            try:
                done = client.chat.completions.create(
                    model=self.name, messages=listed, temperature=0, max_tokens=most_tokens
                )
                text = str(done.choices[0].message.content or "")
                return WrittenAnswer(text.strip(), done.usage.completion_tokens if done.usage else 0)
            except (OpenAIError, IndexError, AttributeError) as error:
                cause = str(error.__cause__ or error)[:200]
                raise EndpointUnavailable(
                    f"The model {self.name!r} at {client.base_url} does not answer ({cause}); start the server or set "
                    "OPENAI_BASE_URL to where it runs."
                ) from error
