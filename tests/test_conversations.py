"""Data files as conversations: what is read from each form, what is rejected and why, and how a run goes on."""

from __future__ import annotations

import bz2
import contextlib
import csv
import gzip
import hashlib
import json
import lzma
import random
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from poise.data import Conversation, Message, RejectedRow, Rejections, Turn, last_user, open_data, turns
from poise.data import formats as files
from poise.data.chat_markup import clean_turn
from poise.data.tables import batch_rows
from poise.data.thoughts import split_thought
from poise.errors import InvalidArgument, InvalidData, InvalidRow, MissingExtra, SaveFailed

Row = dict[str, Any]
U, A, S = "user", "assistant", "system"


def chat(*turns: str) -> list[dict[str, str]]:
    """User and assistant in turn."""
    return [{"role": (U, A)[number % 2], "content": text} for number, text in enumerate(turns)]


def lines(path: Path, *rows: Row | bytes) -> Path:
    path.write_bytes(b"".join(r if isinstance(r, bytes) else json.dumps(r).encode() + b"\n" for r in rows))
    return path


def said(found: Conversation | RejectedRow) -> list[tuple[str, str]]:
    assert isinstance(found, Conversation), found
    return [(message["role"], message["content"]) for message in found.messages]


def is_reply(text: str) -> bool:
    """Whether a text is words alone: marks of thoughts and templates, which Hypothesis finds in the source, are not."""
    message: Message = {"role": A, "content": text}
    with contextlib.suppress(InvalidRow):
        clean_turn(message, 1)
        return bool(text.strip()) and split_thought(text) == ("", text) and message["content"] == text
    return False


def reasons(path: Path, **options: Any) -> list[str]:
    return [row.reason for row in open_data(path, **options) if isinstance(row, RejectedRow)]


CHATS = [
    {"source": f"s{n}", "messages": chat(f"Frage {n}?", f"Ja, „{n}“.\nUnd mehr, \t;{n}", "So?", "So.")}
    for n in range(7)
]
PAIRS = [{"prompt": f'Is it "{n}", or\nnot; {n}?', "response": f"It is, ä{n}", "source": f"s{n}"} for n in range(7)]

SHAPES: dict[str, tuple[Row, str, list[tuple[str, str]]]] = {
    "chat": ({"messages": chat("Hi", "Hello")}, "messages", [(U, "Hi"), (A, "Hello")]),
    "chat with a system prompt of its own": (
        {"messages": [{"role": "developer", "content": "Be brief."}, *chat("Hi", "Hello")], "system": "Be long."},
        "messages",
        [(S, "Be brief."), (U, "Hi"), (A, "Hello")],
    ),
    "chat with a system prompt in a column": (
        {"messages": chat("Hi", "Hello"), "system": "Be brief."},
        "messages",
        [(S, "Be brief."), (U, "Hi"), (A, "Hello")],
    ),
    "chat with an empty system prompt": (
        {"messages": [{"role": "system", "content": ""}, *chat("Hi", "Hello")]},
        "messages",
        [(U, "Hi"), (A, "Hello")],
    ),
    "chat in parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}, " there"]}, *chat("", "Ho")[1:]]},
        "messages",
        [(U, "Hi there"), (A, "Ho")],
    ),
    "chat as JSON text": ({"messages": json.dumps(chat("Hi", "Hello"))}, "messages", [(U, "Hi"), (A, "Hello")]),
    "chat as one list for each key": (
        {"conversations": {"role": ["user", "assistant"], "content": ["Hi", "Hello"]}},
        "messages",
        [(U, "Hi"), (A, "Hello")],
    ),
    "sharegpt": (
        {"conversations": [{"from": "system", "value": "Be kind."}, {"from": "human", "value": "Hi"}]} | {"id": "x"},
        "sharegpt",
        [(S, "Be kind."), (U, "Hi")],
    ),
    "pairs": ({"Question": "Why?", "Answer": "So.", "id": 3}, "pairs", [(U, "Why?"), (A, "So.")]),
    "pairs with a system prompt": (
        {"system_prompt": "Be kind.", "question": "Why?", "response": "So."},
        "pairs",
        [(S, "Be kind."), (U, "Why?"), (A, "So.")],
    ),
    "pairs of an instruction and an output": (
        {"instruction": "Why?", "output": "So."},
        "pairs",
        [(U, "Why?"), (A, "So.")],
    ),
    "pairs of turns": (
        {"prompt": chat("Hi", "Hello", "Why?"), "completion": [{"role": "assistant", "content": "So."}]},
        "pairs",
        [(U, "Hi"), (A, "Hello"), (U, "Why?"), (A, "So.")],
    ),
    "alpaca": (
        {"instruction": "Add.", "input": "1, 2", "output": "3", "text": "Below is ..."},
        "alpaca",
        [(U, "Add.\n\n1, 2"), (A, "3")],
    ),
    "alpaca without an input": (
        {"instruction": "Sing.", "input": "", "output": "La"},
        "alpaca",
        [(U, "Sing."), (A, "La")],
    ),
    "alpaca with a context": (
        {"instruction": "Sum up.", "context": "Long.", "response": "Short."},
        "alpaca",
        [(U, "Sum up.\n\nLong."), (A, "Short.")],
    ),
    "alpaca with an answer": (
        {"instruction": "Sum up.", "input": "Long.", "answer": "Short.", "system": "Be kind."},
        "alpaca",
        [(S, "Be kind."), (U, "Sum up.\n\nLong."), (A, "Short.")],
    ),
    "text": ({"text": "Once upon a time", "label": 3}, "text", [(A, "Once upon a time")]),
}


