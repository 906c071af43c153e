"""A registry at an address that fsspec knows: its files read into a folder here, and new ones created there first.

Records and events are written once and never changed, so a copy is never stale in what it has. A new file is created
at the address only where there is none; that is what settles which of two writers has a number.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

from poise.data.addresses import check_no_password
from poise.data.input_files import import_extra
from poise.errors import InvalidRegistry, MissingExtra, SaveFailed, first_line

__all__ = ["RegistryMirror", "address_text"]

PATH_OF_ADDRESS = re.compile(r"^([a-z][a-z0-9+.-]+):/(?!/)")  # s3://bucket, as a path spells it


class RegistryMirror:
    """The files of a registry elsewhere.

    Args:
        address: Address of the registry, such as ``s3://bucket/registry``.

    Raises:
        InvalidRegistry: the place cannot be reached or read.
        MissingExtra: what knows this kind of address is not installed.
    """

    def __init__(self, address: str) -> None:
        check_no_password(address)
        self.address = address.rstrip("/")
        fsspec: Any = import_extra("fsspec", f"The registry {address}")
        self.folder = Path(tempfile.mkdtemp(prefix="poise-registry-"))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        try:
            self._system, root = fsspec.core.url_to_fs(self.address)
        except ImportError as error:
            raise MissingExtra(f"The registry {address} needs another package: {first_line(error)}") from error
        except ValueError as error:
            raise InvalidRegistry(f"The registry {address} cannot be opened: {first_line(error)}") from error
        self._root = str(root)
        self.fetch()

    def fetch(self) -> None:
        """Read what is there and not here yet.

        Raises:
            InvalidRegistry: it cannot be read.
        """
        try:
            self._system.invalidate_cache()
            names = self._system.find(self._root) if self._system.exists(self._root) else []
            for name in names:
                path = self.folder / str(name).removeprefix(self._root).lstrip("/")
                if path.resolve().is_relative_to(self.folder.resolve()) and not path.exists():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(self._system.cat_file(name))
        except (OSError, ValueError, RuntimeError) as error:
            raise InvalidRegistry(f"The registry {self.address} cannot be read: {_place_reason(error)}") from error

    def create(self, path: Path, data: bytes) -> bool:
        """Write a file there unless there is one; whether it is new. What another wrote is read instead.

        Args:
            path: Path in the folder here.
            data: Its bytes.

        Raises:
            SaveFailed: the place refuses.
        """
        name = f"{self._root}/{path.relative_to(self.folder).as_posix()}"
        try:
            with contextlib.suppress(FileExistsError, NotImplementedError):
                self._system.makedirs(name.rpartition("/")[0], exist_ok=True)
            if not self._create(name, data):
                self.fetch()
                return False
        except (OSError, RuntimeError) as error:
            raise SaveFailed(
                f"Cannot write to the registry {self.address}: {_place_reason(error)}; get permission, or try again."
            ) from error
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return True

    def _create(self, name: str, data: bytes) -> bool:
        try:
            with self._system.open(name, "xb") as remote:
                remote.write(data)
        except FileExistsError:
            return False
        except (ValueError, NotImplementedError):  # a place that cannot refuse: looking first is the best there is
            if self._system.exists(name):
                return False
            with self._system.open(name, "wb") as remote:
                remote.write(data)
        return True


def address_text(place: str | Path) -> str:
    """A place as it was written: a path has one of an address's slashes."""
    return PATH_OF_ADDRESS.sub(r"\1://", str(place))


def _place_reason(error: BaseException) -> str:
    return first_line(error) or type(error).__name__
