"""What the schema cannot see in a trait: near-copies, uneven lengths, and sides that a shallow reader could tell apart.

A direction or a judge learnt from pairs whose sides differ in length or in a few words may track those
instead of the trait. Knows text only; a count of characters and naive Bayes stand for the shallow reader.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from poise.statistics.estimates import Estimate, auc_estimate
from poise.trait.schema import ExemplarPair, Trait, same_question

__all__ = ["ALIKE", "MOST_UNEVEN", "LintFinding", "LintReport", "alike", "lint", "unevenness", "word_scores"]

MOST_UNEVEN = 0.30
"""Most that the shorter side of a pair may lack of the longer one's characters."""

ALIKE = 0.80
"""Share of common words from which two texts count as near-copies."""

MOST_LONGER = 0.70
"""Most pairs, as a share, in which the same side may be the longer one."""

MOST_STYLE = 0.60
"""Highest AUC that style alone may have on the pairs of a detector."""

FEWEST_STYLE_PAIRS = 24
STYLE_FOLDS = 8
FUNCTION_WORDS = [
    "i",
    "me",
    "my",
    "you",
    "your",
    "we",
    "he",
    "she",
    "they",
    "it",
    "not",
    "never",
    "no",
    "but",
    "and",
    "or",
    "so",
    "if",
    "because",
    "very",
    "just",
    "really",
    "quite",
    "rather",
    "only",
    "even",
    "please",
    "well",
    "oh",
    "would",
    "could",
    "should",
    "will",
    "can",
    "may",
    "might",
    "must",
]


@dataclass(frozen=True, slots=True)
class LintFinding:
    """Something to fix (``error``) or to look at (``warning``), with its place in the trait file."""

    severity: Literal["error", "warning"]
    field: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LintReport:
    """What was counted, measured and found.

    Attributes:
        trait: Its name.
        counts: Entries by field, e.g. ``questions.extraction``.
        longer_with: Share of pairs, but for the detector's, whose side with the trait has more characters; 0.5 is even.
        words: AUC on the held-out pairs of a bag of words learnt from the other pairs. Information, not a bar:
            most traits are partly a matter of words.
        length: AUC on the held-out pairs of the number of characters; 0.5 is even.
        style: Cross-validated AUC on the detector's pairs of a classifier that sees punctuation, lengths and function
            words and no other word; ``None`` where there are too few pairs.
        findings: Errors first.
    """

    trait: str
    counts: Mapping[str, int]
    longer_with: float
    words: Estimate
    length: Estimate
    style: Estimate | None
    findings: tuple[LintFinding, ...]

    @property
    def ok(self) -> bool:
        """Whether there is nothing that must be fixed."""
        return all(finding.severity != "error" for finding in self.findings)


def lint(trait: Trait) -> LintReport:
    """Look for shortcuts and near-copies in a trait.

    Args:
        trait: Already valid: counts and disjoint questions are the schema's business.
    """
    pairs = _placed_pairs(trait)
    longer = float(np.mean([_length_score(p) for place, p in pairs if not place.startswith("exemplars.detector")]))
    held_out = trait.exemplars.held_out
    positive, negative = [p.positive for p in held_out], [p.negative for p in held_out]
    learnt = trait.exemplars.extraction + trait.exemplars.judge
    findings = [*_uneven(pairs), *_copied_answers(pairs), *_copied_questions(trait), *_copied_instructions(trait)]
    if not 1 - MOST_LONGER <= longer <= MOST_LONGER:
        findings.append(
            LintFinding(
                "warning",
                "exemplars",
                f"the side with the trait is the longer one in {longer:.0%} of the pairs; "
                f"keep it between {1 - MOST_LONGER:.0%} and {MOST_LONGER:.0%}, so that length gives nothing away",
            )
        )
    style = _style_leak(trait.exemplars.detector)
    if style and style.above(0.5) and (style.value or 0) > MOST_STYLE:
        findings.append(
            LintFinding(
                "warning",
                "exemplars.detector",
                f"punctuation, lengths and function words tell the sides apart (AUC {style.value:.2f}); write both "
                "sides of a pair in one register, so that a detector cannot learn the tone",
            )
        )
    return LintReport(
        trait=trait.name,
        counts=_field_counts(trait),
        longer_with=longer,
        words=auc_estimate(word_scores(learnt, positive), word_scores(learnt, negative)),
        length=auc_estimate([len(text) for text in positive], [len(text) for text in negative]),
        style=style,
        findings=tuple(sorted(findings, key=lambda finding: finding.severity)),
    )


def unevenness(pair: ExemplarPair) -> float:
    """Share of the longer side's characters that the shorter side lacks, in [0, 1)."""
    short, long = sorted((len(pair.positive), len(pair.negative)))
    return (long - short) / long


def alike(a: str, b: str) -> float:
    """Share of the words of both texts that they have in common (Jaccard), in [0, 1]."""
    return _jaccard(set(_words(a)), set(_words(b)))


def word_scores(pairs: Sequence[ExemplarPair], texts: Sequence[str]) -> NDArray[np.float64]:
    """Log-odds of each text for the side with the trait, from its words alone.

    Multinomial naive Bayes with add-one smoothing over the words of ``pairs``; words they lack are left out.

    Args:
        pairs: To learn from; both sides weigh the same.
        texts: To score.

    Returns:
        Scores [n], above 0 for the side with the trait.
    """
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.naive_bayes import MultinomialNB

    sides = [pair.positive for pair in pairs] + [pair.negative for pair in pairs]
    if not any(map(_words, sides)) or not texts:
        return np.zeros(len(texts))
    counts = CountVectorizer(analyzer=_words)
    classifier = MultinomialNB(alpha=1.0, fit_prior=False)
    classifier.fit(counts.fit_transform(sides), np.repeat([True, False], len(pairs)))
    without, with_trait = classifier.predict_joint_log_proba(counts.transform(texts)).T
    return np.asarray(with_trait - without)


