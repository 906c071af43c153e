"""What lies at a path, for a record: its kind, its files with their hashes, and what they say of themselves."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from poise.errors import InvalidRegistry
from poise.lifecycle.model_files import SKIPPED_FOLDERS, file_sha256, inspect_model, model_place
from poise.lifecycle.registry_records import ArtefactFile, ArtefactKind
from poise.lifecycle.weight_headers import safetensors_metadata
from poise.model.bundled import BUNDLED
from poise.progress import track

__all__ = ["artefact_facts", "artefact_files", "artefact_kind", "artefact_place"]

LARGEST_REPORT = 1 << 20  # bytes of a JSON report that a record holds in full
DATA_ENDINGS = (".jsonl", ".csv", ".parquet", ".tsv", ".arrow", ".jsonl.gz", ".jsonl.zst")


def artefact_place(name: str) -> Path:
    """Where an artefact lies: a path, a bundled model's file, or a fetched hub id's folder.

    Raises:
        InvalidRegistry: nothing there.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    if name in BUNDLED or name.count("/") == 1:
        return model_place(name)
    raise InvalidRegistry(f"There is nothing at {name} to record; give the path of a file or folder.")


def artefact_kind(place: Path) -> ArtefactKind:
    """Kind of artefact, by what it holds.

    Raises:
        InvalidRegistry: it cannot be told.
    """
    if place.is_dir():
        for name, kind in FOLDER_MARKS:
            if (place / name).exists():
                return kind
    elif place.suffix == ".gguf":
        return "model"
    elif place.suffix == ".safetensors":
        header = _vector_header(place)
        return ("detector" if header.get("detector") else "vector") if header else "model"
    elif place.name == "project.yaml":
        return "project"
    elif place.name.endswith(DATA_ENDINGS):
        return "data"
    elif place.suffix == ".json":
        return "report"
    elif place.suffix in (".yaml", ".yml") and _names_a_policy(place):
        return "guardrail"
    raise InvalidRegistry(f"What {place} is cannot be told by its files; say it with `kind`.")


FOLDER_MARKS: tuple[tuple[str, ArtefactKind], ...] = (
    ("adapter_config.json", "adapter"),
    ("knowledge.json", "knowledge"),
    ("guardrail.yaml", "guardrail"),
    ("config.json", "model"),
    ("dataset_info.json", "data"),
    ("shift.json", "report"),
)


def _names_a_policy(place: Path) -> bool:
    text = place.read_text("utf-8", errors="replace")
    return any(
        f"\n{key}:" in f"\n{text}" for key in ("words", "sensitive", "topics", "content", "grounding", "messages")
    )


def artefact_files(place: Path) -> tuple[ArtefactFile, ...]:
    """Every file of an artefact with its hash.

    Raises:
        InvalidRegistry: there is none, or one cannot be read.
    """
    paths = [place] if place.is_file() else sorted(_inner_files(place))
    if not paths:
        raise InvalidRegistry(f"{place} holds no file to record.")
    try:
        with track("Hashing files", total=len(paths)) as advance:
            files = []
            for path in paths:
                name = path.name if place.is_file() else path.relative_to(place).as_posix()
                files.append(ArtefactFile(name=name, bytes=path.stat().st_size, sha256=file_sha256(path)))
                advance(1)
    except OSError as error:
        raise InvalidRegistry(f"{error.filename} cannot be read ({error.strerror}); nothing was recorded.") from error
    return tuple(files)


def _inner_files(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(one for one in folders if one not in SKIPPED_FOLDERS)
        yield from (Path(parent) / name for name in names if not name.endswith((".lock", ".part")))


def artefact_facts(place: Path, kind: ArtefactKind) -> dict[str, Any]:
    """What an artefact's files say of themselves; nothing is loaded."""
    if kind == "model":
        return _model_facts(place)
    if kind == "adapter":
        return _adapter_facts(place)
    if kind in ("vector", "detector"):
        return _vector_facts(_vector_header(place))
    if kind in ("report", "knowledge"):
        path = place if place.is_file() else next(iter(sorted(place.glob("*.json"))), place)
        return _report_facts(path)
    return {}


def _model_facts(place: Path) -> dict[str, Any]:
    seen = inspect_model(str(place), hashes=False, safe=True)
    return {
        "architecture": seen.architecture,
        "parameters": seen.parameters,
        "parts": seen.parts,
        "dtypes": seen.dtypes,
        "licence": seen.licence,
        "template_sha256": seen.template_sha256,
        "vocabulary": seen.vocabulary.tokens,
        "findings": [finding.model_dump() for finding in seen.findings],
    }


def _adapter_facts(place: Path) -> dict[str, Any]:
    config = _json_document(place / "adapter_config.json")
    keys = ("base_model_name_or_path", "peft_type", "r", "lora_alpha", "use_dora", "modules_to_save")
    facts = {key: config[key] for key in keys if key in config}
    training = _json_document(place.parent / "train.json") or _json_document(place / "train.json")
    return facts | ({"training": training} if training else {})


def _vector_header(place: Path) -> dict[str, Any]:
    try:
        document = json.loads(safetensors_metadata(place).get("poise", "{}"))
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _vector_facts(header: dict[str, Any]) -> dict[str, Any]:
    trait, model = header.get("trait") or {}, header.get("model") or {}
    keys = ("contrast", "kept", "dropped", "judge", "seed", "certificate", "detector", "provenance")
    facts = {key: header[key] for key in keys if header.get(key)}
    if isinstance(facts.get("detector"), dict):
        facts["detector"] = {key: value for key, value in facts["detector"].items() if key != "normal_keys"}
    names = {"trait": trait.get("name"), "description": trait.get("description"), "model": model.get("name")}
    return {**{key: value for key, value in names.items() if value}, **facts, "alarms": len(header.get("alarms") or ())}


def _report_facts(path: Path) -> dict[str, Any]:
    if not path.is_file() or path.stat().st_size > LARGEST_REPORT:
        return {}
    content = _json_document(path)
    return {"report": content} if content else {}


def _json_document(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none that can be read."""
    try:
        value = json.loads(path.read_text("utf-8"), parse_constant=lambda _: None)  # NaN is missing
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
