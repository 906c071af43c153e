"""The header under which a model answers, beside what the template puts before an answer that it is given.

A header may open a thought, so that a reply would stand inside it. Known marks are closed; what the template has
before a reply that it renders is completed; a header with anything else in it is refused, since it may open a thought
in marks that nobody knows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from poise.data.messages import Message
from poise.data.thought_marks import (
    ANY_HEAD,
    ANY_OPENING,
    CLOSING,
    REPLY_TAGS,
    THOUGHT_TAGS,
    OpenMark,
    closing_of,
    open_mark,
)
from poise.errors import UnsuitableModel

__all__ = ["AnswerHeader", "strip_closed_thought"]

QUESTION, REPLY = "Q00001zX", "Q00002zX"
CLOSED_THOUGHT = re.compile(
    "(?:" + "|".join(rf"{re.escape(opening)}\s*{re.escape(closing)}" for opening, closing in THOUGHT_TAGS) + r")\s*\Z"
)
CLOSED_BLOCK = re.compile(
    "|".join(rf"{re.escape(opening)}.*?{re.escape(closing)}" for opening, closing in THOUGHT_TAGS)
    + "|"
    + "|".join(
        re.escape(mark) for mark in (*(closing for _, closing in THOUGHT_TAGS), *(tag for tag, _ in REPLY_TAGS))
    ),
    re.S,
)


def strip_closed_thought(prompt: str) -> str:
    """A prompt without the empty thought at its end."""
    return CLOSED_THOUGHT.sub("", prompt)


@dataclass(frozen=True, slots=True)
class AnswerHeader:
    """What a template puts before an answer.

    Attributes:
        live: Before one that is to be generated.
        shown: Before one that it is given; ``None`` where it cannot be told.
    """

    live: str = ""
    shown: str | None = None

    @classmethod
    def of(cls, render: Callable[[Sequence[Message], bool], str]) -> AnswerHeader:
        """That of a template.

        Args:
            render: Renders messages, with a header or without.
        """
        question: Message = {"role": "user", "content": QUESTION}
        answer: Message = {"role": "assistant", "content": REPLY}
        try:
            headed, bare, shown = (
                render(messages, header)
                for messages, header in (([question], True), ([question], False), ([question, answer], False))
            )
        except Exception:  # templates raise whatever their author chose
            return cls()
        if QUESTION not in headed or REPLY not in shown:
            return cls()
        before = shown[: shown.index(REPLY)]
        if headed == bare or not headed.startswith(bare):  # a header or an end of text comes without being asked
            bare = headed[: headed.rindex(QUESTION) + len(QUESTION)]
        header = before[len(bare) :] if before.startswith(bare) else None
        if header and shown[len(before) + len(REPLY) :].strip().startswith(header.strip()):
            if headed[len(bare) :].strip() == header.strip():
                return cls()  # that is how a turn ends; none has a header
            header = ""
        return cls(headed[len(bare) :], header)

    def opened(self, prompt: str) -> OpenMark | None:
        """The mark of a thought that a prompt leaves open, also where words follow it."""
        if self.live and prompt.endswith(self.live):
            for match in ANY_OPENING.finditer(self.live):
                closing = closing_of(match[0])
                if not CLOSING[closing.lower()].search(self.live, match.end()):
                    return OpenMark(len(prompt) - len(self.live) + match.start(), match[0], closing)
        return open_mark(prompt)

    def check(self) -> None:
        """Raises:
        UnsuitableModel: the header ends in what may open a thought.
        """
        if not self.live or not (self.shown or "").strip():
            return
        shown, opened = str(self.shown), self.opened(self.live)
        header = self.live[: opened.start] if opened else self.live
        if _squeezed(shown).startswith(_squeezed(header)):
            return
        if header.startswith(shown):
            extra = CLOSED_BLOCK.sub("", header[len(shown) :]).strip()
            raise UnsuitableModel(
                f"The model's chat template puts {extra!r} before an answer that is to come and before none that it is "
                "given: it may open a thought, inside of which replies would be read. Give the tokenizer a chat "
                "template whose header ends as its assistant's turns begin."
            )
        raise UnsuitableModel(
            f"The model's chat template puts {self.live!r} before an answer that is to come, and {shown!r} before "
            "one that it is given: the first may open a thought, inside of which replies would be read. Give the "
            "tokenizer a chat template that puts the same before both."
        )

    def closed(self, prompt: str) -> str:
        """A prompt whose thought is closed, or that goes on to where the template has a reply."""
        if opened := self.opened(prompt):
            before = prompt[: opened.start]
            start = len(self.live) - len(prompt) + opened.start
            shown = self.shown or ""
            is_header = prompt.endswith(self.live) and shown.startswith(self.live[:start] + opened.opening)
            if is_header and CLOSING[opened.closing.lower()].search(shown, start):
                return before + shown[start:]  # as the template closes it itself
            return f"{before}{opened.opening}\n\n{opened.closing}\n\n"
        if self.shown and self.shown.startswith(self.live) and prompt.endswith(self.live):
            missing = self.shown[len(self.live) :]
            if missing.strip() and not _opens_thought(missing):
                return prompt + missing
        return prompt


def _squeezed(header: str) -> str:
    """What a header has beside blanks and thoughts that are closed."""
    return "".join(CLOSED_BLOCK.sub("", header).split())


def _opens_thought(text: str) -> bool:
    """Whether a text begins with the mark of a thought, which a model that is not told to think may leave out."""
    match = ANY_HEAD.match(text.lstrip())
    return bool(match and ANY_OPENING.fullmatch(match[0]))
