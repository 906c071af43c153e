"""The marks that models and data sets put around a thought, and whether one in a text is a mark or a word."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["REPLY_TAGS", "THOUGHT_TAGS", "OpenMark", "begins_with_mark", "closing_of", "names_thought", "open_mark"]

TAG_NAMES = (
    "think", "thinking", "thought", "thoughts", "reasoning", "reasoning_content", "chain_of_thought", "cot",
    "inner_monologue", "inner_thoughts", "thought_process", "scratchpad", "reflection", "seed:think", "longcat_think",
)  # fmt: skip
THOUGHT_TAGS = (
    *((f"<{name}>", f"</{name}>") for name in TAG_NAMES),
    ("<think >", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|think|>", "<|/think|>"),
    ("<｜think｜>", "<｜/think｜>"),
    ("<|thinking|>", "<|/thinking|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|channel>thought", "<channel|>"),
    ("<unused94>thought", "<unused95>"),
)
REPLY_TAGS = (("<|begin_of_solution|>", "<|end_of_solution|>"), ("<|START_RESPONSE|>", "<|END_RESPONSE|>"))
CHANNEL, MESSAGE, START, FINAL = "<|channel|>", "<|message|>", "<|start|>", "final"
HEADER_MARKS = (START, CHANNEL, MESSAGE)
BODY_ENDS = ("<|end|>", "<|return|>", "<|call|>", START, CHANNEL)
HEADER_HEADS = (START, CHANNEL, *(f"{name}{MESSAGE}" for name in ("analysis", "commentary", FINAL)))
CHANNEL_NAME = re.compile(r"<\|channel\|>\s*(\w+)|\A\s*(analysis|commentary|final)\b")
HEADER_NAMES = ("assistant", "analysis", "commentary", FINAL)
_NAMED = rf"\s*(?:(?:{'|'.join(HEADER_NAMES)})(?:\s+to=[^\s<]+)?|to=[^\s<]+)\s*"
NAMED_HEADER = re.compile(rf"{_NAMED}(?=<\|(?:channel|message)\|>)")
NAME_OF_HEADER = re.compile(_NAMED)
HEADER_BEGIN = re.compile(rf"\s*(?:(?:{'|'.join(HEADER_NAMES)})(?:\s+(?:t|to|to=[^\s<]*)?)?|to=[^\s<]*)\s*")
OPEN_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>\s*\Z")

CLOSINGS = {opening.lower(): closing.lower() for opening, closing in THOUGHT_TAGS}
REPLY_ENDS = {opening.lower(): end.lower() for opening, end in REPLY_TAGS}
HEAD_MARKS = (*CLOSINGS, *REPLY_ENDS, *HEADER_HEADS)
MARKS = (*CLOSINGS, *CLOSINGS.values(), *REPLY_ENDS.values())


def _any_of(marks: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(marks, key=len, reverse=True))), re.IGNORECASE | re.ASCII)


ANY_OPENING, ANY_HEAD, ANY_MARK = _any_of([*CLOSINGS]), _any_of(HEAD_MARKS), _any_of(MARKS)
CLOSING = {closing: _any_of([closing]) for closing in CLOSINGS.values()}
OPENING = {closing: _any_of([one for one, end in CLOSINGS.items() if end == closing]) for closing in CLOSINGS.values()}
OPEN_MARK = re.compile(rf"({ANY_OPENING.pattern})[ \t]*\n*\Z", re.IGNORECASE | re.ASCII)
FENCE = re.compile(r"^[ \t]*(?:```|~~~)", re.M)
QUOTE_BEFORE = re.compile(r"(?:\A|\W)[rbf]{0,2}['‘“«]\Z", re.IGNORECASE)
AMID_BEFORE, AMID_AFTER = re.compile(r"(?:[\w,;][ \t]|[(\[{/])\Z"), re.compile(r"[ \t.,;:!?/)\]}]|\Z")


THOUGHT_NAME = re.compile(
    r"reason|think|thought|scratch_?pad|monologue|chain_of|\Aplanning\Z|\Asummary_text\Z|reflection"
    r"|(?:\A|[_.-])cot(?:\Z|[_.-])",
    re.I,
)


class OpenMark(NamedTuple):
    """A mark that opens a thought, where it begins in a text, and the one that closes it."""

    start: int
    opening: str
    closing: str


def open_mark(text: str) -> OpenMark | None:
    """The mark of a thought that a text ends in."""
    match = OPEN_MARK.search(text)
    return OpenMark(match.start(), match[1], closing_of(match[1])) if match else None


def names_thought(kind: object) -> bool:
    """Whether the type of a part says that it is a thought: ``reasoning.text``, ``summary_text``, ``scratchpad``."""
    return isinstance(kind, str) and bool(THOUGHT_NAME.search(kind))


def begins_with_mark(text: str) -> bool:
    """Whether a text begins with a mark that opens a thought, or a channel."""
    return bool(ANY_HEAD.match(text.lstrip()))


def begins_header(text: str) -> bool:
    """Whether a text begins with the header of a channel, whose first mark may be left out."""
    return text.lstrip().startswith(HEADER_MARKS) or bool(NAMED_HEADER.match(text))


def may_begin_header(text: str) -> bool:
    """Whether a text may become one that begins with the header of a channel, and is not yet."""
    name, sign, _ = text.partition("<")
    mark = text[len(name) :]
    if sign and not name.strip():
        return any(one.startswith(mark) for one in HEADER_MARKS)
    if sign:
        return bool(NAME_OF_HEADER.fullmatch(name)) and any(one.startswith(mark) for one in (CHANNEL, MESSAGE))
    word = name.lstrip()
    return bool(HEADER_BEGIN.fullmatch(name)) or any(one.startswith(word) for one in (*HEADER_NAMES, "to="))


def closing_of(opening: str) -> str:
    """The mark that closes a thought which this one opens, in any case of letters."""
    return dict(THOUGHT_TAGS).get(opening) or CLOSINGS[opening.lower()]


def is_amid(before: str, text: str, end: int) -> bool:
    """Whether a mark that ends there in a text, after that other text, stands amid a sentence as a word does."""
    return bool(AMID_BEFORE.search(before) and AMID_AFTER.match(text, end))


def is_quoted(before: str) -> bool:
    """Whether what follows this text of a reply is in code or between quotation marks."""
    line = before.rpartition("\n")[2]
    quoted = line.count("`") % 2 or line.count('"') % 2 or QUOTE_BEFORE.search(line)
    return bool(quoted or len(FENCE.findall(before)) % 2)


def first_of(text: str, marks: Sequence[str]) -> tuple[int, str]:
    """Where the first of these marks stands, and which it is; an empty one where there is none."""
    places = [(at, mark) for mark in marks if (at := text.find(mark)) >= 0]
    return min(places, default=(len(text), ""))


def certain_length(text: str, marks: Sequence[str], *, blanks: bool) -> int:
    """Characters that do not begin a mark, nor, with ``blanks``, the blanks before one."""
    beginnings, longest = _beginnings(tuple(marks))
    tail = text[-longest:].lower() if longest else ""
    held = next((n for n in range(len(tail), 0, -1) if tail[-n:] in beginnings), 0)
    certain = text[: len(text) - held]
    return len(certain.rstrip() if blanks else certain)


@functools.lru_cache(maxsize=64)
def _beginnings(marks: tuple[str, ...]) -> tuple[frozenset[str], int]:
    """What marks begin with and are not yet, and the length of the longest."""
    beginnings = frozenset(mark[:n] for mark in marks for n in range(1, len(mark)))
    return beginnings, max(map(len, beginnings), default=0)
