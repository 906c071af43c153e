"""Rows written as they came: JSON Lines byte for byte, tables as Parquet of the same schema, other formats as JSON."""

from __future__ import annotations

import codecs
import contextlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from poise.data.dataset import DataSet
from poise.data.input_files import FileSpan
from poise.data.rejected import Rejections
from poise.data.row_values import BOM
from poise.data.tables import TableRow, json_default
from poise.errors import InvalidRow, first_line
from poise.progress import track
from poise.storage.atomic_write import saving

__all__ = [
    "KeptRows",
    "RawRow",
    "RowFile",
    "common_schema",
    "open_row_file",
    "row_columns_of",
    "row_file_names",
    "write_rejected_rows",
]

RawRow = bytes | Mapping[str, Any] | FileSpan

GROUP_BYTES = 16 * 2**20
GROUP_ROWS = 50_000


def common_schema(data: DataSet) -> Any:
    """The Arrow schema of all of the data; ``None`` where they are not tables of one that Parquet can hold."""
    first, *others = (part.schema for part in data.parts)
    if first is None or not all(other and first.equals(other, check_metadata=False) for other in others):
        return None
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        pq.ParquetWriter(pa.BufferOutputStream(), first).close()
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        return None
    return first


def row_columns_of(raw: RawRow) -> Mapping[str, Any]:
    """A row's columns."""
    if isinstance(raw, bytes):
        columns: dict[str, Any] = json.loads(raw)
        return columns
    return cast(Mapping[str, Any], raw)  # a span is of a row that cannot be read


class RowFile:
    """Rows in the order in which they are added, as lines of JSON."""

    def __init__(self, files: contextlib.ExitStack, path: Path) -> None:
        self.file: BinaryIO = files.enter_context(files.enter_context(saving(path)).open("wb"))

    def add(self, raw: RawRow) -> None:
        """A row as it came. A byte order mark begins a file, or is left out."""
        if isinstance(raw, FileSpan):
            self._add_span(raw)
        elif isinstance(raw, bytes):
            self.file.write((raw.removeprefix(BOM) if self.file.tell() else raw) + b"\n")
        else:
            self.file.write(_json_line(raw))

    def add_edited(self, raw: RawRow, columns: Mapping[str, Any]) -> None:
        """A row with other columns than it came with.

        Raises:
            InvalidRow: the file cannot hold one of them.
        """
        self.file.write(_json_line(columns))

    def finish(self) -> None:
        """Nothing more comes."""

    def _add_span(self, span: FileSpan) -> None:
        if span.is_line:
            for block in span.blocks():
                self.file.write(block)
        else:  # text of another format, as one JSON string
            decoder = codecs.getincrementaldecoder("utf-8")(errors="surrogateescape")
            self.file.write(b'"')
            for block in span.blocks():
                self.file.write(json.dumps(decoder.decode(block))[1:-1].encode())
            self.file.write(json.dumps(decoder.decode(b"", final=True))[1:-1].encode() + b'"')
        self.file.write(b"\n")


