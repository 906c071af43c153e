"""The same scorer on Ray: windows go to actors that each hold the model, and come back as part files.

Machines share no disk: the driver's is read and written by one actor that stays beside the driver. A worker or a
machine that dies costs the windows it was in. Scores are those of the local engine, bit for bit, on the same kind of
machine with as many torch threads; so each actor is given as many as this process has.
"""

from __future__ import annotations

import importlib
import logging
import math
import os
import pickle
import socket
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from poise.activations import Probe
from poise.data import DataSet
from poise.errors import InvalidArgument, MissingExtra, first_line
from poise.model import Model
from poise.screen import shards as windows
from poise.screen.base_answers import BaseAnswers
from poise.screen.driver_disk import DriverDisk, DriverFiles
from poise.screen.ray_worker import ShardScorer, WorkerSpec, machine_report
from poise.screen.reading_cache import ReadingCache
from poise.screen.shards import Shard, ShardStore

__all__ = ["run_workers", "score_shards_on_ray"]

CONNECTING = 20  # seconds for a cluster's head to answer
SAME_VERSIONS = ("poise", "torch", "transformers", "tokenizers")  # packages that scores depend on


def score_shards_on_ray(
    parts: ShardStore,
    data: DataSet,
    model: Model,
    probes: Sequence[Probe],
    answers: BaseAnswers | None = None,
    workers: int | None = None,
    cache: ReadingCache | None = None,
    address: str = "",
) -> Iterator[Shard]:
    """Every window in order, as ``poise.screen.shards.score_shards``; those that are missing are scored on Ray.

    Args:
        parts: In a folder of this machine.
        data: The data set, which this machine reads.
        model: Loaded again by its name in every worker.
        probes: k of them.
        answers: Gives y′; all workers use the same store.
        workers: Actors; default as many as the cluster has room for.
        cache: What was read before.
        address: The cluster's; default that of ``RAY_ADDRESS``, and without it a cluster of this machine alone.

    Raises:
        MissingExtra: Ray is not installed.
        InvalidArgument: no cluster answers, or a machine of it lacks something; says which and what.
    """
    job = (parts.folder / "job").read_text()
    size = windows.ROWS_PER_SHARD
    wanted = range(math.ceil(data.count() / size))
    missing = [window for window in wanted if window not in parts]
    files = DriverFiles(
        data=data,
        parts=parts.folder,
        job=job,
        window=size,
        missing=frozenset(missing),
        readings=cache,
        answers=answers.store if answers else None,
        folder=Path.cwd(),
    )
    spec = WorkerSpec.of(data, model, probes, answers)
    with closing(run_workers(spec, files, missing, workers, address)) as finished:
        for window in wanted:
            if window not in parts:
                for _ in finished:
                    if window in parts:
                        break
            yield parts.load(window)


