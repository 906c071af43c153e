"""Windows of the data, scored one by one and kept as part files: what a killed run goes on from.

A part is written whole or not at all, holds what its window alone determines, and can be made by any process. What is
made of the parts is therefore the same after any number of kills, on any number of workers.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poise.activations import Probe
from poise.data import Conversation, DataSet, RejectedRow, count_left_out
from poise.errors import SaveFailed
from poise.model import Model
from poise.model.spans_ahead import SpansByRow, spans_ahead, window_spans
from poise.screen.base_answers import BaseAnswers
from poise.screen.projection import ScoredAnswer, ScoringMethod, score_answers
from poise.screen.reading_cache import ReadingCache, WindowCache
from poise.storage.atomic_write import saving

__all__ = ["ROWS_PER_SHARD", "Shard", "ShardStore", "score_shard", "score_shards", "shard_bytes"]

ROWS_PER_SHARD = 1024  # rows scored together: enough to batch answers of like length, few enough to hold


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One window's result. m: units, k: traits. Rows of the arrays are units in the data's order.

    Attributes:
        index: int64 [m], each unit's conversation; ``turn`` int32 [m]; ``tokens`` int32 [m]; ``cut`` bool [m].
        mean: float32 [m, k]; ``last`` and ``base_mean`` likewise, ``base_mean`` all NaN unless y′ was asked for.
        unread: Reasons by position, of units without a score.
        rejected: Rows that are no conversation, and those of which no answer can be read.
        rows: Rows of the data in the window, good and bad.
        left_out: What the rows with scores leave out, by kind; nothing in files of version 0.1.0, which did not count.
    """

    index: NDArray[np.int64]
    turn: NDArray[np.int32]
    tokens: NDArray[np.int32]
    cut: NDArray[np.bool_]
    mean: NDArray[np.float32]
    last: NDArray[np.float32]
    base_mean: NDArray[np.float32]
    unread: dict[int, str]
    rejected: tuple[RejectedRow, ...]
    rows: int
    left_out: dict[str, int] = field(default_factory=dict)

    def score(self, method: ScoringMethod) -> NDArray[np.float32]:
        """float32 [m, k] by that method."""
        if method == "raw":
            return self.mean
        out: NDArray[np.float32] = self.mean - (self.last if method == "prompt" else self.base_mean)
        return out


class ShardStore:
    """The part files of one job in a folder, in the windows' order.

    Args:
        folder: Theirs alone.
        job: Identifies the work; parts of another job are thrown away.
        beside: Parts of the same windows that hold at least as much, and serve as well where they are.
    """

    def __init__(self, folder: Path, job: str, beside: ShardStore | None = None) -> None:
        self.folder, self.beside = folder, beside
        stamp = folder / "job"
        if not stamp.exists() or stamp.read_bytes() != job.encode():
            for old in folder.glob("part-*.npz"):
                old.unlink()
            with saving(stamp) as temporary:
                temporary.write_text(job)

    def __contains__(self, window: int) -> bool:
        """Whether a window is kept; one that was cut off or overwritten is not, and is scored again."""
        return zipfile.is_zipfile(self._path(window)) or (self.beside is not None and window in self.beside)

    def save(self, window: int, part: Shard) -> None:
        """Keep a window's result.

        Raises:
            SaveFailed: the disk refused; earlier parts are safe.
        """
        self.save_bytes(window, shard_bytes(part))

    def save_bytes(self, window: int, content: bytes) -> None:
        """The same, as ``shard_bytes`` gives it."""
        with saving(self._path(window)) as temporary:
            temporary.write_bytes(content)

    def load(self, window: int) -> Shard:
        """A kept window.

        Raises:
            SaveFailed: the file is damaged.
        """
        if self.beside is not None and window in self.beside:
            return self.beside.load(window)
        path = self._path(window)
        try:
            return _read_shard(path)
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
            raise SaveFailed(
                f"Cannot use the kept scores {path}: {error}; the file is damaged; move it away, then run the same "
                "command again."
            ) from error

    def __iter__(self) -> Iterator[Shard]:
        window = 0
        while window in self:
            yield self.load(window)
            window += 1

    def _path(self, window: int) -> Path:
        return self.folder / f"part-{window:08d}.npz"


