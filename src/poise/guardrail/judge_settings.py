"""What a guardrail's YAML says of the judge that is asked about texts its detectors are not sure of."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from poise.settings import Settings, placed_fault

__all__ = ["HIGHEST_RATE", "JudgeSettings"]

HIGHEST_RATE = 0.49
"""Highest rate that a threshold can promise."""
JUDGE_SECONDS = 20.0


class JudgeSettings(Settings):
    """Who is asked about texts that detectors are not sure of, and what is done where nobody answers."""

    by: str = Field(
        pattern=r"^(served|endpoint:\S+)$",
        description="``served``: the guarded model itself; ``endpoint:NAME``: a model on an OpenAI-compatible server.",
    )
    url: str | None = Field(None, pattern="^https?://", description="URL of the server; else ``OPENAI_BASE_URL``.")
    band: tuple[float, float] = Field(
        (0.002, 0.05), description="Rates of ordinary talk: of the score that acts unasked, and that is asked about."
    )
    threshold: float = Field(50.0, ge=0, le=100, description="Least score of 0 to 100 at which the rule applies.")
    on_failure: Literal["BLOCK", "PASS"] = Field("BLOCK", description="What is done where the judge does not answer.")
    timeout: float = Field(JUDGE_SECONDS, gt=0, le=600, description="Seconds that the server may take.")

    @model_validator(mode="after")
    def _is_a_band(self) -> Self:
        acts, asks = self.band
        if not 0 < acts < asks <= HIGHEST_RATE:
            raise placed_fault(f"is {acts:g} to {asks:g}; both are rates from 0 to 0.49, the lower first", "band")
        for name, unused in (("url", None), ("timeout", JUDGE_SECONDS)):
            if self.by == "served" and getattr(self, name) != unused:
                raise placed_fault("is not used where the served model judges; take it out", name)
        return self

    def band_at(self, times: float) -> tuple[float, float]:
        """The rates at a strength that multiplies them, below those that cannot be promised."""
        acts, asks = (min(rate * times, HIGHEST_RATE) for rate in self.band)
        return acts, asks
