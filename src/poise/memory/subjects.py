"""What a memory holds about somebody: found by subject and by name in its texts, exported, and deleted."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from poise.errors import InvalidArgument, OutputExists
from poise.memory.entries import MemoryEntry, time_text
from poise.memory.memory import Memory
from poise.storage.atomic_write import saving

__all__ = ["entries_about", "entry_facts", "export_entries"]

_TEXT_FIELDS = ("text", "subject", "source", "name")
_ALIKE_SIGNS = str.maketrans(
    dict.fromkeys("\u2018\u2019\u02bc\u0060\u00b4", "'") | dict.fromkeys("\u2010\u2011\u2013", "-")
)
_BETWEEN_WORDS = r"(?:\s+|[-_.])"  # of a name, also as addresses and names of files have it
_SCRIPTS_WITHOUT_SPACES = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "THAI", "LAO", "KHMER", "MYANMAR")


def entries_about(memory: Memory, subject: str) -> list[MemoryEntry]:
    """All entries whose subject somebody is, or that name them, of every status; also what was made of such entries.

    Names are compared as whole words, whatever their capitals, the spaces in them, and how their signs are encoded; a
    hyphen, an underscore or a dot may stand for a space, as in addresses. In scripts without spaces between words they
    are found wherever they stand. Other names that somebody goes by are to be asked for
    one by one.

    Raises:
        InvalidArgument: the subject is empty.
    """
    named = _name_pattern(_folded_text(subject))
    entries = memory.entries()
    about = {
        entry.id
        for entry in entries
        if any(named.search(_folded_text(str(getattr(entry, field)))) for field in _TEXT_FIELDS)
    }
    while derived := {entry.id for entry in entries if entry.id not in about and about & set(entry.sources)}:
        about |= derived
    return [entry for entry in entries if entry.id in about]


def _folded_text(text: str) -> str:
    """A text as names are compared in it: accents, widths, capitals and quotes alike, no unseen signs."""
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).translate(_ALIKE_SIGNS)
    return "".join(sign for sign in plain if unicodedata.category(sign) != "Cf")


def _name_pattern(name: str) -> re.Pattern[str]:
    """What finds a folded name as whole words; an underscore is no part of a word, as in emphasis."""
    words = name.split()
    if not words:
        raise InvalidArgument("The subject is empty; name whom or what the entries are about.")
    before = "" if _has_no_spaces(words[0][0]) else r"(?<![^\W_])"
    after = "" if _has_no_spaces(words[-1][-1]) else r"(?![^\W_])"
    return re.compile(before + _BETWEEN_WORDS.join(re.escape(word) for word in words) + after)


def _has_no_spaces(sign: str) -> bool:
    """Whether a sign is of a script that runs words together, or hangs endings on names."""
    return unicodedata.name(sign, "").startswith(_SCRIPTS_WITHOUT_SPACES)


def export_entries(entries: Sequence[MemoryEntry], path: Path, *, force: bool = False) -> None:
    """Write entries as JSONL, one a line with all that is kept of it but its vector.

    Raises:
        OutputExists: the file is there, and ``force`` is not set.
        SaveFailed: the disk refused.
    """
    if path.exists() and not force:
        raise OutputExists(f"{path} is there already; choose another file, or replace it with `force`.")
    with saving(path) as temporary:
        lines = [json.dumps(entry_facts(entry), ensure_ascii=False) for entry in entries]
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def entry_facts(entry: MemoryEntry) -> dict[str, Any]:
    """An entry as plain data."""
    return {name: time_text(value) if isinstance(value, datetime) else value for name, value in asdict(entry).items()}
