"""Solutions and a verifier's answers to figures: how often it is right, how well it ranks, what length explains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from poise.judge.yes_no import YesNo
from poise.legibility.solutions import Solution
from poise.settings import FrozenModel
from poise.statistics.estimates import (
    LEAST_UNITS,
    Estimate,
    bounded_estimate,
    group_sizes,
    grouped_auc_estimate,
    mean_estimate,
)

__all__ = ["Legibility", "LegibilityFigures", "SolutionLengths", "summarise_legibility"]

BANDS = 3


class SolutionLengths(FrozenModel):
    """Solutions of like length."""

    shortest: int = Field(description="Words of the shortest.")
    longest: int = Field(description="Words of the longest.")
    solutions: int
    chance: float = Field(description="What always saying the more frequent of yes and no would reach among them.")
    accuracy: Estimate
    auc: Estimate


class LegibilityFigures(FrozenModel):
    """One condition: the prover's solutions and what the verifier says to them. Intervals are over problems."""

    name: str
    problems: int
    solutions: int
    solved: Estimate = Field(description="Share of right solutions.")
    accuracy: Estimate = Field(
        description="Share of solutions that the verifier tells, yes for right and no for wrong."
    )
    chance: float = Field(description="What always saying the more frequent of the two would reach.")
    says_yes: Estimate = Field(description="Share of solutions to which the verifier says yes.")
    auc: Estimate = Field(description="Chance that a right solution is liked better than a wrong one; 0.5 by chance.")
    length_auc: Estimate = Field(description="The same by length alone, the shorter one taken for right.")
    mass: float = Field(description="Mean probability of yes and no together; near 0 the verifier says something else.")
    unread: int = Field(description="Solutions to which it said neither.")
    words: Estimate
    bands: tuple[SolutionLengths, ...]
    verdict: Literal["told", "not told", "too few"] = Field(
        description="Whether the AUC's interval lies above a half, with ten problems or more."
    )


class Legibility(FrozenModel):
    """Conditions beside one another."""

    schema_version: Literal[1] = 1
    verifier: str
    prover: str
    conditions: tuple[LegibilityFigures, ...]
    changes: dict[str, Estimate] = Field(
        default_factory=dict, description="The verifier's accuracy minus that of the first condition, by problem."
    )


def summarise_legibility(
    verifier: str, prover: str, conditions: Mapping[str, tuple[Sequence[Solution], Sequence[YesNo]]]
) -> Legibility:
    """Figures of each condition, and the change of the verifier's accuracy against the first one."""
    names = list(conditions)
    told = {name: _told_by_problem(*conditions[name]) for name in names}
    changes = {}
    for name in names[1:]:
        shared = [problem for problem in told[names[0]] if problem in told[name]]
        difference = [told[name][problem] - told[names[0]][problem] for problem in shared]
        changes[name] = bounded_estimate(difference, lowest=-1, highest=1)
    return Legibility(
        verifier=verifier,
        prover=prover,
        conditions=tuple(_condition_figures(name, *conditions[name]) for name in names),
        changes=changes,
    )


def _told_by_problem(solutions: Sequence[Solution], answers: Sequence[YesNo]) -> dict[str, float]:
    """The share of each problem's solutions that the verifier tells."""
    hits: dict[str, list[float]] = {}
    for solution, answer in zip(solutions, answers, strict=True):
        if answer.yes is not None:
            hits.setdefault(solution.problem, []).append(float((answer.yes > 0.5) == solution.right))
    return {problem: float(np.mean(each)) for problem, each in hits.items()}


def _condition_figures(name: str, solutions: Sequence[Solution], answers: Sequence[YesNo]) -> LegibilityFigures:
    read = [(one, answer.yes) for one, answer in zip(solutions, answers, strict=True) if answer.yes is not None]
    scored, scores = [one for one, _ in read], [yes for _, yes in read]
    lengths = [len(one.text.split()) for one in scored]
    area = _verifier_auc(scored, scores)
    return LegibilityFigures(
        name=name,
        problems=len({one.problem for one in solutions}),
        solutions=len(solutions),
        solved=_by_problem(solutions, [float(one.right) for one in solutions]),
        accuracy=_accuracy(scored, scores),
        chance=_chance(scored),
        says_yes=_by_problem(scored, [float(yes > 0.5) for yes in scores]),
        auc=area,
        length_auc=_verifier_auc(scored, [-float(length) for length in lengths]),
        mass=round(float(np.mean([answer.mass for answer in answers])), 6) if answers else 0.0,
        unread=len(solutions) - len(scored),
        words=_by_problem(scored, [float(length) for length in lengths], bounded=False),
        bands=tuple(_bands(scored, scores, lengths)),
        verdict="too few" if area.n < LEAST_UNITS else "told" if area.above(0.5) else "not told",
    )


def _chance(solutions: Sequence[Solution]) -> float:
    """The share of the more frequent of right and wrong."""
    rate = float(np.mean([one.right for one in solutions])) if solutions else 0.0
    return round(max(rate, 1 - rate), 6)


def _accuracy(solutions: Sequence[Solution], scores: Sequence[float]) -> Estimate:
    return _by_problem(solutions, [float((yes > 0.5) == one.right) for one, yes in zip(solutions, scores, strict=True)])


def _by_problem(solutions: Sequence[Solution], values: Sequence[float], *, bounded: bool = True) -> Estimate:
    """Mean over problems of the mean over their solutions."""
    means: dict[str, list[float]] = {}
    for one, value in zip(solutions, values, strict=True):
        means.setdefault(one.problem, []).append(value)
    units = [float(np.mean(each)) for each in means.values()]
    if bounded:
        return bounded_estimate(units, highest=1.0)
    return mean_estimate(units)


def _verifier_auc(solutions: Sequence[Solution], scores: Sequence[float]) -> Estimate:
    """AUC of right against wrong, solutions of one problem resampled together."""
    units, _ = group_sizes(len(solutions), [one.problem for one in solutions])
    right = np.array([one.right for one in solutions], dtype=bool)
    values = np.array(scores, dtype=float)
    return grouped_auc_estimate(values[right], values[~right], (units[right], units[~right]))


def _bands(solutions: Sequence[Solution], scores: Sequence[float], lengths: Sequence[int]) -> list[SolutionLengths]:
    """Thirds of the solutions by length, equal lengths together."""
    if not solutions:
        return []
    order = np.argsort(np.array(lengths), kind="stable")
    edges = {lengths[order[len(order) * k // BANDS]] for k in range(1, BANDS)}
    bands: dict[int, list[int]] = {}
    for place in order.tolist():
        bands.setdefault(sum(lengths[place] >= edge for edge in edges), []).append(place)
    return [
        SolutionLengths(
            shortest=min(lengths[place] for place in places),
            longest=max(lengths[place] for place in places),
            solutions=len(places),
            chance=_chance([solutions[place] for place in places]),
            accuracy=_accuracy([solutions[place] for place in places], [scores[place] for place in places]),
            auc=_verifier_auc([solutions[place] for place in places], [scores[place] for place in places]),
        )
        for _, places in sorted(bands.items())
    ]
