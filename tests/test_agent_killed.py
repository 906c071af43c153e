"""Runs of agents that are killed at any moment and run again: the same end, and nothing done twice."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from agent_server import ScriptedModel, finish
from poise.agent import AgentSettings, EndpointModel, Nobody, ToolsFile, open_tools, run_agent
from poise.agent.records import read_records
from poise.settings import check_settings

STEPS = 8
TOOLS = '''"""Tools with effects outside: each call is a row that says when it was made."""

import sqlite3
import time
from pathlib import Path

DB = Path(__file__).with_name("effects.sqlite")


def _row(kind, text, key):
    with sqlite3.connect(DB, timeout=30) as db:
        db.execute("insert or ignore into effects values (?, ?, ?)", (kind, text, key))
    time.sleep(0.02)


def book(seat: str, idempotency_key: str) -> str:
    """Book a seat."""
    _row("book", seat, idempotency_key)
    return f"booked {seat}"


def pay(amount: int) -> str:
    """Pay; what is sent twice is paid twice."""
    _row("pay", str(amount), None)
    return f"paid {amount}"
'''
FINDS_TESTS = os.environ | {
    "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
}
RUN = """
import sys
from pathlib import Path
from poise.agent import AgentSettings, EndpointModel, Nobody, ToolsFile, open_tools, run_agent
from poise.settings import check_settings
from test_agent_killed import SETTINGS
folder = Path(sys.argv[2])
with open_tools(check_settings(SETTINGS, ToolsFile), folder) as tools:
    run_agent("a goal", EndpointModel(sys.argv[1]), tools, folder / "run", AgentSettings(approve=frozenset()))
"""
SETTINGS: dict[str, Any] = {
    "files": {"folder": "files", "write": True},
    "functions": [
        {"function": "kill_tools:book", "touches": ["network"], "repeatable": True},
        {"function": "kill_tools:pay", "touches": ["network"]},
    ],
}


def script() -> list[Any]:
    turns: list[Any] = []
    for n in range(STEPS):
        turns += [
            ("append_file", {"path": "log.txt", "text": f"line {n}\n"}),
            ("write_file", {"path": f"{n}.txt", "text": str(n)}),
            [("book", {"seat": f"{n}A"}), ("pay", {"amount": n})],
        ]
    return [*turns, finish("All is done.")]


def effects(folder: Path) -> list[tuple[str, str]]:
    with sqlite3.connect(folder / "effects.sqlite") as db:
        return sorted(db.execute("select kind, text from effects").fetchall())


def begin(folder: Path) -> None:
    folder.mkdir()
    (folder / "kill_tools.py").write_text(TOOLS)
    with sqlite3.connect(folder / "effects.sqlite") as db:
        db.execute("create table effects (kind text, text text, key text unique)")


def go_on(server: ScriptedModel, folder: Path) -> str:
    """Run again as somebody would who looks whether a payment in flight was made, and answers."""
    sys.modules.pop("kill_tools", None)
    rows = read_records(folder / "run") if (folder / "run" / "steps.jsonl").exists() else []
    last = next((row for row in reversed(rows) if row["kind"] not in ("pause", "fault")), {"kind": ""})
    reply = None
    if last["kind"] == "intent" and last["tool"] == "pay":
        happened = ("pay", str(last["arguments"]["amount"])) in effects(folder)
        reply = "happened" if happened else "repeat"
    with open_tools(check_settings(SETTINGS, ToolsFile), folder) as tools:
        model = EndpointModel(server.url)
        settings = AgentSettings(approve=frozenset())
        result = run_agent("a goal", model, tools, folder / "run", settings, person=Nobody(reply))
        model.close()
    return result.outcome


@pytest.mark.slow
def test_killed_at_20_moments_ends_the_same_and_does_nothing_twice(tmp_path: Path) -> None:
    server = ScriptedModel(script())
    expected = sorted([("book", f"{n}A") for n in range(STEPS)] + [("pay", str(n)) for n in range(STEPS)])
    moments = random.Random(20)
    cut: list[int] = []
    for number in range(20):
        folder = tmp_path / str(number)
        begin(folder)
        target = moments.randint(4, 12 * STEPS)  # records after which the run is killed, and a moment more
        process = subprocess.Popen(
            [sys.executable, "-c", RUN, server.url, str(folder)], stderr=subprocess.DEVNULL, env=FINDS_TESTS
        )
        records = folder / "run" / "steps.jsonl"
        while process.poll() is None and (not records.exists() or records.read_bytes().count(b"\n") < target):
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.wait()
        cut.append(records.read_bytes().count(b"\n"))
        assert go_on(server, folder) == "done"
        assert effects(folder) == expected, number
        files = {path.name: path.read_text() for path in (folder / "files").iterdir()}
        log = "".join(f"line {n}\n" for n in range(STEPS))
        assert files == {**{f"{n}.txt": str(n) for n in range(STEPS)}, "log.txt": log}, number
    server.stop()
    assert len(set(cut)) > 10, "the runs were cut at many places"
