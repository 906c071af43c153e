"""``poise demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from poise.cli.options import Force
from poise.cli.work import note, working

__all__ = ["demo_command"]


def demo_command(
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", file_okay=False, help="Where vector and report go.")
    ] = Path("poise-demo"),
    force: Force = False,
) -> None:
    """The whole job on a small model: extract a trait, prove it, steer with it.

    Takes minutes on a laptop's processor. Interrupt it when you like; the same command goes on where it stopped.
    """
    from poise.cli import render

    note("Poise demo: the trait impolite on SmolLM2-135M, from exemplars to a certified vector.")
    with working():
        from poise.workflows.demo import run_demo

        result = run_demo(out, force=force)
    render.show(render.demo(result))
