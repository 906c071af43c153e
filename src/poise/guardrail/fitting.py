"""Topics and content to detectors: directions that tell a rule's examples from ordinary talk, and promised rates.

Each rule has one detector a way. It is fitted to the examples, to the texts beside them and to a part of the ordinary
talk; its thresholds are set on the rest of the talk, so that the promise of ``poise.statistics.conformal`` holds; its
recall is measured on examples that the fit did not see. n: texts, d: model width, k: directions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray

from poise.activations import project, read_layers
from poise.arguments import check_number, check_type
from poise.data import DataSet, InputRow
from poise.detector.kinds import AnswerGroups, logistic
from poise.errors import InvalidArgument
from poise.guardrail.fit_texts import OrdinaryTexts, RuleTexts, last_token_of, rule_texts
from poise.guardrail.guard_file import DetectorFigures, FittedGuard, GuardDetector, GuardHeader
from poise.guardrail.readings import WINDOW_TOKENS, ReadPlace, highest_window
from poise.guardrail.schema import HIGHEST_RATE, Guardrail, Strength
from poise.guardrail.uncertain_band import operating_point, uncertain_band
from poise.model import Encoded, Model
from poise.model.probe import Probe
from poise.statistics.conformal import check_enough, check_rate, exact_interval
from poise.statistics.estimates import grouped_auc_estimate
from poise.storage.content_hash import content_key
from poise.vector.header import ModelId

__all__ = ["GuardFitSettings", "fit_guard"]

Readings = NDArray[np.float64]
GUARD_DEPTH = 0.6
GUARD_RIDGE = 3e-5  # C: of 1e-1 to 3e-5 the best recall at 1 %, in benchmarks/guardrail_quality.py --half choose
FITTED_SHARE, MOST_FITTED = 0.3, 500  # of the talk
STRENGTH_RATES: dict[Strength, float] = {"LOW": 0.2, "MEDIUM": 1.0, "HIGH": 5.0}
"""What the asked rate is multiplied by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardFitSettings:
    """How a guardrail's detectors are fitted.

    Attributes:
        rate: Share of ordinary texts that each rule may stop, at the strength MEDIUM.
        layer: Layer that is read, counted from 0; default, at 0.6 of the depth.
        folds: Parts of the cross-validation that recall is measured by.
        limit: Most conversations of ordinary talk, drawn at random.
        seed: Seed of the drawing.
    """

    rate: float = 0.01
    layer: int | None = None
    folds: int = 5
    limit: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        check_rate(self.rate)
        check_number("folds", self.folds, least=2, most=20)
        check_number("limit", self.limit, least=1, most=2**31)
        check_number("seed", self.seed, least=0, most=2**32 - 1)


def fit_guard(
    guardrail: Guardrail,
    model: Model,
    normal: DataSet | Iterable[InputRow],
    settings: GuardFitSettings | None = None,
) -> FittedGuard:
    """Fit a detector for each topic and kind of content, on each way that it is looked for on.

    Args:
        guardrail: Its topics and content.
        model: The model that is to be guarded.
        normal: Ordinary talk, as the server will meet it.
        settings: Rate, layer, folds, seed.

    Raises:
        InvalidArgument: the guardrail has neither topics nor content, or the model lacks the layer.
        TooFewResponses: too few examples of a rule, or too little talk to promise a rate; says how much is needed.
        InvalidData: too many rows of the talk are rejected.
    """
    check_type("guardrail", guardrail, Guardrail, "a Guardrail, as load_guardrail(path) gives")
    check_type("model", model, Model, "a Model, as load_model(name) gives")
    settings = settings or GuardFitSettings()
    if not guardrail.needs_model:
        raise InvalidArgument(f"{guardrail.name} has neither topics nor content, so that there is nothing to fit.")
    layer = round(GUARD_DEPTH * (model.layers - 1)) if settings.layer is None else settings.layer
    check_number("layer", layer, least=0, most=model.layers - 1)
    rules = [replace(rule, judge=guardrail.judge) for rule in rule_texts(guardrail)]
    talk = OrdinaryTexts.read(model, normal, limit=settings.limit, seed=settings.seed)
    fitted = []
    for place in get_args(ReadPlace):
        of_place = [rule for rule in rules if rule.place == place]
        if of_place:
            fitted += _fit_place(model, of_place, talk, layer, settings)
    detectors = tuple(detector for detector, _ in fitted)
    header = GuardHeader(
        guardrail=guardrail,
        model=ModelId.of(model),
        detectors=detectors,
        window=WINDOW_TOKENS,
        rate=settings.rate,
        seed=settings.seed,
        normal=talk.names,
        normal_sha256=talk.sha256,
        examples_sha256=content_key(rules=[[r.kind, r.rule, r.source, r.examples, r.near_misses] for r in rules]),
    )
    return FittedGuard(header, torch.tensor(np.stack([direction for _, direction in fitted]), dtype=torch.float32))


