"""The files of a screening, in one pass over the data: its rows sorted into clean and flagged, and the scores' table.

Rows are written as they were: of JSON Lines the same bytes, of other formats their columns as JSON.
"""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from poise.data import Conversation, DataSet
from poise.errors import MissingExtra
from poise.progress import track
from poise.screen.flagging import FlaggingThreshold
from poise.screen.row_editor import replace_answers
from poise.screen.scores import AnswerScores, rank_scores, score_percentiles
from poise.storage.atomic_write import saving

__all__ = ["FlaggedAnswers", "check_parquet", "iterate_scored_rows", "write_screened_files"]

ANSWERS_PER_GROUP = 50_000  # of a row group

ReplacementSource = Callable[[Conversation, Sequence[int]], Mapping[int, str] | None]
"""Other answers for a row's turns; ``None`` where there is none for one of them."""


@dataclass(frozen=True, slots=True)
class FlaggedAnswers:
    """What was flagged. m answers, k traits.

    Attributes:
        traits: Names.
        cuts: A threshold a trait.
        flagged: Bool [m, k].
    """

    traits: tuple[str, ...]
    cuts: tuple[FlaggingThreshold, ...]
    flagged: NDArray[np.bool_]

    @property
    def any_trait(self) -> NDArray[np.bool_]:
        """Bool [m]: flagged for any trait."""
        some: NDArray[np.bool_] = np.any(self.flagged, axis=1)
        return some


def check_parquet() -> None:
    """Refuse to begin where the scores' table could not be written.

    Raises:
        MissingExtra: pyarrow is not installed.
    """
    try:
        importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise MissingExtra(
            'Screening writes scores.parquet, which needs pyarrow; install it with pip install "poise[data]".'
        ) from error


def iterate_scored_rows(data: DataSet, scores: AnswerScores) -> Iterator[tuple[Conversation, int, int]]:
    """Every row that was scored, with the places of its first answer and of the one after its last."""
    at = 0
    for row in data:
        if isinstance(row, Conversation) and row.index not in scores.rejected:
            first = at
            while at < len(scores) and scores.index[at] == row.index:
                at += 1
            yield row, first, at


def write_screened_files(
    data: DataSet,
    scores: AnswerScores,
    verdict: FlaggedAnswers,
    out: Path,
    *,
    replacements: ReplacementSource | None = None,
    wanted: Collection[int] = (),
) -> dict[int, Conversation]:
    """Write ``scores.parquet``, ``clean.jsonl``, ``flagged.jsonl`` and, with ``replacements``, ``fixed.jsonl``.

    Args:
        data: The data set that was scored.
        scores: The scores of its answers.
        verdict: Which of them are flagged.
        out: The folder.
        replacements: Source of what flagged answers are replaced by.
        wanted: Rows to give back, by index.

    Raises:
        SaveFailed: the disk refused; earlier files are untouched.
    """
    returned_rows: dict[int, Conversation] = {}
    shapes = {part.name: part.shape for part in data.parts}
    flagged = verdict.any_trait
    with contextlib.ExitStack() as files, track("Writing", total=scores.rows) as advance:
        clean, bad = (_open_lines(files, out / name) for name in ("clean.jsonl", "flagged.jsonl"))
        fixed = _open_lines(files, out / "fixed.jsonl") if replacements else None
        table = _ScoresTable(files, out / "scores.parquet", scores, verdict)
        for row, first, last in iterate_scored_rows(data, scores):
            raw = _raw_line(row)
            turns = [int(scores.turn[i]) for i in range(first, last) if flagged[i]]
            (bad if turns else clean).write(raw)
            if fixed and replacements:
                new_answers = replacements(row, turns) if turns else {}
                if new_answers is not None:
                    fixed.write(
                        _json_line(replace_answers(shapes[row.file], _row_columns(row), new_answers))
                        if new_answers
                        else raw
                    )
            if row.index in wanted:
                returned_rows[row.index] = row
            table.add(row, last)
            advance(1)
        table.finish()
    if not replacements:
        (out / "fixed.jsonl").unlink(missing_ok=True)  # of an earlier run
    return returned_rows


