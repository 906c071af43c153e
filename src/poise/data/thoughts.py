"""The thought of an answer and its reply, told apart while the text comes; a written answer is one that comes at once.

The thought is every thought block, the reply is all other text. A block is what stands between two marks of
``THOUGHT_TAGS``, in any case of letters: at the head of an answer also one that is never closed, and one whose opening
mark stood in the prompt. In the harmony format it is every channel but the final one. Marks that are talked about are
words: between backticks or quotation marks, in a block of code, or amid a sentence with blanks around them.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Literal

from poise.data.thought_marks import (
    ANY_HEAD,
    ANY_MARK,
    BODY_ENDS,
    CHANNEL,
    CHANNEL_NAME,
    CLOSING,
    CLOSINGS,
    FINAL,
    HEAD_MARKS,
    HEADER_HEADS,
    MARKS,
    MESSAGE,
    NAMED_HEADER,
    OPEN_CHANNEL,
    OPENING,
    REPLY_ENDS,
    START,
    begins_header,
    certain_length,
    first_of,
    is_amid,
    is_quoted,
    may_begin_header,
    open_mark,
)

__all__ = ["AnswerSections", "AnswerSplitter", "TokenPart", "gap_after", "locate_thought", "split_thought"]

TokenPart = Literal["thought", "mark", "reply"]
"""What a token is: one that holds a mark and some of a thought or reply is of that; blanks around marks are marks."""

SplitState = Literal["head", "thought", "reply", "header", "body"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerSections:
    """Where the parts of one answer stand, as characters from and up to.

    Attributes:
        thoughts: Each thought with words in it, in order.
        replies: The reply, or each part of it where thoughts or channels stand between; one of no length at the end
            where there is none.
        marked: Whether there are marks of a thought or channels at all; without any, all of the answer is its reply.
        unsure: What may be a mark or a word, and was taken for a word; empty where all is sure.
    """

    thoughts: tuple[tuple[int, int], ...]
    replies: tuple[tuple[int, int], ...]
    marked: bool
    unsure: str = ""

    @property
    def thinks(self) -> bool:
        """Whether there is a thought with words in it."""
        return bool(self.thoughts)

    @property
    def divided(self) -> bool:
        """Whether a thought stands amid the reply, so that no one span is the reply alone."""
        return any(self.replies[0][1] <= start < self.replies[-1][0] for start, _ in self.thoughts)


@dataclass(slots=True)
class Stretch:
    """Characters of an answer, from and up to, that are of one part."""

    start: int
    end: int
    part: TokenPart


@functools.lru_cache(maxsize=2048)  # an earlier turn is looked at again for each answer after it
def locate_thought(text: str) -> AnswerSections:
    """Where in an answer its thoughts and its reply stand, the marks around them and their blanks left out."""
    splitter = AnswerSplitter()
    splitter.add(text)
    splitter.finish()
    thoughts, replies = (
        tuple((stretch.start, stretch.end) for stretch in splitter.stretches if stretch.part == part)
        for part in ("thought", "reply")
    )
    end = (len(text), len(text))
    return AnswerSections(thoughts=thoughts, replies=replies or (end,), marked=splitter.marked, unsure=splitter.unsure)


def split_thought(text: str) -> tuple[str, str]:
    """The thought of an answer, and its reply.

    Several thoughts are joined by an empty line. So are the parts of a reply that thoughts stand between, where no
    blank ends the first of them.
    """
    sections = locate_thought(text)
    parts: list[str] = []
    for part, spans in (("thought", sections.thoughts), ("reply", sections.replies)):
        joined = ""
        for start, end in spans:
            joined += gap_after(joined, part) + text[start:end]
        parts.append(joined)
    return parts[0], parts[1]


def gap_after(text: str, part: str) -> str:
    """What is put after a stretch of a part where the next one of it follows."""
    return "" if not text or (part == "reply" and text[-1].isspace()) else "\n\n"


class AnswerSplitter:
    """Tells the parts of one answer apart as its text comes, in pieces of any length.

    Args:
        prompt: How the prompt ends: a thought or a channel may be open there.
        channels: Whether the model writes the channels of the harmony format.
        closing: Mark that closes a thought which the prompt is known to have opened.

    Attributes:
        stretches: What is settled, in order; no two in a row are of one part.
        settled: Number of characters whose part is certain, but for ``revision``.
        revision: How often a closing mark has made thought of what was settled as something else.
        revised_at: Character at which the last such mark begins.
        marked: Whether there is anything but a reply: a mark has come, or the prompt has opened a thought.
        unsure: What may be a mark or a word; empty where all is sure.
    """

    def __init__(self, prompt: str = "", *, channels: bool = False, closing: str = "") -> None:
        self.stretches: list[Stretch] = []
        self.settled = self.revision = self.revised_at = 0
        self.marked, self.unsure = False, ""
        self._pieces: list[str] = []
        self._buffer = ""  # what is not settled
        self._state: SplitState = "header" if channels else "head"
        self._closing = ""  # mark that ends the thought
        self._begin = 0  # character at which the newest thought begins
        self._nested = 0  # marks that opened the newest thought once more and were not closed
        self._reply_end = ""  # mark that ends the reply
        self._loose = ""  # closing mark of an opening one amid a sentence
        self._body: TokenPart = "reply"  # what the channel holds
        self._fresh = True  # whether the thought or reply has no text yet
        self._finished = False
        channel = OPEN_CHANNEL.search(prompt) if channels else None
        opened = open_mark(prompt)
        if channel:
            self._open_channel(channel[1])
            self.marked = channel[1] != FINAL
        elif closing or (opened and not channels):
            self._open_thought(closing or (opened.closing if opened else ""))
        elif channels:
            self.marked = True

    @property
    def watching(self) -> bool:
        """Whether the next text may be anything but reply, a mark that begins in it aside."""
        return self._state != "reply" or bool(self._reply_end or self._buffer or self._nested)

    @property
    def thinks_on(self) -> bool:
        """Whether a channel of thought is open, which the end of a message ends without ending the answer."""
        return self._state == "body" and self._body == "thought"

    @property
    def expected(self) -> TokenPart:
        """What text is taken for until it is settled."""
        if self._state == "body":
            return self._body
        if self._state == "head" and self._finished and self.marked:
            return "mark"
        return "thought" if self._state == "thought" else "mark" if self._state == "header" else "reply"

    def add(self, text: str) -> None:
        """Add what comes next."""
        self._pieces.append(text)
        self._buffer += text
        self._settle()

    def finish(self) -> None:
        """No more follows: what may have become a mark is text."""
        self._finished = True
        self._settle()
        text = self._buffer.strip()
        if self.expected == "thought":
            self._check_cut_thought()
            self._emit(len(self._buffer.rstrip()), "thought")
            self._emit(len(self._buffer), "mark")
        self._emit(len(self._buffer), "reply" if text and self._state == "head" else self.expected)

    def _settle(self) -> None:
        steps = {
            "head": self._read_head,
            "thought": self._read_thought,
            "reply": self._read_reply,
            "header": self._read_header,
            "body": self._read_body,
        }
        while self._buffer and steps[self._state]():
            pass

    def _read_head(self) -> bool:
        """Before a thought or the reply; blanks are settled with what follows them."""
        blank = len(self._buffer) - len(self._buffer.lstrip())
        if self.marked:
            self._emit(blank, "mark")
            blank = 0
        match = ANY_HEAD.match(self._buffer, blank)
        if NAMED_HEADER.match(self._buffer, blank) or (match and match[0].lower() in HEADER_HEADS):
            self._emit(blank, "mark")
            self._state, self.marked = "header", True
            return True
        if match:
            self._emit(match.end(), "mark")
            mark = match[0].lower()
            if mark in CLOSINGS:
                self._open_thought(CLOSINGS[mark])
            else:
                self._state, self._reply_end, self.marked, self._fresh = "reply", REPLY_ENDS[mark], True, True
            return True
        text = self._buffer[blank:].lower()
        if not self._finished and (
            any(m.startswith(text) for m in HEAD_MARKS) or may_begin_header(self._buffer[blank:])
        ):
            return False
        if text:
            self._state = "reply"
        return bool(text)

    def _read_thought(self) -> bool:
        self._skip_blanks()
        match = CLOSING[self._closing].search(self._buffer)
        if match:
            thought = len(self._buffer[: match.start()].rstrip())
            self._emit(thought, "thought")
            self._emit(match.end() - thought, "mark")
            self._nested = len(OPENING[self._closing].findall(self._text(self._begin, self.settled)))
            self._state = "head"
            return True
        self._emit(certain_length(self._buffer, (self._closing,), blanks=True), "thought")
        return False

    def _read_reply(self) -> bool:
        """The reply of an answer without channels."""
        if self._reply_end:
            self._skip_blanks()
        held = self._nested and any(one.part == "reply" and one.start < self._begin for one in self.stretches)
        for match in ANY_MARK.finditer(self._buffer):
            if match.end() == len(self._buffer) and not self._finished and match[0].lower() != self._reply_end:
                before = self._buffer[: match.start()]  # what follows tells a word from a mark
                self._emit(0 if held else len(before.rstrip() if self._reply_end else before), "reply")
                return False
            if self._take_mark(match):
                return True
        if held and not self._finished:  # until it is known where the thought before it ends
            return False
        ends = (*MARKS, self._reply_end) if self._reply_end else MARKS
        certain = (
            len(self._buffer) if self._finished else certain_length(self._buffer, ends, blanks=bool(self._reply_end))
        )
        self._emit(certain, "reply")
        return False

    def _take_mark(self, match: re.Match[str]) -> bool:
        """Act on a mark in the reply; false where it is a word."""
        mark, at = match[0].lower(), match.start()
        if mark == self._reply_end:
            words = len(self._buffer[:at].rstrip())
            self._emit(words, "reply")
            self._emit(match.end() - words, "mark")
            self._state, self._reply_end = "head", ""
            return True
        before = self._text(self._reply_begin, self.settled) + self._buffer[:at]
        amid = is_amid(before, self._buffer, match.end())
        if mark in REPLY_ENDS.values() or is_quoted(before):
            return False
        if mark in CLOSINGS:
            if amid:
                self._loose = CLOSINGS[mark]
                return False
            self._emit(at, "reply")
            self._emit(len(mark), "mark")
            self._open_thought(CLOSINGS[mark])
            return True
        closes_nested = self._nested and mark == self._closing
        if amid or (self.marked and not closes_nested) or OPENING[mark].search(before.rpartition("\n")[2]):
            if mark == self._loose or not ((amid and self.marked) or OPENING[mark].search(before)):
                self.unsure = self.unsure or match[0]
            return False
        if mark == self._loose:
            self.unsure = self.unsure or match[0]
        self._emit(at, "reply")
        self._make_thought()
        self._emit(len(mark), "mark")
        self._state, self.marked = "head", True
        return True

    def _make_thought(self) -> None:
        """All since the newest thought began is one thought, which the mark that comes next closes."""
        self.revision, self.revised_at, self._nested = self.revision + 1, self.settled, max(self._nested - 1, 0)
        begin, end = self._begin, self.settled
        text = self._text(begin, end)
        self.stretches = [one for one in self.stretches if one.start < begin]
        if self.stretches:
            self.stretches[-1].end = begin
        self.settled = begin
        inside = text.strip()
        for length, part in ((text.find(inside), "mark"), (len(inside), "thought")):
            self._extend(length, part)  # type: ignore[arg-type]
        self._extend(end - self.settled, "mark")

    def _read_header(self) -> bool:
        """Before the text of a channel."""
        at = self._buffer.find(MESSAGE)
        if begins_header(self._buffer):
            if at < 0:
                return False
            channel = CHANNEL_NAME.search(self._buffer[:at])
            self._emit(at + len(MESSAGE), "mark")
            self._open_channel(channel[1] or channel[2] if channel else FINAL)
            return True
        if not self._buffer.strip() or (not self._finished and may_begin_header(self._buffer)):
            return False
        if self.stretches:
            self._open_channel(FINAL)
        else:  # an answer without channels
            self._state, self.marked = "head", False
        return True

    def _read_body(self) -> bool:
        """The text of a channel."""
        if self.marked:
            self._skip_blanks()
        at, end = first_of(self._buffer, BODY_ENDS)
        if not end:
            certain = certain_length(self._buffer, BODY_ENDS, blanks=self._body == "thought")
            self._emit(len(self._buffer) if self._finished and self._body == "reply" else certain, self._body)
            return False
        text = len(self._buffer[:at].rstrip()) if self._body == "thought" else at
        self._emit(text, self._body)
        self._emit(at - text + (0 if end in (START, CHANNEL) else len(end)), "mark")
        self._state, self.marked = "header", True
        return True

    @property
    def _reply_begin(self) -> int:
        """Character at which the stretch of reply begins that is read."""
        last = self.stretches[-1] if self.stretches else None
        return last.start if last and last.part == "reply" else self.settled

    def _open_thought(self, closing: str) -> None:
        self._state, self._closing, self.marked, self._fresh = "thought", closing.lower(), True, True
        self._begin, self._nested = self.settled, 0

    def _open_channel(self, name: str) -> None:
        self._state, self._fresh = "body", True
        self._body = "reply" if name == FINAL else "thought"

    def _skip_blanks(self) -> None:
        """Blanks after a mark are part of it."""
        if self._fresh:
            self._emit(len(self._buffer) - len(self._buffer.lstrip()), "mark")

    def _check_cut_thought(self) -> None:
        """A thought that ends in the mark of another kind may be over there, or may be cut off."""
        others = [match[0] for match in ANY_MARK.finditer(self._text(self._begin, None)) if match[0].startswith("</")]
        if self._state == "thought" and others:
            self.unsure = self.unsure or others[0]

    def _text(self, start: int, end: int | None) -> str:
        return "".join(self._pieces)[start:end]

    def _emit(self, count: int, part: TokenPart) -> None:
        """Settle that many characters of the buffer."""
        self._buffer = self._buffer[count:]
        self._fresh = self._fresh and (not count or part == "mark")
        self._extend(count, part)

    def _extend(self, count: int, part: TokenPart) -> None:
        if count <= 0:
            return
        if self.stretches and self.stretches[-1].part == part:
            self.stretches[-1].end += count
        else:
            self.stretches.append(Stretch(self.settled, self.settled + count, part))
        self.settled += count
