"""Answers are given out behind a checked window: what leaves is what the checked whole would have said."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poise.guardrail import Guardrail, checker_of
from poise.guardrail.findings import masked
from poise.guardrail.release import CONTEXT, STRIDE, ReleaseWindow
from poise.guardrail.schema import HELD_BACK

RULES = {
    "name": "a",
    "words": {"custom": ["stop here now"]},
    "sensitive": {
        "types": ["EMAIL", "US_SOCIAL_SECURITY_NUMBER", "CREDIT_DEBIT_CARD_NUMBER", "PHONE", "PASSWORD"],
        "regexes": [{"name": "ticket", "pattern": "TCK-[0-9]{4,12}", "action": "ANONYMIZE"}],
    },
}
CHECKER = checker_of(Guardrail.model_validate(RULES))
PARTS = [
    "anna.wolff@mail.example",
    "536-90-4399",
    "4111 1111 1111 1111",
    "+44 20 7946 0958",
    "TCK-123456789",
    "the password is Hunter2!x",
    "and so on, and on, and on until it ends. ",
    "\n",
    "ticket ",
    "12 ",
    "Grüße ",
]


def pieces_of(text: str, sizes: list[int]) -> list[str]:
    """The text cut into pieces of these sizes, over and over."""
    out, at = [], 0
    for size in itertools.cycle(sizes):
        if at >= len(text):
            return out
        out.append(text[at : at + size])
        at += size
    return out


def released(pieces: list[str]) -> tuple[str, bool]:
    window = ReleaseWindow(lambda text: CHECKER.find(text, "OUTPUT"))
    out, count = "", 0
    for number, piece in enumerate(pieces, start=1):
        release = window.add([piece], last=number == len(pieces))
        out += "".join(p.text for p in release.pieces)
        count += len(release.pieces)
        if release.blocked:
            return out, True
    assert count == len(pieces)
    return out, False


class TestAnAnswer:
    @settings(deadline=None, max_examples=150)
    @given(st.lists(st.sampled_from(PARTS), max_size=40), st.lists(st.integers(1, 9), min_size=1, max_size=5))
    def test_leaves_as_the_whole_would_be_masked(self, parts: list[str], sizes: list[int]) -> None:
        text = " ".join(parts)
        assert released(pieces_of(text, sizes)) == (masked(text, CHECKER.find(text, "OUTPUT")), False)

    @pytest.mark.parametrize("before", [0, 1, 50, 127, 128, 129, 176, 177, 400, 2000])
    def test_that_is_blocked_ends_before_the_match(self, before: int) -> None:
        text = ("boats and tides " * 200)[:before] + " STOP  here\nnow and then"
        out, blocked = released(pieces_of(text, [3]))
        assert blocked
        assert "stop" not in out.casefold()
        assert text.startswith(out)
        assert len(out) >= before - 3

    def test_holds_what_still_matches_at_its_end(self) -> None:
        window = ReleaseWindow(lambda text: CHECKER.find(text, "OUTPUT"))
        text = "write to anna@" + "wolff-and-sons." * 40 + "example"
        out = "".join(p.text for piece in pieces_of(text, [4]) for p in window.add([piece]).pieces)
        assert "write to anna@".startswith(out)
        out += "".join(p.text for p in window.add([" today"], last=True).pieces)
        assert out == "write to {EMAIL} today"

    def test_leaves_no_later_than_it_must(self) -> None:
        window = ReleaseWindow(lambda text: CHECKER.find(text, "OUTPUT"))
        came = [len(window.add(["x "]).pieces) for _ in range(1000)]
        first = next(n for n, pieces in enumerate(came) if pieces)
        assert (first + 1) * 2 <= HELD_BACK + 2
        assert 2 * max(came) <= STRIDE + 2

    @pytest.mark.parametrize("held", [0, 1, 16, 96])
    def test_is_held_back_by_as_much_as_is_said(self, held: int) -> None:
        window = ReleaseWindow(lambda text: CHECKER.find(text, "OUTPUT"), window=held)
        left = taken = 0
        for _ in range(500):
            taken += 2
            left += sum(len(piece.text) for piece in window.add(["x "]).pieces)
            assert held <= taken - left <= held + max(held // 2, 8) or not left
        assert left > 500

    def test_is_not_kept_to_its_beginning(self) -> None:
        window = ReleaseWindow(lambda text: CHECKER.find(text, "OUTPUT"))
        for _ in range(5000):
            window.add(["some words "])
        assert len(window._text) < 2 * (HELD_BACK + STRIDE + CONTEXT)

    def test_reports_each_match_once(self) -> None:
        window = ReleaseWindow(lambda text: CHECKER.find(text, "OUTPUT"))
        draw = random.Random(1)
        text = " and ".join(["write to anna.wolff@mail.example"] * 30)
        findings = []
        for piece in pieces_of(text, [draw.randint(1, 6) for _ in range(50)]):
            findings += window.add([piece]).findings
        findings += window.add([], last=True).findings
        assert len(findings) == 30
