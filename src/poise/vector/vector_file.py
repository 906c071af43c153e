"""The file of a vector: one ``.safetensors`` with the directions, and a header in JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise

from poise.arguments import check_type
from poise.errors import InvalidVector
from poise.settings import first_fault
from poise.storage.atomic_write import saving
from poise.storage.output import check_output
from poise.vector.detector import Detector
from poise.vector.header import Header, ModelId
from poise.vector.persona_vector import PersonaVector
from poise.vector.seen_answers import SEEN_TENSORS, SeenAnswers

__all__ = ["load_vector", "save_vector", "vector_loss"]

TENSORS = ("directions", "reference_norm")
DETECTOR_WEIGHTS = "detector"
DEEPEST_HEADER = 64  # objects and lists within each other; Poise writes a dozen


def save_vector(vector: PersonaVector, path: str | Path, *, force: bool = False) -> None:
    """Write the vector as one ``.safetensors`` file, whole or not at all.

    Args:
        vector: What to write.
        path: The file.
        force: Write over an existing file whatever it holds.

    Raises:
        OutputExists: the file is no vector of this trait and model, or has a certificate, a detector or alarms that
            this vector lacks.
        SaveFailed: the disk refused; an earlier file is untouched.
    """
    check_type("vector", vector, PersonaVector, "a PersonaVector, as extract_vector(contrast, model) gives")
    check_type("path", path, (str, Path), "the path to write, such as 'evil.safetensors'")
    header = vector.header
    check_output(
        Path(path),
        loss=lambda existing: vector_loss(
            existing,
            vector.name,
            model=header.model,
            certificate=header.certificate is not None,
            alarms=bool(header.alarms),
            detector=header.detector is not None,
        ),
        force=force,
    )
    document = json.dumps(vector.header.model_dump(mode="json", by_alias=True), ensure_ascii=False, sort_keys=True)
    tensors = {"directions": vector.directions, "reference_norm": vector.reference_norm}
    if vector.detector:
        tensors[DETECTOR_WEIGHTS] = vector.detector.weights
        tensors |= vector.detector.seen.tensors() if vector.detector.seen else {}
    with saving(Path(path)) as temporary:
        temporary.write_bytes(serialise(tensors, metadata={"poise": document}))


def load_vector(path: str | Path) -> PersonaVector:
    """Read a vector file and validate all of it.

    Raises:
        InvalidVector: not there, a folder, cut short, not finite, or not of this schema; names the file and the fault.
    """
    check_type("path", path, (str, Path), "the path of a vector file, such as 'evil.safetensors'")
    if Path(path).is_dir():
        raise InvalidVector(f"{path} is a folder; name the vector file in it, which ends in .safetensors.")
    if not Path(path).is_file():
        beside = Path(f"{path}.safetensors")
        if beside.is_file():
            raise InvalidVector(f"There is no vector file at {path}; did you mean {beside}?")
        raise InvalidVector(
            f"There is no vector file at {path}; make one with `poise extract TRAIT --model M --out {path}`."
        )
    try:
        with safe_open(path, framework="pt") as file:
            header = _header(path, file)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise InvalidVector(
            f"{path} is cut short or is not a safetensors file ({error}); copy or extract it again."
        ) from error
    try:
        facts, seen = header.detector, None
        if facts and facts.seen:
            seen = SeenAnswers.of_tensors(tensors, len(tensors[DETECTOR_WEIGHTS]))
        detector = Detector(tensors[DETECTOR_WEIGHTS], facts, seen) if facts else None
        return PersonaVector(tensors["directions"], tensors["reference_norm"], header, detector=detector)
    except InvalidVector as error:
        raise InvalidVector(f"{path}: {error}") from error


def vector_loss(
    path: Path,
    trait: str,
    *,
    model: ModelId | None = None,
    certificate: bool = False,
    alarms: bool = False,
    detector: bool = False,
) -> str:
    """What a vector file would lose if another vector were written over it; see ``poise.storage.output``.

    Args:
        path: An existing file.
        trait: Name of the new vector's trait.
        model: The new vector's model; ``None`` where it is not known yet.
        certificate: Whether the new vector brings a certificate.
        alarms: Whether the new vector brings alarms.
        detector: Whether the new vector brings a detector.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = _header(path, file)
    except (SafetensorError, OSError, ValueError, InvalidVector):
        return "something that is not a vector"
    if header.trait.name != trait:
        return f"a vector of another trait, {header.trait.name}"
    if model is not None and header.model.relation(model).kind != "same":
        return f"a vector of another model, {header.model.name}"
    lost = []
    if header.certificate is not None and not certificate:
        lost.append("the certificate of `poise validate`")
    if header.detector is not None and not detector:
        lost.append("the detector of `poise detector fit`")
    if header.alarms and not alarms:
        lost.append("the alarms of `poise calibrate`")
    return " and ".join(lost) and f"a vector with {' and '.join(lost)}, which would be lost"


def _header(path: str | Path, file: Any) -> Header:
    """The header of an open safetensors file, whose tensors are not read for it.

    Raises:
        InvalidVector: not a vector of Poise, or of another version.
    """
    document, names = (file.metadata() or {}).get("poise"), sorted(file.keys())
    if document is None or set(names) - {DETECTOR_WEIGHTS, *SEEN_TENSORS} != set(TENSORS):
        examples = (", ".join(names[:2]) or "nothing") + (f" and {len(names) - 2} more" if len(names) > 2 else "")
        raise InvalidVector(
            f"{path} is a safetensors file, but not a Poise vector (it holds {examples}); make one with "
            "`poise extract`."
        )
    try:
        header = Header.model_validate(_shallow_json(document))
    except (ValidationError, ValueError) as error:
        fault = first_fault(error, Header) if isinstance(error, ValidationError) else str(error)
        raise InvalidVector(
            f"{path} has a header that this version cannot read: {fault}; update Poise if a "
            "newer one wrote it, or extract it again."
        ) from error
    seen = header.detector is not None and header.detector.seen is not None
    expected = [*([DETECTOR_WEIGHTS] if header.detector else []), *(SEEN_TENSORS if seen else [])]
    if set(expected) != set(names) - set(TENSORS):
        raise InvalidVector(
            f"{path} has a detector's figures without its weights, or the other way round; fit it again."
        )
    return header


def _shallow_json(document: str) -> Any:
    """What a JSON text says, if it can be walked through by calls within calls: anybody may have written it.

    Raises:
        ValueError: no JSON, or nested too deeply.
    """
    try:
        value = json.loads(document)
    except RecursionError as error:
        raise ValueError(f"nested more than {DEEPEST_HEADER} deep") from error
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError("half of a character (a lone surrogate)") from error
    level, depth = [value], 0
    while level := [item for value in level for item in _items(value)]:
        depth += 1
        if depth > DEEPEST_HEADER:
            raise ValueError(f"nested more than {DEEPEST_HEADER} deep")
    return value


def _items(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
