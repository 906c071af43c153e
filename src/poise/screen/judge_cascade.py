"""Projection and judge as a cascade with a budget: the projection ranks, the judge looks at the top and at a control.

Of each trait the judge sees every answer of the ranking's top and answers of the rest drawn at random, so that how many
answers with the trait there are in all, and with them what a flagged set finds and misses, can be estimated by strata.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from poise.errors import InvalidArgument
from poise.screen.judge_review import TRAIT_PRESENT
from poise.screen.summary import JudgedCascade, JudgedStratum
from poise.statistics.estimates import Estimate
from poise.statistics.finite_population import count_interval

__all__ = ["Stratum", "check_budget", "describe_cascade", "draw_strata", "estimate_cascade", "shared_budget"]

SMALLEST_BUDGET = 20  # answers a trait
CASCADE_METHOD = (
    "Stratified: counts of the top are counted, those of the rest are what a sample drawn without replacement stands "
    "for; exact hypergeometric intervals of each sampled stratum, joined by Bonferroni (95 %). The judge's line is "
    "taken for the truth: its own errors are not in the intervals."
)

StratumName = Literal["top", "flagged", "unflagged"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Stratum:
    """Answers of like standing, and which of them the judge sees.

    Attributes:
        name: The ranking's top, which the judge sees whole; or what is flagged of the rest, or not flagged.
        places: Places of its answers.
        drawn: Places of those that the judge sees, ascending.
    """

    name: StratumName
    places: NDArray[np.int64]
    drawn: NDArray[np.int64]


def shared_budget(budget: int, traits: int) -> list[int]:
    """A budget of answers divided among traits, the first of them getting what is over."""
    return [budget // traits + (k < budget % traits) for k in range(traits)]


def check_budget(budget: int | None, judge: str | None, traits: int) -> None:
    """Refuse a budget that nobody can spend, or that buys no estimate.

    Raises:
        InvalidArgument: no judge is given, or the budget is below twenty answers a trait.
    """
    if budget is None:
        return
    if judge is None:
        raise InvalidArgument(f"`judge_budget` is {budget}, and nobody is asked; name a `judge`, such as exemplars.")
    if budget < SMALLEST_BUDGET * traits:
        raise InvalidArgument(
            f"`judge_budget` is {budget} answers for {traits} traits; an estimate needs at least {SMALLEST_BUDGET} a "
            f"trait, {SMALLEST_BUDGET * traits} here."
        )


def draw_strata(
    above: NDArray[np.float64],
    flagged: NDArray[np.bool_],
    budget: int,
    *,
    seed: Sequence[int],
    texts: NDArray[np.int64] | None = None,
) -> list[Stratum]:
    """Which answers the judge sees of one trait.

    Half of the budget goes to the highest answers, the other half to answers of the rest drawn at random; where flagged
    answers are left over from the top, half of that to them.

    Args:
        above: Scores less their thresholds [m]; NaN for answers without a score, which are in no stratum.
        flagged: Bool [m].
        budget: Most answers that the judge sees.
        seed: Decides what is drawn.
        texts: [m], equal for answers that say the same, which the judge sees once; default, all differ.
    """
    texts = np.arange(len(above)) if texts is None else texts
    known = np.flatnonzero(~np.isnan(above))
    order = known[np.argsort(-above[known], kind="stable")]
    distinct = _count_texts(texts, order)
    size = distinct if distinct <= budget else budget - budget // 2
    is_top = np.isin(texts[order], texts[order][_first_texts(texts[order], size)])
    top, others = np.sort(order[is_top]), np.sort(order[~is_top])
    draw = np.random.default_rng(list(seed))
    strata = [Stratum(name="top", places=top, drawn=top)]
    room = budget - size
    left_flagged, unflagged = others[flagged[others]], others[~flagged[others]]
    share = max(min(_count_texts(texts, left_flagged), room // 2), room - _count_texts(texts, unflagged))
    controls: tuple[tuple[StratumName, NDArray[np.int64], int], ...] = (
        ("flagged", left_flagged, share),
        ("unflagged", unflagged, room - share),
    )
    for name, places, most in controls:
        if len(places):
            drawn = draw.choice(places, _answers_with_texts(texts[places], most), replace=False)
            drawn = (
                drawn[: _first_texts(texts[drawn], most + 1)[most:][0]] if _count_texts(texts, drawn) > most else drawn
            )
            strata.append(Stratum(name=name, places=places, drawn=np.sort(drawn)))
    return strata


def _count_texts(texts: NDArray[np.int64], places: NDArray[np.int64]) -> int:
    return len(np.unique(texts[places]))


def _first_texts(texts: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Where each of the first ``count`` texts is met for the first time, in order."""
    return np.sort(np.unique(texts, return_index=True)[1])[:count]


def _answers_with_texts(texts: NDArray[np.int64], most: int) -> int:
    """How many answers, drawn at random, have that many different texts on average, or fewer.

    The number does not depend on the draw, so that the sample stays one without replacement, of answers.
    """
    from scipy.special import gammaln

    n, copies = len(texts), np.unique(texts, return_counts=True)[1]
    if len(copies) <= most:
        return n
    sizes, times = np.unique(copies, return_counts=True)

    def different(m: int) -> float:
        left = np.maximum(n - sizes - m, -1)
        missed = np.exp(gammaln(n - sizes + 1) - gammaln(np.maximum(left, 0) + 1) + gammaln(n - m + 1) - gammaln(n + 1))
        return float((times * (1 - np.where(left < 0, 0.0, missed))).sum())

    low, high = min(most, n), n
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if different(middle) <= most + 1e-6 else (low, middle - 1)
    return low


