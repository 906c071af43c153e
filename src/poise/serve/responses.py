"""The answers of the API as its description has them, and the faults of its requests as sentences."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Literal

from pydantic import BaseModel

from poise.data import AnswerPart
from poise.errors import RequestError
from poise.settings import describe_value

__all__ = [
    "VERSION",
    "ChatCompletion",
    "Completion",
    "Deleted",
    "ModelEntry",
    "Models",
    "ReadingsHistory",
    "ReadingsPage",
    "State",
    "Told",
    "Vector",
    "VectorList",
    "fault",
    "iso",
    "seconds",
]

VERSION = version("poise")
ONLY_HARMLESS = frozenset(
    {
        *("audio", "background", "best_of", "frequency_penalty", "function_call", "functions", "logit_bias"),
        *("modalities", "presence_penalty", "store", "suffix", "truncation", "web_search_options"),
    }
)
"""Fields of OpenAI's requests that are taken where they ask for nothing."""
ValuesByVector = dict[str, float | None]


class ModelEntry(BaseModel):
    """A model that answers; ``thinking`` says whether requests may switch that on."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    thinking: bool


class Models(BaseModel):
    """All of them, which is one."""

    object: Literal["list"]
    data: list[ModelEntry]


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


def fault(errors: Sequence[Any]) -> RequestError:
    """What is wrong with a request that does not validate: all fields that are not supported, else the first fault."""
    if unsupported := _unsupported(errors):
        are = "is" if len(unsupported) == 1 else "are"
        it = "it" if len(unsupported) == 1 else "them"
        names = ", ".join(unsupported[:-1]) + (" and " if unsupported[1:] else "") + unsupported[-1]
        text = f"{_encodable(names)} {are} not supported here; leave {it} out."
        return RequestError(400, text, code="unsupported", param=_encodable(unsupported[0]))
    same = [e for e in errors if e["loc"][:2] == errors[0]["loc"][:2]]
    first = max(same, key=lambda e: len(e["loc"]))  # of what may have several shapes, the one that it is nearest to
    param = _field_name(first["loc"]) or None
    if first["type"].startswith("json"):
        return RequestError(400, "The body is not JSON.", code="invalid_json")
    if not param and first["loc"][:1] == ("body",) and first["type"] in ("model_attributes_type", "missing"):
        text = "The request needs a JSON object as its body, with Content-Type: application/json."
    else:
        colon = ":" if first["type"] == "value_error" else ""
        text = f"{_encodable(param) or 'The request'}{colon} {_encodable(describe_value(first))}."
    return RequestError(400, text, code="invalid_value", param=_encodable(param))


def _unsupported(errors: Sequence[Any]) -> list[str]:
    """Fields that are not known, and those of OpenAI's that may only have the value that changes nothing."""
    names = []
    for error in errors:
        if error["type"] == "extra_forbidden":
            names.append(_field_name(error["loc"]))
        elif error["loc"][:1] == ("body",) and error["loc"][1:2] and error["loc"][1] in ONLY_HARMLESS:
            names.append(error["loc"][1])
    return list(dict.fromkeys(names))


def _field_name(loc: Sequence[str | int]) -> str:
    return ".".join(str(part) for part in loc if _is_field(part))


def _is_field(part: str | int) -> bool:
    """Rather than the place in the request or the name of a shape that pydantic tried."""
    shapes = {"body", "query", "path", "str", "int", "bool", "float"}
    return isinstance(part, int) or (part not in shapes and re.fullmatch(r"[a-z0-9_]+", part) is not None)


def _encodable(text: str | None) -> str | None:
    """What can be written in any answer: a request may hold halves of characters."""
    return None if text is None else text[:300].encode("utf-8", "replace").decode()


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
