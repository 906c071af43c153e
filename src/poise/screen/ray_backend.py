"""The same scorer on Ray: windows go to actors that each hold the model, and come back as part files.

An actor writes its part itself, whole or not at all, into a folder that all machines share; nothing but the window's
number travels. A worker that dies costs the window it was in. Scores are those of the local engine, bit for bit, on
the same kind of machine with as many torch threads; so each actor is given as many as this process has.
"""

from __future__ import annotations

import importlib
import logging
import math
import os
import pickle
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from poise.activations import Probe
from poise.data import Conversation, DataSet, RejectedRow
from poise.errors import InvalidArgument, MissingExtra, PoiseError
from poise.model import Fingerprint, Model, load_model
from poise.screen import shards as windows
from poise.screen.base_answers import BaseAnswers
from poise.screen.reading_cache import ReadingCache, WindowCache
from poise.screen.shards import Shard, ShardStore, score_shard

__all__ = ["WorkerSpec", "run_workers", "score_shards_on_ray"]

MOST_WORKER_DEATHS = 3  # workers that may die over one window


@dataclass(frozen=True, kw_only=True)
class WorkerSpec:
    """All that a worker needs to score a window, in a form that travels.

    Attributes:
        model: The name that it is loaded by, on every machine.
        fingerprint: What must have been loaded.
        dtype: Data type of its weights.
        device: A kind, e.g. ``cuda``: a worker uses the one that Ray gives it.
        data: Its files lie in the same place on every machine.
        probes: k of them, on the CPU.
        base_answers: Folder, longest answer and batch of the model's own answers; ``None`` where none are needed.
        readings: Folder and job of what was read before; ``None`` to read all texts.
        job: Key of the job whose shards are written; see ``ShardStore``.
        threads: Threads that torch uses in each worker.
        window: Rows a window.
        folder: Working folder of the driver; relative paths start there.
    """

    model: str
    fingerprint: Fingerprint
    dtype: torch.dtype
    device: str
    data: DataSet
    probes: tuple[Probe, ...]
    base_answers: tuple[Path, int, int] | None
    readings: tuple[Path, str] | None
    job: str
    threads: int
    window: int
    folder: Path

    @classmethod
    def of(
        cls,
        data: DataSet,
        model: Model,
        probes: Sequence[Probe],
        answers: BaseAnswers | None,
        job: str,
        cache: ReadingCache | None = None,
    ) -> WorkerSpec:
        """What this process would work with itself."""
        options = answers and (
            answers.path.parent.resolve(),
            answers.sampling.max_new_tokens,
            answers.batch,
        )
        return cls(
            model=model.name,
            fingerprint=model.fingerprint,
            dtype=model.lm.dtype,
            device=model.device.type,
            data=data,
            probes=tuple(Probe(p.layer, p.direction.cpu()) for p in probes),
            base_answers=options or None,
            readings=(cache.path.parent.resolve(), cache.job) if cache else None,
            job=job,
            threads=torch.get_num_threads(),
            window=windows.ROWS_PER_SHARD,
            folder=Path.cwd(),
        )


class ShardScorer:
    """An actor: loads the model at its first window and keeps its place in the data while windows ascend."""

    def __init__(self, spec: WorkerSpec, parts: Path) -> None:
        self.spec, self.folder = spec, parts
        self.model: Model | None = None
        self.rows: Iterator[Conversation | RejectedRow] = iter(())
        self.next = 0  # the window that ``rows`` stands before; 0 also where nothing was read

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
            self._set_up()
        assert self.model is not None
        store = ShardStore(self.folder, self.spec.job)
        if window not in store:
            self._begin(window)
            known = WindowCache(self.cache, window) if self.cache else None
            store.save(window, score_shard(self._read(window), self.model, self.spec.probes, self.answers, known))
        _attempts_file(self.folder, window).unlink(missing_ok=True)

    def _set_up(self) -> None:
        spec = self.spec
        if spec.folder.is_dir():
            os.chdir(spec.folder)
        torch.set_num_threads(spec.threads)
        model = load_model(spec.model, dtype=spec.dtype, device=spec.device)
        if model.fingerprint != spec.fingerprint:
            raise InvalidArgument(
                f"A worker found another model under the name {spec.model} than this process did; give `model` a "
                "folder that all machines share, or use `engine` local."
            )
        self.answers = (
            BaseAnswers(model, spec.base_answers[0], max_new_tokens=spec.base_answers[1], batch=spec.base_answers[2])
            if spec.base_answers
            else None
        )
        self.cache = ReadingCache(*spec.readings, model, spec.probes) if spec.readings else None
        self.model = model

    def _begin(self, window: int) -> None:
        """Refuse a window over which workers die time and again: Ray itself would go on for ever."""
        mark, first = _attempts_file(self.folder, window), window * self.spec.window
        if mark.exists() and mark.stat().st_size >= MOST_WORKER_DEATHS:
            raise InvalidArgument(
                f"{MOST_WORKER_DEATHS} workers died over rows {first} to {first + self.spec.window - 1}, most likely "
                "out of memory; use fewer workers to a machine, a smaller `batch`, or `engine` local to see more."
            )
        with mark.open("ab") as file:
            file.write(b".")

    def _read(self, window: int) -> list[Conversation | RejectedRow]:
        size = self.spec.window
        if not self.next or window < self.next:
            self.rows, self.next = self.spec.data.iterate(window * size), window
        deque(islice(self.rows, (window - self.next) * size), maxlen=0)
        self.next = window + 1
        return list(islice(self.rows, size))


