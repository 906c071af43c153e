"""A run's folder: what it began with, and what the disk refuses."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from poise.data import DataSet
from poise.errors import InvalidArgument, InvalidVector, SaveFailed
from poise.model import Model
from poise.steer import Spec
from poise.storage.atomic_write import saving
from poise.train.checkpoints import last_good
from poise.train.config import Config

__all__ = ["ADAPTER", "CHECKPOINTS", "FACTS", "begin", "disk", "inputs", "vector_files"]

FACTS, ADAPTER, CHECKPOINTS = "train.json", "adapter", "checkpoints"


def begin(config: Config, folder: Path) -> dict[str, Any]:
    """The facts so far; the folder is this run's own from now on.

    Raises:
        InvalidArgument: it holds a run with other settings or vectors.
    """
    said = config.model_dump(mode="json")
    used = {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in vector_files(config)}
    facts = {"schema": 1, "config": said, "vectors": used}
    marker = folder / "config.json"
    begun = marker.exists() and bool((folder / FACTS).exists() or last_good(folder / CHECKPOINTS))
    if begun and _begun(marker) != (config, used):
        raise InvalidArgument(
            f"{folder} holds a run with other settings or vectors; choose another `out`, or remove it."
        )
    with disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not begun:
            with saving(marker) as temporary:
                temporary.write_text(json.dumps(facts, indent=1) + "\n")
    return facts


def _begun(marker: Path) -> tuple[Config, dict[str, str]] | None:
    """Settings and vectors that a folder's run began with; what they did not name yet has its default."""
    told = json.loads(marker.read_text())
    try:
        return Config.model_validate(told["config"]), told["vectors"]
    except ValueError:
        return None


def inputs(folder: Path, data: DataSet, only: Collection[str] | None, model: Model) -> str:
    """The data's hash. Neither they, nor what of them is vaccinated, nor the base may change under a run that goes on.

    Raises:
        InvalidArgument: the run began on others.
    """
    found = {"data": data.digest(), "model": model.fingerprint.weights}
    if only is not None:
        parts = tuple(part for part in data.parts if part.name in only)
        found["vaccine.only"] = replace(data, parts=parts).digest()
    marker = folder / "inputs.json"
    if marker.exists() and last_good(folder / CHECKPOINTS):
        begun = json.loads(marker.read_text())
        if other := [name for name, value in found.items() if begun.get(name, value) != value]:
            raise InvalidArgument(
                f"{folder} holds a run that began on another content of `{'` and `'.join(other)}`; bring that back, "
                "choose another `out`, or remove it."
            )
    with saving(marker) as temporary:
        temporary.write_text(json.dumps(found) + "\n")
    return found["data"]


def vector_files(config: Config) -> list[str]:
    """Every vector file that the settings name, in order.

    Raises:
        InvalidVector: one of them is not there.
    """
    steered = [name for text in config.vaccine.steer for name in Spec.parse(text).names]
    named = list(dict.fromkeys([*steered, *config.watch.vectors, *(config.measure.vectors or ())]))
    if missing := [name for name in named if not Path(name).is_file()]:
        raise InvalidVector(f"There is no vector file at {', '.join(missing)}; make one with `poise extract`.")
    return named


@contextlib.contextmanager
def disk(folder: Path) -> Iterator[None]:
    """What the disk refuses, in one sentence.

    Raises:
        SaveFailed: says what is kept.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):  # torch's own, of a short write
            raise
        good = last_good(folder / CHECKPOINTS)
        kept = f"the last good checkpoint is {good.name}" if good else "there is no checkpoint yet"
        reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
        raise SaveFailed(
            f"Cannot write in {folder}: {reason}; {kept}. Free some space and run the same command again."
        ) from error
