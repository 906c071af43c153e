"""Memories with names in other spellings, entries that nobody can have written, and files edited by hand."""

from __future__ import annotations

import sqlite3
import unicodedata
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from poise.cli import app
from poise.errors import InvalidArgument, InvalidMemory, SaveFailed
from poise.memory import ForgetRule, Memory, entries_about, forgettable
from poise.memory import memory as memory_module
from poise.memory.memory_file import MEMORY_FILE
from test_knowledge import WordEncoder
from test_memory import opened


def decomposed(text: str) -> str:
    return unicodedata.normalize("NFD", text)


class TestNames:
    @pytest.mark.parametrize(
        ("text", "subject"),
        [
            (decomposed("Met José Álvarez today."), "José Álvarez"),
            ("Met José Álvarez today.", decomposed("JOSÉ ÁLVAREZ")),
            ("MET STRASSE MÜLLER", "straße müller"),
            ("Ｍａｒｉａ Lund came.", "maria lund"),
            ("Mar\u00adia\u200b Lund came.", "Maria Lund"),
            ("Maria\nLund came.", "Maria Lund"),
            ("Maria\u00a0Lund’s boat.", "Maria Lund's"),
            ("_Maria Lund_ came.", "Maria Lund"),
            ("Write to maria.lund@harbour.example.", "Maria Lund"),
            ("Read maria_lund.txt and Maria-Lund.pdf.", "Maria Lund"),
            ("Ask Mary‑Ann O’Neil.", "mary-ann o'neil"),
            ("田中さんが来た。", "田中"),
            ("김민수가 왔다.", "김민수"),
        ],
    )
    def test_are_found_however_they_are_spelt(self, tmp_path: Path, text: str, subject: str) -> None:
        memory = opened(tmp_path / "m")
        memory.record(text)
        found = entries_about(memory, subject)
        assert [entry.text for entry in found] == [text]
        memory.delete([entry.id for entry in found])
        assert text.encode() not in (tmp_path / "m" / MEMORY_FILE).read_bytes()

    @pytest.mark.parametrize(
        ("text", "subject"),
        [
            (decomposed("Met José today."), "Jose"),
            ("Met Josefine.", "Jose"),
            ("Marianne Lund", "Maria"),
            ("Annalund", "Lund"),
            ("Ask Maria. Lund is a city.", "Maria Lund"),
            ("Мaria Lund came.", "Maria Lund"),  # its first letter is of another script
        ],
    )
    def test_of_others_are_not(self, tmp_path: Path, text: str, subject: str) -> None:
        memory = opened(tmp_path / "m")
        memory.record(text)
        assert entries_about(memory, subject) == []

    @pytest.mark.parametrize("subject", ["", "  ", "\u200b"])
    def test_that_are_empty_are_nobodys(self, tmp_path: Path, subject: str) -> None:
        with pytest.raises(InvalidArgument, match="subject is empty"):
            entries_about(opened(tmp_path / "m"), subject)
        for command in (["export", "--out", str(tmp_path / "all.jsonl")], ["list"]):
            done = CliRunner().invoke(
                app, ["memory", command[0], str(tmp_path / "m"), *command[1:], "--subject", subject]
            )
            assert isinstance(done.exception, InvalidArgument) or "subject is empty" in done.output
        assert not (tmp_path / "all.jsonl").exists()


def test_an_export_does_not_replace_its_own_memory(tmp_path: Path) -> None:
    memory = opened(tmp_path / "m")
    memory.record("A berth costs 12 euros.")
    arguments = ["memory", "export", str(tmp_path / "m"), "--out", str(tmp_path / "m" / MEMORY_FILE), "--force"]
    assert CliRunner().invoke(app, arguments).exit_code != 0
    assert len(opened(tmp_path / "m").entries()) == 1


@pytest.mark.parametrize(
    "change", ["vector = x'00'", "vector = 'text'", "at = 'yesterday'", "reasons = 'none'", "text = x'ff'"]
)
def test_an_entry_that_somebody_changed_is_a_sentence(tmp_path: Path, change: str) -> None:
    memory = opened(tmp_path / "m")
    memory.record("A berth costs 12 euros.")
    with sqlite3.connect(tmp_path / "m" / MEMORY_FILE) as db:
        db.execute(f"UPDATE entries SET {change}")
    db.close()
    with pytest.raises(InvalidMemory, match="Entry 1 is damaged"):
        opened(tmp_path / "m").recall("What does a berth cost?", 500)


