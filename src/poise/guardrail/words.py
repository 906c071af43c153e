"""Words and phrases, found in one pass however many there are, between word boundaries and whatever their spelling."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from poise.guardrail.findings import GuardFinding
from poise.guardrail.folded_text import fold_text, is_word_sign
from poise.guardrail.patterns import need_extra
from poise.guardrail.schema import ProfanityRule, RuleAction, Source, WordPolicy

__all__ = ["WordFinder"]

Entry = tuple[str, str, RuleAction, RuleAction]  # kind, rule, action on input, action on output


class WordFinder:
    """Finds the words of a policy.

    Raises:
        MissingExtra: the extra is not installed.
    """

    def __init__(self, policy: WordPolicy) -> None:
        try:
            import ahocorasick
        except ImportError as error:
            raise need_extra("Word filters of guardrails need pyahocorasick") from error
        entries: dict[str, Entry] = {}
        if policy.profanity:
            actions = policy.profanity.on("INPUT"), policy.profanity.on("OUTPUT")
            entries |= dict.fromkeys(profane_words(policy.profanity), ("PROFANITY", "profanity", *actions))
        for rule in policy.custom:
            entries[folded_phrase(rule.text)] = ("CUSTOM", rule.text, rule.on("INPUT"), rule.on("OUTPUT"))
        self.longest = max(map(len, entries), default=0)
        self._automaton: Any = ahocorasick.Automaton()
        for word, entry in entries.items():
            self._automaton.add_word(word, (len(word), entry))
        self._automaton.make_automaton()
        self._empty = not entries

    def find(self, text: str, source: Source) -> Iterator[GuardFinding]:
        """The longest words at each place, from left to right; those that one action is taken on do not overlap."""
        if self._empty:
            return
        folded = fold_text(text, words=True)
        matches = []
        for last, (length, entry) in self._automaton.iter(folded.text):
            start, end = last + 1 - length, last + 1
            action = entry[2 if source == "INPUT" else 3]
            if action != "SKIP" and _stands_alone(folded.text, start, end):
                matches.append((start, -end, action, entry))
        reached: dict[str, int] = {}  # what only reports hides nothing that blocks
        for start, minus_end, action, (kind, rule, *_) in sorted(matches):
            if start >= reached.get(action, 0):
                reached[action] = -minus_end
                first, after = folded.span(start, -minus_end)
                yield GuardFinding(policy="words", kind=kind, rule=rule, action=action, start=first, end=after)


def folded_phrase(text: str) -> str:
    """A phrase as it is looked for."""
    return fold_text(text.strip(), words=True).text


def profane_words(rule: ProfanityRule) -> set[str]:
    """Words of the managed lists, folded, without those that are allowed.

    Raises:
        MissingExtra: the package with the lists is not installed.
    """
    try:
        from glin_profanity.data.dictionary import DictionaryLoader
    except ImportError as error:
        raise need_extra("The managed list of profane words is glin-profanity's") from error
    lists = DictionaryLoader()
    words = {folded_phrase(word) for language in rule.languages for word in lists.get_words(language)}
    return words - {folded_phrase(word) for word in rule.allow} - {""}


def _stands_alone(text: str, start: int, end: int) -> bool:
    """Whether no word goes on beyond either end."""
    before = is_word_sign(text[start]) and _word_beside(text, start - 1, -1)
    after = is_word_sign(text[end - 1]) and _word_beside(text, end, 1)
    return not before and not after


def _word_beside(text: str, place: int, step: int) -> bool:
    """Whether a word stands at a place, or behind its underscores: `_so_` is a mark-up of `so`, and no name."""
    while 0 <= place < len(text) and text[place] == "_":
        place += step
    return 0 <= place < len(text) and is_word_sign(text[place])
