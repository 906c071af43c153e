"""``poise judge``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from poise.cli.options import Device, Dtype, Json, JudgeOption, TraitArgument
from poise.cli.work import load_model, working

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Find out how far a judge can be trusted.")


@app.command("check")
def check_command(
    trait: TraitArgument,
    judge: JudgeOption = "exemplars",
    labels: Annotated[
        Path | None,
        typer.Option(
            "--labels",
            metavar="JSONL",
            dir_okay=False,
            help="Answers that you labelled, one {question, answer, label} a line; labels are true and false, or 0 to "
            "100. Otherwise the trait's held-out exemplars.",
        ),
    ] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Have a judge score labelled answers, and say how well it agrees."""
    from poise.cli import facts, render
    from poise.trait import library

    subject = library.load_trait(trait)
    with working():
        from poise.judge import agreement as checking
        from poise.judge.factory import trait_judge

        rows = checking.read_labels(labels) if labels else checking.held_out(subject)
        chosen = trait_judge(judge, subject, local=lambda name: load_model(name, dtype, device))
        agreement = checking.check_agreement(chosen, *map(list, zip(*rows, strict=True)))
    cross_validated_auc = getattr(chosen, "cv_auc", None)
    on = str(labels) if labels else "held-out exemplars"
    if as_json:
        facts.print_json(facts.of_agreement(subject.name, on, agreement, cross_validated_auc))
    else:
        render.show(render.agreement(subject.name, on, agreement, cross_validated_auc))
