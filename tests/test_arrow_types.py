"""Every kind of Arrow column is read, and leaves as a table that holds the same values."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from poise.data import Conversation, open_data
from poise.data.row_files import common_schema, open_row_file

TEXTS = ["A1", "A2", "A3"]
VIEWS = pa.array(TEXTS, pa.string_view())
ANSWERS: dict[str, Any] = {
    "string_view": VIEWS,
    "large_string": pa.array(TEXTS, pa.large_string()),
    "dictionary": pa.array(TEXTS).dictionary_encode(),
    "dictionary of views": pa.DictionaryArray.from_arrays(pa.array([0, 1, 2], pa.int32()), VIEWS),
    "run-end encoded": pc.run_end_encode(pa.array(TEXTS)),
}
BESIDE: dict[str, Any] = {
    "binary_view": pa.array([b"a", None, b"c"], pa.binary_view()),
    "list_view": pa.array([["a"], None, ["c", "d"]], pa.list_view(pa.string_view())),
    "large_list_view": pa.array([["a"], None, []], pa.large_list_view(pa.string())),
    "large_list": pa.array([["a"], None, []], pa.large_list(pa.string_view())),
    "struct": pa.array([{"k": "a"}, None, {"k": "c"}], pa.struct([("k", pa.string_view())])),
    "list of structs": pa.array([[{"k": "a"}], None, []], pa.list_(pa.struct([("k", pa.string_view())]))),
    "map": pa.array([[("k", "a")], None, []], pa.map_(pa.string(), pa.string_view())),
    "fixed-size list": pa.array([["a", "b"], None, ["c", "d"]], pa.list_(pa.string_view(), 2)),
}


def written(path: Path, table: pa.Table) -> Path:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    return path


@pytest.mark.parametrize("name", [*ANSWERS, *BESIDE])
def test_a_column_is_read_and_leaves_with_its_values(tmp_path: Path, name: str) -> None:
    answers = ANSWERS.get(name, pa.array(TEXTS))
    columns = {"prompt": pa.array(["Q"] * 3), "response": answers, "extra": BESIDE.get(name, answers)}
    data = open_data(written(tmp_path / "rows.arrow", pa.table(columns)))
    rows = [row for row in data if isinstance(row, Conversation)]
    assert [row.messages[-1]["content"] for row in rows] == TEXTS
    with contextlib.ExitStack() as files:
        out = open_row_file(files, tmp_path / "out.parquet", common_schema(data))
        for row in rows[::2]:
            out.add(row.raw)
        out.add_edited(rows[1].raw, {**dict(rows[1].raw), "response": "NEW"})  # type: ignore[call-overload]
        out.finish()
    kept = pq.read_table(tmp_path / "out.parquet").to_pylist()
    source = pa.table({**columns, "response": pa.array(["A1", "NEW", "A3"])}).to_pylist()
    assert kept == [source[0], source[2], source[1]]