class _TableFile(RowFile):
    """Rows of tables, taken from where they stand, so that nothing passes through Python values."""

    def __init__(self, files: contextlib.ExitStack, path: Path, schema: Any) -> None:
        import pyarrow.parquet as pq

        self.schema = schema
        self.writer = files.enter_context(pq.ParquetWriter(files.enter_context(saving(path)), schema))
        self.table: Any = None
        self.places: list[int] = []
        self.taken: list[Any] = []

    def add(self, raw: RawRow) -> None:
        row = cast(TableRow, raw)
        if row.table is not self.table:
            self._take()
            self.table = row.table
        self.places.append(row.at)

    def add_edited(self, raw: RawRow, columns: Mapping[str, Any]) -> None:
        import pyarrow as pa

        old = cast(TableRow, raw)
        row = self._conform(old.table.slice(old.at, 1))
        for number, field in enumerate(self.schema):
            if columns[field.name] is old[field.name]:
                continue
            value = columns[field.name]
            if value is None and not field.nullable:
                if not (pa.types.is_string(field.type) or pa.types.is_large_string(field.type)):
                    raise InvalidRow(f"column {field.name} repeats the old answer and may not be empty")
                value = ""
            try:
                row = row.set_column(number, field, pa.array([value], field.type))
            except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
                raise InvalidRow(f"column {field.name} cannot hold the new answer: {first_line(error)}") from error
        self._take()
        self.taken.append(row)

    def finish(self) -> None:
        self._take()
        self._flush()

    def _take(self) -> None:
        if self.places:
            self.taken.append(self._conform(self.table.take(self.places)))
            self.places = []
        if sum(table.nbytes for table in self.taken) >= GROUP_BYTES or len(self.taken) >= GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self.taken:
            self.writer.write_table(pa.concat_tables(self.taken))
            self.taken = []

    def _conform(self, table: Any) -> Any:
        """A batch or table under the schema of the file, notes included."""
        import pyarrow as pa

        if table.schema.equals(self.schema, check_metadata=False):
            return pa.Table.from_arrays(table.columns, schema=self.schema)
        return (table if isinstance(table, pa.Table) else pa.Table.from_batches([table])).cast(self.schema)


def open_row_file(files: contextlib.ExitStack, path: Path, schema: Any) -> RowFile:
    """A file for rows, closed and put in its place as ``files`` is left: Parquet where there is a schema.

    Raises:
        SaveFailed: the disk refused; what was there before is untouched.
    """
    return RowFile(files, path) if schema is None else _TableFile(files, path, schema)


@dataclass(frozen=True, slots=True)
class KeptRows:
    """Rejected rows that a job left out, kept as they came.

    Attributes:
        path: The file that holds them.
        count: Number of rows that were rejected.
        without_content: How many of them it does not hold, since nothing of them can be read.
    """

    path: Path
    count: int
    without_content: int

    def __str__(self) -> str:
        lost = f"; of {self.without_content:,} nothing could be read" if self.without_content else ""
        return f"{self.path} has them as they came{lost}"


def row_file_names(stem: Path) -> tuple[Path, Path]:
    """The names that a file of rows may have: of JSON Lines, and of a table."""
    return stem.with_name(f"{stem.name}.jsonl"), stem.with_name(f"{stem.name}.parquet")


def write_rejected_rows(
    data: DataSet, rejections: Rejections, stem: Path, *, rows: Iterable[Any] | None = None
) -> KeptRows | None:
    """Keep the rows that were rejected, so that they can be mended and read by themselves.

    Args:
        data: What was read; it is read once more where a row was rejected.
        rejections: Which rows were; with a list on disk.
        stem: The file's name without its ending: tables are kept as Parquet, everything else as JSON Lines.
        rows: The same rows as something else than conversations, such as pairs.

    Returns:
        Where they are; ``None`` where no row was rejected. What an earlier run kept there is gone then.

    Raises:
        SaveFailed: the disk refused.
    """
    indexes = rejections.indexes
    schema = common_schema(data)
    path = row_file_names(stem)[schema is not None]
    for stale in row_file_names(stem):
        if not indexes or stale != path:
            stale.unlink(missing_ok=True)
    if not indexes:
        return None
    without_content = 0
    with contextlib.ExitStack() as files, track("Keeping rejected rows", total=rejections.rows) as advance:
        file = open_row_file(files, path, schema)
        for row in data if rows is None else rows:
            advance(1)
            if row.index in indexes and row.raw is not None:
                file.add(row.raw)
            without_content += row.index in indexes and row.raw is None
        file.finish()
    return KeptRows(path, len(indexes), without_content)


def _json_line(columns: Mapping[str, Any]) -> bytes:
    return json.dumps(columns, ensure_ascii=False, default=json_default).encode(errors="surrogatepass") + b"\n"
