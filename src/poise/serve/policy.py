"""What a key may ask for, and what is done to its answers whether it asks or not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from poise.data import AnswerPart
from poise.errors import RequestError, UserError
from poise.serve.rate_limits import RateLimit
from poise.serve.run_policy import RunPolicy
from poise.settings import Settings, read_settings
from poise.settings.other_names import Place
from poise.steer import Steering, SteeringExpression, total_dose
from poise.steer.hold import HeldSteering, hold_forced
from poise.steer.limits import DOSE_ROUNDING
from poise.vector import PersonaVector

__all__ = ["Action", "Policies", "Policy", "UnsupportedRule", "read_policies"]

Action = Literal["note", "cap", "stop"]
UnsupportedRule = Literal["leave", "mark", "remove", "refuse"]
"""What is done about sentences of an answer that documents do not support, the mildest first."""
STOPPED = "\n\n[This answer was stopped: its readings passed an alarm.]"


class Policy(Settings):
    """The rules for one key, or for all keys without rules of their own."""

    steer: str | None = Field(None, description="Steering that every answer gets, after what its request asks for.")
    may_steer: bool = Field(True, description="Whether requests may steer.")
    most_dose: float = Field(3.0, gt=0, description="Most that a request's steering may come to in all.")
    most_tokens: int = Field(4096, ge=1, description="Longest answer that a request may ask for.")
    default_tokens: int = Field(512, ge=1, description="Longest answer where a request does not say.")
    limits: tuple[RateLimit, ...] = Field(
        (), description="Most requests and tokens in so many seconds or days; each key is counted by itself."
    )
    on_alarm: Action | dict[str, Action] = Field(
        "note",
        description="note it; cap the trait at its threshold from the next token on; stop the answer. By vector, or "
        "one for all; vectors that are not named are noted.",
    )
    part: AnswerPart | dict[str, AnswerPart] = Field(
        "reply",
        description="Part of answers whose readings are summed up, kept and raise alarms: reply, thought or both. By "
        "vector, or one for all; of vectors that are not named it is the reply.",
    )
    message: str = Field(STOPPED, description="What follows an answer that was stopped.")
    may_change_vectors: bool = Field(
        False, description="Whether vectors may be uploaded, which this key alone can see, use and delete."
    )
    most_vectors: int = Field(4, ge=1, description="Most uploaded vectors at once.")
    guardrail: str | Literal[False] | None = Field(
        None,
        description="Guardrail of every request, NAME or NAME/VERSION; false for none. The server's first unless said.",
    )
    may_choose_guardrail: bool = Field(False, description="Whether requests may name another guardrail.")
    answer_from_documents: bool = Field(
        False, description="Whether every chat is answered from the server's documents where its request does not say."
    )
    documents: tuple[str, ...] = Field(
        (), description="Labels whose documents answers may rest on, beside those without a label."
    )
    unsupported: UnsupportedRule = Field(
        "leave", description="The least that is done about sentences that these documents do not support."
    )
    check_by_model: bool = Field(
        False, description="Whether the model reads every answer from documents once more, to score its sentences."
    )
    runs: RunPolicy | None = Field(None, description="Follow the runs of agents, and act on drift and tools' results.")
    admin: bool = Field(False, description="Whether the readings and uploads of all keys may be seen and deleted.")

    @field_validator("steer")
    @classmethod
    def _can_be_read(cls, steer: str | None) -> str | None:
        """Parsed now, not at the first request, so that a slip is told with its line."""
        if steer is not None:
            try:
                SteeringExpression.parse(steer)
            except UserError as error:
                raise ValueError(f"is {steer!r}: {str(error).removesuffix('.')}") from error
        return steer

    def action(self, vector: str) -> Action:
        """What is done when an alarm of this vector is raised."""
        return self.on_alarm if isinstance(self.on_alarm, str) else self.on_alarm.get(vector, "note")

    def part_of(self, vector: str) -> AnswerPart:
        """The part of answers that this vector watches."""
        return self.part if isinstance(self.part, str) else self.part.get(vector, "reply")

    def field_of(self, rule: Literal["on_alarm", "part"], vector: str) -> Place:
        """Where a rule speaks of a vector: in its entry, or in the one for all."""
        return (rule, vector) if isinstance(getattr(self, rule), dict) else (rule,)

    @property
    def places(self) -> dict[str, Place]:
        """Vectors that the rules speak of by name, each with the first field that does."""
        places: dict[str, Place] = {}
        if self.steer:
            places |= dict.fromkeys(SteeringExpression.parse(self.steer).names, ("steer",))
        for field, rule in (("on_alarm", self.on_alarm), ("part", self.part)):
            for name in rule if isinstance(rule, dict) else ():
                places.setdefault(name, (field, name))
        for name, place in self.runs.places.items() if self.runs else ():
            places.setdefault(name, ("runs", *place))
        return places

    @property
    def named(self) -> set[str]:
        """Vectors that the rules speak of."""
        return set(self.places)

    def steering(self, requested: SteeringExpression | None, vectors: Mapping[str, PersonaVector]) -> HeldSteering:
        """The request's steering and the forced one, together; what is forced holds.

        Raises:
            RequestError: 403 where requests may not steer so.
            InvalidSteering: it cannot be done.
        """
        return hold_forced(self.requested_steering(requested, vectors), self.forced_steering(vectors))

    def forced_steering(self, vectors: Mapping[str, PersonaVector]) -> Steering:
        """What every answer gets."""
        return SteeringExpression.parse(self.steer).steering(vectors) if self.steer else Steering(())

    def requested_steering(
        self, requested: SteeringExpression | None, vectors: Mapping[str, PersonaVector]
    ) -> Steering:
        """The request's steering alone, if the rules allow it.

        Raises:
            RequestError: 403 where requests may not steer, 400 where they may not so strongly.
            InvalidSteering: it cannot be done.
        """
        steering = requested.steering(vectors) if requested else Steering(())
        self.check_steering(steering)
        return steering

    def check_steering(self, steering: Steering) -> None:
        """Refuse what the key may not steer.

        Raises:
            RequestError: 403 where it may not steer, 400 where it may not so strongly.
        """
        if steering.terms and not self.may_steer:
            raise RequestError(403, "This key may not steer.", code="steering_forbidden", param="poise.steer")
        total = total_dose(steering)
        if not total.dose <= self.most_dose + DOSE_ROUNDING:
            dose = next(text for n in range(3, 18) if (text := f"{total.dose:.{n}g}") != f"{self.most_dose:.{n}g}")
            raise RequestError(
                400,
                f"The steering comes to a dose of {dose} in all ({total}), which is more than the "
                f"{self.most_dose:g} allowed here; text breaks near 1. Steer with less.",
                code="dose_too_strong",
                param="poise.steer",
            )


class Policies(Settings):
    """The file of ``--policy``: rules for everybody, and for keys by their name."""

    default: Policy = Policy()
    keys: dict[str, Policy] = Field(default_factory=dict)

    def of(self, key: str | None) -> Policy:
        """The rules for the key of that name."""
        return self.keys.get(key, self.default) if key else self.default

    @property
    def named(self) -> set[str]:
        """Vectors that any of the rules speaks of."""
        return {name for policy in (self.default, *self.keys.values()) for name in policy.named}


def read_policies(path: Path | None) -> Policies:
    """The rules in a YAML or JSON file; the defaults without one.

    Raises:
        InvalidSettings: not there or not of this schema, or an expression that cannot be read; names line and field.
    """
    return read_settings(path, Policies) if path is not None else Policies()
