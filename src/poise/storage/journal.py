"""Append-only run files: what keeps a night's work when the power goes.

A ``Journal`` is a JSONL file of finished pieces of work, each under a key made from everything that
determines it. A killed run loses at most the batch it was in; a resumed run finds the rest by key.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from poise.storage.disk_errors import save_failed

__all__ = ["Journal"]


class Journal:
    """Finished pieces of work by key, in memory and on disk.

    Args:
        path: The JSONL file; ``None`` keeps everything in memory only. A last line cut short by a kill
            is dropped on opening; the file is otherwise only ever appended to.
        read_only: Whether the file is only read, as it is, while another process may be writing it.

    Attributes:
        unreadable: Number of whole lines that hold no piece of work.
    """

    def __init__(self, path: Path | None, *, read_only: bool = False) -> None:
        self.path, self._read_only = path, read_only
        self._rows: dict[str, Any] = {}
        self.unreadable = 0
        if path is None:
            return
        if read_only:
            try:
                self._read(path)
            except OSError as error:
                raise save_failed(f"Cannot read {path}", error) from error
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            size = self._read(path) if path.exists() else 0
            if path.exists() and size < path.stat().st_size:
                with path.open("r+b") as file:
                    file.truncate(size)
        except OSError as error:
            raise save_failed(f"Cannot open the run folder {path.parent}", error) from error

    def _read(self, path: Path) -> int:
        """Load the whole lines; return the number of bytes they take."""
        size = 0
        with path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                try:
                    row = json.loads(line)
                    self._rows[row["key"]] = row["value"]
                except (ValueError, KeyError, TypeError):
                    self.unreadable += 1
                size += len(line)
        return size

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def __getitem__(self, key: str) -> Any:
        return self._rows[key]

    def __len__(self) -> int:
        return len(self._rows)

    def append(self, rows: Iterable[tuple[str, Any]]) -> None:
        """Add (key, value) pairs as one durable batch: written, flushed and synced before returning.

        Raises:
            SaveFailed: the disk refused; earlier batches are safe.
        """
        if self._read_only:
            raise RuntimeError(f"{self.path} was opened to be read alone.")
        batch = list(rows)
        if self.path is not None and batch:
            self._write(batch, self.path)
        self._rows.update(batch)

    def _write(self, batch: list[tuple[str, Any]], path: Path) -> None:
        lines = "".join(json.dumps({"key": k, "value": v}, ensure_ascii=False) + "\n" for k, v in batch)
        try:
            with path.open("ab") as file:
                file.write(lines.encode(errors="surrogatepass"))  # endpoints do send halves of characters
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise save_failed(
                f"Cannot write to {path}",
                error,
                "then run the same command again: it continues from the last finished batch",
            ) from error
