"""The model of an agent: behind an OpenAI-compatible server, also one that Poise runs in this process."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from poise.endpoint_address import endpoint_address
from poise.errors import EndpointUnavailable, first_line

if TYPE_CHECKING:
    from poise.guardrail.injection_reading import InjectionReader
    from poise.model import Model

__all__ = ["AgentModel", "EndpointModel", "ModelAnswer", "RequestedCall", "ServedModel"]

CHARACTERS_EACH_ANSWER_TOKEN = 3  # where a server counts none; on the safe side for English
PASSING_STATUS = {408, 409, 425, 429}
USUAL_WINDOW = 8192
MOST_COUNTED_TOKENS = 10**9  # of a prompt, an answer or a window; a server that counts more does not count
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestedCall:
    """A call as a model wrote it.

    Attributes:
        id: Name of the call in the conversation.
        name: Name of the tool.
        arguments: Arguments as the model wrote them, which should be a JSON object.
    """

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelAnswer:
    """What a model answered.

    Attributes:
        text: Its words.
        calls: Calls of tools.
        prompt_tokens: Tokens of the prompt.
        answer_tokens: Tokens of the answer.
        is_cut: Whether it was cut because its tokens were used up.
        is_held: Whether the server holds the answer back, and says so in its place.
        readings: Readings by vector: ``prompt``, ``mean`` and ``peak``; empty where nothing watches.
        alarms: Readings above their thresholds, drift over the run, and tools' results that a server dropped.
    """

    text: str = ""
    calls: tuple[RequestedCall, ...] = ()
    prompt_tokens: int = 0
    answer_tokens: int = 0
    is_cut: bool = False
    is_held: bool = False
    readings: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    alarms: Sequence[Mapping[str, Any]] = ()


class AgentModel(Protocol):
    """Answers a conversation."""

    @property
    def name(self) -> str:
        """The model's name."""

    @property
    def window(self) -> int:
        """Most tokens of prompt and answer together."""

    def ask(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        most_tokens: int,
        seconds: float,
        *,
        must_call: bool = False,
    ) -> ModelAnswer:
        """Answer, with a call where one is a must and the server can insist on it.

        Raises:
            EndpointUnavailable: it does not; ``passing`` says whether trying again may help.
        """


