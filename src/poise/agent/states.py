"""The states of a run as a typed graph: plan → act → observe → adapt → retry, and an end.

Each state is a value that holds what its work needs. Which state may follow which is in the annotations of the methods
of ``running.AgentLoop`` that do the work; ``state_graph`` reads it off them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from poise.agent.model_endpoint import RequestedCall

__all__ = [
    "ActState",
    "AdaptState",
    "CallOutcome",
    "EndState",
    "ObserveState",
    "PlanState",
    "RetryState",
    "RunOutcome",
    "state_graph",
]

RunOutcome = Literal["done", "answered", "impossible", "asks", "limit"]
"""How a run ends. ``answered``: in words, without saying that the goal is reached; ``asks`` and ``limit`` can go on."""


@dataclass(frozen=True, slots=True)
class CallOutcome:
    """A call and what came of it.

    Attributes:
        call: The call.
        ok: Whether the tool did it.
        output: What it gave, or what went wrong.
        kind: Empty, or what may help: ``arguments``, ``passing``, ``failed`` or ``refused``.
        may_repeat: Whether the same call may be made again without harm.
    """

    call: RequestedCall
    ok: bool
    output: str
    kind: str = ""
    may_repeat: bool = False


@dataclass(frozen=True, slots=True)
class PlanState:
    """A plan is written, or changed for a reason."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class ActState:
    """The model is asked for the next step."""

    prompt: str = ""


@dataclass(frozen=True, slots=True)
class ObserveState:
    """Calls are made, and what comes of them is looked at; ``settled`` are those of the same answer before them."""

    calls: tuple[RequestedCall, ...]
    settled: tuple[CallOutcome, ...] = ()
    tries: int = 0


@dataclass(frozen=True, slots=True)
class AdaptState:
    """What came of the calls is weighed: go on, change the plan, or ask."""

    outcomes: tuple[CallOutcome, ...]


@dataclass(frozen=True, slots=True)
class RetryState:
    """Something is done once more, for a reason: a call, or else the question to the model."""

    reason: str
    again: ObserveState | None = None


@dataclass(frozen=True, slots=True)
class EndState:
    """The run is over, or stops until somebody answers or allows more."""

    outcome: RunOutcome
    report: str


RunState = PlanState | ActState | ObserveState | AdaptState | RetryState | EndState


def state_graph(work: Mapping[type, Callable[..., Any]]) -> dict[str, tuple[str, ...]]:
    """Which states may follow each, by their names.

    Args:
        work: The method that does each state's work.
    """
    graph = {}
    for state, method in work.items():
        hint = get_type_hints(method)["return"]
        following = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        graph[state.__name__] = tuple(kind.__name__ for kind in following)
    return graph