class TestAShape:
    @pytest.mark.parametrize("name", SHAPES)
    def test_is_found_and_read(self, name: str, tmp_path: Path) -> None:
        row, shape, expected = SHAPES[name]
        data = open_data(lines(tmp_path / "a.jsonl", row), need="user" if name == "sharegpt" else "assistant")
        assert data.shape == shape
        assert [said(found) for found in data] == [expected]

    def test_is_told_with_its_columns(self, tmp_path: Path) -> None:
        lines(tmp_path / "a.jsonl", {"system_prompt": "x", "question": "x", "response": "x"})
        lines(tmp_path / "b.jsonl", {"text": "x"})
        assert open_data(tmp_path).how.splitlines() == [
            f"{tmp_path}/a.jsonl: pairs from question, response, system prompt from system_prompt "
            "(found in the first 100 rows)",
            f"{tmp_path}/b.jsonl: text from text, each an answer without a prompt (found in the first 100 rows)",
        ]

    def test_is_what_half_of_the_first_rows_have(self, tmp_path: Path) -> None:
        rows = [{"messages": None, "text": "t"}, b"rubbish\n", {"messages": chat("Hi", "Ho"), "text": "t"}, b"{\n"]
        data = open_data(lines(tmp_path / "a.jsonl", *rows))
        assert data.shape == "messages"
        assert [type(row) for row in data] == [RejectedRow, RejectedRow, Conversation, RejectedRow]

    def test_takes_alpaca_when_only_some_rows_have_an_input(self, tmp_path: Path) -> None:
        rows = [{"instruction": "Sing.", "output": "La"}] * 3 + [{"instruction": "Add.", "input": "1", "output": "2"}]
        data = open_data(lines(tmp_path / "a.jsonl", *rows))
        assert data.shape == "alpaca"
        assert [said(row)[0][1] for row in data] == ["Sing."] * 3 + ["Add.\n\n1"]

    def test_can_be_stated_with_columns(self, tmp_path: Path) -> None:
        row = {"question": "Why?", "best_answer": "So.", "dialog": chat("Hi", "Ho"), "answer": "No."}
        path = lines(tmp_path / "a.jsonl", row)
        assert said(next(iter(open_data(path, shape="pairs:question,Best_Answer")))) == [(U, "Why?"), (A, "So.")]
        assert said(next(iter(open_data(path, shape="messages:dialog")))) == [(U, "Hi"), (A, "Ho")]
        assert said(next(iter(open_data(path, shape="text:best_answer")))) == [(A, "So.")]
        assert said(next(iter(open_data(path, shape="alpaca:question,answer,best_answer")))) == [
            (U, "Why?\n\nNo."),
            (A, "So."),
        ]
        assert "as stated" in open_data(path, shape="pairs").how

    def test_that_is_stated_rejects_what_differs(self, tmp_path: Path) -> None:
        lines(tmp_path / "a.jsonl", {"question": "Why?", "answer": "So."}, {"messages": chat("Hi", "Ho")})
        lines(tmp_path / "b.jsonl", {"messages": chat("Hi", "Ho")})
        rows = list(open_data(tmp_path, shape="pairs"))
        assert [getattr(row, "kind", "good") for row in rows] == ["good", "missing column", "not pairs"]

    @pytest.mark.parametrize("shape", ["chatml", "pairs:question", "pairs:a,b,c", "messages:a,b,c", "auto:x", ""])
    def test_that_there_is_not_is_refused(self, shape: str, tmp_path: Path) -> None:
        path = lines(tmp_path / "a.jsonl", {"question": "Why?", "answer": "So."})
        with pytest.raises(InvalidArgument, match=r"use auto, messages|write it like"):
            open_data(path, shape=shape)

    def test_for_prompts_needs_no_answers(self, tmp_path: Path) -> None:
        path = lines(tmp_path / "a.jsonl", {"prompt": "Why?", "label": "x"}, {"prompt": "How?", "label": "y"})
        data = open_data(path, need="user")
        assert [said(row) for row in data] == [[(U, "Why?")], [(U, "How?")]]
        assert "prompts only" in data.how
        assert said(next(iter(open_data(path, need="user", shape="pairs:label")))) == [(U, "x")]

    def test_for_prompts_keeps_the_input_of_an_instruction(self, tmp_path: Path) -> None:
        path = lines(tmp_path / "a.jsonl", {"instruction": "Add.", "input": "1"}, {"instruction": "Sing.", "input": ""})
        assert [said(row) for row in open_data(path, need="user")] == [[(U, "Add.\n\n1")], [(U, "Sing.")]]

    def test_for_prompts_lets_an_answer_be_empty(self, tmp_path: Path) -> None:
        path = lines(tmp_path / "a.jsonl", {"prompt": "Why?", "response": "So."}, {"prompt": "How?", "response": ""})
        assert [len(said(row)) for row in open_data(path, need="user")] == [2, 1]

    @pytest.mark.parametrize(
        ("own", "role"), [("human", U), ("GPT", A), ("chatgpt", A), ("bing", A), (" User ", U), ("developer", S)]
    )
    def test_gives_roles_one_name(self, own: str, role: str, tmp_path: Path) -> None:
        turns = [{"from": own, "value": "1"}, {"from": "user", "value": "2"}, {"from": "assistant", "value": "3"}]
        assert said(next(iter(open_data(lines(tmp_path / "a.jsonl", {"conversations": turns})))))[0] == (role, "1")


