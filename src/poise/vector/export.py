"""A vector as files that other runtimes read: llama.cpp's control vector, and repeng's.

Both are GGUF with one float32 tensor ``direction.i`` a layer. llama.cpp adds it to the output of decoder block i,
counted from 0 (its loader stores it at i − 1 and its graph reads it back from there), and so does repeng: the number
is ours, unchanged. llama.cpp refuses a ``direction.0`` and never steers the first block; repeng takes one.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from poise.errors import InvalidArgument, InvalidSteering
from poise.progress import remark
from poise.storage.atomic_write import saving
from poise.storage.output import check_output
from poise.vector.persona_vector import PersonaVector

__all__ = [
    "ARCHITECTURE",
    "ExportedVector",
    "Format",
    "RecommendedUse",
    "export_vector",
    "layer_ranges",
    "recommended_use",
]

Format = Literal["gguf", "repeng"]

ARCHITECTURE = "controlvector"
DESCRIBED = "Added to the residual stream"
FIRST_DOSE = 0.2  # without a certificate; most of the library's traits were certified near it


@dataclass(frozen=True, slots=True, kw_only=True)
class RecommendedUse:
    """Where and how strongly to steer.

    Attributes:
        layer: Counted from 0.
        coefficient: α, in mean differences.
        dose: ``α‖v‖ / mean‖h‖`` at the layer.
        verdict: The certificate's; empty where there is none, and then layer and dose are a first guess.
    """

    layer: int
    coefficient: float
    dose: float
    verdict: str

    def __str__(self) -> str:
        where = {
            "induced": "as validated",
            "": "not validated: a third of the depth and a usual dose, as a first guess",
        }.get(self.verdict, f"but the certificate's verdict is {self.verdict}")
        return f"layer {self.layer}, strength {self.coefficient:.4g} (dose {self.dose:.0%}), {where}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedVector:
    """What was written, and how to run it.

    Attributes:
        path: The file.
        format: Name of the file format, after the program that reads it.
        layers: Our layers with a direction in the file.
        use: What ``how`` is about.
    """

    path: Path
    format: Format
    layers: tuple[int, ...]
    use: RecommendedUse

    @property
    def how(self) -> str:
        """llama.cpp's flags, or Python for repeng, at the layer and strength of ``use``."""
        use = self.use
        if self.format == "gguf":
            scaled = shlex.quote(f"{self.path}:{use.coefficient:.4g}")
            return f"--control-vector-scaled {scaled} --control-vector-layer-range {use.layer} {use.layer}"
        return (
            f"ControlModel(model, [{use.layer}]).set_control(ControlVector.import_gguf({str(self.path)!r}), "
            f"{use.coefficient:.4g})"
        )


def recommended_use(vector: PersonaVector) -> RecommendedUse:
    """The certificate's layer and strength, or a third of the depth at a usual dose."""
    certificate, layer = vector.header.certificate, vector.at("steer").layer
    if certificate is None:
        return RecommendedUse(
            layer=layer, coefficient=round(vector.coef(FIRST_DOSE, layer), 4), dose=FIRST_DOSE, verdict=""
        )
    return RecommendedUse(
        layer=layer,
        coefficient=float(certificate["coefficient"]),
        dose=float(certificate["dose"]),
        verdict=str(certificate["verdict"]),
    )


def export_vector(
    vector: PersonaVector, path: Path, *, to: Format = "gguf", only_chosen: bool = False, force: bool = False
) -> ExportedVector:
    """Write a control vector, whole or not at all.

    Args:
        vector: Its directions are written as they are: float32, un-normalised, by our layer numbers.
        path: The file to write.
        to: ``gguf`` for llama.cpp, without layer 0, which it cannot steer; ``repeng`` with every layer.
        only_chosen: Only the layer of ``suggested``, so that no range has to be named when it is used.
        force: Write over an existing file whatever it holds.

    Raises:
        OutputExists: there is a file that is no control vector of Poise.
        InvalidSteering: the chosen layer is one that llama.cpp cannot steer.
        InvalidArgument: a name that llama.cpp's flags cannot carry.
        SaveFailed: the disk refused; an earlier file is untouched.
    """
    check_output(path, loss=_export_loss, force=force)
    use = recommended_use(vector)
    if to == "gguf":
        _check_llama_cpp(vector, use, path)
    known = [int(i) for i in vector.norms.nonzero()]
    layers = tuple(i for i in known if (i > 0 or to == "repeng") and (i == use.layer or not only_chosen))
    with saving(path) as temporary:
        _write(vector, layers, use, temporary)
    if vector.detector:
        remark(f"The detector of {vector.name} stays in its vector file: {path} steers, and reads nothing.")
    return ExportedVector(path=path, format=to, layers=layers, use=use)


def _export_loss(path: Path) -> str:
    """What an existing file would lose: nothing if an earlier export wrote it."""
    with path.open("rb") as file:
        start = file.read(4096)
    ours = start.startswith(b"GGUF") and ARCHITECTURE.encode() in start and DESCRIBED.encode() in start
    return "" if ours else "something else than a control vector that `poise export` wrote"


def _check_llama_cpp(vector: PersonaVector, use: RecommendedUse, path: Path) -> None:
    if use.layer == 0:
        raise InvalidSteering(
            f"{vector.name} is to steer at layer 0, and llama.cpp steers from layer 1 on; use `to` repeng."
        )
    if set(":,") & set(path.name):
        raise InvalidArgument(f"llama.cpp's flags cannot name the file {path.name}; leave out : and , in its name.")


def _write(vector: PersonaVector, layers: tuple[int, ...], use: RecommendedUse, path: Path) -> None:
    from gguf import GGUFWriter

    model = vector.header.model
    writer = GGUFWriter(path, ARCHITECTURE)
    writer.add_name(f"{vector.name} on {model.name}")
    writer.add_description(
        f"{DESCRIBED}, + for more of {vector.name} and − for less. direction.i belongs to the output "
        f"of decoder block i of {vector.layers}, counted from 0; 1 is one mean difference. Use: {use}."
    )
    writer.add_string(f"{ARCHITECTURE}.model_hint", model.model_type or model.name)
    writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(layers))
    for layer in layers:
        writer.add_tensor(f"direction.{layer}", vector.directions[layer].numpy())
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def layer_ranges(numbers: Sequence[int]) -> str:
    """``0, 3–5`` for 0, 3, 4, 5."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
