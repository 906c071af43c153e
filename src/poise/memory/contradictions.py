"""Whether two statements about one thing cannot both hold: another number, another name, or a negation.

By a comparison of words, see ``poise.grounding.facts``; statements that contradict each other in other words are not
told.
"""

from __future__ import annotations

import re

from poise.grounding.facts import FactIndex, content_words

__all__ = ["contradiction_of", "says_the_same"]

LEAST_OVERLAP = 0.75
"""Share of the shorter statement's words, without numbers and names that differ, which the other must have."""
LEAST_BOTH_WAYS = 0.5
"""Share of the longer one's."""

_ANY_WORD = re.compile(r"\w+")
_AUXILIARY = re.compile(r"\b(?:is|are|was|were|has|have|had|will|can|does|did)\b", re.IGNORECASE)
_FIRST_NAME = re.compile(r"\W*(?:[A-ZÀ-ÖØ-Þ]\w*[\s-]*)+")
_NEGATION = re.compile(r"\b(?:not|never|no longer|cannot|without|none|nobody|nothing)\b|n['’]t\b", re.IGNORECASE)


def contradiction_of(text: str, known: str, *, same_subject: bool = False) -> str:
    """How a statement contradicts a known one, in words; empty where it does not.

    Args:
        text: The new statement.
        known: The known one.
        same_subject: Whether both are known to be about the same.
    """
    new, old = FactIndex(known).missing(text), FactIndex(text).missing(known)
    if not same_subject and _is_about(text, new.names) and _is_about(known, old.names):
        return ""
    plain, plain_known = (_without_parts(text, new.numbers + new.names), _without_parts(known, old.numbers + old.names))
    if not same_subject and not _same_beginning(plain, plain_known, text, known):
        return ""
    shares = (FactIndex(plain_known).share(plain), FactIndex(plain).share(plain_known))
    if max(shares) < LEAST_OVERLAP or min(shares) < LEAST_BOTH_WAYS:
        return ""
    if new.numbers and old.numbers:
        return f"says {', '.join(new.numbers)} where it is {', '.join(old.numbers)}"
    if new.names and old.names:
        return f"says {', '.join(new.names)} where it is {', '.join(old.names)}"
    if _is_negated(text) != _is_negated(known) and not (new.count or old.count) and min(shares) >= LEAST_OVERLAP:
        return "says the opposite"
    return ""


def says_the_same(text: str, known: str) -> bool:
    """Whether neither has a number, name, quotation or negation that the other lacks, and all come in one order."""
    differences = FactIndex(known).missing(text).count + FactIndex(text).missing(known).count
    if differences or _is_negated(text) != _is_negated(known):
        return False
    marked, marked_known = _marked_words(text), _marked_words(known)
    return [w for w in marked if w in marked_known] == [w for w in marked_known if w in marked]


def _marked_words(text: str) -> list[str]:
    """Words that begin with a capital or a digit: who owes whom is told by their order alone."""
    return [word.casefold() for word in _ANY_WORD.findall(text) if word[0].isupper() or word[0].isdigit()]


def _is_about(text: str, names: tuple[str, ...]) -> bool:
    """Whether one of the names stands where a statement says what it is about.

    That is before *is* and the like, or in the name that it begins with.
    """
    auxiliary, first = _AUXILIARY.search(text), _FIRST_NAME.match(text)
    end = max(auxiliary.start() if auxiliary else 0, first.end() if first else 0)
    return any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text[:end]) for name in names)


def _is_negated(text: str) -> bool:
    return len(_NEGATION.findall(text)) % 2 == 1


def _without_parts(text: str, parts: tuple[str, ...]) -> str:
    for part in parts:
        text = re.sub(rf"(?<!\w){re.escape(part)}(?!\w)", " ", text)
    return text


def _same_beginning(plain: str, plain_known: str, text: str, known: str) -> bool:
    """Whether what each begins with, mostly what it is about, is in the other, and both have something left."""
    words, known_words = content_words(text), content_words(known)
    if not words or not known_words or not content_words(plain) or not content_words(plain_known):
        return False
    return FactIndex(known).share(words[0]) == 1.0 and FactIndex(text).share(known_words[0]) == 1.0
