"""No row is lost by screening: each is clean, flagged or rejected, as it came; tables leave as tables."""

from __future__ import annotations

import codecs
import datetime
import gzip
import json
import math
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import screening
from poise.data import Conversation, DataSet, RejectedRow, formats, open_data
from poise.data.dataset import DataPart
from poise.data.row_values import RowItem
from poise.errors import InvalidArgument
from poise.model import Model
from poise.screen import pipeline as job
from poise.screen.flagging import FlaggingRule
from poise.screen.scoring import ScreenSettings
from poise.vector import PersonaVector
from screening import files, mixed, run, talk, written

model, two, small_windows = screening.model, screening.two, screening.small_windows

NOTHING = FlaggingRule(above=1e9)


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


class TestRowsOfJsonLines:
    def test_are_all_in_one_of_three_files_byte_for_byte(
        self, model: Model, two: list[PersonaVector], tmp_path: Path
    ) -> None:
        data, out = mixed(tmp_path / "rows.jsonl"), tmp_path / "out"
        summary = run(data, model, two, out, rule=FlaggingRule(top=4))
        rejected = lines(out / "rejected_rows.jsonl")
        every = [line for line in lines(data) if line.strip()]
        assert rejected == [every[n] for n in (3, 12, 26)], "broken, without an answer, too long for the window"
        assert sorted(lines(out / "clean.jsonl") + lines(out / "flagged.jsonl") + rejected) == sorted(every)
        assert [json.loads(line)["row"] for line in lines(out / "rejected.jsonl")] == [3, 12, 26]
        assert (
            "3 rows could not be read and are neither in clean.jsonl nor in flagged.jsonl: rejected_rows.jsonl has "
            "them as they came, rejected.jsonl says why." in summary.notes
        )
        assert summary.files == (
            "scores.parquet",
            "clean.jsonl",
            "flagged.jsonl",
            "rejected_rows.jsonl",
            "rejected.jsonl",
        )

    def test_are_the_input_where_nothing_is_flagged(
        self, model: Model, two: list[PersonaVector], tmp_path: Path
    ) -> None:
        content = codecs.BOM_UTF8 + b"".join(json.dumps(row).encode() + b" \r\n" for row in talk(9))
        (tmp_path / "a.jsonl").write_bytes(content)
        summary = run(tmp_path / "a.jsonl", model, two, tmp_path / "out", rule=NOTHING)
        assert (tmp_path / "out" / "clean.jsonl").read_bytes() == content
        assert (tmp_path / "out" / "flagged.jsonl").read_bytes() == b""
        assert (tmp_path / "out" / "rejected_rows.jsonl").read_bytes() == b""
        assert summary.notes == ()

    def test_have_a_byte_order_mark_only_at_the_beginning_of_a_file(
        self, model: Model, two: list[PersonaVector], tmp_path: Path
    ) -> None:
        parts = [written(tmp_path / f"{name}.jsonl", talk(3, first=n)).read_bytes() for n, name in enumerate("ab")]
        for name, part in zip("ab", parts, strict=True):
            (tmp_path / f"{name}.jsonl").write_bytes(codecs.BOM_UTF8 + part)
        job.screen_data(
            open_data([tmp_path / "a.jsonl", tmp_path / "b.jsonl"]),
            model,
            two,
            tmp_path / "out",
            ScreenSettings(method="raw", rule=NOTHING),
        )
        assert (tmp_path / "out" / "clean.jsonl").read_bytes() == codecs.BOM_UTF8 + parts[0] + parts[1]

    def test_that_are_too_long_to_be_held_are_copied(
        self, model: Model, two: list[PersonaVector], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(formats, "ROW_LIMIT", 2**12)
        long = json.dumps({"messages": [{"role": "user", "content": "x" * 20_000}]}).encode() + b"\n"
        (tmp_path / "a.jsonl.gz").write_bytes(
            gzip.compress(written(tmp_path / "a.jsonl", talk(9)).read_bytes() + long + b"{broken\n")
        )
        run(tmp_path / "a.jsonl.gz", model, two, tmp_path / "out", rule=NOTHING)
        assert lines(tmp_path / "out" / "rejected_rows.jsonl") == [long, b"{broken\n"]


class TestRowsOfOtherText:
    def test_are_kept_as_json_and_what_is_none_as_its_text(
        self, model: Model, two: list[PersonaVector], tmp_path: Path
    ) -> None:
        table = "prompt,response\n" + "".join(f"Who {n}?,The harbour master {n}.\n" for n in range(9))
        (tmp_path / "a.csv").write_bytes(table.encode() + b'P,"two\nlines",more\r\n,R\nP,\xff\n')
        out = tmp_path / "out"
        run(tmp_path / "a.csv", model, two, out, rule=NOTHING)
        assert [json.loads(line) for line in lines(out / "rejected_rows.jsonl")] == [
            'P,"two\nlines",more\r\n',
            {"prompt": "", "response": "R"},
            "P,\udcff\n",
        ]
        assert lines(out / "clean.jsonl")[0] == b'{"prompt": "Who 0?", "response": "The harbour master 0."}\n'

    def test_of_a_list_that_breaks_are_kept_to_its_end(
        self, model: Model, two: list[PersonaVector], tmp_path: Path
    ) -> None:
        rows = ",\n".join(json.dumps(row) for row in talk(9)).encode()
        tail = b'{"messages": oops},\n{"messages": "\xc3\xa4 \xff"}]'
        (tmp_path / "a.json").write_bytes(b"[" + rows + b", " + tail)
        run(tmp_path / "a.json", model, two, tmp_path / "out", rule=NOTHING)
        (kept,) = lines(tmp_path / "out" / "rejected_rows.jsonl")
        assert json.loads(kept).encode(errors="surrogateescape") == tail

    def test_of_which_nothing_can_be_read_are_counted(
        self, model: Model, two: list[PersonaVector], tmp_path: Path
    ) -> None:
        content = written(tmp_path / "a.jsonl", talk(9)).read_bytes()
        (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(content)[:-8])
        summary = run(tmp_path / "a.jsonl.gz", model, two, tmp_path / "out", rule=NOTHING)
        assert summary.rejected == {"cut short": 1}
        assert summary.notes[0].endswith("rejected.jsonl says why; of 1 nothing could be read.")
        assert (tmp_path / "out" / "rejected_rows.jsonl").read_bytes() == b""


def rich_table(n: int) -> pa.Table:
    """Chats with columns that JSON has no form for."""
    schema = pa.schema(
        [
            pa.field("messages", pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})), nullable=False),
            pa.field("blob", pa.binary(), metadata={"what": "pixels"}),
            pa.field("price", pa.decimal128(12, 3)),
            pa.field("when", pa.timestamp("ns", "Europe/Rome")),
            pa.field("day", pa.date32()),
            pa.field("score", pa.float32()),
            pa.field("half", pa.float16()),
            pa.field("pairs", pa.map_(pa.string(), pa.int64())),
            pa.field("label", pa.dictionary(pa.int8(), pa.string())),
            pa.field("text", pa.string(), nullable=False),
        ],
        metadata={"huggingface": "{}"},
    )
    rows = talk(n)
    columns: dict[str, list[Any]] = {
        "messages": [row["messages"] for row in rows],
        "blob": [bytes([i, 255]) for i in range(n)],
        "price": [Decimal(f"{i}.500") for i in range(n)],
        "when": [1_700_000_000_000_000_001 + i for i in range(n)],
        "day": [datetime.date(2025, 1, 1 + i) if i % 2 else None for i in range(n)],
        "score": [math.nan if i % 2 else i / 3 for i in range(n)],
        "half": [i / 2 for i in range(n)],
        "pairs": [[("a", i)] for i in range(n)],
        "label": ["odd" if i % 2 else "even" for i in range(n)],
        "text": [row["messages"][-1]["content"] for row in rows],
    }
    return pa.table([pa.array(columns[field.name], field.type) for field in schema], schema=schema)


