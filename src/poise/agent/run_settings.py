"""How a run of an agent goes, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from poise.agent.limits import AgentLimits, RunUse
from poise.agent.states import RunOutcome
from poise.agent.tool import TOUCHES
from poise.arguments import check_choice

__all__ = ["AgentResult", "AgentSettings", "InjectionAction"]

InjectionAction = Literal["note", "drop", "ask"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """How a run goes.

    Attributes:
        limits: How much it may use.
        approve: What a tool may not touch without approval: any of read, write, network, shell.
        persona: Text that the system prompt begins with.
        on_injection: What is done about an output that seems to hold instructions: ``note``, ``drop`` or ``ask``.
        recall: Most tokens of what a memory recalls for the goal.
    """

    limits: AgentLimits = field(default_factory=AgentLimits)
    approve: frozenset[str] = frozenset({"write", "shell"})
    persona: str = ""
    on_injection: InjectionAction = "drop"
    recall: int = 800

    def __post_init__(self) -> None:
        for touch in self.approve:
            check_choice("`approve`", touch, TOUCHES)
        check_choice("`on_injection`", self.on_injection, get_args(InjectionAction))


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentResult:
    """How a run ended.

    Attributes:
        outcome: ``done``, ``answered`` (in words, without saying that the goal is reached), ``impossible``, ``asks``
            or ``limit``; the last two go on when it is run again with an answer, or more to use.
        report: What the model reports, the question, or the limit.
        use: What it has used.
        plan: The plan as it is now.
        revisions: How often the plan was changed.
        alarms: Readings above their thresholds.
    """

    outcome: RunOutcome
    report: str
    use: RunUse
    plan: str
    revisions: int
    alarms: int
