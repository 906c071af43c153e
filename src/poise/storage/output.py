"""Where results may be written: never over an input, nor unasked over a file that this kind of job did not write.

A job says what it would lose by writing over a file, by looking into it; nothing is known by name or by time. All of
this is asked before a model is loaded.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from poise.errors import OutputExists, SaveFailed
from poise.storage.disk_errors import save_failed
from poise.storage.lock import check_free, other_job

__all__ = ["Loss", "anything", "check_output", "check_output_folder", "check_writable", "lies_in", "same_file"]

ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):/(?!/)")  # s3://bucket, as a path spells it

Loss = Callable[[Path], str]
"""What writing over an existing file would lose, as the end of "It holds …"; empty where nothing is lost."""


def anything(path: Path) -> str:
    """For jobs that never write over an existing file, whatever it holds."""
    return "earlier work"


def same_file(first: Path, second: Path) -> bool:
    """Whether two paths are one file or folder: links, ``./``, and names that differ in case where disks ignore it."""
    with contextlib.suppress(OSError):
        return first.samefile(second)
    return os.path.realpath(first) == os.path.realpath(second)  # at least one of them is not there yet


def lies_in(path: Path, folder: Path) -> bool:
    """Whether a path is a folder, or lies anywhere in it, however both are spelt."""
    place = Path(os.path.realpath(path))
    return any(same_file(parent, folder) for parent in (path, place, *place.parents))


def check_output(out: Path, *, inputs: Iterable[Path] = (), loss: Loss = anything, force: bool | None = False) -> None:
    """Check that a file may be written, before any work is done.

    Args:
        out: The file to write.
        inputs: What the same job reads, files and folders; never written over.
        loss: Looks into an existing file.
        force: Write over it whatever it holds, unless it is an input; ``None`` where the job never does.

    Raises:
        OutputExists: it is one of the inputs or a file of one, or something would be lost; says what.
        SaveFailed: it cannot be written; says why.
    """
    check_writable(out)
    if not out.exists():
        return
    for path in inputs:
        if same_file(path, out):
            raise OutputExists(f"{out} is an input of this job and would be written over; choose another output.")
        if path.is_dir() and lies_in(out, path) and loss(out):
            raise OutputExists(
                f"{out} belongs to {path}, an input of this job, and would be written over; choose another output."
            )
    if not force and (lost := loss(out)):
        remedy = "choose another file" if force is None else "choose another output, or pass `force` to write over it"
        raise OutputExists(f"{out} exists and holds {lost}; {remedy}.")


def check_output_folder(
    out: Path,
    names: Sequence[str],
    *,
    job: str,
    run_folder: Path,
    marks: Sequence[str] = (),
    inputs: Iterable[Path] = (),
    force: bool = False,
) -> None:
    """Check that a job's results may be written into a folder, before any work is done.

    Args:
        out: The folder for the results.
        names: What the job writes into it.
        job: The kind of job.
        run_folder: Folder that the job keeps its finished work in; see ``poise.storage.lock``.
        marks: Files in ``out`` that only this kind of job leaves, if the run folder does not tell.
        inputs: What the same job reads, files and folders; never written over.
        force: Write over existing files all the same, unless they are inputs.

    Raises:
        OutputExists: an input would be written over, or files that this kind of job did not write, or the folder is a
            model's; says which.
        FolderInUse: another run is at work there.
        SaveFailed: the folder cannot be made or written in.
    """
    if out.exists() and not out.is_dir():
        raise SaveFailed(f"Cannot write into {out}: it is not a folder; choose another path.")
    check_writable(out / "x")
    if other := other_job(run_folder, job):
        raise OutputExists(other)
    check_free(run_folder, results=out)
    results = [out / name for name in names]
    existing = [result.name for result in results if result.exists()]
    ours = any((run_folder / name).exists() for name in ("job", "lock")) or any((out / mark).exists() for mark in marks)
    foreign = [] if ours else existing
    _check_inputs_stay(out, results, inputs, foreign, force=force)
    if force:
        return
    if _is_model_folder(out):
        raise OutputExists(f"{out} is a model's folder; choose another output, or pass `force` to write into it.")
    if foreign:
        raise OutputExists(
            f"{out} holds {', '.join(foreign)}, not written by `poise {job}`; choose another output, or pass `force` "
            "to write over them."
        )


def _check_inputs_stay(
    out: Path, results: Sequence[Path], inputs: Iterable[Path], foreign: Sequence[str], *, force: bool
) -> None:
    """Refuse to write over inputs; ``foreign`` names results that another program wrote."""
    for path in inputs:
        is_target = same_file(path, out)
        if any(lies_in(path, result) for result in results) or (is_target and foreign):
            raise OutputExists(
                f"{path} is an input of this job and would be written over by its results in {out}; choose another "
                "output."
            )
        if is_target and not force:
            raise OutputExists(
                f"{out} is an input of this job; choose another output, or pass `force` to write results beside it."
            )


def _is_model_folder(folder: Path) -> bool:
    """Whether a model or an adapter was saved there, by the files that transformers and peft write."""
    if (folder / "adapter_config.json").exists():
        return True
    try:
        return '"model_type"' in (folder / "config.json").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False


def check_writable(path: Path) -> None:
    """Check that a file can be written at a path, without leaving anything there.

    Raises:
        SaveFailed: something that is no file lies there, or the disk refuses; says why.
    """
    if str(path) == "-":
        raise SaveFailed("Results are not written to standard output; name a file.")
    if ADDRESS.match(str(path)):
        address = ADDRESS.sub(r"\1://", str(path)).removesuffix("/x")
        raise SaveFailed(
            f"Cannot save to {address}: this job writes to a disk of this machine, and not to an address; name a path."
        )
    try:
        if path.is_dir():
            raise SaveFailed(f"Cannot save {path}: it is a folder; name a file.")
        if path.exists() and not path.is_file():
            raise SaveFailed(f"Cannot save {path}: it is not a regular file; choose another path.")
        target = Path(os.path.realpath(path))
        folder = next(parent for parent in target.parents if parent.exists() or parent.is_symlink())
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=folder)
        os.close(handle)
        Path(name).unlink()
    except OSError as error:
        raise save_failed(f"Cannot save {path}", error) from error
