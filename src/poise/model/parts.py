"""In which part of an answer a generated token is: the thought, a mark around it, or the reply.

Known from the text as it comes, by the rules that ``poise.data.turn_parsing.split_thought`` has for written answers: a
thought stands at the head of an answer, between marks such as ``<think>`` and ``</think>``, or in a channel of the
harmony format that is not the final one. The opening mark may stand in the prompt.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from poise.data.messages import AnswerPart
from poise.data.turn_parsing import THOUGHT_TAGS

__all__ = ["Part", "PartTracker", "ThoughtMarks", "TokenPart", "in_part"]

Part = AnswerPart
"""What of an answer is read, steered or learnt."""

TokenPart = Literal["thought", "mark", "reply"]
"""What a token is: one that holds a mark and some of a thought or reply is of that; blanks around marks are marks."""

OPEN_THOUGHT = re.compile("(" + "|".join(re.escape(opening) for opening, _ in THOUGHT_TAGS) + r")[ \t]*(\n*)\Z")
CHANNEL, MESSAGE, START, FINAL = "<|channel|>", "<|message|>", "<|start|>", "final"
CHANNEL_NAME = re.compile(r"<\|channel\|>\s*(\w+)")
HEADER_MARKS = (START, CHANNEL, MESSAGE)
BODY_ENDS = ("<|end|>", "<|return|>", "<|call|>", START, CHANNEL)
OPEN_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>\s*\Z")
SOLUTION_FOLLOWS = "<|end_of_thought|>"
SOLUTION_OPENS, SOLUTION_ENDS = "<|begin_of_solution|>", "<|end_of_solution|>"
MARK_TEXTS = frozenset(
    [*(mark for pair in THOUGHT_TAGS for mark in pair), MESSAGE, *BODY_ENDS, SOLUTION_OPENS, SOLUTION_ENDS]
)
PROMPT_TAIL = 64  # tokens of a prompt that say how it ends
AnswerState = Literal["head", "thought", "reply", "header", "body"]
RANK: dict[TokenPart | None, int] = {None: -1, "mark": 0, "thought": 1, "reply": 2}


def in_part(token_part: TokenPart, part: Part) -> bool:
    """Whether a token is of the part that is asked for; all are of ``both``, marks of nothing else."""
    return part in ("both", token_part)


@dataclass(frozen=True, slots=True, kw_only=True)
class ThoughtMarks:
    """How a model marks its thoughts.

    Attributes:
        closings: Closing marks that its template or its vocabulary knows: one without an opening ends a thought, too.
        channels: Whether its template has the channels of the harmony format.
        ids: Text of those tokens that are a mark by themselves; tokenizers decode some of them to nothing.
    """

    closings: tuple[str, ...]
    channels: bool
    ids: Mapping[int, str]

    @classmethod
    def of(cls, tokenizer: Any) -> ThoughtMarks:
        """Those of a tokenizer and its chat template."""
        template, added = str(tokenizer.chat_template or ""), tokenizer.get_added_vocab()
        known = [pair for pair in THOUGHT_TAGS if any(mark in template or mark in added for mark in pair)]
        return cls(
            closings=tuple(closing for _, closing in known),
            channels=CHANNEL in template or (CHANNEL in added and MESSAGE in added),
            ids={number: text for text, number in added.items() if text in MARK_TEXTS},
        )

    def tracker(self, tokenizer: Any, prompt: Sequence[int]) -> PartTracker:
        """A tracker for the answer to a prompt, whose end says whether a thought is open."""
        tail = str(tokenizer.decode(list(prompt[-PROMPT_TAIL:]), skip_special_tokens=False))
        return PartTracker(self, tail)


class PartTracker:
    """The parts of one answer's tokens, one token at a time.

    A token is settled when nothing that may follow can change its part; until then ``parts`` has what it is for now.

    Args:
        marks: The model's.
        prompt: How the prompt ends.

    Attributes:
        texts: What each token adds to the thought or to the reply; marks, and the blanks around them, add nothing.
        pieces: What each token adds to the answer with its marks.
        unopened: The token, counted from 0, that ended a thought that no mark had opened: what came before it is
            thought, and was taken for a reply until then. ``None`` where there is none.
    """

    def __init__(self, marks: ThoughtMarks, prompt: str = "") -> None:
        self.marks = marks
        self.texts: list[str] = []
        self.pieces: list[str] = []
        self.unopened: int | None = None
        self._parts: list[TokenPart | None] = []
        self._pending: deque[tuple[int, str]] = deque()  # tokens, each with what of its text is not settled
        self._buffer = ""
        self._closing = ""  # mark that ends the thought
        self._body: TokenPart = "reply"  # what the channel holds
        self._solution = False  # whether the reply has marks of its own
        self._marked = False  # whether any mark has been seen
        self._fresh = True  # whether the thought or reply has no text yet
        self._written: dict[TokenPart, list[str]] = {"thought": [], "reply": []}
        self._counts: Counter[TokenPart] = Counter()
        self._state: AnswerState = "header" if marks.channels else "head"
        self._begin(prompt)

    def _begin(self, prompt: str) -> None:
        if self.marks.channels:
            if channel := OPEN_CHANNEL.search(prompt):
                self._open_channel(channel[1])
            self._marked = self._state != "body" or self._body != "reply"
        elif opened := OPEN_THOUGHT.search(prompt):
            self._open_thought(dict(THOUGHT_TAGS)[opened[1]])

    @property
    def parts(self) -> list[TokenPart]:
        """Part of each token so far."""
        return [part or self._expected for part in self._parts]

    def part_of(self, token: int) -> TokenPart:
        """Part of a token, counted from 0."""
        return self._parts[token] or self._expected

    @property
    def part(self) -> TokenPart:
        """Part of the newest token, as far as it is known."""
        return (self._parts[-1] if self._parts else None) or self._expected

    @property
    def place(self) -> int:
        """Number of tokens of the newest one's part that stand before it."""
        part, newest = self.part, len(self._parts) - 1
        if newest < 0:
            return 0
        expected = [index for index, _ in self._pending if self._parts[index] is None and index < newest]
        counted = self._counts[part] - (self._parts[newest] is not None)
        return counted + (len(expected) if part == self._expected else 0)

    @property
    def settled(self) -> int:
        """Number of tokens whose part is certain."""
        return self._pending[0][0] if self._pending else len(self._parts)

    @property
    def marked(self) -> bool:
        """Whether there is anything but a reply: a mark has come, or the prompt has opened a thought."""
        return self._marked

    @property
    def watching(self) -> bool:
        """Whether a next token may be anything but reply, a closing mark without an opening one aside."""
        return self._state != "reply" or self._solution

    @property
    def thought(self) -> str:
        """The thought so far."""
        return "".join(self._written["thought"])

    @property
    def reply(self) -> str:
        """The reply so far."""
        return "".join(self._written["reply"])

    def goes_on(self, token: int) -> bool:
        """Whether the answer goes on after a token that ends answers elsewhere: the end of a thought's channel."""
        return self._state == "body" and self._body == "thought" and self.marks.ids.get(token) == "<|end|>"

    def add(self, token: int, piece: str) -> None:
        """Add a token with what the tokenizer makes of it after those before it."""
        text = piece or self.marks.ids.get(token, "")
        self.pieces.append(text)
        self.texts.append("")
        self._parts.append(None)
        self._pending.append((len(self._parts) - 1, text))
        self._buffer += text
        while self._buffer and self._advance():
            pass

    def finish(self) -> None:
        """No more tokens follow: what may have become a mark is text."""
        text = self._buffer.strip()
        if self._state == "header" and text and not text.startswith(HEADER_MARKS):
            self._state = "reply"
        part = "mark" if self._state == "head" and self._marked and not text else self._expected
        self._emit(len(self._buffer), part)
        for index, _ in self._pending:
            self._parts[index] = self._parts[index] or part
        self._pending.clear()

    @property
    def _expected(self) -> TokenPart:
        """What a token is taken for until it is settled."""
        if self._state == "body":
            return self._body
        return "thought" if self._state == "thought" else "mark" if self._state == "header" else "reply"

    def _advance(self) -> bool:
        """Settle what can be settled; true where the state has changed, so that there may be more."""
        return {
            "head": self._read_head,
            "thought": self._read_thought,
            "reply": self._read_reply,
            "header": self._read_header,
            "body": self._read_body,
        }[self._state]()

    def _read_head(self) -> bool:
        """Before a thought or the reply; blanks are settled with what follows them."""
        blank = len(self._buffer) - len(self._buffer.lstrip())
        if self._marked:
            self._emit(blank, "mark")
            blank = 0
        text = self._buffer[blank:]
        for opening, closing in THOUGHT_TAGS:
            if text.startswith(opening):
                self._emit(blank + len(opening), "mark")
                self._open_thought(closing)
                return True
        openings = [opening for opening, _ in THOUGHT_TAGS]
        if self._closing == SOLUTION_FOLLOWS:
            openings.append(SOLUTION_OPENS)
            if text.startswith(SOLUTION_OPENS):
                self._emit(len(SOLUTION_OPENS), "mark")
                self._state, self._solution, self._fresh = "reply", True, True
                return True
        if any(opening.startswith(text) for opening in openings):
            return False
        self._state = "reply"
        return True

    def _read_thought(self) -> bool:
        self._skip_blanks()
        at = self._buffer.find(self._closing)
        if at >= 0:
            thought = len(self._buffer[:at].rstrip())
            self._emit(thought, "thought")
            self._emit(at - thought + len(self._closing), "mark")
            self._state = "head"
            return True
        self._emit(_certain(self._buffer, (self._closing,), blanks=True), "thought")
        return False

    def _read_reply(self) -> bool:
        """The reply of an answer without channels, which runs to the end."""
        if self._solution:
            self._skip_blanks()
        ends = (SOLUTION_ENDS,) if self._solution else () if self._marked else self.marks.closings
        at, end = _first_of(self._buffer, ends)
        if not end:
            self._emit(_certain(self._buffer, ends, blanks=self._solution), "reply")
            return False
        if self._solution:
            at = len(self._buffer[:at].rstrip())
            self._emit(at, "reply")
            self._emit(len(self._buffer), "mark")
            self._state, self._solution, self._marked = "reply", False, True
            return True
        self._emit(at, "reply")
        self.unopened = self._pending[0][0]
        self._parts = ["thought" if part == "reply" else part for part in self._parts]
        self._counts = Counter(part for part in self._parts if part)
        self._written = {"thought": ["".join(self._written["reply"]).strip()], "reply": []}
        self._emit(len(end), "mark")
        self._state, self._marked = "head", True
        return True

    def _read_header(self) -> bool:
        """Before the text of a channel."""
        at = self._buffer.find(MESSAGE)
        if at >= 0:
            channel = CHANNEL_NAME.search(self._buffer[:at])
            self._emit(at + len(MESSAGE), "mark")
            self._open_channel(channel[1] if channel else FINAL)
            return True
        text = self._buffer.lstrip()
        starts = (*HEADER_MARKS, "to=")
        if not text or any(text.startswith(start) or start.startswith(text) for start in starts):
            return False
        self._open_channel(FINAL)
        return True

    def _read_body(self) -> bool:
        """The text of a channel."""
        if self._marked:
            self._skip_blanks()
        at, end = _first_of(self._buffer, BODY_ENDS)
        if not end:
            self._emit(_certain(self._buffer, BODY_ENDS, blanks=self._body == "thought"), self._body)
            return False
        text = len(self._buffer[:at].rstrip()) if self._body == "thought" else at
        self._emit(text, self._body)
        self._emit(at - text + (0 if end in (START, CHANNEL) else len(end)), "mark")
        self._state, self._marked = "header", True
        return True

    def _open_thought(self, closing: str) -> None:
        self._state, self._closing, self._marked, self._fresh = "thought", closing, True, True

    def _open_channel(self, name: str) -> None:
        self._state, self._fresh = "body", True
        self._body = "reply" if name == FINAL else "thought"

    def _skip_blanks(self) -> None:
        """Blanks after a mark are part of it."""
        if self._fresh:
            self._emit(len(self._buffer) - len(self._buffer.lstrip()), "mark")

    def _emit(self, count: int, part: TokenPart) -> None:
        """Settle that many characters of the buffer."""
        self._buffer = self._buffer[count:]
        while count > 0:
            index, text = self._pending.popleft()
            taken, remainder = text[:count], text[count:]
            count -= len(taken)
            if remainder:
                self._pending.appendleft((index, remainder))
            self._label(index, part, taken)

    def _label(self, index: int, part: TokenPart, text: str) -> None:
        before = self._parts[index]
        if RANK[part] > RANK[before]:
            self._parts[index], self.texts[index] = part, ""
            self._counts[part] += 1
            self._counts[before or part] -= before is not None
        if part == "mark" or not text:
            return
        written = self._written[part]
        text = f"\n\n{text}" if self._fresh and written else text  # between two thoughts, or two channels of the reply
        self._fresh = False
        written.append(text)
        if part == self._parts[index]:
            self.texts[index] += text


def _first_of(text: str, marks: Sequence[str]) -> tuple[int, str]:
    """Where the first of these marks stands, and which it is; an empty one where there is none."""
    places = [(at, mark) for mark in marks if (at := text.find(mark)) >= 0]
    return min(places, default=(len(text), ""))


def _certain(text: str, marks: Sequence[str], *, blanks: bool) -> int:
    """Characters that do not begin a mark, nor, with ``blanks``, the blanks before one."""
    held = max((n for mark in marks for n in range(1, len(mark)) if text.endswith(mark[:n])), default=0)
    certain = text[: len(text) - held]
    return len(certain.rstrip() if blanks else certain)