def score_shards_on_ray(
    parts: ShardStore,
    data: DataSet,
    model: Model,
    probes: Sequence[Probe],
    answers: BaseAnswers | None = None,
    workers: int | None = None,
    cache: ReadingCache | None = None,
) -> Iterator[Shard]:
    """Every window in order, as ``poise.screen.shards.score_shards``; those that are missing are scored on Ray.

    Args:
        parts: In a folder that all machines share.
        data: The data set, whose files lie in the same place on every machine.
        model: Loaded again by its name in every worker.
        probes: k of them.
        answers: Gives y′; all workers use the same file.
        workers: Actors; default as many as the cluster has room for.
        cache: What was read before.

    Raises:
        MissingExtra: Ray is not installed.
        InvalidArgument: a worker finds another model under that name.
    """
    job = (parts.folder / "job").read_text()
    spec = WorkerSpec.of(data, model, probes, answers, job, cache)
    wanted = range(math.ceil(data.count() / spec.window))
    missing = [window for window in wanted if window not in parts]
    with closing(run_workers(spec, missing, parts.folder, workers)) as finished:
        for window in wanted:
            if window not in parts:
                for _ in finished:
                    if window in parts:
                        break
            yield parts.load(window)


def run_workers(
    spec: WorkerSpec, missing: Sequence[int], parts: Path, workers: int | None = None
) -> Generator[int, None, None]:
    """Score windows into part files, and yield their numbers as they are finished.

    Ray starts a worker that dies again, and gives it back its window; ``TRIES`` deaths over one window end the run.

    Args:
        spec: What to do.
        missing: Windows, ascending.
        parts: The folder of the parts.
        workers: Actors; default as many as the cluster has room for.

    Raises:
        MissingExtra: Ray is not installed.
        PoiseError: what a worker raised.
    """
    if not missing:
        return
    ray = _import_ray()
    for window in missing:
        _attempts_file(parts, window).unlink(missing_ok=True)
    with _cluster(ray, spec, workers):
        room = ray.cluster_resources()
        gpu = spec.device == "cuda"
        fits = int(room.get("GPU", 0)) if gpu else int(room.get("CPU", 1) // spec.threads)
        scored = ray.data.from_items([{"window": w} for w in missing], override_num_blocks=len(missing)).map_batches(
            ShardScorer,
            fn_constructor_args=(spec, parts.resolve()),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=max(1, min(workers or fits, len(missing)))),
            num_cpus=None if gpu else spec.threads,
            num_gpus=1 if gpu else None,
        )
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # Ray Data set it to talk as it was first used
        for row in scored.iter_rows():
            if row["error"]:
                raise pickle.loads(row["error"])
            yield int(row["window"])


def _attempts_file(parts: Path, window: int) -> Path:
    """A file with a byte for each time that the window was begun; gone once it is finished."""
    return parts / f"begun-{window:08d}"


@contextmanager
def _cluster(ray: Any, spec: WorkerSpec, workers: int | None) -> Iterator[None]:
    """The cluster that is there (``RAY_ADDRESS``, or this process is on one already), or one on this machine."""
    context = ray.data.DataContext.get_current()
    bars, context.enable_progress_bars = context.enable_progress_bars, False
    ours = not ray.is_initialized()
    if ours and os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    elif ours:
        cpus = workers * spec.threads if workers else None
        ray.init("local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars = bars
        if ours:
            ray.shutdown()


def _import_ray() -> Any:
    """The library, told to be quiet and to report to nobody."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        importlib.import_module("ray.data")
        return importlib.import_module("ray")
    except ImportError as error:
        raise MissingExtra.of("The engine ray needs Ray", "scale") from error
