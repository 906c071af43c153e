"""The files of a screening, in one pass over the data: its rows sorted into clean, flagged and rejected, and scores.

Every row is in one of the three files, as it came; see ``poise.data.row_files``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from poise.data import Conversation, DataSet, RejectedRow
from poise.data.readers import read_row
from poise.data.row_files import RawRow, RowFile, common_schema, open_row_file, row_columns_of
from poise.data.row_values import RowItem
from poise.data.shapes import DataShape
from poise.data.unread_rows import iterate_items
from poise.errors import InvalidRow, MissingExtra
from poise.progress import track
from poise.screen.flagging import FlaggingThreshold, FlaggingThresholds
from poise.screen.row_editor import replace_answers
from poise.screen.scores import AnswerScores, ascending_scores, rank_scores, score_percentiles
from poise.screen.summary import PromisedRate
from poise.storage.atomic_write import saving

__all__ = ["FlaggedAnswers", "WrittenRows", "check_parquet", "iterate_flagged_rows", "write_screened_files"]

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
        promise: What the thresholds promise of false alarms; ``None`` where no rate was asked for.
    """

    traits: tuple[str, ...]
    cuts: tuple[FlaggingThreshold, ...]
    flagged: NDArray[np.bool_]
    promise: PromisedRate | None = None

    @classmethod
    def by(cls, traits: tuple[str, ...], thresholds: FlaggingThresholds, scores: AnswerScores) -> FlaggedAnswers:
        """The answers that pass the thresholds."""
        columns = zip(thresholds.cuts, scores.scores.T, strict=True)
        flagged = np.stack([cut.flags(column, scores.tokens) for cut, column in columns], axis=1)
        return cls(traits, thresholds.cuts, flagged, thresholds.promise)

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
        raise MissingExtra.of("Screening writes scores.parquet, which needs pyarrow", "data") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenRows:
    """What was written.

    Attributes:
        names: The files' names, as far as they hold rows.
        rejected: Name of the file of rows that are neither clean nor flagged.
        without_content: Rejected rows that it does not hold, since nothing of them can be read.
        unfixed: Flagged rows whose new answer their shape cannot hold; they are not in the file of fixed rows.
        wanted: Rows that were asked for, by index.
    """

    names: tuple[str, ...]
    rejected: str
    without_content: int
    unfixed: int
    wanted: dict[int, Conversation]


def iterate_flagged_rows(
    data: DataSet, scores: AnswerScores, flagged: NDArray[np.bool_]
) -> Iterator[tuple[Conversation, int, int]]:
    """Every row with a flagged answer, with the places of its first answer and of the one after its last."""
    for row, first, last in _iterate_rows(data, scores):
        if isinstance(row, _StoredRow) and flagged[first:last].any():
            yield row.decode(), first, last


@dataclass(frozen=True, slots=True)
class _StoredRow:
    """A scored row as its file has it: most are written as they came, and decoding takes longer than all else."""

    data: DataSet
    part: int
    first: int
    item: RowItem

    @property
    def index(self) -> int:
        return self.first + self.item[0]

    @property
    def raw(self) -> bytes | Mapping[str, Any]:
        return cast("bytes | Mapping[str, Any]", self.item[2])  # a row that cannot be read has no score

    def decode(self) -> Conversation:
        return cast(Conversation, self.data.decode(self.data.parts[self.part], self.item, self.first))


def _iterate_rows(data: DataSet, scores: AnswerScores) -> Iterator[tuple[_StoredRow | RejectedRow, int, int]]:
    """Every row; one of which no answer could be read is a rejected one, too."""
    at = 0
    for part, start, item in iterate_items(data):
        first, index = at, start + item[0]
        if index in scores.rejected:
            row = data.decode(data.parts[part], item, start)
            if isinstance(row, Conversation):
                row = RejectedRow(file=row.file, row=row.row, index=row.index, line=None, reason="", raw=row.raw)
            yield row, first, first
            continue
        while at < len(scores) and scores.index[at] == index:
            at += 1
        yield _StoredRow(data, part, start, item), first, at


