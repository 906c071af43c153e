"""What of a row is not read or learnt, by kind: decided here, counted here, and said in one way everywhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from poise.data.messages import AnswerPart, Conversation, Message, Need, is_answer, prompt_end

__all__ = ["NO_THOUGHT", "count_left_out", "describe_left_out", "left_out_kinds", "why_no_answer"]

NO_THOUGHT = "no thought"
"""Kind of reason of a row whose answers have none where thoughts are read: nothing is wrong with it."""

PLURALS = {
    "answer without a thought": "answers without a thought",
    "audio": "audio clips",
    "reply": "replies",
    "thought without a reply": "thoughts without a reply",
    "thought beside several answers": "thoughts beside several answers",
    "thought not to be learnt": "thoughts not to be learnt",
    "tool call without words": "tool calls without words",
    "turn not to be learnt": "turns not to be learnt",
}


def left_out_kinds(
    messages: Sequence[Message], media: Sequence[tuple[Message, str]], need: Need, part: AnswerPart
) -> tuple[str, ...]:
    """What is not read of one row, a kind for each time: first what is not text, then turns and parts of turns.

    Args:
        messages: The row's turns.
        media: What is no text, with the turn that it stands in.
        need: Of a row that is only asked, nothing counts but what its prompt lacks.
        part: Part of an answer that is read.
    """
    if need == "user":
        prompt = {id(message) for message in messages[: prompt_end(messages)]}
        return tuple(kind for message, kind in media if id(message) in prompt)
    kinds = [kind for _, kind in media]
    for message in messages:
        if message["role"] == "assistant":
            kinds += _left_out_of_turn(message, part)
    return tuple(kinds)


def why_no_answer(messages: Sequence[Message], part: AnswerPart) -> str:
    """Why none of the assistant's turns is an answer, as the reason of a rejected row."""
    reasons = [reason for message in messages if message["role"] == "assistant" for reason in _unfit(message, part)]
    words = {
        "turn not to be learnt": "all are marked as not to be learnt",
        "thought without a reply": "only a thought without a reply",
        "tool call without words": "only tool calls without words",
    }
    why = next((text for kind, text in words.items() if kind in reasons), "")
    if not why and "answer without a thought" in reasons:
        return f"{NO_THOUGHT}: none of its answers has one"
    return "no assistant turn" + (f": {why}" if why else "")


def count_left_out(conversations: Iterable[Conversation]) -> Counter[str]:
    """What conversations leave out, by kind."""
    return Counter(kind for conversation in conversations for kind in conversation.left_out)


def describe_left_out(counts: Mapping[str, int]) -> str:
    """``12 turns not to be learnt, 3 images``, the most frequent first; empty where nothing is left out."""
    kinds = sorted(((kind, n) for kind, n in counts.items() if n), key=lambda count: (-count[1], count[0]))
    return ", ".join(f"{n:,} {kind if n == 1 else PLURALS.get(kind, f'{kind}s')}" for kind, n in kinds)


def _left_out_of_turn(message: Message, part: AnswerPart) -> list[str]:
    if not is_answer(message, part):
        return _unfit(message, part)
    if part == "reply" and message.get("thought"):
        return ["thought"]
    return ["reply"] if part == "thought" and message["content"].strip() else []


def _unfit(message: Message, part: AnswerPart) -> list[str]:
    """Why one of the assistant's turns is not an answer."""
    if not message.get("learn", True):
        return ["turn not to be learnt"]
    if message["content"].strip():
        return ["answer without a thought"] if part == "thought" else []
    if message.get("thought"):
        return [] if part == "thought" else ["thought without a reply"]
    return ["tool call without words"] if message.get("tool_calls") else []
