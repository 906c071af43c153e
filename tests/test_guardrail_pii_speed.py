"""Patterns that are not searched, since the text lacks what any match has, would have found nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poise.guardrail import sensitive
from poise.guardrail.pii_types import PiiType
from poise.guardrail.sensitive import find_pii

PIECES = [
    "a.b@mail.example",
    "https://mail.example/a",
    "WWW.Mail.example",
    "10.0.0.7",
    "fe80::ab",
    "aa:bb:cc:dd:ee:ff",
    "AKIAABCDEFGHIJKLMNOP",
    "secret key abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLM1",
    "4111 1111 1111 1111",
    "cvv 123",
    "expires 1/27",
    "PIN: 1234",
    "GB82 WEST 1234 5698 7654 32",
    "SWIFT: DEUTDEFF",
    "SSN 536-22-1234",
    "ITIN 912-70-1234",
    "routing 021000021",
    "account 12345678",
    "account 123 456",
    "passport A12345678",
    "OHIP 1234 567 890",
    "social insurance number 130 692 544",
    "NHS number 943 476 5919",
    "AB 12 34 56 C",
    "UTR 1955839661",
    "VIN 1M8GDM9AXKP042788",
    "license plate: AB-12",
    "driver's license D1234567",
    "username: ana",
    "password: hunter22x",
    "aged 7",
    "7 years old",
    "1 High Street",
    "P.O. Box 7",
    "Bergstraße 7",
    "7 rue de la Paix",
    "Calle Mayor, 7",
    "Mrs Anna Wolff",
    "call 020 7946 0958",
    "é",
    "日本",
]
TYPES = get_args(PiiType)


@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=12), max_size=6).map(" ".join))
def test_leaving_patterns_out_changes_no_match(text: str) -> None:
    matches = list(find_pii(text, TYPES))
    with pytest.MonkeyPatch.context() as patch:
        everything = tuple(replace(look, digits=0, signs=()) for look in sensitive.PII_PATTERNS)
        patch.setattr(sensitive, "PII_PATTERNS", everything)
        patch.setattr(sensitive, "FEWEST_PHONE_DIGITS", 0)
        assert list(find_pii(text, TYPES)) == matches


def test_each_pattern_is_tried_by_a_piece() -> None:
    kinds = {match.type for piece in PIECES for match in find_pii(piece, TYPES)}
    assert set(TYPES) == kinds
