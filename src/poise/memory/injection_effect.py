"""A fitted guardrail as an input of the gate: an entry in which it reads instructions waits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from poise.errors import UserError
from poise.memory.entry_effect import text_parts
from poise.memory.write_gate import EntryEffect, MeasuresEffect

if TYPE_CHECKING:
    from poise.guardrail.injection_reading import InjectionReading

__all__ = ["InjectionEffect", "ReadsInjections", "joined_effect"]

RECALL_QUESTION = "What do you remember that helps with the next task?"


class ReadsInjections(Protocol):
    """Reads a text that came for a question for instructions hidden in it."""

    def __call__(self, question: str, text: str) -> InjectionReading:
        """What it reads."""


class InjectionEffect:
    """Reads an entry as a tool's result: for ``Memory(effect=…)``, alone or joined with a gate.

    Args:
        reader: A fitted guardrail's detector on its model.
    """

    def __init__(self, reader: ReadsInjections) -> None:
        self._reader = reader

    def __call__(self, text: str) -> EntryEffect:
        """What is read in a text; in a long one, in the part with the highest score."""
        try:
            readings = [self._reader(RECALL_QUESTION, part) for part in text_parts(text)]
        except UserError as error:
            return EntryEffect(reasons=(f"the guardrail cannot read it: {error}",))
        highest = max(readings, key=lambda reading: reading.score - reading.threshold)
        facts = {"injection": highest.facts}
        if not highest.flagged:
            return EntryEffect(facts=facts)
        return EntryEffect(reasons=(f"the guardrail reads instructions in it ({highest})",), facts=facts)


def joined_effect(*effects: MeasuresEffect) -> MeasuresEffect:
    """All of several effects as one: an entry waits where any of them has a reason."""

    def measure(text: str) -> EntryEffect:
        measured = [effect(text) for effect in effects]
        facts = {name: value for one in measured for name, value in one.facts.items()}
        return EntryEffect(reasons=tuple(reason for one in measured for reason in one.reasons), facts=facts)

    return measure