class EndpointModel:
    """A model behind an OpenAI-compatible server.

    Args:
        base_url: URL of the server, usually ending in ``/v1``; else ``OPENAI_BASE_URL``, else OpenAI's own.
        model: Name that the server knows it by; by default the first that it lists.
        api_key: Else ``OPENAI_API_KEY``; local servers need none.
        window: Most tokens of prompt and answer together; by default what the server says, else 8192.
        watch: Vectors of a Poise server whose readings are kept, or ``True`` for all; others' servers take none.
        session: Name under which a Poise server follows the run, where it watches.

    Raises:
        EndpointUnavailable: it cannot be reached, or lists no model.
    """

    def __init__(
        self,
        base_url: str | None = None,
        model: str | None = None,
        *,
        api_key: str | None = None,
        window: int | None = None,
        watch: Sequence[str] | bool = (),
        session: str = "",
    ) -> None:
        from openai import OpenAI

        self._poise: dict[str, Any] = {"watch": watch if watch is True else list(watch)} if watch else {}
        if watch and session:
            self._poise["session"] = session
        self._insists = True
        url, key = endpoint_address(base_url, api_key)
        self._client = OpenAI(
            base_url=url,
            api_key=key,
            max_retries=0,
        )
        self.url = str(self._client.base_url).rstrip("/")
        listed = self._listed(model) if model is None or window is None else {}
        self.name = model or str(listed["id"])
        windows = (_token_count(listed.get(name)) for name in ("context_window", "max_model_len"))
        self.window = window or next((tokens for tokens in windows if tokens), USUAL_WINDOW)

    def _listed(self, model: str | None) -> dict[str, Any]:
        from openai import OpenAIError

        try:
            entries = [entry.model_dump() for entry in self._client.with_options(max_retries=2).models.list().data]
        except (OpenAIError, ValueError, AttributeError, TypeError) as error:
            if model is not None and not _is_unreachable(error):
                return {}
            raise EndpointUnavailable(
                f"The server at {self.url} cannot be asked which models it has ({_server_reason(error)}); check "
                "`endpoint`, which usually ends in /v1, or name the model with `model`."
            ) from error
        chosen = next((entry for entry in entries if model in (None, entry.get("id"))), None)
        if chosen is None and model is None:
            raise EndpointUnavailable(f"The server at {self.url} lists no model; name one with `model`.")
        return chosen or {}

    def ask(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        most_tokens: int,
        seconds: float,
        *,
        must_call: bool = False,
    ) -> ModelAnswer:
        """Answer a conversation greedily.

        Raises:
            EndpointUnavailable: the server cannot be reached or refuses, or answers nonsense.
        """
        from openai import OpenAIError

        request: dict[str, Any] = {"messages": list(messages), "max_tokens": most_tokens, "temperature": 0}
        if tools:
            request["tools"] = list(tools)
        if tools and must_call and self._insists:
            request |= {"tool_choice": "required", "parallel_tool_calls": False}
        if self._poise:
            request["extra_body"] = {"poise": self._poise}
        request = _sendable(request)
        try:
            completion: Any = self._client.chat.completions.create(model=self.name, timeout=seconds, **request)
        except (OpenAIError, ValueError) as error:
            if "tool_choice" in request and getattr(error, "status_code", 0) in (400, 422):
                self._insists = False  # a server that does not know how
                return self.ask(messages, tools, most_tokens, seconds)
            raise _endpoint_error(self.url, self.name, error) from error
        try:
            return _model_answer(completion, messages)
        except (AttributeError, TypeError, IndexError, ValueError) as error:
            reason = ValueError(f"it is no chat completion{_told_error(completion)}")
            raise _endpoint_error(self.url, self.name, reason) from error

    def close(self) -> None:
        """Let go of the connections."""
        self._client.close()


def _is_unreachable(error: Exception) -> bool:
    from openai import APIConnectionError

    return isinstance(error, APIConnectionError)


def _endpoint_error(url: str, model: str, error: Exception) -> EndpointUnavailable:
    from openai import APIConnectionError, APIStatusError

    status = error.status_code if isinstance(error, APIStatusError) else 0
    fault = EndpointUnavailable(f"The model {model!r} at {url} does not answer ({_server_reason(error)}).")
    is_cut = isinstance(error, json.JSONDecodeError)  # an answer whose end did not arrive
    fault.passing = isinstance(error, APIConnectionError) or is_cut or status in PASSING_STATUS or status >= 500
    return fault


def _server_reason(error: Exception) -> str:
    from openai import APIStatusError

    if isinstance(error, APIStatusError):
        body = error.body if isinstance(error.body, dict) else {}
        return f"HTTP {error.status_code}: {str(body.get('message') or error.message)[:200]}"
    if isinstance(error, json.JSONDecodeError):
        return f"its answer is cut or no JSON: {first_line(error)[:200]}"
    if isinstance(error, AttributeError | TypeError):
        return "what it answers is none of OpenAI's"
    return first_line(error.__cause__ or error)[:200]


def _told_error(completion: Any) -> str:
    """What a server says that went wrong under the status of a success, as some do; empty where it says nothing."""
    told = (getattr(completion, "model_extra", None) or {}).get("error")
    text = told.get("message") if isinstance(told, Mapping) else told
    return f": {first_line(ValueError(text))[:200]}" if text else ""


def _sendable(request: dict[str, Any]) -> dict[str, Any]:
    """A request without halves of characters, which models and tools do give and no request can hold."""
    text = json.dumps(request, ensure_ascii=False)
    return dict(json.loads(_HALF_CHARACTER.sub("\ufffd", text))) if _HALF_CHARACTER.search(text) else request