def _fit_place(
    model: Model, rules: Sequence[RuleTexts], talk: OrdinaryTexts, layer: int, settings: GuardFitSettings
) -> list[tuple[GuardDetector, Readings]]:
    """The detectors of one place, and their directions."""
    place = rules[0].place
    texts = talk.in_place(model, place)
    n_fit = min(round(FITTED_SHARE * len(texts)), MOST_FITTED)
    noun = "prompts" if place == "prompt" else "answers"
    bands = [rule.judge.band_at(STRENGTH_RATES[rule.strength]) for rule in rules if rule.judge]
    asked = {settings.rate * STRENGTH_RATES[rule.strength] for rule in rules}
    for rate in asked.union(*bands):
        needs = f"Of {len(texts)} different {noun}, {n_fit} were used for the fit."
        needs += "" if rate in asked else " The rate is one of the judge's `band`, in the YAML."
        check_enough(len(texts) - n_fit, min(rate, HIGHEST_RATE), needs, unit=noun)
    encoded = [talk.encode_rule(model, rule, settings.seed) for rule in rules]
    features = [(_features(model, e, layer, place), _features(model, n, layer, place)) for e, n in encoded]
    ordinary = _features(model, texts[:n_fit], layer, place)
    if place == "answer":  # examples are what people ask: as answers they differ from answers by that alone
        asked_back = [talk.as_answer(model, question, settings.seed) for question in talk.questions[:n_fit]]
        ordinary = np.concatenate([ordinary, _features(model, asked_back, layer, place)])
    folds = [_held_out_parts(len(e), len(n), settings) for e, n in features]
    directions = [
        [_direction(e[~held], n[~held_near], ordinary) for held, held_near in parts]
        for (e, n), parts in zip(features, folds, strict=True)
    ]
    flat = [direction for each in directions for direction in each]
    reader = _Reader(model, layer, place, flat)
    held_out = reader.read(texts[n_fit:])
    changes = held_out - reader.read(talk.before_results(model)[n_fit:]) if place == "tool result" else None
    fitted, first = [], 0
    for rule, (examples, near), parts in zip(rules, encoded, folds, strict=True):
        columns = slice(first, first + len(parts))
        first += len(parts)
        scores = _Scores(reader.read(examples)[:, columns], reader.read(near)[:, columns], held_out[:, columns], parts)
        scores = scores if changes is None else replace(scores, changes=changes[:, columns.start])
        fitted.append(_detector(rule, scores, flat[columns.start], layer, n_fit, settings))
    return fitted


def _features(model: Model, texts: Sequence[Encoded], layer: int, place: ReadPlace) -> Readings:
    """Activations that directions are fitted to: of the last prompt token, or the answer's mean [n, d]."""
    if not texts:
        return np.zeros((0, model.width))
    if place != "answer":
        texts = last_token_of(texts)
    return read_layers(model, texts, [layer])[:, 0].double().numpy()


