"""A model behind an OpenAI-compatible server that writes JSON of a shape: what is wrong with a reply is told it.

Knows requests and shapes; what is written, and what is wrong with it, is its caller's.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from poise.endpoint_address import endpoint_address
from poise.errors import DraftFailed

if TYPE_CHECKING:
    from openai import OpenAI, OpenAIError

__all__ = ["ATTEMPTS", "JsonWriter", "opened_client"]

ATTEMPTS = 4
"""Most replies asked for one piece before the draft is given up."""

SCHEMA_LIMITS = {"minLength", "maxLength", "minItems", "maxItems", "pattern"}
Piece = TypeVar("Piece", bound=BaseModel)


class JsonWriter:
    """Asks for pieces, each until it is right.

    Args:
        client: The server's.
        model: Name that the server knows the model by.
        system: What the model is told first.
        mistakes: Says in plain words what a reply lacks of its shape.
    """

    def __init__(
        self, client: OpenAI, model: str, system: str, mistakes: Callable[[ValidationError], Sequence[str]]
    ) -> None:
        self._client, self._model, self._system, self._mistakes = client, model, system, mistakes
        self._way = 0

    def settle(self, what: str, prompt: str, shape: type[Piece], accept: Callable[[Piece], list[str]]) -> None:
        """Ask until ``accept`` has no complaint left, and hand the complaints back to the model each time.

        Args:
            what: What is written, for errors.
            prompt: The request.
            shape: Piece of the reply.
            accept: Takes what is right, and says what is wrong with the others.

        Raises:
            DraftFailed: the endpoint cannot be reached or refuses, or the last of ``ATTEMPTS`` replies was still wrong.
        """
        messages = [{"role": "system", "content": self._system}, {"role": "user", "content": prompt}]
        wrong: list[str] = []
        for _ in range(ATTEMPTS):
            text = self._reply(messages, shape)
            try:
                wrong = accept(shape.model_validate(_first_json_object(text)))
            except ValidationError as error:
                wrong = list(self._mistakes(error))[:10]
            except ValueError:
                wrong = [f"the reply is not a JSON object, or was cut off: {text[:80]!r}"]
            if not wrong:
                return
            complaint = "That cannot be used as it is:\n" + "\n".join(f"- {fault}" for fault in wrong)
            messages += [
                {"role": "assistant", "content": text or "(nothing)"},
                {"role": "user", "content": f"{complaint}\nFix it, in the same shape."},
            ]
        raise DraftFailed(
            f"{self._model!r} wrote no usable {what} in {ATTEMPTS} attempts (the last: {'; '.join(wrong)[:400]}); "
            "try a stronger model or another wording. Nothing was saved."
        )

    def _reply(self, messages: list[dict[str, str]], shape: type[BaseModel]) -> str:
        """One reply, in the most exact way from the current one on that the server can do."""
        from openai import APIStatusError, OpenAIError
        from openai.types.chat import ChatCompletion

        ways = _ways(shape)
        for way in range(self._way, len(ways)):
            try:
                completion: object = self._client.chat.completions.create(
                    model=self._model,
                    messages=messages,  # type: ignore[arg-type]
                    **ways[way],
                )
            except APIStatusError as error:
                if error.status_code not in (400, 422) or way == len(ways) - 1:
                    self._fail(error)
                continue
            except OpenAIError as error:
                self._fail(error)
            except ValueError:
                completion = None
            if not isinstance(completion, ChatCompletion) or not completion.choices:
                raise DraftFailed(
                    f"{self._client.base_url} sends no chat completions; set OPENAI_BASE_URL to an OpenAI-compatible "
                    "server, usually ending in /v1."
                )
            self._way = way
            message = completion.choices[0].message
            return (message.content or message.refusal or "").rpartition("</think>")[2].strip()
        raise AssertionError("the last way replies or raises")

    def _fail(self, error: OpenAIError) -> NoReturn:
        status = getattr(error, "status_code", None)
        remedy = {
            None: "start the server, or set OPENAI_BASE_URL to where it runs",
            401: "set OPENAI_API_KEY",
            404: "correct the model's name, or OPENAI_BASE_URL, which usually ends in /v1",
        }.get(status, "fix the server or choose another model")
        body = getattr(error, "body", None)
        detail = body.get("message") if isinstance(body, dict) else error.__cause__
        reason = f"{f'HTTP {status}: ' if status else ''}{detail or error}"[:300]
        raise DraftFailed(
            f"The model {self._model!r} at {self._client.base_url} does not answer ({reason}); {remedy}. "
            "Nothing was saved."
        ) from error


@contextlib.contextmanager
def opened_client(client: OpenAI | None) -> Iterator[OpenAI]:
    """The client itself, or one from ``OPENAI_BASE_URL`` and ``OPENAI_API_KEY``, which is closed afterwards."""
    if client is not None:
        yield client
        return
    from openai import OpenAI

    url, key = endpoint_address()
    with OpenAI(base_url=url, api_key=key, timeout=300.0) as opened:
        yield opened


def _ways(shape: type[BaseModel]) -> tuple[dict[str, Any], ...]:
    """How to ask for JSON, most exact first; servers reject what they cannot do with 400 or 422."""
    schema = {"name": shape.__name__.strip("_"), "strict": True, "schema": _plain_schema(shape.model_json_schema())}
    return (
        {"response_format": {"type": "json_schema", "json_schema": schema}},
        {"response_format": {"type": "json_object"}},
        {},
    )


def _plain_schema(schema: Any) -> Any:
    """Without the limits that strict servers do not know; they are checked here anyway."""
    if isinstance(schema, dict):
        return {k: _plain_schema(v) for k, v in schema.items() if k not in SCHEMA_LIMITS}
    return schema


def _first_json_object(text: str) -> Any:
    """The first JSON object in a reply, whatever stands around it.

    Raises:
        ValueError: there is none, or it does not end.
    """
    try:
        return json.JSONDecoder(strict=False).raw_decode(text, text.index("{"))[0]
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
