"""What stands beside the turns of a row: marks of what is not to be learnt, the thought before an answer, tools."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from poise.data.columns import RowColumns, as_list, find_column, is_text, names_present
from poise.data.encoded_cells import decode_json, is_turn
from poise.data.loss_marks import (
    IGNORED_INDEX,
    LAST_TURN_KEYS,
    LEARN_KEYS,
    MASK_KEYS,
    VERDICT_KEYS,
    is_off,
    is_one,
    is_zero,
    listed_marks,
    mark_name,
    names_assistant,
    refuse_unknown_mark,
)
from poise.data.messages import Message
from poise.data.turn_parsing import describe_type, parse_turn
from poise.data.turn_thoughts import THOUGHT_KEYS, read_thought
from poise.errors import InvalidRow

__all__ = ["add_row_thought", "apply_loss_mask", "history_of", "thought_columns", "tools_of"]

ROW_MARKS = (*LEARN_KEYS, "sample_weight")
MASK_COLUMNS = (*LEARN_KEYS, "loss_masks", "loss_weights", "turn_mask", "train_mask", "assistant_masks")
THINKING_SWITCHES = ("", "on", "off", "true", "false", "yes", "no", "none", "null", "auto", "low", "medium", "high")
UNCLEAR_MASKS = ("mask", "masks")
TOKEN_COLUMNS = ("input_ids", "tokens")


def apply_loss_mask(messages: list[Message], in_file: Sequence[Sequence[Message]], row: RowColumns) -> None:
    """Honour marks beside the turns: one for the whole row, for each turn, or for each of the assistant's turns.

    Args:
        messages: The row's turns, changed in place.
        in_file: The messages that each turn of the file became, as marks are counted; of one each where it is empty.
        row: Its columns.

    Raises:
        InvalidRow: there are more or fewer marks than turns, or they are not marks.
    """
    if unclear := find_column(row, UNCLEAR_MASKS, lambda value: _is_list(value) or listed_marks(value) is not None):
        raise InvalidRow(
            f"loss mask: {unclear} may mark what is learnt or what is left out; name it loss_mask, with 1 for turns "
            "that are learnt"
        )
    if other := next((name for name in row if _is_other_mask(str(name), row[name])), None):
        raise InvalidRow(
            f"loss mask: {other} may mark tokens; name it loss_mask if it marks turns, with 1 for the learnt"
        )
    refuse_unknown_mark(row, "the row")
    names = [(mark_name(name), name) for name in row if isinstance(name, str) and row[name] is not None]
    if mapping := next((n for mark, n in names if mark in MASK_COLUMNS and isinstance(row[n], Mapping)), None):
        raise InvalidRow(f"loss mask: {mapping} holds {describe_type(row[mapping])}; write a list of 0 and 1")
    answers = [turn for turn in messages if turn["role"] == "assistant"]
    off = any(mark in ROW_MARKS and is_off(mark, row[name]) for mark, name in names)
    off |= any(mark in MASK_KEYS and (is_one(row[name]) or names_assistant(row[name])) for mark, name in names)
    for turn in answers if off else ():
        turn["learn"] = False
    if any(mark in LAST_TURN_KEYS and is_one(row[name]) for mark, name in names):
        for turn in answers[:-1]:
            turn["learn"] = False
    for mark, name in names:
        if (off_turns := _turns_off(mark, row[name])) is not None:
            _mark(messages, in_file, off_turns, name)
    if column := find_column(row, ("labels", "label"), _has_ignored):
        marks = as_list(row[column]) or []
        tokens = find_column(row, TOKEN_COLUMNS, lambda value: isinstance(value, list) and len(value) == len(marks))
        if all(mark == IGNORED_INDEX for mark in marks):
            marks = [IGNORED_INDEX] * len(answers)
        elif tokens:
            raise InvalidRow(
                f"loss mask: {column} marks tokens of {tokens}; write a loss_mask with 0 or 1 for each turn"
            )
        _mark(messages, in_file, [mark == IGNORED_INDEX for mark in marks], column)


def _mark(messages: Sequence[Message], in_file: Sequence[Sequence[Message]], off: Sequence[bool], column: str) -> None:
    turns = in_file or [[message] for message in messages]
    answers = [turn for turn in turns if any(message["role"] == "assistant" for message in turn)]
    targets = next((group for group in (turns, answers) if len(group) == len(off)), None)
    if targets is None:
        raise InvalidRow(f"loss mask: {column} has {len(off)} marks for {len(turns)} turns")
    for turn, mark in zip(targets, off, strict=True):
        for message in turn:
            if mark and message["role"] == "assistant":
                message["learn"] = False


def _turns_off(mark: str, cell: Any) -> list[bool] | None:
    """Which turns a column of this name leaves out; ``None`` where it does not hold a mark for each."""
    marks = as_list(cell) if _is_list(cell) else listed_marks(cell, digits="mask" in mark)
    if marks is None:
        return None
    if mark in MASK_COLUMNS:
        return [one is None or is_zero(one) for one in marks]
    if mark in MASK_KEYS and marks and all(one is None or is_one(one) or is_zero(one) for one in marks):
        return [is_one(one) for one in marks]
    if mark in VERDICT_KEYS and marks and all(isinstance(one, bool) for one in marks):
        return [not one for one in marks]
    return None


def _is_list(value: Any) -> bool:
    """A list, or one that a cell keeps as JSON."""
    return isinstance(value, list) or (isinstance(value, str) and value.lstrip().startswith("["))


def _is_other_mask(name: str, value: Any) -> bool:
    """A list of 0 and 1 under a name of a mask that is not known to be one of turns."""
    name = mark_name(name)
    if not name.endswith(("_mask", "_masks")) or name in (*MASK_COLUMNS, "attention_mask", "special_tokens_mask"):
        return False
    marks = as_list(value) if _is_list(value) else None
    return bool(marks) and all(is_zero(mark) or is_one(mark) for mark in marks or ()) and any(map(is_zero, marks or ()))


def _has_ignored(value: Any) -> bool:
    """Whether a cell holds labels of which losses ignore some."""
    labels = as_list(value) if _is_list(value) else None
    return any(isinstance(label, int | float) and label == IGNORED_INDEX for label in labels or ())


def history_of(row: RowColumns) -> Iterator[tuple[str, str]]:
    """Who says what before a question: pairs of question and answer in a column ``history``, or its turns.

    Raises:
        InvalidRow: its list holds something else.
    """
    column = find_column(
        row, ("history",), lambda value: isinstance(value, list) or (is_text(value) and _is_list(value))
    )
    for number, item in enumerate(as_list(row[column]) or () if column else (), start=1):
        pair = list(item.values()) if isinstance(item, Mapping) and len(item) == 2 and not is_turn(item) else item
        if is_turn(item):
            for message in parse_turn(item, f"history, turn {number}").messages:
                yield message["role"], message["content"]
        elif isinstance(pair, list | tuple) and len(pair) == 2 and all(map(is_text, pair)):
            yield from zip(("user", "assistant"), pair, strict=True)
        else:
            raise InvalidRow(
                f"not a history: {column} holds {describe_type(item)}; it takes pairs [question, answer] or turns"
            )


def thought_columns(row: RowColumns, used: tuple[str, ...]) -> list[str]:
    """Columns beside the turns that hold the thought before an answer, as text, a list of blocks or an object."""
    return [name for name in names_present(row, THOUGHT_KEYS) if name not in used and _thought_text(row[name])]


def add_row_thought(
    messages: list[Message], row: RowColumns, used: tuple[str, ...], *, last: bool = False
) -> list[str]:
    """Give the only answer of a row the thought that a column of its own holds.

    Args:
        messages: The row's turns, changed in place.
        row: Its columns.
        used: Those that became turns.
        last: Whether the row is one question and answer, after others: the thought is that of the last.

    Returns:
        What is not read, by kind: thoughts beside several answers, and such as have no text.
    """
    answers = [message for message in messages if message["role"] == "assistant"]
    names = names_present(row, THOUGHT_KEYS)
    hidden = [kind for name in names if name not in used for kind in read_thought(row[name])[1]]
    columns = thought_columns(row, used)
    if not columns or not answers:
        return hidden
    if len(answers) > 1 and not last:
        return [*hidden, *(["thought beside several answers"] * len(columns))]
    inside = answers[-1].get("thought", "")
    beside = "\n\n".join(dict.fromkeys(_thought_text(row[name]) for name in columns))
    repeated = bool(inside) and " ".join(inside.split()) in " ".join(beside.split())
    answers[-1]["thought"] = beside if repeated or not inside else f"{beside}\n\n{inside}"
    return hidden


def _thought_text(cell: Any) -> str:
    """The text of a thought in a cell; empty for a switch such as ``on``."""
    decoded = decode_json(cell) if isinstance(cell, str) else cell
    texts, _ = read_thought(decoded if isinstance(decoded, list | Mapping) else cell)
    text = "\n\n".join(texts)
    return "" if text.strip().lower() in THINKING_SWITCHES else text


def tools_of(row: RowColumns) -> tuple[tuple[dict[str, Any], ...], tuple[str, ...]]:
    """Definitions of a row's tools in OpenAI's form, which chat templates take; and a kind for each that is not read.

    Raises:
        InvalidRow: a cell holds a Python repr.
    """
    column = find_column(
        row, ("tools", "functions"), lambda value: bool(value) and isinstance(value, str | list | dict)
    )
    if column is None:
        return (), ()
    cell = row[column]
    value = decode_json(cell) if isinstance(cell, str) else cell
    if value is None and cell.strip()[:1] in ("[", "{"):
        raise InvalidRow(f"tools: {column} holds a Python repr or broken JSON; write its definitions as JSON")
    items: list[Any] = [value] if isinstance(value, Mapping) else value if isinstance(value, list) else [cell]
    items = [decode_json(item) or item if isinstance(item, str) else item for item in items]
    unread = tuple("tool definition" for item in items if not isinstance(item, Mapping) and str(item).strip())
    return tuple(tool for item in items if isinstance(item, Mapping) for tool in _openai_tools(item)), unread


def _openai_tools(item: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One definition in OpenAI's older or newer form, Anthropic's, Bedrock's, or several in Gemini's."""
    declarations = item.get("functionDeclarations", item.get("function_declarations"))
    if isinstance(declarations, list):
        for declaration in declarations:
            if isinstance(declaration, Mapping):
                yield from _openai_tools(declaration)
        return
    tool = item["toolSpec"] if isinstance(item.get("toolSpec"), Mapping) else item
    if isinstance(tool.get("function"), Mapping) or not isinstance(tool.get("name"), str):
        yield dict(tool)
        return
    keys = ("parameters", "input_schema", "inputSchema")
    parameters: Any = next((tool[key] for key in keys if isinstance(tool.get(key), Mapping)), {})
    parameters = parameters["json"] if tool is not item and isinstance(parameters.get("json"), Mapping) else parameters
    description = {"description": tool["description"]} if isinstance(tool.get("description"), str) else {}
    yield {"type": "function", "function": {"name": tool["name"], **description, "parameters": parameters}}
