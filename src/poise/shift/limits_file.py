"""What a limits file may say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from poise.arguments import check_type
from poise.progress import remark
from poise.settings import Settings, placed_fault, read_settings
from poise.shift.limit_range import JudgedLimit, StrictNumber, TwoSidedLimit, idle_judged_limit, lost_share_fault
from poise.statistics.estimates import LEAST_UNITS

__all__ = ["ContextLimits", "ShiftLimits", "TraitLimits", "read_limits"]

LARGEST_RATIO = 3.0  # of perplexities after and before; a limit above it is likely meant as a perplexity


class ContextLimits(Settings):
    """Limits that every context must keep, so that the worst of them does."""

    shift: TwoSidedLimit = Field(None, description="Finetuning shift of the trait's own questions in each context.")
    judged: JudgedLimit = Field(None, description="Change of the judge's score in each context.")

    @model_validator(mode="after")
    def _says_something(self) -> ContextLimits:
        if self.shift is self.judged is None:
            raise ValueError("needs shift or judged")
        return self


class TraitLimits(Settings):
    """Limits on one trait; at least one of them. A number above 0 limits both ways: 2 allows from −2 to 2."""

    shift: TwoSidedLimit = Field(None, description="Finetuning shift of its own questions along its direction.")
    judged: JudgedLimit = Field(None, description="Change of the judge's score, in points of 100.")
    predicted: TwoSidedLimit = Field(None, description="Mean projection difference of the training data.")
    worst_context: ContextLimits | None = Field(None, description="Limits under training-like prompts.")

    @model_validator(mode="after")
    def _says_something(self) -> TraitLimits:
        if (self.shift, self.judged, self.predicted, self.worst_context) == (None,) * 4:
            raise ValueError("needs shift, judged, predicted or worst_context")
        return self

    @property
    def limits_shift(self) -> bool:
        """Whether anything that only a tuned model has is limited."""
        return (self.shift, self.judged, self.worst_context) != (None, None, None)

    @property
    def limits_judged(self) -> bool:
        """Whether a judged score is limited, with or without a context."""
        return self.judged is not None or (self.worst_context is not None and self.worst_context.judged is not None)


class ShiftLimits(Settings):
    """Limits on traits and capability, as a limits file holds them."""

    confidence: Annotated[float, Field(strict=True, ge=0.5, lt=1)] = Field(
        0.95, description="Confidence of the intervals; those of predictions always have 0.95."
    )
    unsure: Literal["fail", "pass"] = Field("fail", description="What a limit inside the interval does.")
    min_n: Annotated[int, Field(strict=True, ge=2)] = Field(
        LEAST_UNITS,
        description="Fewest questions, conversations or rows of a verdict; on fewer it is indicative and fails.",
    )
    missing: Annotated[float, Field(strict=True, ge=0, lt=1)] = Field(
        0.1, description="Largest share of a measurement that may be without a value; above it, it counts as missing."
    )
    traits: dict[str, TraitLimits] = Field(default_factory=dict)
    capability: dict[str, StrictNumber] = Field(
        default_factory=dict, description="perplexity: most after / before. Others: most accuracy lost."
    )

    @model_validator(mode="after")
    def _says_something(self) -> ShiftLimits:
        if not self.traits and not self.capability:
            raise ValueError("limits nothing; name a trait or a capability")
        for name, most in self.capability.items():
            if fault := lost_share_fault(name, most):
                raise placed_fault(fault, "capability", name)
        for text in self._remarks():
            remark(text)
        return self

    def _remarks(self) -> Iterator[str]:
        """Limits that are likely in another unit than was meant, or that hold nothing."""
        names = [f"capability.{name}" for name, most in self.capability.items() if name != "perplexity" and most == 1]
        for trait, limit in self.traits.items():
            if idle_judged_limit(limit.judged):
                names.append(f"traits.{trait}.judged")
            if limit.worst_context and idle_judged_limit(limit.worst_context.judged):
                names.append(f"traits.{trait}.worst_context.judged")
        yield from (f"The limit {name} allows every change that there can be: nothing can break it." for name in names)
        if (ratio := self.capability.get("perplexity", 0.0)) > LARGEST_RATIO:
            yield (
                f"The limit capability.perplexity is {ratio:g}, which lets the tuned model have {ratio:g} times the "
                "perplexity of the base: it limits after / before, not a perplexity."
            )


def read_limits(path: Path) -> ShiftLimits:
    """Read a limits file.

    Raises:
        InvalidSettings: the file is not there, is not YAML, or breaks the schema; names every fault with its line and
            field.
    """
    check_type("path", path, (str, Path), "the path of a limits file, such as 'limits.yaml'")
    return read_settings(path, ShiftLimits)
