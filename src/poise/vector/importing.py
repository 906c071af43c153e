"""Other people's vectors: control vectors in GGUF, steering-vectors' and the paper's ``.pt``, as ``PersonaVector``.

Nothing is unpickled but tensors, numbers and texts. Tools number layers in two ways, and a vector that is one layer
off does not fail, it degrades: so every file's numbering is named, translated and written into the header.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from poise.errors import InvalidArgument, InvalidVector, OtherModel
from poise.model import Model
from poise.trait import OwnTrait, Trait
from poise.vector.export import ARCHITECTURE, layer_ranges
from poise.vector.header import Header, ModelId
from poise.vector.persona_vector import PersonaVector

__all__ = ["ForeignVector", "Numbering", "adopt_vector", "read_foreign_vector"]

Numbering = Literal["blocks", "hidden-states"]

NUMBERING_MEANS: dict[Numbering, str] = {
    "blocks": "its layer i is the output of decoder block i, counted from 0, as ours is",
    "hidden-states": "its index i is Hugging Face's hidden_states[i]: 0 the embeddings, i our layer i − 1",
}
# It reads direction.i at the output of block i − 1, and llama.cpp adds it to that of block i.
GENERATED = "control vector of llama.cpp's cvector-generator (read one block before the one it is added to)"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ForeignVector:
    """Directions by the layer numbers of the tool that wrote them.

    Attributes:
        path: The file.
        kind: What it is, in words.
        directions: float32 [d] each.
        numbering: What the numbers mean there; ``None`` for a plain tensor, whose number of rows decides.
    """

    path: Path
    kind: str
    directions: Mapping[int, torch.Tensor]
    numbering: Numbering | None


def read_foreign_vector(path: Path) -> ForeignVector:
    """Read another tool's vector file.

    Raises:
        InvalidVector: not there, damaged, of another kind, or holding pickled code, which is never run.
    """
    if not path.is_file():
        raise InvalidVector(f"There is no file at {path}; give a GGUF control vector or a .pt file.")
    with path.open("rb") as file:
        start = file.read(4)
    foreign = _read_gguf_vector(path) if start == b"GGUF" else _read_torch_vector(path)
    if not foreign.directions:
        raise InvalidVector(f"{path} holds no directions; a control vector has one row of numbers a layer.")
    for i, v in foreign.directions.items():
        if v.ndim != 1:
            raise InvalidVector(f"{path} has the shape {tuple(v.shape)} at layer {i}; one row of numbers is wanted.")
        if not torch.isfinite(v).all():
            raise InvalidVector(f"{path} holds NaN or infinity at layer {i}; compute it again.")
    return foreign


def _read_gguf_vector(path: Path) -> ForeignVector:
    from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader = GGUFReader(path)
    except Exception as error:  # numpy and the reader raise on whatever comes first
        raise InvalidVector(f"{path} is cut short or damaged; fetch or export it again.") from error
    named = reader.get_field("general.architecture")
    architecture = named.contents() if named else "none"
    if architecture != ARCHITECTURE:
        raise InvalidVector(
            f"{path} is a GGUF file of the architecture {architecture}, not {ARCHITECTURE}; give a file that llama.cpp "
            "takes after --control-vector (the model goes after --model)."
        )
    directions: dict[int, torch.Tensor] = {}
    for tensor in reader.tensors:
        number = re.fullmatch(r"direction\.(\d+)", tensor.name)
        floats = tensor.tensor_type in (GGMLQuantizationType.F32, GGMLQuantizationType.F16)
        if not number or not floats:
            raise InvalidVector(
                f"{path} holds {tensor.name} as {tensor.tensor_type.name}; a control vector holds direction.1, "
                "direction.2 and so on as F32, and nothing else."
            )
        directions[int(number[1])] = torch.tensor(tensor.data, dtype=torch.float32)
    # The two writers differ in the type of one number, and in nothing else that says who wrote the file.
    count = reader.get_field(f"{ARCHITECTURE}.layer_count")
    generated = bool(count and count.types == [GGUFValueType.INT32])
    kind = GENERATED if generated else "control vector as repeng and llama.cpp have it"
    hint = reader.get_field(f"{ARCHITECTURE}.model_hint")
    return ForeignVector(
        path=path, kind=f"{kind}, for {hint.contents()}" if hint else kind, directions=directions, numbering="blocks"
    )


class _Inert:
    """Stands for steering-vectors' own class, so that a file of it opens without that package and without its code."""


