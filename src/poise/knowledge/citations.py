"""An answer's sentences against the passages that they cite, or that carry them where they cite none."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from poise.grounding.facts import FactIndex, content_words
from poise.grounding.sentences import Span, split_sentences
from poise.knowledge.searching import RetrievedPassage

__all__ = ["CitedSentence", "GroundingScores", "Unsupported", "check_citations", "rendered_answer"]

Unsupported = Literal["mark", "remove", "refuse"]
"""What is done about sentences that the passages do not support."""

GroundingScores = Callable[[Sequence[str], str, str], Sequence[tuple[int, int, float]]]
"""From passages, question and answer to (first character, the one after the last, score from 0 to 1) of sentences."""

_CITATION = re.compile(r"\s*\[(\d{1,3}(?:\s*[,;]\s*\d{1,3})*)\]")
_AFTER_STOP = re.compile(r"([.!?…]+[\"'”’)]*)((?:[ \t]*\[\d{1,3}(?:\s*[,;]\s*\d{1,3})*\])+)")
_LAST_STOP = re.compile(r"[.!?…。]+[\"'”’)]*$")


@dataclass(frozen=True, slots=True, kw_only=True)
class CitedSentence:
    """One sentence of an answer.

    Attributes:
        text: The sentence without its citations.
        start: First character of it in the answer, citations included.
        end: Character after its last.
        after: What stands between it and the next one.
        passages: Numbers of the passages that it rests on, from 1.
        by_model: Whether the model cited them; else they were found by their words.
        score: How well they carry it, from 0 to 1.
        problem: Why it is not supported; empty where it is.
    """

    text: str
    start: int
    end: int
    after: str
    passages: tuple[int, ...]
    by_model: bool
    score: float
    problem: str = ""

    @property
    def supported(self) -> bool:
        """Whether its passages say it."""
        return not self.problem


def check_citations(
    answer: str,
    passages: Sequence[RetrievedPassage],
    question: str,
    *,
    least: float = 0.5,
    score: GroundingScores | None = None,
) -> tuple[CitedSentence, ...]:
    """Check each sentence of an answer.

    Numbers, names and quotations of a sentence must stand in the passages that it rests on, and it must score at least
    ``least`` with them: by the share of its content words that they have, and by ``score`` where one is passed. A
    sentence that cites nothing rests on the passage that has most of its words. What stands in its passages word for
    word is supported.

    Args:
        answer: What was answered, with citations such as [1] or [1, 2].
        passages: Those that the model was given; the first is number 1.
        question: What was asked, whose words may be repeated.
        least: Lowest score of a supported sentence.
        score: Another measure, such as ``poise.grounding.ground`` with a model.
    """
    text = _AFTER_STOP.sub(lambda match: match[2] + match[1], answer)
    spans = split_sentences(text)
    ends = [*(start for start, _ in spans), len(text)][1:]
    places = [(span, text[span[1] : after]) for span, after in zip(spans, ends, strict=True)]
    places = [(span, after) for span, after in places if any(map(str.isalnum, _CITATION.sub("", _part(text, span))))]
    clean = [_CITATION.sub("", _part(text, span)).strip() for span, _ in places]
    scores = _scores_of(clean, passages, question, score)
    indexes = [FactIndex(f"{p.title}\n{' '.join(p.headings)}\n{p.text}", question) for p in passages]
    return tuple(
        _checked_sentence(
            sentence, span, after, _cited_numbers(_part(text, span)), passages, indexes, question, scored, least
        )
        for sentence, (span, after), scored in zip(clean, places, scores, strict=True)
    )


def _part(text: str, span: Span) -> str:
    return text[span[0] : span[1]]


def _scores_of(
    sentences: Sequence[str], passages: Sequence[RetrievedPassage], question: str, score: GroundingScores | None
) -> list[float]:
    """The other measure of each sentence, the lowest where it sees several in one; 1 without one."""
    joined = " ".join(sentences)
    if score is None or not passages or not joined:
        return [1.0] * len(sentences)
    measured = score([passage.text for passage in passages], question, joined)
    scores, start = [], 0
    for sentence in sentences:
        end = start + len(sentence)
        scores.append(min((s for first, last, s in measured if first < end and last > start), default=1.0))
        start = end + 1
    return scores


def _checked_sentence(
    sentence: str,
    span: Span,
    after: str,
    numbers: tuple[int, ...],
    passages: Sequence[RetrievedPassage],
    indexes: Sequence[FactIndex],
    question: str,
    scored: float,
    least: float,
) -> CitedSentence:
    valid = tuple(number for number in numbers if 1 <= number <= len(passages))
    shares = [index.share(sentence) for index in indexes]
    best = max(range(len(shares)), key=lambda place: shares[place], default=None)
    rests_on = valid or ((best + 1,) if best is not None and content_words(sentence) and shares[best] > 0 else ())
    texts = [passages[number - 1] for number in rests_on]
    source = "\n".join(f"{p.title}\n{' '.join(p.headings)}\n{p.text}" for p in texts)
    index = FactIndex(source, question)
    if word_for_word := _without_case(sentence) in _without_case(source):
        scored = 1.0
    missing, share = index.missing(sentence), index.share(sentence)
    total = min(share, scored)
    problem = ""
    facts = [*missing.numbers, *missing.names, *missing.quotes]
    if invalid := [number for number in numbers if number not in valid]:
        problem = f"there is no passage {invalid[0]}"
    elif valid and best is not None and share < least <= shares[best]:
        problem = f"the passage cited does not say it; [{best + 1}] may"
    elif facts and not word_for_word:
        problem = f"not in the passage: {', '.join(facts[:5])}"
    elif total < least and not word_for_word:
        problem = f"the passages carry it with {total:.2f}, less than {least:.2f}"
    return CitedSentence(
        text=sentence,
        start=span[0],
        end=span[1],
        after=after,
        passages=rests_on,
        by_model=bool(valid),
        score=total,
        problem=problem,
    )


def _without_case(text: str) -> str:
    """Without differences of case, spaces and the full stop at the end."""
    return " ".join(text.casefold().split()).rstrip(" .")


def _cited_numbers(piece: str) -> tuple[int, ...]:
    """Numbers of the passages that a sentence cites, each once."""
    numbers = (int(number) for match in _CITATION.findall(piece) for number in re.split(r"\s*[,;]\s*", match))
    return tuple(dict.fromkeys(numbers))


def rendered_answer(sentences: Sequence[CitedSentence], unsupported: Unsupported) -> str:
    """The answer with its citations; unsupported sentences marked, or left out."""
    text = ""
    for sentence in sentences:
        if not sentence.supported and unsupported != "mark":
            continue
        cited = "".join(f"[{number}]" for number in sentence.passages)
        marks = f" {cited}" if cited else ""
        marks += "" if sentence.supported else " [unsupported]"
        stop = _LAST_STOP.search(sentence.text)
        end = stop.start() if stop else len(sentence.text)
        text += sentence.text[:end] + marks + sentence.text[end:] + (sentence.after or " ")
    return text.strip()
