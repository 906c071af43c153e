"""What runs on the machines of a cluster: an actor that holds the model and scores windows, and a look at a machine.

Neither sees the driver's disk: rows come from, and results go to, the actor that does (``poise.screen.driver_disk``).
"""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from poise.activations import Probe
from poise.data import DataSet
from poise.data.unread_rows import decode_rows, without_files
from poise.errors import InvalidArgument, PoiseError
from poise.model import Fingerprint, Model, load_model
from poise.screen.base_answers import BaseAnswers
from poise.screen.driver_disk import RemoteAnswers, RemoteReadings, call_driver
from poise.screen.reading_cache import WindowCache
from poise.screen.shards import score_shard, shard_bytes

__all__ = ["ShardScorer", "WorkerSpec", "machine_report"]


@dataclass(frozen=True, kw_only=True)
class WorkerSpec:
    """All that a worker needs to score a window, in a form that travels.

    Attributes:
        model: The name that it is loaded by, on every machine; of a folder or a file its absolute path.
        fingerprint: What must have been loaded.
        dtype: Data type of its weights.
        device: A kind, e.g. ``cuda``: a worker uses the one that Ray gives it.
        data: How rows become conversations; the files themselves are the driver's.
        probes: k of them, on the CPU.
        base_answers: Longest answer and batch of the model's own answers; ``None`` where none are needed.
        threads: Threads that torch uses in each worker.
    """

    model: str
    fingerprint: Fingerprint
    dtype: torch.dtype
    device: str
    data: DataSet
    probes: tuple[Probe, ...]
    base_answers: tuple[int, int] | None
    threads: int

    @classmethod
    def of(cls, data: DataSet, model: Model, probes: Sequence[Probe], answers: BaseAnswers | None) -> WorkerSpec:
        """What this process would work with itself."""
        path = Path(model.name).expanduser()
        return cls(
            model=str(path.resolve()) if path.exists() else model.name,
            fingerprint=model.fingerprint,
            dtype=model.lm.dtype,
            device=model.device.type,
            data=without_files(data),
            probes=tuple(Probe(p.layer, p.direction.cpu()) for p in probes),
            base_answers=(answers.sampling.max_new_tokens, answers.batch) if answers else None,
            threads=torch.get_num_threads(),
        )


class ShardScorer:
    """An actor: loads the model at its first window.

    Args:
        spec: What to do.
        disk: The actor on the driver's machine.
    """

    def __init__(self, spec: WorkerSpec, disk: Any) -> None:
        self.spec, self.disk = spec, disk
        self.model: Model | None = None
        self.answers: BaseAnswers | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Score the windows of a batch; what Poise complains of travels back as a value, not as Ray's own error."""
        errors = []
        for window in batch["window"].tolist():
            try:
                self._score(window)
                errors.append(b"")
            except PoiseError as error:
                errors.append(pickle.dumps(error))
        return {"window": batch["window"], "error": np.array(errors, dtype=object)}

    def _score(self, window: int) -> None:
        if self.model is None:
            self.model = self._load_model()
            if self.spec.base_answers:
                longest, batch = self.spec.base_answers
                store = RemoteAnswers(self.disk)
                self.answers = BaseAnswers(self.model, store, max_new_tokens=longest, batch=batch)
        rows = call_driver(self.disk.begin, window, _machine()[0])
        if rows is None:
            return
        cache = WindowCache(RemoteReadings(self.disk), window)
        shard = score_shard(decode_rows(self.spec.data, rows), self.model, self.spec.probes, self.answers, cache)
        call_driver(self.disk.finish, window, shard_bytes(shard))

    def _load_model(self) -> Model:
        spec = self.spec
        torch.set_num_threads(spec.threads)
        try:
            model = load_model(spec.model, dtype=spec.dtype, device=spec.device)
        except PoiseError as error:
            raise InvalidArgument(f"A worker on {_machine()[1]} cannot load the model: {error}") from error
        if model.fingerprint != spec.fingerprint:
            raise InvalidArgument(
                f"A worker on {_machine()[1]} found another model under the name {spec.model} than this process did; "
                "put the same files there on every machine, or use `engine` local."
            )
        return model


def machine_report(model: str, packages: Sequence[str]) -> Callable[[], dict[str, Any]]:
    """A function that says what a machine has, which runs where Poise may not be installed: it is sent by value.

    Args:
        model: Path of the model; empty where it is loaded by another kind of name.
        packages: Names of packages whose versions are told.
    """

    def report() -> dict[str, Any]:
        import importlib.metadata
        import os

        versions = {}
        for name in packages:
            try:
                versions[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                versions[name] = ""
        return {"versions": versions, "model": not model or os.path.exists(model)}  # noqa: PTH110  # no import of ours

    return report


def _machine() -> tuple[str, str]:
    """Ray's name of the machine that this runs on, and its address."""
    ray: Any = importlib.import_module("ray")
    return str(ray.get_runtime_context().get_node_id()), str(ray.util.get_node_ip_address())