def same(first: pa.Table, second: pa.Table) -> bool:
    """Equal in schema, its notes and every value; NaN is NaN."""
    compared = [
        table.set_column(5, "score", table["score"].cast(pa.string())).combine_chunks() for table in (first, second)
    ]
    return bool(first.schema.equals(second.schema, check_metadata=True) and compared[0].equals(compared[1]))


class TestRowsOfParquet:
    def test_leave_as_they_came(self, model: Model, two: list[PersonaVector], tmp_path: Path) -> None:
        table = rich_table(20)
        pq.write_table(table, tmp_path / "a.parquet", row_group_size=6)
        pq.write_table(table.slice(0, 2), tmp_path / "b.parquet")
        came = pa.concat_tables(pq.read_table(tmp_path / f"{name}.parquet") for name in "ab")
        out = tmp_path / "out"
        summary = job.screen_data(
            open_data([tmp_path / "a.parquet", tmp_path / "b.parquet"]),
            model,
            two,
            out,
            ScreenSettings(method="raw", rule=FlaggingRule(top=4)),
        )
        flags = {r["index"] for r in pq.read_table(out / "scores.parquet").to_pylist() if r["why"]}
        assert same(pq.read_table(out / "flagged.parquet"), came.take(sorted(flags)))
        assert same(pq.read_table(out / "clean.parquet"), came.take(sorted(set(range(22)) - flags)))
        assert pq.read_table(out / "rejected_rows.parquet").num_rows == 0
        assert summary.files[1:4] == ("clean.parquet", "flagged.parquet", "rejected_rows.parquet")
        assert not (out / "clean.jsonl").exists()
        before = files(out)
        job.screen_data(
            open_data([tmp_path / "a.parquet", tmp_path / "b.parquet"]),
            model,
            two,
            out,
            ScreenSettings(method="raw", rule=FlaggingRule(top=4)),
        )
        assert files(out) == before

    def test_are_fixed_with_everything_else_as_it_came(
        self, model: Model, two: list[PersonaVector], tmp_path: Path
    ) -> None:
        pq.write_table(rich_table(12), tmp_path / "a.parquet")
        came, out = pq.read_table(tmp_path / "a.parquet"), tmp_path / "out"
        run(tmp_path / "a.parquet", model, two, out, rule=FlaggingRule(top=2), fix=True)
        flags = {r["index"] for r in pq.read_table(out / "scores.parquet").to_pylist() if r["why"]}
        fixed = pq.read_table(out / "fixed.parquet")
        assert fixed.num_rows == 12
        others = [name for name in came.schema.names if name not in ("messages", "text", "score")]
        assert fixed.select(others).equals(came.select(others))
        assert fixed.schema.equals(came.schema, check_metadata=True)
        for n, (old, new) in enumerate(zip(came["messages"].to_pylist(), fixed["messages"].to_pylist(), strict=True)):
            assert (old[1]["content"] != new[1]["content"]) == (n in flags)
            assert (fixed["text"][n].as_py() == "") == (n in flags), "it held the old answer, and may not be null"

    def test_that_are_rejected_are_kept(self, model: Model, two: list[PersonaVector], tmp_path: Path) -> None:
        answers = pa.array([b"The harbour master."] * 8 + [b"bad\xff"] + [b""]).cast(pa.binary()).view(pa.string())
        pq.write_table(pa.table({"prompt": ["Who?"] * 10, "response": answers}), tmp_path / "a.parquet")
        run(tmp_path / "a.parquet", model, two, tmp_path / "out", rule=NOTHING)
        kept = pq.read_table(tmp_path / "out" / "rejected_rows.parquet")["response"].cast(pa.binary()).to_pylist()
        assert kept == [b"bad\xff", b""]

    def test_of_different_columns_become_json_lines(
        self, model: Model, two: list[PersonaVector], tmp_path: Path
    ) -> None:
        data = tmp_path / "data"
        data.mkdir()
        pair = {"prompt": "Who?", "response": "The harbour master.", "blob": b"\0\xff", "price": Decimal("1.50")}
        pq.write_table(pa.Table.from_pylist([pair] * 4), data / "a.parquet")
        written(data / "b.jsonl", [{"prompt": "Who?", "response": "Nobody."}] * 4)
        run(data, model, two, tmp_path / "out", rule=NOTHING)
        first = lines(tmp_path / "out" / "clean.jsonl")[0]
        assert json.loads(first) == {**pair, "blob": "AP8=", "price": "1.50"}

    def test_of_a_saved_data_set_leave_as_parquet(self, model: Model, two: list[PersonaVector], tmp_path: Path) -> None:
        saved = datasets.Dataset.from_list(talk(9))
        saved.save_to_disk(str(tmp_path / "saved"))
        run(tmp_path / "saved", model, two, tmp_path / "out", rule=NOTHING)
        again = datasets.Dataset.from_parquet(
            str(tmp_path / "out" / "clean.parquet"), cache_dir=str(tmp_path / "cache")
        )
        assert again.features == saved.features
        assert again.to_list() == saved.to_list()

    def test_replace_the_files_of_an_earlier_screening_and_nothing_else(
        self, model: Model, two: list[PersonaVector], tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        run(written(tmp_path / "a.jsonl", talk(9)), model, two, out, rule=FlaggingRule(top=2), fix=True)
        (out / "mine.jsonl").write_bytes(b"mine")
        pq.write_table(rich_table(9), tmp_path / "a.parquet")
        run(tmp_path / "a.parquet", model, two, out, rule=FlaggingRule(top=2))
        assert sorted(path.name for path in out.iterdir() if path.suffix in (".jsonl", ".parquet")) == [
            "clean.parquet",
            "flagged.parquet",
            "mine.jsonl",
            "rejected.jsonl",
            "rejected_rows.parquet",
            "scores.parquet",
        ]


class TestFixing:
    def test_of_marked_up_text_is_refused_before_the_model_is_needed(
        self, two: list[PersonaVector], tmp_path: Path
    ) -> None:
        chat = "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
        data = open_data(written(tmp_path / "a.jsonl", [{"text": chat}] * 3))
        with pytest.raises(
            InvalidArgument, match=r"a\.jsonl keeps its chats as marked-up text in text, where no answer"
        ):
            job.check_screening(data, two, tmp_path / "out", ScreenSettings(fix=True))
        job.check_screening(data, two, tmp_path / "out", ScreenSettings())


class CountedData(DataSet):
    """Counts the rows that are decoded."""

    decoded: ClassVar[list[int]] = []

    def decode(self, part: DataPart, item: RowItem, first: int) -> Conversation | RejectedRow:
        self.decoded.append(first + item[0])
        return DataSet.decode(self, part, item, first)


def test_rows_are_decoded_once_but_for_those_that_are_shown(
    model: Model, two: list[PersonaVector], tmp_path: Path
) -> None:
    opened = open_data(written(tmp_path / "rows.jsonl", talk(60)))
    data = CountedData(parts=opened.parts, need=opened.need, stated=opened.stated)
    CountedData.decoded.clear()
    job.screen_data(data, model, two[:1], tmp_path / "out", ScreenSettings(method="raw"))
    assert CountedData.decoded[:60] == list(range(60))
    assert len(CountedData.decoded) == 60 + 10  # the ten highest
    assert len(set(CountedData.decoded[60:])) == 10
