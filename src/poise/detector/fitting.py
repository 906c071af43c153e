"""A vector, its exemplar pairs and ordinary talk → a detector, with figures from answers that its fit did not see."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray

from poise.activations import read
from poise.arguments import check_choice, check_number, check_type
from poise.data import DataSet, InputRow, Rejections, conversation_key, data_from_rows, draw_conversations, turns
from poise.detector.kinds import DIRECTION_FITS, AnswerGroups, Features, fit_curve
from poise.detector.reach import remember_answers
from poise.errors import InvalidArgument, TooFewResponses
from poise.model import Encoded, Model, ask
from poise.model.spans import AnswerSpan, answer_spans
from poise.statistics.estimates import Estimate, grouped_auc_estimate
from poise.storage.content_hash import content_key
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

FEWEST_FIT_PAIRS = 12
DETECTOR_BELONGS = "a detector fitted there would pass for one of the vector's own model"
FALSE_ALARMS = 0.01


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


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorData:
    """What a detector is fitted on, read once at all layers. n: pairs, m: talk, L: decoder blocks, d: model width.

    Attributes:
        positive: Response means with the trait, float32 [n, L, d].
        negative: Response means without it, pair by pair, float32 [n, L, d].
        talk: Response means of ordinary talk, float32 [m, L, d].
        pairs_left_out: Number of pairs that the model's window has no room for, or whose answer has no token.
        talk_groups: Number of the conversation that each of them came from.
        pairs_sha256: SHA-256 of the pairs.
        normal: Number of answers used, by name of the data.
        normal_left_out: Number of rows and answers of the talk that could not be read.
        normal_sha256: SHA-256 of the talk that was read; empty where there is none.
        normal_keys: Key of each of its conversations.
    """

    positive: torch.Tensor
    negative: torch.Tensor
    talk: torch.Tensor
    talk_groups: tuple[int, ...]
    pairs_left_out: int
    pairs_sha256: str
    normal: Mapping[str, int]
    normal_left_out: int
    normal_sha256: str
    normal_keys: tuple[str, ...]


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
    return vector.with_detector(choose_detector(data, layers, settings))


def default_layer(layers: int) -> int:
    """The layer at 0.6 of the depth; see docs/detectors.md for the figures."""
    return min(round(layers * DETECTOR_DEPTH), layers - 1)


def read_detector_data(
    pairs: Sequence[ExemplarPair],
    model: Model,
    normal: DataSet | Iterable[InputRow] | ReadTalk | None,
    *,
    limit: int = 500,
    seed: int = 0,
) -> DetectorData:
    """Read pairs and talk at all layers in one pass each.

    Raises:
        TooFewResponses: fewer than 12 pairs that fit the model's window.
        InvalidData: too many rows of the talk are rejected.
    """
    sides = [(_encode(model, p.question, p.positive), _encode(model, p.question, p.negative)) for p in pairs]
    usable = [i for i, side in enumerate(sides) if all(text and len(text.ids) <= model.window for text in side)]
    distinct = {(pairs[i].positive, pairs[i].negative) for i in usable}
    if len(distinct) < FEWEST_FIT_PAIRS:
        raise TooFewResponses(
            f"There are {len(distinct)} different exemplar pairs to fit a detector on ({len(pairs) - len(usable)} more "
            f"are too long for the model's window), and it needs {FEWEST_FIT_PAIRS}; give more pairs."
        )
    talked = normal if isinstance(normal, ReadTalk) else read_talk(model, normal, limit=limit, seed=seed)
    both = read(model, [text for column in (0, 1) for i in usable if (text := sides[i][column])])
    return DetectorData(
        positive=both[: len(usable)],
        negative=both[len(usable) :],
        talk=talked.means,
        talk_groups=tuple(talked.conversations),
        pairs_left_out=len(pairs) - len(usable),
        pairs_sha256=content_key(pairs=[[p.question, p.positive, p.negative] for p in pairs]),
        normal=talked.names,
        normal_left_out=talked.left_out,
        normal_sha256=talked.sha256,
        normal_keys=tuple(talked.keys),
    )


def choose_detector(data: DetectorData, layers: Sequence[int], settings: DetectorSettings) -> Detector:
    """The best kind and layer by cross-validated log-loss, fitted on everything, with its cross-validated figures."""
    candidates = list(itertools.product(settings.kinds, layers))
    folds = list(_folds(data, settings))
    scored = {candidate: _cross_validated(data, *candidate, folds) for candidate in candidates}
    losses = {candidate: _log_loss(*scores) for candidate, scores in scored.items()}
    kind, layer = min(candidates, key=lambda candidate: losses[candidate])
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


def _encode(model: Model, question: str, answer: str) -> Encoded | None:
    text = model.encode(ask(question), answer)
    return text if text.start < text.end else None


@dataclass(slots=True)
class ReadTalk:
    """Ordinary talk, read once for any number of vectors. m: answers, L: decoder blocks, d: model width.

    Attributes:
        means: Response means, float32 [m, L, d].
        conversations: Number of the conversation that each answer came from.
        names: Number of answers by name of the data.
        left_out: Number of rows and answers that could not be read.
        sha256: SHA-256 of what was read; empty where there is none.
        keys: Key of each conversation of which an answer was read.
    """

    means: torch.Tensor
    conversations: list[int] = field(default_factory=list)
    names: dict[str, int] = field(default_factory=dict)
    left_out: int = 0
    sha256: str = ""
    keys: list[str] = field(default_factory=list)


def read_talk(model: Model, normal: DataSet | Iterable[InputRow] | None, *, limit: int, seed: int) -> ReadTalk:
    """The answers of conversations drawn at random, at all layers.

    Raises:
        InvalidData: too many rows are rejected.
    """
    talk = ReadTalk(torch.empty((0, model.layers, model.width)))
    texts: list[Encoded] = []
    digest, rejections = hashlib.sha256(), Rejections()
    if normal is None:
        return talk
    data = data_from_rows(normal, need="assistant")
    for number, conversation in enumerate(draw_conversations(data, limit, seed=seed, rejections=rejections)):
        name, before = Path(conversation.file).name, len(texts)
        for place in answer_spans(model, turns(conversation)):
            if not isinstance(place, AnswerSpan) or place.text.end <= place.text.start:
                talk.left_out += 1
                continue
            texts.append(place.text)
            talk.conversations.append(number)
            talk.names[name] = talk.names.get(name, 0) + 1
            digest.update(repr(tuple(place.text.ids)).encode())
        if len(texts) > before:
            talk.keys.append(conversation_key(conversation))
    talk.left_out += len(rejections)
    talk.sha256 = digest.hexdigest()
    talk.means = read(model, texts) if texts else talk.means
    return talk


def _answer_groups(data: DetectorData, layer: int, keep: Fold | None = None) -> AnswerGroups:
    pairs, talk = keep or (np.ones(len(data.positive), bool), np.ones(len(data.talk), bool))
    return AnswerGroups(
        positive=data.positive[pairs, layer].double().numpy(),
        negative=data.negative[pairs, layer].double().numpy(),
        talk=data.talk[talk, layer].double().numpy(),
    )


def _folds(data: DetectorData, settings: DetectorSettings) -> Iterator[Fold]:
    """Which pairs and which talk each fold holds out: whole pairs, equal ones together, and whole conversations."""
    draw = np.random.default_rng(settings.seed)
    distinct, group = np.unique(_flat(data), axis=0, return_inverse=True)
    folds = min(settings.folds, len(distinct))
    of_pair = (draw.permutation(len(distinct)) % folds)[group.ravel()]
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
    return positive, np.concatenate([negative, talk])


def _auc(data: DetectorData, with_trait: Features, without: Features, *, seed: int) -> Estimate:
    """AUC over all answers, its interval by pair and by conversation."""
    pairs = np.arange(len(data.positive))
    talk = len(pairs) + np.unique(np.array(data.talk_groups, dtype=int), return_inverse=True)[1]
    negatives = np.concatenate([pairs, talk]).astype(int)
    return grouped_auc_estimate(with_trait, without, (pairs, negatives), seed=seed)


def _recall(with_trait: Features, without: Features) -> float | None:
    """Share of answers with the trait above all but 1 % of the others; ``None`` where 1 % of these is none of them."""
    if len(without) * FALSE_ALARMS < 1:
        return None
    return round(float((with_trait > np.quantile(without, 1 - FALSE_ALARMS)).mean()), 4)


def _log_loss(with_trait: Features, without: Features) -> float:
    """Mean log-loss of the calibrated curve, both sides weighing the same: what a coin has is 0.693."""
    slope, intercept = fit_curve(with_trait, without)
    losses = [np.logaddexp(0, -sign * (slope * x + intercept)) for sign, x in ((1, with_trait), (-1, without))]
    return float(np.mean([loss.mean() for loss in losses]))


def _flat(data: DetectorData) -> Features:
    """A row for each pair, equal for equal answers."""
    both = torch.cat([data.positive.flatten(1), data.negative.flatten(1)], dim=1)
    return both.double().numpy()
