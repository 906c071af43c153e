"""A line of JSON for each request, without prompts, answers or keys; written beside the event loop.

The file may be moved by whoever rotates logs: the next line opens a new one. Where the disk is full, lines are given up
and counted, and answers go on.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from poise.errors import InvalidArgument

__all__ = ["STDOUT", "AccessLog", "check_access_log"]

log = logging.getLogger("poise.serve")

STDOUT = Path("-")
MOST_LINES = 10_000  # lines that wait for the disk at most
RETRY_SECONDS = 1.0  # between tries to open a file that cannot be


def check_access_log(path: Path) -> None:
    """Check that lines can be added to a file: a new one, or a log of this kind.

    Raises:
        InvalidArgument: it cannot be written, or is something else.
    """
    if path == STDOUT:
        return
    try:
        descriptor = _open(path)
        try:
            first = os.pread(descriptor, 1, 0) if path.is_file() else b""
        finally:
            os.close(descriptor)
    except OSError as error:
        raise InvalidArgument(
            f"Cannot write `access_log` {path} ({error.strerror}); name another file, or - for stdout."
        ) from error
    if first not in (b"", b"{"):
        raise InvalidArgument(f"`access_log` {path} is not a log of requests; name another file.")


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


class AccessLog:
    """Takes lines from any thread at once, and writes them as soon as it can.

    Args:
        path: File that lines are added to; ``STDOUT`` for the process's own output.

    Attributes:
        written: Lines that are in the file.
        lost: Lines that were given up.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.written, self.lost = path, 0, 0
        self._lines: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._closing = self._torn = False
        self._descriptor: int | None = os.dup(1) if path == STDOUT else None
        self._thread = threading.Thread(target=self._run, name="poise-access-log", daemon=True)
        self._thread.start()

    def put(self, facts: Mapping[str, Any]) -> None:
        """Take a line; it is given up where too many wait."""
        line = json.dumps(facts, ensure_ascii=True).encode() + b"\n"
        with self._changed:
            if len(self._lines) >= MOST_LINES:
                self._lose(1, "too many wait")
            else:
                self._lines.append(line)
                self._changed.notify()

    def close(self, wait: float = 2.0) -> None:
        """Write what waits, and end."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(wait)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._lines or self._closing):
                    self._changed.wait()
                lines = list(self._lines)
                self._lines.clear()
                closing = self._closing
            if lines:
                self._write(lines)
            if closing and not self._lines:
                if self._descriptor is not None:
                    os.close(self._descriptor)
                return

    def _write(self, lines: Sequence[bytes]) -> None:
        done = 0
        try:
            descriptor = self._current()
            for line in lines:
                self._write_line(descriptor, line)
                done += 1
        except OSError as error:
            self._lose(len(lines) - done, error.strerror or type(error).__name__)
        self.written += done

    def _write_line(self, descriptor: int, line: bytes) -> None:
        """One line, after the end of one that the disk took a part of."""
        line = b"\n" + line if self._torn else line
        while line:
            length = os.write(descriptor, line)
            line = line[length:]
            self._torn = bool(line)

    def _current(self) -> int:
        """The file, opened again where it has been moved or deleted."""
        if self.path == STDOUT:
            return self._descriptor if self._descriptor is not None else 1
        if self._descriptor is not None:
            facts = os.fstat(self._descriptor)
            try:
                there = self.path.stat()
            except FileNotFoundError:
                there = None
            if there and (there.st_ino, there.st_dev) == (facts.st_ino, facts.st_dev):
                return self._descriptor
            os.close(self._descriptor)
            self._descriptor, self._torn = None, False
        self._descriptor = _open(self.path)
        return self._descriptor

    def _lose(self, lines: int, why: str) -> None:
        before, self.lost = self.lost, self.lost + lines
        if before == 0 or len(str(before)) < len(str(self.lost)):
            log.warning("Requests cannot be written to the access log (%s): %d lines given up so far.", why, self.lost)
