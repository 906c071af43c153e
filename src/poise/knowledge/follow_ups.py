"""Questions that follow others: what is looked for, which turns a prompt shows, and the file that keeps them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from poise.data import Message
from poise.errors import InvalidArgument
from poise.grounding.facts import content_words
from poise.storage.atomic_write import saving

__all__ = [
    "FollowUpSearch",
    "append_turns",
    "joined_question",
    "latest_turns",
    "read_turns",
    "rewriting_prompt",
    "search_text",
    "usable_rewriting",
]

FollowUpSearch = Literal["last", "join", "rewrite"]
"""The last question alone; with the one before it where it says little by itself; or as a model rewrites it."""

FEW_WORDS = 3  # of a question that is looked for together with the one before it
REWRITTEN_TOKENS = 48
MOST_REWRITTEN = 400  # characters: more is no question
MOST_SOUGHT = 5000  # characters of two questions together
_SHOWN_CHARACTERS = 600  # characters of an earlier turn
_TURN_ROLES = ("user", "assistant", "system")
_CITATIONS = re.compile(r"\s*\[(\d{1,3}(\s*[,;]\s*\d{1,3})*|unsupported)\]")
_EXAMPLES = (
    ("How old is the oak by the lake?", "And how tall?", "How tall is the oak by the lake?"),
    ("Who built the bridge?", "What does a ferry ticket cost?", "What does a ferry ticket cost?"),
)


def joined_question(questions: Sequence[str]) -> str:
    """The last question; with the one before it where it has hardly any words, such as "And on Sundays?"."""
    few = len(content_words(questions[-1])) <= FEW_WORDS
    return "\n".join(questions[-2:] if few else questions[-1:])[-MOST_SOUGHT:]


def search_text(
    questions: Sequence[str], use: FollowUpSearch, write: Callable[[list[Message], int], str] | None = None
) -> str:
    """What is looked for.

    Args:
        questions: What the user asked so far, oldest first; the last one is answered.
        use: What of it.
        write: Answers a prompt with at most that many tokens, for ``rewrite``; what it writes is taken where it is a
            question, else both questions are joined.
    """
    if use == "last" or len(questions) == 1:
        return questions[-1]
    if use == "rewrite" and write is not None:
        rewritten = usable_rewriting(write(rewriting_prompt(questions), REWRITTEN_TOKENS))
        if rewritten:
            return rewritten
    return joined_question(questions)


def rewriting_prompt(questions: Sequence[str]) -> list[Message]:
    """A prompt that asks for the last question as it would be asked by itself."""
    lines = ["Rewrite the follow-up as one question that can be understood without the question before it."]
    for before, follow, alone in (*_EXAMPLES, (questions[-2], questions[-1], "")):
        lines += [
            "",
            f"Before: {_joined_words(before)}",
            f"Follow-up: {_joined_words(follow)}",
            f"Rewritten: {alone}".rstrip(),
        ]
    return [{"role": "user", "content": "\n".join(lines)}]


def usable_rewriting(text: str) -> str:
    """A question out of what a model wrote; empty where it is none."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "").removeprefix("Rewritten:").strip()
    return line if content_words(line) and len(line) <= MOST_REWRITTEN else ""


def _joined_words(text: str) -> str:
    return " ".join(text.split())[:_SHOWN_CHARACTERS]


def latest_turns(turns: Sequence[Message], count: Callable[[Sequence[Message]], int], most: int) -> list[Message]:
    """The latest turns, from one of the user's on, that have at most so many tokens; system turns stay.

    Citations in earlier answers are left out: their numbers are those of other passages.

    Args:
        turns: Turns before the question.
        count: Counts tokens of a prompt.
        most: Tokens that they may have.
    """
    system = [turn for turn in turns if turn["role"] == "system"]
    others = [_without_citations(turn) for turn in turns if turn["role"] != "system"]
    starts = [place for place, turn in enumerate(others) if turn["role"] == "user"]
    fitting = (others[start:] for start in starts if count([*system, *others[start:]]) <= most)
    return [*system, *next(fitting, [])]


def _without_citations(turn: Message) -> Message:
    """An answer as it was before citations and marks were written into it."""
    if turn["role"] != "assistant":
        return turn
    return {"role": "assistant", "content": _CITATIONS.sub("", turn["content"])}


def read_turns(path: Path) -> list[Message]:
    """The conversation in a file of JSON lines, each a turn with ``role`` and ``content``; none where there is no file.

    Raises:
        InvalidArgument: it is none, with the line.
    """
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(
            f"The conversation {path} cannot be read ({error}); name a file of JSON lines."
        ) from error
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    turns = [_turn_of_line(path, number, line) for number, line in numbered]
    spoken = [turn["role"] for turn in turns if turn["role"] != "system"]
    if spoken != ["user", "assistant"] * (len(spoken) // 2):
        raise InvalidArgument(
            f"{path} is no conversation that a question can follow: in it a turn of the assistant follows each of the "
            "user, and ends it."
        )
    return turns


def _turn_of_line(path: Path, number: int, line: str) -> Message:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict) or row.get("role") not in _TURN_ROLES or not isinstance(row.get("content"), str):
        raise InvalidArgument(
            f'{path}, line {number} is no turn; write {{"role": "user", "content": "…"}}, and answers by "assistant".'
        )
    return {"role": row["role"], "content": row["content"]}


def append_turns(path: Path, question: str, answer: str) -> None:
    """Add a question and its answer to the conversation in a file; a new file where there is none.

    Raises:
        SaveFailed: the disk refused; the file is as it was.
    """
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    turns = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    lines = "".join(json.dumps(turn, ensure_ascii=False) + "\n" for turn in turns)
    if before and not before.endswith("\n"):
        before += "\n"
    with saving(path) as temporary:
        temporary.write_text(before + lines, encoding="utf-8")