def shard_bytes(part: Shard) -> bytes:
    """A window's result as its file holds it."""
    words = {
        "unread": part.unread,
        "rejected": [[r.file, r.row, r.index, r.line, r.reason] for r in part.rejected],
        "rows": part.rows,
        "left_out": part.left_out,
    }
    arrays: dict[str, Any] = {key: getattr(part, name) for name, key in SHARD_ARRAYS.items()}
    file = io.BytesIO()
    np.savez(file, words=np.array(json.dumps(words)), **arrays)
    return file.getvalue()


def _read_shard(path: Path) -> Shard:
    with np.load(path, allow_pickle=False) as arrays:
        words = json.loads(str(arrays["words"]))
        return Shard(
            **{name: arrays[key] for name, key in SHARD_ARRAYS.items()},
            unread={int(at): reason for at, reason in words["unread"].items()},
            rejected=tuple(
                RejectedRow(file=file, row=row, index=index, line=line, reason=reason)
                for file, row, index, line, reason in words["rejected"]
            ),
            rows=words["rows"],
            left_out=words.get("left_out", {}),
        )


SHARD_ARRAYS = {name: name for name in ("index", "turn", "tokens", "cut", "mean", "last")} | {"base_mean": "own"}
"""Field of ``Shard`` → its key in a file of the run folder."""


def score_shards(
    parts: ShardStore,
    data: DataSet,
    model: Model,
    probes: Sequence[Probe],
    answers: BaseAnswers | None = None,
    cache: ReadingCache | None = None,
) -> Iterator[Shard]:
    """Every window in order: those that are missing are scored and kept as they are asked for."""
    window = 0
    while window in parts:
        yield parts.load(window)
        window += 1
    rows = data.iterate(window * ROWS_PER_SHARD)
    with closing(spans_ahead(model, iter(lambda: list(islice(rows, ROWS_PER_SHARD)), []))) as windows:
        for number, (members, spans) in enumerate(windows, start=window):
            if number not in parts:
                known = WindowCache(cache, number) if cache else None
                parts.save(number, score_shard(members, model, probes, answers, known, spans))
            yield parts.load(number)


def score_shard(
    rows: Sequence[Conversation | RejectedRow],
    model: Model,
    probes: Sequence[Probe],
    answers: BaseAnswers | None = None,
    cache: WindowCache | None = None,
    spans: SpansByRow | None = None,
) -> Shard:
    """Score the rows of one window, whose spans are found here unless they are given."""
    good = [row for row in rows if isinstance(row, Conversation)]
    bad = [row for row in rows if isinstance(row, RejectedRow)]
    units: list[ScoredAnswer] = []
    scored_rows: list[Conversation] = []
    by_row = [*(window_spans(model, rows) if spans is None else spans).values()]
    scores = score_answers(model, good, probes, answers, cache=cache, spans=by_row)
    scored = groupby(scores, key=lambda unit: unit.index)
    for row, (_, group) in zip(good, scored, strict=True):
        row_answers = list(group)
        if all(unit.unread for unit in row_answers):
            bad.append(
                RejectedRow(file=row.file, row=row.row, index=row.index, line=None, reason=row_answers[0].unread)
            )
        else:
            units += row_answers
            scored_rows.append(row)
    bad.sort(key=lambda row: row.index)
    return replace(_to_shard(units, tuple(bad), len(rows), len(probes)), left_out=dict(count_left_out(scored_rows)))


def _to_shard(units: Sequence[ScoredAnswer], bad: tuple[RejectedRow, ...], rows: int, k: int) -> Shard:
    def table(values: list[tuple[float, ...]]) -> NDArray[np.float32]:
        return np.array(values, dtype=np.float32).reshape(len(units), k)

    nothing = (float("nan"),) * k
    return Shard(
        index=np.array([u.index for u in units], dtype=np.int64),
        turn=np.array([u.turn for u in units], dtype=np.int32),
        tokens=np.array([u.tokens for u in units], dtype=np.int32),
        cut=np.array([u.cut for u in units], dtype=np.bool_),
        mean=table([u.mean for u in units]),
        last=table([u.last for u in units]),
        base_mean=table([u.base_mean or nothing for u in units]),
        unread={i: u.unread for i, u in enumerate(units) if u.unread},
        rejected=bad,
        rows=rows,
    )
