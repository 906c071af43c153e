"""The folder of a training run: what it began with, and disk errors in one sentence."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from poise.errors import InvalidArgument, InvalidVector, SaveFailed
from poise.model import Model
from poise.steer import SteeringExpression
from poise.storage.atomic_write import saving
from poise.train.checkpoints import last_complete_checkpoint
from poise.train.config import TrainConfig

__all__ = [
    "ADAPTER_FOLDER",
    "CHECKPOINTS_FOLDER",
    "FACTS_FILE",
    "MODEL_FOLDER",
    "TRAINING_FILES",
    "begin_run",
    "check_inputs",
    "explain_disk_errors",
    "vector_files",
]

FACTS_FILE, ADAPTER_FOLDER, CHECKPOINTS_FOLDER = "train.json", "adapter", "checkpoints"
MODEL_FOLDER = "model"  # where all weights are trained
TRAINING_FILES = (
    "config.json", "inputs.json", FACTS_FILE, "log.jsonl", "rejected_rows.jsonl", "rejected_rows.parquet",
    ADAPTER_FOLDER, MODEL_FOLDER, CHECKPOINTS_FOLDER,
)  # fmt: skip
DISK_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), None)  # torch and safetensors give no number


def begin_run(config: TrainConfig, folder: Path) -> dict[str, Any]:
    """Claim the folder for this run and return what is known of it so far: settings and hashes of its vectors.

    Raises:
        InvalidArgument: the folder holds a run with other settings or vectors.
    """
    hashes = {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in vector_files(config)}
    facts = {"schema": 1, "config": config.model_dump(mode="json"), "vectors": hashes}
    marker = folder / "config.json"
    begun = marker.exists() and bool(
        (folder / FACTS_FILE).exists() or last_complete_checkpoint(folder / CHECKPOINTS_FOLDER)
    )
    if begun and _begun_settings(marker) != (config, hashes):
        raise InvalidArgument(
            f"{folder} holds a run with other settings or vectors; choose another `out`, or remove it."
        )
    with explain_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not begun:
            with saving(marker) as temporary:
                temporary.write_text(json.dumps(facts, indent=1) + "\n")
    return facts


def _begun_settings(marker: Path) -> tuple[TrainConfig, dict[str, str]] | None:
    """Settings and vectors that a folder's run began with; settings that are newer than the run have their default."""
    begun = json.loads(marker.read_text())
    try:
        return TrainConfig.model_validate(begun["config"]), begun["vectors"]
    except ValueError:
        return None


def check_inputs(folder: Path, digests: Mapping[str, str], model: Model) -> str:
    """Record the hashes of data and base, or compare them with those that a resumed run began with.

    Args:
        folder: The run's folder.
        digests: Hashes of the data by the name of their setting.
        model: The base.

    Returns:
        The data's hash.

    Raises:
        InvalidArgument: data, their vaccinated part or the base changed since the run began.
    """
    hashes = {**digests, "model": model.fingerprint.weights}
    marker = folder / "inputs.json"
    if marker.exists() and last_complete_checkpoint(folder / CHECKPOINTS_FOLDER):
        begun = json.loads(marker.read_text())
        if changed := [name for name, value in hashes.items() if begun.get(name, value) != value]:
            raise InvalidArgument(
                f"{folder} holds a run that began on another content of `{'` and `'.join(changed)}`; bring that back, "
                "choose another `out`, or remove it."
            )
    with saving(marker) as temporary:
        temporary.write_text(json.dumps(hashes) + "\n")
    return hashes["data"]


def vector_files(config: TrainConfig) -> list[str]:
    """Every vector file that the settings name, in order.

    Raises:
        InvalidVector: one of them is not there.
    """
    steered = [name for text in config.vaccine.steer for name in SteeringExpression.parse(text).names]
    paths = list(dict.fromkeys([*steered, *config.watch.vectors, *(config.measure.vectors or ())]))
    if missing := [path for path in paths if not Path(path).is_file()]:
        raise InvalidVector(f"There is no vector file at {', '.join(missing)}; make one with `poise extract`.")
    return paths


@contextlib.contextmanager
def explain_disk_errors(folder: Path) -> Iterator[None]:
    """Turn errors of the disk into one sentence.

    Raises:
        SaveFailed: names the last good checkpoint.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):  # torch's own, of a short write
            raise
        checkpoint = last_complete_checkpoint(folder / CHECKPOINTS_FOLDER)
        saved = f"the last good checkpoint is {checkpoint.name}" if checkpoint else "there is no checkpoint yet"
        reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
        remedy = "Free some space" if getattr(error, "errno", None) in DISK_FULL else "Make the folder writable"
        raise SaveFailed(
            f"Cannot write in {folder}: {reason}; {saved}. {remedy} and run the same command again."
        ) from error
