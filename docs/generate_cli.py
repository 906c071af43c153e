"""Writes ``docs/cli.md`` from the help of every command: ``python docs/generate_cli.py``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from typer.testing import CliRunner

from poise.cli import app

HEAD = """\
# The command line

Written by `python docs/generate_cli.py` from the commands' own help; change the help, not this page.

Results go to stdout; progress and words to stderr. With `--json` stdout is one JSON object. Exit code 0: done;
1: a lint found an error; 2: something to fix, said in one sentence; 130: interrupted.
"""


def pages(command: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    """A section for a command, then for each of its subcommands."""
    said = CliRunner().invoke(app, [*path, "--help"], prog_name="poise", env={"COLUMNS": "80"})
    unstyled = re.sub(r"\x1b\[[0-9;]*m", "", said.stdout)  # a CI may force colours
    text = "\n".join(line.rstrip() for line in unstyled.splitlines()).strip("\n")
    yield f"## {' '.join(('poise', *path))}\n\n```text\n{text}\n```\n"
    for name in command.list_commands(None) if hasattr(command, "list_commands") else ():
        yield from pages(command.commands[name], (*path, name))


def page() -> str:
    """The whole of ``docs/cli.md``."""
    return "\n".join([HEAD, *pages(typer.main.get_command(app))])


if __name__ == "__main__":
    (Path(__file__).parent / "cli.md").write_text(page(), encoding="utf-8")
