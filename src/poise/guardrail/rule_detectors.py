"""RuleReadings of a rule's texts and of ordinary talk to its detector: threshold, figures, band. Whatever reads them.

Thresholds are set on talk that the fit has not seen, so that the promise of ``poise.statistics.conformal`` holds;
recall is of examples that the fit did not see. n: texts, d: width of what is read, k: directions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from poise.arguments import check_number
from poise.detector.kinds import AnswerGroups, logistic
from poise.guardrail.fit_texts import RuleTexts
from poise.guardrail.guard_file import DetectorFigures, GuardDetector
from poise.guardrail.judge_settings import HIGHEST_RATE
from poise.guardrail.uncertain_band import operating_point, uncertain_band
from poise.statistics.conformal import check_enough, check_rate, exact_interval
from poise.statistics.estimates import grouped_auc_estimate

__all__ = [
    "DirectionFit",
    "GuardFitSettings",
    "PlaceReadings",
    "RuleReadings",
    "fitted_number",
    "logistic_direction",
    "place_detectors",
]

RuleReadings = NDArray[np.float64]
DirectionFit = Callable[[RuleReadings, RuleReadings, RuleReadings], RuleReadings]
"""(examples, texts beside them, ordinary talk) to a direction."""
FITTED_SHARE, MOST_FITTED = 0.3, 500  # of the talk


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


def fitted_number(n: int, rules: Sequence[RuleTexts], settings: GuardFitSettings) -> int:
    """How many of so many ordinary texts the fit takes, so that the others set its thresholds.

    Raises:
        TooFewResponses: those cannot promise the rate of a rule; says how many can.
    """
    n_fit = min(round(FITTED_SHARE * n), MOST_FITTED)
    noun = "prompts" if rules[0].place == "prompt" else "answers"
    bands = [rule.judge.band_at(rule.times) for rule in rules if rule.judge]
    rates = {settings.rate * rule.times for rule in rules}
    for rate in rates.union(*bands):
        needs = f"Of {n} different {noun}, {n_fit} were used for the fit."
        needs += "" if rate in rates else " The rate is one of the judge's `band`, in the YAML."
        check_enough(n - n_fit, min(rate, HIGHEST_RATE), needs, unit=noun)
    return n_fit


@dataclass(frozen=True, slots=True)
class PlaceReadings:
    """What k directions read in one place.

    Attributes:
        talk: Readings of held-out ordinary texts [n, k].
        rules: Readings of each rule's examples and of the texts beside them, [n, k] each.
        changes: Changes of the talk's readings by a tool's result [n, k], where it stands for one.
    """

    talk: RuleReadings
    rules: Sequence[tuple[RuleReadings, RuleReadings]]
    changes: RuleReadings | None = None


def place_detectors(
    rules: Sequence[RuleTexts],
    features: Sequence[tuple[RuleReadings, RuleReadings]],
    ordinary: RuleReadings,
    read: Callable[[Sequence[RuleReadings]], PlaceReadings],
    *,
    fit: DirectionFit,
    layer: int | None,
    n_fit: int,
    settings: GuardFitSettings,
) -> list[tuple[GuardDetector, RuleReadings]]:
    """The detectors of one place, and their directions, each fitted once more for each fold.

    Args:
        rules: Rules of the place.
        features: Embeddings or activations of each rule's examples and of the texts beside them [n, d].
        ordinary: The same of ordinary talk [m, d].
        read: Reads all texts with directions, as they will be read where they act.
        fit: Gives a direction of examples, texts beside them and ordinary talk, such as ``logistic_direction``.
        layer: Layer of the model that is read; ``None`` for the encoder.
        n_fit: Ordinary texts that are fitted to.
        settings: Rate, folds and seed.
    """
    folds = [_held_out_parts(len(e), len(n), settings) for e, n in features]
    flat = [
        fit(e[~held], n[~held_near], ordinary)
        for (e, n), parts in zip(features, folds, strict=True)
        for held, held_near in parts
    ]
    readings = read(flat)
    fitted, first = [], 0
    for rule, (examples, near), parts in zip(rules, readings.rules, folds, strict=True):
        columns = slice(first, first + len(parts))
        first += len(parts)
        scores = _RuleScores(examples[:, columns], near[:, columns], readings.talk[:, columns], parts)
        scores = scores if readings.changes is None else replace(scores, changes=readings.changes[:, columns.start])
        fitted.append((_detector(rule, scores, layer, n_fit, settings), flat[columns.start] / scores.spread))
    return fitted


def logistic_direction(
    examples: RuleReadings, near: RuleReadings, ordinary: RuleReadings, *, ridge: float
) -> RuleReadings:
    """A logistic regression's direction: examples against the texts beside them and ordinary talk."""
    direction = logistic(AnswerGroups(positive=examples, negative=near, talk=ordinary), ridge)
    return np.asarray(direction / np.linalg.norm(direction))


def _held_out_parts(
    examples: int, near: int, settings: GuardFitSettings
) -> list[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """Texts that are held out: none for the detector itself, then those of each fold."""
    draw = np.random.default_rng(settings.seed)
    parts = min(settings.folds, examples)
    of_example, of_near = (draw.permutation(np.arange(n) % parts) for n in (examples, near))
    nothing = (np.zeros(examples, dtype=bool), np.zeros(near, dtype=bool))
    return [nothing, *((of_example == part, of_near == part) for part in range(parts))]


@dataclass(frozen=True, slots=True)
class _RuleScores:
    """RuleReadings of a rule's texts and of held-out talk, by the detector (column 0) and by those of the folds."""

    examples: RuleReadings
    near: RuleReadings
    talk: RuleReadings
    folds: Sequence[tuple[NDArray[np.bool_], NDArray[np.bool_]]]
    changes: RuleReadings | None = None  # of the talk's readings by a tool's result, where it stands for one

    @property
    def spread(self) -> float:
        """Standard deviation of the talk."""
        return float(self.talk[:, 0].std())

    def held_out(self, values: RuleReadings, side: int) -> RuleReadings:
        """Each text by the fold that did not see it, in standard deviations of the talk."""
        out = np.zeros(len(values))
        for column, masks in enumerate(self.folds[1:], start=1):
            talk = self.talk[:, column]
            out[masks[side]] = (values[masks[side], column] - talk.mean()) / talk.std()
        return out


def _detector(
    rule: RuleTexts, scores: _RuleScores, layer: int | None, n_fit: int, settings: GuardFitSettings
) -> GuardDetector:
    talk = scores.talk[:, 0]
    centre, spread = float(talk.mean()), scores.spread
    ordinary = (talk - centre) / spread
    rate = settings.rate * rule.times
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
    band = rule.judge.band_at(rule.times) if rule.judge else None
    return GuardDetector.model_validate(
        {
            "kind": rule.kind,
            "rule": rule.rule,
            "source": rule.source,
            "place": rule.place,
            "read_by": rule.reader,
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
