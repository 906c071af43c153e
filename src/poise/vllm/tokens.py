"""Whether a model's answers have thoughts that are told apart by marks."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from poise.model.parts import ThoughtMarks

__all__ = ["marks_thoughts"]

_KNOWN: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


def marks_thoughts(tokenizer: Any) -> bool:
    """Whether a tokenizer or its chat template has marks of thoughts."""
    if tokenizer is None:
        return False
    if not hasattr(tokenizer, "get_added_vocab"):  # none of transformers': nobody can tell
        return True
    if tokenizer not in _KNOWN:
        marks = ThoughtMarks.of(tokenizer)
        _KNOWN[tokenizer] = bool(marks.channels or marks.ids or marks.headers)
    return _KNOWN[tokenizer]
