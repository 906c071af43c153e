"""Readings as a table: a row for each answer and trait, in JSON Lines or Parquet, resumed where it was cut off.

Whole windows are appended to ``FILE.run/rows.jsonl`` and synced before ``state.json`` says that they are done; what a
kill left behind them is cut off again. FILE appears when all is done.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from poise.data import AnswerPart, DataSet, Rejections
from poise.data.row_files import KeptRows, row_file_names, write_rejected_rows
from poise.detector.reach import DetectorReach, measure_reach
from poise.errors import InvalidArgument, MissingExtra, OutputExists
from poise.model import Model
from poise.monitor.scoring import score_turns
from poise.monitor.table_rows import EXTRA_COLUMNS, TABLE_COLUMNS, TableCounts, TableRowBuilder
from poise.progress import track
from poise.storage.atomic_write import saving
from poise.storage.content_hash import content_key
from poise.storage.disk_errors import save_failed
from poise.storage.lock import locked
from poise.storage.output import check_output
from poise.vector import LayerDirection, PersonaVector

__all__ = ["FinishedTable", "TableWriter", "check_table_format", "check_table_output", "write_readings_table"]

RUN_FILES = ("rows.jsonl", "state.json", "job", "lock")
ROWS_PER_GROUP = 50_000  # of a Parquet row group


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedTable:
    """A finished table.

    Attributes:
        out: Path of the table.
        counts: What it holds.
        rejections: What was left out of it, and where that is listed.
        began_at: The index of the data at which this run went on; 0 where it did it all.
        how: What was read from which columns of the data.
        part: Which part of the answers was read.
        notes: Why alarms that a vector has are not in force.
        rejected_rows: Where the rows are kept that were left out; ``None`` where none were.
        reach: How far the data lie from what the detectors were fitted on.
    """

    out: Path
    counts: TableCounts
    rejections: Rejections
    began_at: int
    how: str
    part: AnswerPart = "reply"
    notes: tuple[str, ...] = ()
    rejected_rows: KeptRows | None = None
    reach: tuple[DetectorReach, ...] = ()


def write_readings_table(
    data: DataSet,
    model: Model,
    vectors: Sequence[PersonaVector],
    out: Path,
    *,
    layer: int | None = None,
    by: str | None = None,
    force: bool = False,
) -> FinishedTable:
    """Read every answer of a data set and write a row for each answer and trait.

    Killed and started again, it goes on after the last whole window and ends with the same bytes.

    Args:
        data: Conversations with answers.
        model: Model whose activations are read.
        vectors: k of them, of this model; their alarms and drift charts, if they have any, are applied.
        out: A ``.jsonl`` or ``.parquet`` file. Rows that cannot be used are listed beside it, in ``.rejected.jsonl``,
            and kept as they came, in ``.rejected_rows.jsonl`` or ``.parquet``.
        layer: For all vectors; default, the layer at which each is read.
        by: Field of the rows that tells topics apart, for alarms that were set by topic.
        force: Write over existing files whatever they hold.

    Raises:
        InvalidArgument: the output's name ends in neither format.
        OutputExists: the output is a file of the data, or a file that is no table of readings.
        FolderInUse: another run is writing this table.
        InvalidData: too many rows are rejected.
        SaveFailed: the disk refused.
    """
    check_table_format(out)
    check_table_output(out, data, force=force)
    probes = [vector.at("read", layer).probe for vector in vectors]
    layers = [p.layer for p in probes]
    job, run_folder = _table_key(data, model, vectors, layers, by), out.with_name(out.name + ".run")
    with locked(run_folder, "read"), contextlib.closing(TableWriter(out, job)) as table:
        began = table.start
        rejections = Rejections(rejected_list(out), start=began)
        scribe = TableRowBuilder(vectors, layers, by, table.counts, part=data.answer_part)
        with track("Reading conversations", total=data.count() if data.files else None) as advance:
            advance(began)
            for following, scored in score_turns(data.iterate(began), model, probes, rejections):
                done = table.start
                table.counts.add_left_out(scored)
                table.append([row for one in scored for row in scribe.rows(one)], following)
                advance(following - done)
        rejected_rows = write_rejected_rows(data, rejections, _rejected_rows(out))
        reach = measure_reach(data, vectors, model, layer=layer)
        table.finish(scribe.extra_columns)
    return FinishedTable(
        out=out,
        counts=table.counts,
        rejections=rejections,
        began_at=began,
        how=data.how,
        part=data.answer_part,
        notes=(*scribe.notes, *map(str, reach)),
        rejected_rows=rejected_rows,
        reach=tuple(reach),
    )


def _table_key(
    data: DataSet, model: Model, vectors: Sequence[PersonaVector], layers: Sequence[int], by: str | None
) -> str:
    return content_key(
        data=data.digest(),
        shapes=[[part.name, str(part.shape)] for part in data.parts],
        model=asdict(model.fingerprint),
        dtype=str(model.lm.dtype),
        vectors=[[v.name, *_reading_key(v.at("read", layer)), layer] for v, layer in zip(vectors, layers, strict=True)],
        alarms=[v.header.model_dump(mode="json", include={"alarms", "drift"}) for v in vectors],
        by=by,
        **data.part_key,
    )


def _reading_key(place: LayerDirection) -> list[Any]:
    """What decides a row: the direction, or the detector's with the curve of its probability."""
    if (detector := place.detector) is None:
        return [hashlib.sha256(place.direction.numpy().tobytes()).hexdigest()]
    return [place.read_with, detector.facts.slope, detector.facts.intercept]