@pytest.mark.parametrize(("name", "data"), [("my notes.md", b"x"), ("empty.md", b""), ("nul.md", b"a\0b")])
def test_a_file_that_is_no_procedure_is_named(tmp_path: Path, name: str, data: bytes) -> None:
    opened(tmp_path / "m").record("Look first.", kind="procedural", name="look")
    (tmp_path / "m" / "procedures" / name).write_bytes(data)
    with pytest.raises(InvalidMemory, match=name):
        opened(tmp_path / "m")


def test_a_name_that_no_file_can_have_is_refused_and_the_memory_opens(tmp_path: Path) -> None:
    memory = opened(tmp_path / "m")
    with pytest.raises(InvalidArgument, match="200 bytes"):
        memory.record("Look first.", kind="procedural", name="𝒜" * 64)
    assert opened(tmp_path / "m").entries() == []


def test_a_number_that_no_entry_has_is_a_sentence(tmp_path: Path) -> None:
    memory = opened(tmp_path / "m")
    for work in (lambda: memory.delete([2**70]), lambda: memory.entry(2**70)):
        with pytest.raises(InvalidArgument, match="No entry has so large a number"):
            work()


def test_a_time_long_ago_is_kept(tmp_path: Path) -> None:
    memory = opened(tmp_path / "m")
    memory.record("Rome was founded.", at=datetime(1, 1, 1, tzinfo=UTC))
    [entry] = opened(tmp_path / "m").entries()
    assert entry.at == datetime(1, 1, 1, tzinfo=UTC)


class TestForgetting:
    def run(self, *arguments: str) -> Any:
        return CliRunner().invoke(app, ["memory", *arguments])

    def test_forget_without_yes_deletes_nothing_and_counts_with_the_noun(self, tmp_path: Path) -> None:
        memory = opened(tmp_path)
        memory.record("The tide turns at noon.", at=datetime(2020, 1, 1, tzinfo=UTC))
        shown = self.run("forget", str(tmp_path), "--older-than", "30")
        assert shown.exit_code == 0
        assert "1 entry would be deleted; add --yes to delete it." in shown.output
        assert len(memory.entries()) == 1
        assert "1 entry deleted." in self.run("forget", str(tmp_path), "--older-than", "30", "--yes").output
        assert memory.entries() == []
        assert "No entry is like that." in self.run("forget", str(tmp_path), "--older-than", "30", "--yes").output

    def test_a_clock_that_was_set_back_forgets_nothing_too_early(self, tmp_path: Path) -> None:
        now = datetime(2030, 6, 1, tzinfo=UTC)
        memory = Memory(tmp_path, WordEncoder(), clock=lambda: now)
        memory.record("The tide turns at noon.")
        [entry] = memory.recall("When does the tide turn?")
        assert "today" in entry.why
        back = Memory(tmp_path, WordEncoder(), clock=lambda: now - timedelta(days=4000))
        [entry] = back.recall("When does the tide turn?")
        assert "today" in entry.why
        assert forgettable(back, ForgetRule(older_than=0, unused_for=0)) == []
        assert back.record("The tide turns at noon.").verdict == "duplicate"
        assert forgettable(memory, ForgetRule(unused_for=30)) == []

    def test_recall_goes_where_nothing_can_be_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        memory = opened(tmp_path)
        memory.record("The tide turns at noon.")
        real = memory_module.memory_file

        def read_only(folder: Path, *, write: bool = False, create: bool = False) -> Any:
            if write:
                raise SaveFailed("attempt to write a readonly database")
            return real(folder, create=create)

        monkeypatch.setattr(memory_module, "memory_file", read_only)
        assert [entry.text for entry in memory.recall("When does the tide turn?")] == ["The tide turns at noon."]
        with pytest.raises(SaveFailed):
            memory.record("Another.")
