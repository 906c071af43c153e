"""Python functions as tools: their schemas from type hints and docstrings."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable, Collection, Iterable
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic.errors import PydanticUserError

from poise.agent.tool import AgentTool, ToolContext, Touch
from poise.errors import InvalidArgument, ToolFailed, first_line

__all__ = ["IDEMPOTENCY_PARAMETER", "function_tool"]

IDEMPOTENCY_PARAMETER = "idempotency_key"
"""A parameter of this name is given the call's key, and the model does not see it."""


def function_tool(
    function: Callable[..., Any],
    *,
    touches: Iterable[Touch],
    repeatable: bool,
    name: str | None = None,
    description: str | None = None,
    prepare: Callable[[dict[str, Any]], Any] | None = None,
) -> AgentTool:
    """A function as a tool.

    Args:
        function: Takes and gives what JSON can hold, or a coroutine of it; its parameters have type hints.
        touches: What it may touch.
        repeatable: Whether the same call with the same key, made twice, has the effect of one.
        name: Name that calls use; the function's own by default.
        description: What the model is told; the docstring by default.
        prepare: What has to be known before the call, to do it again after a kill.

    Raises:
        InvalidArgument: a parameter has no type hint, or one that has no JSON Schema.
    """
    label = name or function.__name__
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise InvalidArgument(
            f"The function {label} cannot be a tool: it gives its values one after another, and nothing of it is done "
            "before they are asked for; return a list."
        )
    fields, wants_key = _parameter_fields(function, label, hidden={"prepared"} if prepare else set())
    try:
        arguments: type[BaseModel] = create_model(label, __config__=ConfigDict(extra="forbid"), **fields)
        schema = _without_titles(arguments.model_json_schema())
    except (PydanticUserError, NameError, TypeError) as error:
        raise InvalidArgument(
            f"The function {label} cannot be a tool: {first_line(error)}; give its parameters types that JSON has."
        ) from error

    if lost := sorted(fields.keys() - arguments.model_fields.keys()):
        raise InvalidArgument(
            f"The function {label} cannot be a tool: no call can use a parameter called {lost[0]}; name it otherwise."
        )

    def check(values: dict[str, Any]) -> dict[str, Any]:
        try:
            return arguments.model_validate(values).model_dump(mode="json", exclude_unset=True)
        except ValidationError as error:
            raise ToolFailed(_argument_faults(label, error), kind="arguments") from error

    def call(values: dict[str, Any], context: ToolContext) -> str:
        parsed = arguments.model_validate(values)
        named = {key: getattr(parsed, key) for key in arguments.model_fields if key in parsed.model_fields_set}
        key = {IDEMPOTENCY_PARAMETER: context.key} if wants_key else {}
        more = {"prepared": context.prepared} if prepare else {}
        return output_text(_awaited(function(**named, **key, **more)))

    return AgentTool(
        name=label,
        description=description or inspect.cleandoc(function.__doc__ or "").partition("\n\n")[0].replace("\n", " "),
        parameters=schema,
        touches=frozenset(touches),
        repeatable=repeatable,
        check=check,
        call=call,
        prepare=prepare,
    )


def _awaited(value: Any) -> Any:
    """What a function gave, or what comes of the coroutine that it gave; calls have a thread of their own."""
    if not inspect.isawaitable(value):
        return value

    async def wait() -> Any:
        return await value

    return asyncio.run(wait())


def _parameter_fields(
    function: Callable[..., Any], label: str, *, hidden: Collection[str]
) -> tuple[dict[str, Any], bool]:
    """The parameters that the model fills in, and whether the function wants the call's key."""
    try:
        hints = get_type_hints(function, include_extras=True)
        parameters = inspect.signature(function).parameters
    except (NameError, TypeError, ValueError) as error:
        raise InvalidArgument(f"The function {label} cannot be a tool: {first_line(error)}.") from error
    fields: dict[str, Any] = {}
    for name, parameter in parameters.items():
        if name == IDEMPOTENCY_PARAMETER or name in hidden:
            continue
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise InvalidArgument(
                f"The function {label} cannot be a tool: its parameter {name!r} has no name of its own for a call; "
                "write each parameter out."
            )
        if name not in hints:
            raise InvalidArgument(f"The parameter {name!r} of the function {label} has no type hint; add one.")
        fields[name] = (hints[name], ... if parameter.default is parameter.empty else parameter.default)
    return fields, IDEMPOTENCY_PARAMETER in parameters


def _argument_faults(label: str, error: ValidationError) -> str:
    faults = [f"{'.'.join(map(str, fault['loc'])) or 'arguments'}: {fault['msg']}" for fault in error.errors()[:5]]
    return f"The arguments of {label} do not fit ({'; '.join(faults)})."


def _without_titles(schema: Any) -> Any:
    """A schema without the titles that pydantic makes of names, which only cost tokens."""
    if isinstance(schema, dict):
        return {
            key: {name: _without_titles(part) for name, part in value.items()}
            if key in ("properties", "$defs")
            else _without_titles(value)
            for key, value in schema.items()
            if key != "title"
        }
    return [_without_titles(item) for item in schema] if isinstance(schema, list) else schema


def output_text(value: Any) -> str:
    """What a function returned, as the model reads it: a text as it is, all else as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, BaseModel):
        return value.model_dump_json()
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except (TypeError, ValueError, RecursionError):
        return str(value)