def estimate_cascade(
    strata: Sequence[Stratum], flagged: NDArray[np.bool_], judged: Mapping[int, float]
) -> JudgedCascade:
    """What a flagged set finds and misses by the judge's line, and what it does with the judge's own finds.

    Args:
        strata: Strata that ``draw_strata`` gives.
        flagged: Bool [m].
        judged: The judge's scores by place; what it could not score is missing from its stratum's sample.
    """
    high = {place for place, score in judged.items() if score >= TRAIT_PRESENT}
    counts: list[_Count] = []
    for stratum in strata:
        for is_flagged in (True, False):
            places = stratum.places[flagged[stratum.places] == is_flagged]
            scored = [int(i) for i in stratum.drawn if flagged[i] == is_flagged and int(i) in judged]
            if len(places):
                counts.append(_Count(is_flagged, len(places), len(scored), sum(i in high for i in scored)))
    sampled = sum(count.scored < count.total for count in counts)
    level = 1 - 0.05 / max(sampled, 1)
    ends = [count_interval(c.present, c.scored, c.total, level=level) for c in counts]
    middle = [c.present * c.total / c.scored if c.scored else float("nan") for c in counts]
    inside = np.array([c.flagged for c in counts])
    finds = np.array([0.0 if c.flagged else float(c.present) for c in counts])
    fewest, most = (np.array([pair[side] for pair in ends], dtype=float) for side in (0, 1))
    best = np.array(middle)
    size = int(flagged[np.concatenate([s.places for s in strata])].sum())
    union = size + int(finds.sum())
    n = sum(c.scored for c in counts)

    def estimate(value: float, ends: tuple[float, float]) -> Estimate:
        if not np.isfinite(value):
            return Estimate(value=None, low=None, high=None, n=n)
        value, low_end, high_end = (float(f"{x:.4g}") for x in (value, *ends))
        return Estimate(value=value, low=low_end, high=high_end, n=n)

    def recall(found: NDArray[np.float64]) -> Estimate:
        """Of ``found`` beside what is in the flagged set: it rises with these and falls with what is outside."""
        worst, top = np.where(inside, fewest, most), np.where(inside, most, fewest)
        values = [_ratio(x[inside].sum() + found.sum(), x.sum()) for x in (best, worst, top)]
        values[1] = values[1] if np.isfinite(values[1]) else 0.0
        values[2] = values[2] if np.isfinite(values[2]) else 1.0
        return estimate(values[0], (values[1], values[2]))

    def precision(found: float, of: int) -> Estimate:
        values = [_ratio(x[inside].sum() + found, of) for x in (best, fewest, most)]
        return estimate(values[0], (values[1], values[2]))

    return JudgedCascade(
        strata=tuple(_stratum_facts(stratum, judged, high) for stratum in strata),
        asked=sum(len(stratum.drawn) for stratum in strata),
        present=estimate(float(best.sum()), (float(fewest.sum()), float(most.sum()))),
        flagged=size,
        flagged_precision=precision(0.0, size),
        flagged_recall=recall(np.zeros(len(counts))),
        union=union,
        union_precision=precision(float(finds.sum()), union),
        union_recall=recall(finds),
        method=CASCADE_METHOD,
    )


def describe_cascade(trait: str, cascade: JudgedCascade) -> str:
    """Two sentences: whom the judge saw, and what is estimated."""
    sampled = [s for s in cascade.strata if s.name != "top"]
    drawn = ", ".join(f"{s.asked:,} of {s.answers:,} others that are {s.name}" for s in sampled)
    seen = f"the {cascade.strata[0].asked:,} highest answers" + (f" and {drawn}, drawn at random" if drawn else "")
    return (
        f"{trait}: the judge saw {seen}; it would find the trait in {_estimate_words(cascade.present, '.4g')} answers. "
        f"Flagged ({cascade.flagged:,}): precision {_estimate_words(cascade.flagged_precision)}, recall "
        f"{_estimate_words(cascade.flagged_recall)}. With what the judge found besides ({cascade.union:,}): precision "
        f"{_estimate_words(cascade.union_precision)}, recall {_estimate_words(cascade.union_recall)}."
    )


def _estimate_words(estimate: Estimate, digits: str = ".2g") -> str:
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return "not known"
    return f"{estimate.value:{digits}} [{estimate.low:{digits}}, {estimate.high:{digits}}]"


@dataclass(frozen=True, slots=True)
class _Count:
    """Answers of a stratum that are flagged, or are not: all, those that the judge scored, those high for it."""

    flagged: bool
    total: int
    scored: int
    present: int


def _stratum_facts(stratum: Stratum, judged: Mapping[int, float], high: set[int]) -> JudgedStratum:
    drawn = [int(i) for i in stratum.drawn]
    return JudgedStratum(
        name=stratum.name,
        answers=len(stratum.places),
        asked=len(drawn),
        scored=sum(i in judged for i in drawn),
        present=sum(i in high for i in drawn),
    )


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")
