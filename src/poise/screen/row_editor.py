"""Other answers put into a row, in the row's own shape: ``poise.data.readers.read`` backwards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from poise.data.readers import KEYS, ROLES, Shape

__all__ = ["put"]

Said = Mapping[int, str]


def put(shape: Shape, row: Mapping[str, Any], said: Said) -> dict[str, Any]:
    """The row with other answers; nothing else of it changes.

    Args:
        shape: How the row was read.
        row: Its columns.
        said: New answers by turn, as ``poise.data.turns`` numbers them.
    """
    new = dict(row)
    turn = 0
    for column in shape.columns[-1:] if shape.kind == "alpaca" else shape.columns:
        cell = row[column]
        if shape.kind in KEYS or (shape.kind == "pairs" and isinstance(cell, list | Mapping)):
            new[column], turn = _chat(cell, KEYS.get(shape.kind, KEYS["messages"]), said, turn)
        elif column == shape.columns[-1]:
            new[column] = _text(cell, said.get(turn))
    return new


def _chat(cell: Any, keys: tuple[str, str], said: Said, turn: int) -> tuple[Any, int]:
    """A list of turns with new answers, in whichever of its forms, and the number of the next answer."""
    if isinstance(cell, str):
        new, turn = _chat(json.loads(cell), keys, said, turn)
        return json.dumps(new, ensure_ascii=False), turn
    role, content = keys
    if isinstance(cell, Mapping):  # one list for each key
        contents = list(cell[content])
        for place, name in enumerate(cell[role]):
            if _answers(name):
                contents[place] = _text(contents[place], said.get(turn))
                turn += 1
        return {**cell, content: contents}, turn
    turns = []
    for one in cell:
        if _answers(one[role]):
            one = {**one, content: _text(one[content], said.get(turn))}
            turn += 1
        turns.append(one)
    return turns, turn


def _answers(role: Any) -> bool:
    return ROLES.get(str(role).strip().lower()) == "assistant"


def _text(old: Any, new: str | None) -> Any:
    """A text for a text, and a list of one part for a list of parts."""
    if new is None:
        return old
    if not isinstance(old, list):
        return new
    return [{"type": "text", "text": new}] if old and isinstance(old[0], Mapping) else [new]
