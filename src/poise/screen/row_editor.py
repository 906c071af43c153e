"""Other answers put into a row, in the row's own shape: ``poise.data.readers.read_row`` backwards."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from poise.data.chat_markup import has_markup
from poise.data.columns import EXCHANGE_KEYS, as_list, find_column
from poise.data.encoded_cells import decode_turns, is_turn
from poise.data.readers import read_row, shape_of_row
from poise.data.row_extras import history_of, thought_columns
from poise.data.shapes import DataShape
from poise.data.thoughts import split_thought
from poise.data.tool_calls import call_marks, split_calls
from poise.data.turn_parsing import ROLE_KEYS, TEXT_KEYS, TEXT_TYPES, parse_turn
from poise.data.turn_thoughts import HIDDEN_PART, TURN_THOUGHT_KEYS, is_only_thought, is_thought_part, read_thought
from poise.errors import InvalidRow
from poise.screen.text_copies import cell_texts, comparable_text, holds_copy

__all__ = ["replace_answers"]

Replacements = Mapping[int, str]

EDITED_CHATS = ("messages", "sharegpt", "exchanges")
EDITED_CALLS = ("tool_calls", "function_call", "function_calls")


def replace_answers(shape: DataShape, row: Mapping[str, Any], answers: Replacements) -> dict[str, Any]:
    """The row with other answers. Columns, and keys of turns, that repeat an old one are emptied; nothing else changes.

    Args:
        shape: How the row was read.
        row: Its columns.
        answers: New answers by turn, as ``poise.data.turns`` numbers them.

    Raises:
        InvalidRow: the shape cannot be written, as text with chat marks cannot, or a tool call repeats an old answer.
    """
    if shape.kind == "markup" or (shape.kind == "text" and has_markup(str(row[shape.columns[0]]))):
        raise InvalidRow("an answer inside marked-up text cannot be replaced")
    shape = shape_of_row(shape, row)
    edited = dict(row)
    replaced: list[str] = []
    turn = 0
    history = _history_column(shape, row)
    if history:
        turn = _edit_history(history, row, edited, answers, replaced)
    for column in shape.columns[-1:] if shape.kind == "alpaca" else shape.columns:
        cell = row.get(column)
        if cell is None and column != shape.columns[0]:
            continue  # the chat ends with its answer
        if (
            _is_chat(cell)
            if shape.kind == "pairs" or column != shape.columns[0]
            else shape.kind in ("messages", "sharegpt")
        ):
            edited[column], turn = _in_chat(cell, answers, turn, replaced)
        elif shape.kind == "exchanges":
            edited[column] = _in_list(cell, lambda pairs: _in_exchanges(pairs, answers, replaced))
        elif shape.kind == "alternating" and column == shape.columns[0]:
            turn = len(as_list(cell) or ()) // 2
            edited[column] = _in_list(cell, lambda texts: _in_alternating(texts, answers, replaced))
        elif column == shape.columns[-1]:
            edited[column] = _edit_text(cell, answers.get(turn), replaced)
    if replaced:  # it led to the answer that is gone
        thoughts = thought_columns(row, shape.used)
        replaced += [text.strip() for name in thoughts for text in cell_texts(row[name])]
        edited |= dict.fromkeys(thoughts)
    questions = _questions(shape, row)
    for column in set(row) - {*shape.used, history}:
        if holds_copy(row[column], replaced, questions):
            edited[column] = None
    chats = shape.columns if shape.kind in EDITED_CHATS else ()
    for column in chats:
        if replaced and column and not isinstance(edited[column], str | None):
            edited[column] = _without_copies(edited[column], replaced, questions)
        elif replaced and column and (turns := decode_turns(edited[column])) is not edited[column]:
            edited[column] = json.dumps(_without_copies(turns, replaced, questions), ensure_ascii=False)
    _refuse_unwritten(shape, row, edited, answers)
    return edited


def _refuse_unwritten(
    shape: DataShape, row: Mapping[str, Any], edited: Mapping[str, Any], answers: Replacements
) -> None:
    """Raise where the edited row does not read as it is meant to: an old answer would stay in it.

    Raises:
        InvalidRow: names the turn.
    """
    try:
        read_row(shape, row, "assistant")
    except InvalidRow:
        return  # nothing of it was read before
    messages = [turn for turn in read_row(shape, edited, "assistant").messages if turn["role"] == "assistant"]
    for number, answer in answers.items():
        if number >= len(messages) or messages[number]["content"].strip() != answer.strip():
            raise InvalidRow(f"answer {number + 1} cannot be replaced where it stands")


def _without_copies(cell: Any, replaced: Sequence[str], questions: Sequence[str]) -> Any:
    """The turns of a chat without what repeats an old answer beside their words.

    Raises:
        InvalidRow: a tool call does.
    """
    if isinstance(cell, list):
        return [_without_copies(turn, replaced, questions) for turn in cell]
    if not isinstance(cell, Mapping):
        return cell
    exchange = next((keys for keys in EXCHANGE_KEYS if set(keys) <= set(cell)), ())
    words = {*ROLE_KEYS, *TEXT_KEYS, "messages", *exchange}
    columnar = all(isinstance(value, list) for value in cell.values())
    edited = dict(cell)
    for key, value in cell.items():
        if key in ("messages", *TEXT_KEYS) and isinstance(value, list):
            parts = [_part_without_copies(part, replaced, questions) for part in value]
            edited[key] = parts if columnar else [part for part in parts if part is not None]
        elif key not in words and holds_copy(value, replaced, questions):
            if key in EDITED_CALLS:
                raise InvalidRow(f"{key} of a turn repeats the old answer")
            edited[key] = [None] * len(value) if columnar else None
    return edited


def _part_without_copies(part: Any, replaced: Sequence[str], questions: Sequence[str]) -> Any:
    """One part of a turn without what repeats an old answer; ``None`` for one that only repeats it.

    Raises:
        InvalidRow: a tool call or its result does.
    """
    if not isinstance(part, Mapping):
        return part
    is_text = part.get("type") in TEXT_TYPES
    copies = [key for key in part if not (is_text and key == "text") and holds_copy(part[key], replaced, questions)]
    if copies and any(word in f"{part.get('type')} {' '.join(part)}".lower() for word in ("tool", "function")):
        raise InvalidRow(f"{copies[0]} of a tool's part of a turn repeats the old answer")
    if copies and not is_text:
        return None
    return {**part, **dict.fromkeys(copies)}


def _questions(shape: DataShape, row: Mapping[str, Any]) -> list[str]:
    try:
        messages = read_row(shape, row, "assistant").messages
    except InvalidRow:
        return []
    return [comparable_text(turn["content"]) for turn in messages if turn["role"] == "user"]


def _in_list(cell: Any, edit: Callable[[list[Any]], list[Any]]) -> Any:
    """A list with other items, in whichever of its forms: as it is, as JSON text, or as one list for each key."""
    if isinstance(cell, str):
        return json.dumps(_in_list(json.loads(cell), edit), ensure_ascii=False)
    if isinstance(cell, Mapping):
        edited = edit(as_list(cell) or [])
        return {key: [item[key] for item in edited] for key in cell}
    return edit(cell)


def _in_alternating(texts: Sequence[Any], answers: Replacements, replaced: list[str]) -> list[Any]:
    return [_edit_text(text, answers.get(n // 2) if n % 2 else None, replaced) for n, text in enumerate(texts)]


def _history_column(shape: DataShape, row: Mapping[str, Any]) -> str | None:
    """The column of earlier questions and answers that are read before a pair."""
    column = find_column(row, ("history",), lambda value: value not in (None, "", []))
    return column if shape.kind in ("pairs", "alpaca") and column not in shape.used and any(history_of(row)) else None


def _edit_history(
    column: str, row: Mapping[str, Any], edited: dict[str, Any], answers: Replacements, replaced: list[str]
) -> int:
    """Earlier answers replaced; how many there are."""
    earlier = sum(role == "assistant" for role, _ in history_of(row))
    if any(number < earlier for number in answers):
        if any(map(is_turn, as_list(row[column]) or ())):
            edited[column], _ = _in_chat(row[column], answers, 0, replaced)
        else:
            edited[column] = _in_list(row[column], lambda pairs: _in_pairs(pairs, answers, replaced))
    return earlier


def _in_pairs(pairs: Sequence[Any], answers: Replacements, replaced: list[str]) -> list[Any]:
    """Pairs of a question and its answer, as lists or with names."""
    edited: list[Any] = []
    for number, pair in enumerate(pairs):
        names, texts = (list(pair), list(pair.values())) if isinstance(pair, Mapping) else ([], list(pair))
        texts[1] = _edit_text(texts[1], answers.get(number), replaced)
        edited.append(dict(zip(names, texts, strict=True)) if names else texts)
    return edited


def _is_chat(cell: Any) -> bool:
    if isinstance(cell, str):
        return decode_turns(cell) is not cell
    return isinstance(cell, Mapping) or (isinstance(cell, list) and any(isinstance(turn, Mapping) for turn in cell))


def _in_chat(cell: Any, answers: Replacements, turn: int, replaced: list[str]) -> tuple[Any, int]:
    """A list of turns with new answers, in whichever of its forms, and the number of the next answer."""
    if isinstance(cell, str):
        edited, turn = _in_chat(json.loads(cell), answers, turn, replaced)
        return json.dumps(edited, ensure_ascii=False), turn
    if isinstance(cell, Mapping) and isinstance(cell.get("messages"), list):
        edited, turn = _in_chat(cell["messages"], answers, turn, replaced)
        return {**cell, "messages": edited}, turn
    if isinstance(cell, Mapping) and is_turn(cell):
        edited, turn = _in_chat([cell], answers, turn, replaced)
        return edited[0], turn
    if isinstance(cell, Mapping):  # one list for each key
        keys = list(cell)
        rows = [dict(zip(keys, values, strict=True)) for values in zip(*cell.values(), strict=True)]
        edited, turn = _in_chat(rows, answers, turn, replaced)
        return {key: [row[key] for row in edited] for key in keys}, turn
    if any(isinstance(item, str) for item in cell):  # turns as JSON texts
        edited, turn = _in_chat([json.loads(item) for item in cell], answers, turn, replaced)
        return [json.dumps(item, ensure_ascii=False) for item in edited], turn
    turns: list[Any] = []
    answers_of = [
        [message for message in parse_turn(item, f"turn {n}").messages if message["role"] == "assistant"]
        for n, item in enumerate(cell, start=1)
    ]
    for item, mine, following in zip(cell, answers_of, [*answers_of[1:], []], strict=True):
        if mine:
            leads = bool(following) and is_only_thought(mine[-1])  # it is a part of the turn that follows
            if (answer := answers.get(turn)) is not None:
                replaced += _thoughts(item) if not leads else [mine[-1]["thought"].strip()]
                if leads:
                    continue
                texts = {key: _edit_text(item[key], answer, replaced) for key in TEXT_KEYS if item.get(key) is not None}
                if not texts or not any(item.get(key) for key in texts):  # OpenAI's refusal in the place of a content
                    texts = {"content": answer, "refusal": None}
                item = {**item, **texts, **dict.fromkeys(_thought_keys(item))}
            turn += not leads
        turns.append(item)
    return turns, turn


def _thought_keys(item: Mapping[str, Any]) -> list[str]:
    """A turn's keys of the thought that led to its answer."""
    return [key for key in item if str(key).strip().lower() in TURN_THOUGHT_KEYS]


def _thoughts(item: Mapping[str, Any]) -> list[str]:
    return [text.strip() for key in _thought_keys(item) for text in read_thought(item[key])[0]]


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
    """A text for a text; of a list of parts the texts become one, and what is not text stays."""
    if new is None:
        return old
    if isinstance(old, str):
        thought, words = split_thought(old)
        words, calls = split_calls(words)
        replaced += [text.strip() for text in (thought, words)]
        return f"{new}\n{call_marks(old)}" if calls else new
    if not isinstance(old, list):
        return new
    replaced += [text.strip() for part in old if _is_thought(part) for text in read_thought(part)[0]]
    old = [part for part in old if not _is_thought(part)]  # it led to the answer that is gone
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


def _is_thought(part: Any) -> bool:
    """Whether a part of an answer is the thought before it, which goes with the answer."""
    return is_thought_part(part) or (isinstance(part, Mapping) and part.get("type") == HIDDEN_PART)
