"""Results at an address that fsspec knows, such as ``s3://bucket/screened``: worked on here, and copied there.

A run works in a folder of this machine. Its finished windows are copied as they come, so that another machine goes on
where this one was lost; results are copied at the end, the summary last, and the folder here is removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import threading
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from poise.data.addresses import check_no_password, is_address
from poise.data.input_files import import_extra
from poise.errors import SaveFailed, first_line
from poise.model.loading import cache_dir

__all__ = ["local_folder", "working_folder"]

SECONDS_BETWEEN_COPIES = 10.0
FINISHED_WINDOWS = ".run/*/part-*.npz"  # finished once they are there, and never written again
LEFT_HERE = ("lock",)
WITHOUT_FOLDERS = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "hf"}
"""Kinds of address without folders: to make one there would make a bucket."""


@contextlib.contextmanager
def working_folder(out: str | Path, results: Collection[str]) -> Iterator[Path]:
    """The folder to work in for results in ``out``: that folder, or one of this machine for an address.

    Args:
        out: A folder, or an address.
        results: Names that the job's results have; what it does not write again is removed at the address.

    Raises:
        SaveFailed: the address cannot be reached, read or written; what is done is kept here.
        MissingExtra: the package that knows this kind of address is not installed.
    """
    folder = local_folder(out)
    if not is_address(str(out)) or str(out).startswith(("file://", "local://")):
        yield folder
        return
    mirror = _Mirror(str(out), folder)
    mirror.check_writable()
    mirror.fetch(results)
    stop = threading.Event()
    copier = threading.Thread(target=mirror.copy_windows_until, args=(stop,), daemon=True)
    copier.start()
    try:
        yield folder
    finally:
        stop.set()
        copier.join()
        with contextlib.suppress(SaveFailed):  # what the run raised tells more; without that, the next copy raises
            mirror.copy_windows()
    mirror.copy_all(results)
    shutil.rmtree(folder, ignore_errors=True)


def local_folder(out: str | Path) -> Path:
    """The folder itself, or the one of this machine that is worked in for an address."""
    text = str(out)
    if text.startswith(("file://", "local://")):
        return Path(text.partition("://")[2])
    if not is_address(text):
        return Path(out)
    check_no_password(text)
    key = hashlib.sha256(text.rstrip("/").encode()).hexdigest()[:16]
    return cache_dir() / "outputs" / f"{PurePosixPath(text.partition('://')[2]).name}-{key}"


class _Mirror:
    """A folder here and its copy at an address."""

    def __init__(self, address: str, folder: Path) -> None:
        self.address, self.folder = address.rstrip("/"), folder
        fsspec = import_extra("fsspec", f"Writing to {address}")
        with self._errors("reached"):
            self.system, self.root = fsspec.core.url_to_fs(self.address)
        self.copied: dict[Path, int] = {}  # when each was last written, as it was copied

    def check_writable(self) -> None:
        """Write something there, and take it away again, before any work is done."""
        place = f"{self.root}/.run/writable"
        with self._errors("written"):
            self._make_folder_of(place)
            self.system.pipe_file(place, b"")
            self.system.rm_file(place)

    def fetch(self, results: Collection[str]) -> None:
        """Bring what this kind of job left there and is not here, or older here."""
        with self._errors("read"):
            self.system.invalidate_cache()
            there: dict[str, Any] = self.system.find(self.root, detail=True) if self.system.exists(self.root) else {}
            for name in there:
                inner = PurePosixPath(name).relative_to(PurePosixPath(self.root))
                if inner.parts[0] != ".run" and str(inner) not in results:
                    continue
                path = self.folder / inner
                if path.exists() and path.stat().st_mtime >= self.system.modified(name).timestamp():
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                part = path.with_name(f".{path.name}.part")
                self.system.get_file(name, str(part))
                part.replace(path)
                self.copied[path] = path.stat().st_mtime_ns

    def copy_windows_until(self, stop: threading.Event) -> None:
        """Copy finished windows from time to time; what fails is tried again the next time."""
        while not stop.wait(SECONDS_BETWEEN_COPIES):
            with contextlib.suppress(SaveFailed):
                self.copy_windows()

    def copy_windows(self) -> None:
        """Copy the windows that were finished since the last time."""
        self._copy(sorted(self.folder.glob(".run/*/job")))
        self._copy(sorted(self.folder.glob(FINISHED_WINDOWS)))

    def copy_all(self, results: Collection[str]) -> None:
        """Copy everything, the summary last, and remove results that are here no more."""
        paths = [path for path in self.folder.rglob("*") if path.is_file() and path.name not in LEFT_HERE]
        self._copy(sorted(paths, key=lambda path: (path.name == "summary.json", path)))
        with self._errors("written"):
            for name in results:
                place = f"{self.root}/{name}"
                if not (self.folder / name).exists() and self.system.exists(place):
                    self.system.rm_file(place)

    def _copy(self, paths: Sequence[Path]) -> None:
        with self._errors("written"):
            for path in paths:
                written = path.stat().st_mtime_ns
                if self.copied.get(path) == written:
                    continue
                place = f"{self.root}/{path.relative_to(self.folder).as_posix()}"
                self._make_folder_of(place)
                self.system.put_file(str(path), place)
                self.copied[path] = written

    def _make_folder_of(self, place: str) -> None:
        kinds = self.system.protocol
        if not WITHOUT_FOLDERS.intersection([kinds] if isinstance(kinds, str) else kinds):
            self.system.makedirs(place.rpartition("/")[0], exist_ok=True)

    @contextlib.contextmanager
    def _errors(self, verb: str) -> Iterator[None]:
        try:
            yield
        except ImportError as error:
            raise SaveFailed(f"{self.address} cannot be {verb}: {first_line(error).removesuffix('.')}.") from error
        except Exception as error:
            raise SaveFailed(
                f"{self.address} cannot be {verb}: {first_line(error).removesuffix('.')}; what is done so far is kept "
                f"in {self.folder}. Check the address and the credentials that its kind takes from the environment, "
                "then run the same command again."
            ) from error
