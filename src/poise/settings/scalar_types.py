"""Which scalars a field takes: a number is no true or false and no quoted text, and has 64 bits; a text has words."""

from __future__ import annotations

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BeforeValidator
from pydantic_core import PydanticKnownError

__all__ = ["LARGEST_NUMBER", "FilledText", "check_scalar"]

LARGEST_NUMBER = 2**63
NUMBERS = frozenset((int, float))


def check_scalar(value: Any, annotation: Any) -> Any:
    """The value of a field, unless pydantic would turn it into something else than it says.

    ``batch: yes`` would be 1, ``batch: '4'`` 4, and ``packing: 1`` true.

    Raises:
        PydanticKnownError: it would.
    """
    kinds = _scalar_kinds(annotation)
    if kinds & NUMBERS and bool not in kinds:
        if isinstance(value, bool) or (isinstance(value, str) and str not in kinds):
            raise PydanticKnownError("int_type" if float not in kinds else "float_type")
        if isinstance(value, int) and abs(value) >= LARGEST_NUMBER:
            raise PydanticKnownError("int_parsing_size")
    if bool in kinds and not kinds & {int, float, str} and not isinstance(value, bool | None):
        raise PydanticKnownError("bool_type")
    return value


def _scalar_kinds(annotation: Any) -> frozenset[type]:
    """The scalar types among what a field takes; those inside of lists and mappings are not its own."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _scalar_kinds(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return frozenset().union(*map(_scalar_kinds, get_args(annotation)))
    if origin is Literal:
        return frozenset(map(type, get_args(annotation)))
    return frozenset((annotation,)) & {bool, int, float, str}


def _check_filled(value: Any) -> Any:
    if isinstance(value, str) and not value.strip():
        raise ValueError("is empty; write a text, or take the line out")
    return value


FilledText = Annotated[str, BeforeValidator(_check_filled)]
"""A text with words in it."""