def write_screened_files(
    data: DataSet,
    scores: AnswerScores,
    verdict: FlaggedAnswers,
    out: Path,
    *,
    replacements: ReplacementSource | None = None,
    wanted: Collection[int] = (),
) -> WrittenRows:
    """Write ``scores.parquet``, the clean, flagged and rejected rows and, with ``replacements``, the fixed ones.

    Tables are written as Parquet, everything else as JSON Lines.

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
    wanted_rows: dict[int, Conversation] = {}
    flagged, schema = verdict.any_trait, common_schema(data)
    stems = ("clean", "flagged", *(("fixed",) if replacements else ()), "rejected_rows")
    names = tuple(stem + (".jsonl" if schema is None else ".parquet") for stem in stems)
    without_content = unfixed = 0
    with contextlib.ExitStack() as files, track("Writing", total=scores.rows) as advance:
        clean, bad, *fixed, rejected = (open_row_file(files, out / name, schema) for name in names)
        table = _ScoresTable(files, out / "scores.parquet", scores, verdict)
        for row, first, last in _iterate_rows(data, scores):
            advance(1)
            if isinstance(row, RejectedRow):
                if row.raw is None:
                    without_content += 1
                else:
                    rejected.add(row.raw)
                continue
            turns = [int(scores.turn[i]) for i in range(first, last) if flagged[i]]
            (bad if turns else clean).add(row.raw)
            if replacements:
                answers = replacements(row.decode(), turns) if turns else {}
                unfixed += not _add_fixed(fixed[0], data.parts[row.part].shape, row.raw, answers)
            if row.index in wanted:
                raw = dict(row.raw) if isinstance(row.raw, Mapping) else row.raw  # without the table around it
                wanted_rows[row.index] = dataclasses.replace(row.decode(), raw=raw)
            table.add(data.parts[row.part].name, row.item[0], last)
        for file in (clean, bad, *fixed, rejected):
            file.finish()
        table.finish()
    return WrittenRows(
        names=names, rejected=names[-1], without_content=without_content, unfixed=unfixed, wanted=wanted_rows
    )


def _add_fixed(file: RowFile, shape: DataShape, raw: RawRow, answers: Mapping[int, str] | None) -> bool:
    """Add a row with other answers; not if they do not read back as what they are."""
    if answers is None:
        return True  # whoever makes the answers counts the rows without one
    if not answers:
        file.add(raw)
        return True
    try:
        columns = replace_answers(shape, row_columns_of(raw), answers)
        messages = read_row(shape, columns, "assistant").messages
        texts = [message["content"] for message in messages if message["role"] == "assistant"]
        if any(texts[turn].strip() != answer.strip() for turn, answer in answers.items()):
            return False
        file.add_edited(raw, columns)
    except (InvalidRow, IndexError):
        return False
    return True


class _ScoresTable:
    """A row for each answer, written a group at a time."""

    def __init__(self, files: contextlib.ExitStack, path: Path, scores: AnswerScores, verdict: FlaggedAnswers) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.scores, self.verdict = scores, verdict
        self.ascending = [ascending_scores(column) for column in scores.scores.T]
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

    def add(self, file: str, row: int, last: int) -> None:
        """The answers of a file's row, which end before place ``last``."""
        self.places += [(file, row)] * (last - self.begin - len(self.places))
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
            column, all_scores = scores.scores[part, k], self.ascending[k]
            unknown = ~np.isfinite(column)
            columns[f"{trait}_score"] = pa.array(column, mask=unknown)
            columns[f"{trait}_rank"] = pa.array(rank_scores(column, all_scores), mask=unknown)
            columns[f"{trait}_percentile"] = pa.array(score_percentiles(column, all_scores), mask=unknown)
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
