"""``poise detector fit``."""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from poise.cli.monitor import AlarmedVectorOut, ConversationLimit, DataShapeOption
from poise.cli.options import Device, Dtype, ExemplarsOption, Force, Json, ModelName, OnOtherModel, Seed
from poise.cli.work import load_model, note, working
from poise.counting import counted

if TYPE_CHECKING:
    from poise.vector import DetectorFacts, PersonaVector

__all__ = ["app"]

DetectedVectorFiles = Annotated[
    list[Path], typer.Argument(metavar="FILE", dir_okay=False, help="Vector files.", show_default=False)
]
OrdinaryTalk = Annotated[
    list[str] | None,
    typer.Option(
        "--normal",
        metavar="DATA",
        help="Conversations with answers, as they usually are: the detector learns to tell the trait from them, "
        "too. Several add up.",
        show_default=False,
    ),
]
DetectorKinds = Annotated[
    list[str] | None,
    typer.Option(
        "--kind",
        metavar="KIND",
        help="ranking, logistic, lda or mean-difference; ranking unless said. Several: cross-validation chooses.",
        show_default=False,
    ),
]
DetectorLayers = Annotated[
    list[int] | None,
    typer.Option(
        "--layer",
        metavar="I",
        min=0,
        help="Read there; at 0.6 of the depth unless said. Several: cross-validation chooses.",
        show_default=False,
    ),
]
app = typer.Typer(no_args_is_help=True, help="Read a trait with a detector instead of the vector's own direction.")


@app.callback()
def detector() -> None:
    """Read a trait with a detector instead of the vector's own direction."""


@app.command("fit")
def fit_command(
    files: DetectedVectorFiles,
    model: ModelName,
    normal: OrdinaryTalk = None,
    kind: DetectorKinds = None,
    layer: DetectorLayers = None,
    exemplars: ExemplarsOption = None,
    shape: DataShapeOption = "auto",
    limit: ConversationLimit = 500,
    out: AlarmedVectorOut = None,
    seed: Seed = 0,
    allow_other_model: OnOtherModel = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Fit a detector and keep it in the vector's file, where everything that reads the vector finds it.

    Steering stays as it was. Alarms are set on readings, so calibrate after fitting.
    """
    with working():
        from poise.detector import DetectorSettings
        from poise.workflows import fit_vector_detectors

        kinds: dict[str, Any] = {"kinds": tuple(kind)} if kind else {}
        settings = DetectorSettings(layers=tuple(layer) if layer else None, limit=limit, seed=seed, **kinds)
        fitted = fit_vector_detectors(
            files,
            partial(load_model, model, dtype, device),
            normal or [],
            settings,
            exemplars=exemplars,
            shape=shape,
            out=out,
            allow_other_model=allow_other_model,
            force=force,
        )
    _print_detectors(fitted, [out] if out else files, model, as_json=as_json)


def _print_detectors(fitted: list[PersonaVector], paths: list[Path], model: str, *, as_json: bool) -> None:
    from poise.cli import facts, render

    known = [vector.detector.facts for vector in fitted if vector.detector]
    if as_json:
        rows = [
            {"trait": v.name, "out": str(path), **k.model_dump(mode="json", exclude={"normal_keys"})}
            for v, k, path in zip(fitted, known, paths, strict=True)
        ]
        facts.print_json({"detectors": rows})
        return
    for vector, k in zip(fitted, known, strict=True):
        render.show(_detector_parts(vector.name, k, vector.layers))
    if not known[0].normal:
        note("No ordinary talk was given: add --normal DATA, so that the detector learns what is usual.")
    listed = " ".join(shlex.quote(str(path)) for path in paths)
    note(f"Next, set its alarms: poise calibrate {listed} --model {shlex.quote(model)} --normal DATA")


def _detector_parts(name: str, facts: DetectorFacts, layers: int) -> list[Any]:
    """A fitted detector and its cross-validated figures."""
    from rich.text import Text

    from poise.cli import render

    normal = ", ".join(f"{counted(count, 'answer')} of {data}" for data, count in facts.normal.items()) or "none"
    if facts.normal_left_out:
        normal += f"; {counted(facts.normal_left_out, 'row or answer', 'rows or answers')} could not be read"
    left_out = f" ({facts.pairs_left_out} left out: too long or not readable)" if facts.pairs_left_out else ""
    repeated = (
        f"; {counted(facts.repeated, 'pair or answer', 'pairs or answers')} counted once, as repeating others"
        if facts.repeated
        else ""
    )
    others = facts.n_without
    recall = f"not measured: 1 % of the {others} others is less than one"
    if facts.recall is not None:
        recall = f"{100 * facts.recall:.0f} % of them where at most {others // 100} of the {others} others pass"
    losses = [f"{place} {loss:.3f}" for place, loss in facts.candidates.items()]
    rows = [
        ("Read with", f"{facts.kind}, layer {facts.layer} of {layers}, counted from 0"),
        ("Fitted on", f"{facts.pairs} exemplar pairs{left_out}; ordinary talk: {normal}{repeated}"),
        (
            "AUC",
            f"{facts.auc:.2f} [{facts.low:.2f}, {facts.high:.2f}], {counted(facts.n_with, 'answer')} with the trait",
        ),
        ("Recall", recall),
        *([("Log-loss", ", ".join(losses))] if len(losses) > 1 else []),
    ]
    talk = " and the same talk" if facts.normal else ""
    return [
        Text.assemble((name, "bold")),
        render.facts_table(*rows),
        f"Cross-validated: on answers that the fit did not see, but of the same kind{talk}.",
    ]
