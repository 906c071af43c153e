"""``poise train``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from poise.cli.options import Json
from poise.cli.work import note, working

if TYPE_CHECKING:
    from poise.workflows import Finetuned

__all__ = ["train"]


def train(
    config: Annotated[
        Path,
        typer.Argument(
            metavar="CONFIG.yaml", dir_okay=False, help="All settings; see docs/training.md.", show_default=False
        ),
    ],
    as_json: Json = False,
) -> None:
    """Fine-tune with LoRA, under a vaccine and watched; then say what it did to the model's character.

    Interrupt it when you like; the same command goes on at the last checkpoint.
    """
    from poise.cli import facts
    from poise.settings import read_settings

    with working():
        from poise.report.shift import check_extra
        from poise.train.config import TrainConfig
        from poise.workflows import finetune

        wanted = read_settings(config, TrainConfig)
        check_extra()
        done = finetune(wanted)
    if as_json:
        facts.print_json(_facts(done))
    else:
        _show(done)


def _facts(done: Finetuned) -> dict[str, Any]:
    said = done.trained.facts
    shown: dict[str, Any] = {
        "adapter": str(done.trained.adapter),
        "card": str(done.card),
        "steps": said["steps"],
        "loss": said["loss"],
        "data": said["data"],
    }
    if done.shift is not None:
        (tuned,) = done.shift.tuned
        shown["shift"] = {c.direction: c.shift.model_dump() for c in tuned.matrix if c.asked == c.direction}
        shown["judged"] = {j.trait: j.change.model_dump() for j in tuned.judged if not j.why_unusable}
        shown["report"] = str(done.trained.folder / "report.html")
    return shown


def _show(done: Finetuned) -> None:
    from poise.cli.shift import show_measured

    said, folder = done.trained.facts, done.trained.folder
    data = said["data"]
    under = f", {data['vaccinated']} of them under the vaccine" if said["config"]["vaccine"].get("only") else ""
    typer.echo(f"{said['steps']} steps on {data['texts']} texts{under} ({data['cut']} cut).")
    if loss := said["loss"]["after"]:
        before, after = (f"{x['value']:.3f} [{x['low']:.3f}, {x['high']:.3f}]" for x in (said["loss"]["before"], loss))
        typer.echo(f"Loss on the {loss['n']} texts kept back: {before} before, {after} after.")
    for reason, n in data["left_out"].items():
        note(f"{n} answers were left out: {reason}.")
    if done.shift is not None:
        show_measured(done.shift, folder)
    typer.echo(f"Adapter: {done.trained.adapter}")
