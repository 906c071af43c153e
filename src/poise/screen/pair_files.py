"""The files of a screening of preference pairs: scores, and rows sorted into clean, flagged, rejected and fixed."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

from poise.data import RejectedRow
from poise.data.preference_data import PreferenceData
from poise.data.preference_rows import PreferencePair, PreferenceShape
from poise.data.row_files import RowFile, common_schema, open_row_file, row_columns_of
from poise.errors import InvalidRow
from poise.progress import track
from poise.screen.output import FlaggedAnswers, WrittenRows
from poise.screen.pair_scores import PairScores
from poise.screen.pair_swap import swap_answers
from poise.screen.scores import rank_scores, score_percentiles
from poise.storage.atomic_write import saving

__all__ = ["PairFix", "write_pair_files"]

PairFix = Literal["", "drop", "swap"]
"""What is done to flagged pairs in the file of fixed ones: nothing, they are dropped, or their answers swapped."""

PAIRS_PER_GROUP = 50_000  # of a row group


def write_pair_files(
    data: PreferenceData,
    pairs: PairScores,
    verdict: FlaggedAnswers,
    out: Path,
    *,
    fix: PairFix = "",
    wanted: Collection[int] = (),
) -> tuple[WrittenRows, dict[int, PreferencePair]]:
    """Write ``scores.parquet``, the clean, flagged and rejected rows and, with ``fix``, the fixed ones.

    Args:
        data: The data set that was scored.
        pairs: The scores of its pairs.
        verdict: Which of them are flagged.
        out: The folder.
        fix: What becomes of flagged pairs.
        wanted: Pairs to give back, by index.

    Returns:
        What was written, and the pairs that were asked for.

    Raises:
        SaveFailed: the disk refused; earlier files are untouched.
    """
    scores, schema, flagged = pairs.scores, common_schema(data.source), verdict.any_trait
    stems = ("clean", "flagged", *(("fixed",) if fix else ()), "rejected_rows")
    names = tuple(stem + (".jsonl" if schema is None else ".parquet") for stem in stems)
    shapes = {part.name: shape for part, shape in zip(data.source.parts, data.shapes, strict=True)}
    wanted_pairs: dict[int, PreferencePair] = {}
    without_content = unfixed = at = 0
    with contextlib.ExitStack() as files, track("Writing", total=scores.rows) as advance:
        clean, bad, *fixed, rejected = (open_row_file(files, out / name, schema) for name in names)
        table = _PairTable(files, out / "scores.parquet", pairs, verdict)
        for row in data:
            advance(1)
            if isinstance(row, RejectedRow) or row.index in scores.rejected:
                without_content += row.raw is None
                if row.raw is not None:
                    rejected.add(row.raw)
                continue
            (bad if flagged[at] else clean).add(row.raw)
            if fix and not flagged[at]:
                fixed[0].add(row.raw)
            elif fix == "swap":
                unfixed += not _add_swapped(fixed[0], shapes[row.file], row)
            if row.index in wanted:
                wanted_pairs[row.index] = row
            table.add(row)
            at += 1
        for file in (clean, bad, *fixed, rejected):
            file.finish()
        table.finish()
    written = WrittenRows(names=names, rejected=names[-1], without_content=without_content, unfixed=unfixed, wanted={})
    return written, wanted_pairs


def _add_swapped(file: RowFile, shape: PreferenceShape, row: PreferencePair) -> bool:
    """Add a row with its answers swapped; not if it does not read back as that."""
    try:
        file.add_edited(row.raw, swap_answers(shape, row_columns_of(row.raw), row.answer_part))
    except InvalidRow:
        return False
    return True


class _PairTable:
    """A row for each pair, written a group at a time."""

    def __init__(self, files: contextlib.ExitStack, path: Path, pairs: PairScores, verdict: FlaggedAnswers) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.pairs, self.verdict = pairs, verdict
        self.ranks = [rank_scores(column) for column in pairs.scores.scores.T]
        self.percentiles = [score_percentiles(column) for column in pairs.scores.scores.T]
        floats = dict.fromkeys(("score", "chosen", "rejected"), pa.float32())
        kinds = {**floats, "rank": pa.int64(), "percentile": pa.float64(), "flagged": pa.bool_()}
        self.schema = pa.schema(
            [
                ("file", pa.string()),
                *((name, pa.int64()) for name in ("row", "index", "chosen_tokens", "rejected_tokens")),
                ("cut", pa.bool_()),
                *((f"{trait}_{name}", kind) for trait in verdict.traits for name, kind in kinds.items()),
                ("why", pa.string()),
            ]
        )
        self.file = files.enter_context(pq.ParquetWriter(files.enter_context(saving(path)), self.schema))
        self.begin = 0
        self.places: list[tuple[str, int]] = []

    def add(self, row: PreferencePair) -> None:
        """The next pair."""
        self.places.append((row.file, row.row))
        if len(self.places) >= PAIRS_PER_GROUP:
            self.finish()

    def finish(self) -> None:
        """Write what waits."""
        import pyarrow as pa

        first, last = self.begin, self.begin + len(self.places)
        pairs, scores, part = self.pairs, self.pairs.scores, slice(first, last)
        columns: dict[str, Any] = {
            "file": [file for file, _ in self.places],
            "row": [row for _, row in self.places],
            "index": scores.index[part],
            "chosen_tokens": pairs.tokens[0, part],
            "rejected_tokens": pairs.tokens[1, part],
            "cut": scores.cut[part],
            "why": [self._why(at) for at in range(first, last)],
        }
        for k, trait in enumerate(self.verdict.traits):
            columns[f"{trait}_score"] = scores.scores[part, k]
            columns[f"{trait}_chosen"], columns[f"{trait}_rejected"] = pairs.readings[:, part, k]
            columns[f"{trait}_rank"] = self.ranks[k][part]
            columns[f"{trait}_percentile"] = self.percentiles[k][part]
            columns[f"{trait}_flagged"] = self.verdict.flagged[part, k]
        self.file.write_table(pa.table([pa.array(columns[f.name], f.type) for f in self.schema], schema=self.schema))
        self.begin, self.places = last, []

    def _why(self, at: int) -> str | None:
        scores = self.pairs.scores
        reasons = [
            f"{trait} {scores.scores[at, k]:.4g}: {self.verdict.cuts[k].reason(int(scores.tokens[at]))}"
            for k, trait in enumerate(self.verdict.traits)
            if self.verdict.flagged[at, k]
        ]
        return "; ".join(reasons) or None
