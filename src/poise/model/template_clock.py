"""The one moment that every chat template sees, so that a text is the same tokens on every day.

A template may ask for the date in two ways: by the variable ``date_string``, and by the function ``strftime_now``,
which transformers puts into its environment and lets no argument replace. A macro of that name, written before the
template, stands in for it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

__all__ = ["DATE_STRING", "check_repeats", "pin_clock"]

DATE_STRING = "26 Jul 2024"
# English and by the letter: strftime itself follows the locale, and leaves some of these to the platform.
DIRECTIVES = {
    "a": "Fri", "A": "Friday", "b": "Jul", "B": "July", "c": "Fri Jul 26 00:00:00 2024", "C": "20", "d": "26",
    "D": "07/26/24", "e": "26", "f": "000000", "F": "2024-07-26", "g": "24", "G": "2024", "h": "Jul", "H": "00",
    "I": "12", "j": "208", "k": " 0", "l": "12", "m": "07", "M": "00", "n": "\n", "p": "AM", "P": "am",
    "r": "12:00:00 AM", "R": "00:00", "s": "1721952000", "S": "00", "t": "\t", "T": "00:00:00", "u": "5", "U": "29",
    "V": "30", "w": "5", "W": "30", "x": "07/26/24", "X": "00:00:00", "y": "24", "Y": "2024", "z": "", "Z": "",
}  # fmt: skip
UNPADDED = {"H": "0", "k": "0", "m": "7", "M": "0", "S": "0"}
RANDOM = re.compile(r"\|\s*random\b|\blipsum\b")
RENDERINGS = 16


def pin_clock(template: str) -> str:
    """A template whose clock stands still, and which is otherwise the same text."""
    return f"{_macro()}\n{template}" if "strftime_now" in template else template


@functools.cache
def _macro() -> str:
    """``strftime_now`` in Jinja's own words; the newline that follows a block is not printed."""
    padding = {f"%{flag}{letter}": UNPADDED.get(letter, text) for flag in "-#" for letter, text in DIRECTIVES.items()}
    directives = padding | {f"%{letter}": text for letter, text in DIRECTIVES.items()}
    percent = "\ue000"  # what "%%" is until the directives are filled in
    steps = {"%%": percent, **directives, percent: "%"}
    pairs = ",".join(f"({_literal(name)},{_literal(text)})" for name, text in steps.items())
    return (
        "{%- macro strftime_now(format) -%}{%- set clock = namespace(text=format) -%}"
        f"{{%- for name, text in [{pairs}] -%}}"
        "{%- set clock.text = clock.text.replace(name, text) -%}{%- endfor -%}"
        "{{- clock.text -}}{%- endmacro %}"
    )


def _literal(text: str) -> str:
    return "'" + text.replace("\n", "\\n").replace("\t", "\\t") + "'"


def check_repeats(template: str, render: Callable[[], str]) -> str:
    """The complaint about a template that writes one conversation differently from time to time; empty without one."""
    if RANDOM.search(template) and len({render() for _ in range(RENDERINGS)}) > 1:
        return "it writes one conversation differently from time to time"
    return ""
