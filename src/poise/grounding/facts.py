"""Numbers, names and quotations of a sentence that stand in no source, by comparison of their characters alone.

Names are words with a capital, so that none is told in scripts without capitals. Numbers are compared by value.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

__all__ = ["FactIndex", "MissingFacts", "content_words"]

NUMBER = re.compile(r"(?<![\w.,])\d+(?:[.,]\d+)*(?:(?!\w)|(?=(?:st|nd|rd|th|s|[a-z]{1,3})\b))")
TO_TWENTY = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen twenty"""
TENS = "thirty forty fifty sixty seventy eighty ninety hundred"
NUMBER_WORDS = {word: Decimal(n) for n, word in enumerate(TO_TWENTY.split())} | {
    word: Decimal(10 * n) for n, word in enumerate(TENS.split(), start=3)
}
QUOTATION = re.compile(r"“([^”]{3,})”|«([^»]{3,})»|„([^“”]{3,})[“”]|(?<!\w)\"([^\"]{3,})\"(?!\w)")
NAME = re.compile(r"\b[^\W\d_a-z][\w'’.-]*\w|\b[A-Z]\b")
WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
OPENING_WORDS = """a an the i he she it they we you his her its their our your my this that these those there here in on
at by for from to of with as and or but so if when while where who what which why how yes no not is are was were be been
do does did has have had can could will would should may might must all some many most both each every one after before
since during because although however therefore also then thus unlike like about according overall based yet nor than
into over under between among through until unless please let sorry"""
OPENERS = frozenset(OPENING_WORDS.split())
OTHER_SMALL_WORDS = "being having just very more much only own same such too any other out up down off"
SMALL_WORDS = OPENERS | frozenset(OTHER_SMALL_WORDS.split())


@dataclass(frozen=True, slots=True)
class MissingFacts:
    """What a sentence has and the source does not, as the sentence writes it.

    Attributes:
        numbers: Numbers, by value: 1,000 is 1000, and twelve is 12.
        names: Words with a capital that are no sentence's beginning.
        quotes: Quotations of three characters or more that are not there word for word.
    """

    numbers: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    quotes: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """Number of all of them."""
        return len(self.numbers) + len(self.names) + len(self.quotes)


class FactIndex:
    """What a source has: sentences are compared to it.

    Args:
        source: The source.
        beside: What may be repeated without being in the source, such as the query.
    """

    def __init__(self, source: str, beside: str = "") -> None:
        text = f"{source}\n{beside}"
        self._text = _plain_text(text)
        self._words = {_plain_text(word) for word in WORD.findall(text)}
        self._words |= {word[:-2] for word in self._words if word.endswith(("'s", "’s"))}
        self._stems = {_stem(word) for word in self._words}
        self._numbers = {value for _, value in _numbers_in(text)}

    def missing(self, sentence: str) -> MissingFacts:
        """What of the sentence is not there."""
        quotes = [next(filter(None, match)) for match in QUOTATION.findall(sentence)]
        return MissingFacts(
            numbers=tuple(dict.fromkeys(text for text, value in _numbers_in(sentence) if value not in self._numbers)),
            names=tuple(dict.fromkeys(name for name in _names_in(sentence) if not self._has(name))),
            quotes=tuple(quote for quote in quotes if _plain_text(quote).strip(" .,;:!?") not in self._text),
        )

    def share(self, sentence: str) -> float:
        """Share of the sentence's content words that are there, whatever their ending; 1 where it has none."""
        words = content_words(sentence)
        return sum(_stem(word) in self._stems for word in words) / len(words) if words else 1.0

    def _has(self, name: str) -> bool:
        folded = _plain_text(name)
        return folded in self._words or folded.removesuffix("'s") in self._words or _stem(folded) in self._stems


def content_words(text: str) -> list[str]:
    """Words of a text in lower case, in order, without those that carry no content."""
    return [word for word in map(_plain_text, WORD.findall(text)) if word not in SMALL_WORDS]


def _numbers_in(text: str) -> list[tuple[str, Decimal]]:
    numbers = [(match.group(), _value(match.group())) for match in NUMBER.finditer(text)]
    words = [(word, NUMBER_WORDS[word.lower()]) for word in WORD.findall(text) if word.lower() in NUMBER_WORDS]
    return [(written, value) for written, value in [*numbers, *words] if value is not None]


def _value(written: str) -> Decimal | None:
    """The number's value; a comma before three digits groups, another one is a decimal sign."""
    text = re.sub(r",(?=\d{3}(?:\D|$))", "", written).replace(",", ".")
    if text.count(".") > 1:
        text = text.replace(".", "")
    try:
        return Decimal(text).normalize()
    except InvalidOperation:
        return None


def _names_in(sentence: str) -> list[str]:
    """Words with a capital; the first one counts beside another name, or where the sentence is hardly more."""
    matches = list(NAME.finditer(sentence))
    names = []
    for match in matches:
        word = match.group().rstrip(".")
        begins = not WORD.search(sentence[: match.start()])
        if word.casefold() in OPENERS:
            continue
        if begins and not _next_is_name(sentence, match.end()) and len(WORD.findall(sentence)) > 3:
            continue
        names.append(word)
    return names


def _next_is_name(sentence: str, place: int) -> bool:
    match = NAME.match(sentence, place + 1)
    return bool(match) and match is not None and match.group().casefold() not in OPENERS


def _stem(word: str) -> str:
    """The word without the endings of number, person and tense that are most usual in English."""
    for ending in ("ies", "ing", "edly", "ed", "es", "s", "ly"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)].rstrip("ey")
    return word.rstrip("ey") if len(word) > 3 else word


def _plain_text(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().replace("’", "'").split())
