"""Grounding: sentences, facts, likelihood and score of an answer over a source."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import tiny
from poise.errors import InvalidArgument
from poise.grounding import GROUNDING_FEATURES, ground, split_passages, split_sentences
from poise.grounding.facts import FactIndex, MissingFacts, content_words
from poise.grounding.likelihood import answer_logprobs, grounded_prompt
from poise.grounding.score import GROUNDING_WEIGHTS, grounding_score, relevance_score
from poise.model import Model

SOURCE = (
    "Kiel harbour was opened in 1883 by Anton Berg.\n\nIts ferries leave every 40 minutes.\n\nA ticket is 12 euros."
)
QUERY = "How much is the ferry?"


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model()


class TestSentences:
    @pytest.mark.parametrize(
        ("text", "sentences"),
        [
            ("One. Two! Three?", ["One.", "Two!", "Three?"]),
            (
                "Dr. Smith of the U.S. paid 3.5 dollars. He left.",
                ["Dr. Smith of the U.S. paid 3.5 dollars.", "He left."],
            ),
            ("It is set here.Another begins.", ["It is set here.", "Another begins."]),
            ("“Yes.” she said", ["“Yes.”", "she said"]),
            ("- one\n- two\n\n", ["- one", "- two"]),
            ("今日は雨です。明日は？", ["今日は雨です。", "明日は？"]),
            (" ... \n ", []),
            ("", []),
        ],
    )
    def test_are_told(self, text: str, sentences: list[str]) -> None:
        assert [text[start:end] for start, end in split_sentences(text)] == sentences

    def test_of_a_source_make_passages_of_about_a_hundred_words(self) -> None:
        long = " ".join(f"This is sentence number {n} of a long paragraph." for n in range(100))
        passages = split_passages(f"A short one.\n\n{long}\n \nThe end")
        assert passages[0] == "A short one."
        assert passages[-1] == "The end"
        assert all(300 < len(passage) <= 600 for passage in passages[1:-2])
        assert " ".join(passages[1:-1]) == long


class TestFacts:
    def test_are_those_that_the_source_does_not_have(self) -> None:
        index = FactIndex("Paris has 2,102,650 people in twelve districts. He said “we are  here”.", "In 2020?")
        assert index.missing("Paris had 2102650 people and 12 districts in 2020. “We are here.”") == MissingFacts()
        missing = index.missing("In Rome's centre, Lyon has 13 districts since the 1990s, and “we are there”.")
        assert missing == MissingFacts(numbers=("13", "1990"), names=("Rome's", "Lyon"), quotes=("we are there",))
        assert missing.count == 5

    @pytest.mark.parametrize(
        ("sentence", "names"),
        [
            ("Certainly it is so here.", ()),
            ("Grover Cleveland did.", ("Grover", "Cleveland")),
            ("Berlin", ("Berlin",)),
            ("The mayor, Anton Berg's, of KIEL", ()),
            ("It was the Oslo line.", ("Oslo",)),
        ],
    )
    def test_of_names_are_words_with_a_capital(self, sentence: str, names: tuple[str, ...]) -> None:
        assert FactIndex(SOURCE).missing(sentence).names == names

    @pytest.mark.parametrize(("written", "there"), [("3.50", True), ("3,5", True), ("35", False), ("1000", True)])
    def test_of_numbers_are_values(self, written: str, there: bool) -> None:
        index = FactIndex("It costs 3.5 or 1,000.")
        assert (index.missing(f"About {written} of it.").numbers == ()) == there

    def test_share_words_whatever_their_ending(self) -> None:
        assert FactIndex("Ferries leave the harbours").share("The ferry was leaving a harbour") == 1.0
        assert FactIndex("Ferries leave").share("Boats leave") == 0.5
        assert FactIndex("Ferries leave").share("It is so") == 1.0
        assert content_words("The ferry and I") == ["ferry"]


class TestLikelihood:
    def test_is_the_models_own_with_and_without_the_source(self, model: Model) -> None:
        answer = "A ticket is 12 euros. Go!"
        read = answer_logprobs(model, SOURCE.split("\n\n"), QUERY, answer, apart=[2])

        def reference(source: str, query: str) -> torch.Tensor:
            text = model.encode(grounded_prompt(source, query), answer)
            with torch.inference_mode():
                logits = model.lm(input_ids=torch.tensor([text.ids])).logits[0].float().log_softmax(-1)
            places = range(text.start, text.end)
            return torch.tensor([float(logits[place - 1, text.ids[place]]) for place in places])

        for values, source, query in [
            (read.grounded, SOURCE, QUERY),
            (read.without_source, "", QUERY),
            (read.without_query, SOURCE, ""),
            (read.passages[2], "A ticket is 12 euros.", QUERY),
        ]:
            np.testing.assert_allclose(values, reference(source, query), atol=1e-4)
        assert np.isnan(read.passages[:2]).all()
        assert answer[read.places[0][0] : read.places[-1][1]] == answer
        first, second = (read.of(span) for span in split_sentences(answer))
        assert not (first & second).any()
        neither = [answer[slice(*read.places[n])] for n in np.flatnonzero(~(first | second))]
        assert set(neither) <= {" "}

    def test_that_does_not_fit_the_window_is_refused(self, model: Model) -> None:
        with pytest.raises(InvalidArgument, match="give the passages alone"):
            answer_logprobs(model, ["boat " * 5000], QUERY, "Yes.")


class TestScore:
    def features(self, **values: float) -> dict[str, float]:
        return {**dict.fromkeys(GROUNDING_FEATURES, 0.0), **values}

    def test_is_a_logistic_of_the_weighted_sum(self) -> None:
        weights = {**dict.fromkeys(GROUNDING_FEATURES, 0.0), "lift": 2.0, "constant": 1.0}
        assert grounding_score(self.features(lift=0.5), weights) == pytest.approx(1 / (1 + math.exp(-2)))
        assert grounding_score(self.features(lift=-1e9), weights) > 0
        assert set(GROUNDING_WEIGHTS) <= {*GROUNDING_FEATURES, "constant"}

    def test_falls_with_what_is_missing_and_rises_with_the_gain(self) -> None:
        assert grounding_score(self.features(missing=1)) < grounding_score(self.features())
        assert grounding_score(self.features(lift=1)) > grounding_score(self.features())
        assert 0 < relevance_score(-5) < relevance_score(5) < 1


class TestAnAnswer:
    def test_is_scored_by_sentence(self, model: Model) -> None:
        answer = "A ticket is 12 euros. It goes to London at 55."
        grounding = ground(model, SOURCE, QUERY, answer)
        assert [s.text for s in grounding.sentences] == ["A ticket is 12 euros.", "It goes to London at 55."]
        first, second = grounding.sentences
        assert (answer[second.start : second.end], second.missing.names) == (second.text, ("London",))
        assert second.missing.numbers == ("55",)
        assert first.missing.count == 0
        assert set(first.features) == set(GROUNDING_FEATURES)
        assert all(0 < s.score < 1 and s.passage in (None, 0, 1, 2) for s in grounding.sentences)
        assert grounding.score == min(s.score for s in grounding.sentences)
        assert 0 < (grounding.relevance or 0) < 1
        assert (len(grounding.passages), grounding.unread) == (3, ())

    def test_without_a_query_has_no_relevance(self, model: Model) -> None:
        assert ground(model, ["One.", "Two."], "", "One.", passages=False).relevance is None

    def test_over_a_long_source_reads_the_passages_with_most_in_common(self, model: Model) -> None:
        passages = [f"The story of fox {n} goes on." for n in range(200)] + ["A ticket is 12 euros."]
        grounding = ground(model, passages, QUERY, "A ticket is 12 euros.", passages=False)
        assert 200 not in grounding.unread
        assert 0 < len(grounding.unread) < 200
        assert grounding.sentences[0].missing.count == 0

    def test_of_a_conversation_may_repeat_what_was_said_before(self, model: Model) -> None:
        history = [
            {"role": "user", "content": "I am Lena and have 70 euros."},
            {"role": "assistant", "content": "Hello Lena."},
        ]
        said = ground(model, SOURCE, QUERY, "With 70 euros, dear Lena, yes.", history=history)
        unsaid = ground(model, SOURCE, QUERY, "With 70 euros, dear Lena, yes.")
        assert said.sentences[0].missing.count == 0
        assert unsaid.sentences[0].missing.count == 2

    def test_needs_a_source_and_an_answer(self, model: Model) -> None:
        with pytest.raises(InvalidArgument, match="source is empty"):
            ground(model, " \n", QUERY, "Yes.")
        with pytest.raises(InvalidArgument, match="answer is empty"):
            ground(model, SOURCE, QUERY, " ")
        with pytest.raises(InvalidArgument, match="model"):
            ground("smollm2-135m", SOURCE, QUERY, "Yes.")  # type: ignore[arg-type]


@pytest.mark.real
def test_a_real_model_finds_the_passages_and_the_sentence_that_is_made_up() -> None:
    from poise.model import load_model

    answer = "A ticket is 12 euros. Ferries leave every 40 minutes. It was opened in 1883. It goes to London at 55."
    grounding = ground(load_model("smollm2-135m"), SOURCE, QUERY, answer)
    scores = [sentence.score for sentence in grounding.sentences]
    assert [sentence.passage for sentence in grounding.sentences[:3]] == [2, 1, 0]
    assert min(scores[:3]) > 2 * scores[3]
