"""The two answers of a preference pair swapped, in the row's own shape, with what the row says of each of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from poise.data.columns import last_words
from poise.data.messages import AnswerPart
from poise.data.preference_rows import PreferenceShape, read_pair
from poise.data.shapes import DataShape
from poise.errors import InvalidRow
from poise.screen.row_editor import replace_answers

__all__ = ["swap_answers", "twin_columns"]

SIDE_WORDS = (
    ("chosen", "rejected"), ("preferred", "dispreferred"), ("preferred", "non_preferred"), ("better", "worse"),
    ("best", "worst"), ("accepted", "rejected"), ("positive", "negative"), ("win", "lose"), ("winner", "loser"),
)  # fmt: skip


def swap_answers(shape: PreferenceShape, row: Mapping[str, Any], part: AnswerPart = "reply") -> dict[str, Any]:
    """The row with its answers in each other's places, and so with every pair of columns that speaks of them.

    Raises:
        InvalidRow: the row would not read back as the same pair with its sides swapped.
    """
    columns, edited = shape.columns, dict(row)
    if columns.chosen == columns.chat and columns.chat in shape.rejected.columns:
        edited |= _swapped_last_answer(shape, row)
    else:
        edited |= {columns.chosen: row[columns.rejected], columns.rejected: row[columns.chosen]}
    for first, second in twin_columns(shape, list(row)):
        edited |= {first: row[second], second: row[first]}
    before, after = read_pair(shape, row, part), read_pair(shape, edited, part)
    if (before.prompt, before.chosen, before.rejected) != (after.prompt, after.rejected, after.chosen):
        raise InvalidRow("its answers cannot be swapped in this shape")
    return edited


def twin_columns(shape: PreferenceShape, names: Sequence[str]) -> list[tuple[str, str]]:
    """Columns beside the answers of which one speaks of the preferred and one of the other: ``score_chosen``."""
    answers = {shape.columns.chosen, shape.columns.rejected}
    words = [(shape.columns.chosen, shape.columns.rejected), *SIDE_WORDS]
    twins: dict[frozenset[str], tuple[str, str]] = {}
    for name in names:
        for first, second in words:
            other = re.sub(rf"(?<![^\W_]){re.escape(first)}(?![^\W_])", second, name)
            if other != name and other in names and not {name, other} & answers:
                twins.setdefault(frozenset((name, other)), (name, other))
                break
    return list(twins.values())


def _swapped_last_answer(shape: PreferenceShape, row: Mapping[str, Any]) -> dict[str, Any]:
    """A chat that ends with the preferred answer, and the other answer in a column of its own."""
    chat, rejected = str(shape.columns.chat), shape.columns.rejected
    pair = read_pair(shape, row)
    if last_words(row[chat])[0] != "assistant" or len(pair.chosen) != 1 or not isinstance(row[rejected], str):
        raise InvalidRow("its answers cannot be swapped in this shape")
    number = sum(message["role"] == "assistant" for message in pair.prompt)
    alone = replace_answers(DataShape("messages", (chat,)), {chat: row[chat]}, {number: row[rejected]})
    return {chat: alone[chat], rejected: pair.chosen[0]["content"]}
