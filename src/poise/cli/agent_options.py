"""Options of ``poise agent``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

__all__ = [
    "AgentGoal",
    "AgentModelName",
    "ApprovalSeconds",
    "ApproveOption",
    "EndpointURL",
    "InjectionActionOption",
    "LongestAnswer",
    "MemoryOption",
    "PersonaText",
    "ResultGuardrail",
    "RunAnswer",
    "RunFolder",
    "RunOut",
    "RunPagePort",
    "SpendBudget",
    "StepBudget",
    "TimeBudget",
    "TokenBudget",
    "TokenPrice",
    "ToolsOption",
    "WatchOption",
]

AGENT_LIMITS = "How much it may use"
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.", show_default=False)]
ToolsOption = Annotated[
    Path | None,
    typer.Option(
        "--tools",
        metavar="FILE",
        dir_okay=False,
        help="YAML that names the tools. None: a calculator.",
        show_default=False,
    ),
]
AgentGoal = Annotated[str, typer.Argument(metavar="GOAL", help="What is to be reached.", show_default=False)]
RunOut = Annotated[
    Path,
    typer.Option(
        "--out",
        "-o",
        metavar="RUN",
        file_okay=False,
        show_default=False,
        help="Folder of the run; the same command goes on with a part of it.",
    ),
]
AgentModelName = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="M", help="A model, served here; with --endpoint its name there.", show_default=False
    ),
]
EndpointURL = Annotated[
    str | None,
    typer.Option(
        "--endpoint", metavar="URL", help="An OpenAI-compatible server, usually ending in /v1.", show_default=False
    ),
]
ResultGuardrail = Annotated[
    Path | None,
    typer.Option(
        "--guardrail",
        metavar="FILE",
        dir_okay=False,
        show_default=False,
        help="Read what tools and the memory give for hidden instructions, by this fitted guardrail; with --model.",
    ),
]
InjectionActionOption = Annotated[
    Literal["note", "drop", "ask"],
    typer.Option("--on-injection", help="What is done about an output that seems to hold instructions."),
]
WatchOption = Annotated[
    list[str] | None,
    typer.Option(
        "--watch",
        metavar="V",
        show_default=False,
        help="Read this trait at every step: a vector file, or with --endpoint its name at a Poise server. Repeat.",
    ),
]
ApproveOption = Annotated[
    str,
    typer.Option("--approve", metavar="KINDS", help="What waits for approval: read, write, network, shell, or none."),
]
RunPagePort = Annotated[
    int | None,
    typer.Option(
        "--page",
        metavar="PORT",
        min=0,
        max=65535,
        show_default=False,
        help="Show the run while it goes on a page of this machine, where calls are approved too; 0 takes a free port.",
    ),
]
ApprovalSeconds = Annotated[
    float,
    typer.Option(
        "--approval-seconds", metavar="S", min=1, help="With --page: a call that nobody decides so long is not made."
    ),
]
RunAnswer = Annotated[
    str | None,
    typer.Option("--answer", metavar="TEXT", help="Answer to a run that stopped with a question.", show_default=False),
]
PersonaText = Annotated[str, typer.Option("--persona", metavar="TEXT", help="Text that the system prompt begins with.")]
StepBudget = Annotated[
    int,
    typer.Option("--budget", metavar="N", min=1, help="Most answers, and most calls.", rich_help_panel=AGENT_LIMITS),
]
TokenBudget = Annotated[
    int | None,
    typer.Option(
        "--max-tokens", metavar="N", help="Most tokens in all.", show_default=False, rich_help_panel=AGENT_LIMITS
    ),
]
TimeBudget = Annotated[
    float | None,
    typer.Option(
        "--max-seconds", metavar="S", help="Most seconds of work.", show_default=False, rich_help_panel=AGENT_LIMITS
    ),
]
SpendBudget = Annotated[
    float | None,
    typer.Option(
        "--max-spend", metavar="X", help="Most money, by --price.", show_default=False, rich_help_panel=AGENT_LIMITS
    ),
]
TokenPrice = Annotated[
    str | None,
    typer.Option(
        "--price",
        metavar="IN,OUT",
        help="Prices of a million tokens of prompts and of answers.",
        show_default=False,
        rich_help_panel=AGENT_LIMITS,
    ),
]
LongestAnswer = Annotated[
    int, typer.Option("--max-new-tokens", metavar="N", min=16, help="Longest answer.", rich_help_panel=AGENT_LIMITS)
]
MemoryOption = Annotated[
    Path | None,
    typer.Option(
        "--memory",
        metavar="DIR",
        file_okay=False,
        help="Recall from this memory, and write into it what came of the run.",
        show_default=False,
    ),
]
