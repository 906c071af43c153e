"""What rows come in: archives, packings, links, addresses, standard input; and the row itself, as it came."""

from __future__ import annotations

import codecs
import datetime
import gzip
import io
import json
import os
import pickle
import sys
import zipfile
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from poise.data import Conversation, DataSet, RejectedRow, formats, open_data
from poise.data.input_files import FileSpan
from poise.data.tables import TableRow
from poise.errors import InvalidData, MissingExtra
from poise.train.config import TrainConfig, VaccineSettings
from poise.train.examples import open_training_data


def row(answer: str) -> dict[str, str]:
    return {"prompt": "P", "response": answer}


def line(answer: str) -> bytes:
    return json.dumps(row(answer)).encode() + b"\n"


def answers(data: DataSet) -> list[str]:
    rows = list(data)
    assert all(isinstance(one, Conversation) for one in rows), rows
    return [one.messages[-1]["content"] for one in rows if isinstance(one, Conversation)]


def read(source: Any) -> list[str]:
    return answers(open_data(source))


def zipped(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/").replace("_DOT_", "."), content)
    return path


class TestWhatWouldBeLost:
    """Containers of which a reader by names would take one part and drop the other."""

    COLUMNS = "it has 2 columns named response; rename all but the one to be read, or take them out."

    @pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
    def test_columns_of_one_name_in_text_are_refused(self, name: str, tmp_path: Path) -> None:
        text = "prompt,response,response\nP,first,second\n"
        path = tmp_path / name
        path.write_text(text.replace(",", "\t") if name == "a.tsv" else text)
        with pytest.raises(InvalidData) as refused:
            read(path)
        assert str(refused.value) == f"{path}: {self.COLUMNS}"

    @pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
    def test_columns_of_one_name_in_a_table_are_refused(self, name: str, tmp_path: Path) -> None:
        table = pa.table(
            [pa.array(["P"]), pa.array(["first"]), pa.array(["second"])], ["prompt", "response", "response"]
        )
        path = tmp_path / name
        if name == "a.parquet":
            pq.write_table(table, path)
        else:
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
        with pytest.raises(InvalidData) as refused:
            read(path)
        assert str(refused.value) == f"{path}: {self.COLUMNS}"

    def test_empty_columns_without_a_name_are_nothing(self, tmp_path: Path) -> None:
        path = tmp_path / "a.csv"
        path.write_text("prompt,response,,\nP,one,,\nP,two,lost,kept\n")
        one, two = open_data(path)
        assert isinstance(one, Conversation)
        assert one.messages[-1]["content"] == "one"
        assert isinstance(two, RejectedRow)
        assert two.reason == "broken CSV: cells under two columns that have no name"

    @pytest.mark.parametrize(
        ("names", "listed"),
        [
            (("train", "test"), "train, test"),
            (("train", "validation"), "train, validation"),
            (("dev", "test"), "dev, test"),
            (("data", "more"), "data, more"),
            (("first", "second", "third"), "first, second, third"),
        ],
    )
    def test_several_lists_of_rows_are_refused(self, names: tuple[str, ...], listed: str, tmp_path: Path) -> None:
        path = tmp_path / "a.json"
        path.write_text(json.dumps({"version": "1"} | {name: [row(f"of {name}")] for name in names}, indent=1))
        with pytest.raises(InvalidData) as refused:
            read(path)
        assert str(refused.value) == (
            f"{path}: it holds {len(names)} lists of rows; write the one to be read to a file of its own: {listed}."
        )

    @pytest.mark.parametrize(
        "document",
        [
            {"train": [row("A")], "version": "1"},
            {"data": [row("A")], "test": []},
            {"data": [row("A")], "labels": [{"name": "x"}]},
            {
                "messages": [{"role": "user", "content": "P"}, {"role": "assistant", "content": "A"}],
                "tools": [{"type": "function", "function": {"name": "f"}}],
            },
        ],
    )
    def test_one_list_of_rows_is_read(self, document: dict[str, Any], tmp_path: Path) -> None:
        (tmp_path / "a.json").write_text(json.dumps(document))
        assert read(tmp_path / "a.json") == ["A"]


class TestAZipArchive:
    def test_is_read_as_the_files_in_it(self, tmp_path: Path) -> None:
        table = io.BytesIO()
        pq.write_table(pa.Table.from_pylist([row("in parquet")]), table)
        path = zipped(
            tmp_path / "a.zip",
            b_DOT_jsonl=line("first") + line("second"),
            a__x_DOT_csv=b"prompt,response\nP,in csv\n",
            c_DOT_jsonl_DOT_gz=gzip.compress(line("packed twice")),
            d_DOT_parquet=table.getvalue(),
            _DOT_hidden_DOT_jsonl=b"x",
            notes_DOT_md=b"x",
            readme_DOT_txt=b"words about the data",
        )
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("__MACOSX/._b.jsonl", b"\0")
        data = open_data(path)
        assert answers(data) == ["in csv", "first", "second", "packed twice", "in parquet"]
        assert [part.name for part in data.parts] == [
            f"{path}/{name}" for name in ("a/x.csv", "b.jsonl", "c.jsonl.gz", "d.parquet")
        ]
        assert data.files == (path,)
        assert f"not read: {path}/readme.txt: plain text beside other data; name it to have it read" in data.how
        assert [one.messages[-1]["content"] for one in data.iterate(3) if isinstance(one, Conversation)] == [
            "packed twice",
            "in parquet",
        ]
        assert answers(pickle.loads(pickle.dumps(data))) == answers(data)

    def test_in_a_folder_is_read_with_the_files_beside_it(self, tmp_path: Path) -> None:
        zipped(tmp_path / "b.zip", x_DOT_jsonl=line("zipped"))
        (tmp_path / "a.jsonl").write_bytes(line("alone"))
        assert read(tmp_path) == ["alone", "zipped"]
        assert read(str(tmp_path / "*.zip")) == ["zipped"]

    @pytest.mark.parametrize(
        ("content", "complaint"),
        [
            (b"PK\x03\x04 and no more", "cannot be read as a zip archive"),
            ({"notes_DOT_md": b"x"}, "holds no file that ends in"),
        ],
    )
    def test_of_no_use_is_one_sentence(self, content: Any, complaint: str, tmp_path: Path) -> None:
        path = tmp_path / "a.zip"
        path.write_bytes(content) if isinstance(content, bytes) else zipped(path, **content)
        with pytest.raises(InvalidData, match=complaint):
            open_data(path)

    @pytest.mark.filterwarnings("ignore:Duplicate name")
    def test_that_holds_a_name_twice_is_refused(self, tmp_path: Path) -> None:
        path = zipped(tmp_path / "a.zip", x_DOT_jsonl=line("first"), y_DOT_jsonl=line("other"))
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("x.jsonl", line("second"))
        with pytest.raises(InvalidData) as refused:
            open_data(path)
        assert str(refused.value) == (
            f"{path} holds 2 files named x.jsonl; pack them again, each under a name of its own."
        )

    def test_that_is_encrypted_is_refused(self, tmp_path: Path) -> None:
        path = zipped(tmp_path / "a.zip", x_DOT_jsonl=line("secret"))
        content = bytearray(path.read_bytes())
        for signature, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            content[content.index(signature) + place] |= 1
        path.write_bytes(content)
        with pytest.raises(InvalidData, match=r"x\.jsonl in it is encrypted; unpack it first"):
            open_data(path)

    def test_that_is_damaged_gives_what_comes_before(self, tmp_path: Path) -> None:
        path = tmp_path / "a.zip"
        with zipfile.ZipFile(path, "w") as archive:  # stored, not packed: the checksum alone is wrong
            archive.writestr("x.jsonl", line("good") * 9999 + line("evil"))
        path.write_bytes(path.read_bytes().replace(b"evil", b"bent"))
        *good, last = open_data(path)
        assert {type(one) for one in good} == {Conversation}
        assert len(good) > 9000
        assert isinstance(last, RejectedRow)
        assert last.kind == "damaged"


class TestLz4:
    def test_is_unpacked(self, tmp_path: Path) -> None:
        with pa.output_stream(str(tmp_path / "a.jsonl.lz4"), compression="lz4") as stream:
            stream.write(line("a") + line("b"))
        assert read(tmp_path / "a.jsonl.lz4") == ["a", "b"]
        assert read(tmp_path) == ["a", "b"]
        (tmp_path / "a.jsonl.lz4").write_bytes(b"\xff" * 99)
        with pytest.raises(InvalidData, match=r"none of its first 1 rows can be read \(damaged"):
            open_data(tmp_path)


class TestPlainText:
    def test_is_a_row_for_each_line(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_bytes("\ufeffOnce upon\u2028a time. \r\n\n \n\tThe end.".encode())
        data = open_data(tmp_path / "a.txt")
        assert answers(data) == ["Once upon\u2028a time. ", "\tThe end."]
        assert data.how.endswith("text from text, each an answer without a prompt (found in the first 100 rows)")
        assert [one.raw for one in data] == [{"text": "Once upon\u2028a time. "}, {"text": "\tThe end."}]
        assert read(tmp_path) == ["Once upon\u2028a time. ", "\tThe end."], "a folder of nothing else"

    def test_that_is_not_utf8_is_rejected_line_by_line(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_bytes(b"good\nbad \xff\n")
        good, bad = open_data(tmp_path / "a.txt")
        assert isinstance(good, Conversation)
        assert isinstance(bad, RejectedRow)
        assert (bad.line, bad.reason, bad.raw) == (2, "not UTF-8 text", b'"bad \\udcff"')


class TestAFolder:
    def test_is_read_without_the_notes_of_the_library(self, tmp_path: Path) -> None:
        datasets.Dataset.from_list([row("saved")]).save_to_disk(str(tmp_path / "data" / "part"))
        cache = tmp_path / "data" / "part" / "cache-1.arrow"
        cache.write_bytes((tmp_path / "data" / "part" / "data-00000-of-00001.arrow").read_bytes())
        (tmp_path / "data" / "a.jsonl").write_bytes(line("beside"))
        (tmp_path / "data" / "dataset_infos.json").write_text(json.dumps({"default": {"features": {}}}))
        data = open_data(tmp_path / "data")
        assert answers(data) == ["beside", "saved"]
        notes = [part.rpartition("/")[2] for part in data.left_out]
        assert sorted(notes) == [
            f"{name}: it describes a saved data set"
            for name in ("dataset_info.json", "dataset_infos.json", "state.json")
        ]

    def test_keeps_data_that_are_only_named_like_notes(self, tmp_path: Path) -> None:
        (tmp_path / "state.json").write_bytes(line("of the union"))
        assert read(tmp_path) == ["of the union"]
        assert read(tmp_path / "state.json") == ["of the union"]

    def test_reads_each_file_once_by_whatever_links(self, tmp_path: Path) -> None:
        (tmp_path / "far" / "deep").mkdir(parents=True)
        (tmp_path / "far" / "deep" / "x.jsonl").write_bytes(line("far"))
        data = tmp_path / "data"
        data.mkdir()
        (data / "z.jsonl").write_bytes(line("real"))
        (data / "a.jsonl").symlink_to("z.jsonl")
        (data / "linked").symlink_to(tmp_path / "far")
        (data / "again").symlink_to(tmp_path / "far" / "deep")
        (data / "circle").symlink_to(data)
        (data / "gone.jsonl").symlink_to("nowhere")
        opened = open_data([data, data / "a.jsonl", os.path.relpath(data / "z.jsonl"), tmp_path / "far"])
        assert sorted(answers(opened)) == ["far", "real"]
        assert str(data / "z.jsonl") in [part.name for part in opened.parts], "named as itself, not as a link"
        assert read(data / "a.jsonl") == ["real"]


@pytest.fixture
def memory() -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    yield system
    system.rm("/", recursive=True)


class TestAnAddress:
    def test_is_a_file_a_folder_or_a_glob(self, memory: Any) -> None:
        memory.pipe({"/d/a.jsonl": line("a"), "/d/e/b.jsonl.gz": gzip.compress(line("b")), "/d/e/c.md": b"x"})
        assert read("memory://d/a.jsonl") == ["a"]
        data = open_data("memory://d")
        assert answers(data) == ["a", "b"]
        assert [part.name for part in data.parts] == ["memory:///d/a.jsonl", "memory:///d/e/b.jsonl.gz"]
        assert data.files == ()
        assert read("memory://d/*.jsonl") == ["a"]
        assert [len(list(data.iterate(n))) for n in range(3)] == [2, 1, 0]
        assert data.digest() == open_data("memory://d").digest()

    def test_may_hold_tables(self, memory: Any) -> None:
        table = io.BytesIO()
        pq.write_table(pa.Table.from_pylist([row("in parquet")]), table)
        stream = io.BytesIO()
        with pa.ipc.new_file(stream, pa.schema({"prompt": pa.string(), "response": pa.string()})) as writer:
            writer.write_table(pa.Table.from_pylist([row("in arrow")]))
        memory.pipe({"/a.parquet": table.getvalue(), "/b.arrow": stream.getvalue()})
        assert read(["memory://a.parquet", "memory://b.arrow"]) == ["in parquet", "in arrow"]

    def test_may_be_chained(self, memory: Any, tmp_path: Path) -> None:
        memory.pipe("/a.zip", zipped(tmp_path / "a.zip", x_DOT_jsonl=line("zipped")).read_bytes())
        assert read("zip://x.jsonl::memory://a.zip") == ["zipped"]
        with pytest.raises(InvalidData, match=r"name a file in it as in zip://rows\.jsonl::memory://a\.zip"):
            open_data("memory://a.zip")

    @pytest.mark.parametrize(
        ("address", "kind", "complaint"),
        [
            ("memory://none/a.jsonl", InvalidData, r"memory://none/a\.jsonl: cannot be read, it is not there or"),
            ("memory://none", InvalidData, "memory://none: its name does not say|holds no file"),
            ("nonsense://a.jsonl", InvalidData, "nonsense.*use s3://, hf://, https:// or another of fsspec's"),
            ("s3://bucket/a.jsonl", MissingExtra, "s3://bucket/a.jsonl needs s3fs; install it with pip install s3fs"),
            ("gs://bucket/a.jsonl", MissingExtra, "needs gcsfs; install it with pip install gcsfs"),
        ],
    )
    def test_of_no_use_is_one_sentence(
        self, address: str, kind: type[Exception], complaint: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for package in ("s3fs", "gcsfs"):
            monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(kind, match=complaint) as caught:
            open_data(address)
        assert "\n" not in str(caught.value)

    def test_that_breaks_off_ends_the_run(self, memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        memory.pipe("/a.jsonl", line("a") * 60_000)
        data = open_data("memory://a.jsonl")
        plain = fsspec.implementations.memory.MemoryFile.read

        def read(stream: Any, size: int = -1) -> bytes:
            if stream.tell() > 2**20:
                raise ConnectionResetError("reset by peer")
            return bytes(plain(stream, size))

        monkeypatch.setattr(fsspec.implementations.memory.MemoryFile, "read", read)
        with pytest.raises(InvalidData, match=r"memory://a.jsonl broke off: reset by peer; run the same command again"):
            list(data)


class _Piped:
    """Standard input that holds some bytes."""

    def __init__(self, content: bytes, terminal: bool = False) -> None:
        self.buffer, self.terminal = io.BytesIO(content), terminal

    def isatty(self) -> bool:
        return self.terminal


class TestStandardInput:
    @pytest.mark.parametrize(
        ("content", "name", "read_answers"),
        [
            (line("a") + line("b"), "stdin.jsonl", ["a", "b"]),
            (json.dumps([row("a"), row("b")], indent=1).encode(), "stdin.json", ["a", "b"]),
            (gzip.compress(line("a"), mtime=0), "stdin.json.gz", ["a"]),
        ],
    )
    def test_is_read_by_what_it_holds(
        self, content: bytes, name: str, read_answers: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "stdin", _Piped(content))
        data = open_data("-")
        assert answers(data) == answers(data) == read_answers
        assert [part.name for part in data.parts] == [name]
        monkeypatch.setattr(sys, "stdin", _Piped(content))
        assert open_data("-").digest() == data.digest(), "piped again, it is the same data"

    def test_may_be_a_table_or_an_archive(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        pq.write_table(pa.Table.from_pylist([row("in parquet")]), tmp_path / "a.parquet")
        monkeypatch.setattr(sys, "stdin", _Piped((tmp_path / "a.parquet").read_bytes()))
        assert read("-") == ["in parquet"]
        monkeypatch.setattr(sys, "stdin", _Piped(zipped(tmp_path / "a.zip", x_DOT_jsonl=line("zipped")).read_bytes()))
        assert read("-") == ["zipped"]

    @pytest.mark.parametrize(
        ("stdin", "complaint"),
        [
            (_Piped(b"", terminal=True), "Nothing is piped into standard input"),
            (_Piped(b" \n"), "Standard input is empty"),
            (_Piped(b"prompt,response\nP,R\n"), "write it to a file whose name says what it is, such as rows.csv"),
            (_Piped(line("a").decode().encode("utf-16")), "stdin.json: its text is UTF-16, not UTF-8"),
        ],
    )
    def test_of_no_use_is_one_sentence(self, stdin: _Piped, complaint: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stdin", stdin)
        with pytest.raises(InvalidData, match=complaint):
            open_data("-")


class TestText:
    @pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
    @pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt", "a.jsonl.gz"])
    def test_of_wide_characters_is_refused_by_its_name(self, encoding: str, name: str, tmp_path: Path) -> None:
        content = line("a").decode().encode(encoding)
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        word = encoding[:6]
        with pytest.raises(InvalidData, match=f"its text is {word.upper()}, not UTF-8; convert it: iconv -f {word}"):
            open_data(tmp_path / name)

    @pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
    def test_with_carriage_returns_alone_is_refused(self, name: str, tmp_path: Path) -> None:
        (tmp_path / name).write_bytes((line("a") + line("b")).replace(b"\n", b"\r"))
        with pytest.raises(InvalidData, match=r"carriage returns alone.*tr '\\r' '\\n' < OLD > NEW"):
            open_data(tmp_path / name)

    def test_with_carriage_returns_alone_is_read_where_they_are_no_rows(self, tmp_path: Path) -> None:
        (tmp_path / "a.json").write_bytes(json.dumps([row("a"), row("b")], indent=1).encode().replace(b"\n", b"\r"))
        (tmp_path / "b.csv").write_bytes(b"prompt,response\rP,c\rP,d\r")
        assert read(tmp_path) == ["a", "b", "c", "d"]

    def test_begins_with_a_mark_that_stays_in_the_row(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_bytes(codecs.BOM_UTF8 + line("a") + codecs.BOM_UTF8 + line("b"))
        rows = [one for one in open_data(tmp_path / "a.jsonl") if isinstance(one, Conversation)]
        assert [one.messages[-1]["content"] for one in rows] == ["a", "b"]
        assert [one.raw for one in rows] == [codecs.BOM_UTF8 + line(x).rstrip() for x in "ab"]
        assert [one.fields for one in rows] == [{}, {}]
        for name, content in (("a.json", json.dumps([row("a")]).encode()), ("a.csv", b"prompt,response\nP,a\n")):
            (tmp_path / name).write_bytes(codecs.BOM_UTF8 + content)
            assert read(tmp_path / name) == ["a"]


class TestARejectedRow:
    @pytest.mark.parametrize(
        ("name", "content", "raw"),
        [
            ("a.jsonl", line("a") + b'{"x": \xff}\r\n' + line("b"), [b'{"x": \xff}\r']),
            ("a.jsonl", line("a") + b"[1]\n", [b"[1]"]),
            ("a.jsonl", line("a") + b'{"prompt": "P"}', [b'{"prompt": "P"}']),
            ("a.json", json.dumps([row("a"), [1, "§"], row("b")]).encode(), [b'[1, "\\u00a7"]']),
            ("a.json", b"[" + line("a") + b', {"prompt": "\xff"}]', [b'"{\\"prompt\\": \\"\\udcff\\"}"']),
            ("a.json", b"[" + line("a") + b', {"prompt": "P", "response": ""}]', [{"prompt": "P", "response": ""}]),
            ("a.csv", b'prompt,response\nP,a\nP,"b\nc",d\n', [b'"P,\\"b\\nc\\",d\\n"']),
            ("a.csv", b'prompt,response\nP,a\nP,"never closed\nP,b\n', [b'"P,\\"never closed\\nP,b\\n"']),
            ("a.csv", b"prompt,response\nP,a\nP,\xff\r\n", [b'"P,\\udcff\\r\\n"']),
        ],
    )
    def test_keeps_what_it_holds(self, name: str, content: bytes, raw: list[Any], tmp_path: Path) -> None:
        (tmp_path / name).write_bytes(content)
        assert [one.raw for one in open_data(tmp_path / name) if isinstance(one, RejectedRow)] == raw

    def test_that_is_too_long_to_be_held_is_kept_by_its_place(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(formats, "ROW_LIMIT", 2**10)
        long = line("x" * 10_000)
        for name, content in (("a.jsonl", line("a") + long + line("b")), ("c.jsonl", line("c") + long.rstrip())):
            (tmp_path / name).write_bytes(content)
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
            for path in (tmp_path / name, tmp_path / f"{name}.gz"):
                (bad,) = (one for one in open_data(path) if isinstance(one, RejectedRow))
                assert isinstance(bad.raw, FileSpan)
                assert b"".join(bad.raw.blocks()) == long.rstrip()

    def test_in_a_list_that_breaks_is_all_that_follows(self, tmp_path: Path) -> None:
        head = codecs.BOM_UTF8 + b" [\r\n" + "".join(json.dumps(row(f"ä{n}")) + ",\r\n" for n in range(900)).encode()
        tail = b'{"prompt": oops},\n' + line("lost") + b"\xff]"
        (tmp_path / "a.json").write_bytes(head + tail)
        *_, last = open_data(tmp_path / "a.json")
        assert isinstance(last, RejectedRow)
        assert isinstance(last.raw, FileSpan)
        assert b"".join(last.raw.blocks()) == tail

    def test_of_a_table_keeps_its_place_in_it(self, tmp_path: Path) -> None:
        text = pa.array([b"good", b"bad\xff"]).cast(pa.binary()).view(pa.string())
        pq.write_table(pa.table({"prompt": ["a", "b"], "response": text}), tmp_path / "a.parquet")
        _, bad = open_data(tmp_path / "a.parquet")
        assert isinstance(bad, RejectedRow)
        assert isinstance(bad.raw, TableRow)
        assert dict(bad.raw) == {"prompt": "b", "response": "bad\udcff"}

    def test_repeats_nothing_of_it_when_shown(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_bytes(line("a") + b'{"prompt": "secret"}\n')
        _, bad = open_data(tmp_path / "a.jsonl")
        assert "secret" not in repr(bad)


class TestATable:
    def test_gives_values_that_json_has_not(self, tmp_path: Path) -> None:
        table = pa.table(
            {
                "prompt": ["P"],
                "response": ["R"],
                "blob": [b"\0\xff"],
                "price": [Decimal("1.50")],
                "day": [datetime.date(2025, 1, 2)],
                "far": pa.array([2**50], pa.timestamp("ms")),
            }
        )
        pq.write_table(table, tmp_path / "a.parquet")
        (one,) = open_data(tmp_path / "a.parquet")
        assert isinstance(one, Conversation)
        assert one.fields["blob"] == b"\0\xff"
        assert one.fields["price"] == Decimal("1.50")
        assert one.fields["day"] == datetime.date(2025, 1, 2)
        assert isinstance(one.fields["far"], str), "a time that Python has no value for loses no row"


class TestTrainingData:
    """What screening wrote is what training reads."""

    def test_may_be_an_empty_table_or_members_of_one_archive(self, tmp_path: Path) -> None:
        table = pa.Table.from_pylist([row("clean")])
        pq.write_table(table, tmp_path / "clean.parquet")
        pq.write_table(table.slice(0, 0), tmp_path / "flagged.parquet")
        archive = zipped(tmp_path / "a.zip", x_DOT_jsonl=line("x"), y_DOT_jsonl=line("y"))
        names = [str(tmp_path / name) for name in ("clean.parquet", "flagged.parquet")]
        config = TrainConfig(
            model="m",
            data=(*names, str(archive)),
            vaccine=VaccineSettings(steer=("v.safetensors=1",), only=tuple(names[1:])),
            out="o",
        )
        data, vaccinated = open_training_data(config)
        assert answers(data) == ["clean", "x", "y"]
        assert vaccinated == frozenset()
