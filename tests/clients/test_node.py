"""OpenAI's package for JavaScript and the AI SDK, where node and their packages are there."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from asked import TOOL

pytestmark = pytest.mark.clients
HERE = Path(__file__).parent / "node"


def run(script: str, address: str) -> Any:
    if not shutil.which("node") or not (HERE / "node_modules").is_dir():
        pytest.skip("node, or node_modules in tests/clients/node, is not there; `make test-clients` installs them")
    command = ["node", str(HERE / script), address, json.dumps(TOOL)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_openai_for_javascript(address: str) -> None:
    got = run("openai_client.mjs", address)
    assert got["plain"] == got["streamed"] != ""
    assert got["finish"] == "tool_calls"
    assert json.loads(got["arguments"])["city"] in ("Rome", "Oslo")
    assert got["readings"] > 0
    assert got["fault"] == "context_length_exceeded"


def test_the_ai_sdk(address: str) -> None:
    got = run("ai_sdk.mjs", address)
    assert got["plain"] == got["streamed"] != ""
    assert got["call"]["toolName"] == "get_weather"
    assert got["call"]["input"]["days"] in (1, 2)
    assert got["finish"] == "tool-calls"
    assert got["held"]["city"] in ("Rome", "Oslo")
