"""Whether data files are still those that a screening began with: rows are read more than once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from poise.errors import InvalidData, PoiseError

__all__ = ["DataWatch"]


class DataWatch:
    """Sizes, times and numbers of files on their disk, as they were when their reading began.

    A context that says so where work on them fails for a reason that nobody would understand.

    Args:
        files: Files that are about to be read.
        digest: Reads the data through and gives their SHA-256.
    """

    def __init__(self, files: Sequence[Path], digest: Callable[[], str]) -> None:
        self._stamps = {path: _stamp(path) for path in files}
        self._digest = digest

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the data, when it was first asked for."""
        return self._digest()

    def check(self) -> None:
        """Raise where a file has been written to since, before anybody takes the results for those of its rows.

        Raises:
            InvalidData: the data are others now; names a file.
        """
        changed = [path for path, stamp in self._stamps.items() if _stamp(path) != stamp]
        if changed and not (all(path.exists() for path in changed) and self._digest() == self.digest):
            raise InvalidData(
                f"{changed[0].name} changed while it was screened, so that rows may have the scores of others; leave "
                "it alone and run the same command again."
            )

    def __enter__(self) -> DataWatch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if isinstance(error, Exception) and not isinstance(error, PoiseError):
            self.check()


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ino
