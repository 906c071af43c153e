"""Parquet and Arrow files as rows that remember the table they stand in, so that they can leave as they came."""

from __future__ import annotations

import base64
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any

from poise.data.input_files import InputFile, import_extra, open_stored
from poise.data.row_values import RowItem
from poise.errors import InvalidData, InvalidRow, first_line

__all__ = [
    "TABLES",
    "TableRow",
    "batch_rows",
    "check_columns",
    "json_default",
    "plain_schema",
    "plain_table",
    "table_rows",
    "table_schema",
]

BATCH_BYTES = 16 * 2**20


class TableRow(dict[str, Any]):
    """A row's columns as Python values; ``table`` and ``at`` say where the row itself is. Pickled as a plain dict."""

    __slots__ = ("at", "table")

    def __init__(self, columns: dict[str, Any], table: Any, at: int) -> None:
        super().__init__(columns)
        self.table, self.at = table, at

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


def table_rows(tables: Iterable[Any], row: int, skip: int) -> Iterator[RowItem]:
    """Rows of Arrow tables, the first being ``row``, without those before ``skip``.

    Only what is yielded becomes Python values. Where the tables break off there is one last row that says so.
    """
    source = iter(tables)
    while True:
        try:
            table = next(source, None)
        except (OSError, ValueError) as error:
            if row >= skip:
                yield row, None, InvalidRow(f"damaged: {first_line(error)}; the rest of this row group is lost")
            return
        if table is None:
            return
        if row + table.num_rows > skip:
            first = max(0, skip - row)
            for number, value in enumerate(_table_to_rows(table.slice(first)), start=row + first):
                yield number, None, value
        row += table.num_rows


def _table_to_rows(table: Any) -> list[TableRow | InvalidRow]:
    try:
        return [TableRow(columns, table, at) for at, columns in enumerate(table.to_pylist())]
    except UnicodeDecodeError:
        if table.num_rows == 1:
            return [InvalidRow("not UTF-8 text", TableRow(_text_of_row(table), table, 0))]
        return [row for number in range(table.num_rows) for row in _table_to_rows(table.slice(number, 1))]
    except (ValueError, OverflowError):  # a time that Python has no value for
        names = table.schema.names
        columns = zip(*(_column_values(table.column(at)) for at in range(len(names))), strict=True)
        return [TableRow(dict(zip(names, values, strict=True)), table, at) for at, values in enumerate(columns)]


def _column_values(column: Any) -> list[Any]:
    """A column's values, as text where Python has none for them."""
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        raise
    except (ValueError, OverflowError):
        return list(column.cast("string").to_pylist())


def _text_of_row(row: Any) -> dict[str, Any]:
    """The columns of a table of one row, with ``\\udc80`` to ``\\udcff`` for bytes that are not UTF-8."""
    values: dict[str, Any] = {}
    for name, column in zip(row.schema.names, row.columns, strict=True):
        try:
            values[name] = column.to_pylist()[0]
        except UnicodeDecodeError:
            binary = column.cast("binary").to_pylist() if str(column.type) in ("string", "large_string") else [None]
            values[name] = binary[0].decode(errors="surrogateescape") if binary[0] is not None else str(column.type)
    return values


