"""What a limit allows, and whether an interval lies within it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from poise.settings import Settings
from poise.settings.faults import shown_value
from poise.settings.scalar_types import LARGEST_NUMBER
from poise.statistics.estimates import Estimate

__all__ = [
    "JudgedLimit",
    "LimitOutcome",
    "LimitRange",
    "StrictNumber",
    "TwoSidedLimit",
    "idle_judged_limit",
    "lost_share_fault",
]

LimitOutcome = Literal["kept", "broken", "unsure", "indicative", "missing"]
StrictNumber = Annotated[float, Field(strict=True)]

POINTS = 100.0  # of a judged score


class LimitRange(Settings):
    """The values that keep a limit; at least one end."""

    least: StrictNumber | None = Field(None, description="Smallest value that keeps the limit; None for no such end.")
    most: StrictNumber | None = Field(None, description="Largest value that keeps the limit; None for no such end.")

    @model_validator(mode="after")
    def _says_something(self) -> LimitRange:
        if self.least is self.most is None:
            raise ValueError("needs least or most")
        if self.least is not None and self.most is not None and self.least >= self.most:
            raise ValueError(f"has least {self.least:g} and most {self.most:g}; least must be below most")
        return self

    def __str__(self) -> str:
        if self.least is None:
            return f"at most {self.most:g}"
        return f"at least {self.least:g}" if self.most is None else f"from {self.least:g} to {self.most:g}"

    def hold(self, measured: Estimate, share: str) -> tuple[LimitOutcome, str]:
        """Whether an interval keeps the range, and how in words.

        Args:
            measured: What was measured; has a value.
            share: Confidence of its interval, in words.
        """
        value, low, high, n = measured.value, measured.low, measured.high, f"n = {measured.n}"
        if value is None or low is None or high is None:
            return "unsure", f"{n} gives no interval, so nothing is sure"
        beyond = self.most is not None and low > self.most
        if beyond or (self.least is not None and high < self.least):
            side, end = ("beyond", self.most) if beyond else ("below", self.least)
            return "broken", f"{side} the limit by {_distance(measured, end or 0.0)}, the whole {share} interval, {n}"
        if (self.most is None or high <= self.most) and (self.least is None or low >= self.least):
            return "kept", f"the whole {share} interval lies within, {n}"
        over = self.most is not None and high > self.most
        end = (self.most if over else self.least) or 0.0
        side = "beyond" if (value > end if over else value < end) else "within"
        which = "limit" if self.least is None or self.most is None else "upper limit" if over else "lower limit"
        text = f"{side} the {which}, which the {share} interval includes: off by {_distance(measured, end)}, {n}"
        return "unsure", text


def _distance(measured: Estimate, end: float) -> str:
    value, low, high = ((number or 0.0) - end for number in (measured.value, measured.low, measured.high))
    return f"{value:.3g} [{low:.3g}, {high:.3g}]"


def _as_range(limit: object) -> object:
    """A number above 0 limits both ways, one that is not limits what may be reached at most."""
    if limit is None or isinstance(limit, (dict, LimitRange)):
        return limit
    if isinstance(limit, bool) or not isinstance(limit, int | float) or not abs(limit) < LARGEST_NUMBER:
        raise ValueError(f"is {shown_value(limit)}; it must be a finite number, or a mapping of least and most")
    return {"least": -limit, "most": limit} if limit > 0 else {"most": limit}


TwoSidedLimit = Annotated[LimitRange | None, BeforeValidator(_as_range)]
"""A limit on a change: ``2`` allows from −2 to 2, ``{most: 2}`` any fall, ``{least: -5, most: 2}`` as it says."""


def _within_points(limit: LimitRange | None) -> LimitRange | None:
    """A limit on a judged change, refused where its unit is another or no change could keep it."""
    if limit is None:
        return None
    if (limit.least or 0.0) >= POINTS or (limit.most or 0.0) <= -POINTS:
        fault = "can never be kept"
    elif max(abs(limit.least or 0.0), abs(limit.most or 0.0)) > POINTS:
        fault = "no change can reach"
    else:
        return limit
    raise ValueError(
        f"is {limit}, which {fault}: a judged score has {POINTS:g} points, so that its change lies between "
        f"{-POINTS:g} and {POINTS:g}"
    )


JudgedLimit = Annotated[TwoSidedLimit, AfterValidator(_within_points)]
"""A limit on the change of a judged score, in points of 100."""


def lost_share_fault(name: str, most: float) -> str:
    """What is wrong with a limit on what a capability loses: that nothing could break or keep it; empty if nothing.

    Args:
        name: Name of the capability; that of perplexity is a ratio, those of others are shares of the questions.
        most: The limit.
    """
    if name == "perplexity":
        return "" if most > 0 else f"is {most:g}, which can never be kept: it limits after / before, as 1.1 does"
    if most > 1:
        return (
            f"is {most:g}, which can never be broken: it limits the share of questions that is lost, which is at most "
            "1; 0.05 allows 5 of 100"
        )
    return f"is {most:g}, which can never be kept: no more than a share of 1 can be gained" if most <= -1 else ""


def idle_judged_limit(limit: LimitRange | None) -> bool:
    """Whether a limit on a judged change allows every change that there can be."""
    if limit is None:
        return False
    return (limit.least is None or limit.least <= -POINTS) and (limit.most is None or limit.most >= POINTS)
