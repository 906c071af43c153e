"""Files of automations that nobody can have saved, and folders that they cannot run in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from poise.cli import app

TOOLS = "files: {folder: work, write: true}\n"
STEP = '- {tool: write_file, arguments: \'{"path": "a.txt", "text": "x"}\'}'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    (tmp_path / "tools.yaml").write_text(TOOLS)
    return tmp_path


def run(folder: Path, text: str | bytes, *more: str) -> Any:
    path = folder / "sum.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return CliRunner().invoke(app, ["automation", "run", str(path), *more])


def automation(*steps: str, tools: str = "tools.yaml") -> str:
    return "\n".join(["goal: write x", f"tools: {tools}", "steps:", *steps]) + "\n"


class TestOddFiles:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("", "goal"),
            ("- 1\n- 2\n", "no settings"),
            (b"\xff\xfe\x00", ""),
            ("goal: x\ntools: tools.yaml\nsteps: []\n", "steps"),
            ("goal: x\nsteps: [{tool: a}]\n", "tools"),
            (automation("- {tool: write_file, argument: '{}'}"), "argument"),
            (automation("- {tool: no_such_tool}"), "There is no tool no_such_tool"),
            (automation(STEP, tools="missing.yaml"), "missing.yaml"),
            (automation(STEP, tools="work"), "work"),
            ("&a [*a, *a]", ""),
        ],
    )
    def test_are_a_sentence_and_do_nothing(self, folder: Path, text: str | bytes, words: str) -> None:
        result = run(folder, text)
        assert result.exit_code != 0
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert words in result.output, result.output
        assert list((folder / "work").iterdir()) == []

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ("no json", "no JSON"),
            ("[1]", "no JSON object"),
            ('{"path": 7, "text": "x"}', "path"),
            ('{"path": "../out.txt", "text": "x"}', "0 of 2 steps done"),
            ('{"path": "a\\u0000.txt", "text": "x"}', "0 of 2 steps done"),
            ("[" * 5000, "no JSON"),
        ],
    )
    def test_of_odd_arguments_stop_at_their_step(self, folder: Path, arguments: str, words: str) -> None:
        step = f"- {{tool: write_file, arguments: {json.dumps(arguments)}}}"
        result = run(folder, automation(step, STEP))
        assert result.exit_code == 1, result.output
        assert words in result.output
        assert list((folder / "work").iterdir()) == []

    def test_count_one_step_as_one(self, folder: Path) -> None:
        result = run(folder, automation(STEP))
        assert result.exit_code == 0, result.output
        assert "1 of 1 step done." in result.output
        assert (folder / "work" / "a.txt").read_text() == "x"
