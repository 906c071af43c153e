"""Four ways to a direction that tells a trait from its absence: arithmetic on response means, and no model.

n: answers, d: model width. Answers come in three groups: with the trait, without it, and ordinary talk, which is
without it as well. A group weighs as much as a group, however many answers it has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from poise.vector.detector import DetectorKind

__all__ = ["DIRECTION_FITS", "AnswerGroups", "fit_curve", "logistic"]

Features = NDArray[np.float64]

SHRINKAGE = 10.0  # times the mean variance, added to the diagonal of the covariance
RIDGE = 3e-3  # C of the regressions on standardised features: few answers, many dimensions
TALK_WEIGHT = 0.5  # of ordinary talk beside the pairs, where each answer is labelled
RANKED_TALK = 4  # answers of ordinary talk that each answer with the trait is ranked above
RANKED_TALK_WEIGHT = 0.25  # of these beside its own pair


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerGroups:
    """Response means at one layer. n answers a group, d: model width.

    Attributes:
        positive: Means of the answers with the trait [n, d].
        negative: Means of the answers without it, pair by pair with ``positive`` [n, d].
        talk: Means of ordinary talk [m, d]; m may be 0.
    """

    positive: Features
    negative: Features
    talk: Features


def mean_difference(groups: AnswerGroups) -> Features:
    """Mean with the trait less mean without it: Chen et al. 2025, section 2.2."""
    return np.asarray(groups.positive.mean(0) - groups.negative.mean(0))


def shrunk_lda(groups: AnswerGroups) -> Features:
    """The mean difference times the inverse of a strongly shrunk covariance: what varies in any talk counts less."""
    within = [groups.positive - groups.positive.mean(0), groups.negative - groups.negative.mean(0)]
    if len(groups.talk):
        within.append(groups.talk - groups.talk.mean(0))
    centred = np.concatenate(within)
    covariance = centred.T @ centred / len(centred)
    width = len(covariance)
    covariance[np.diag_indices(width)] += SHRINKAGE * np.trace(covariance) / width
    return np.asarray(np.linalg.solve(covariance, mean_difference(groups)))


def logistic(groups: AnswerGroups, strength: float = RIDGE) -> Features:
    """Logistic regression with a strong ridge, on features of equal spread; ordinary talk is negative too.

    Args:
        groups: Answers.
        strength: C of the regression; the smaller, the stronger the ridge.
    """
    from sklearn.linear_model import LogisticRegression

    features = np.concatenate([groups.positive, groups.negative, groups.talk])
    labels = np.arange(len(features)) < len(groups.positive)
    pairs, talk = len(groups.positive) + len(groups.negative), len(groups.talk)
    weights = np.concatenate([np.ones(pairs), np.full(talk, TALK_WEIGHT * pairs / max(talk, 1))])
    spread = features.std(0) + 1e-6 * features.std()
    model = LogisticRegression(C=strength, class_weight="balanced", max_iter=500)
    model.fit((features - features.mean(0)) / spread, labels, sample_weight=weights)
    return np.asarray(model.coef_[0] / spread)


def ranking(groups: AnswerGroups) -> Features:
    """Logistic regression on differences: answers with the trait rank above their pair's other side and above talk.

    A pair's difference has nothing of its topic, register and tone, where both sides share them, so the direction
    cannot learn these; the answers of ordinary talk teach it what any answer has.
    """
    from sklearn.linear_model import LogisticRegression

    draw = np.random.default_rng(0)
    n, talk = len(groups.positive), groups.talk
    differences = [groups.positive - groups.negative]
    for _ in range(RANKED_TALK if len(talk) else 0):
        differences.append(groups.positive - talk[draw.integers(len(talk), size=n)])
    above = np.concatenate(differences)
    weights = np.ones(len(above))
    weights[n:] = RANKED_TALK_WEIGHT / RANKED_TALK
    features = np.concatenate([groups.positive, groups.negative, talk])
    spread = features.std(0) + 1e-6 * features.std()
    model = LogisticRegression(C=RIDGE, fit_intercept=False, max_iter=500)
    both = np.concatenate([above, -above]) / spread
    model.fit(both, np.arange(len(both)) < len(above), sample_weight=np.concatenate([weights, weights]))
    return np.asarray(model.coef_[0] / spread)


DIRECTION_FITS: Mapping[DetectorKind, Callable[[AnswerGroups], Features]] = {
    "mean-difference": mean_difference,
    "lda": shrunk_lda,
    "logistic": logistic,
    "ranking": ranking,
}


def fit_curve(with_trait: Features, without: Features) -> tuple[float, float]:
    """Slope and intercept of Platt's logistic curve from readings to a probability, both sides weighing the same.

    A slope is never below 0: readings that lie the wrong way round tell nothing, which is a half for every answer.
    """
    from sklearn.linear_model import LogisticRegression

    readings = np.concatenate([with_trait, without])
    centre, spread = float(readings.mean()), float(readings.std()) or 1.0
    curve = LogisticRegression(C=1e3, class_weight="balanced")
    curve.fit(((readings - centre) / spread)[:, None], np.arange(len(readings)) < len(with_trait))
    slope = float(curve.coef_[0, 0]) / spread
    if slope <= 0:
        return 0.0, 0.0
    return slope, float(curve.intercept_[0]) - slope * centre
