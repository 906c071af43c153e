"""A finished run as fixed steps: the same calls in the same order, without a model.

What a run read is kept as a hash: where a step reads something else than the run did, the fixed steps after it may no
longer be right, and the automation stops before it does them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field

from poise.agent.call_runner import CALL_SECONDS, arguments_object, call_text, perform_call
from poise.agent.model_endpoint import RequestedCall
from poise.agent.records import read_records
from poise.agent.tool import AgentTool, ToolContext
from poise.errors import InvalidRun, ToolFailed
from poise.settings import FilledText, Settings, read_settings
from poise.storage.atomic_write import saving
from poise.storage.content_hash import content_key
from poise.storage.lock import one_at_a_time
from poise.storage.output import check_output

__all__ = ["Automation", "AutomationResult", "AutomationStep", "load_automation", "run_automation", "save_automation"]

AUTOMATION_HEAD = "# Fixed steps of a run of an agent; `poise automation run` does them without a model.\n"


class AutomationStep(Settings):
    """One call."""

    tool: FilledText = Field(description="Name of the tool.")
    arguments: str = Field("{}", description="Arguments as JSON.")
    reads: FilledText | None = Field(None, description="Hash of what it gave, for a tool that only reads.")


class Automation(Settings):
    """Calls in order."""

    goal: FilledText = Field(description="Goal of the run that they are from.")
    tools: FilledText = Field(description="The tools file, from this file's folder.")
    steps: tuple[AutomationStep, ...] = Field(min_length=1, max_length=10_000)


@dataclass(frozen=True, slots=True)
class AutomationResult:
    """What came of it.

    Attributes:
        done: Steps that were done.
        steps: All steps.
        problem: Why it stopped; empty where all were done.
    """

    done: int
    steps: int
    problem: str


def save_automation(run: Path, tools_file: Path, out: Path, *, force: bool = False) -> Automation:
    """Write a finished run's calls as fixed steps.

    Args:
        run: Folder of the run; it has to have ended with its goal reached.
        tools_file: Its tools.
        out: The YAML file.
        force: Whether a file that is there is written over.

    Raises:
        InvalidRun: the run is not at its end, did not reach its goal, or made no call.
        OutputExists: there is a file already.
    """
    check_output(out, inputs=[run, tools_file], force=force)
    rows = read_records(run)
    end = next((row for row in rows if row["kind"] == "end"), None)
    if end is None or end["outcome"] not in ("done", "answered"):
        outcome = f"ended as {end['outcome']}" if end else "is not at its end"
        raise InvalidRun(f"The run in {run} {outcome}; only a run that reached its goal can be done again as it was.")
    touches: Mapping[str, list[str]] = rows[0]["offered"]
    steps, intent = [], None
    for row in rows:
        if row["kind"] == "intent":
            intent = row
        elif row["kind"] == "result" and intent is not None and row["ok"]:
            reads_only = set(touches[intent["tool"]]) <= {"read", "network"}
            steps.append(
                AutomationStep(
                    tool=intent["tool"],
                    arguments=_sorted_json(intent["arguments"]),
                    reads=output_hash(row["output"]) if reads_only else None,
                )
            )
    if not steps:
        raise InvalidRun(f"The run in {run} made no call that succeeded; there is nothing to do again.")
    relative = os.path.relpath(tools_file.resolve(), out.resolve().parent)
    automation = Automation(goal=str(rows[0]["goal"]), tools=relative, steps=tuple(steps))
    with saving(out) as temporary:
        text = yaml.safe_dump(
            automation.model_dump(exclude_none=True, mode="json"), sort_keys=False, allow_unicode=True
        )
        temporary.write_text(AUTOMATION_HEAD + text, encoding="utf-8")
    return automation


def _sorted_json(values: Any) -> str:
    return json.dumps(values, ensure_ascii=False, sort_keys=True)


def output_hash(output: str) -> str:
    """What a step's output is known by."""
    return hashlib.sha256(output.encode(errors="surrogatepass")).hexdigest()[:32]


def load_automation(path: Path) -> Automation:
    """Fixed steps from a YAML file.

    Raises:
        InvalidSettings: it cannot be read, or says what makes no sense; names file, line and field.
    """
    return read_settings(path, Automation)


def run_automation(
    automation: Automation,
    tools: Mapping[str, AgentTool],
    folder: Path,
    *,
    changed: Literal["stop", "go"] = "stop",
    listen: Callable[[str], None] = lambda line: None,
) -> AutomationResult:
    """Do fixed steps in order; the first that fails ends it.

    Args:
        automation: The steps.
        tools: Tools by name.
        folder: Folder in which no other automation runs meanwhile.
        changed: What is done where a step reads something else than the run did.
        listen: Told each step.

    Raises:
        FolderInUse: the same automation is at work.
        InvalidRun: a tool is not there.
    """
    if missing := sorted({step.tool for step in automation.steps} - tools.keys()):
        raise InvalidRun(f"There is no tool {', '.join(missing)} in {automation.tools}; add it, or save the run again.")
    with one_at_a_time(folder):
        for number, step in enumerate(automation.steps):
            problem = _do_step(automation, number, step, tools[step.tool], changed, listen)
            if problem:
                return AutomationResult(number, len(automation.steps), f"Step {number + 1}, {step.tool}: {problem}")
    return AutomationResult(len(automation.steps), len(automation.steps), "")


def _do_step(
    automation: Automation,
    number: int,
    step: AutomationStep,
    tool: AgentTool,
    changed: str,
    listen: Callable[[str], None],
) -> str:
    """Do a step; what is wrong, if anything."""
    try:
        arguments = tool.check(arguments_object(RequestedCall(id="", name=step.tool, arguments=step.arguments)))
        prepared = tool.prepare(arguments) if tool.prepare else None
    except ToolFailed as error:
        return str(error)
    key = content_key(goal=automation.goal, number=number, arguments=arguments)
    result = perform_call(tool, arguments, ToolContext(key=key, seconds=CALL_SECONDS, prepared=prepared))
    listen(call_text(tool.name, arguments))
    if not result["ok"]:
        return str(result["output"])
    if step.reads and output_hash(result["output"]) != step.reads and changed == "stop":
        return "it reads something else than the run did, and the steps after it may no longer be right."
    return ""