def _style_leak(pairs: Sequence[ExemplarPair]) -> Estimate | None:
    """How well style tells the sides of unseen pairs apart: whole pairs are held out, and resampled."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(pairs) < FEWEST_STYLE_PAIRS:
        return None
    features = np.array([[_style(pair.positive), _style(pair.negative)] for pair in pairs])
    fold = np.arange(len(pairs)) % STYLE_FOLDS
    scores = np.zeros((len(pairs), 2))
    for held in range(STYLE_FOLDS):
        learnt = features[fold != held]
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1))
        classifier.fit(learnt.reshape(-1, features.shape[-1]), np.tile([True, False], len(learnt)))
        scores[fold == held] = classifier.decision_function(
            features[fold == held].reshape(-1, features.shape[-1])
        ).reshape(-1, 2)
    return auc_estimate(scores[:, 0], scores[:, 1])


def _style(text: str) -> list[float]:
    """How a text is written, whatever it says: lengths, marks and function words, the latter as shares."""
    words = _words(text)
    sentences = max(len(re.findall(r"[.!?]+", text)), 1)
    marks = [text.count(mark) / max(len(text), 1) for mark in "!?,;:\"'’-"]
    upper = sum(character.isupper() for character in text) / max(len(text), 1)
    lengths = [len(words) / sentences, sum(map(len, words)) / max(len(words), 1)]
    return [*lengths, upper, *marks, *(words.count(word) / max(len(words), 1) for word in FUNCTION_WORDS)]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+(?:['’]\w+)*", text.lower())


def _jaccard(a: set[str], b: set[str]) -> float:
    return len(a & b) / len(a | b) if a or b else 1.0


def _length_score(pair: ExemplarPair) -> float:
    """1 where the side with the trait is longer, 0 where it is shorter, a half for a tie."""
    gap = len(pair.positive) - len(pair.negative)
    return 0.5 if gap == 0 else float(gap > 0)


def _placed_pairs(trait: Trait) -> list[tuple[str, ExemplarPair]]:
    """Every pair with its place in the file."""
    sets = {"extraction": trait.exemplars.extraction, "judge": trait.exemplars.judge}
    sets |= {"held_out": trait.exemplars.held_out, "detector": trait.exemplars.detector}
    return [(f"exemplars.{name}[{i}]", pair) for name, pairs in sets.items() for i, pair in enumerate(pairs)]


def _field_counts(trait: Trait) -> dict[str, int]:
    return {
        "instructions": len(trait.instructions),
        "questions.extraction": len(trait.questions.extraction),
        "questions.evaluation": len(trait.questions.evaluation),
        "exemplars.extraction": len(trait.exemplars.extraction),
        "exemplars.judge": len(trait.exemplars.judge),
        "exemplars.held_out": len(trait.exemplars.held_out),
        **({"exemplars.detector": len(detector)} if (detector := trait.exemplars.detector) else {}),
    }


def _uneven(pairs: Sequence[tuple[str, ExemplarPair]]) -> Iterator[LintFinding]:
    for place, pair in pairs:
        gap = unevenness(pair)
        if gap > MOST_UNEVEN:
            a, b = len(pair.positive), len(pair.negative)
            yield LintFinding(
                "error",
                place,
                f"{a} characters with the trait and {b} without differ by {gap:.0%}; "
                f"bring them within {MOST_UNEVEN:.0%} of the longer",
            )


def _copied_answers(pairs: Sequence[tuple[str, ExemplarPair]]) -> Iterator[LintFinding]:
    sides = [(f"{place}.{side}", text) for place, p in pairs for side, text in _sides(p)]
    for finding in _copies(sides, "answer"):
        # The sides of a detector's pair are to share all words but the telling ones; only equal ones are a mistake.
        if finding.severity == "error" or not finding.field.startswith("exemplars.detector"):
            yield finding


def _copied_instructions(trait: Trait) -> Iterator[LintFinding]:
    pairs = [(f"instructions[{i}]", pair) for i, pair in enumerate(trait.instructions)]
    sides = [(f"{place}.with", pair.positive) for place, pair in pairs]
    sides += [(f"{place}.without", pair.negative) for place, pair in pairs]
    for finding in _copies(sides, "instruction"):
        # An instruction and its contrast share most words by design; only equal ones are a mistake.
        if finding.severity == "error":
            yield finding


def _copied_questions(trait: Trait) -> Iterator[LintFinding]:
    questions = [(f"questions.extraction[{i}]", q) for i, q in enumerate(trait.questions.extraction)]
    questions += [(f"questions.evaluation[{i}]", q) for i, q in enumerate(trait.questions.evaluation)]
    questions += [(f"{place}.question", pair.question) for place, pair in _placed_pairs(trait)]
    yield from _copies(questions, "question")


def _copies(texts: Sequence[tuple[str, str]], noun: str) -> Iterator[LintFinding]:
    """An error for each repeated text, a warning for each near-copy."""
    read = [(place, same_question(text), set(_words(text))) for place, text in texts]
    for (first, key_a, words_a), (second, key_b, words_b) in combinations(read, 2):
        common = _jaccard(words_a, words_b)
        if key_a == key_b:
            yield LintFinding("error", second, f"the same {noun} as {first}; write another")
        elif common >= ALIKE:
            yield LintFinding("warning", second, f"shares {common:.0%} of its words with the {noun} at {first}")


def _sides(pair: ExemplarPair) -> tuple[tuple[str, str], tuple[str, str]]:
    return ("with", pair.positive), ("without", pair.negative)
