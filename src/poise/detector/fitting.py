"""A vector, its exemplar pairs and ordinary talk → a detector, with figures from answers that its fit did not see."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray

from poise.arguments import check_choice, check_number, check_type
from poise.data import DataSet, InputRow
from poise.detector.fit_data import DetectorData, ReadTalk, read_detector_data, read_talk
from poise.detector.kinds import DIRECTION_FITS, AnswerGroups, Features, fit_curve
from poise.detector.reach import remember_answers
from poise.errors import InvalidArgument
from poise.model import Model
from poise.progress import remark
from poise.statistics.estimates import Estimate, auc, grouped_auc_estimate
from poise.trait import ExemplarPair
from poise.vector import Detector, DetectorFacts, PersonaVector
from poise.vector.detector import DetectorKind, weights_digest

__all__ = [
    "DetectorData",
    "DetectorSettings",
    "ReadTalk",
    "fit_checked",
    "fit_detector",
    "read_detector_data",
    "read_talk",
]

DEFAULT_KINDS: tuple[DetectorKind, ...] = ("ranking",)
DETECTOR_DEPTH = 0.6
Fold = tuple[NDArray[np.bool_], NDArray[np.bool_]]  # which pairs and which answers of talk

DETECTOR_BELONGS = "a detector fitted there would pass for one of the vector's own model"
FALSE_ALARMS = 0.01
CHANCE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorSettings:
    """How a detector is fitted.

    Attributes:
        kinds: Kinds to try; where there are several, cross-validation chooses.
        layers: Layers to try, counted from 0; default, one at 0.6 of the depth.
        folds: Parts of the cross-validation; a pair is never on both sides of it.
        limit: Most conversations of ordinary talk, drawn at random.
        seed: Seed of the drawing and of the folds.
    """

    kinds: tuple[DetectorKind, ...] = DEFAULT_KINDS
    layers: tuple[int, ...] | None = None
    folds: int = 5
    limit: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("folds", "limit", "seed"):
            check_type(name, getattr(self, name), int, "a whole number")
        check_type("kinds", self.kinds, (tuple, list), "a tuple of kinds, such as ('ranking',)")
        if not self.kinds:
            raise InvalidArgument("There are no kinds of detector to try; give at least one, such as ('ranking',).")
        for kind in self.kinds:
            check_choice("A kind", kind, get_args(DetectorKind))
        check_type("layers", self.layers, (tuple, list, type(None)), "a tuple of layers, such as (18,)")
        if self.layers is not None and not self.layers:
            raise InvalidArgument("There are no layers to try; give at least one, or leave `layers` away.")
        check_number("folds", self.folds, least=2, most=100)
        check_number("limit", self.limit, least=1, most=2**31)
        check_number("seed", self.seed, least=0, most=2**32 - 1)


def fit_detector(
    vector: PersonaVector,
    model: Model,
    *,
    normal: DataSet | Iterable[InputRow] | None = None,
    pairs: Sequence[ExemplarPair] | None = None,
    settings: DetectorSettings | None = None,
    allow_other_model: bool = False,
) -> PersonaVector:
    """The vector with a detector: a direction that tells its trait from other answers, and a curve of probability.

    Args:
        vector: Vector of this model, whose trait has exemplar pairs.
        model: Model whose activations are read.
        normal: Ordinary talk with answers, as the detector will meet it; without any, only the pairs are told apart.
        pairs: Pairs to fit on; default, those that the trait has for it.
        settings: Kinds, layers, folds, seed; default, a ranking detector at 0.6 of the depth.
        allow_other_model: Also take a vector of another model of this shape.

    Raises:
        OtherModel: the vector was computed on another model.
        TooFewResponses: fewer than 12 pairs.
        InvalidArgument: an unknown kind, or a layer that the model does not have.
        InvalidData: too many rows of the talk are rejected.
    """
    check_type("vector", vector, PersonaVector, "a PersonaVector, as load_vector(path) gives")
    check_type("model", model, Model, "a Model, as load_model(name) gives")
    settings = DetectorSettings() if settings is None else settings
    check_type("settings", settings, DetectorSettings, "a DetectorSettings")
    pairs = vector.header.trait.detector_pairs if pairs is None else pairs
    check_type("pairs", pairs, (tuple, list), "a list of ExemplarPair")
    for pair in pairs:
        check_type("A pair", pair, ExemplarPair, "an ExemplarPair")
    vector.check_model(model, allow_other_model=allow_other_model, record=DETECTOR_BELONGS)
    return fit_checked(vector, model, normal, pairs, settings)


def fit_checked(
    vector: PersonaVector,
    model: Model,
    normal: DataSet | Iterable[InputRow] | ReadTalk | None,
    pairs: Sequence[ExemplarPair],
    settings: DetectorSettings,
) -> PersonaVector:
    """As ``fit_detector``, for arguments that were checked; talk that was read already is not read again."""
    layers = settings.layers or (default_layer(vector.layers),)
    for layer in layers:
        vector.check_layer(layer)
    data = read_detector_data(pairs, model, normal, limit=settings.limit, seed=settings.seed)
    detector = choose_detector(data, layers, settings)
    facts = detector.facts
    if not facts.low > CHANCE:
        remark(
            f"The detector of {vector.name} tells its trait no better than chance: cross-validated AUC {facts.auc:.2f} "
            f"[{facts.low:.2f}, {facts.high:.2f}], and {CHANCE} is chance. Do not rely on it: give more pairs, pairs "
            "whose sides differ in the trait alone, or other layers, or read by the vector's own direction "
            "(`projection`)."
        )
    return vector.with_detector(detector)


def default_layer(layers: int) -> int:
    """The layer at 0.6 of the depth; see docs/detectors.md for the figures."""
    return min(round(layers * DETECTOR_DEPTH), layers - 1)


def choose_detector(data: DetectorData, layers: Sequence[int], settings: DetectorSettings) -> Detector:
    """The best kind and layer by cross-validated log-loss, fitted on everything, with its cross-validated figures."""
    candidates = list(itertools.product(settings.kinds, layers))
    folds = list(_folds(data, settings))
    scored = {candidate: _cross_validated(data, *candidate, folds) for candidate in candidates}
    losses = {candidate: _log_loss(*scores) for candidate, scores in scored.items()}
    kind, layer = min(candidates, key=lambda candidate: (losses[candidate], -_pooled_auc(*scored[candidate])))
    groups = _answer_groups(data, layer)
    direction = DIRECTION_FITS[kind](groups)
    weights = torch.from_numpy(direction / np.linalg.norm(direction)).float()
    with_trait, without = scored[kind, layer]
    slope, intercept = fit_curve(with_trait, without)  # of readings less their mean, over their spread
    readings = np.concatenate([groups.positive, groups.negative, groups.talk]) @ weights.double().numpy()
    slope /= float(readings.std())
    measured = _auc(data, with_trait, without, seed=settings.seed)
    seen, seen_facts = remember_answers(weights.double().numpy(), groups, folds)
    return Detector(
        weights,
        DetectorFacts(
            kind=kind,
            layer=layer,
            weights_sha256=weights_digest(weights),
            slope=slope,
            intercept=intercept - slope * float(readings.mean()),
            difference=float((groups.positive - groups.negative).mean(0) @ weights.double().numpy()),
            pairs=len(data.positive),
            pairs_left_out=data.pairs_left_out,
            pairs_sha256=data.pairs_sha256,
            normal=dict(data.normal),
            normal_sha256=data.normal_sha256,
            normal_keys=data.normal_keys,
            normal_left_out=data.normal_left_out,
            repeated=data.repeated,
            auc=measured.value or 0.0,
            low=measured.low or 0.0,
            high=measured.high or 0.0,
            n_with=len(with_trait),
            n_without=len(without),
            recall=_recall(with_trait, without),
            candidates={f"{k}@{i}": round(losses[k, i], 4) for k, i in candidates},
            seed=settings.seed,
            seen=seen_facts,
        ),
        seen,
    )


def _answer_groups(data: DetectorData, layer: int, keep: Fold | None = None) -> AnswerGroups:
    pairs, talk = keep or (np.ones(len(data.positive), bool), np.ones(len(data.talk), bool))
    return AnswerGroups(
        positive=data.positive[pairs, layer].double().numpy(),
        negative=data.negative[pairs, layer].double().numpy(),
        talk=data.talk[talk, layer].double().numpy(),
    )


def _folds(data: DetectorData, settings: DetectorSettings) -> Iterator[Fold]:
    """Which pairs and talk each fold holds out: whole pairs, those that share an answer together, and conversations."""
    draw = np.random.default_rng(settings.seed)
    groups = _pair_groups(data)
    count = int(groups.max()) + 1
    folds = min(settings.folds, count)
    of_pair = (draw.permutation(count) % folds)[groups]
    conversations = max(data.talk_groups, default=-1) + 1
    of_talk = (draw.permutation(conversations) % folds)[list(data.talk_groups)] if conversations else np.empty(0, int)
    for fold in range(folds):
        yield of_pair == fold, of_talk == fold


def _cross_validated(
    data: DetectorData, kind: DetectorKind, layer: int, folds: Sequence[Fold]
) -> tuple[Features, Features]:
    """Out-of-fold scores of answers with the trait [n] and of all others [n + m], each fold on one scale."""
    everything = _answer_groups(data, layer)
    positive, negative = np.zeros(len(data.positive)), np.zeros(len(data.positive))
    talk = np.zeros(len(data.talk))
    for pairs, conversations in folds:
        learnt = _answer_groups(data, layer, (~pairs, ~conversations))
        direction = DIRECTION_FITS[kind](learnt)
        seen = np.concatenate([learnt.positive, learnt.negative, learnt.talk]) @ direction
        centre, spread = seen.mean(), seen.std() or 1.0
        positive[pairs] = (everything.positive[pairs] @ direction - centre) / spread
        negative[pairs] = (everything.negative[pairs] @ direction - centre) / spread
        talk[conversations] = (everything.talk[conversations] @ direction - centre) / spread
    of_positive, of_negative = _first_of_equals(data)
    return positive[of_positive], np.concatenate([negative[of_negative], talk])


def _auc(data: DetectorData, with_trait: Features, without: Features, *, seed: int) -> Estimate:
    """AUC over all answers, its interval by pair (those that share an answer are one) and by conversation."""
    groups = _pair_groups(data)
    talk = int(groups.max()) + 1 + np.unique(np.array(data.talk_groups, dtype=int), return_inverse=True)[1]
    of_positive, of_negative = _first_of_equals(data)
    negatives = np.concatenate([groups[of_negative], talk]).astype(int)
    return grouped_auc_estimate(with_trait, without, (groups[of_positive], negatives), seed=seed)


def _pooled_auc(with_trait: Features, without: Features) -> float:
    """The AUC without its interval."""
    return float(
        auc(np.concatenate([with_trait, without]), np.arange(len(with_trait) + len(without)) < len(with_trait))
    )


def _recall(with_trait: Features, without: Features) -> float | None:
    """Share of answers with the trait above a level that at most 1 % of the others pass; ``None`` for too few."""
    if not (passing := _most_passing(len(without))):
        return None
    level = np.sort(without)[-1 - passing]
    return round(float((with_trait > level).mean()), 4)


def _most_passing(others: int) -> int:
    """How many of that many answers without the trait may pass the level of the recall."""
    return int(others * FALSE_ALARMS + 1e-9)


def _log_loss(with_trait: Features, without: Features) -> float:
    """Mean log-loss of the calibrated curve, both sides weighing the same: what a coin has is 0.693."""
    slope, intercept = fit_curve(with_trait, without)
    losses = [np.logaddexp(0, -sign * (slope * x + intercept)) for sign, x in ((1, with_trait), (-1, without))]
    return float(np.mean([loss.mean() for loss in losses]))


def _pair_groups(data: DetectorData) -> NDArray[np.intp]:
    """Number of each pair's group, from 0 without gaps: those that share an answer, or whose means are equal."""
    both = torch.cat([data.positive.flatten(1), data.negative.flatten(1)], dim=1).double().numpy()
    groups = np.unique(both, axis=0, return_inverse=True)[1] if not data.pair_groups else np.array(data.pair_groups)
    return np.unique(groups.ravel(), return_inverse=True)[1].ravel()


def _first_of_equals(data: DetectorData) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Places of the different answers of each side; an answer that several pairs share counts once."""
    if not data.positive_texts:
        return np.arange(len(data.positive)), np.arange(len(data.negative))
    sides = (data.positive_texts, data.negative_texts)
    first, second = (np.sort(np.unique(np.array(texts), return_index=True)[1]) for texts in sides)
    return first, second
