"""A run of an agent in a folder: what is checked before it, and the lock around it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from poise.agent.loop import AgentLoop
from poise.agent.memory import AgentMemory
from poise.agent.model_endpoint import AgentModel
from poise.agent.person import Nobody, Person
from poise.agent.records import RECORDS_FILE, RunRecords
from poise.agent.result_guard import ReadsResults, ResultGuard
from poise.agent.run_settings import AgentResult, AgentSettings
from poise.agent.tool import AgentTool
from poise.errors import InvalidArgument
from poise.storage.lock import locked
from poise.storage.output import lies_in

__all__ = ["run_agent"]

JOB = "agent"


def run_agent(
    goal: str,
    model: AgentModel,
    tools: Mapping[str, AgentTool],
    folder: Path | None,
    settings: AgentSettings | None = None,
    *,
    person: Person | None = None,
    memory: AgentMemory | None = None,
    reader: ReadsResults | None = None,
    listen: Callable[[Mapping[str, Any]], None] = lambda row: None,
) -> AgentResult:
    """Reach a goal, or say why not; in a folder that holds a part of the same run, go on with it.

    Args:
        goal: What is to be reached.
        model: Who decides.
        tools: What it can do.
        folder: Folder of the run; ``None`` keeps nothing.
        settings: How.
        person: Who approves and answers; nobody by default.
        memory: What recalls texts for the goal, and takes what came of it.
        reader: What reads tools' outputs and what is recalled for hidden instructions.
        listen: Called with each record as it is made.

    Raises:
        InvalidArgument: there is no goal, or the tools could write into the run's own folder.
        InvalidRun: the folder holds another run, or its records do not fit these tools.
        FolderInUse: the run is at work already.
        EndpointUnavailable: the model does not answer; running again goes on.
    """
    if not goal.strip():
        raise InvalidArgument("`goal` is empty; say what is to be reached.")
    for name, path in (("run's", folder), ("memory's", getattr(memory, "folder", None))):
        _check_out_of_reach(name, path, getattr(tools, "folder", None))
    with locked(folder, JOB) if folder else contextlib.nullcontext():
        records = RunRecords(folder.absolute() / RECORDS_FILE if folder else None, listen=listen)
        chosen, somebody = settings or AgentSettings(), person or Nobody()
        guard = None
        if reader is not None:
            guard = ResultGuard(
                reader=reader,
                action=chosen.on_injection,
                goal=goal.strip(),
                longest=chosen.limits.output,
                records=records,
                person=somebody,
            )
        loop = AgentLoop(goal.strip(), model, tools, records, chosen, somebody, memory, guard)
        return loop.result(loop.run())


def _check_out_of_reach(name: str, path: Path | None, tools: Path | None) -> None:
    """Check that the tools cannot write what the run rests on."""
    if path is not None and tools is not None and (lies_in(path, tools) or lies_in(tools, path)):
        raise InvalidArgument(
            f"The {name} folder {path} and the tools' folder {tools} lie in each other; choose another, so that the "
            "agent cannot change its own records."
        )
