"""What a row of a data file is: recognised by its columns and their types, and never guessed.

A row has a known shape, or it is refused with what was seen in it and the shape that would read it. No column is taken
for the text because it is the only one left: a name, an id or a version is not an answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from poise.data.chat_markup import has_markup
from poise.data.messages import Need
from poise.data.turn_parsing import ROLE_KEYS, TEXT_KEYS, describe_type

__all__ = [
    "ANSWERS",
    "CHATS",
    "CONTEXTS",
    "EXCHANGE_KEYS",
    "SYSTEMS",
    "Recognition",
    "RowColumns",
    "as_list",
    "chat_kind",
    "find_column",
    "is_text",
    "recognise",
    "recognise_pair",
    "unwrap",
]

RowColumns = Mapping[str, Any]


CHATS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "contents", "data", "turns")
PROMPTS = ("prompt", "question", "instruction", "input", "query", "problem", "user", "human", "inputs")
ANSWERS = ("response", "answer", "completion", "output", "reply", "solution", "assistant", "targets", "target")
INSTRUCTIONS, CONTEXTS, OUTPUTS = ("instruction",), ("input", "context"), ("output", *ANSWERS)
SYSTEMS = ("system", "system_prompt", "system_message", "systeminstruction", "system_instruction")
TEXTS = ("text", "content", "body", "document")
EXCHANGE_KEYS = (
    ("human", "assistant"),
    ("input", "output"),
    ("user", "assistant"),
    ("question", "answer"),
    ("prompt", "response"),
    ("instruction", "output"),
)
PREFERRED = ("chosen", "preferred", "preferred_output", "chosen_response", "response_chosen", "accepted")
LABELS = ("label", "kto_tag", "is_chosen")
REJECTED = ("rejected", "dispreferred", "non_preferred_output", "rejected_response", "response_rejected")
STRONG_PROMPTS = ("prompt", "question", "instruction", "query", "problem")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recognition:
    """What a row is.

    Attributes:
        kind: The shape; empty where the row is refused.
        columns: Columns that hold it, named as in the row.
        refusal: What was seen, and why that cannot be read as it is.
        remedy: What would help.
    """

    kind: str = ""
    columns: tuple[str, ...] = ()
    refusal: str = ""
    remedy: str = ""


def recognise(row: RowColumns, need: Need) -> Recognition:
    """The first shape that fits, or a refusal. Judged by columns and types; texts only for the marks of a chat."""
    for recogniser in (_recognise_spread, _recognise_preference, _recognise_chat, recognise_pair, _recognise_text):
        if recognition := recogniser(row, need):
            return recognition
    shown = ", ".join(f"{name} ({_sketch(value)})" for name, value in row.items())
    example = "pairs:QUESTION,ANSWER or messages:CHAT" if need == "assistant" else "pairs:QUESTION or messages:CHAT"
    return Recognition(
        refusal=f"no known shape; its columns are {shown}", remedy=f"name the columns with a shape like {example}"
    )


def find_column(row: RowColumns, names: Sequence[str], suits: Callable[[Any], bool]) -> str | None:
    """The row's own name for the first of ``names`` that it has; upper case and spaces around it do not matter."""
    names_in_row = {name.strip().lower(): name for name in row if isinstance(name, str)}
    present = (names_in_row[name.lower()] for name in names if name.lower() in names_in_row)
    return next((name for name in present if suits(row[name])), None)


def is_text(value: Any) -> bool:
    """Whether a cell is text."""
    return isinstance(value, str)


def unwrap(value: Any) -> Any:
    """A text for a list that holds one text alone."""
    return value[0] if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str) else value