def run_workers(
    spec: WorkerSpec, files: DriverFiles, missing: Sequence[int], workers: int | None = None, address: str = ""
) -> Generator[int, None, None]:
    """Score windows into part files, and yield their numbers as they are finished.

    Ray starts a worker that dies again, and gives it back its window; several deaths over one window end the run.

    Args:
        spec: What to do.
        files: Folders, stores and data of this machine.
        missing: Windows, ascending.
        workers: Actors; default as many as the cluster has room for.
        address: The cluster's; see ``score_shards_on_ray``.

    Raises:
        MissingExtra: Ray is not installed.
        PoiseError: what a worker raised.
    """
    if not missing:
        return
    ray = _import_ray()
    with _cluster(ray, spec, workers, address):
        machines = _usable_machines(ray, spec)
        _check_machines(ray, spec, machines)
        gpu = spec.device == "cuda"
        fits = sum(int(have.get("GPU", 0)) if gpu else int(have["CPU"] // spec.threads) for _, have in machines)
        disk = _start_disk(ray, files)
        scored = ray.data.from_items([{"window": w} for w in missing], override_num_blocks=len(missing)).map_batches(
            ShardScorer,
            fn_constructor_args=(spec, disk),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=max(1, min(workers or fits, len(missing)))),
            num_cpus=None if gpu else spec.threads,
            num_gpus=1 if gpu else None,
        )
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # Ray Data set it to talk as it was first used
        try:
            for row in scored.iter_rows():
                if row["error"]:
                    raise pickle.loads(row["error"])
                yield int(row["window"])
        finally:
            ray.kill(disk)


def _start_disk(ray: Any, files: DriverFiles) -> Any:
    """The actor that reads and writes this machine's disk, on this machine."""
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    actor = ray.remote(DriverDisk).options(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)
    return actor.remote(files)


def _usable_machines(ray: Any, spec: WorkerSpec) -> list[tuple[str, dict[str, float]]]:
    """The machines that have room for a worker, each with what it has, by Ray's name of it.

    Raises:
        InvalidArgument: there are none.
    """
    need, least = ("GPU", 1) if spec.device == "cuda" else ("CPU", spec.threads)
    have = [(node["NodeID"], node["Resources"]) for node in ray.nodes() if node["Alive"]]
    usable = [(name, resources) for name, resources in have if resources.get(need, 0) >= least]
    if not usable:
        raise InvalidArgument(
            f"None of the {len(have)} machines of the cluster has {least} {need} for a worker; start Ray on larger "
            "ones, set OMP_NUM_THREADS lower, or use `engine` local."
        )
    return usable


def _check_machines(ray: Any, spec: WorkerSpec, machines: Sequence[tuple[str, dict[str, float]]]) -> None:
    """Refuse a cluster of which a machine lacks what scores depend on; names each machine and what it lacks.

    Raises:
        InvalidArgument: the model's files, or a package of the same version, are not there.
    """
    path = spec.model if Path(spec.model).is_absolute() else ""
    wanted = machine_report(path, SAME_VERSIONS)()["versions"]
    affinity = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    look = ray.remote(machine_report(path, SAME_VERSIONS))
    looks = {
        name: look.options(num_cpus=0, max_retries=3, scheduling_strategy=affinity(name, soft=True)).remote()
        for name, _ in machines
    }
    names = {node["NodeID"]: f"{node['NodeName']} ({node['NodeID'][:8]})" for node in ray.nodes()}
    complaints = []
    for name, answer in looks.items():
        report = ray.get(answer)
        lacks = [] if report["model"] else [f"has no {path}, the model's files"]
        for package, version in report["versions"].items():
            if version != wanted[package]:
                lacks.append(f"has {package} {version}, not {wanted[package]}" if version else f"lacks {package}")
        if lacks:
            complaints.append(f"{names[name]} {', '.join(lacks)}")
    if complaints:
        raise InvalidArgument(
            f"The machines of the cluster differ from this one: {'; '.join(complaints)}. Put the same files and "
            "packages on each, give `model` a name that every machine can load, or use `engine` local."
        )


@contextmanager
def _cluster(ray: Any, spec: WorkerSpec, workers: int | None, address: str) -> Iterator[None]:
    """The cluster that is there (by address, or this process is on one already), or one on this machine."""
    context = ray.data.DataContext.get_current()
    bars, context.enable_progress_bars = context.enable_progress_bars, False
    ours = not ray.is_initialized()
    address = address or os.environ.get("RAY_ADDRESS", "")
    if ours and address:
        _join(ray, address)
    elif ours:
        cpus = workers * spec.threads if workers else None
        ray.init("local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars = bars
        if ours:
            ray.shutdown()


def _join(ray: Any, address: str) -> None:
    """Join a running cluster.

    Raises:
        InvalidArgument: the address is a Ray client's, or nothing answers there.
    """
    if address.startswith("ray://"):
        raise InvalidArgument(
            f"`ray_address` is {address}, of a Ray client, which is no machine of the cluster and whose disk it cannot "
            "reach; make this machine one with `ray start`, and give HOST:PORT of the head or auto."
        )
    _check_answers(address)
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise _no_cluster(address, error) from error


def _check_answers(address: str) -> None:
    """Look whether anything listens there, for which Ray itself asks for minutes, with warnings.

    Raises:
        InvalidArgument: nothing does.
    """
    host, colon, port = address.rpartition(":")
    if not (colon and port.isdecimal() and int(port) < 1 << 16):
        return  # auto, or what Ray finds fault with at once
    own = importlib.import_module("ray.util").get_node_ip_address()  # under which Ray looks for this machine
    hosts = [host.strip("[]"), *([own] if host in ("localhost", "127.0.0.1") else [])]
    for number, name in enumerate(hosts, start=1):
        try:
            socket.create_connection((name, int(port)), timeout=CONNECTING).close()
        except OSError as error:
            if number == len(hosts):
                raise _no_cluster(address, error) from error
        else:
            return


def _no_cluster(address: str, error: Exception) -> InvalidArgument:
    return InvalidArgument(
        f"`ray_address` is {address}, where no Ray cluster can be joined: {first_line(error).removesuffix('.')}. "
        "Start Ray on its head and on this machine with `ray start`, and give HOST:PORT of the head or auto."
    )


def _import_ray() -> Any:
    """The library, told to be quiet and to report to nobody."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        importlib.import_module("ray.data")
        importlib.import_module("ray.util.scheduling_strategies")
        return importlib.import_module("ray")
    except ImportError as error:
        raise MissingExtra.of("The engine ray needs Ray", "scale") from error
