"""``poise guardrail check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from poise.cli.work import note, working
from poise.errors import InvalidArgument

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Keep things out of a model, and out of its answers.")
MOST_BYTES = 8 * 2**20
GuardrailFile = Annotated[Path, typer.Argument(metavar="FILE", dir_okay=False, help="The guardrail's YAML.")]


@app.callback()
def guardrail() -> None:
    """Keep things out of a model, and out of its answers."""


@app.command("check")
def check_texts(
    file: GuardrailFile,
    text: Annotated[
        list[str], typer.Argument(metavar="TEXT|FILE…", help="Texts, or files with a text each; - for stdin.")
    ],
    source: Annotated[
        Literal["input", "output"], typer.Option("--source", help="Prompts, or answers.", show_default=True)
    ] = "input",
    full: Annotated[bool, typer.Option("--full", help="List topics and content that were not found, too.")] = False,
    matches: Annotated[
        bool, typer.Option("--matches", help="Say what matched: secrets then stand in what is printed.")
    ] = False,
) -> None:
    """Check texts, and print as JSON what the guardrail finds in them and does to them."""
    from poise.cli import facts

    with working():
        from poise.guardrail import GuardedText, apply_guardrail, checker_of, load_guardrail

        checker = checker_of(load_guardrail(file))
        texts = [GuardedText(_text(each)) for each in text]
        answer = apply_guardrail(
            checker, texts, "INPUT" if source == "input" else "OUTPUT", full=full, show_matches=matches
        )
        for line in checker.notes:
            note(line)
        if checker.guardrail.needs_model:
            note("Topics and content are read in a model's activations, and were not looked at.")
    facts.print_json(answer)


def _text(argument: str) -> str:
    """A text itself, or that of a file."""
    import sys

    path = Path(argument)
    try:
        is_file = argument == "-" or path.is_file()
    except (OSError, ValueError):  # too long for a name, or with a sign that none has
        is_file = False
    if not is_file:
        return argument
    if argument != "-" and path.stat().st_size > MOST_BYTES:
        raise InvalidArgument(
            f"{argument} has {path.stat().st_size:,} bytes; at most {MOST_BYTES:,} are read. Check it in parts."
        )
    data = sys.stdin.buffer.read(MOST_BYTES + 1) if argument == "-" else path.read_bytes()
    if len(data) > MOST_BYTES:
        raise InvalidArgument(f"More than {MOST_BYTES:,} bytes come from stdin; check them in parts.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidArgument(
            f"{argument} is not UTF-8 text (byte {error.start}: {error.reason}); write it as UTF-8, whole."
        ) from error
