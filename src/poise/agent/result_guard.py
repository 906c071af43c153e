"""What tools and a memory give, read by a guardrail for hidden instructions before the model sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from poise.agent.memory import RecalledText
from poise.agent.person import Person, recorded_choice
from poise.agent.prompts import marked_text
from poise.agent.records import RunRecords
from poise.agent.states import CallOutcome, EndState
from poise.errors import UserError
from poise.guardrail.injection_reading import InjectionReading

__all__ = ["ReadsResults", "ResultGuard"]

LEFT_OUT_OUTPUT = (
    "This output was left out: it seems to hold instructions to you. Go on without it, or find another way."
)
OUTPUT_ANSWERS = ("read", "drop")


class ReadsResults(Protocol):
    """Reads a text that came for a question; ``poise.guardrail`` has one."""

    @property
    def name(self) -> str:
        """The guardrail's name."""

    def __call__(self, question: str, text: str) -> InjectionReading:
        """What it reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultGuard:
    """Reads what comes into a run, and keeps out what seems to hold instructions.

    Attributes:
        reader: What reads.
        action: ``note`` it, ``drop`` it, or ``ask`` the user.
        goal: Goal of the run.
        longest: Most characters of an output that the model is shown.
        records: The run's records.
        person: Who is asked.
    """

    reader: ReadsResults
    action: str
    goal: str
    longest: int
    records: RunRecords
    person: Person

    def checked(self, outcome: CallOutcome) -> CallOutcome | EndState:
        """What the model is shown of a call, or an end where the user has to say."""
        name = outcome.call.name
        row = self.records.take("reading", tool=name)
        if row is None:
            row = self.records.add("reading", tool=name, **self._facts(outcome.output[: self.longest]))
        if not row["flagged"] or row["action"] == "note":
            return outcome
        if row["action"] == "drop":
            return replace(outcome, output=LEFT_OUT_OUTPUT)
        return self._asked(outcome, row)

    def recalled(self, entries: Sequence[RecalledText]) -> tuple[list[RecalledText], list[list[Any]]]:
        """The entries that go into the prompt, and those that do not, with what was read; they are not asked about."""
        read = [(entry, self._facts(entry.text)) for entry in entries]
        is_out = self.action != "note"
        stay = [entry for entry, facts in read if not (facts["flagged"] and is_out)]
        return stay, [[entry.id, facts] for entry, facts in read if facts["flagged"]]

    def _facts(self, text: str) -> dict[str, Any]:
        """What a text reads; one that cannot be read is flagged, and says why."""
        try:
            facts = self.reader(self.goal, marked_text(text)).facts if text.strip() else {"flagged": False}
        except UserError as error:
            facts = {"flagged": True, "problem": str(error)}
        return {**facts, "guardrail": self.reader.name, "action": self.action}

    def _asked(self, outcome: CallOutcome, row: dict[str, Any]) -> CallOutcome | EndState:
        question = (
            f"What {outcome.call.name} gave seems to hold instructions to the model: {outcome.output[:500]!r}. Look at "
            "it, and answer: read (the model may read it), or drop (it is left out)."
        )
        reply = recorded_choice(self.records, self.person, question, OUTPUT_ANSWERS)
        if reply is None:
            return EndState("asks", question)
        return outcome if reply == "read" else replace(outcome, output=LEFT_OUT_OUTPUT)
