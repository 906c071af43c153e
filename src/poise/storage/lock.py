"""One run at a time in a folder."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from poise.errors import InvalidArgument, SaveFailed

if sys.platform != "win32":
    import fcntl

__all__ = ["alone"]


@contextlib.contextmanager
def alone(out: Path) -> Iterator[None]:
    """Make the folder, keep other runs out of it, and take away what killed ones left half written.

    The lock goes with the process, however that ends. Where the system or the disk knows no locks, nothing is kept out.

    Raises:
        InvalidArgument: another run is at work in the folder.
        SaveFailed: the disk refused.
    """
    with contextlib.ExitStack() as held:
        try:
            (out / ".run").mkdir(parents=True, exist_ok=True)
            lock = held.enter_context((out / ".run" / "lock").open("ab"))
            _take(lock)
            for left in (*out.glob(".*.part"), *out.glob(".run/**/.*.part")):
                left.unlink(missing_ok=True)
        except BlockingIOError as error:
            raise InvalidArgument(
                f"Another run is at work in {out}; wait until it ends, or choose another --out."
            ) from error
        except OSError as error:
            raise SaveFailed(
                f"Cannot use the folder {out}: {error.strerror or error}; choose another --out."
            ) from error
        yield


def _take(lock: IO[bytes]) -> None:
    if sys.platform == "win32":
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return  # some network disks
