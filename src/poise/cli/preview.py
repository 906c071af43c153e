"""``--show N``: what a command would read or learn, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand

from poise.cli.work import working

if TYPE_CHECKING:
    from poise.data import DataSet
    from poise.model.pair_preview import PairPreviews
    from poise.model.preview import DataPreview

__all__ = ["ShowableCommand", "previews_json", "print_previews", "read_previews", "show_data"]

FIXES = ("own", "drop", "swap")  # what may follow --fix
NOT_NEEDED = ("vector", "files", "model", "out", "tuned", "base", "limits")  # to look at data


class ShowableCommand(TyperCommand):
    """A command with ``--show``, which needs the data and, for its template, the model, but no vector and no output."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse, without those options that looking at data does not need."""
        shows = any(text == "--show" or text.startswith("--show=") for text in args)
        relaxed = [option for option in self.params if shows and option.required and option.name in NOT_NEEDED]
        for option in relaxed:
            option.required = False
        try:
            return super().parse_args(ctx, self._with_fix(args))
        finally:
            for option in relaxed:
                option.required = True

    def _with_fix(self, args: list[str]) -> list[str]:
        """The arguments with what ``--fix`` means where it stands alone."""
        if not any(option.name == "fix" for option in self.params):
            return args
        pairs = zip(args, [*args[1:], ""], strict=False)
        return [f"{text}=own" if text == "--fix" and following not in FIXES else text for text, following in pairs]


def show_data(*data: DataSet | None, model: str | None, n: int, as_json: bool, **use: Any) -> None:
    """Print the first answers of each data set as a command would use them; ``use`` as ``preview_data`` takes it."""
    print_previews(*read_previews(*data, model=model, n=n, **use), as_json=as_json)


def read_previews(*data: DataSet | None, model: str | None, n: int, **use: Any) -> list[DataPreview]:
    """The first answers of each data set as a command would use them; ``use`` as ``preview_data`` takes it."""
    with working():
        from poise.workflows import preview_data

        return [preview_data(one, model, n, **use) for one in data if one is not None]


def print_previews(*previews: DataPreview | PairPreviews, as_json: bool) -> None:
    """Print what data hold, in words or as one JSON object; of several data sets a list under ``data``."""
    from poise.cli import facts

    if as_json:
        facts.print_json(previews[0].as_json() if len(previews) == 1 else previews_json(*previews))
    else:
        typer.echo("\n\n".join(map(str, previews)))


def previews_json(*previews: DataPreview | PairPreviews) -> dict[str, Any]:
    """Several previews as one JSON object."""
    return {"data": [one.as_json() for one in previews]}
