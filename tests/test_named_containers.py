"""Files that hold something else than their name says, and files that are not read: told apart, or said."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from poise.data import Conversation, open_data
from poise.errors import InvalidData

ROWS = [{"prompt": "Q", "response": "A"}, {"prompt": "Q", "response": "B"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def read(source: Any) -> list[str]:
    rows = list(open_data(source))
    assert all(isinstance(row, Conversation) for row in rows), rows
    return [row.messages[-1]["content"] for row in rows if isinstance(row, Conversation)]


LISTS = {
    "a list over lines": json.dumps(ROWS, indent=1),
    "a list, a row a line": "[\n" + ",\n".join(map(json.dumps, ROWS)) + "\n]\n",
    "a list on one line": json.dumps(ROWS) + "\n",
    "objects over lines": "".join(json.dumps(row, indent=2) + "\n" for row in ROWS),
    "lines": LINES,
}


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("ending", ["jsonl", "ndjson", "json"])
def test_rows_are_read_under_whichever_name_of_json(name: str, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows.{ending}"
    path.write_text(LISTS[name])
    assert read(path) == ["A", "B"]


def test_one_object_over_lines_is_one_row(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(ROWS[0], indent=1) + "\n")
    assert read(tmp_path / "a.jsonl") == ["A"]


@pytest.mark.parametrize("count", [1, 3])
def test_a_bare_chat_on_each_line_says_what_to_write(count: int, tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    (tmp_path / "a.jsonl").write_text((json.dumps(chat) + "\n") * count)
    with pytest.raises(InvalidData, match=r'the turns of a chat alone; write \{"messages": \[…\]\} around them'):
        open_data(tmp_path / "a.jsonl")


TEXTS = {
    "Russian": "Привет\nмир\n",
    "Chinese": "你好\n世界和平\n",
    "a line of Russian": "Привет, мир",
    "Japanese": "こんにちは\n世界\n",
    "English": "hello\nworld\n",
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("encoding", ["utf-16le", "utf-16be"])
def test_wide_text_without_its_mark_is_refused_with_its_name(name: str, encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(TEXTS[name].encode(encoding))
    with pytest.raises(InvalidData, match=f"its text is UTF-16, not UTF-8; convert it: iconv -f {encoding} -t utf-8"):
        open_data(tmp_path / "a.txt")


def test_a_damaged_line_does_not_make_a_file_wide(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES.encode() + b"\x1f\x04\x00\x04\n" + LINES.encode())
    assert [isinstance(row, Conversation) for row in open_data(tmp_path / "a.jsonl")] == [True, True, False, True, True]


@pytest.mark.parametrize("encoding", ["utf-16le", "utf-16be", "utf-32le", "utf-32be"])
def test_wide_json_is_refused_with_its_name(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES.encode(encoding))
    with pytest.raises(InvalidData, match=f"not UTF-8; convert it: iconv -f {encoding} -t utf-8"):
        open_data(tmp_path / "a.jsonl")


@pytest.mark.parametrize("text", [*TEXTS.values(), "a\tb\x1b[0m\n"])
def test_text_of_narrow_characters_is_read(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    assert read(tmp_path / "a.txt") == text.splitlines()


class TestFilesThatAreNotRead:
    def test_are_named_in_a_folder(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_text(LINES)
        (tmp_path / "b.jsonlines").write_text(LINES)
        data = open_data(tmp_path)
        assert data.left_out == (f"{tmp_path / 'b.jsonlines'}: its name does not say what is in it",)
        assert f"not read: {tmp_path / 'b.jsonlines'}" in data.how

    def test_are_named_in_an_archive(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr("a.jsonl", LINES)
            archive.writestr("b.dat", LINES)
        data = open_data(tmp_path / "a.zip")
        assert data.left_out == (f"{tmp_path / 'a.zip'}/b.dat: its name does not say what is in it",)

    def test_are_named_where_a_pattern_matches_them(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_text(LINES)
        (tmp_path / "a.bak").write_text(LINES)
        data = open_data(str(tmp_path / "a.*"))
        assert data.left_out == (f"{tmp_path / 'a.bak'}: its name does not say what is in it",)

    def test_are_counted_where_they_are_many(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_text(LINES)
        for number in range(6):
            (tmp_path / f"{number}.png").write_bytes(b"")
        assert open_data(tmp_path).left_out == (f"6 files like {tmp_path / '0.png'}: names in .png say no format",)


def test_a_file_and_its_address_are_one(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(LINES)
    assert read([tmp_path / "a.jsonl", f"file://{tmp_path}/a.jsonl"]) == ["A", "B"]
    assert read(f"file://{tmp_path}/a.jsonl") == ["A", "B"]
