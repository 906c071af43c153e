"""What a row of a data file is: recognised by its columns and their types, and never guessed.

A row has a known shape, or it is refused with what was seen in it and the shape that would read it. No column is taken
for the text because it is the only one left: a name, an id or a version is not an answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from poise.data.chat_markup import has_markup
from poise.data.columns import (
    ANSWERS,
    CHATS,
    CONTEXTS,
    INSTRUCTIONS,
    OUTPUTS,
    PROMPTS,
    STRONG_PROMPTS,
    SYSTEMS,
    TEXTS,
    RowColumns,
    as_list,
    chat_kind,
    find_column,
    is_chat,
    is_text,
    last_words,
    names_present,
    unwrap,
)
from poise.data.encoded_cells import decode_json, holds_repr
from poise.data.messages import Need
from poise.data.preferences import Recognition, recognise_preference
from poise.data.turn_parsing import ROLE_KEYS, TEXT_KEYS, describe_type, excerpt

__all__ = ["Recognition", "objection", "recognise", "recognise_pair"]


COLUMN_NAMES = frozenset((*CHATS, *PROMPTS, *ANSWERS, *SYSTEMS, *TEXTS))
RESPONSES = ("response", "completion", "output", "reply", "assistant")  # an `answer` may be what is right
ID_LIKE = re.compile(
    r"(?=\S*\d)[\w.:/#@%+=-]{3,}", re.ASCII
)  # one word with a digit in it: an id, an address, a number


def recognise(row: RowColumns, need: Need) -> Recognition:
    """The first shape that fits, or a refusal. Judged by columns and types; texts only for the marks of a chat."""
    for recogniser in (
        _recognise_spread,
        recognise_preference,
        _recognise_doubtful,
        _recognise_chat,
        recognise_pair,
        _recognise_text,
    ):
        if recognition := recogniser(row, need):
            return recognition
    shown = ", ".join(f"{name} ({_sketch(value)})" for name, value in row.items())
    example = "pairs:QUESTION,ANSWER or messages:CHAT" if need == "assistant" else "pairs:QUESTION or messages:CHAT"
    return Recognition(
        refusal=f"no known shape; its columns are {shown}", remedy=f"name the columns with a shape like {example}"
    )


def objection(kind: str, row: RowColumns, need: Need) -> str:
    """Why a row of a file whose shape was recognised is not read in it, as its first rows would not have been.

    A verdict, a second answer or a second prompt may begin late in a file. Empty where nothing is against it.
    """
    recognisers = [recognise_preference, _recognise_doubtful]
    recognisers += {"pairs": [recognise_pair], "alpaca": [recognise_pair], "text": [_prompt_beside_text]}.get(kind, [])
    for recogniser in recognisers:
        seen = recogniser(row, need)
        if seen and seen.refusal:
            return f"{seen.refusal}; {seen.remedy}"
    return ""


def _recognise_spread(row: RowColumns, need: Need) -> Recognition | None:
    """Conversations that are spread over lines, or wrapped in something else."""
    names = {str(name).strip().lower() for name in row}
    if "parent_id" in names and ("message_id" in names or "role" in names):
        return Recognition(
            refusal="one message of a tree, linked to others by parent_id",
            remedy='join each path from a root to a leaf into one row {"messages": [{"role", "content"}, …]}',
        )
    tree = row.get("prompt")
    if isinstance(tree, Mapping) and isinstance(tree.get("replies"), list):
        return Recognition(
            refusal="a tree of replies (prompt.replies)",
            remedy='write each path from the root to a leaf as one row {"messages": [{"role", "content"}, …]}',
        )
    if "custom_id" in names and isinstance(row.get("response"), Mapping):
        return Recognition(
            refusal="a result of a batch API: the answer is in response.body, and its prompt is in the request file",
            remedy='join both files by custom_id into rows {"messages": [{"role", "content"}, …]}',
        )
    role = find_column(row, ROLE_KEYS, is_text)
    if (
        role
        and find_column(row, TEXT_KEYS, lambda value: isinstance(value, str | list))
        and not find_column(row, CHATS, is_chat)
    ):
        return Recognition(
            refusal=f"a single message (columns {', '.join(map(str, row))}): the conversation is spread over lines",
            remedy='put the messages of each conversation into one row {"messages": [{"role", "content"}, …]}',
        )
    return None


def _recognise_doubtful(row: RowColumns, need: Need) -> Recognition | None:
    """Columns of which either may be meant: names that differ in upper case alone, two chats, a chat and an answer."""
    names: dict[str, str] = {}
    for name in row:
        first = names.setdefault(str(name).strip().lower(), name)
        if (
            first != name
            and str(name).strip().lower() in COLUMN_NAMES
            and row[first]
            and row[name] not in (row[first], None)
        ):
            return Recognition(
                refusal=f"ambiguous: {first} and {name} differ in upper case or spaces alone",
                remedy="rename one of them",
            )
    for column in names_present(row, CHATS):
        if is_text(row[column]) and holds_repr(row[column]):
            return Recognition(
                refusal=f"{column} ({_sketch(row[column])})", remedy="write the file again as JSON Lines or Parquet"
            )
    chats = [column for column in names_present(row, CHATS) if is_chat(row[column])]
    for other in chats[1:]:
        if last_words(row[chats[0]]) != last_words(row[other]):
            return Recognition(
                refusal=f"ambiguous: {chats[0]} and {other} are two chats",
                remedy=f"give the shape {chat_kind(row[chats[0]])}:{chats[0]} or {chat_kind(row[other])}:{other}",
            )
    answer = find_column(row, RESPONSES, _is_answer) if chats and need == "assistant" else None
    if not answer or answer in chats or chat_kind(row[chats[0]]) not in ("messages", "sharegpt"):
        return None
    speaker, words = last_words(row[chats[0]])
    text = unwrap(row[answer]) if is_text(unwrap(row[answer])) else last_words(row[answer])[1]
    if speaker != "assistant" or text.strip() in words:
        return None
    prompt = find_column(row, PROMPTS, is_text)
    instead = f"pairs:{prompt},{answer}" if prompt else f"messages:{chats[0]},{answer}"
    return Recognition(
        refusal=f"ambiguous: {chats[0]} ends with an answer, and {answer} holds another",
        remedy=f"give the shape messages:{chats[0]} or {instead}",
    )


def _is_answer(value: Any) -> bool:
    value = unwrap(value)
    return bool(value.strip()) if is_text(value) else chat_kind(value) in ("messages", "sharegpt")


def _recognise_chat(row: RowColumns, need: Need) -> Recognition | None:
    column = find_column(row, CHATS, is_chat)
    if column is None:
        return None
    kind = chat_kind(row[column])
    answer = find_column(row, ANSWERS, _is_answer) if need == "assistant" and kind in ("messages", "sharegpt") else None
    if answer and answer != column and last_words(row[column])[0] in ("user", "tool"):
        return Recognition(kind=kind, columns=(column, answer))
    return Recognition(kind=kind, columns=(column,))


def recognise_pair(row: RowColumns, need: Need) -> Recognition | None:
    """A prompt and its answer in columns of their own, with or without an input; or why that is ambiguous."""

    def side(value: Any) -> bool:
        return is_text(unwrap(value)) or (chat_kind(value) in ("messages", "sharegpt") and not is_text(value))

    instruction, context = find_column(row, INSTRUCTIONS, is_text), find_column(row, CONTEXTS, is_text)
    output = find_column(row, OUTPUTS, is_text)
    prompts = [name for name in names_present(row, PROMPTS) if side(row[name])]
    answers = [name for name in names_present(row, ANSWERS) if side(row[name]) and name not in prompts[:1]]
    answers = [name for name in dict.fromkeys(answers) if unwrap(row[name])] or answers
    if prompts and len({str(row[name]) for name in answers}) > 1 and need == "assistant":
        ways = " or ".join(f"pairs:{prompts[0]},{name}" for name in answers)
        return Recognition(
            refusal=f"ambiguous: {' and '.join(answers)} could each be the answer to {prompts[0]}",
            remedy=f"give the shape {ways}",
        )
    strong = [name for name in prompts if name.strip().lower() in STRONG_PROMPTS and row[name]]
    if len({str(row[name]) for name in strong}) > 1:
        return Recognition(
            refusal=f"ambiguous: {' and '.join(strong)} could each be the prompt",
            remedy="give the shape "
            + " or ".join(f"pairs:{name},{answers[0] if answers else 'ANSWER'}" for name in strong),
        )
    if instruction and context and (output or need == "user"):
        return Recognition(kind="alpaca", columns=(instruction, context, output or ""))
    if prompts and answers:
        return Recognition(kind="pairs", columns=(prompts[0], answers[0]))
    return Recognition(kind="pairs", columns=(prompts[0],)) if prompts and need == "user" else None


def _recognise_text(row: RowColumns, need: Need) -> Recognition | None:
    column = find_column(row, TEXTS, is_text)
    if column is None:
        chat = find_column(row, CHATS, lambda value: is_text(value) and has_markup(value))
        return Recognition(kind="markup", columns=(chat,)) if chat else None
    text = row[column]
    if holds_repr(text):
        return Recognition(
            refusal=f"{column} ({_sketch(text)})", remedy="write the file again as JSON Lines, with a chat in messages"
        )
    if chat_kind(text) == "messages":
        return Recognition(kind="messages", columns=(column,))
    if isinstance(inner := decode_json(text), dict) and recognise_pair(inner, "assistant"):
        return Recognition(
            refusal=f"a row of its own as JSON in {column}, with {', '.join(map(str, inner))}",
            remedy="write these rows as JSON Lines, in a file whose name ends in .jsonl",
        )
    if has_markup(text):
        return Recognition(kind="markup", columns=(column,))
    if need == "user":
        return None
    if ambiguous := _prompt_beside_text(row, need):
        return ambiguous
    if ID_LIKE.fullmatch(text.strip()):
        return Recognition(
            refusal=f"an id or a number alone in {column} ({excerpt(text)}) is no answer",
            remedy=f"give the shape text:{column} if it is one",
        )
    return Recognition(kind="text", columns=(column,))


def _prompt_beside_text(row: RowColumns, need: Need) -> Recognition | None:
    """Why a text beside a prompt is refused: it may be the answer, or stand alone."""
    names = (*STRONG_PROMPTS, "inputs", "input")
    prompt, column = find_column(row, names, _is_answer), find_column(row, TEXTS, is_text)
    if not prompt or not column or need == "user":
        return None
    return Recognition(
        refusal=f"ambiguous: {column} could be the answer to {prompt}, or stand alone",
        remedy=f"give the shape pairs:{prompt},{column} or text:{column}",
    )


def _sketch(value: Any) -> str:
    """What a cell holds, in few words."""
    turns = as_list(value) if isinstance(value, list) else None
    if isinstance(value, Mapping) and value:
        return f"an object with {', '.join(map(str, value))}"
    if turns and isinstance(turns[0], Mapping):
        return f"a list of objects with {', '.join(map(str, turns[0]))}"
    if isinstance(value, str) and re.match(r"\s*(?:\[\s*)?\{\s*'", value):
        return "text, a Python repr and not JSON"
    return describe_type(value)
