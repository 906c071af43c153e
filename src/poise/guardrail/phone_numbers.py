"""Telephone numbers in running text, checked against the numbering plans that phonenumbers has."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from poise.guardrail.patterns import compile_pattern, need_extra

__all__ = ["phone_numbers", "sentence_before"]

INTERNATIONAL = r"(?:\+|\b00)[1-9](?:[ ().\-/]{0,2}\d){6,14}(?:\s?(?:x|ext\.?)\s?\d{1,6})?\b"
NORTH_AMERICAN = r"(?:\b1[ .-])?(?:\(\d{3}\) ?|\b\d{3}[ .-])\d{3}[ .-]\d{4}(?:\s?(?:x|ext\.?)\s?\d{1,6})?\b"
ZERO_LED = r"\(?\b0\d{1,5}\)?[ \-/.]?\d{1,8}(?:[ \-/.]\d{1,8}){0,5}\b"
DIGIT_RUN = r"\(?\b\d(?:[ ().\-/]{0,2}\d){6,14}(?:\s?(?:x|ext\.?)\s?\d{1,6})?\b"
NEAR_WORDS = re.compile(
    r"phone|\btel\b|\btel[.:]|telefon|téléphone|teléfono|\bcall(?:ed|ing)?\b|mobil|\bcell\b|\bfax\b|whatsapp|\bsms\b|"
    r"text me|reach (?:me|us|him|her|them)|contact|rufnummer|handy|\bring\b|dial|\bmy (?:new )?number",
    re.IGNORECASE,
)
NORTH_AMERICA = frozenset(("US", "CA"))
DATE = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}")
SENTENCE_END = re.compile(r"\n|(?<=[a-z\d)])[.!?]\s+(?=[A-Z])")
FEWEST_DIGITS, MOST_DIGITS = 7, 15


def phone_numbers(text: str, regions: Sequence[str], near: int) -> Iterator[tuple[int, int]]:
    """Start and end of each number, from left to right.

    Args:
        text: Folded text.
        regions: Countries whose numbers are known without their prefix.
        near: Characters before a number in which a word for it counts.

    Raises:
        MissingExtra: phonenumbers is not installed.
    """
    try:
        import phonenumbers
    except ImportError as error:
        raise need_extra("Telephone numbers of guardrails need phonenumbers") from error
    reached = 0
    for match in compile_pattern(f"{INTERNATIONAL}|{NORTH_AMERICAN}|{ZERO_LED}|{DIGIT_RUN}").finditer(text):
        start, end = match.span()
        if start < reached or _goes_on(text, start, end):
            continue
        number = text[start:end]
        digits = sum(c.isdigit() for c in re.split("[xe]", number)[0])
        if DATE.fullmatch(number):
            continue
        named = bool(NEAR_WORDS.search(sentence_before(text, start, near)))
        looks = _looks_like_one(number) and _in_some_plan(phonenumbers, number, regions)
        if looks or (named and FEWEST_DIGITS <= digits <= MOST_DIGITS):
            reached = end
            yield start, end


def sentence_before(text: str, place: int, most: int) -> str:
    """What stands before a place in its sentence or line, at most so many characters."""
    before = text[max(place - most, 0) : place]
    ends = [end.end() for end in SENTENCE_END.finditer(before)]
    return before[ends[-1] :] if ends else before


def _goes_on(text: str, start: int, end: int) -> bool:
    """Whether the digits are a part of something longer."""
    before, after = text[start - 1 : start], text[end : end + 1]
    more = re.match(r"[.,:/-]?\d", text[end : end + 2])
    return before.isalnum() or (before in tuple("_.-/:#$€£=") and before != "") or after.isalnum() or bool(more)


def _looks_like_one(number: str) -> bool:
    """Whether it is written as a number to call, so that no word need stand before it."""
    shapes = (INTERNATIONAL, NORTH_AMERICAN)
    return any(compile_pattern(shape).fullmatch(number) for shape in shapes) or bool(
        number.lstrip("(").startswith("0") and re.search(r"[ ()/-]", number) and not re.search(r"\d\.\d", number)
    )


def _in_some_plan(phonenumbers: Any, number: str, regions: Sequence[str]) -> bool:
    """Whether it is one of some country's plan."""
    if number.startswith("00"):
        number = "+" + number[2:]
    if number.startswith("+"):
        return _valid(phonenumbers, number, None)
    return any(_valid(phonenumbers, number, region) for region in regions)


def _valid(phonenumbers: Any, number: str, region: str | None) -> bool:
    try:
        parsed = phonenumbers.parse(number, region)
    except phonenumbers.NumberParseException:
        return False
    # Many plans leave few numbers out, and North America's lists are of area codes alone.
    return bool(phonenumbers.is_valid_number(parsed))
