"""What is watched over a run of many answers, and what is done on an alarm: a part of a key's rules."""

from __future__ import annotations

import itertools
from typing import Literal

from pydantic import Field, field_validator, model_validator

from poise.errors import UserError
from poise.monitor.run_chart import DriftSide, RunChart
from poise.settings import Settings, placed_fault
from poise.settings.other_names import Place
from poise.steer import SteeringExpression

__all__ = ["DriftAction", "PlanStage", "ResultAction", "RunPolicy", "TraitRule"]

DriftAction = Literal["note", "cap", "floor", "ask", "stop"]
ResultAction = Literal["note", "ask", "drop", "stop"]
HOLDS: dict[DriftAction, DriftSide] = {"cap": "above", "floor": "below"}
LEFT_OUT = "[This result was left out: it seems to hold instructions to the assistant. Go on without it.]"
ASKED = "[This run waits for approval: {reason}]"
ENDED = "[This run was stopped: {reason}]"


class TraitRule(Settings):
    """How one vector is watched along a run."""

    side: DriftSide = Field("above", description="Drift that raises the alarm: above, or below for a trait to keep.")
    on_drift: DriftAction = Field(
        "note",
        description="note it; cap the trait, or keep it up with a floor, for the rest of the run; ask before the next "
        "step; stop the run.",
    )
    level: float | None = Field(
        None, description="Level of the cap or floor; default, the vector's alarm for a cap, the chart's mean else."
    )
    chart: RunChart | None = Field(None, description="What `fit_run_chart` gives; default, the vector file's chart.")

    @model_validator(mode="after")
    def _on_one_side(self) -> TraitRule:
        if (side := HOLDS.get(self.on_drift)) and side != self.side:
            raise placed_fault(f"is {self.on_drift!r}, which is for drift {side}; `side` is {self.side!r}", "on_drift")
        if self.chart and self.chart.side != self.side:
            raise placed_fault(f"is of drift {self.chart.side}, and `side` is {self.side!r}", "chart")
        return self


class PlanStage(Settings):
    """Steering from one step of a run on, until the next stage."""

    from_step: int = Field(1, ge=1, description="First step with this steering, counted from 1.")
    steer: str = Field(description="Steering expression, beside what the rules steer anyway.")

    @field_validator("steer")
    @classmethod
    def _expression(cls, steer: str) -> str:
        try:
            SteeringExpression.parse(steer)
        except UserError as error:
            raise ValueError(f"is {steer!r}: {str(error).removesuffix('.')}") from error
        return steer


class RunPolicy(Settings):
    """What is watched over the answers of one run, and what is done."""

    traits: dict[str, TraitRule] = Field(
        default_factory=dict, description="Rules by vector; others are noted by their file's chart."
    )
    tool_results: ResultAction = Field(
        "note",
        description="What happens where a tool's result seems to hold instructions: note it; ask before it is read; "
        "drop it, so that the answer is generated without it; stop the run. Needs a guardrail with INDIRECT_ATTACK.",
    )
    result_marks: tuple[str, ...] = Field(
        ("Observation:",), description="How users' turns begin that are tools' results to a framework."
    )
    note: str = Field(LEFT_OUT, min_length=1, description="What stands in the place of a result that was dropped.")
    asking: str = Field(ASKED, description="The answer while a run waits; `{reason}` is filled in.")
    stopped: str = Field(ENDED, description="The answer once a run was stopped; `{reason}` is filled in.")
    approved_by: Literal["key", "admin"] = Field(
        "key", description="Who may let a run go on that waits: whoever has its key, or a key that is an admin's alone."
    )
    plan: tuple[PlanStage, ...] = Field((), description="Steering by step, to hold a persona over a long run.")
    most: int = Field(1000, ge=1, le=100_000, description="Most runs that are remembered; the oldest are forgotten.")

    @model_validator(mode="after")
    def _stages_in_order(self) -> RunPolicy:
        first = [stage.from_step for stage in self.plan]
        if any(later <= earlier for earlier, later in itertools.pairwise(first)):
            raise placed_fault("has stages whose `from_step` does not grow; put them in order", "plan")
        return self

    def planned(self, step: int) -> str | None:
        """The steering of this step by the plan."""
        stages = [stage.steer for stage in self.plan if stage.from_step <= step]
        return stages[-1] if stages else None

    @property
    def places(self) -> dict[str, Place]:
        """Vectors that are spoken of by name, each with the first field that does."""
        places: dict[str, Place] = {name: ("traits", name) for name in self.traits}
        for number, stage in enumerate(self.plan):
            for name in SteeringExpression.parse(stage.steer).names:
                places.setdefault(name, ("plan", number, "steer"))
        return places
