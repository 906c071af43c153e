"""Bias where the right answer is known: yes-or-no questions about members of groups, and fairlearn's metrics of them.

The model's answer is whichever of *Yes* and *No* it finds likelier. Rates of each group have exact intervals;
differences between groups are fairlearn's, with a bootstrap over the rows of each group and label.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import ValidationError

from poise.errors import InvalidData, MissingExtra, why_unread
from poise.settings import FrozenModel, first_fault
from poise.statistics.conformal import exact_interval
from poise.statistics.estimates import Estimate
from poise.statistics.intervals import FloatColumn

if TYPE_CHECKING:
    from poise.model import Model

__all__ = ["FairnessReport", "GroupRates", "LabelledQuestion", "fairness_report", "read_labelled", "yes_or_no"]

FAIRNESS_DRAWS = 500  # of the bootstrap
SUFFIX = " Answer yes or no."
Cell = tuple[str, bool]
"""Group and label."""


class LabelledQuestion(FrozenModel):
    """A question whose answer is known.

    Attributes:
        question: Question that is answered by yes or no.
        group: Group that it is about.
        label: Whether yes is right.
    """

    question: str
    group: str
    label: bool


class GroupRates(FrozenModel):
    """Rates of the answers about one group.

    Attributes:
        group: Name of the group.
        selected: Share answered by yes.
        right: Share answered right.
        recall: Share answered by yes where yes is right.
    """

    group: str
    selected: Estimate
    right: Estimate
    recall: Estimate


class FairnessReport(FrozenModel):
    """What fairlearn's metrics say of a model's answers.

    Attributes:
        model: Model that answered.
        groups: Rates by group.
        demographic_parity_difference: Largest difference between groups in the share of yes.
        equalized_odds_difference: Largest difference in the share of yes among those where it is right, or is wrong.
    """

    model: str
    groups: tuple[GroupRates, ...]
    demographic_parity_difference: Estimate
    equalized_odds_difference: Estimate


def read_labelled(path: Path) -> list[LabelledQuestion]:
    """Questions from JSON lines of ``question``, ``group`` and ``label``.

    Raises:
        InvalidData: a line is something else, there are fewer than two groups, or a group lacks a label; says which.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidData(f"Cannot read {path}: {why_unread(error)}; give a file of JSON lines.") from error
    questions = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            questions.append(LabelledQuestion.model_validate(json.loads(line)))
        except ValidationError as error:
            raise InvalidData(f"{path}, line {number}: {first_fault(error, LabelledQuestion)}.") from error
        except ValueError as error:
            raise InvalidData(f"{path}, line {number} is no JSON.") from error
    labels: dict[str, set[bool]] = {}
    for one in questions:
        labels.setdefault(one.group, set()).add(one.label)
    if len(labels) < 2:
        raise InvalidData(f"{path} has {len(labels)} groups; a difference takes two.")
    if lacking := [group for group, values in labels.items() if len(values) < 2]:
        raise InvalidData(f"{path}: {', '.join(lacking)} has one label alone; equal odds take both.")
    return questions


def yes_or_no(model: Model, questions: Sequence[LabelledQuestion]) -> list[bool]:
    """Whether the model finds *Yes* likelier than *No* as the answer to each question."""
    from poise.model import ask
    from poise.model.logprobs import token_logprobs

    sides = []
    for word in ("Yes", "No"):
        texts = [model.encode(ask(one.question + SUFFIX), word) for one in questions]
        sides.append([float(values.sum()) for values in token_logprobs(model, texts)])
    return [yes > no for yes, no in zip(*sides, strict=True)]


def fairness_report(
    model: str, questions: Sequence[LabelledQuestion], answers: Sequence[bool], *, seed: int = 0
) -> FairnessReport:
    """Rates by group, and fairlearn's differences.

    Args:
        model: Name of the model.
        questions: Questions with their labels.
        answers: Answer to each.
        seed: Seed of the bootstrap.

    Raises:
        MissingExtra: fairlearn is not installed.
    """
    try:
        from fairlearn import metrics
    except ImportError as error:
        raise MissingExtra.of("Metrics of labelled answers need fairlearn", "fairness") from error
    groups = list(dict.fromkeys(one.group for one in questions))
    return FairnessReport(
        model=model,
        groups=tuple(_rates(group, questions, answers) for group in groups),
        demographic_parity_difference=_group_difference(
            metrics.demographic_parity_difference, partial(_parity_spread, questions), questions, answers, seed
        ),
        equalized_odds_difference=_group_difference(
            metrics.equalized_odds_difference, _odds_spread, questions, answers, seed
        ),
    )


def _rates(group: str, questions: Sequence[LabelledQuestion], answers: Sequence[bool]) -> GroupRates:
    pairs = [(one.label, answer) for one, answer in zip(questions, answers, strict=True) if one.group == group]
    return GroupRates(
        group=group,
        selected=_hit_share([answer for _, answer in pairs]),
        right=_hit_share([label == answer for label, answer in pairs]),
        recall=_hit_share([answer for label, answer in pairs if label]),
    )


def _hit_share(hits: Sequence[bool]) -> Estimate:
    low, high = exact_interval(sum(hits), len(hits))
    return Estimate.of(sum(hits) / len(hits), low, high, len(hits))


def _group_difference(
    metric: Callable[..., float],
    spread: Callable[[Mapping[Cell, FloatColumn]], FloatColumn],
    questions: Sequence[LabelledQuestion],
    answers: Sequence[bool],
    seed: int,
) -> Estimate:
    """fairlearn's difference, with a bootstrap over the rows of each group and label, so that none is ever empty.

    Args:
        metric: fairlearn's.
        spread: The same of shares of yes, [draws], by group and label.
        questions: Questions with their labels.
        answers: Answer to each.
        seed: Seed of the bootstrap.
    """
    labels, groups = [one.label for one in questions], [one.group for one in questions]
    value = float(metric(labels, list(answers), sensitive_features=groups))
    rng, shares = np.random.default_rng(seed), {}
    cells: dict[Cell, list[bool]] = {}
    for one, answer in zip(questions, answers, strict=True):
        cells.setdefault((one.group, one.label), []).append(answer)
    for cell, hits in cells.items():
        shares[cell] = rng.binomial(len(hits), sum(hits) / len(hits), FAIRNESS_DRAWS) / len(hits)
    low, high = np.quantile(spread(shares), [0.025, 0.975])
    return Estimate.of(value, float(low), float(high), len(labels))


def _odds_spread(shares: Mapping[Cell, FloatColumn]) -> FloatColumn:
    """The larger of the spreads among groups where yes is right and where it is wrong, [draws]."""
    sides = [np.array([share for (_, known), share in shares.items() if known == label]) for label in (True, False)]
    return np.asarray(np.max([np.ptp(side, axis=0) for side in sides], axis=0))


def _parity_spread(questions: Sequence[LabelledQuestion], shares: Mapping[Cell, FloatColumn]) -> FloatColumn:
    """The spread of the groups' shares of yes, each weighted as its labels come, [draws]."""
    sizes = Counter((one.group, one.label) for one in questions)
    groups = dict.fromkeys(one.group for one in questions)
    means = [
        sum(shares[group, label] * sizes[group, label] for label in (True, False))
        / (sizes[group, True] + sizes[group, False])
        for group in groups
    ]
    return np.asarray(np.ptp(np.array(means), axis=0))
