"""``poise doctor``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from poise.cli.options import Device, Dtype, Json
from poise.cli.work import load_model, working

if TYPE_CHECKING:
    from poise.model.diagnosis import ModelDiagnosis

__all__ = ["doctor"]


def doctor(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A bundled name, a folder, a .gguf file or a hub id.", show_default=False),
    ],
    dtype: Dtype = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Say what was found in a model, what works with it and what does not. Paste it into a bug report.

    Exit code 1 where something does not work.
    """
    from poise.cli import facts, render

    with working():
        from poise.model.diagnosis import diagnose

        diagnosis = diagnose(load_model(model, dtype, device))
    if as_json:
        facts.print_json(_versions() | diagnosis.model_dump(mode="json") | {"works": diagnosis.works})
    else:
        render.show([*_diagnosis_lines(diagnosis)])
    if not diagnosis.works:
        raise typer.Exit(1)


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("poise", "torch", "transformers")}


def _diagnosis_lines(diagnosis: ModelDiagnosis) -> list[str]:
    signs = {True: "works", False: "FAILS", None: "untried"}
    width = max(len(finding.name) for finding in diagnosis.findings)
    return [
        f"{diagnosis.model}: {diagnosis.model_class} ({diagnosis.model_type}), {diagnosis.parameters:,} parameters, "
        f"{diagnosis.memory_mib:,.0f} MiB in {diagnosis.dtype} on {diagnosis.device}",
        f"  Blocks    {diagnosis.layers} of {diagnosis.block_class}, layers 0 to {diagnosis.layers - 1}, width "
        f"{diagnosis.width}",
        f"  Window    {diagnosis.window:,} tokens",
        f"  Template  {diagnosis.template}; thinking: {diagnosis.thinking}",
        "  Hashes    " + ", ".join(f"{name} {text or '-'}" for name, text in diagnosis.fingerprint.items()),
        "  Versions  " + ", ".join(f"{name} {text}" for name, text in _versions().items()),
        *(f"  {signs[f.works]:8}  {f.name:{width}}  {f.detail}" for f in diagnosis.findings),
    ]
