"""What happened in an agent's run, on the disk before anything follows from it.

A run is a function of what the model, the tools and people answered. Each answer is a record that is synced before the
run goes on; a run that is resumed goes through its records first and asks nobody for what they hold. Before a tool is
called its call is announced; an announcement without a result is a call that was in flight when the run was killed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from poise.errors import InvalidRun
from poise.storage.journal import Journal

__all__ = ["RECORDS_FILE", "RunRecords", "read_records", "records_of"]

RECORDS_FILE = "steps.jsonl"
RECORD_BEGIN = b'{"key": "'  # of every line
PASSED_OVER = ("pause", "fault")
"""Kinds of records that a resumed run passes over: it goes on where it stopped, and tries again what failed."""


class RunRecords:
    """Records of a run in order; those of an earlier process are taken one by one, then new ones are added.

    Args:
        path: The JSONL file; ``None`` keeps everything in memory only.
        listen: Called with each record as it is made.
        read_only: Whether nothing is added, and the file stays as it is.

    Attributes:
        rows: All records.

    Raises:
        InvalidRun: the file is damaged, or none of a run's; it is left as it is.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        listen: Callable[[Mapping[str, Any]], None] = lambda row: None,
        read_only: bool = False,
    ) -> None:
        self._listen = listen
        if path is not None and path.exists():
            _check_records(path)
        self._journal = Journal(path, read_only=read_only)
        self.rows: list[dict[str, Any]] = []
        while (key := self._key(len(self.rows))) in self._journal:
            self.rows.append(self._journal[key])
        self._at = 0

    def _key(self, number: int) -> str:
        return f"{number + 1:06d}"

    @property
    def replaying(self) -> bool:
        """Whether there are records that have not been taken."""
        self._pass_over()
        return self._at < len(self.rows)

    def _pass_over(self) -> None:
        while self._at < len(self.rows) and self.rows[self._at]["kind"] in PASSED_OVER:
            self._at += 1

    def take(self, kind: str, **facts: Any) -> dict[str, Any] | None:
        """The next record, if it is of this kind; ``None`` where nothing more is on record, or something else.

        Args:
            kind: The kind.
            facts: What it has to say.

        Raises:
            InvalidRun: it is of this kind and says something else.
        """
        if not self.replaying or self.rows[self._at]["kind"] != kind:
            return None
        row = self.rows[self._at]
        if different := sorted(name for name, value in facts.items() if row.get(name) != value):
            raise InvalidRun(
                f"Record {self._at + 1} of the run has another {', '.join(different)} than the run would have now; "
                "its tools, or Poise, are not those that it began with. Start a new run."
            )
        self._at += 1
        return row

    def add(self, kind: str, **facts: Any) -> dict[str, Any]:
        """Put something on record; it is on the disk when this returns.

        Raises:
            InvalidRun: something else is on record there.
            SaveFailed: the disk refused.
        """
        if self.replaying:
            raise InvalidRun(
                f"Record {self._at + 1} of the run is {self.rows[self._at]['kind']!r} where {kind!r} belongs; its "
                "tools, or Poise, are not those that it began with. Start a new run."
            )
        row = {"kind": kind, "at": round(time.time(), 3), **facts}
        self._journal.append([(self._key(len(self.rows)), row)])
        self.rows.append(row)
        self._at = len(self.rows)
        self._listen(row)
        return row

    def note(self, kind: str, **facts: Any) -> dict[str, Any]:
        """Take a record of what follows from the records before it, or add it."""
        return self.take(kind, **facts) or self.add(kind, **facts)


def _check_records(path: Path) -> None:
    """Check that a file has all records of a run in order; what a kill has cut at its end may be missing.

    Raises:
        InvalidRun: it has not; going on from what can be read might do what was done already again.
    """
    try:
        lines, _, cut = path.read_bytes().rpartition(b"\n")
    except OSError as error:
        raise InvalidRun(f"{path} cannot be read: {error.strerror}; get permission to read it.") from error
    begins = RECORD_BEGIN[: len(cut)]
    if cut[: len(begins)] != begins:
        raise InvalidRun(f"{path} is no record of a run of an agent; nothing was changed. Choose another folder.")
    for number, line in enumerate(lines.split(b"\n") if lines else (), 1):
        try:
            row = json.loads(line)
            fits = row["key"] == f"{number:06d}" and isinstance(row["value"]["kind"], str)
        except (ValueError, KeyError, TypeError):
            fits = False
        if not fits:
            raise InvalidRun(
                f"Line {number} of {path} is not record {number} of a run: the file is damaged, or another program's; "
                "nothing was changed. Put a copy of it back, or begin a new run in another folder."
            )


def read_records(folder: Path) -> list[dict[str, Any]]:
    """The records of a run.

    Raises:
        InvalidRun: there are none.
    """
    path = folder / RECORDS_FILE
    if not path.is_file():
        raise InvalidRun(
            f"{folder} holds no run of an agent; name the folder that `poise agent` was given as its output."
        )
    rows = RunRecords(path, read_only=True).rows
    if not rows or rows[0].get("kind") != "begin":
        raise InvalidRun(f"The records of {folder} have no beginning; it is no run of an agent, or damaged.")
    return rows


def records_of(rows: Iterable[Mapping[str, Any]], kind: str) -> Iterator[Mapping[str, Any]]:
    """The records of one kind."""
    return (row for row in rows if row["kind"] == kind)
