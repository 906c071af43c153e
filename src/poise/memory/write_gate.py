"""What is let into a memory: rules on provenance, repeats, contradictions and instructions, and a model's reading.

Nothing is thrown away: what is doubtful is quarantined with the reasons, and a person lets it in or drops it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from poise.memory.contradictions import contradiction_of, says_the_same
from poise.memory.entries import EntryDraft, MemoryEntry

__all__ = ["EntryEffect", "EntryReview", "EntryVerdict", "MeasuresEffect", "ModelJudge", "review_entry"]

EntryVerdict = Literal["kept", "quarantined", "duplicate"]

SAME_MEANING = 0.95
"""Cosine from which texts that have the same numbers and names are one entry."""
SAME_MATTER = 0.6
"""Cosine from which two facts are compared."""
COMPARED = 20  # nearest entries that a new one is compared with

_STANDING_ORDERS = re.compile(
    r"\b(?:from now on|henceforth|going forward)\b"
    r"|\b(?:always|never)\s+(?:answer|reply|respond|say|tell|recommend|mention|add|include|end|begin|start|use|write)\b"
    r"|\b(?:when|whenever|if|every time)\b.{0,60}\b(?:asks?|asked|mentions?|requests?)\b.{0,60}"
    r"\b(?:say|tell|answer|reply|respond|recommend|send|include|do not|don['’]t|refuse)\b"
    r"|\b(?:in|modify|change|rewrite|translate|encode|reverse)\s+(?:all\s+)?your\s+"
    r"(?:next\s+|final\s+|own\s+)?(?:answers?|repl(?:y|ies)|responses?|messages?|output|text)\b"
    r"|\byou (?:must|should|will|have to|need to)\b.{0,40}\b(?:obey|pretend|answer|reply|respond|ignore|always)\b",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryEffect:
    """What an entry in the prompt does to a model's answers.

    Attributes:
        reasons: Why it is doubtful; empty where nothing exceeds its threshold.
        facts: What was measured, as it is kept beside the entry.
    """

    reasons: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


class MeasuresEffect(Protocol):
    """Reads a model with and without an entry in its prompt."""

    def __call__(self, text: str) -> EntryEffect:
        """The effect of a text."""
        ...


ModelJudge = Callable[[str], bool]
"""Whether a model that is asked finds a text safe to remember."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryReview:
    """What a gate says of a draft.

    Attributes:
        verdict: Whether it is kept, quarantined or repeats an entry.
        reasons: Why it is not simply kept.
        repeats: Id of the entry that it repeats.
        contradicts: Ids of the entries that it contradicts.
        effect: What was measured on a model.
    """

    verdict: EntryVerdict = "kept"
    reasons: tuple[str, ...] = ()
    repeats: int | None = None
    contradicts: tuple[int, ...] = ()
    effect: Mapping[str, Any] = field(default_factory=dict)


def review_entry(
    draft: EntryDraft, near: Sequence[tuple[MemoryEntry, float]], effect: EntryEffect | None = None
) -> EntryReview:
    """Whether an entry may go in.

    Args:
        draft: The entry.
        near: Entries of its kind that mean most nearly the same, with their cosines, nearest first.
        effect: What was measured on a model, where one reads along.
    """
    for entry, cosine in near if draft.kind != "procedural" else ():
        if cosine >= SAME_MEANING and says_the_same(draft.text, entry.text):
            if draft.kind == "episodic" and entry.outcome != draft.outcome:
                continue
            return EntryReview(verdict="duplicate", reasons=(f"says what entry {entry.id} says",), repeats=entry.id)
    reasons = [*_provenance_reasons(draft), *_instruction_reasons(draft)]
    contradictions = _contradictions(draft, near)
    reasons += contradictions.values()
    if effect and not (draft.kind == "procedural" and draft.trust == "user"):
        reasons += effect.reasons  # a user's procedure is there to change what the model does
    return EntryReview(
        verdict="quarantined" if reasons else "kept",
        reasons=tuple(reasons),
        contradicts=tuple(contradictions),
        effect=dict(effect.facts) if effect else {},
    )


def instruction_kinds(text: str) -> tuple[str, ...]:
    """In which ways a text reads as an instruction to a model; in a note it has no business."""
    from poise.knowledge.instructions import instruction_marks

    return (*instruction_marks(text), *(("standing order",) if _STANDING_ORDERS.search(text) else ()))


def _provenance_reasons(draft: EntryDraft) -> list[str]:
    if draft.kind == "procedural" and draft.trust != "user":
        return [f"a procedure from {_article(draft.trust)} changes what the agent does: a person has to let it in"]
    if draft.kind == "semantic" and draft.trust == "model" and not draft.sources and not draft.source:
        return ["a fact of the model's own without a source"]
    return []


def _instruction_reasons(draft: EntryDraft) -> list[str]:
    if draft.kind == "procedural" and draft.trust == "user":
        return []
    kinds = instruction_kinds(draft.text)
    return [f"reads as an instruction to a model ({', '.join(kinds)})"] if kinds else []


def _contradictions(draft: EntryDraft, near: Sequence[tuple[MemoryEntry, float]]) -> dict[int, str]:
    """Reason by id of each known fact that the draft contradicts."""
    if draft.kind != "semantic":
        return {}
    reasons = {}
    for entry, cosine in near:
        if cosine < SAME_MATTER or entry.kind != "semantic" or entry.id in draft.supersedes:
            continue
        subjects = {draft.subject.casefold(), entry.subject.casefold()} - {""}
        if len(subjects) == 2:
            continue  # about two different things
        same = bool(draft.subject) and draft.subject.casefold() == entry.subject.casefold()
        if text := contradiction_of(draft.text, entry.text, same_subject=same):
            reasons[entry.id] = f"contradicts entry {entry.id} from {_article(entry.trust)}: {text}"
    return reasons


def _article(trust: str) -> str:
    return {"user": "the user", "tool": "a tool", "web": "the web", "model": "the model"}[trust]
