"""Whether what a pattern of sensitive information matches is one: check digits, and what its signs are."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Any

from poise.guardrail.patterns import need_extra

__all__ = [
    "NO_LOGIN",
    "check_digits",
    "has_digit",
    "is_card",
    "is_iban",
    "is_ip_address",
    "is_password",
    "is_secret",
    "is_ssn",
    "is_vehicle",
]


def check_digits(module: str) -> Callable[[str], bool]:
    """A check of python-stdnum, such as ``us.ssn``, imported when it is first used."""

    def check(text: str) -> bool:
        try:
            number: Any = __import__(f"stdnum.{module}", fromlist=["is_valid"])
        except ImportError as error:
            raise need_extra("Sensitive information of guardrails needs python-stdnum") from error
        return bool(number.is_valid(text))

    return check


def is_ssn(text: str) -> bool:
    """A number that can have been issued, however its groups are separated."""
    return check_digits("us.ssn")(re.sub(r"[ .]", "-", text))


def is_iban(text: str) -> bool:
    """Its check digits alone: what countries check beside them is their own affair."""
    try:
        from stdnum import exceptions, iban
    except ImportError as error:
        raise need_extra("Sensitive information of guardrails needs python-stdnum") from error
    try:
        iban.validate(text, check_country=False)
    except exceptions.ValidationError:
        return False
    return True


def is_card(text: str) -> bool:
    """13 to 19 digits, not all the same, of the right sum."""
    digits = re.sub(r"\D", "", text)
    return 13 <= len(digits) <= 19 and len(set(digits)) > 1 and check_digits("luhn")(digits)


def is_ip_address(text: str) -> bool:
    """An address of version 4 or 6 that names a machine."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return text not in ("::", "0.0.0.0") and (":" not in text or len(text) > 4)


def is_vehicle(text: str) -> bool:
    """ISO 3779's check digit, in the ninth place."""
    values = dict(zip("ABCDEFGHJKLMNPRSTUVWXYZ", [*range(1, 9), *range(1, 6), 7, 9, *range(2, 10)], strict=True))
    sign = text.upper()
    weights = (8, 7, 6, 5, 4, 3, 2, 10, 0, 9, 8, 7, 6, 5, 4, 3, 2)
    total = sum(w * (int(c) if c.isdigit() else values[c]) for w, c in zip(weights, sign, strict=True))
    return sign[8] == "0123456789X"[total % 11] and any(c.isdigit() for c in sign) and any(c.isalpha() for c in sign)


def is_secret(text: str) -> bool:
    """Digits, capitals and small letters, as keys have."""
    return any(c.isdigit() for c in text) and any(c.isupper() for c in text) and any(c.islower() for c in text)


def is_password(text: str) -> bool:
    """Not a word of a sentence about passwords."""
    return not text.isalpha() or text != text.lower()


def has_digit(text: str) -> bool:
    """At least one digit."""
    return any(c.isdigit() for c in text)


NO_LOGIN = re.compile(
    r"(?i)(?:and|or|the|for|your|you|with|page|form|screen|field|fields|is|are|was|must|should|will|can|may|cannot|on|in|to|at|as|not|has|have|from|that|this)"
)
"""Words of sentences about logins, which are none."""
