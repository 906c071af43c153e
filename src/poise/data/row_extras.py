"""What stands beside the turns of a row: marks of what is not to be learnt, the thought before an answer, tools."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from poise.data.loss_marks import LEARN_KEYS, MASK_KEYS, is_one, is_zero
from poise.data.messages import Message
from poise.data.recognition import RowColumns, as_list, find_column, is_text
from poise.data.turn_thoughts import THOUGHT_KEYS
from poise.errors import InvalidRow

__all__ = ["add_row_thought", "apply_loss_mask", "thought_columns", "tools_of"]

ROW_MARKS = tuple(key for key in (*LEARN_KEYS, "sample_weight") if key != "loss")  # a row's loss is a figure
MASK_COLUMNS = (*LEARN_KEYS, "loss_masks", "loss_weights", "weights", "turn_mask", "train_mask", "assistant_masks")
UNCLEAR_MASKS = ("mask", "masks")


def apply_loss_mask(messages: list[Message], row: RowColumns) -> None:
    """Honour marks beside the turns: one for the whole row, for each turn, or for each of the assistant's turns.

    Raises:
        InvalidRow: there are more or fewer marks than turns.
    """
    column = find_column(row, MASK_COLUMNS, _is_list)
    if unclear := find_column(row, UNCLEAR_MASKS, _is_list):
        raise InvalidRow(
            f"loss mask: {unclear} may mark what is learnt or what is left out; name it loss_mask, with 1 for turns "
            "that are learnt"
        )
    answers = [turn for turn in messages if turn["role"] == "assistant"]
    if find_column(row, ROW_MARKS, is_zero) or find_column(row, MASK_KEYS, is_one):
        for turn in answers:
            turn["learn"] = False
    if column is None:
        return
    marks = as_list(row[column]) or []
    targets = next((group for group in (messages, answers) if len(group) == len(marks)), None)
    if targets is None:
        raise InvalidRow(f"loss mask: {column} has {len(marks)} marks for {len(messages)} turns")
    for turn, mark in zip(targets, marks, strict=True):
        if (mark is None or is_zero(mark)) and turn["role"] == "assistant":
            turn["learn"] = False


def _is_list(value: Any) -> bool:
    """A list, or one that a cell keeps as JSON."""
    return isinstance(value, list) or (isinstance(value, str) and value.lstrip().startswith("["))


def thought_columns(row: RowColumns, used: tuple[str, ...]) -> list[str]:
    """Columns beside a prompt and its answer that hold the thought before that answer."""
    names = (find_column(row, (key,), is_text) for key in THOUGHT_KEYS)
    return [name for name in names if name and name not in used and row[name].strip()]


def add_row_thought(messages: list[Message], row: RowColumns, used: tuple[str, ...]) -> None:
    """Give the only answer of a row the thought that a column of its own holds."""
    answers = [message for message in messages if message["role"] == "assistant"]
    columns = thought_columns(row, used)
    if columns and len(answers) == 1 and not answers[0].get("thought"):
        answers[0]["thought"] = "\n\n".join(row[name] for name in columns)


def tools_of(row: RowColumns) -> tuple[dict[str, Any], ...]:
    """Definitions of a row's tools in OpenAI's form, which chat templates take."""
    column = find_column(row, ("tools", "functions"), lambda value: isinstance(value, str | list))
    listed = as_list(row[column]) if column else None
    return tuple(tool for item in listed or () if isinstance(item, Mapping) for tool in _openai_tools(item))


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
