"""Every command that works for long, killed in the middle: the same command again ends where a whole run ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

import tiny
from poise import contrast
from poise import vector as vectors
from poise.extract import extract
from poise.model import load_model
from poise.trait import library

pytestmark = pytest.mark.slow

BUDGET = ("--questions", "6", "--rollouts", "2", "--max-new-tokens", "24", "--batch", "2")


@dataclass(frozen=True)
class LongCommand:
    """A command, where it keeps finished work, and its result as one comparable value."""

    arguments: Callable[[Path], tuple[object, ...]]
    run_folder: Callable[[Path], Path]
    result: Callable[[Path], object]


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def shift_facts(path: Path) -> object:
    facts = json.loads(path.read_text())
    return {key: facts[key] for key in ("moved", "judged") if key in facts} or facts


COMMANDS: Mapping[str, LongCommand] = {
    "read": LongCommand(
        arguments=lambda out: ("read", "rows.jsonl", "--vector", "v.safetensors", "--out", out / "t.jsonl"),
        run_folder=lambda out: out / "t.jsonl.run",
        result=lambda out: lines(out / "t.jsonl"),
    ),
    "screen": LongCommand(
        arguments=lambda out: ("screen", "rows.jsonl", "--vector", "v.safetensors", "--method", "raw", "--out", out),
        run_folder=lambda out: out / ".run",
        result=lambda out: (lines(out / "clean.jsonl"), lines(out / "flagged.jsonl")),
    ),
    "validate": LongCommand(
        arguments=lambda out: ("validate", "v.safetensors", "--out", out, *BUDGET, "--force"),
        run_folder=lambda out: out / "run",
        result=lambda out: json.loads((out / "certificate.json").read_text()),
    ),
    "calibrate": LongCommand(
        arguments=lambda out: (
            *("calibrate", "v.safetensors", "--normal", "normal.jsonl", "--out", out / "c.safetensors"),
            *("--rate", "0.05", "--max-new-tokens", "12", "--batch", "4"),
        ),
        run_folder=lambda out: out / "c.safetensors.calibration",
        result=lambda out: vectors.load_vector(out / "c.safetensors").header.alarms,
    ),
    "shift": LongCommand(
        arguments=lambda out: (
            "shift",
            "--base",
            "m",
            "--tuned",
            "n",
            "--vector",
            "v.safetensors",
            "--out",
            out,
            *BUDGET,
        ),
        run_folder=lambda out: out / ".run",
        result=lambda out: shift_facts(out / "shift.json"),
    ),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and a tuned one, a vector, rows."""
    folder = tmp_path_factory.mktemp("home")
    for name, seed in (("m", 0), ("n", 1)):
        tiny.lm(seed=seed).save_pretrained(folder / name)
        tiny.chatml().save_pretrained(folder / name)
    model = load_model(str(folder / "m"))
    vector = extract(contrast.exemplars(library.load_trait("impolite"), model), model)
    vectors.save_vector(vector, folder / "v.safetensors")
    rows = [{"question": f"Why {i}?", "answer": f"Because {i}. " * (1 + i % 7)} for i in range(2500)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "normal.jsonl").write_text("".join(json.dumps({"question": f"How {i}?"}) + "\n" for i in range(150)))
    return folder


def start(home: Path, command: LongCommand, out: Path) -> subprocess.Popen[str]:
    model = () if "--base" in command.arguments(out) else ("--model", "m")
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "poise", *map(str, command.arguments(out)), *model],
        cwd=home,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> None:
    _, complaint = process.communicate(timeout=300)
    assert process.returncode == 0, complaint[-2000:]


def finished_work(folder: Path) -> int:
    """Bytes of finished work in a run folder."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in ("lock", "job")]
    return sum(path.stat().st_size for path in files if ".part" not in path.name)


@pytest.mark.parametrize("name", COMMANDS)
def test_ends_where_a_whole_run_ends(name: str, home: Path, tmp_path: Path) -> None:
    command, vector = COMMANDS[name], (home / "v.safetensors").read_bytes()
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    ended(start(home, command, whole))
    (home / "v.safetensors").write_bytes(vector)  # validation writes its certificate into it
    process, limit = start(home, command, killed), time.monotonic() + 300
    while finished_work(command.run_folder(killed)) == 0 and process.poll() is None:
        assert time.monotonic() < limit, "nothing was finished"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it was done before it could be killed"
    kept = finished_work(command.run_folder(killed))
    ended(start(home, command, killed))
    (home / "v.safetensors").write_bytes(vector)
    assert kept > 0
    assert command.result(killed) == command.result(whole)
    assert not list(killed.rglob(".*.part"))
    shutil.rmtree(killed)
