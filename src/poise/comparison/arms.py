"""The arms of a comparison: what each way of improving a model needs and does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = ["ARMS", "ArmName", "ArmShape", "arm_title"]

ArmName = Literal["base", "retrieval", "fine_tuned", "both", "both_vaccinated"]


@dataclass(frozen=True, slots=True)
class ArmShape:
    """What an arm does.

    Attributes:
        title: Its name in words.
        retrieves: Whether passages of the documents stand in the prompt.
        trains: Whether an adapter is trained, once for each seed.
        vaccinated: Whether that is done under a vaccine.
    """

    title: str
    retrieves: bool = False
    trains: bool = False
    vaccinated: bool = False


ARMS: Mapping[ArmName, ArmShape] = {
    "base": ArmShape("base"),
    "retrieval": ArmShape("retrieval", retrieves=True),
    "fine_tuned": ArmShape("fine-tuned", trains=True),
    "both": ArmShape("both", retrieves=True, trains=True),
    "both_vaccinated": ArmShape("both, vaccinated", retrieves=True, trains=True, vaccinated=True),
}
"""In the order in which they are shown; the earlier of two is the cheaper one."""


def arm_title(arm: ArmName) -> str:
    """An arm's name in words."""
    return ARMS[arm].title