def _held_out_parts(
    examples: int, near: int, settings: GuardFitSettings
) -> list[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """Texts that are held out: none for the detector itself, then those of each fold."""
    draw = np.random.default_rng(settings.seed)
    parts = min(settings.folds, examples)
    of_example, of_near = (draw.permutation(np.arange(n) % parts) for n in (examples, near))
    nothing = (np.zeros(examples, dtype=bool), np.zeros(near, dtype=bool))
    return [nothing, *((of_example == part, of_near == part) for part in range(parts))]


def _direction(examples: Readings, near: Readings, ordinary: Readings) -> Readings:
    """A logistic regression's direction: examples against the texts beside them and ordinary talk."""
    direction = logistic(AnswerGroups(positive=examples, negative=near, talk=ordinary), GUARD_RIDGE)
    return np.asarray(direction / np.linalg.norm(direction))


class _Reader:
    """Reads texts with several directions at once, as the server will."""

    def __init__(self, model: Model, layer: int, place: ReadPlace, directions: Sequence[Readings]) -> None:
        self._model, self._place = model, place
        self._probes = [Probe(layer, torch.tensor(direction, dtype=torch.float32)) for direction in directions]

    def read(self, texts: Sequence[Encoded]) -> Readings:
        """What thresholds are set on [n, k]."""
        rows = []
        for text, values in zip(texts, project(self._model, list(texts), self._probes), strict=True):
            readings = values.double().numpy()
            last = readings[text.last_prompt]
            rows.append(highest_window(readings[text.start : text.end]) if self._place == "answer" else last)
        return np.stack(rows) if rows else np.zeros((0, len(self._probes)))


@dataclass(frozen=True, slots=True)
class _Scores:
    """Readings of a rule's texts and of held-out talk, by the detector (column 0) and by those of the folds."""

    examples: Readings
    near: Readings
    talk: Readings
    folds: Sequence[tuple[NDArray[np.bool_], NDArray[np.bool_]]]
    changes: Readings | None = None  # of the talk's readings by a tool's result, where it stands for one

    def held_out(self, values: Readings, side: int) -> Readings:
        """Each text by the fold that did not see it, in standard deviations of the talk."""
        out = np.zeros(len(values))
        for column, masks in enumerate(self.folds[1:], start=1):
            talk = self.talk[:, column]
            out[masks[side]] = (values[masks[side], column] - talk.mean()) / talk.std()
        return out


def _detector(
    rule: RuleTexts, scores: _Scores, direction: Readings, layer: int, n_fit: int, settings: GuardFitSettings
) -> tuple[GuardDetector, Readings]:
    talk = scores.talk[:, 0]
    centre, spread = float(talk.mean()), float(talk.std())
    ordinary = (talk - centre) / spread
    rate = settings.rate * STRENGTH_RATES[rule.strength]
    point = operating_point(ordinary, rate)
    examples, near = scores.held_out(scores.examples, 0), scores.held_out(scores.near, 1)
    auc = grouped_auc_estimate(
        examples, ordinary, (np.arange(len(examples)), np.arange(len(ordinary)) + len(examples)), seed=settings.seed
    )
    passed = int((examples > point.value).sum())
    low, high = exact_interval(passed, len(examples))
    figures = DetectorFigures(
        examples=len(examples),
        near_misses=len(near),
        talk_fitted=n_fit,
        auc=auc.value or 0.0,
        auc_low=auc.low or 0.0,
        auc_high=auc.high or 0.0,
        recall=passed / len(examples),
        recall_low=low,
        recall_high=high,
        near_alarms=int((near > point.value).sum()),
    )
    band = rule.judge.band_at(STRENGTH_RATES[rule.strength]) if rule.judge else None
    detector = GuardDetector.model_validate(
        {
            "kind": rule.kind,
            "rule": rule.rule,
            "source": rule.source,
            "place": rule.place,
            "action": rule.action,
            "layer": layer,
            "centre": centre / spread,
            "strength": rule.strength,
            "point": point,
            "change": None if scores.changes is None else operating_point(scores.changes / spread, rate),
            "figures": figures,
            "band": uncertain_band(ordinary, band, examples, near) if band else None,
        }
    )
    return detector, direction / spread
