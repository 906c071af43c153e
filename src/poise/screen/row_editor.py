"""Other answers put into a row, in the row's own shape: ``poise.data.readers.read_row`` backwards."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from poise.data.chat_markup import has_markup
from poise.data.readers import DataShape
from poise.data.recognition import EXCHANGE_KEYS, chat_kind
from poise.data.row_extras import thought_columns
from poise.data.turn_parsing import TEXT_KEYS, THOUGHT_KEYS, parse_turn, split_thought
from poise.errors import InvalidRow

__all__ = ["replace_answers"]

Replacements = Mapping[int, str]

LONG = 8  # characters of an answer that are its own wherever they stand


def replace_answers(shape: DataShape, row: Mapping[str, Any], answers: Replacements) -> dict[str, Any]:
    """The row with other answers. Columns that repeat an old answer are emptied; nothing else changes.

    Args:
        shape: How the row was read.
        row: Its columns.
        answers: New answers by turn, as ``poise.data.turns`` numbers them.

    Raises:
        InvalidRow: the shape cannot be written, as text with chat marks cannot.
    """
    if shape.kind == "markup":
        raise InvalidRow("an answer inside marked-up text cannot be replaced")
    edited = dict(row)
    replaced: list[str] = []
    turn = 0
    for column in shape.columns[-1:] if shape.kind == "alpaca" else shape.columns:
        cell = row[column]
        if shape.kind in ("messages", "sharegpt") or (shape.kind == "pairs" and _is_chat(cell)):
            edited[column], turn = _in_chat(cell, answers, turn, replaced)
        elif shape.kind == "exchanges":
            edited[column] = _in_exchanges(cell, answers, replaced)
        elif shape.kind == "alternating":
            edited[column] = [
                _edit_text(text, answers.get(n // 2) if n % 2 else None, replaced) for n, text in enumerate(cell)
            ]
        elif column == shape.columns[-1]:
            edited[column] = _edit_text(cell, answers.get(turn), replaced)
    if replaced and shape.kind in ("pairs", "alpaca"):  # it led to the answer that is gone
        edited |= dict.fromkeys(thought_columns(row, shape.used))
    for column in set(row) - set(shape.used):
        if _repeats(row[column], replaced):
            edited[column] = None
    return edited


def _is_chat(cell: Any) -> bool:
    return isinstance(cell, Mapping) or (isinstance(cell, list) and any(isinstance(turn, Mapping) for turn in cell))


def _in_chat(cell: Any, answers: Replacements, turn: int, replaced: list[str]) -> tuple[Any, int]:
    """A list of turns with new answers, in whichever of its forms, and the number of the next answer."""
    if isinstance(cell, str):
        edited, turn = _in_chat(json.loads(cell), answers, turn, replaced)
        return json.dumps(edited, ensure_ascii=False), turn
    if isinstance(cell, Mapping):  # one list for each key
        keys = list(cell)
        rows = [dict(zip(keys, values, strict=True)) for values in zip(*cell.values(), strict=True)]
        edited, turn = _in_chat(rows, answers, turn, replaced)
        return {key: [row[key] for row in edited] for key in keys}, turn
    turns = []
    for item in cell:
        if any(message["role"] == "assistant" for message in parse_turn(item, f"turn {turn}").messages):
            if (answer := answers.get(turn)) is not None:
                key = next(key for key in TEXT_KEYS if item.get(key) is not None)
                item = {**item, key: _edit_text(item[key], answer, replaced)}
                for thought_key in set(THOUGHT_KEYS) & set(item):  # it led to the answer that is gone
                    item[thought_key] = None
            turn += 1
        turns.append(item)
    return turns, turn


def _in_exchanges(
    cell: Sequence[Mapping[str, Any]], answers: Replacements, replaced: list[str]
) -> list[dict[str, Any]]:
    edited = []
    for number, pair in enumerate(cell):
        key = next(keys[1] for keys in EXCHANGE_KEYS if set(keys) <= set(pair))
        gone = thought_columns(pair, (key,)) if number in answers else ()
        edited.append({**pair, key: _edit_text(pair[key], answers.get(number), replaced), **dict.fromkeys(gone)})
    return edited


def _edit_text(old: Any, new: str | None, replaced: list[str]) -> Any:
    """A text for a text; of a list of parts the texts become one, and what is no text stays."""
    if new is None:
        return old
    if isinstance(old, str):
        replaced.append(split_thought(old)[1].strip())
        return new
    if not isinstance(old, list):
        return new
    texts = [part.get("text", "") if isinstance(part, Mapping) else str(part) for part in old]
    replaced.append("".join(map(str, texts)).strip())
    if not any(isinstance(part, Mapping) for part in old):
        return [new]
    written = False
    parts: list[Any] = []
    for part in old:
        if (
            isinstance(part, Mapping)
            and isinstance(part.get("text"), str)
            and part.get("type") in (None, "text", "output_text")
        ):
            if not written:
                parts.append({**part, "text": new})
                written = True
        elif not isinstance(part, str):
            parts.append(part)
    return parts if written else [*parts, {"type": "text", "text": new}]


def _repeats(value: Any, replaced: Sequence[str]) -> bool:
    """Whether a column holds an answer that was replaced: as its text, or inside a longer one.

    A short answer inside a longer text counts only where that text is a chat or a filled-in template: ``4`` is part of
    many an id.
    """
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    chat = bool(chat_kind(value)) or has_markup(text)
    for answer in filter(None, replaced):
        written = (answer, json.dumps(answer, ensure_ascii=False)[1:-1])
        if text.strip() == answer or ((chat or len(answer) >= LONG) and any(form in text for form in written)):
            return True
    return False