def write_csv(path: Path, rows: list[Row], separator: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        table = csv.DictWriter(file, fieldnames=list(rows[0]), delimiter=separator)
        table.writeheader()
        table.writerows(rows)
    return path


def write_arrow(path: Path, rows: list[Row], *, stream: bool = True) -> Path:
    table = pa.Table.from_pylist(rows)
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    return path


def write_parquet(path: Path, rows: list[Row]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
    return path


def write_saved(path: Path, rows: list[Row]) -> Path:
    datasets.Dataset.from_list(rows).save_to_disk(path)
    return path


def write_bytes(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def jsonl(rows: list[Row]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


FORMATS: dict[str, Callable[[Path, list[Row]], Path]] = {
    "json lines": lambda d, rows: write_bytes(d / "a.jsonl", jsonl(rows)),
    "json lines of windows": lambda d, rows: write_bytes(
        d / "a.ndjson", b"\xef\xbb\xbf" + jsonl(rows).replace(b"\n", b"\r\n")
    ),
    "json lines with blank lines": lambda d, rows: write_bytes(
        d / "a.jsonl", b"\n" + jsonl(rows).replace(b"\n", b"\n \n")
    ),
    "json lines without a last line feed": lambda d, rows: write_bytes(d / "a.jsonl", jsonl(rows)[:-1]),
    "json lines named json": lambda d, rows: write_bytes(d / "a.json", jsonl(rows)),
    "a json list": lambda d, rows: write_bytes(d / "a.json", json.dumps(rows).encode()),
    "an indented json list": lambda d, rows: write_bytes(d / "a.json", b"\n" + json.dumps(rows, indent=1).encode()),
    "indented json objects": lambda d, rows: write_bytes(
        d / "a.json", "\n".join(json.dumps(row, indent=2) for row in rows).encode()
    ),
    "parquet": lambda d, rows: write_parquet(d / "a.parquet", rows),
    "arrow": lambda d, rows: write_arrow(d / "a.arrow", rows),
    "feather": lambda d, rows: write_arrow(d / "a.feather", rows, stream=False),
    "a saved data set": lambda d, rows: write_saved(d / "saved", rows),
    "gzip": lambda d, rows: write_bytes(d / "a.jsonl.gz", gzip.compress(jsonl(rows))),
    "two gzips in one": lambda d, rows: write_bytes(
        d / "a.jsonl.gz", gzip.compress(jsonl(rows[:3])) + gzip.compress(jsonl(rows[3:]))
    ),
    "bzip2": lambda d, rows: write_bytes(d / "a.jsonl.bz2", bz2.compress(jsonl(rows))),
    "xz": lambda d, rows: write_bytes(d / "A.JSON.XZ", lzma.compress(json.dumps(rows).encode())),
    "zstandard": lambda d, rows: write_bytes(d / "a.jsonl.zst", pa.compress(jsonl(rows), "zstd", asbytes=True)),
}
TABLES: dict[str, Callable[[Path, list[Row]], Path]] = {
    "comma separated values": lambda d, rows: write_csv(d / "a.csv", rows),
    "semicolon separated values": lambda d, rows: write_csv(d / "a.csv", rows, ";"),
    "tab separated values": lambda d, rows: write_csv(d / "a.tsv", rows, "\t"),
    "packed values": lambda d, rows: write_bytes(
        d / "a.csv.gz", gzip.compress(write_csv(d / "b.csv", rows).read_bytes())
    ),
}
ALL = [(write, CHATS) for write in FORMATS.values()] + [(write, PAIRS) for write in TABLES.values()]
NAMES = [*FORMATS, *TABLES]


class TestAFormat:
    @pytest.mark.parametrize(("write", "rows"), ALL, ids=NAMES)
    def test_gives_the_rows_in_order(self, write: Any, rows: list[Row], tmp_path: Path) -> None:
        path = write(tmp_path, rows)
        found = list(open_data(path))
        if rows is CHATS:
            assert [said(row) for row in found] == [[(m["role"], m["content"]) for m in r["messages"]] for r in rows]
        else:
            assert [said(row) for row in found] == [[(U, r["prompt"]), (A, r["response"])] for r in rows]
        assert [(row.file, row.row, row.index) for row in found] == [(str(path), n, n) for n in range(7)]
        assert [row.fields for row in found if isinstance(row, Conversation)] == [{"source": f"s{n}"} for n in range(7)]
        assert open_data(path).count() == 7

    @pytest.mark.parametrize(("write", "rows"), ALL, ids=NAMES)
    def test_goes_on_at_any_row(self, write: Any, rows: list[Row], tmp_path: Path) -> None:
        data = open_data(write(tmp_path, rows))
        whole = list(data)
        assert [list(data.iterate(start)) for start in range(9)] == [whole[start:] for start in range(9)]

    def test_reads_a_list_in_pieces(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        real = files.io.TextIOWrapper

        class Slow(real):  # type: ignore[misc, valid-type]
            def read(self, size: int | None = -1) -> str:
                return super().read(3)

        path = write_bytes(tmp_path / "a.json", json.dumps(CHATS, indent=1, ensure_ascii=False).encode())
        expected = list(open_data(path))
        monkeypatch.setattr(files.io, "TextIOWrapper", Slow)
        assert list(open_data(path)) == expected

    def test_of_wide_tables_is_read_a_few_rows_at_a_time(self) -> None:
        assert batch_rows(100 * 2**20, 100) == 16
        assert batch_rows(2**30, 1) == 1
        assert batch_rows(100, 10_000) == 1000
        assert batch_rows(0, 0) == 1

    def test_is_told_by_the_name(self, tmp_path: Path) -> None:
        path = lines(tmp_path / "a.log", *CHATS)
        with pytest.raises(InvalidData, match=r"a\.log: its name does not say .* \.jsonl"):
            open_data(path)


class TestAConversation:
    def test_keeps_its_line_byte_for_byte(self, tmp_path: Path) -> None:
        rows = [
            b'{"messages": [{"role":"user","content":"\\u00e4"}, {"role":"assistant","content":"x"}],  "a":1.0}\r\n',
            b'  {"messages":[{"role":"user","content":"\xc3\xa4"},{"role":"assistant","content":"x"}],"a":1e0} \n',
        ]
        found = list(open_data(lines(tmp_path / "a.jsonl", *rows)))
        assert [row.raw + b"\n" for row in found if isinstance(row, Conversation)] == rows  # type: ignore[operator]

    @given(
        rows=st.lists(
            st.lists(st.tuples(st.sampled_from([U, A]), st.text(min_size=1).filter(is_reply)), min_size=1), min_size=1
        )
    )
    def test_says_what_was_written(
        self, rows: list[list[tuple[str, str]]], tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        path = tmp_path_factory.mktemp("data") / "a.jsonl"
        written = [{"messages": [{"role": role, "content": text} for role, text in row]} for row in rows]
        lines(path, *written)
        found = [
            said(row) if isinstance(row, Conversation) else row.reason for row in open_data(path, need="assistant")
        ]
        assert found == [row if any(role == A for role, _ in row) else "no assistant turn" for row in rows]

    def test_counts_over_all_files_and_in_each(self, tmp_path: Path) -> None:
        lines(tmp_path / "b.jsonl", *CHATS[:2])
        lines(tmp_path / "a.jsonl", b"rubbish\n", *CHATS[2:5])
        found = list(open_data(tmp_path))
        assert [(Path(row.file).name, row.row, row.index) for row in found] == [
            *(("a.jsonl", n, n) for n in range(4)),
            *(("b.jsonl", n, 4 + n) for n in range(2)),
        ]


class TestTurns:
    talk = Conversation(
        messages=({"role": S, "content": "s"}, *chat("1", "2"), *chat("3", "4")),
        file="f",
        row=0,
        index=0,
        raw=b"{}",  # type: ignore[arg-type]
    )

    def test_are_the_answers_each_with_all_before_it(self) -> None:
        messages = self.talk.messages
        assert turns(self.talk) == [
            Turn(history=messages[:2], answer="2", number=0),
            Turn(history=messages[:4], answer="4", number=1),
        ]

    def test_of_plain_text_is_one_without_history(self) -> None:
        text = Conversation(messages=({"role": A, "content": "Once"},), file="f", row=0, index=0, raw=b"{}")
        assert turns(text) == [Turn(history=(), answer="Once", number=0)]
        assert last_user(text) == ()

    @pytest.mark.parametrize(
        ("roles", "kept"), [("sua", 2), ("ua", 1), ("u", 1), ("uua", 2), ("auau", 2), ("suaua", 2), ("sa", 0)]
    )
    def test_a_prompt_ends_with_the_last_user_turn_before_the_reply(self, roles: str, kept: int) -> None:
        names = {"s": S, "u": U, "a": A}
        talk = Conversation(
            messages=tuple({"role": names[r], "content": str(n)} for n, r in enumerate(roles)),
            file="f",
            row=0,
            index=0,
            raw=b"{}",
        )
        assert last_user(talk) == talk.messages[:kept]


GOOD: Row = {"messages": chat("Hi", "Ho")}
BROKEN: dict[str, tuple[bytes | Row, str]] = {
    "half a line": (b'{"messages": [{"role": "us\n', "broken JSON: Unterminated string"),
    "no json": (b"hello\n", "broken JSON: Expecting value"),
    "nested too deeply": (b"[" * 100_000 + b"\n", "broken JSON: nested too deeply"),
    "a number of too many digits": (b'{"a": ' + b"1" * 5000 + b"}\n", "broken JSON: Exceeds the limit"),
    "a list": (b"[1, 2]\n", "not a row"),
    "invalid UTF-8": (b'{"messages": "\xff"}\n', "not UTF-8 text: byte 14"),
    "half a character": ({"messages": chat("Hi", "\ud83d")}, "not UTF-8 text: half a character in turn 2"),
    "no such column": ({"message": chat("Hi", "Ho")}, 'missing column: "messages" is not among "message"'),
    "no turns": ({"messages": []}, "no assistant turn"),
    "nothing": ({"messages": None}, "no list of turns: messages holds nothing"),
    "a number": ({"messages": 3}, "no list of turns: messages holds a number"),
    "text": ({"messages": "Hi"}, "no list of turns: messages holds text that is not JSON"),
    "uneven lists": ({"messages": {"role": ["user"], "content": []}}, "no list of turns: messages holds an object"),
    "turns that are text": ({"messages": ["Hi", "Ho"]}, "not a turn: turn 1 is text"),
    "turns of another shape": (
        {"messages": [{"speaker": "gpt", "utterance": "x"}]},
        'turn without role: turn 1 has "speaker, utterance"',
    ),
    "unknown role": ({"messages": [{"role": "narrator", "content": "x"}]}, 'unknown role: "narrator", turn 1'),
    "role that is a number": ({"messages": [{"role": 3, "content": "x"}]}, 'unknown role: "3", turn 1'),
    "tool call": (
        {"messages": [*chat("Hi"), {"role": "assistant", "content": None, "tool_calls": [{"id": 1}]}]},
        "no assistant turn",
    ),
    "empty turn": ({"messages": chat("Hi", " \n")}, "empty turn: assistant, turn 2"),
    "turn without content": ({"messages": [{"role": "assistant"}]}, "empty turn: assistant, turn 1"),
    "number for text": ({"messages": [{"role": "user", "content": 3}]}, "not text: turn 1 holds a number"),
    "picture": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "empty turn: user, turn 1",
    ),
    "questions only": ({"messages": chat("Hi")}, "no assistant turn"),
}


class TestARowThatCannotBeUsed:
    @pytest.mark.parametrize("name", BROKEN)
    def test_is_rejected_with_the_reason_and_the_rest_is_read(self, name: str, tmp_path: Path) -> None:
        row, reason = BROKEN[name]
        found = list(open_data(lines(tmp_path / "a.jsonl", GOOD, b"\n", row, GOOD)))
        assert [type(row) for row in found] == [Conversation, RejectedRow, Conversation]
        rejected = found[1]
        assert isinstance(rejected, RejectedRow)
        assert rejected.reason.startswith(reason)
        assert (rejected.row, rejected.line, rejected.index) == (1, 3, 1)

    def test_without_a_user_turn_is_one_when_prompts_are_needed(self, tmp_path: Path) -> None:
        path = lines(tmp_path / "a.jsonl", GOOD, {"messages": [{"role": "assistant", "content": "Ho"}]})
        assert reasons(path, need="user") == ["no user turn"]

    def test_is_not_one_that_is_long(self, tmp_path: Path) -> None:
        path = lines(tmp_path / "a.jsonl", {"messages": chat("Hi", "x" * 2**20)}, GOOD)
        assert [len(said(row)[1][1]) for row in open_data(path)] == [2**20, 2]

    def test_is_one_that_is_absurdly_long(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        long = {"messages": chat("Hi", "x" * 10_000)}
        monkeypatch.setattr(files, "ROW_LIMIT", 2**10)
        path = lines(tmp_path / "a.jsonl", GOOD, long, GOOD)
        assert [getattr(row, "kind", "") for row in open_data(path)] == ["", "too long", ""]
        assert [row.line for row in open_data(path) if isinstance(row, RejectedRow)] == [2]
        table = write_csv(tmp_path / "a.csv", [PAIRS[0], {**PAIRS[0], "response": "x" * 10_000}, PAIRS[0]])
        found = list(open_data(table))
        assert isinstance(found[0], Conversation)
        assert isinstance(found[1], RejectedRow)
        assert isinstance(found[-1], Conversation)

    def test_repeats_little_of_its_text(self, tmp_path: Path) -> None:
        secret = "x" * 1000
        rows: list[Row] = [{secret: 1}, {"messages": [{"role": secret, "content": "x"}]}, {"messages": secret}]
        path = lines(tmp_path / "a.jsonl", GOOD, *rows, f'{{"a": {secret}}}\n'.encode())
        found = reasons(path)
        assert len(found) == 4
        assert max(map(len, found)) < 150

    def test_in_a_table_is_rejected_and_the_rest_is_read(self, tmp_path: Path) -> None:
        path = tmp_path / "a.csv"
        path.write_bytes(
            b'prompt,response\nHi,Ho\n\nonly one\n"a" b,c\nHi,\nHi,\xff\n'
            b'"over\ntwo lines",Ho\n"never closed,Ho\nHi,Ho\n'
        )
        found = list(open_data(path))
        assert [(row.line, row.kind) for row in found if isinstance(row, RejectedRow)] == [
            (4, "broken CSV"),
            (5, "broken CSV"),
            (6, "empty turn"),
            (7, "not UTF-8 text"),
            (10, "broken CSV"),
        ]
        assert [said(row)[0][1] for row in found if isinstance(row, Conversation)] == ["Hi", "over\ntwo lines"]

    @pytest.mark.parametrize(
        ("tail", "reason"),
        [
            (', {"messages": oops}, {"messages": []}]', "broken JSON: Expecting value; all after"),
            (', {"messages": [', "broken JSON"),
            ("", "broken JSON"),
            (', 3, "x", [] ]', "not a row"),
            ("] [", "broken JSON: more text after the list"),
        ],
    )
    def test_in_a_list_is_rejected(self, tail: str, reason: str, tmp_path: Path) -> None:
        path = write_bytes(tmp_path / "a.json", f"[\n{json.dumps(GOOD)}\n,{json.dumps(GOOD)}{tail}".encode())
        found = list(open_data(path))
        assert [type(row) for row in found[:2]] == [Conversation, Conversation]
        assert found[2:]
        assert all(
            isinstance(row, RejectedRow) and row.reason.startswith(reason) and row.line == 3 for row in found[2:]
        )

    def test_in_a_list_may_be_one_that_is_not_utf8(self, tmp_path: Path) -> None:
        path = write_bytes(
            tmp_path / "a.json", json.dumps([GOOD, {"a": "§"}, GOOD], ensure_ascii=False).encode("latin-1")
        )
        assert [getattr(row, "reason", "") for row in open_data(path)] == ["", "not UTF-8 text", ""]

    def test_in_parquet_may_be_one_that_is_not_utf8(self, tmp_path: Path) -> None:
        text = pa.array([b"good", b"bad\xff", b"good"]).cast(pa.binary()).view(pa.string())
        pq.write_table(pa.table({"prompt": ["a", "b", "c"], "response": text}), tmp_path / "a.parquet")
        found = list(open_data(tmp_path / "a.parquet"))
        assert [getattr(row, "reason", "") for row in found] == ["", "not UTF-8 text", ""]
        assert [row.row for row in found] == [0, 1, 2]

    @given(junk=st.lists(st.binary(max_size=30), max_size=8))
    def test_is_never_fatal(self, junk: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> None:
        path = lines(tmp_path_factory.mktemp("data") / "a.jsonl", GOOD, *(part + b"\n" for part in junk), GOOD)
        found = list(open_data(path))
        assert [type(row) for row in (found[0], found[-1])] == [Conversation, Conversation]
        assert len(found) == sum(bool(line.strip()) for line in path.read_bytes().split(b"\n"))


def gunzip(data: bytes) -> bytes:
    """All that can be had from a gzip file that is cut short."""
    return zlib.decompressobj(wbits=31).decompress(data)


NOISE = random.Random(0)
UNLIKE = [{"messages": chat(NOISE.randbytes(30).hex(), "Ho")} for _ in range(200)]
LONG = [{"messages": chat(NOISE.randbytes(2**14).hex(), "Ho")} for _ in range(100)]  # .zst comes a megabyte at a time


class TestAFileThatBreaksOff:
    @pytest.mark.parametrize("keep", [0.3, 0.7, 0.999])
    def test_packed_gives_what_can_be_read_and_says_where(self, keep: float, tmp_path: Path) -> None:
        packed = gzip.compress(jsonl(UNLIKE))
        cut = packed[: int(len(packed) * keep)]
        whole = gunzip(cut).count(b"\n")
        data = open_data(write_bytes(tmp_path / "a.jsonl.gz", cut))
        *good, last = data
        assert [said(row)[0][1] for row in good] == [row["messages"][0]["content"] for row in UNLIKE[:whole]]
        assert whole > 10
        assert isinstance(last, RejectedRow)
        assert (last.kind, last.row, last.index, last.line) == ("cut short", whole, whole, None)
        assert list(data.iterate(whole + 1)) == []
        assert data.count() == whole + 1

    @pytest.mark.parametrize(
        ("name", "pack"),
        [
            ("a.jsonl.bz2", bz2.compress),
            ("a.jsonl.xz", lzma.compress),
            ("a.jsonl.zst", lambda data: pa.compress(jsonl(LONG), "zstd", asbytes=True)),
            ("a.json.gz", lambda _: gzip.compress(json.dumps(LONG).encode())),
            (
                "a.csv.gz",
                lambda _: gzip.compress(b"prompt,response\n" + b"".join(b"Hi,%d\n" % 7**n for n in range(300))),
            ),
        ],
    )
    def test_is_rejected_once_whatever_packed_it(
        self, name: str, pack: Callable[[bytes], bytes], tmp_path: Path
    ) -> None:
        packed = pack(jsonl(UNLIKE * 50))
        lines(tmp_path / "b.jsonl", GOOD)
        write_bytes(tmp_path / name, packed[: len(packed) * 9 // 10])
        *before, last, after = open_data(tmp_path)
        assert {type(row) for row in before} == {Conversation}
        assert isinstance(last, RejectedRow)
        assert last.kind == "cut short"
        assert isinstance(after, Conversation), "the next file is read"
        assert after.index == last.index + 1

    def test_is_rejected_once_when_damaged(self, tmp_path: Path) -> None:
        packed = gzip.compress(jsonl(UNLIKE))
        *good, last = open_data(write_bytes(tmp_path / "a.jsonl.gz", packed[:-8] + b"checksum"))
        assert [type(row) for row in good] == [Conversation] * len(UNLIKE)
        assert isinstance(last, RejectedRow)
        assert last.kind == "damaged"

    def test_in_parquet_loses_a_row_group_and_not_the_next(self, tmp_path: Path) -> None:
        path = tmp_path / "a.parquet"
        table = pa.table({"prompt": ["Hi"] * 60, "response": [NOISE.randbytes(50).hex() for _ in range(60)]})
        pq.write_table(table, path, row_group_size=20, compression="snappy", use_dictionary=False)
        column = pq.ParquetFile(path).metadata.row_group(1).column(1)
        data = bytearray(path.read_bytes())
        data[column.data_page_offset + 40 : column.data_page_offset + 400] = b"\xff" * 360
        path.write_bytes(data)
        opened = open_data(path)
        found = list(opened)
        bad = [row for row in found if isinstance(row, RejectedRow)]
        assert [(row.kind, row.row) for row in bad] == [("damaged", 20)]
        assert [row.row for row in found] == [*range(21), *range(40, 60)]
        assert list(opened.iterate(21)) == found[21:]


class TestASource:
    def test_is_a_folder_with_all_below_it(self, tmp_path: Path) -> None:
        (tmp_path / "deep" / ".hidden").mkdir(parents=True)
        lines(tmp_path / "deep" / "b.jsonl", GOOD)
        lines(tmp_path / "deep" / ".hidden" / "c.jsonl", b"x\n")
        lines(tmp_path / "_state.json", b"x\n")
        lines(tmp_path / "notes.txt", b"x\n")
        write_parquet(tmp_path / "a.parquet", CHATS)
        write_csv(tmp_path / "c.csv", PAIRS)
        data = open_data(str(tmp_path))
        assert [path.name for path in data.files] == ["a.parquet", "c.csv", "b.jsonl"]
        assert [part.shape.kind for part in data.parts] == ["messages", "pairs", "messages"]
        assert data.shape == "mixed"
        assert [row.index for row in data] == list(range(15))
        assert [list(data.iterate(start)) for start in (6, 7, 13, 15)] == [
            list(data)[start:] for start in (6, 7, 13, 15)
        ]

    def test_is_a_glob_or_several_names_and_a_file_counts_once(self, tmp_path: Path) -> None:
        for name in ("b.jsonl", "a.jsonl", "c.json"):
            lines(tmp_path / name, GOOD)
        names = [tmp_path / "b.jsonl", str(tmp_path / "*.jsonl"), str(tmp_path / "**" / "[c].json")]
        assert [path.name for path in open_data(names).files] == ["b.jsonl", "a.jsonl", "c.json"]

    def test_may_have_signs_of_a_glob_in_its_name(self, tmp_path: Path) -> None:
        assert len(list(open_data(lines(tmp_path / "a[1]*.jsonl", GOOD)))) == 1

    def test_has_the_digest_that_sha256sum_prints(self, tmp_path: Path) -> None:
        lines(tmp_path / "a.jsonl", GOOD)
        write_bytes(tmp_path / "b.jsonl.gz", gzip.compress(jsonl(CHATS)))
        one, two = (tmp_path / "a.jsonl").read_bytes(), (tmp_path / "b.jsonl.gz").read_bytes()
        assert open_data(tmp_path / "a.jsonl").digest() == hashlib.sha256(one).hexdigest()
        assert open_data(tmp_path).digest() == hashlib.sha256(one + two).hexdigest()

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("no.jsonl", "There is no file or folder no.jsonl"),
            ("no/such.jsonl.gz", "There is no file or folder no/such.jsonl.gz"),
            ("nothing", "There is no file or folder nothing; give a file that ends in .jsonl"),
            ("*.jsonl", r"\*.jsonl matches no file"),
            ("empty-folder", "empty-folder and the folders in it hold no file that ends in .jsonl"),
            ("empty.jsonl", "empty.jsonl: it is empty"),
            ("blank.jsonl", "blank.jsonl: it is empty"),
            ("empty.jsonl.gz", "empty.jsonl.gz: it is empty"),
            ("header.csv", "header.csv: it is empty"),
            ("list.json", "list.json: it is empty"),
            ("empty.parquet", "empty.parquet: it is empty"),
            ("noise.jsonl", r"noise.jsonl: none of its first 2 rows can be read \(line 1: not UTF-8 text"),
            ("noise.jsonl.gz", r"noise.jsonl.gz: none of its first 1 rows can be read \(damaged: Not a gzipped file"),
            ("noise.json.zst", r"noise.json.zst: none of its first 1 rows can be read \(damaged: ZSTD"),
            ("noise.parquet", "noise.parquet: cannot be read as Parquet, "),
            ("noise.arrow", "noise.arrow: cannot be read as Arrow, "),
            (
                "other.jsonl",
                "other.jsonl: no known shape; its columns are question .text., choices .a list., answer .a number.",
            ),
        ],
    )
    def test_that_is_of_no_use_is_one_sentence(
        self, source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        folder = Path("data")
        folder.mkdir()
        monkeypatch.chdir(folder)
        Path("empty-folder").mkdir()
        write_parquet(Path("empty.parquet"), CHATS)
        pq.write_table(pq.read_table("empty.parquet").slice(0, 0), "empty.parquet")
        made = {
            "empty.jsonl": b"",
            "blank.jsonl": b"\n \r\n",
            "empty.jsonl.gz": gzip.compress(b""),
            "header.csv": b"prompt,response\n",
            "list.json": b" [ ] ",
            "noise.jsonl": b"\xfa\xfe\x00\n\xfe\xff",
            "noise.jsonl.gz": b"\xff" * 99,
            "noise.json.zst": b"\xff" * 99,
            "noise.parquet": b"\xff" * 99,
            "noise.arrow": b"\x7f" * 99,
            "other.jsonl": b'{"question": "x", "choices": ["x"], "answer": 0}\n',
        }
        for name in made.keys() & {source}:
            Path(name).write_bytes(made[name])
        if source == "*.jsonl":
            Path("empty.parquet").unlink()
        with pytest.raises(InvalidData, match=message) as caught:
            open_data(source)
        assert "\n" not in str(caught.value)

    def test_of_several_bad_files_names_them_all(self, tmp_path: Path) -> None:
        lines(tmp_path / "a.jsonl", GOOD)
        for name in ("b.jsonl", "c.jsonl"):
            lines(tmp_path / name)
        lines(tmp_path / "d.jsonl", {"x": 1})
        with pytest.raises(InvalidData) as caught:
            open_data(tmp_path)
        first, *rest = str(caught.value).splitlines()
        assert first == "Several files cannot be read:"
        assert [line.strip().partition(": ")[0] for line in rest] == ["b.jsonl, c.jsonl", str(tmp_path / "d.jsonl")]

    def test_that_lacks_the_stated_shape_altogether_is_an_error(self, tmp_path: Path) -> None:
        path = lines(tmp_path / "a.jsonl", GOOD)
        with pytest.raises(InvalidData, match=r'No file has the shape pairs: .* has the columns "messages"'):
            open_data(path, shape="pairs")

    def test_that_needs_a_missing_package_names_the_extra(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("pyarrow", "pyarrow.parquet", "datasets"):
            monkeypatch.setitem(sys.modules, name, None)
        for name in ("a.parquet", "a.jsonl.zst", "org/name"):
            if name != "org/name":
                write_bytes(tmp_path / name, b"x")
            with pytest.raises(MissingExtra, match=r"needs (pyarrow|datasets); in a checkout .*-e '\.\[data\]'"):
                open_data(tmp_path / name if name != "org/name" else name)

    def test_is_read_without_anything_heavy(self, tmp_path: Path) -> None:
        path = lines(tmp_path / "a.jsonl", *CHATS)
        program = (
            "import sys; from poise.data import open_data; print(len(list(open_data(sys.argv[1]))), "
            "sorted({'torch', 'transformers', 'pyarrow', 'datasets', 'numpy'} & set(sys.modules)))"
        )
        done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
        assert done.stdout == "7 []\n"


class TestADataSetOfTheLibrary:
    def splits(self, folder: Path) -> str:
        made = {"train": datasets.Dataset.from_list(CHATS), "test": datasets.Dataset.from_list(CHATS[:2])}
        datasets.DatasetDict(made).save_to_disk(folder)
        return str(folder)

    def test_saved_with_splits_is_asked_which(self, tmp_path: Path) -> None:
        folder = self.splits(tmp_path / "saved")
        assert len(list(open_data(f"{folder}:test"))) == 2
        with pytest.raises(InvalidData, match=r"saved has 2 splits; say which, as in .*saved:test, of test, train"):
            open_data(folder)
        with pytest.raises(InvalidData, match=r"saved has no split dev; say which"):
            open_data(f"{folder}:dev")
        with pytest.raises(InvalidData, match=r"has no splits; leave :train out"):
            open_data(f"{write_saved(tmp_path / 'plain', CHATS)}:train")

    def test_saved_is_hashed_by_its_files(self, tmp_path: Path) -> None:
        data = open_data(write_saved(tmp_path / "saved", CHATS))
        content = b"".join(path.read_bytes() for path in sorted((tmp_path / "saved").glob("*.arrow")))
        assert data.digest() == hashlib.sha256(content).hexdigest()

    def test_saved_and_damaged_is_one_sentence(self, tmp_path: Path) -> None:
        folder = write_saved(tmp_path / "saved", CHATS)
        next(folder.glob("*.arrow")).write_bytes(b"\xff" * 10)
        with pytest.raises(InvalidData, match="cannot be read as a saved data set"):
            open_data(folder)

    def test_on_the_hub_is_streamed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[tuple[Any, ...]] = []

        def load(*names: str, streaming: bool) -> Any:
            asked.append((*names, streaming))
            stream = datasets.Dataset.from_list(CHATS).to_iterable_dataset()
            return datasets.IterableDatasetDict({"train": stream, "test": stream.take(2)})

        monkeypatch.setattr(datasets, "load_dataset", load)
        data = open_data("org/name/main:train")
        assert asked == [("org/name", "main", True)]
        assert [said(row) for row in data] == [[(m["role"], m["content"]) for m in r["messages"]] for r in CHATS]
        assert [row.file for row in data.iterate(5)] == ["org/name/main:train"] * 2
        assert data.files == ()
        assert data.count() == 7
        whole = b"".join(json.dumps(row, sort_keys=True).encode() + b"\n" for row in CHATS)
        assert data.digest() == hashlib.sha256(whole).hexdigest()
        with pytest.raises(InvalidData, match="org/name has 2 splits; say which, as in org/name:test, of test, train"):
            open_data("org/name")

    def test_on_a_hub_that_does_not_answer_is_one_sentence(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(
            InvalidData, match=r"There is no file or folder no-such/set, and the hub gives no data set of that name: .+"
        ) as caught:
            open_data("no-such/set:train")
        assert "\n" not in str(caught.value)

    def test_that_breaks_off_on_the_way_ends_the_run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def rows() -> Iterator[Row]:
            yield from CHATS[:3]
            raise ConnectionError("gone")

        monkeypatch.setattr(datasets, "load_dataset", lambda *_, streaming: {"train": rows})

        class Stream:
            __iter__ = staticmethod(rows)

        monkeypatch.setattr(datasets, "load_dataset", lambda *_, streaming: {"train": Stream()})
        with pytest.raises(InvalidData, match=r"org/name broke off after row 2: gone\. Run the same command again"):
            list(open_data("org/name"))


def mixed(path: Path, pattern: str) -> Path:
    """A file of good (.) and bad rows."""
    kinds = {".": GOOD, "j": b"rubbish\n", "r": {"messages": [{"role": "x", "content": "x"}]}}
    return lines(path, *(kinds[sign] for sign in pattern))


class TestRejections:
    def test_are_counted_by_kind_and_the_rest_goes_on(self, tmp_path: Path) -> None:
        rejections = Rejections()
        good = list(rejections.sift(open_data(mixed(tmp_path / "a.jsonl", "..j.rr."))))
        assert [row.index for row in good] == [0, 1, 3, 6]
        assert dict(rejections.kinds) == {"broken JSON": 1, "unknown role": 2}
        assert str(rejections) == "3 of 7 rows rejected (unknown role 2, broken JSON 1)"

    def test_are_listed_without_their_text(self, tmp_path: Path) -> None:
        path = mixed(tmp_path / "a.jsonl", ".j.r")
        rejections = Rejections(tmp_path / "out" / "rejected.jsonl")
        list(rejections.sift(open_data(path)))
        assert [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()] == [
            {
                "file": str(path),
                "row": 1,
                "index": 1,
                "line": 2,
                "reason": "broken JSON: Expecting value, character 0 of the line",
            },
            {"file": str(path), "row": 3, "index": 3, "line": 4, "reason": 'unknown role: "x", turn 1'},
        ]

    def test_of_none_leave_no_file(self, tmp_path: Path) -> None:
        rejections = Rejections(tmp_path / "rejected.jsonl")
        assert len(list(rejections.sift(open_data(mixed(tmp_path / "a.jsonl", "..."))))) == 3
        assert not (tmp_path / "rejected.jsonl").exists()
        assert str(rejections) == "all 3 rows read"

    @given(pattern=st.text(".jr", min_size=1, max_size=20), data=st.data())
    def test_of_a_killed_run_end_as_those_of_an_unbroken_one(
        self, pattern: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        folder = tmp_path_factory.mktemp("run")
        source = open_data(mixed(folder / "a.jsonl", f".{pattern}"))
        whole, broken = folder / "whole.jsonl", folder / "broken.jsonl"
        unbroken = Rejections(whole)
        rows = list(unbroken.sift(source))
        saved = data.draw(st.integers(0, len(rows)))  # results that were safe when the run was killed
        reached = data.draw(st.integers(saved, len(rows)))  # how far it had read
        list(zip(range(reached), Rejections(broken).sift(source), strict=False))
        if broken.exists() and not saved:  # and in the middle of a line
            broken.write_bytes(broken.read_bytes()[: -data.draw(st.integers(1, 3))])
        start = rows[saved - 1].index + 1 if saved else 0
        resumed = Rejections(broken, start=start)
        assert rows[:saved] + list(resumed.sift(source.iterate(start))) == rows
        assert (resumed.kinds, resumed.rows) == (unbroken.kinds, unbroken.rows)
        assert (broken.read_bytes() if broken.exists() else b"") == (whole.read_bytes() if whole.exists() else b"")

    def test_of_too_large_a_share_stop_the_run(self, tmp_path: Path) -> None:
        path = mixed(tmp_path / "a.jsonl", "...jr" * 18 + "." * 10 + "j" * 100)
        rejections = Rejections(tmp_path / "rejected.jsonl")
        with pytest.raises(InvalidData, match=r"36 of 100 rows rejected|20%") as caught:
            list(rejections.sift(open_data(path)))
        assert "rejected.jsonl lists them, more than the 20% that is allowed" in str(caught.value)
        assert rejections.rows >= 100
        assert len(list(Rejections(share=0.9).sift(open_data(path)))) == 64

    def test_of_a_small_share_or_of_few_rows_do_not(self, tmp_path: Path) -> None:
        assert len(list(Rejections().sift(open_data(mixed(tmp_path / "a.jsonl", ".j" * 40))))) == 40
        assert len(list(Rejections().sift(open_data(mixed(tmp_path / "b.jsonl", "....j" * 60))))) == 240

    def test_of_all_rows_are_an_error_however_few(self, tmp_path: Path) -> None:
        path = lines(tmp_path / "a.jsonl", {"messages": chat("Hi")}, {"messages": chat("Hi")})
        with pytest.raises(InvalidData, match=r"2 of 2 rows rejected \(no assistant turn 2\), .* nothing is left"):
            list(Rejections().sift(open_data(path)))

    def test_on_a_full_disk_say_so(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        rejections = Rejections(tmp_path / "file" / "rejected.jsonl")
        with pytest.raises(SaveFailed, match=r"Cannot write to .*rejected\.jsonl"):
            list(rejections.sift(open_data(mixed(tmp_path / "a.jsonl", ".j"))))

    def test_do_not_overwrite_what_is_not_theirs(self, tmp_path: Path) -> None:
        lines(tmp_path / "rejected.jsonl", GOOD)
        with pytest.raises(InvalidData, match="is not a list of rejected rows; move it away"):
            Rejections(tmp_path / "rejected.jsonl", start=3)
        assert json.loads((tmp_path / "rejected.jsonl").read_text()) == GOOD
