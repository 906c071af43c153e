"""``poise merge``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from poise.cli.options import Force, Json
from poise.cli.work import working

__all__ = ["merge_command"]

AdapterFolder = Annotated[
    str, typer.Argument(metavar="ADAPTER", help="The folder of a PEFT adapter.", show_default=False)
]
MergedFolder = Annotated[
    Path,
    typer.Option("--out", "-o", metavar="DIR", file_okay=False, help="The merged model's folder.", show_default=False),
]
AdapterBase = Annotated[
    str | None, typer.Option("--base", metavar="M", help="Its base, where it names one that is not here.")
]


def merge_command(
    adapter: AdapterFolder,
    out: MergedFolder,
    base: AdapterBase = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Merge an adapter into its base: one model with its tokenizer and chat template, for any program.

    The folder is written whole or not at all, after the merged model gave the adapter's logits on a short text.
    """
    from poise.cli import facts

    with working():
        from poise.model.merging import merge_adapter

        merged = merge_adapter(adapter, out, base=base, force=force)
    if as_json:
        facts.print_json(
            {
                "model": str(merged.folder),
                "base": merged.base,
                "dtype": merged.dtype,
                "difference": merged.difference,
                "tolerance": merged.tolerance,
            }
        )
        return
    typer.echo(
        f"Logits of the merged model ({merged.dtype}) beside the adapter on {merged.base}: {merged.difference:.2g} "
        f"of their size apart (at most {merged.tolerance:g})."
    )
    typer.echo(f"Model: {merged.folder}")
