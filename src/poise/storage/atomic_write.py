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
    temporary: Path | None = None
    try:
        if path.exists() and not path.is_file():
            raise SaveFailed(f"Cannot save {path}: it is not a regular file; choose another path.")
        target = Path(os.path.realpath(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(target)
    except OSError as error:
        raise SaveFailed(
            f"Cannot save {path}: {error.strerror or error}. Nothing was changed there; {remedy(error)}, then run the "
            "same command again."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def creating(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that becomes it when the block ends without an error, unless it is there.

    Raises:
        FileExistsError: something is there; it is untouched.
        SaveFailed: the disk refused.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o444 & ~_umask())
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError as error:
        raise SaveFailed(f"Cannot save {path}: {error.strerror or error}; {remedy(error)}, then try again.") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
