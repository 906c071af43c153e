"""The servers that every client talks to. This environment has the clients and no Poise: theirs is POISE_PYTHON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODEL = "poise-test"
QWEN = os.environ.get("POISE_QWEN", "")


def serve(folder: Path, *model: str, script: str = "server.py") -> Iterator[list[str]]:
    python = os.environ.get("POISE_PYTHON", str(ROOT / ".venv" / "bin" / "python"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [python, "-W", "ignore", str(ROOT / "tests" / "clients" / script), str(folder), *model]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True, env=environment) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"{python} could not serve; run `make setup`, or set POISE_PYTHON.")
        yield json.loads(line)
        process.stdin.close()


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    yield from serve(tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="session")
def address(servers: list[str]) -> str:
    """The open server's."""
    return servers[0]


@pytest.fixture(scope="session")
def limited(servers: list[str]) -> str:
    """The one that wants a key."""
    return servers[1]


@pytest.fixture(scope="session")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One that follows runs, and whose model is held to a script."""
    for addresses in serve(tmp_path_factory.mktemp("scripted"), script="scripted.py"):
        yield addresses[0]


@pytest.fixture(scope="session")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of Qwen2.5-Coder-0.5B-Instruct, where POISE_QWEN names its folder."""
    if not QWEN:
        pytest.skip("POISE_QWEN names no folder of a Qwen2.5 model")
    for addresses in serve(tmp_path_factory.mktemp("qwen"), QWEN):
        yield addresses[0]


sys.path.insert(0, str(Path(__file__).parent))
warnings.simplefilter("ignore")  # the clients' own affair