def _read_torch_vector(path: Path) -> ForeignVector:
    allowed: list[Any] = [(_Inert, "steering_vectors.steering_vector.SteeringVector")]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(allowed):
            warnings.simplefilter("ignore")
            held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises its own kinds, zipfile's and pickle's
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code:
            raise InvalidVector(
                f"{path} holds pickled code ({code[1]}) and is refused, because loading it would run it; save the "
                "tensors alone with torch.save."
            ) from error
        raise InvalidVector(
            f"{path} is not a vector that can be read; give a GGUF control vector, or tensors saved by torch.save."
        ) from error
    if isinstance(held, torch.Tensor) and held.ndim == 2:
        return ForeignVector(
            path=path,
            kind="tensor of a row a layer, as the paper's code saves",
            directions=dict(enumerate(held.float())),
            numbering=None,
        )
    fields = vars(held) if isinstance(held, _Inert) else held if isinstance(held, dict) else {"": held}
    place = fields.get("layer_type", "decoder_block")
    if place != "decoder_block":
        raise InvalidVector(f"{path} was computed on {place}; only outputs of whole decoder blocks can be taken over.")
    by_layer: Any = fields.get("layer_activations", fields)
    if not isinstance(by_layer, dict) or not all(
        isinstance(i, int) and isinstance(v, torch.Tensor) for i, v in by_layer.items()
    ):
        raise InvalidVector(
            f"{path} holds neither a tensor [layers, width] nor tensors by layer number, as steering-vectors does; a "
            "vector of Poise's own needs no import."
        )
    return ForeignVector(
        path=path,
        kind="steering vector (steering-vectors)",
        directions={i: v.float() for i, v in by_layer.items()},
        numbering="blocks",
    )


def adopt_vector(
    foreign: ForeignVector,
    model: Model,
    trait: Trait | OwnTrait,
    reference_norm: torch.Tensor,
    *,
    numbering: Numbering | None = None,
    software: Mapping[str, str],
) -> PersonaVector:
    """The same directions as a vector of ``model``, by our layer numbers and at their own lengths.

    Layers that the file lacks are zero. L: decoder blocks, d: model width.

    Args:
        foreign: Vector as ``read_foreign_vector`` gave it.
        model: Model that the directions were computed on; they carry no fingerprint that could tell.
        trait: Trait that the directions stand for.
        reference_norm: float32 [L], mean ‖h‖ over response tokens of ordinary answers.
        numbering: What the file's layer numbers mean, where the tool's own convention is not to be taken.
        software: Versions, for the header.

    Raises:
        OtherModel: width or layer numbers do not fit the model.
        InvalidArgument: a plain tensor of L rows, which may be numbered either way.
        InvalidVector: nothing but zeros, NaN or infinity.
    """
    width = next((len(v) for v in foreign.directions.values() if len(v) != model.width), model.width)
    if width != model.width:
        raise OtherModel(
            f"{foreign.path} has directions of width {width} and {model.name} has width {model.width}; name the model "
            "that they were computed on."
        )
    chosen = numbering or foreign.numbering or _by_rows(foreign, model)
    last = model.layers - (chosen == "blocks")
    outside = sorted(i for i in foreign.directions if not 0 <= i <= last)
    if outside:
        raise OtherModel(
            f"{foreign.path} has a layer {outside[-1]}, and {model.name} numbers its {model.layers} layers 0 to {last} "
            f"(`layers_are` {chosen}); name the model that it was computed on."
        )
    directions = torch.zeros((model.layers, model.width))
    for i, direction in foreign.directions.items():
        if chosen == "blocks":
            directions[i] = direction
        elif 0 < i < model.layers:  # 0 is no block's output, and the last is taken after the final norm
            directions[i - 1] = direction
    if not directions.any():
        raise InvalidVector(f"{foreign.path} has no direction but zeros at any layer of {model.name}.")
    header = Header(
        trait=trait,
        trait_hash=trait.hash,
        model=ModelId.of(model),
        pooling="unknown",
        contrast="imported",
        provenance=_import_provenance(foreign, chosen, directions),
        kept={},
        dropped={},
        agreement=(),
        judge="",
        seed=0,
        software=dict(software),
    )
    return PersonaVector(directions, reference_norm, header)


def _by_rows(foreign: ForeignVector, model: Model) -> Numbering:
    rows = len(foreign.directions)
    if rows == model.layers + 1:
        return "hidden-states"
    if rows == model.layers:
        raise InvalidArgument(
            f"{foreign.path} has {rows} rows, as many as {model.name} has layers, and does not say whether the first "
            "is the embeddings; add `layers_are` blocks or `layers_are` hidden-states."
        )
    raise OtherModel(
        f"{foreign.path} has {rows} rows and {model.name} has {model.layers} layers, which makes {model.layers + 1} "
        "hidden states; name the model that it was computed on, or say what its rows are by `layers_are`."
    )


def _import_provenance(foreign: ForeignVector, chosen: Numbering, directions: torch.Tensor) -> str:
    """One sentence: what the file was, how its layers were numbered, where the vector is zero."""
    digest = hashlib.sha256(foreign.path.read_bytes()).hexdigest()[:16]
    unfit = {0: "0, the embeddings", len(directions): f"{len(directions)}, after the final norm"}
    left = [row for i, row in unfit.items() if chosen == "hidden-states" and i in foreign.directions]
    zero = [i for i, row in enumerate(directions) if not row.any()]
    sentence = f"{foreign.kind}, file {foreign.path.name} (SHA-256 {digest}); {NUMBERING_MEANS[chosen]}"
    sentence += f"; left out: {'; '.join(left)}" if left else ""
    return f"{sentence}; zero at {'no layer' if not zero else 'layer ' + layer_ranges(zero)}."
