"""In which part of an answer a generated token is: the thought, a mark around it, or the reply.

``poise.data.thoughts`` tells the parts of a text apart, alike for written answers and generated ones; here
they are those of tokens, whose pieces of text come one at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from poise.data.messages import AnswerPart
from poise.data.thought_marks import BODY_ENDS, CHANNEL, CLOSINGS, MESSAGE, REPLY_TAGS, THOUGHT_TAGS
from poise.data.thoughts import AnswerSplitter, TokenPart, gap_after
from poise.model.rendering import opened_headers

__all__ = ["Part", "PartTracker", "ThoughtMarks", "TokenPart", "in_part"]

Part = AnswerPart
"""What of an answer is read, steered or learnt."""

MARK_TEXTS = frozenset(
    mark.lower() for mark in (*(mark for pair in (*THOUGHT_TAGS, *REPLY_TAGS) for mark in pair), MESSAGE, *BODY_ENDS)
) | {"<|channel>", "<unused94>"}
MARK_SIGNS = ("<", "[", "◁", "â")  # what marks begin with; the last is the first byte of ◁ as byte-level tokens show it
PROMPT_TAIL = 64  # tokens of a prompt that say how it ends
RANK: dict[TokenPart | None, int] = {None: -1, "mark": 0, "thought": 1, "reply": 2}


def in_part(token_part: TokenPart, part: Part) -> bool:
    """Whether a token is of the part that is asked for; all are of ``both``, marks of nothing else."""
    return part in ("both", token_part)


@dataclass(frozen=True, slots=True, kw_only=True)
class ThoughtMarks:
    """How a model marks its thoughts.

    Attributes:
        channels: Whether its template has the channels of the harmony format.
        ids: Text of those tokens that are a mark by themselves; tokenizers decode some of them to nothing.
        signs: Tokens in which a mark may begin.
        headers: Ends of prompts that leave a thought open with words in it, with the mark that closes it.
    """

    channels: bool
    ids: Mapping[int, str]
    signs: frozenset[int] = frozenset()
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, tokenizer: Any) -> ThoughtMarks:
        """Those of a tokenizer and its chat template."""
        template, added = str(tokenizer.chat_template or ""), tokenizer.get_added_vocab()
        return cls(
            channels=CHANNEL in template or (CHANNEL in added and MESSAGE in added),
            ids={number: text for text, number in added.items() if text.lower() in MARK_TEXTS},
            signs=frozenset(
                number for text, number in tokenizer.get_vocab().items() if any(sign in text for sign in MARK_SIGNS)
            ),
            headers=opened_headers(tokenizer),
        )

    def tracker(self, tokenizer: Any, prompt: Sequence[int]) -> PartTracker:
        """A tracker for the answer to a prompt, whose end says whether a thought is open."""
        tail = str(tokenizer.decode(list(prompt[-PROMPT_TAIL:]), skip_special_tokens=False))
        return PartTracker(self, tail)

    @property
    def openings(self) -> frozenset[int]:
        """Tokens that open a thought by themselves."""
        return frozenset(number for number, text in self.ids.items() if text.lower() in CLOSINGS)

    def may_mark(self, token: int) -> bool:
        """Whether a mark may begin in a token."""
        return token in self.signs or token in self.ids


class PartTracker:
    """The parts of one answer's tokens, one token at a time.

    A token is settled when nothing that may follow can change its part; until then ``parts`` has what it is for now.

    Args:
        marks: The model's.
        prompt: How the prompt ends.

    Attributes:
        texts: What each token adds to the thought or to the reply; marks, and the blanks around them, add nothing.
        pieces: What each token adds to the answer with its marks.
        unopened: The token, counted from 0, that ended a thought whose end could not be foreseen, since no mark had
            opened it or marks stood in it: what came before it is thought, and was taken for a reply until then.
            ``None`` where there is none.
    """

    def __init__(self, marks: ThoughtMarks, prompt: str = "") -> None:
        self.marks = marks
        self.pieces: list[str] = []
        self.unopened: int | None = None
        closing = next((closing for header, closing in marks.headers.items() if prompt.endswith(header)), "")
        self._splitter = AnswerSplitter(prompt, channels=marks.channels, closing=closing)
        self._ends = [0]  # characters of the answer after each number of tokens
        self._restart()

    def _restart(self) -> None:
        """Label all tokens anew."""
        self.texts = [""] * len(self.pieces)
        self._parts: list[TokenPart | None] = [None] * len(self.pieces)
        self._written: dict[TokenPart, list[str]] = {"thought": [], "reply": []}
        self._counts: Counter[TokenPart] = Counter()
        self._revision = self._splitter.revision
        self._token = self._at = self._stretch = 0  # what is labelled next: token, character, stretch

    @property
    def parts(self) -> list[TokenPart]:
        """Part of each token so far."""
        return [part or self._splitter.expected for part in self._parts]

    def part_of(self, token: int) -> TokenPart:
        """Part of a token, counted from 0."""
        return self._parts[token] or self._splitter.expected

    @property
    def part(self) -> TokenPart:
        """Part of the newest token, as far as it is known."""
        return (self._parts[-1] if self._parts else None) or self._splitter.expected

    @property
    def upcoming(self) -> TokenPart:
        """Part of what comes next, as far as it is known: of a channel's header that it is a mark."""
        return self._splitter.expected

    @property
    def place(self) -> int:
        """Number of tokens of the newest one's part that stand before it."""
        part, newest = self.part, len(self._parts) - 1
        if newest < 0:
            return 0
        expected = sum(self._parts[index] is None for index in range(self._token, newest))
        counted = self._counts[part] - (self._parts[newest] is not None)
        return counted + (expected if part == self._splitter.expected else 0)

    @property
    def settled(self) -> int:
        """Number of tokens whose part is certain."""
        return self._token

    @property
    def foreseen(self) -> int:
        """The same with those of blank or incomplete text, which are more of the same unless a mark comes."""
        waiting = "".join(self.pieces[self._token :])[self._at - self._ends[self._token] :]
        return self._token if waiting.strip() else len(self.pieces)

    @property
    def revision(self) -> int:
        """How often tokens that were settled have become thought."""
        return self._splitter.revision

    @property
    def begins_marked(self) -> bool:
        """Whether the answer begins with a mark, or its prompt ends with one."""
        stretches = self._splitter.stretches
        return self.marked and not (stretches and stretches[0].part == "reply")

    @property
    def marked(self) -> bool:
        """Whether there is anything but a reply: a mark has come, or the prompt has opened a thought."""
        return self._splitter.marked

    @property
    def watching(self) -> bool:
        """Whether a next token may be anything but reply, one in which a mark begins aside."""
        return self._splitter.watching

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
        return self._splitter.thinks_on and self.marks.ids.get(token) == "<|end|>"

    def add(self, token: int, piece: str) -> None:
        """Add a token with what the tokenizer makes of it after those before it."""
        text = piece or self.marks.ids.get(token, "")
        self.pieces.append(text)
        self.texts.append("")
        self._parts.append(None)
        self._ends.append(self._ends[-1] + len(text))
        self._splitter.add(text)
        self._label_settled()

    def finish(self) -> None:
        """No more tokens follow: what may have become a mark is text."""
        self._splitter.finish()
        self._label_settled()
        for token in range(self._token, len(self._parts)):
            self._parts[token] = self._parts[token] or self._splitter.expected
        self._token = len(self._parts)

    def _label_settled(self) -> None:
        """Give every token the part of the characters that have been settled."""
        splitter = self._splitter
        if splitter.revision != self._revision:
            self._restart()
            self.unopened = next(n for n, end in enumerate(self._ends[1:]) if end > splitter.revised_at)
        while self._token < len(self.pieces) and self._at < splitter.settled:
            stretch = splitter.stretches[self._stretch]
            if self._at >= stretch.end:
                self._stretch += 1
                continue
            begin, end = self._ends[self._token], self._ends[self._token + 1]
            until = min(end, stretch.end, splitter.settled)
            text = self.pieces[self._token][self._at - begin : until - begin]
            self._label(self._token, stretch.part, text, first=self._at == stretch.start)
            self._at = max(self._at, until)
            self._token += self._at >= end

    def _label(self, token: int, part: TokenPart, text: str, *, first: bool) -> None:
        before = self._parts[token]
        if RANK[part] > RANK[before]:
            self._parts[token], self.texts[token] = part, ""
            self._counts[part] += 1
            self._counts[before or part] -= before is not None
        if part == "mark" or not text:
            return
        written = self._written[part]
        text = gap_after(written[-1], part) + text if first and written else text
        written.append(text)
        if part == self._parts[token]:
            self.texts[token] += text
