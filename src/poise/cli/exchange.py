"""``poise export`` and ``poise import``: vectors to and from other tools."""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from poise.cli.options import Device, Dtype, ExemplarsOption, Force, Json, ModelName, VectorFile, VectorOut
from poise.cli.work import load_model, note, working
from poise.storage.output import check_output

__all__ = ["export", "import_"]


LayersAre = Annotated[
    Literal["blocks", "hidden-states"] | None,
    typer.Option(
        "--layers-are",
        metavar="HOW",
        help="How the file counts layers, where its tool's own way is not meant. blocks: 0 is the first decoder "
        "block's output. hidden-states: 0 is the embeddings.",
    ),
]


def export(
    file: VectorFile,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="FILE", dir_okay=False, help="The GGUF file to write.", show_default=False),
    ],
    to: Annotated[
        Literal["gguf", "repeng"],
        typer.Option("--format", metavar="F", help="gguf: llama.cpp's control vector. repeng: the same with layer 0."),
    ] = "gguf",
    only_chosen: Annotated[
        bool,
        typer.Option(
            "--only-chosen", help="Only the certificate's layer, or a third of the depth, instead of all layers."
        ),
    ] = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write a vector as a control vector of llama.cpp or repeng, and say how to run it there."""
    from poise import vector as vectors
    from poise.cli import facts, render
    from poise.vector.export import export_vector as write
    from poise.vector.export import layer_ranges

    vector = vectors.load_vector(file)
    check_output(out, inputs=[file], loss=lambda existing: "", force=force)  # its content is checked by the writer
    done = write(vector, out, to=to, only_chosen=only_chosen, force=force)
    if as_json:
        facts.print_json(
            {
                "file": str(out),
                "format": to,
                "trait": vector.name,
                "model": vector.header.model.name,
                "layers": list(done.layers),
                "layer": done.use.layer,
                "coefficient": done.use.coefficient,
                "dose": done.use.dose,
                "verdict": done.use.verdict or None,
                "how": done.how,
            }
        )
        return
    render.show(
        [
            f"{vector.name} on {vector.header.model.name}, for {'llama.cpp' if to == 'gguf' else 'repeng'}: {out}",
            f"  Layers  direction.i is the output of decoder block i, counted from 0, of {vector.layers}; here i = "
            f"{layer_ranges(done.layers)}",
            f"  Sign    + for more of {vector.name}, − for less; 1 is one mean difference",
            f"  Use     {done.use}",
            f"  Run     {done.how}",
        ]
    )
    note("It is added at every position, the prompt's too; Poise steers generated tokens only, unless told otherwise.")
    if not done.use.verdict:
        note(f"For a layer and strength that are known to work: poise validate {shlex.quote(str(file))} --model M")


def import_(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            dir_okay=False,
            help="A GGUF control vector, or a .pt of steering-vectors or of the paper's code.",
            show_default=False,
        ),
    ],
    model: ModelName,
    trait: Annotated[
        str,
        typer.Option(
            "--trait",
            metavar="TRAIT",
            help="What it is a vector of: a trait of the library, the path of a trait file, or with --exemplars any "
            "name.",
            show_default=False,
        ),
    ],
    out: VectorOut,
    exemplars: ExemplarsOption = None,
    layers_are: LayersAre = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Take over another tool's vector, which must have been computed on this model.

    The trait's own answers are needed to measure the unit of a dose, and to validate.
    """
    from poise.cli import facts, render
    from poise.trait import library

    subject = library.own_trait(trait, library.read_pairs(exemplars)) if exemplars else library.load_trait(trait)
    with working():
        from poise.vector.importing import read_foreign_vector
        from poise.workflows import import_vector

        vector = import_vector(
            read_foreign_vector(file),
            partial(load_model, model, dtype, device),
            subject,
            out,
            layers_are=layers_are,
            inputs=[exemplars] if exemplars else [Path(trait)],
            force=force,
        )
    if as_json:
        facts.print_json(facts.of_vector(vector, out) | {"provenance": vector.header.provenance})
        return
    render.show(render.vector(vector, out))
    note(f"Next, prove it: poise validate {shlex.quote(str(out))} --model {shlex.quote(model)}")
