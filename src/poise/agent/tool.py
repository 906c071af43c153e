"""A tool: what it takes, what it may touch, and whether it may be done again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["TOUCHES", "AgentTool", "ToolContext", "Touch"]

Touch = Literal["read", "write", "network", "shell"]
TOUCHES: tuple[Touch, ...] = ("read", "write", "network", "shell")


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolContext:
    """What a call is made with beside its arguments.

    Attributes:
        key: Idempotency key; the same when a call is made again after a kill.
        seconds: Seconds that the call may take.
        prepared: What ``prepare`` gave before the call was announced.
    """

    key: str
    seconds: float
    prepared: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentTool:
    """Something that an agent can do.

    Attributes:
        name: Name that calls use.
        description: What the model is told of it.
        parameters: JSON Schema of its arguments, which are an object.
        touches: What it may touch.
        repeatable: Whether the same call with the same key, made twice, has the effect of one.
        check: Puts arguments into shape before anything is announced; raises ``ToolFailed``.
        call: Does it, and gives its output; raises ``ToolFailed``.
        prepare: What has to be known of the state before the call, to do it again after a kill.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    touches: frozenset[Touch]
    repeatable: bool
    check: Callable[[dict[str, Any]], dict[str, Any]]
    call: Callable[[dict[str, Any], ToolContext], str]
    prepare: Callable[[dict[str, Any]], Any] | None = None

    @property
    def offer(self) -> dict[str, Any]:
        """As a request to the model has it."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}
