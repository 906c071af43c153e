"""``poise card``: a record's card, or its technical documentation in the order of the EU AI Act."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from poise.cli.options import Force
from poise.cli.registry import DEFAULT_FOLDER, RecordName, RegistryFolder, open_registry
from poise.cli.work import working

__all__ = ["card_command"]


def card_command(
    record: RecordName,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="FILE", dir_okay=False, help="The Markdown file.", show_default=False),
    ],
    registry: RegistryFolder = DEFAULT_FOLDER,
    annex: Annotated[
        bool, typer.Option("--annex", help="Write instead the technical documentation, in the order of Annex IV.")
    ] = False,
    project: Annotated[
        Path | None,
        typer.Option("--project", metavar="YAML", dir_okay=False, help="The use case, for the documentation."),
    ] = None,
    force: Force = False,
) -> None:
    """Write a card from the records of a registry, in Hugging Face's format; valid without asking the hub.

    What no record says is named in it as not recorded or not measured.
    """
    if project and not annex:
        raise typer.BadParameter("it is for --annex.", param_hint="--project")
    with working():
        from poise.lifecycle.annex import technical_annex
        from poise.lifecycle.cards import check_is_card, record_card
        from poise.lifecycle.project import read_project
        from poise.storage.atomic_write import saving
        from poise.storage.output import check_output

        check_output(out, force=force)
        opened = open_registry(registry)
        if annex:
            text = technical_annex(opened, record, read_project(project).model_dump(mode="json") if project else None)
        else:
            text = record_card(opened, record)
            check_is_card(text)
        with saving(out) as temporary:
            temporary.write_text(text, encoding="utf-8")
    typer.echo(out)
