"""What calibration on normal talk leaves in a vector's header: thresholds with their promise, and a drift chart."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from poise.data import AnswerPart
from poise.settings import FrozenModel

__all__ = ["Alarm", "Drift"]

ROUNDING = 1e-5  # float32 projections of one answer differ by less, whatever is read beside it
DETECTOR_READ = "SHA-256 of the detector's weights that it was read with; empty for the projection on the direction."


def _is_projection(detector: str) -> bool:
    """Files of projections are those of version 0.1.0, which knew nothing else."""
    return not detector


def _is_reply(part: AnswerPart) -> bool:
    """Files of replies are those of version 0.1.0, which knew nothing else."""
    return part == "reply"


def _is_own_model(text: str) -> bool:
    return not text


class Alarm(FrozenModel):
    """A reading above ``threshold`` raises it; normal answers do so at ``rate``.

    The promise is of this reading alone: watching several readings or traits raises more false alarms together.
    """

    reading: Literal["prompt", "mean", "peak"]
    layer: int
    threshold: float = Field(allow_inf_nan=False, description="In residual-stream units, along the unit direction.")
    rate: float = Field(description="False alarms a normal answer, as asked for.")
    low: float = Field(description="Lower end of the 95 % interval of the rate that the threshold has.")
    high: float = Field(description="Upper end.")
    n_answers: int = Field(description="Normal answers that it was set on.")
    n_conversations: int = Field(description="Conversations that they came from; the interval counts these.")
    answers: Literal["own", "given"] = Field(
        description="The model's own answers to the data's prompts, or the data's."
    )
    max_new_tokens: int = Field(description="The longest answer it was set on may have had.")
    temperature: float | None = Field(description="Temperature of the own answers; None for given ones.")
    data: str = Field(description="Name of the data.")
    data_sha256: str
    topic: str | None = Field(None, description="Set on one topic's rows alone; None for all.")
    seed: int
    part: AnswerPart = Field("reply", exclude_if=_is_reply, description="Which part of the answers was read.")
    model: str = Field("", exclude_if=_is_own_model, description="Model it was set on; empty for the vector's own.")
    detector: str = Field("", exclude_if=_is_projection, description=DETECTOR_READ)

    def passed_by(self, value: float) -> bool:
        """Whether a reading raises the alarm: above the threshold by more than rounding.

        A threshold is a reading of one answer. Read again, beside other vectors or in another batch, that answer
        differs from it in the last bits, and must not raise for it. The margin is ``ROUNDING`` of the threshold, and at
        least ``ROUNDING``; a margin raises less, never more, so the promised rate holds.
        """
        return value > self.threshold + ROUNDING * max(1.0, abs(self.threshold))


class Drift(FrozenModel):
    """A one-sided CUSUM: S ← max(0, S + (x − mean) / sd − k), alarm and restart at S > h."""

    reading: Literal["prompt", "mean", "peak"]
    layer: int
    mean: float = Field(allow_inf_nan=False)
    sd: float = Field(gt=0, allow_inf_nan=False)
    k: float = Field(ge=0, allow_inf_nan=False, description="Allowance, in standard deviations.")
    h: float = Field(ge=0, allow_inf_nan=False, description="Limit, in standard deviations.")
    arl: float = Field(description="Average run length: normal answers to a false alarm.")
    low: float = Field(description="Lower end of its 95 % interval.")
    high: float | None = Field(description="Upper end; None for one without bound.")
    n_answers: int
    n_conversations: int
    part: AnswerPart = Field("reply", exclude_if=_is_reply, description="Which part of the answers was read.")
    detector: str = Field("", exclude_if=_is_projection, description=DETECTOR_READ)
