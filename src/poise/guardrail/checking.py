"""A guardrail ready for texts: its finders built once, each text looked at by all of them."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from poise.errors import InvalidArgument
from poise.guardrail.findings import GuardFinding, PolicyName
from poise.guardrail.folded_text import FoldedText
from poise.guardrail.json_escapes import unescaped_text
from poise.guardrail.schema import Guardrail, Source
from poise.guardrail.sensitive import SensitiveFinder, name_model
from poise.guardrail.words import WordFinder

__all__ = ["MOST_CHARACTERS", "Checker", "checker_of", "policies_on"]

MOST_CHARACTERS = 2_000_000
"""Characters of all texts that are checked at once."""


@dataclass(frozen=True, slots=True)
class Checker:
    """Finds what a guardrail is about, by words and patterns.

    Attributes:
        guardrail: The guardrail.
        words: Finds its words; ``None`` without any.
        sensitive: Finds what is sensitive; ``None`` where nothing is.
    """

    guardrail: Guardrail
    words: WordFinder | None = field(repr=False)
    sensitive: SensitiveFinder | None = field(repr=False)

    def find(self, text: str, source: Source) -> list[GuardFinding]:
        """What the guardrail's words and patterns find in a text, by its place.

        Args:
            text: A prompt or an answer.
            source: Which of the two.

        Raises:
            InvalidArgument: the text is longer than is checked at once, or holds half a character.
        """
        refuse_unusable(text)
        findings = self._found(text, source)
        if read := unescaped_text(text):
            findings = _without_repeats(self._found_in(read, source), findings)
        return sorted(findings, key=lambda finding: (finding.start, finding.end))

    def _found(self, text: str, source: Source) -> list[GuardFinding]:
        finders = [finder for finder in (self.words, self.sensitive) if finder]
        return [finding for finder in finders for finding in finder.find(text, source)]

    def _found_in(self, read: FoldedText, source: Source) -> list[GuardFinding]:
        """What is found in a text as it is read, by its place in what was written."""
        findings = self._found(read.text, source)
        spans = [read.span(finding.start, finding.end) for finding in findings]
        return [replace(f, start=start, end=end) for f, (start, end) in zip(findings, spans, strict=True)]

    @property
    def notes(self) -> list[str]:
        """What whoever relies on the guardrail should know of what it does not see."""
        types = {rule.type for rule in self.guardrail.sensitive.types} if self.guardrail.sensitive else set()
        if "NAME" in types and not name_model():
            return [
                "NAME is found after titles and labels alone, as in `Mrs Anna Wolff` and `name: Anna Wolff`: no spaCy "
                "model is installed, such as en_core_web_sm, which finds names anywhere."
            ]
        return []


def checker_of(guardrail: Guardrail) -> Checker:
    """The guardrail with its finders.

    Raises:
        MissingExtra: a policy needs packages that are not installed.
    """
    return Checker(
        guardrail,
        WordFinder(guardrail.words) if guardrail.words else None,
        SensitiveFinder(guardrail.sensitive) if guardrail.sensitive else None,
    )


def _without_repeats(first: Sequence[GuardFinding], second: Sequence[GuardFinding]) -> list[GuardFinding]:
    """The first findings, and of the second those that overlap none of them of the same rule."""
    places: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for finding in sorted(first, key=lambda f: f.start):
        of_rule = places.setdefault((finding.kind, finding.rule), [])
        of_rule.append((finding.start, max([finding.end, *(end for _, end in of_rule[-1:])])))
    more = []
    for finding in second:
        of_rule = places.get((finding.kind, finding.rule), [])
        before = bisect.bisect_left(of_rule, (finding.end, 0)) - 1
        if before < 0 or of_rule[before][1] <= finding.start:
            more.append(finding)
    return [*first, *more]


def refuse_unusable(text: str) -> None:
    """Refuse what cannot be checked.

    Raises:
        InvalidArgument: says why, and what to do.
    """
    if len(text) > MOST_CHARACTERS:
        raise InvalidArgument(
            f"The text has {len(text):,} characters; at most {MOST_CHARACTERS:,} are checked at once; "
            "check it in parts."
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument(
            f"The text holds half a character (U+{ord(text[error.start]):04X} at {error.start}); repair its encoding."
        ) from error


def policies_on(guardrail: Guardrail, source: Source) -> list[PolicyName]:
    """Policies with a rule that looks at texts of this way."""
    words, sensitive = guardrail.words, guardrail.sensitive
    rules: dict[PolicyName, tuple[object, ...]] = {
        "words": (*words.custom, *((words.profanity,) if words.profanity else ())) if words else (),
        "sensitive": (*sensitive.types, *sensitive.regexes) if sensitive else (),
        "topics": guardrail.topics,
        "content": guardrail.content,
    }
    on = [name for name, each in rules.items() if any(rule.on(source) != "SKIP" for rule in each)]  # type: ignore[attr-defined]
    if source == "OUTPUT":
        on += [name for name in ("grounding", "reasoning") if getattr(guardrail, name)]
    return on
