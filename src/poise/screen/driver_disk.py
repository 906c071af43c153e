"""What the workers of a cluster reach of the driver's disk, which they do not see.

One actor on the driver's machine reads the rows of windows, looks up and keeps what was read and answered before, and
writes the part files; the driver's folders are touched by nobody else. Of the rows it holds those of windows at work.
"""

from __future__ import annotations

import importlib
import os
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poise.data import DataSet
from poise.data.unread_rows import UnreadRows, iterate_unread
from poise.errors import InvalidArgument, PoiseError
from poise.screen.base_answers import AnswerStore
from poise.screen.reading_cache import ReadingNumbers, ReadingStore
from poise.screen.shards import ShardStore

__all__ = ["DriverDisk", "DriverFiles", "RemoteAnswers", "RemoteReadings", "call_driver"]

MOST_WORKER_DEATHS = 3  # workers that may die over one window on machines that stay up


@dataclass(frozen=True, kw_only=True)
class DriverFiles:
    """Folders, stores and data on the driver's machine.

    Attributes:
        data: The data set, whose files are read.
        parts: Folder of the part files.
        job: Key of the job whose parts are written; see ``ShardStore``.
        window: Rows a window.
        missing: Windows that are to be scored.
        readings: What was read before; ``None`` to read all texts.
        answers: The model's own answers; ``None`` where none are needed.
        folder: Working folder; relative paths start there.
    """

    data: DataSet
    parts: Path
    job: str
    window: int
    missing: frozenset[int]
    readings: ReadingStore | None
    answers: AnswerStore | None
    folder: Path


class DriverDisk:
    """The actor; it holds no more than can be read again, and may be started anew at any time."""

    def __init__(self, files: DriverFiles) -> None:
        os.chdir(files.folder)
        self.files = files
        self.store = ShardStore(files.parts, files.job)
        self.at_work: dict[int, list[UnreadRows]] = {}
        self.windows: Iterator[list[UnreadRows]] = iter(())
        self.next: int | None = None  # the window that ``windows`` stands before
        self.nodes: defaultdict[int, list[str]] = defaultdict(list)  # machines on which a window was begun

    def begin(self, window: int, node: str) -> list[UnreadRows] | None:
        """The rows of a window that is begun on a machine; ``None`` where it is finished.

        Raises:
            InvalidArgument: workers die over it time and again.
        """
        if window in self.store:
            return None
        begun = [one for one in self.nodes[window] if one in _living_nodes()]  # the window did not kill a machine
        if len(begun) >= MOST_WORKER_DEATHS:
            first = window * self.files.window
            raise InvalidArgument(
                f"{MOST_WORKER_DEATHS} workers died over rows {first} to {first + self.files.window - 1}, most likely "
                "out of memory; use fewer workers to a machine, a smaller `batch`, or `engine` local to see more."
            )
        self.nodes[window].append(node)
        if window not in self.at_work:
            self._read_until(window)
        return self.at_work[window]

    def finish(self, window: int, content: bytes) -> None:
        """Keep the result of a window, as ``shard_bytes`` gives it.

        Raises:
            SaveFailed: the disk refused.
        """
        self.store.save_bytes(window, content)
        self.at_work.pop(window, None)
        self.nodes.pop(window, None)

    def load_readings(self, keys: Sequence[bytes]) -> dict[bytes, ReadingNumbers]:
        """See ``ReadingStore.load``."""
        return self.files.readings.load(keys) if self.files.readings else {}

    def save_readings(self, part: int, readings: Mapping[bytes, ReadingNumbers]) -> None:
        """See ``ReadingStore.save``."""
        if self.files.readings:
            self.files.readings.save(part, readings)

    def load_answers(self, keys: Collection[bytes]) -> dict[bytes, tuple[int, ...]]:
        """See ``AnswerStore.load``."""
        return self.files.answers.load(keys) if self.files.answers else {}

    def save_answers(self, answers: Mapping[bytes, tuple[int, ...]]) -> None:
        """See ``AnswerStore.save``."""
        if self.files.answers:
            self.files.answers.save(answers)

    def _read_until(self, window: int) -> None:
        """Read forward to a window; those on the way that are still to be scored are held, as they come next."""
        if self.next is None or window < self.next:
            self.windows, self.next = (
                iterate_unread(self.files.data, window * self.files.window, self.files.window),
                window,
            )
        while self.next <= window:
            rows = next(self.windows, [])
            if self.next == window or (self.next in self.files.missing and self.next not in self.store):
                self.at_work[self.next] = rows
            self.next += 1


@dataclass(frozen=True, slots=True)
class RemoteReadings:
    """A store of readings on the driver's machine."""

    disk: Any

    def load(self, keys: Sequence[bytes]) -> dict[bytes, ReadingNumbers]:
        """See ``ReadingStore.load``."""
        known: dict[bytes, ReadingNumbers] = call_driver(self.disk.load_readings, keys)
        return {key: numbers.copy() for key, numbers in known.items()}  # what comes through Ray may not be written to

    def save(self, part: int, readings: Mapping[bytes, ReadingNumbers]) -> None:
        """See ``ReadingStore.save``."""
        call_driver(self.disk.save_readings, part, readings)


@dataclass(frozen=True, slots=True)
class RemoteAnswers:
    """A store of answers on the driver's machine."""

    disk: Any

    def load(self, keys: Collection[bytes]) -> dict[bytes, tuple[int, ...]]:
        """See ``AnswerStore.load``."""
        known: dict[bytes, tuple[int, ...]] = call_driver(self.disk.load_answers, keys)
        return known

    def save(self, answers: Mapping[bytes, tuple[int, ...]]) -> None:
        """See ``AnswerStore.save``."""
        call_driver(self.disk.save_answers, answers)


def call_driver(method: Any, *arguments: Any) -> Any:
    """What a method of the actor gives; what Poise complains of is raised as it is, and not as Ray's own error."""
    ray: Any = importlib.import_module("ray")
    try:
        return ray.get(method.remote(*arguments))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, PoiseError):
            raise error.cause from None
        raise


def _living_nodes() -> set[str]:
    ray: Any = importlib.import_module("ray")
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}