def json_default(value: Any) -> str:
    """What JSON has no form for: bytes in base64, and times and decimals as text."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def batch_rows(size: int, rows: int) -> int:
    """How many rows of a table of ``size`` bytes to hold at once."""
    return max(1, min(1000, BATCH_BYTES * rows // max(size, 1)))


def check_columns(file: str, names: Sequence[str]) -> None:
    """Refuse a file of which several columns have one name: a row by names would hold only the last.

    Raises:
        InvalidData: names the column.
    """
    if repeated := next((name for name in names if names.count(name) > 1), ""):
        raise InvalidData(
            f"{file}: it has {names.count(repeated)} columns named {repeated}; rename all but the one to be read, or "
            "take them out."
        )


def table_schema(file: InputFile) -> Any:
    """The Arrow schema of a table, with the notes that other libraries keep in it.

    Raises:
        InvalidData: it cannot be read.
        MissingExtra: pyarrow is not installed.
    """
    if file.endings[1] == ".parquet":
        with _open_parquet(file) as opened:
            return plain_schema(opened.schema_arrow)
    batches, _ = _open_arrow(file)
    return plain_schema(batches.schema)


def plain_schema(schema: Any) -> Any:
    """A schema in whose types rows can be taken out of a table, and written: Arrow cannot do that with views of texts
    and lists, nor with runs of one value."""
    for number, field in enumerate(schema):
        if (kind := _plain_type(field.type)) != field.type:
            schema = schema.set(number, field.with_type(kind))
    return schema


def plain_table(table: Any) -> Any:
    """A table or batch under its plain schema, as a table where that is another than its own."""
    import pyarrow as pa

    schema = plain_schema(table.schema)
    if schema is table.schema or schema.equals(table.schema):
        return table
    columns = [
        column if column.type == field.type else _plain_column(column, field.type)
        for column, field in zip(table.columns, schema, strict=True)
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _plain_column(column: Any, kind: Any) -> Any:
    import pyarrow as pa

    if "list_view" in str(column.type):  # Arrow's cast loses count of its places
        return pa.array(column.to_pylist(), kind)
    try:
        return column.cast(kind)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        return pa.array(column.to_pylist(), kind)


def _plain_type(kind: Any) -> Any:
    import pyarrow as pa

    types = pa.types

    def inside(field: Any) -> Any:
        return field.with_type(_plain_type(field.type))

    if types.is_string_view(kind) or types.is_binary_view(kind):
        return pa.string() if types.is_string_view(kind) else pa.binary()
    if types.is_run_end_encoded(kind):
        return _plain_type(kind.value_type)
    if types.is_dictionary(kind):  # a plain one stays as it came
        return kind if _plain_type(kind.value_type) == kind.value_type else _plain_type(kind.value_type)
    if types.is_list(kind) or types.is_list_view(kind):
        return pa.list_(inside(kind.value_field))
    if types.is_large_list(kind) or types.is_large_list_view(kind):
        return pa.large_list(inside(kind.value_field))
    if types.is_fixed_size_list(kind):
        return pa.list_(inside(kind.value_field), kind.list_size)
    if types.is_map(kind):
        return pa.map_(inside(kind.key_field), inside(kind.item_field), kind.keys_sorted)
    return pa.struct([inside(kind.field(at)) for at in range(kind.num_fields)]) if types.is_struct(kind) else kind


def _open_parquet(file: InputFile) -> Any:
    parquet = import_extra("pyarrow.parquet", f"Reading {file.name}")
    try:
        return parquet.ParquetFile(file.path if file.path and not file.member else open_stored(file))
    except (OSError, ValueError) as error:
        raise InvalidData(f"{file.name}: cannot be read as Parquet, {first_line(error)}") from error


def _parquet(file: InputFile, skip: int) -> Generator[RowItem, None, int]:
    """Row groups that are skipped are not read; of a damaged one the rest is lost, and the next one is read."""
    with _open_parquet(file) as opened:
        check_columns(file.name, opened.schema_arrow.names)
        begin = 0
        for number in range(opened.num_row_groups):
            group = opened.metadata.row_group(number)
            if begin + group.num_rows > skip:
                rows = batch_rows(group.total_byte_size, group.num_rows)
                yield from table_rows(map(plain_table, opened.iter_batches(rows, row_groups=[number])), begin, skip)
            begin += group.num_rows
    return begin


def _open_arrow(file: InputFile) -> tuple[Any, bool]:
    """The batches of an Arrow file or stream, and whether it is a file, which knows how many it has."""
    arrow = import_extra("pyarrow", f"Reading {file.name}")
    if file.path and not file.member:
        source = arrow.memory_map(str(file.path))
    else:
        source = arrow.PythonFile(open_stored(file), "r")
    try:
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        return arrow.ipc.open_file(source) if is_file else arrow.ipc.open_stream(source), is_file
    except (OSError, ValueError) as error:
        raise InvalidData(f"{file.name}: cannot be read as Arrow, {first_line(error)}") from error


def _arrow(file: InputFile, skip: int) -> Generator[RowItem, None, int]:
    """Arrow files, which Feather is, and streams, which ``datasets`` writes, a batch at a time."""
    batches, is_file = _open_arrow(file)
    check_columns(file.name, batches.schema.names)
    begin = 0
    for batch in map(batches.get_batch, range(batches.num_record_batches)) if is_file else batches:
        yield from table_rows(map(plain_table, [batch]), begin, skip)
        begin += batch.num_rows
    return begin


TABLES = {".parquet": _parquet, ".feather": _arrow, ".arrow": _arrow}
