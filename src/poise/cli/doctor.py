"""``poise doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from poise.cli.options import Device, Dtype, Json
from poise.cli.work import load_model, working

if TYPE_CHECKING:
    from poise.model.diagnosis import ModelDiagnosis
    from poise.workflows import VectorRelation

__all__ = ["doctor"]


def doctor(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="A bundled name, a folder, a .gguf file or a hub id.", show_default=False),
    ] = None,
    vector: Annotated[
        list[Path] | None,
        typer.Option(
            "--vector", metavar="FILE", dir_okay=False, help="Also say whether this vector may be used on the model."
        ),
    ] = None,
    vllm: Annotated[
        bool, typer.Option("--vllm", help="Check instead whether the plugin fits the vLLM that is installed.")
    ] = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Say what was found in a model, what works with it and what does not. Paste it into a bug report.

    Exit code 1 where something does not work.
    """
    from poise.cli import facts, render

    if vllm == (model is not None):
        raise typer.BadParameter("give a model, or --vllm alone.", param_hint="MODEL")
    if model is None:
        _check_vllm(as_json=as_json)
        return
    with working():
        from poise import workflows
        from poise.model.diagnosis import diagnose
        from poise.vector import load_vector

        opened = {path: load_vector(path) for path in vector or ()}
        loaded = load_model(model, dtype, device)
        diagnosis, relations = diagnose(loaded), workflows.relate_vectors(opened, loaded)
    works = diagnosis.works and all(relation.usable for relation in relations)
    if as_json:
        vector_facts = {"vectors": [relation.model_dump(mode="json") for relation in relations]} if vector else {}
        facts.print_json(_versions() | diagnosis.model_dump(mode="json") | vector_facts | {"works": works})
    else:
        render.show([*_diagnosis_lines(diagnosis), *map(_vector_line, relations)])
    if not works:
        raise typer.Exit(1)


def _check_vllm(*, as_json: bool) -> None:
    """The private names of vLLM that the plugin relies on, and whether they are there."""
    from poise.cli import facts, render

    with working():
        from poise.vllm.private_names import TESTED_VERSIONS, check_names, installed_version

        version, checks = installed_version(), check_names()
    works = not any(fault for _, fault in checks)
    if as_json:
        names = [
            {"name": str(name), "works": not fault, "fault": fault, "breaks": name.breaks} for name, fault in checks
        ]
        facts.print_json({"vllm": version, "tested": list(TESTED_VERSIONS), "names": names, "works": works})
    else:
        states = (f"  {'FAILS' if fault else 'works':8}  {fault or name}" for name, fault in checks)
        losses = (f"            without it {name.breaks}" for name, fault in checks if fault)
        render.show([f"vLLM {version}; the plugin is tested with {', '.join(TESTED_VERSIONS)}", *states, *losses])
    if not works:
        raise typer.Exit(1)


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("poise", "torch", "transformers")}


def _effort_words(diagnosis: ModelDiagnosis) -> str:
    return f", reasoning_effort {diagnosis.reasoning_effort}" if diagnosis.reasoning_effort else ""


def _diagnosis_lines(diagnosis: ModelDiagnosis) -> list[str]:
    signs = {True: "works", False: "FAILS", None: "untried"}
    width = max(len(finding.name) for finding in diagnosis.findings)
    return [
        f"{diagnosis.model}: {diagnosis.model_class} ({diagnosis.model_type}), {diagnosis.parameters:,} parameters, "
        f"{diagnosis.memory_mib:,.0f} MiB in {diagnosis.dtype} on {diagnosis.device}",
        f"  Blocks    {diagnosis.layers} of {diagnosis.block_class}, layers 0 to {diagnosis.layers - 1}, width "
        f"{diagnosis.width}",
        f"  Window    {diagnosis.window:,} tokens",
        f"  Template  {diagnosis.template}; thinking: {diagnosis.thinking}{_effort_words(diagnosis)}",
        f"  Stops at  {' '.join(diagnosis.stop_tokens) or 'no token'}",
        "  Hashes    " + ", ".join(f"{name} {text or '-'}" for name, text in diagnosis.fingerprint.items()),
        "  Versions  " + ", ".join(f"{name} {text}" for name, text in _versions().items()),
        *(f"  {signs[f.works]:8}  {f.name:{width}}  {f.detail}" for f in diagnosis.findings),
    ]


def _vector_line(relation: VectorRelation) -> str:
    verdict = "usable" if relation.usable else "REFUSED"
    return f"  {verdict:8}  {relation.trait} ({relation.vector}), {relation.relation}: {relation.detail}"
