"""The requests that the server takes, in OpenAI's schema. What is not here is refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from poise.steer import SteeringExpression

__all__ = ["ChatRequest", "CompletionRequest", "Message", "PoiseField", "StreamOptions"]


def _whole(text: str) -> str:
    """JSON can write halves of characters, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("half of a character (a lone surrogate)") from error
    return text


Text = Annotated[str, AfterValidator(_whole)]
Name = Annotated[Text, Field(min_length=1, max_length=200)]
Stop = Annotated[Text, Field(min_length=1, max_length=200)]
Nought = Annotated[float, Field(ge=0, le=0, description="Not supported; may only be 0.")]


class Strict(BaseModel):
    """Base of what a request says. A field that is null counts as not given."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _given(cls, data: Any) -> Any:
        return {k: v for k, v in data.items() if v is not None} if isinstance(data, dict) else data


class TextPart(Strict):
    """A part of a message."""

    type: Literal["text"]
    text: Text


class Message(Strict):
    """A turn. ``developer`` is OpenAI's newer name for ``system``."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]

    @property
    def text(self) -> str:
        """All of its parts."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(Strict):
    """Of a streamed answer."""

    include_usage: bool = Field(False, description="One more chunk at the end, with the usage and without choices.")


class PoiseField(Strict):
    """What Poise adds to OpenAI's requests (the client's ``extra_body``)."""

    steer: Annotated[Text, Field(max_length=4000)] | SteeringExpression | None = Field(
        None, description="A steering expression such as `evil=30%; kind=-1`, or its JSON form."
    )
    watch: bool | Annotated[list[Name], Field(max_length=64)] = Field(
        False, description="Give the readings of these vectors, or of all (true)."
    )


class Asked(Strict):
    """What chat and plain completions have in common."""

    model: Name
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    n: int = Field(1, ge=1, le=16)
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] = Field(default_factory=list)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, description="Choice i is drawn with seed + i.")
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    frequency_penalty: Nought = 0
    presence_penalty: Nought = 0
    poise: PoiseField | None = None

    @property
    def most(self) -> int | None:
        """Longest answer asked for."""
        raise NotImplementedError

    @property
    def top(self) -> int | None:
        """Likeliest tokens to report, as a job has it."""
        raise NotImplementedError

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> Asked:
        if "stream_options" in self.model_fields_set and not self.stream:
            raise ValueError("stream_options may only be given with stream=true")
        return self


class ChatRequest(Asked):
    """``POST /v1/chat/completions``."""

    messages: list[Message] = Field(min_length=1, max_length=1000)
    max_tokens: int | None = Field(None, ge=1, le=10_000_000)
    max_completion_tokens: int | None = Field(None, ge=1, le=10_000_000, description="The newer name of max_tokens.")
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)

    @model_validator(mode="after")
    def _consistent(self) -> ChatRequest:
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens differ; give one")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs=true")
        return self

    @property
    def most(self) -> int | None:
        """Longest answer asked for."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def top(self) -> int | None:
        """As a job has it."""
        return self.top_logprobs if self.logprobs else None


TokenIds = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)]


class CompletionRequest(Asked):
    """``POST /v1/completions``: the prompt as it is, without a chat template."""

    prompt: (
        Text
        | TokenIds
        | Annotated[list[Text], Field(min_length=1, max_length=64)]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=64)]
    )
    max_tokens: int = Field(16, ge=1, le=10_000_000)
    logprobs: int | None = Field(None, ge=0, le=5)
    echo: Literal[False] = Field(False, description="Not supported; may only be false.")

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """All of them."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        return [self.prompt] if isinstance(self.prompt[0], int) else self.prompt

    @property
    def most(self) -> int | None:
        """Longest answer asked for."""
        return self.max_tokens

    @property
    def top(self) -> int | None:
        """As a job has it."""
        return self.logprobs
