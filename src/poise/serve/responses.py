"""The answers of the API as its description has them."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Literal

from pydantic import BaseModel

from poise.data import AnswerPart

__all__ = [
    "VERSION",
    "ChatCompletion",
    "Completion",
    "Deleted",
    "ReadingsHistory",
    "ReadingsPage",
    "State",
    "Told",
    "Vector",
    "VectorList",
    "iso",
    "seconds",
]

VERSION = version("poise")
ValuesByVector = dict[str, float | None]


class CompletionTokensDetails(BaseModel):
    """Of an answer's tokens those that are thought; the marks around them are neither thought nor reply."""

    reasoning_tokens: int


class PromptTokensDetails(BaseModel):
    """Of a request's prompt tokens those that an earlier text of the same key began with, and were not read again."""

    cached_tokens: int


class TokenUsage(BaseModel):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class AlarmRaised(BaseModel):
    """A reading above its threshold, and what was done."""

    trait: str
    reading: Literal["prompt", "mean", "peak"]
    layer: int
    rate: float
    threshold: float
    value: float
    token: int
    action: Literal["note", "cap", "stop"]
    part: AnswerPart = "reply"


class OneSummary(BaseModel):
    """A vector's readings of an answer; null where there is none."""

    prompt: float | None
    mean: float | None
    peak: float | None
    tokens: int
    part: AnswerPart = "reply"


class Push(BaseModel):
    """What the steering by itself adds to a vector's readings: of the prompt, the reply, and the thought if it does."""

    prompt: float
    response: float
    thought: float = 0.0


class Told(BaseModel):
    """What Poise says of an answer. ``prompt`` and ``readings`` are as measured; ``summary`` and ``alarms`` are less
    ``push``, by what the answer says; where no push is known (null) nothing is taken off. A chunk with
    ``ends_unopened_thought`` makes thought of all that was sent as content before it."""

    steer: str | None
    cautions: list[str]
    layers: dict[str, int]
    push: dict[str, Push | None]
    prompt: ValuesByVector
    tokens: list[str]
    readings: dict[str, list[float | None]]
    parts: list[Literal["thought", "mark", "reply", "tool_call"]]
    ends_unopened_thought: bool = False
    summary: dict[str, OneSummary]
    alarms: list[AlarmRaised]


class AnsweredFunction(BaseModel):
    """A function, and the arguments that it is called with as JSON."""

    name: str
    arguments: str


class AnsweredCall(BaseModel):
    """A call that the client is to make."""

    id: str
    type: Literal["function"]
    function: AnsweredFunction


class AssistantMessage(BaseModel):
    """The assistant's turn."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | None = None
    tool_calls: list[AnsweredCall] | None = None


Finish = Literal["stop", "length", "content_filter", "tool_calls"]


class ChatChoice(BaseModel):
    """One answer of a chat."""

    index: int
    finish_reason: Finish
    message: AssistantMessage
    logprobs: dict[str, Any] | None
    poise: Told | None = None


class TextChoice(BaseModel):
    """One continuation."""

    index: int
    finish_reason: Finish
    text: str
    logprobs: dict[str, Any] | None
    poise: Told | None = None


class ChatCompletion(BaseModel):
    """A whole answer to a chat."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: TokenUsage


class Completion(BaseModel):
    """A whole answer to plain prompts."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: TokenUsage


class NormalReading(BaseModel):
    """What n tokens of answers without the trait read."""

    mean: float
    sd: float
    n: int


class DialLimits(BaseModel):
    """How far a dial for a vector goes, in doses: ``most`` to either side, and ``range`` where nothing is certified.

    Beyond ``risky`` text usually breaks; ``rounding`` is what a dose may lie outside of a certified range.
    """

    most: float
    range: tuple[float, float]
    risky: float
    rounding: float


class Vector(BaseModel):
    """A vector in the registry; numbers by layer have the layer as their name."""

    name: str
    description: str
    layers: int
    width: int
    default_layer: int
    watched_layer: int
    norm: ValuesByVector
    dose_of_one: float | None
    dial: DialLimits
    fixed: bool
    owner: str | None
    certificate: dict[str, Any] | None
    normal: NormalReading | None
    alarms: list[dict[str, Any]]


class VectorList(BaseModel):
    """All vectors."""

    object: Literal["list"]
    data: list[Vector]


class Deleted(BaseModel):
    """A vector that is gone."""

    deleted: Literal[True]
    id: str


class StoredReading(BaseModel):
    """One answer as one vector read it."""

    id: int
    time: str
    request: str
    trait: str
    layer: int | None
    steer: str | None
    prompt: float | None
    mean: float | None
    peak: float | None
    tokens: int
    part: AnswerPart
    alarms: list[AlarmRaised]


class ReadingsPage(BaseModel):
    """Readings, newest first; ``next`` is what ``after`` takes for those before them."""

    object: Literal["list"]
    data: list[StoredReading]
    next: int | None


class Bucket(BaseModel):
    """Answers of a stretch of time; ``low`` to ``high`` is the 95 % interval of their mean."""

    start: str
    n: int
    mean: float | None
    low: float | None
    high: float | None
    peak_p95: float | None
    alarms: int


class TraitHistory(BaseModel):
    """One vector's buckets, of answers that it read in one part."""

    trait: str
    part: AnswerPart
    buckets: list[Bucket]


class ReadingsHistory(BaseModel):
    """All vectors' histories."""

    data: list[TraitHistory]


class State(BaseModel):
    """Of the server."""

    status: str


class ErrorBody(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(BaseModel):
    """An error as OpenAI's clients know it."""

    error: ErrorBody


def iso(time: float) -> str:
    """ISO 8601, UTC."""
    return datetime.fromtimestamp(time, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def seconds(text: str) -> float:
    """Seconds since 1970 of a time; one without a zone is UTC.

    Raises:
        ValueError: it is none.
    """
    instant = datetime.fromisoformat(text)
    value = (instant if instant.tzinfo else instant.replace(tzinfo=UTC)).timestamp()
    if not math.isfinite(value):
        raise ValueError(text)
    return value