def _open_lines(files: contextlib.ExitStack, path: Path) -> BinaryIO:
    return files.enter_context(files.enter_context(saving(path)).open("wb"))


def _raw_line(row: Conversation) -> bytes:
    return row.raw + b"\n" if isinstance(row.raw, bytes) else _json_line(row.raw)


def _row_columns(row: Conversation) -> Mapping[str, Any]:
    if isinstance(row.raw, bytes):
        columns: dict[str, Any] = json.loads(row.raw)
        return columns
    return row.raw


def _json_line(columns: Mapping[str, Any]) -> bytes:
    return json.dumps(columns, ensure_ascii=False, default=str).encode() + b"\n"


class _ScoresTable:
    """A row for each answer, written a group at a time."""

    def __init__(self, files: contextlib.ExitStack, path: Path, scores: AnswerScores, verdict: FlaggedAnswers) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.scores, self.verdict = scores, verdict
        self.ranks = [rank_scores(column) for column in scores.scores.T]
        self.percentiles = [score_percentiles(column) for column in scores.scores.T]
        integer_columns = {name: pa.int64() for name in ("row", "index", "turn", "tokens")}
        trait_columns = [
            (f"{trait}_{name}", kind)
            for trait in verdict.traits
            for name, kind in (
                ("score", pa.float32()),
                ("rank", pa.int64()),
                ("percentile", pa.float64()),
                ("flagged", pa.bool_()),
            )
        ]
        texts = [("why", pa.string()), ("unread", pa.string())]
        self.schema = pa.schema(
            [("file", pa.string()), *integer_columns.items(), ("cut", pa.bool_()), *trait_columns, *texts]
        )
        self.file = files.enter_context(pq.ParquetWriter(files.enter_context(saving(path)), self.schema))
        self.begin, self.places = 0, [("", 0)] * 0

    def add(self, row: Conversation, last: int) -> None:
        """The row's answers, which end before place ``last``."""
        self.places += [(row.file, row.row)] * (last - self.begin - len(self.places))
        if len(self.places) >= ANSWERS_PER_GROUP:
            self._flush()

    def finish(self) -> None:
        """The last group."""
        self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        first, last = self.begin, self.begin + len(self.places)
        scores, part = self.scores, slice(first, last)
        columns: dict[str, Any] = {
            "file": [file for file, _ in self.places],
            "row": [row for _, row in self.places],
            "index": scores.index[part],
            "turn": scores.turn[part],
            "tokens": scores.tokens[part],
            "cut": scores.cut[part],
            "why": [self._why(i) for i in range(first, last)],
            "unread": [scores.unread.get(i) for i in range(first, last)],
        }
        for k, trait in enumerate(self.verdict.traits):
            unknown = ~np.isfinite(scores.scores[part, k])
            columns[f"{trait}_score"] = pa.array(scores.scores[part, k], mask=unknown)
            columns[f"{trait}_rank"] = pa.array(self.ranks[k][part], mask=unknown)
            columns[f"{trait}_percentile"] = pa.array(self.percentiles[k][part], mask=unknown)
            columns[f"{trait}_flagged"] = self.verdict.flagged[part, k]
        self.file.write_table(pa.table([pa.array(columns[f.name], f.type) for f in self.schema], schema=self.schema))
        self.begin, self.places = last, []

    def _why(self, at: int) -> str | None:
        reasons = [
            f"{trait} {self.scores.scores[at, k]:.4g}: {self.verdict.cuts[k].reason(int(self.scores.tokens[at]))}"
            for k, trait in enumerate(self.verdict.traits)
            if self.verdict.flagged[at, k]
        ]
        return "; ".join(reasons) or None
