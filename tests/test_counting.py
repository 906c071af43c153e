"""Numbers with their nouns."""

from __future__ import annotations

import pytest

from poise.counting import counted


@pytest.mark.parametrize(
    ("n", "words"), [(0, "0 files"), (1, "1 file"), (2, "2 files"), (1000, "1,000 files"), (-1, "-1 files")]
)
def test_a_number_has_its_noun(n: int, words: str) -> None:
    assert counted(n, "file") == words


def test_irregular_nouns_are_told() -> None:
    assert [counted(n, "entry", "entries") for n in (1, 2)] == ["1 entry", "2 entries"]
