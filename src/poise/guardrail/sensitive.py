"""Sensitive information in texts: types by their patterns, the guardrail's own expressions, and what is allowed."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from poise.guardrail.findings import GuardFinding
from poise.guardrail.folded_text import FoldedText, fold_text
from poise.guardrail.patterns import compile_pattern
from poise.guardrail.phone_numbers import phone_numbers, sentence_before
from poise.guardrail.pii_patterns import NEAR, NEAR_AFTER, PII_PATTERNS, PiiPattern
from poise.guardrail.pii_types import PiiType
from poise.guardrail.schema import RuleAction, SensitivePolicy, Source, spelling

__all__ = ["PiiMatch", "SensitiveFinder", "find_pii", "name_model", "without_overlaps"]

FORCE = {"BLOCK": 0, "ANONYMIZE": 1, "NONE": 2}
PHONE_WEIGHT, NAME_WEIGHT = 5, 2
FEWEST_PHONE_DIGITS = 3
PERSONS = ("PERSON", "PER")
ENTITY_TEXT = 100_000  # characters that spaCy is given at once


@dataclass(frozen=True, slots=True)
class PiiMatch:
    """A match of a type, by its place in the original text."""

    type: PiiType
    start: int
    end: int
    weight: int


class SensitiveFinder:
    """Finds what a policy calls sensitive.

    Raises:
        MissingExtra: the extra is not installed.
    """

    def __init__(self, policy: SensitivePolicy) -> None:
        self.policy = policy
        self._allowed = {spelling(text) for text in policy.allow}
        self._patterns = [(rule, compile_pattern(rule.pattern)) for rule in policy.regexes]
        if policy.types:
            _need_packages({rule.type for rule in policy.types}, policy.regions)

    def find(self, text: str, source: Source) -> Iterator[GuardFinding]:
        """Matches from left to right: of the guardrail's own expressions, and of types where none of them overlap."""
        actions: dict[PiiType, RuleAction] = {rule.type: rule.on(source) for rule in self.policy.types}
        types = [each for each, action in actions.items() if action != "SKIP"]
        matches = [m for m in find_pii(text, types, self.policy.regions) if not self._is_allowed(text[m.start : m.end])]
        order = sorted(matches, key=lambda m: (FORCE[actions[m.type]], -m.weight, m.start - m.end, m.start))
        for m in without_overlaps(order):
            yield GuardFinding(
                policy="sensitive", kind="PII", rule=m.type, action=actions[m.type], start=m.start, end=m.end
            )
        yield from self._own_matches(text, source)

    def _own_matches(self, text: str, source: Source) -> Iterator[GuardFinding]:
        folded = fold_text(text)
        views = [folded] if folded.text == text else [folded, FoldedText(text, None, text)]  # a pattern may say `№`
        for rule, pattern in self._patterns:
            if (action := rule.on(source)) == "SKIP":
                continue
            spans = [
                view.span(*match.span()) for view in views for match in pattern.finditer(view.text) if match.group()
            ]
            for start, end in dict.fromkeys(spans):
                if not self._is_allowed(text[start:end]):
                    yield GuardFinding(
                        policy="sensitive", kind="REGEX", rule=rule.name, action=action, start=start, end=end
                    )

    def _is_allowed(self, text: str) -> bool:
        return bool(self._allowed) and spelling(text) in self._allowed


def without_overlaps(ordered: Iterable[PiiMatch]) -> list[PiiMatch]:
    """The matches that overlap none before them, by their places."""
    chosen: list[PiiMatch] = []
    taken: set[int] = set()
    for match in ordered:
        places = range(match.start, match.end)
        if not taken.intersection(places):
            taken.update(places)
            chosen.append(match)
    return sorted(chosen, key=lambda m: m.start)


def find_pii(text: str, types: Iterable[PiiType], regions: Iterable[str] = ("US", "GB")) -> Iterator[PiiMatch]:
    """Every match of these types, overlapping ones included.

    Args:
        text: Any text.
        types: What is looked for.
        regions: Countries whose telephone numbers are known without their prefix.

    Raises:
        MissingExtra: the extra is not installed.
    """
    wanted, folded = set(types), fold_text(text)
    data = folded.text.encode()  # once for all patterns, and not by each
    digits = len(data) - len(data.translate(None, b"0123456789"))
    places = None if len(data) == len(folded.text) else _character_places(folded.text)
    for look in PII_PATTERNS:
        if look.type not in wanted or digits < look.digits:
            continue
        if look.signs and not any(sign.encode() in data for sign in look.signs):
            continue
        for match in compile_pattern(look.pattern).finditer(data):
            group = next((g for g in range(1, len(match.groups()) + 1) if match.group(g)), 0)
            start, end = match.span(group)
            if places:
                start, end = places[start], places[end]
            if look.near and not _is_near(look, folded.text, start, end):
                continue
            if end > start and (look.check is None or look.check(folded.text[start:end])):
                yield PiiMatch(look.type, *folded.span(start, end), look.weight)
    if "PHONE" in wanted and digits >= FEWEST_PHONE_DIGITS:
        for start, end in phone_numbers(folded.text, tuple(regions), NEAR):
            yield PiiMatch("PHONE", *folded.span(start, end), PHONE_WEIGHT)
    if "NAME" in wanted and (model := name_model()):
        for start, end in _persons(folded.text, model):
            yield PiiMatch("NAME", *folded.span(start, end), NAME_WEIGHT)


def _need_packages(types: set[PiiType], regions: Iterable[str]) -> None:
    """Say now, and not at the first text, what is missing.

    Raises:
        MissingExtra: names the package.
    """
    for look in PII_PATTERNS:
        if look.type in types:
            compile_pattern(look.pattern)
    if "PHONE" in types:
        list(phone_numbers("", tuple(regions), NEAR))


def _character_places(text: str) -> list[int]:
    """Number of the character at each byte of a text, and at its end."""
    return [*(n for n, sign in enumerate(text) for _ in sign.encode()), len(text)]


def _is_near(look: PiiPattern, text: str, start: int, end: int) -> bool:
    """Whether a word for it stands before it, or after it where its check digits speak for it too."""
    if re.search(look.near, sentence_before(text, start, NEAR), re.IGNORECASE):
        return True
    after = re.split(r"[.!?]\s|\n", text[end : end + NEAR_AFTER])[0] if look.check else ""
    return bool(re.search(look.near, after, re.IGNORECASE))


@functools.cache
def name_model() -> str | None:
    """The installed spaCy model that tells names, an English one before others; ``None`` where there is none."""
    names = sorted(entry.name for entry in entry_points(group="spacy_models"))
    return next((name for name in names if name.startswith("en_")), names[0] if names else None)


_MODELS: dict[str, Any] = {}


def _persons(text: str, model: str) -> Iterator[tuple[int, int]]:
    if model not in _MODELS:
        import spacy

        _MODELS[model] = spacy.load(model, exclude=["tagger", "parser", "lemmatizer", "attribute_ruler"])
    for first in range(0, len(text), ENTITY_TEXT):
        for entity in _MODELS[model](text[first : first + ENTITY_TEXT]).ents:
            if entity.label_ in PERSONS:
                yield first + entity.start_char, first + entity.end_char
