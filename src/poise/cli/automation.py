"""``poise automation``."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from poise.cli.default_command import AutomationGroup
from poise.cli.options import Force, Json
from poise.cli.work import note, working
from poise.counting import counted

__all__ = ["app"]

app = typer.Typer(cls=AutomationGroup, no_args_is_help=True, help="Do a finished run's steps again, without a model.")


@app.callback()
def automation() -> None:
    """Do a finished run's steps again, without a model."""


@app.command("save")
def automation_save_command(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of a run that reached its goal.", show_default=False)
    ],
    tools: Annotated[
        Path, typer.Option("--tools", metavar="FILE", dir_okay=False, help="The run's tools.", show_default=False)
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", dir_okay=False, help="YAML to write.", show_default=False)
    ],
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write a finished run's calls as fixed steps."""
    from poise.cli import facts

    with working():
        from poise.agent import open_tools, save_automation

        with open_tools(tools):
            automation = save_automation(run, tools, out, force=force)
    if as_json:
        facts.print_json({"out": str(out), **automation.model_dump(mode="json")})
        return
    typer.echo(f"{out}: {counted(len(automation.steps), 'step')}")
    note(f"Next: poise automation run {out}")


@app.command("run")
def automation_run_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", dir_okay=False, help="Fixed steps.", show_default=False)],
    changed: Annotated[
        Literal["stop", "go"],
        typer.Option("--changed", help="What is done where a step reads something else than the run did."),
    ] = "stop",
    as_json: Json = False,
) -> None:
    """Do fixed steps, without a model and without asking.

    Exit code 0: all were done; 1: one failed, and those after it were left.
    """
    from dataclasses import asdict

    from poise.cli import facts
    from poise.cli.render import plain_text

    with working():
        from poise.agent import load_automation, open_tools, run_automation

        automation = load_automation(file)
        with open_tools(file.parent / automation.tools) as tools:
            lines: list[str] = []
            with contextlib.redirect_stdout(sys.stderr):  # what tools print is no result of the command
                result = run_automation(automation, tools, file.parent, changed=changed, listen=lines.append)
    if as_json:
        facts.print_json(asdict(result))
    else:
        for line in lines:
            typer.echo(plain_text(line))
        typer.echo(plain_text(f"{result.done:,} of {counted(result.steps, 'step')} done. {result.problem}").strip())
    if result.problem:
        raise typer.Exit(1)