class TableWriter:
    """Rows on their way to ``out``.

    Args:
        out: A ``.jsonl`` or ``.parquet`` file.
        job: Identifies the work; what another job left in the run folder is thrown away.

    Attributes:
        start: The index of the data at which to go on.
        counts: What the rows so far hold.
    """

    def __init__(self, out: Path, job: str) -> None:
        check_table_format(out)
        self.out, self.job = out, job
        self.folder = out.with_name(out.name + ".run")
        self.start, self.size, self.counts = 0, 0, TableCounts()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._resume()
            self._file = (self.folder / "rows.jsonl").open("ab")
            self._file.truncate(self.size)
        except OSError as error:
            raise save_failed(f"Cannot open the run folder {self.folder}", error) from error

    def _resume(self) -> None:
        try:
            state = json.loads((self.folder / "state.json").read_bytes())
            if state["job"] == self.job and (self.folder / "rows.jsonl").stat().st_size >= state["bytes"]:
                self.start, self.size, self.counts = state["next"], state["bytes"], TableCounts(**state["counts"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            pass  # nothing to go on from

    def append(self, rows: Sequence[dict[str, Any]], following: int) -> None:
        """Add a window's rows for good; ``following`` is the index of the data after it.

        Raises:
            SaveFailed: the disk refused; earlier windows are safe.
        """
        try:
            for row in rows:
                self._file.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
            self.size = self._file.tell()
        except OSError as error:
            raise save_failed(
                f"Cannot write to {self.folder}",
                error,
                "then run the same command again: it continues after the last whole window",
            ) from error
        self.start = following
        state = {"job": self.job, "next": following, "bytes": self.size, "counts": vars(self.counts)}
        with saving(self.folder / "state.json") as temporary:
            temporary.write_text(json.dumps(state), encoding="utf-8")

    def close(self) -> None:
        """Let go of the file; what was appended stays."""
        self._file.close()

    def finish(self, extra_columns: Sequence[str] = ()) -> None:
        """Put the table, with these columns besides those of every table, in its place and the run folder away."""
        self.close()
        rows = self.folder / "rows.jsonl"
        with saving(self.out) as temporary:
            if self.out.suffix == ".parquet":
                _to_parquet(rows, temporary, extra_columns)
            else:
                shutil.copyfile(rows, temporary)
        for path in self.folder.iterdir():
            if path.name in RUN_FILES:
                path.unlink()
        with contextlib.suppress(OSError):  # somebody else's files in it stay
            self.folder.rmdir()


def check_table_format(out: Path) -> None:
    """Refuse a name whose format cannot be written, before any work is done.

    Raises:
        InvalidArgument: it ends in neither ``.jsonl`` nor ``.parquet``.
        MissingExtra: Parquet without pyarrow.
    """
    if out.suffix not in (".jsonl", ".parquet"):
        raise InvalidArgument(f"{out} ends in neither .jsonl nor .parquet; give `out` a name that ends in one of them.")
    if out.suffix == ".parquet":
        try:
            importlib.import_module("pyarrow.parquet")
        except ImportError as error:
            raise MissingExtra.of(f"Writing {out} needs pyarrow", "data") from error


def check_table_output(
    out: Path, data: DataSet, sources: Sequence[str] = (), *, inputs: Sequence[Path] = (), force: bool = False
) -> None:
    """Check that a table can be written without destroying anything, before a model is loaded.

    Args:
        out: The table; rejected rows are listed beside it.
        data: What is read.
        sources: How the data were named; a table in one of their folders would be read as data the next time.
        inputs: Other files that are read.
        force: Write over existing files whatever they hold.

    Raises:
        OutputExists: says what would be lost.
        SaveFailed: the file cannot be written.
    """
    read = [*data.files, *inputs]
    check_output(out, inputs=read, loss=_table_loss, force=force)
    check_output(rejected_list(out), inputs=read, loss=_rejected_loss, force=force)
    for path in row_file_names(_rejected_rows(out)):
        check_output(path, inputs=read, loss=partial(_rows_loss, rejected_list(out)), force=force)
    place = Path(os.path.realpath(out))
    for source in sources:
        if not force and Path(source).is_dir() and place.is_relative_to(os.path.realpath(source)):
            raise OutputExists(
                f"{out} lies in the folder of data {source} and would be read as data the next time; choose another "
                "output, or pass `force`."
            )


def rejected_list(out: Path) -> Path:
    """Where the rows that could not be used are listed, beside the table."""
    return out.with_name(out.name + ".rejected.jsonl")


def _rejected_rows(out: Path) -> Path:
    """Where those rows are kept as they came, but for the ending."""
    return out.with_name(out.name + ".rejected_rows")


def _rows_loss(listed: Path, path: Path) -> str:
    """What an existing file of rejected rows would lose: nothing if a list beside it says where they come from."""
    return "" if path.stat().st_size == 0 or listed.is_file() else "rows that no list beside it names"


def _table_loss(path: Path) -> str:
    """What an existing file would lose: nothing if it is a table of readings."""
    other = "something else than a table of readings"
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            return "" if _is_table(pq.read_schema(path).names) else other
        with path.open("rb") as file:
            line = file.readline(1 << 20)
        return "" if not line or _is_table(json.loads(line)) else other
    except (OSError, ValueError, TypeError):  # pyarrow's errors are ValueErrors too
        return other


def _is_table(columns: Iterable[str]) -> bool:
    """Whether these are a table's columns: those of every table, and any of the extra ones, in their order."""
    names = tuple(columns)
    extra = tuple(name for name in EXTRA_COLUMNS if name in names)
    return names == (*TABLE_COLUMNS, *extra)


def _rejected_loss(path: Path) -> str:
    """What an existing list of rejected rows would lose: nothing if it is one."""
    other = "something else than a list of rejected rows"
    try:
        with path.open("rb") as file:
            line = file.readline(1 << 20)
        return "" if not line or {"index", "reason"} <= set(json.loads(line)) else other
    except (OSError, ValueError, TypeError):
        return other


def _to_parquet(rows: Path, out: Path, extra: Sequence[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = {name: pa.string() for name in ("file", "topic", "trait", "unread", "part")}
    integers = {name: pa.int64() for name in ("row", "index", "turn", "layer", "tokens")}
    numbers = {name: pa.float64() for name in ("prompt", "mean", "peak", "drift", "probability")}
    flags = {name: pa.bool_() for name in ("cut", "drift_alarm")}
    types = texts | integers | numbers | flags | {"alarms": pa.list_(pa.string())}
    columns = (*TABLE_COLUMNS, *extra)
    schema = pa.schema([(name, types[name]) for name in columns])
    with pq.ParquetWriter(out, schema) as writer, rows.open("rb") as lines:
        batch: list[dict[str, Any]] = []
        for line in lines:
            batch.append(json.loads(line))
            if len(batch) == ROWS_PER_GROUP:
                writer.write_table(pa.Table.from_pylist(batch, schema))
                batch = []
        writer.write_table(pa.Table.from_pylist(batch, schema))
