"""What was left out and why, kept in a file, and when that is too much."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from poise.data.left_out import NO_THOUGHT
from poise.data.messages import Conversation, RejectedRow
from poise.errors import InvalidData
from poise.storage.disk_errors import save_failed

__all__ = ["Rejections"]

LISTED = ("file", "row", "index", "line", "reason")


class Rejections:
    """Counts rejected rows by kind, lists them, and stops a run that loses too many.

    Args:
        path: A JSONL file with a line for each rejected row: its index, file, row, line and reason, never its text.
            ``None`` only counts.
        start: First row of a resumed run, as in ``DataSet.iterate``. What the file says of earlier rows is kept and
            counted; the rest is written again, so that the file ends as that of an unbroken run.
        share: More than this share of the rows, after at least ``least`` of them, is an error. Rows without a thought
            where thoughts are read do not count.
        least: See ``share``.

    Attributes:
        kinds: How many rows of each kind of reason.
        rows: How many rows were seen, good and bad.
        left_out: What the conversations among them leave out, by kind; of a resumed run those that it saw itself.
    """

    def __init__(self, path: Path | None = None, *, start: int = 0, share: float = 0.2, least: int = 100) -> None:
        self.path, self.share, self.least = path, share, least
        self.kinds: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self.rows = start if path else 0
        self._last: RejectedRow | None = None
        if path is not None and path.exists():
            self._resume(path, start)

    def __len__(self) -> int:
        return self.kinds.total()

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in self.kinds.most_common())
        return f"{len(self):,} of {self.rows:,} rows rejected ({kinds})" if kinds else f"all {self.rows:,} rows read"

    @property
    def indexes(self) -> frozenset[int]:
        """Places in the whole data set of the rows that the list on disk names; none where there is no list."""
        if not len(self) or self.path is None:
            return frozenset()
        with self.path.open("rb") as file:
            return frozenset(json.loads(line)["index"] for line in file)

    def sift(self, rows: Iterable[Conversation | RejectedRow]) -> Iterator[Conversation]:
        """The conversations among ``rows``; everything else is counted and listed.

        Raises:
            InvalidData: too large a share of the rows is rejected, or, at the end, all of them are.
            SaveFailed: the disk refused.
        """
        for row in rows:
            self.rows += 1
            if isinstance(row, Conversation):
                self.left_out.update(row.left_out)
                yield row
                continue
            self.kinds[row.kind] += 1
            self._last = row
            if self.path is not None:
                self._append(row, self.path)
            unusable = len(self) - self.kinds[NO_THOUGHT]
            if self.rows >= self.least and unusable > self.share * self.rows:
                raise InvalidData(
                    f"{self._summary(row)}, more than the {self.share:.0%} that is allowed; fix them or allow more."
                )
        if self._last is not None and len(self) == self.rows:
            raise InvalidData(f"{self._summary(self._last)}; nothing is left to work on; fix them or say their shape.")

    def _summary(self, last: RejectedRow) -> str:
        place = f"line {last.line}" if last.line else f"row {last.row}"
        list_note = f"; {self.path} lists them" if self.path else ""
        return f"{self}, the last in {last.file}, {place}, for {last.reason}{list_note}"

    def _resume(self, path: Path, start: int) -> None:
        """Keep the lines on rows before ``start``; a run that was killed may have written more."""
        bytes_kept = 0
        try:
            with path.open("rb+") as file:
                for line in file:
                    row: dict[str, Any] = json.loads(line) if line.endswith(b"\n") else {"index": start}
                    if row["index"] >= start:
                        break
                    bytes_kept += len(line)
                    self.kinds[row["reason"].partition(":")[0]] += 1
                file.truncate(bytes_kept)
        except OSError as error:
            raise save_failed(f"Cannot open {path}", error) from error
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidData(f"{path} is not a list of rejected rows; move it away and try again.") from error

    def _append(self, row: RejectedRow, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                file.write(json.dumps({name: getattr(row, name) for name in LISTED}).encode() + b"\n")
        except OSError as error:
            raise save_failed(f"Cannot write to {path}", error, "then run the same command again") from error
