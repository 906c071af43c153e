"""How many of the tasks for agents a model solves by itself: ``python benchmarks/agent_tasks.py --model M``.

Every task is run once, greedily, with the tools that its script would use, within ``--steps`` answers and ``--seconds``
of work. What is finished is kept in ``--out``, and the same command goes on. A server answers several tasks sooner
together than one after the other: ``--endpoint URL --at-once 8``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import agent_task_set
from poise.agent import AgentLimits, AgentSettings, EndpointModel, ServedModel, ToolsFile, open_tools, run_agent
from poise.agent.records import read_records
from poise.model import load_model
from poise.settings import check_settings
from poise.statistics.conformal import exact_interval
from poise.storage.journal import Journal


def attempt(task: agent_task_set.Task, model: EndpointModel, settings: AgentSettings) -> dict[str, object]:
    """Run a task in a folder of its own, and say what came of it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["AGENT_TASK_STATE"] = str(folder / "state")
        tools = check_settings(agent_task_set.prepare(task, folder), ToolsFile)
        (folder / "files").mkdir(exist_ok=True)
        with open_tools(tools, folder) as toolbox:
            result = run_agent(task.goal, model, toolbox, folder / "run", settings)
        rows = read_records(folder / "run")
        return {
            "solved": task.check(folder / "files", result),
            "outcome": result.outcome,
            "answers": result.use.answers,
            "calls": result.use.calls,
            "failed_calls": sum(row["kind"] == "result" and not row["ok"] for row in rows),
            "rejected_calls": sum(row["kind"] == "rejected" for row in rows),
            "tokens": result.use.prompt_tokens + result.use.answer_tokens,
            "seconds": round(result.use.seconds, 1),
            "report": result.report[:300],
        }


def attempt_at(endpoint: str, name: str, task: str, settings: AgentSettings) -> dict[str, object]:
    """`attempt` in a process of its own: a task's state is in the environment."""
    model = EndpointModel(endpoint, name)
    try:
        return attempt(next(one for one in agent_task_set.TASKS if one.name == task), model, settings)
    finally:
        model.close()


def attempts(
    left: list[agent_task_set.Task], options: argparse.Namespace, settings: AgentSettings
) -> Iterator[tuple[str, dict[str, object]]]:
    """Each task by name with what came of it, as they end."""
    if not left:
        return
    if options.endpoint:
        with ProcessPoolExecutor(options.at_once, multiprocessing.get_context("spawn")) as pool:
            begun = {
                pool.submit(attempt_at, options.endpoint, options.model, task.name, settings): task for task in left
            }
            for done in as_completed(begun):
                yield begun[done].name, done.result()
        return
    model = ServedModel(load_model(options.model))
    for task in left:
        yield task.name, attempt(task, model, settings)
    model.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="A model that is loaded here; with --endpoint its name there.")
    parser.add_argument("--endpoint", help="A server that runs already.")
    parser.add_argument("--at-once", type=int, default=1, help="Tasks at a time, with --endpoint.")
    parser.add_argument("--out", type=Path, default=Path("agent-tasks.jsonl"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--answer-tokens", type=int, default=200)
    args = parser.parse_args()
    limits = AgentLimits(
        steps=args.steps, seconds=args.seconds, answer_tokens=args.answer_tokens, output=1500, revisions=3
    )
    settings = AgentSettings(limits=limits, approve=frozenset())
    journal = Journal(args.out)
    left = [task for task in agent_task_set.TASKS if task.name not in journal]
    for name, row in attempts(left, args, settings):
        journal.append([(name, row)])
        verdict = "solved" if row["solved"] else "not"
        print(f"{verdict:7} {name:18} {row['outcome']:10} {json.dumps(row)}", flush=True)
    rows = [journal[task.name] for task in agent_task_set.TASKS]
    solved = sum(row["solved"] for row in rows)
    low, high = exact_interval(solved, len(rows))
    print(f"\n{args.model}: {solved} of {len(rows)} tasks solved, {solved / len(rows):.0%} [{low:.0%}, {high:.0%}]")


if __name__ == "__main__":
    main()