def _token_count(value: Any) -> int | None:
    """A number of tokens as a server gives it; ``None`` where it is none."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return int(value) if is_number and 0 <= value <= MOST_COUNTED_TOKENS else None


def _model_answer(completion: Any, messages: Sequence[Mapping[str, Any]]) -> ModelAnswer:
    choice = completion.choices[0]
    message, usage = choice.message, completion.usage
    calls = tuple(
        RequestedCall(id=str(call.id), name=str(function.name), arguments=_arguments_text(function.arguments))
        for call in message.tool_calls or ()
        if (function := getattr(call, "function", None)) is not None  # some servers leave out the type
    )
    text = _content_text(message.content) or str(getattr(message, "refusal", None) or "")
    written = len(text) + sum(len(call.arguments) + len(call.name) for call in calls)
    poise = (choice.model_extra or {}).get("poise") or {}
    summary = poise.get("summary") or {}
    counted = {name: _token_count(getattr(usage, name, None)) for name in ("prompt_tokens", "completion_tokens")}
    prompt_tokens, answer_tokens = counted.values()
    run = ((completion.model_extra or {}).get("poise") or {}).get("run") or {}
    drift = [{"reading": "drift", **alarm} for alarm in run.get("drift") or ()]
    return ModelAnswer(
        text=text,
        calls=calls,
        prompt_tokens=prompt_estimate(messages) if prompt_tokens is None else prompt_tokens,
        answer_tokens=written // CHARACTERS_EACH_ANSWER_TOKEN + 1 if answer_tokens is None else answer_tokens,
        is_cut=choice.finish_reason == "length",
        is_held=choice.finish_reason == "content_filter",
        readings={name: _reading_figures(values) for name, values in summary.items() if isinstance(values, Mapping)},
        alarms=[dict(alarm) for alarm in (*(poise.get("alarms") or ()), *drift) if isinstance(alarm, Mapping)],
    )


def _arguments_text(arguments: Any) -> str:
    """Arguments of a call as JSON; some servers give the object itself."""
    return arguments or "{}" if isinstance(arguments, str | None) else json.dumps(arguments, ensure_ascii=False)


def _content_text(content: Any) -> str:
    """The words of an answer; some servers give them in parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, Mapping))
    return str(content or "")


def _reading_figures(values: Mapping[str, Any]) -> dict[str, float | None]:
    return {
        name: float(value) if isinstance(value := values.get(name), int | float) else None
        for name in ("prompt", "mean", "peak")
    }


def prompt_estimate(messages: Sequence[Mapping[str, Any]]) -> int:
    """About how many tokens a conversation has, where nobody has counted them."""
    size = sum(len(str(message.get("content") or "")) for message in messages)
    size += sum(len(str(message["tool_calls"])) for message in messages if message.get("tool_calls"))
    return size // CHARACTERS_EACH_ANSWER_TOKEN + 4 * len(messages)


class ServedModel(EndpointModel):
    """A model that Poise serves in this process, on a free port of the loopback, with its tools' grammar and readings.

    Args:
        model: The model.
        vectors: Files of vectors by name, whose readings are kept.
    """

    def __init__(self, model: Model, vectors: Mapping[str, Path] | None = None) -> None:
        from poise.serve.server import ServerOptions, load_vectors, make_server

        self._model = model
        loaded = load_vectors(vectors or {}, model)
        self._server = make_server(model, loaded, ServerOptions(port=0))
        address = self._server.start()
        super().__init__(
            f"{address}/v1",
            self._server.service.name,
            api_key="none",
            window=model.generation_window(),
            watch=bool(vectors),
        )

    def injection_reader(self, guardrail: Path) -> InjectionReader:
        """What reads texts for hidden instructions with this model, by a fitted guardrail's file.

        Raises:
            InvalidSettings: the file is no fitted guardrail.
            OtherModel: it was fitted on another model.
        """
        from poise.guardrail.guard_file import load_guard
        from poise.guardrail.injection_reading import InjectionReader

        return InjectionReader(load_guard(guardrail), self._model, between=self._server.service.scheduler.call)

    def close(self) -> None:
        """Let go of the connections, and end the server."""
        super().close()
        self._server.stop()
