"""Preference data: two answers to one prompt, or answers with a verdict. Which is to be read must be said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from poise.data.chat_markup import has_markup
from poise.data.columns import (
    ANSWERS,
    CHATS,
    NAMED_TURNS,
    PROMPTS,
    TEXTS,
    RowColumns,
    as_list,
    chat_kind,
    find_column,
    is_chat,
    is_text,
    last_words,
    names_present,
)
from poise.data.messages import Need
from poise.data.turn_parsing import ROLES

__all__ = ["PairColumns", "Recognition", "find_pair_columns", "is_good", "recognise_preference", "shape_of_answer"]

PREFERRED = (
    "chosen", "preferred", "preferred_output", "chosen_response", "response_chosen", "accepted", "chosen_messages",
    "chosen_conversations", "chosen_output", "better", "best",
)  # fmt: skip
REJECTED = (
    "rejected", "dispreferred", "non_preferred_output", "rejected_response", "response_rejected", "rejected_output",
    "rejected_messages", "rejected_conversations", "rejected_answer", "worse", "negative_response",
)  # fmt: skip
VERDICTS = (
    "label", "labels", "kto_tag", "kto_label", "is_chosen", "chosen", "is_preferred", "preferred", "desirable",
    "is_desirable", "accepted", "is_good", "is_correct_preference", "thumbs_up", "verdict", "preference",
)  # fmt: skip
GOOD_WORDS = (
    "true", "1", "1.0", "+1", "yes", "good", "desirable", "chosen", "accept", "accepted", "preferred", "thumbs_up",
)  # fmt: skip
BAD_WORDS = (
    "false", "0", "0.0", "-1", "-1.0", "no", "bad", "undesirable", "rejected", "reject", "dispreferred", "thumbs_down",
)  # fmt: skip


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


@dataclass(frozen=True, slots=True, kw_only=True)
class PairColumns:
    """Where a row holds two answers to one prompt.

    Attributes:
        chosen: Column of the preferred answer; the chat itself where it ends with that answer.
        rejected: Column of the other answer.
        prompt: Column of the prompt as text or turns.
        chat: Column of the turns before the answers.
    """

    chosen: str
    rejected: str
    prompt: str | None = None
    chat: str | None = None


def find_pair_columns(row: RowColumns) -> PairColumns | None:
    """The columns of two answers to one prompt, the preferred one first; ``None`` where a row has no two."""
    prompt, chat = find_column(row, PROMPTS, _is_answer_like), find_column(row, CHATS, is_chat)
    preferred, rejected = find_column(row, PREFERRED, _is_answer_like), find_column(row, REJECTED, _is_answer_like)
    answer = find_column(row, ANSWERS, _is_answer_like)
    answer = None if answer == prompt or not (prompt or chat) else answer
    if not rejected:
        return None
    chosen = preferred or answer or chat or _text_beside(row, rejected)
    if not chosen:
        return None
    return PairColumns(chosen=chosen, rejected=rejected, prompt=prompt, chat=chat)


def recognise_preference(row: RowColumns, need: Need) -> Recognition | None:
    """Why a row of preference data is refused, and the shape that reads the answers that were preferred."""
    prompt, chat = find_column(row, PROMPTS, _is_answer_like), find_column(row, CHATS, is_chat)
    if need == "user" and (prompt or chat):
        return None
    pair = find_pair_columns(row)
    if pair and (need == "assistant" or find_column(row, PREFERRED, _is_answer_like)):
        shape = f"messages:{chat}" if pair.chosen == chat else _shape_of(row, pair.chosen, prompt, chat)
        return _refuse_pair(row, pair.chosen, pair.rejected, shape)
    if need == "user":
        return None
    answer = find_column(row, ANSWERS, _is_answer_like)
    answer = None if answer == prompt else answer
    label = find_column(row, VERDICTS, _is_verdict)
    if label and prompt and answer:
        return _refuse_labelled(label, (prompt, answer), "answers", _shape_of(row, answer, prompt, None))
    if label and chat:
        shape = f"messages:{chat}" if answer is None else _shape_of(row, answer, None, chat)
        return _refuse_labelled(label, (chat,), "conversations", shape)
    marked_up = _marked_up_column(row) if label and not answer else None
    if label and marked_up:
        return _refuse_labelled(label, (marked_up,), "conversations", f"markup:{marked_up}")
    return None


def _refuse_labelled(label: str, columns: tuple[str, ...], noun: str, shape: str) -> Recognition:
    """A row whose label says whether it is good; ``noun`` is what it labels."""
    return Recognition(
        kind="preference",
        columns=(*columns, label),
        refusal=f"preference data: {label} says which {noun} are good, and the others are not",
        remedy=f"to read good and bad {'answers' if noun == 'answers' else 'ones'} alike, give the shape {shape}",
    )


def _text_beside(row: RowColumns, rejected: str) -> str | None:
    """A text beside another answer that was rejected; a mark in words is no answer."""
    if _is_verdict(row[rejected]) or not row[rejected]:
        return None
    return find_column(row, TEXTS, lambda value: is_text(value) and bool(value.strip()))


def _marked_up_column(row: RowColumns) -> str | None:
    """A column that holds a chat as marked-up text."""
    names = names_present(row, (*TEXTS, *CHATS, *PROMPTS))
    return next((name for name in names if is_text(row[name]) and has_markup(row[name])), None)


def _refuse_pair(row: RowColumns, preferred: str, rejected: str, shape: str) -> Recognition:
    listed = shape.startswith("pairs:") and chat_kind(row[preferred]) == "alternating"
    return Recognition(
        kind="preference",
        columns=(preferred, rejected),
        refusal=f"preference data: {preferred} and {rejected} are two answers to one prompt",
        remedy=f"{preferred} is a list of texts: write the one that is meant as text"
        if listed
        else f"to read the preferred answers alone, give the shape {shape}; to compare both, screen by `method` "
        "preference; to learn both, train with `method: dpo`",
    )


def _shape_of(row: RowColumns, answer: str, prompt: str | None, chat: str | None) -> str:
    kind, columns = shape_of_answer(row, answer, prompt, chat)
    return f"{kind}:{','.join(columns)}"


def shape_of_answer(row: RowColumns, answer: str, prompt: str | None, chat: str | None) -> tuple[str, tuple[str, ...]]:
    """The shape that reads an answer with the prompt that belongs to it, and its columns."""
    value = row[answer]
    kind = chat_kind(value)
    if kind and kind not in NAMED_TURNS and not _is_list_of_answers(row, value, prompt):
        return kind, (answer,)
    if turns := as_list(value) if is_chat(value) else None:
        first = turns[0] if isinstance(turns[0], Mapping) else {}
        speaker = next((first[key] for key in ("role", "from") if isinstance(first.get(key), str)), "")
        if ROLES.get(speaker.strip().lower()) in ("user", "system"):
            return "messages", (answer,)  # it has the prompt in itself
    elif is_text(value) and has_markup(value) and value.lstrip()[:1] != "{":
        return "markup", (answer,)
    if prompt and not (chat and last_words(row[chat])[0] == "user"):
        return "pairs", (prompt, answer)
    if chat:
        return "messages", (chat, answer)
    return ("messages" if turns else "text"), (answer,)


def _is_list_of_answers(row: RowColumns, value: Any, prompt: str | None) -> bool:
    """Whether texts beside a prompt do not begin with it: they are answers to it, and no turns."""
    first = (as_list(value) or [""])[0]
    return bool(prompt) and is_text(first) and str(row[str(prompt)]).strip() not in first


def _is_answer_like(value: Any) -> bool:
    return is_text(value) or isinstance(value, Mapping) or is_chat(value)


def is_good(verdict: Any) -> bool:
    """Whether a verdict is in favour of its answer."""
    return str(verdict).strip().lower() in GOOD_WORDS


def _is_verdict(value: Any) -> bool:
    """Good or bad, as KTO's data say it."""
    return isinstance(value, bool) or (
        not isinstance(value, list) and str(value).strip().lower() in (*GOOD_WORDS, *BAD_WORDS)
    )
