"""One call of a tool: checked, approved, announced, done, and on record."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from poise.agent.limits import AgentLimits, RunUse
from poise.agent.model_endpoint import RequestedCall
from poise.agent.person import PendingCall, Person, recorded_choice
from poise.agent.records import RunRecords
from poise.agent.result_guard import ResultGuard
from poise.agent.states import CallOutcome, EndState
from poise.agent.tool import AgentTool, ToolContext
from poise.errors import ToolFailed, first_line
from poise.storage.content_hash import content_key

__all__ = ["CALL_SECONDS", "CallRunner", "arguments_object", "call_text", "perform_call"]

CALL_SECONDS = 300.0
MOST_REPEATED = 4_000  # characters of an argument in records beside its call's
MOST_RECORDED = 200_000  # characters of an output
IN_FLIGHT_ANSWERS = ("repeat", "happened", "skip")


class CallRunner:
    """Makes calls of an agent's tools.

    Args:
        tools: Tools by name.
        records: The run's records.
        limits: How much it may use.
        use: What it has used; calls and their seconds are added.
        person: Who approves.
        approve: What a tool may not touch without approval.
        run_key: Name of the run, which every idempotency key is made from.
        guard: What reads outputs before the model does.
    """

    def __init__(
        self,
        tools: Mapping[str, AgentTool],
        records: RunRecords,
        limits: AgentLimits,
        use: RunUse,
        *,
        person: Person,
        approve: Collection[str],
        run_key: str,
        guard: ResultGuard | None = None,
    ) -> None:
        self._tools, self._records, self._limits, self._use = tools, records, limits, use
        self._person, self._approve, self._run_key = person, frozenset(approve), run_key
        self._guard = guard

    def run(self, call: RequestedCall) -> CallOutcome | EndState:
        """Make a call, or say why not; an end where the run may not go on."""
        try:
            tool, arguments = self._checked(call)
        except ToolFailed as error:
            arguments_text = shortened_value(call.arguments)
            self._records.note("rejected", tool=call.name, arguments=arguments_text, reason=str(error))
            return CallOutcome(call, ok=False, output=str(error), kind="arguments")
        if not self._records.replaying and (limit := self._use.reached(self._limits, call=True)):
            return EndState("limit", f"{limit}, calls of tools among them.")
        if refusal := self._refusal(tool, arguments):
            return CallOutcome(call, ok=False, output=refusal, kind="refused")
        return self._announced(call, tool, arguments)

    def _checked(self, call: RequestedCall) -> tuple[AgentTool, dict[str, Any]]:
        if call.name == "finish":
            raise ToolFailed("finish is called alone, with outcome done, impossible or question, and a report.")
        tool = self._tools.get(call.name)
        if tool is None:
            raise ToolFailed(f"There is no tool {call.name!r}; there are {', '.join([*self._tools, 'finish'])}.")
        return tool, tool.check(arguments_object(call))

    def _refusal(self, tool: AgentTool, arguments: dict[str, Any]) -> str:
        """Why a call may not be made; empty where it may."""
        touches = sorted(tool.touches & self._approve)
        if not touches:
            return ""
        recorded = {name: shortened_value(value) for name, value in arguments.items()}
        row = self._records.take("approval", tool=tool.name, arguments=recorded)
        if row is None:
            approved = self._person.approves(PendingCall(tool=tool.name, arguments=arguments, touches=tuple(touches)))
            decision = {True: "approved", False: "refused", None: "nobody"}[approved]
            row = self._records.add("approval", tool=tool.name, arguments=recorded, touches=touches, decision=decision)
        kinds = " and ".join(touches)
        return {
            "approved": "",
            "refused": "The user refused this call. Do not make it again; find another way, or report.",
            "nobody": f"This call touches {kinds}, which needs approval, and nobody is there to give it.",
        }[row["decision"]]

    def _announced(self, call: RequestedCall, tool: AgentTool, arguments: dict[str, Any]) -> CallOutcome | EndState:
        """Announce a call, make it, and put its result on record; what was in flight at a kill is not done blindly."""
        key = content_key(run=self._run_key, number=self._use.calls, tool=tool.name, arguments=arguments)
        intent = self._records.take("intent", tool=tool.name, arguments=arguments, key=key)
        was_announced = intent is not None
        if intent is None:
            prepared = tool.prepare(arguments) if tool.prepare else None
            intent = self._records.add("intent", tool=tool.name, arguments=arguments, key=key, prepared=prepared)
        self._use.calls += 1
        result = self._records.take("result")
        if result is None and was_announced and not tool.repeatable:
            decision = self._in_flight(tool, arguments)
            if isinstance(decision, EndState):
                return decision
            result = self._records.take("result")
            if result is None and decision != "repeat":
                result = self._records.add("result", **_settled_by_user(decision))
        if result is None:
            seconds = self._use.seconds_left(self._limits, CALL_SECONDS)
            context = ToolContext(key=key, seconds=seconds, prepared=intent["prepared"])
            result = self._records.add("result", **perform_call(tool, arguments, context))
        self._use.seconds += result["seconds"]
        outcome = CallOutcome(call, result["ok"], result["output"], result["problem"], may_repeat=tool.repeatable)
        return self._guard.checked(outcome) if self._guard else outcome

    def _in_flight(self, tool: AgentTool, arguments: dict[str, Any]) -> str | EndState:
        """What is to become of a call that may have happened before a kill."""
        question = (
            f"The call {call_text(tool.name, arguments)} was in flight when the run was killed, and may have happened. "
            "Look, and answer: repeat (make it again), happened (it was done), or skip (it was not, and is left out)."
        )
        reply = recorded_choice(self._records, self._person, question, IN_FLIGHT_ANSWERS)
        return EndState("asks", question) if reply is None else reply


def _settled_by_user(decision: str) -> dict[str, Any]:
    happened = decision == "happened"
    output = (
        "It was done before the run was interrupted; what it gave is lost."
        if happened
        else "It was not done: the run was interrupted, and the user leaves it out."
    )
    return {"ok": happened, "output": output, "problem": "" if happened else "failed", "seconds": 0.0}


def arguments_object(call: RequestedCall) -> dict[str, Any]:
    """Arguments as a model wrote them, read.

    Raises:
        ToolFailed: they are no JSON object.
    """
    try:
        values = json.loads(call.arguments or "{}")
    except (ValueError, RecursionError) as error:
        raise ToolFailed(f"The arguments of {call.name} are no JSON: {first_line(error)}.") from error
    if not isinstance(values, dict):
        raise ToolFailed(f"The arguments of {call.name} are no JSON object.")
    return values


def perform_call(tool: AgentTool, arguments: dict[str, Any], context: ToolContext) -> dict[str, Any]:
    """Make a call in a thread of its own and wait for it as long as it may take; its result as it is put on record."""
    results: queue.SimpleQueue[tuple[bool, str, str]] = queue.SimpleQueue()
    begin = time.monotonic()
    with _in_one_folder():
        threading.Thread(target=_call_into, args=(tool, arguments, context, results), daemon=True).start()
        try:
            ok, output, problem = results.get(timeout=context.seconds)
        except queue.Empty:
            ok, output = False, f"{tool.name} did not end within {context.seconds:.0f} s; it may still happen."
            problem = "passing" if tool.repeatable else "failed"
    seconds = round(time.monotonic() - begin, 3)
    return {"ok": ok, "output": output[:MOST_RECORDED], "problem": problem, "seconds": seconds}


@contextlib.contextmanager
def _in_one_folder() -> Iterator[None]:
    """Take the process back to the folder it is in: a function may leave it, and paths are named from there."""
    try:
        before = Path.cwd()
    except OSError:  # it is gone, and no path is named from there
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.chdir(before)


def _call_into(
    tool: AgentTool,
    arguments: dict[str, Any],
    context: ToolContext,
    results: queue.SimpleQueue[tuple[bool, str, str]],
) -> None:
    try:
        results.put((True, tool.call(arguments, context), ""))
    except ToolFailed as error:
        results.put((False, str(error), error.kind))
    except BaseException as error:  # whatever a user's function raises, SystemExit too
        results.put((False, f"{type(error).__name__}: {first_line(error)}", "failed"))


def shortened_value(value: Any) -> Any:
    """A value as it is repeated on record: the model's own record, or the call's, has all of it."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if len(text) <= MOST_REPEATED:
        return value
    return f"{text[:MOST_REPEATED]}… {len(text) - MOST_REPEATED:,} more characters"


def call_text(tool: str, arguments: Mapping[str, Any]) -> str:
    """A call in a line, long arguments cut."""
    parts = []
    for name, value in arguments.items():
        text = json.dumps(value, ensure_ascii=False)
        parts.append(f"{name}={text if len(text) <= 80 else text[:77] + '…'}")
    return f"{tool}({', '.join(parts)})"
