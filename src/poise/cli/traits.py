"""``poise traits``: the library, one trait of it, a check of trait files, a draft from one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from poise.cli.options import Force, Json, TraitArgument
from poise.cli.work import note, working
from poise.errors import UserError

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="List, show, check and draft traits.")


@app.command("list")
def list_() -> None:
    """The traits that ship with Poise."""
    from poise.cli import render
    from poise.trait import library

    render.show([render.traits([library.load_trait(name) for name in library.names()])])


@app.command("show")
def show_trait(trait: TraitArgument) -> None:
    """Print a trait as YAML, to read or to begin your own with."""
    from poise.trait import library

    typer.echo(library.dump(library.load_trait(trait)), nl=False)


@app.command("lint")
def lint_traits(
    traits: Annotated[
        list[str],
        typer.Argument(metavar="TRAIT", help="Traits of the library, or paths of trait files.", show_default=False),
    ],
    as_json: Json = False,
) -> None:
    """Look for what could teach a vector the wrong thing: near-copies, uneven lengths, telltale words.

    Exit code 1 where a trait has an error.
    """
    from poise.cli import facts, render
    from poise.trait import library
    from poise.trait.lint import lint as check

    reports = [check(library.load_trait(name)) for name in traits]
    if as_json:
        facts.print_json({"traits": [facts.of_lint(report) for report in reports]})
    else:
        for report in reports:
            render.show(render.lint_results(report))
    if not all(report.ok for report in reports):
        raise typer.Exit(1)


@app.command("draft")
def draft_trait(
    sentence: Annotated[str, typer.Argument(metavar="SENTENCE", help="The trait in your words.", show_default=False)],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="FILE", dir_okay=False, help="The trait file to write.", show_default=False
        ),
    ],
    model: Annotated[
        str,
        typer.Option(
            "--model", metavar="NAME", help="Who writes, as the server calls it; a strong one.", show_default=False
        ),
    ],
    name: Annotated[
        str | None, typer.Option("--name", metavar="N", help="Of the trait; otherwise the model finds one.")
    ] = None,
    force: Force = False,
) -> None:
    """Write a complete trait file from one sentence.

    Any OpenAI-compatible server does it: OPENAI_BASE_URL says where, OPENAI_API_KEY lets in.
    """
    from poise.storage.output import check_output
    from poise.trait import draft as drafting
    from poise.trait import library

    check_output(out, loss=lambda existing: drafting.OTHER_FILE, force=force)  # before the endpoint is paid
    with working():
        drafted = drafting.draft(sentence, model=model, name=name)
    try:
        drafting.write_trait(drafted, out, force=force)
    except UserError:
        typer.echo(library.dump(drafted), nl=False)  # paid for
        raise
    typer.echo(out)
    note(f"{drafted.name} is written. Read it, then: poise traits lint {out}")
