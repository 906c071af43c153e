"""What the documents say of an answer, and what becomes of sentences that they do not support."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from poise.engine import GeneratedToken
from poise.knowledge.answering import sentence_facts
from poise.knowledge.citations import CitedSentence
from poise.knowledge.prompting import NOT_IN_DOCUMENTS, without_echo_characters
from poise.serve.alarm_policy import GuardedOutput
from poise.serve.guarding import masked_token
from poise.serve.knowledge_use import KnowledgeUse
from poise.serve.policy import UnsupportedRule
from poise.serve.rendering import as_thought

__all__ = ["HeldAnswer", "edited_characters", "edited_tokens", "refuses"]

UNSUPPORTED_MARK = " [unsupported]"


@dataclass(slots=True)
class HeldAnswer:
    """The reply of an answer, which is held back until it has been checked; thoughts leave as they come.

    Attributes:
        use: What it rests on, and what is done.
        tokens: What is held back.
        facts: What the documents say of it, once it has been checked.
    """

    use: KnowledgeUse
    tokens: list[GeneratedToken] = field(default_factory=list)
    facts: dict[str, Any] | None = None

    def hold(self, guarded: GuardedOutput) -> GuardedOutput:
        """The output without what has to wait."""
        tokens = guarded.output.tokens
        leaving: list[GeneratedToken] = []
        for token in tokens:
            if token.ends_unopened_thought:  # what had been taken for the reply was none
                leaving, self.tokens = [*leaving, *as_thought(self.tokens)], []
            if token.part == "reply":
                self.tokens.append(token)
            else:
                leaving.append(token)
        return replace(guarded, output=replace(guarded.output, tokens=tuple(leaving)))

    def release(self, guarded: GuardedOutput) -> GuardedOutput:
        """The last output with the reply, as it may be read."""
        self.tokens = self._without_copies()
        text = "".join(token.text for token in self.tokens)
        support = self.use.support(text)
        refused = refuses(support.sentences, self.use.unsupported)
        characters = edited_characters(text, support.sentences, self.use.unsupported)
        moved = [_moved(sentence, characters, refused=refused) for sentence in support.sentences]
        answered = support.answered and not refused
        self.facts = {**self.use.passage_facts, **support.facts, "answered": answered, "sentences": moved}
        tokens = (*guarded.output.tokens, *edited_tokens(self.tokens, characters))
        return replace(guarded, output=replace(guarded.output, tokens=tokens))

    def _without_copies(self) -> list[GeneratedToken]:
        """What is held back, without headings and signs of its passages, unless it is nothing else."""
        text = "".join(token.text for token in self.tokens)
        characters = without_echo_characters(text, self.use.question, self.use.passages)
        if "".join(characters) == text or not "".join(characters).strip():
            return self.tokens
        begin = next(place for place, sign in enumerate(characters) if sign.strip())
        return edited_tokens(self.tokens, [*[""] * begin, *characters[begin:]])


def refuses(sentences: Sequence[CitedSentence], unsupported: UnsupportedRule) -> bool:
    """Whether nothing of an answer is left."""
    wrong = sum(not sentence.supported for sentence in sentences)
    return bool(wrong) and (unsupported == "refuse" or (unsupported == "remove" and wrong == len(sentences)))


def edited_characters(text: str, sentences: Sequence[CitedSentence], unsupported: UnsupportedRule) -> list[str]:
    """What stands in the place of each character of an answer, after what is done about its unsupported sentences."""
    characters = list(text)
    if unsupported == "leave":
        return characters
    if refuses(sentences, unsupported):
        return [NOT_IN_DOCUMENTS, *[""] * (len(characters) - 1)]
    ends = [*(sentence.start for sentence in sentences), len(text)][1:]
    for sentence, end in zip(sentences, ends, strict=True):
        if sentence.supported:
            continue
        if unsupported == "mark":
            characters[sentence.end - 1] += UNSUPPORTED_MARK
        else:
            characters[sentence.start : end] = [""] * (end - sentence.start)
    return characters


def edited_tokens(tokens: Sequence[GeneratedToken], characters: Sequence[str]) -> list[GeneratedToken]:
    """Tokens with what stands in the place of their characters; without those of which nothing is left."""
    edited, at = [], 0
    for token in tokens:
        text = "".join(characters[at : at + len(token.text)])
        at += len(token.text)
        if text == token.text:
            edited.append(token)
        elif text:
            edited.append(masked_token(token, text))
    return edited


def _moved(sentence: CitedSentence, characters: Sequence[str], *, refused: bool) -> dict[str, Any]:
    """A sentence's facts, with where it stands now; ``None`` where it does not any more."""
    facts = sentence_facts(sentence)
    start = len("".join(characters[: sentence.start]))
    end = len("".join(characters[: sentence.end]))
    gone = refused or start == end
    return {**facts, "start": None if gone else start, "end": None if gone else end}
