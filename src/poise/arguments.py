"""What is asked of an argument: its type, range or choices, refused in one sentence."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from numbers import Integral, Real
from typing import TypeGuard

from poise.errors import InvalidArgument

__all__ = ["check_choice", "check_number", "check_type", "is_whole"]


def is_whole(value: object) -> TypeGuard[int]:
    """Whether a value is a whole number; ``True`` is none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_number(name: str, value: object, *, least: float, most: float) -> None:
    """Refuse what is not a number between two limits.

    Raises:
        InvalidArgument: names the argument, the value and the limits.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not least <= float(value) <= most:
        raise InvalidArgument(f"{name} is {reprlib.repr(value)}; it must be a number from {least:g} to {most:g}.")


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Refuse a word that is not among the choices.

    Raises:
        InvalidArgument: names the argument, the value and the choices.
    """
    if not isinstance(value, str) or value not in choices:
        raise InvalidArgument(f"{name} is {reprlib.repr(value)}; it must be one of {', '.join(choices)}.")


def check_type(name: str, value: object, kind: type | tuple[type, ...], instead: str) -> None:
    """Refuse what is of another type.

    Args:
        name: The argument.
        value: What was given.
        kind: Types that are taken.
        instead: What to give, in words.

    Raises:
        InvalidArgument: names the argument, the type and what to give.
    """
    if not isinstance(value, kind):
        raise InvalidArgument(f"{name} is {type(value).__name__}; give {instead}.")