def as_list(value: Any) -> list[Any] | None:
    """A list of turns, which tables also keep as JSON text or as one list for each key; ``None`` for anything else."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if isinstance(value, dict) and value and all(isinstance(part, list) for part in value.values()):
        if len({len(part) for part in value.values()}) != 1:
            return None
        return [dict(zip(value, turn, strict=True)) for turn in zip(*value.values(), strict=True)]
    return value if isinstance(value, list) else None


def chat_kind(value: Any) -> str:
    """``messages``, ``sharegpt``, ``exchanges`` or ``alternating`` for a list of turns; empty for anything else."""
    turns = as_list(value)
    if not turns:
        return ""
    if all(isinstance(turn, str) for turn in turns):
        return "alternating" if len(turns) > 1 and isinstance(value, list) else ""
    first = turns[0]
    if not isinstance(first, Mapping):
        return ""
    if any(key in first for key in ROLE_KEYS):
        texts = any(key in first for key in TEXT_KEYS) or "tool_calls" in first or "function_call" in first
        return ("sharegpt" if "role" not in first else "messages") if texts else ""
    return "exchanges" if any(set(keys) <= set(first) for keys in EXCHANGE_KEYS) else ""


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
        and not find_column(row, CHATS, chat_kind_is)
    ):
        return Recognition(
            refusal=f"a single message (columns {', '.join(map(str, row))}): the conversation is spread over lines",
            remedy='put the messages of each conversation into one row {"messages": [{"role", "content"}, …]}',
        )
    return None


def chat_kind_is(value: Any) -> bool:
    """Whether a cell holds the turns of a chat."""
    return bool(chat_kind(value))


def _recognise_preference(row: RowColumns, need: Need) -> Recognition | None:
    def side(value: Any) -> bool:
        return is_text(value) or isinstance(value, Mapping) or chat_kind_is(value)

    preferred, rejected = find_column(row, PREFERRED, side), find_column(row, REJECTED, side)
    prompt = find_column(row, PROMPTS, side)
    if preferred and rejected:
        if need == "user" and prompt:
            return None
        shape = f"messages:{preferred}"
        if is_text(row[preferred]):
            alone = "markup" if has_markup(row[preferred]) else "text"
            shape = f"pairs:{prompt},{preferred}" if prompt else f"{alone}:{preferred}"
        return Recognition(
            kind="preference",
            columns=(*([prompt] if prompt else []), preferred, rejected),
            refusal=f"preference data: {preferred} and {rejected} are two answers to one prompt",
            remedy=f"to read the preferred answers alone, give the shape {shape}",
        )
    completion = find_column(row, ANSWERS, side)
    if rejected and prompt and completion and need == "assistant":
        return Recognition(
            kind="preference",
            columns=(prompt, completion, rejected),
            refusal=f"preference data: {completion} and {rejected} are two answers to one prompt",
            remedy=f"to read {completion} alone, give the shape pairs:{prompt},{completion}",
        )
    label = find_column(row, LABELS, _is_verdict)
    if label and prompt and completion and need == "assistant":
        return Recognition(
            kind="preference",
            columns=(prompt, completion, label),
            refusal=f"preference data: {label} says which answers are good, and the others are not",
            remedy=f"to read good and bad answers alike, give the shape pairs:{prompt},{completion}",
        )
    chat = find_column(row, CHATS, chat_kind_is)
    if label and chat and isinstance(row[label], bool) and need == "assistant":
        return Recognition(
            kind="preference",
            columns=(chat, label),
            refusal=f"preference data: {label} says which conversations are good, and the others are not",
            remedy=f"to read good and bad ones alike, give the shape messages:{chat}",
        )
    return None


def _is_verdict(value: Any) -> bool:
    """Good or bad, as KTO's data say it."""
    return isinstance(value, bool) or str(value).strip().lower() in ("true", "false", "0", "1")


def _recognise_chat(row: RowColumns, need: Need) -> Recognition | None:
    column = find_column(row, CHATS, chat_kind_is)
    if column is None:
        return None
    return Recognition(kind=chat_kind(row[column]), columns=(column,))


def recognise_pair(row: RowColumns, need: Need) -> Recognition | None:
    """A prompt and its answer in columns of their own, with or without an input; or why that is ambiguous."""

    def side(value: Any) -> bool:
        return is_text(unwrap(value)) or (chat_kind(value) == "messages" and not is_text(value))

    instruction, context = find_column(row, INSTRUCTIONS, is_text), find_column(row, CONTEXTS, is_text)
    output = find_column(row, OUTPUTS, is_text)
    prompts = [name for one in PROMPTS if (name := find_column(row, (one,), side))]
    answers = [name for one in ANSWERS if (name := find_column(row, (one,), side)) and name not in prompts[:1]]
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
        return None
    if has_markup(row[column]):
        return Recognition(kind="markup", columns=(column,))
    return Recognition(kind="text", columns=(column,)) if need == "assistant" else None


def _sketch(value: Any) -> str:
    """What a cell holds, in few words."""
    turns = as_list(value) if isinstance(value, list | Mapping) else None
    if turns and isinstance(turns[0], Mapping):
        return f"a list of objects with {', '.join(map(str, turns[0]))}"
    if isinstance(value, str) and re.match(r"\s*(?:\[\s*)?\{\s*'", value):
        return "text, a Python repr and not JSON"
    return describe_type(value)
