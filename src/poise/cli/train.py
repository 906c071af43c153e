"""``poise train``."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from poise.cli.options import Force, Json, ShowOption
from poise.cli.preview import print_previews
from poise.cli.work import note, working
from poise.counting import counted
from poise.errors import InvalidArgument

if TYPE_CHECKING:
    from poise.workflows import FineTuneResult

__all__ = ["train_command"]


def train_command(
    config: Annotated[
        Path | None,
        typer.Argument(
            metavar="CONFIG.yaml", dir_okay=False, help="All settings; see docs/training.md.", show_default=False
        ),
    ] = None,
    example: Annotated[
        bool, typer.Option("--example", help="Print a file with all settings, commented, and stop.")
    ] = False,
    show: ShowOption = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Fine-tune an adapter or all weights, under a vaccine and watched; then say what it did to the model's character.

    Interrupt it when you like; the same command goes on at the last checkpoint.
    """
    from poise.cli import facts
    from poise.settings import located_faults, read_settings

    if example:
        typer.echo(resources.files("poise.train").joinpath("example.yaml").read_text("utf-8"), nl=False)
        return
    if config is None:
        raise InvalidArgument("Give a file of settings; `poise train --example > run.yaml` writes one to begin with.")
    with working():
        from poise.report.shift import check_extra
        from poise.train.config import TrainConfig
        from poise.train.setting_checks import setting_faults
        from poise.workflows import preview_training, train_and_measure

        settings = read_settings(config, TrainConfig, check=setting_faults if show is None else None)
        if show is None:
            check_extra()
            with located_faults(config, TrainConfig):
                result = train_and_measure(settings, inputs=[config], force=force)
        else:
            preview = preview_training(settings, show)
    if show is not None:
        print_previews(preview, as_json=as_json)
        return
    if as_json:
        facts.print_json(_fine_tune_json(result))
    else:
        _show_fine_tune(result)


def _fine_tune_json(result: FineTuneResult) -> dict[str, Any]:
    training = result.trained.facts
    out: dict[str, Any] = {
        "adapter": str(result.trained.adapter),
        "card": str(result.card),
        "steps": training["steps"],
        "loss": training["loss"],
        "data": training["data"],
    }
    if result.shift is not None:
        (tuned,) = result.shift.tuned
        out["shift"] = {c.direction: c.shift.model_dump() for c in tuned.matrix if c.asked == c.direction}
        out["judged"] = {j.trait: j.change.model_dump() for j in tuned.judged if not j.why_unusable}
        out["report"] = str(result.trained.folder / "report.html")
    return out


def _show_fine_tune(result: FineTuneResult) -> None:
    from poise.cli.shift import show_shift
    from poise.data import describe_left_out
    from poise.statistics.estimates import Estimate

    training, folder = result.trained.facts, result.trained.folder
    data, loss = training["data"], training["loss"]
    under = f", {data['vaccinated']} of them under the vaccine" if training["config"]["vaccine"].get("only") else ""
    what = "pair" if training["config"].get("method") == "dpo" else "text"
    typer.echo(f"{counted(training['steps'], 'step')} on {counted(data['texts'], what)}{under} ({data['cut']} cut).")
    if loss["after"]:
        before, after = (Estimate.model_validate(loss[side]) for side in ("before", "after"))
        texts = "one held-out text" if after.n == 1 else f"{after.n} held-out texts"
        typer.echo(f"Loss on the {texts}: {before:.3f} before, {after:.3f} after.")
    _show_evaluations(training)
    for reason, n in data["left_out"].items():
        typer.echo(f"{counted(n, 'pair' if what == 'pair' else 'answer')} left out: {reason}.")
    if rejected := data.get("rejected"):
        typer.echo(f"{counted(sum(rejected.values()), 'row')} could not be used: {_by_kind(rejected)}.")
        note(f"{folder / data['rejected_rows']} has them as they came, {folder / 'rejected.jsonl'} says why.")
    if unusable := data.get("rejected_eval"):
        typer.echo(f"{counted(sum(unusable.values()), 'row')} of eval_data could not be used: {_by_kind(unusable)}.")
    if omitted := describe_left_out(data.get("omitted", {})):
        note(f"Left out: {omitted}.")
    if result.shift is not None:
        show_shift(result.shift, folder)
    kind = "Model" if training["config"].get("adapter") == "none" else "Adapter"
    typer.echo(f"{kind}: {result.trained.adapter}")


def _by_kind(counts: dict[str, int]) -> str:
    return ", ".join(f"{kind} {count:,}" for kind, count in counts.items())


def _show_evaluations(training: dict[str, Any]) -> None:
    if evaluated := training.get("evaluated"):
        losses = ", ".join(f"{line['loss']:.3f} (step {line['step']})" for line in evaluated[-5:])
        typer.echo(f"Loss while training, the last of {len(evaluated)}: {losses}.")
    if best := training.get("best"):
        typer.echo(f"The weights of step {best['step']} are kept, the best of them ({best['loss']:.3f}).")
    if pairs := training.get("preferences"):
        typer.echo(
            f"Of the {pairs['n']} held-out pairs the preferred answer is the likelier in {pairs['accuracy']:.0%}; loss "
            f"{pairs['loss']:.4f}, margin {pairs['margin']:.3f}."
        )
