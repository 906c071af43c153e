"""One run at a time in a run folder."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from poise.errors import FolderInUse, OutputExists
from poise.storage.atomic_write import saving
from poise.storage.disk_errors import save_failed

__all__ = ["check_free", "job_of", "locked", "one_at_a_time"]

_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS}  # some network disks
_JOB = "job"
_LONGEST_WAIT = 60.0  # seconds


@contextlib.contextmanager
def locked(run_folder: Path, job: str, *, results: Path | None = None) -> Iterator[None]:
    """Make a run folder, keep other runs out of it, and remove what killed ones left half written.

    The lock goes with the process, however that ends. On a disk without locks nothing is kept out.

    Args:
        run_folder: Folder that the run keeps its finished work in.
        job: What the run does, e.g. ``screen``; the folder belongs to this kind of job from now on.
        results: The folder that the run writes its results into; killed runs' temporary files are removed there too.

    Raises:
        FolderInUse: another run is at work in the folder.
        OutputExists: the folder belongs to another kind of job.
        SaveFailed: the disk refused.
    """
    with contextlib.ExitStack() as held:
        try:
            run_folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(run_folder / "lock", timeout=0)
            _take(lock, held)
            for part in (*run_folder.rglob(".*.part"), *(results.glob(".*.part") if results else ())):
                part.unlink(missing_ok=True)
            if other := other_job(run_folder, job):
                raise OutputExists(other)
            if not job_of(run_folder):
                with saving(run_folder / _JOB) as temporary:
                    temporary.write_text(job, encoding="utf-8")
        except Timeout as error:
            raise _in_use(run_folder, results) from error
        except OSError as error:
            raise save_failed(f"Cannot use the run folder {run_folder}", error) from error
        yield


@contextlib.contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Make a folder, and wait until nobody else is in such a block for it; for work of seconds.

    Raises:
        FolderInUse: somebody is for a minute.
        SaveFailed: the disk refused.
    """
    with contextlib.ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _take(FileLock(folder / ".lock", timeout=_LONGEST_WAIT), held)
        except Timeout as error:
            raise FolderInUse(f"Somebody else is writing into {folder}; try again when they are done.") from error
        except OSError as error:
            raise save_failed(f"Cannot write into {folder}", error) from error
        yield


def check_free(run_folder: Path, *, results: Path | None = None) -> None:
    """Check that no run is at work in a folder, before any work is done; nothing is made or kept.

    Raises:
        FolderInUse: another run is.
    """
    if not (run_folder / "lock").exists():
        return
    with contextlib.ExitStack() as held:
        try:
            _take(FileLock(run_folder / "lock", timeout=0), held)
        except Timeout as error:
            raise _in_use(run_folder, results) from error
        except OSError as error:
            raise save_failed(f"Cannot use the run folder {run_folder}", error) from error


def _in_use(run_folder: Path, results: Path | None) -> FolderInUse:
    place = results or _visible(run_folder)
    return FolderInUse(f"Another run is at work in {place}; wait until it ends, or choose another output.")


def _visible(run_folder: Path) -> Path:
    """The folder that its user named: a run folder may be hidden in it."""
    return run_folder.parent if run_folder.name.startswith(".") else run_folder


def job_of(run_folder: Path) -> str:
    """What kind of job a run folder belongs to; empty where it does not say, as in folders of version 0.1.0."""
    try:
        return (run_folder / _JOB).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def other_job(run_folder: Path, job: str) -> str:
    """The sentence for a run folder of another kind of job; empty where it is this one's or says nothing."""
    owner = job_of(run_folder)
    if owner in ("", job):
        return ""
    return f"{run_folder} belongs to `poise {owner}`; choose another output, or remove that folder."


def _take(lock: FileLock, held: contextlib.ExitStack) -> None:
    try:
        held.enter_context(lock)
    except Timeout:
        raise
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
