"""``poise judge``."""

import typer

app = typer.Typer(no_args_is_help=True, help="Find out how far a judge can be trusted.")


@app.command("check")
def check() -> None:
    """Score labelled answers, and say how well the judge agrees with the labels."""
