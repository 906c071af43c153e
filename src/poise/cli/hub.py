"""``poise hub``: vectors, detectors, guardrails and adapters to share, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from poise.cli.options import Json
from poise.cli.registry import DEFAULT_FOLDER, RecordName, RegistryFolder, open_registry
from poise.cli.work import note, working
from poise.counting import counted

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True, help="Share what is on record, with licence, card and certificate, and fetch it."
)

SharePlace = Annotated[
    str,
    typer.Argument(
        metavar="PLACE", help="OWNER/NAME on the hub, or an address such as s3://bucket/folder.", show_default=False
    ),
]


@app.command("push")
def push_command(
    record: RecordName,
    place: SharePlace,
    registry: RegistryFolder = DEFAULT_FOLDER,
    private: Annotated[bool, typer.Option("--private", help="Make a repository that only you see.")] = False,
    uncertified: Annotated[
        bool, typer.Option("--uncertified", help="Send a vector though it has no certificate.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Send a vector, detector, guardrail or adapter with its card and record.

    Nothing without a licence is sent, nor a vector without a certificate, nor files that are not what was recorded.
    """
    from poise.cli.facts import print_json

    with working():
        from poise.lifecycle.hub_exchange import push_artefact

        shared = push_artefact(open_registry(registry), record, place, private=private, uncertified=uncertified)
    if as_json:
        print_json(shared.model_dump(mode="json"))
        return
    typer.echo(shared.place)
    note(f"{shared.kind} {shared.name}, {shared.licence}: {counted(len(shared.files), 'file')}, card and record.")


@app.command("pull")
def pull_command(
    place: SharePlace,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", file_okay=False, help="A new folder.", show_default=False)
    ],
    revision: Annotated[
        str | None, typer.Option("--revision", metavar="R", help="Branch, tag or commit on the hub.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Fetch what was sent by poise hub push; every file is held to the hash in its record."""
    from poise.cli.facts import print_json

    with working():
        from poise.lifecycle.hub_exchange import pull_artefact

        shared = pull_artefact(place, out, revision=revision)
    if as_json:
        print_json(shared.model_dump(mode="json"))
        return
    for file in shared.files:
        typer.echo(out / file)
    note(f"{shared.kind} {shared.name}, {shared.licence or 'no licence'}; read {out / 'README.md'} before you use it.")
