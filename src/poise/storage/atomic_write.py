"""Files that are replaced whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from poise.errors import SaveFailed
from poise.storage.disk_errors import remedy

__all__ = ["creating", "saving"]


@contextlib.contextmanager
def saving(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place only when the block ends without an error.

    A link stays a link: the file that it points to is replaced.

    Raises:
        SaveFailed: the disk refused, or a folder or device is in the way; an earlier file at ``path`` is untouched.
    """
    try:
        if path.exists() and not path.is_file():
            raise SaveFailed(f"Cannot save {path}: it is not a regular file; choose another path.")
        target = Path(os.path.realpath(path))
        with _temporary_beside(target) as temporary:
            yield temporary
            _settle_on_disk(temporary, 0o666)
            temporary.replace(target)
    except OSError as error:
        raise SaveFailed(
            f"Cannot save {path}: {error.strerror or error}. Nothing was changed there; {remedy(error)}, then run the "
            "same command again."
        ) from error


@contextlib.contextmanager
def creating(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that becomes it when the block ends without an error, unless it is there.

    Raises:
        FileExistsError: something is there; it is untouched.
        SaveFailed: the disk refused.
    """
    try:
        with _temporary_beside(path) as temporary:
            yield temporary
            _settle_on_disk(temporary, 0o444)
            os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError as error:
        raise SaveFailed(f"Cannot save {path}: {error.strerror or error}; {remedy(error)}, then try again.") from error


@contextlib.contextmanager
def _temporary_beside(target: Path) -> Iterator[Path]:
    """An empty file in the same folder, which is made, that is gone afterwards."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _settle_on_disk(temporary: Path, mode: int) -> None:
    """On the disk, and with the rights that its user's files have."""
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.chmod(mode & ~_umask())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
