"""What a data set's mean says of finetuning on it (Chen et al. 2025, section 6), in words: a sign and a size.

On fewer units than a verdict takes the sign is only indicative.

There is no slope yet from a projection to a shift, so that no shift is named.
"""

from __future__ import annotations

from poise.screen.projection import ScoringMethod
from poise.statistics.estimates import Estimate

__all__ = ["describe_prediction", "describe_preference"]

# Correlation of a data set's mean with the trait after finetuning, Qwen2.5-7B, of evil, sycophancy and hallucination.
SHIFT_CORRELATIONS: dict[ScoringMethod, str] = {
    "difference": ".84, .75 and .41",
    "prompt": ".93, .58 and .69",
    "raw": ".78, .54 and .64",
}


def describe_prediction(
    trait: str,
    method: ScoringMethod,
    mean: Estimate,
    normal: Estimate | None,
    norm: float,
    *,
    by_detector: bool = False,
) -> str:
    """A sentence.

    Args:
        trait: Its name.
        method: Method of the scores.
        mean: Mean score of the data.
        normal: Mean score of normal data, which are then the zero of the measure; raw projections need them.
        norm: What the trait adds to a reading on average: ‖v‖, or the detector's mean difference.
        by_detector: Whether detectors scored: the paper's figures are of the vector's own direction.
    """
    if mean.value is None or mean.low is None or mean.high is None:
        return "Too few answers for an interval, so nothing is predicted."
    unit = "the detector's mean difference" if by_detector else "‖v‖"
    if normal is not None and normal.value is not None and normal.low is not None and normal.high is not None:
        off, low, high = mean.value - normal.value, mean.low - normal.high, mean.high - normal.low
        size = f"{abs(off) / norm:.1%} of {unit} {'above' if off > 0 else 'below'} that of normal data"
        beside = ""
    elif method == "raw":
        return (
            "A raw projection has no zero of its own, so nothing is predicted; compare with normal data, or "
            "score by the method difference."
        )
    else:
        off, low, high = mean.value, mean.low, mean.high
        size = f"{off / norm:+.1%} of {unit}"
        beside = " Ordinary answers may differ from the model's own in the same way: compare with normal data."
    if by_detector:
        return (
            f"The mean is {size}. What it says of finetuning is not known: the paper's figures are of the vector's own "
            "direction, so screen by the projection for a prediction."
        )
    if low <= 0 <= high:
        return f"The mean is {size}, and the intervals leave its sign open: no shift either way is predicted."
    way = "towards" if off > 0 else "away from"
    if few := mean.too_few or (normal.too_few if normal else ""):
        return f"The mean is {size}, which is only indicative of a shift {way} {trait}: {few}."
    return (
        f"The mean is {size}: finetuning on these answers should push the model {way} {trait}. How far is not "
        f"calibrated; over the paper's data sets this mean and the trait afterwards correlate by "
        f"{SHIFT_CORRELATIONS[method]} (evil, sycophancy, hallucination).{beside}"
    )


def describe_preference(trait: str, mean: Estimate, norm: float, *, by_detector: bool = False) -> str:
    """What the mean of preference pairs says of preference tuning on them, in words.

    Args:
        trait: Its name.
        mean: Mean of the pairs' scores: 0 where neither answer is preferred for the trait.
        norm: What the trait adds to a reading on average: ‖v‖, or the detector's mean difference.
        by_detector: Whether detectors scored.
    """
    if mean.value is None or mean.low is None or mean.high is None:
        return "Too few prompts for an interval, so nothing is predicted."
    unit = "the detector's mean difference" if by_detector else "‖v‖"
    size = f"{mean.value / norm:+.1%} of {unit} [{mean.low / norm:+.1%}, {mean.high / norm:+.1%}]"
    if mean.low <= 0 <= mean.high:
        return f"The mean is {size}, which leaves its sign open: no push either way is predicted."
    way = "towards" if mean.value > 0 else "away from"
    if mean.too_few:
        return f"The mean is {size}, which is only indicative of a push {way} {trait}: {mean.too_few}."
    return (
        f"The mean is {size}: preference tuning on these pairs should push the model {way} {trait}. How far is not "
        "calibrated: it depends on the model, the loss and the steps."
    )
