"""The lint: what it finds in a trait, and what its shallow readers measure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.naive_bayes import MultinomialNB

from poise.trait import ExemplarPair, Trait
from poise.trait.library import load_trait, names
from poise.trait.lint import alike, lint, unevenness, word_scores

WORDS = [
    f"{start}{end}" for start in ("am", "ce", "do", "fi", "gu", "ha") for end in ("bel", "con", "dar", "lin", "mot")
]


def sentence(rng: np.random.Generator, length: int = 12) -> str:
    return " ".join(rng.choice(WORDS, length))


def even(seed: int = 0) -> dict[str, Any]:
    """Sides drawn from the same words at the same length: nothing to tell them apart by."""
    rng = np.random.default_rng(seed)

    def pairs(count: int) -> list[dict[str, str]]:
        return [{"question": sentence(rng), "with": sentence(rng), "without": sentence(rng)} for _ in range(count)]

    return {
        "schema": 1,
        "name": "grumpy",
        "description": "Complains.",
        "adjective": "grumpy",
        "opposite": "cheerful",
        "instructions": [{"with": sentence(rng), "without": sentence(rng)} for _ in range(5)],
        "questions": {k: [sentence(rng) for _ in range(20)] for k in ("extraction", "evaluation")},
        "rubric": "0 is none, 100 is all.",
        "exemplars": {"extraction": pairs(24), "judge": pairs(12), "held_out": pairs(40)},
    }


def changed(change: Callable[[dict[str, Any]], None]) -> Trait:
    data = even()
    change(data)
    return Trait.model_validate(data)


@pytest.mark.parametrize("name", names())
class TestTheLibrary:
    def test_has_no_errors_and_cannot_be_told_apart_by_length(self, name: str) -> None:
        report = lint(load_trait(name))
        assert report.ok, report.findings
        assert report.length.low < 0.5 < report.length.high
        assert 0.3 <= report.longer_with <= 0.7


@pytest.mark.slow
def test_the_figures_in_the_documentation_are_those_of_the_library() -> None:
    documented = (Path(__file__).parents[1] / "docs" / "traits.md").read_text(encoding="utf-8")
    for name in names():
        report = lint(load_trait(name))
        assert f"| {name} | {report.words} | {report.length} | {report.longer_with:.0%} |" in documented


class TestFindings:
    def test_an_even_trait_has_none(self) -> None:
        report = lint(Trait.model_validate(even()))
        assert report.findings == ()
        assert report.ok

    def test_counts_are_those_of_the_file(self) -> None:
        report = lint(Trait.model_validate(even()))
        assert report.counts == {
            "instructions": 5,
            "questions.extraction": 20,
            "questions.evaluation": 20,
            "exemplars.extraction": 24,
            "exemplars.judge": 12,
            "exemplars.held_out": 40,
        }

    def test_sides_further_apart_than_30_percent_are_an_error(self) -> None:
        def stretch(data: dict[str, Any]) -> None:
            data["exemplars"]["judge"][1] |= {"with": "a" * 100, "without": "b" * 70}
            data["exemplars"]["judge"][2] |= {"with": "c" * 69, "without": "d" * 100}

        (finding,) = lint(changed(stretch)).findings
        assert (finding.severity, finding.field) == ("error", "exemplars.judge[2]")
        assert "69 characters with the trait and 100 without differ by 31%" in finding.message

    def test_an_answer_given_twice_is_an_error(self) -> None:
        def copy(data: dict[str, Any]) -> None:
            data["exemplars"]["held_out"][0]["with"] = data["exemplars"]["extraction"][3]["without"].upper() + "!"

        findings = [f for f in lint(changed(copy)).findings if f.severity == "error"]
        assert "exemplars.held_out[0].with" in [f.field for f in findings]
        assert any("the same answer as exemplars.extraction[3].without" in f.message for f in findings)

    def test_a_question_asked_in_almost_the_same_words_is_a_warning(self) -> None:
        def copy(data: dict[str, Any]) -> None:
            data["questions"]["extraction"][0] = "How do I bake a really good loaf of bread?"
            data["exemplars"]["judge"][0]["question"] = "How do I bake a good loaf of bread?"

        report = lint(changed(copy))
        (finding,) = report.findings
        assert report.ok
        assert (finding.severity, finding.field) == ("warning", "exemplars.judge[0].question")
        assert "shares 90% of its words with the question at questions.extraction[0]" in finding.message

    def test_equal_instructions_are_an_error_and_similar_ones_are_not(self) -> None:
        def copy(data: dict[str, Any]) -> None:
            data["instructions"][0] = {
                "with": "Be a very rude and loud one.",
                "without": "Be a very kind and loud one.",
            }
            data["instructions"][2]["with"] = data["instructions"][1]["with"]

        (finding,) = lint(changed(copy)).findings
        assert (finding.severity, finding.field) == ("error", "instructions[2].with")

    def test_one_side_longer_almost_always_is_a_warning(self) -> None:
        def pad(data: dict[str, Any]) -> None:
            for pairs in data["exemplars"].values():
                for i, pair in enumerate(pairs):
                    pair |= {"with": sentence(np.random.default_rng(i), 13) + f" {pair['question']}"}
                    pair["without"] = (pair["with"][::-1])[:-1]

        report = lint(changed(pad))
        assert report.longer_with == 1.0
        assert any(f.field == "exemplars" and "longer one in 100% of the pairs" in f.message for f in report.findings)


class TestShallowReaders:
    def test_neither_tells_even_sides_apart(self) -> None:
        report = lint(Trait.model_validate(even()))
        assert report.words.low < 0.5 < report.words.high
        assert (report.length.value, report.longer_with) == (0.5, 0.5)
        assert report.words.n == 40

    def test_a_word_of_one_side_gives_it_away(self) -> None:
        def mark(data: dict[str, Any]) -> None:
            for pairs in data["exemplars"].values():
                for pair in pairs:
                    pair["with"] += " grr grr"
                    pair["without"] += " weir ok"

        words = lint(changed(mark)).words
        assert words.value == 1
        assert words.low > 0.85  # what forty answers can show

    def test_length_of_one_side_gives_it_away(self) -> None:
        def stretch(data: dict[str, Any]) -> None:
            for pair in data["exemplars"]["held_out"]:
                pair["with"], pair["without"] = pair["with"][:60].ljust(60, "x"), pair["without"][:50].ljust(50, "x")

        assert lint(changed(stretch)).length.value == 1.0

    def test_words_are_weighed_as_by_scikit_learns_naive_bayes(self) -> None:
        rng = np.random.default_rng(1)
        pairs = [ExemplarPair(question="q", positive=sentence(rng, 9), negative=sentence(rng, 14)) for _ in range(10)]
        texts = [sentence(rng, 8) + " unheard" for _ in range(6)]
        vectorizer = CountVectorizer(token_pattern=r"\w+")
        seen = vectorizer.fit_transform([p.positive for p in pairs] + [p.negative for p in pairs])
        peer = MultinomialNB().fit(seen, [1] * 10 + [0] * 10)
        log_p = peer.predict_joint_log_proba(vectorizer.transform(texts))
        np.testing.assert_allclose(word_scores(pairs, texts), log_p[:, 1] - log_p[:, 0], atol=1e-9)


class TestMeasures:
    @pytest.mark.parametrize(("a", "b", "share"), [(10, 10, 0.0), (10, 7, 0.3), (5, 10, 0.5)])
    def test_unevenness_is_what_the_shorter_side_lacks(self, a: int, b: int, share: float) -> None:
        pair = ExemplarPair(question="q", positive="x" * a, negative="y" * b)
        assert unevenness(pair) == pytest.approx(share)

    def test_likeness_is_the_share_of_common_words(self) -> None:
        assert alike("Why is it so?", "why IS it") == pytest.approx(3 / 4)
        assert alike("a", "b") == 0.0
