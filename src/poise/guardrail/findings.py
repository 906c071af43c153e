"""What a guardrail finds in a text: where, by which rule, and what is done. Never the words themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from poise.guardrail.json_escapes import ends_in_string, stands_for_a_number
from poise.guardrail.schema import RuleAction

__all__ = ["GuardFinding", "PolicyName", "blocks", "masked"]

RARE, UNUSUAL = 0.002, 0.02
LOOK_BACK = 400  # characters in which a list of JSON is seen to begin
PolicyName = Literal["words", "sensitive", "topics", "content", "grounding", "reasoning"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardFinding:
    """A part of a text that a rule is about.

    Attributes:
        policy: Part of the guardrail that the rule stands in.
        kind: Kind of rule, such as CUSTOM, PROFANITY, PII or REGEX.
        rule: Word, type or name of the rule.
        action: What the rule does to this text.
        start: First character of the match.
        end: Character after its last.
        score: Reading, where a detector found it.
        threshold: Reading above which the detector acts.
        rate: Promised rate of false alarms of that threshold.
        judge: What a judge gave it, from 0 to 100, where the reading was uncertain.
        note: Why it counts, where that is not the reading alone.
        reasoning: What reasoning says of it beside its kind, as ``intervention_facts`` tells it.
    """

    policy: PolicyName
    kind: str
    rule: str
    action: RuleAction
    start: int
    end: int
    score: float | None = None
    threshold: float | None = None
    rate: float | None = None
    judge: float | None = None
    note: str = ""
    reasoning: Mapping[str, Any] | None = None

    @property
    def confidence(self) -> str:
        """How sure a detector is, in Bedrock's words, by how rare such a reading is in ordinary talk."""
        rate = self.rate if self.rate is not None else 1.0
        return "HIGH" if rate <= RARE else "MEDIUM" if rate <= UNUSUAL else "LOW"

    @property
    def mark(self) -> str:
        """What stands in the place of the match where it is masked: ``{EMAIL}``."""
        return "{" + self.rule + "}"


def blocks(findings: Sequence[GuardFinding]) -> bool:
    """Whether any of them blocks the text."""
    return any(finding.action == "BLOCK" for finding in findings)


def masked(text: str, findings: Sequence[GuardFinding]) -> str:
    """The text with marks in the place of what is to be masked; in JSON, those in the place of numbers in quotes."""
    out, reached = [], 0
    for start, end, mark in masked_parts(text, findings):
        out += [text[reached:start], mark]
        reached = end
    return "".join([*out, text[reached:]])


def masked_parts(text: str, findings: Sequence[GuardFinding], *, in_string: bool = False) -> list[tuple[int, int, str]]:
    """Start, end and mark of each part that is masked; parts that overlap are one, with the mark of the first.

    Args:
        text: The text.
        findings: What was found in it.
        in_string: Whether it begins within a string of JSON.
    """
    parts: list[tuple[int, int, str]] = []
    for finding in sorted(findings, key=lambda f: (f.start, -f.end)):
        if finding.action != "ANONYMIZE":
            continue
        if parts and finding.start < parts[-1][1]:
            start, end, mark = parts[-1]
            parts[-1] = (start, max(end, finding.end), mark)
        else:
            parts.append((finding.start, finding.end, finding.mark))
    reached = 0
    for place, (start, end, mark) in enumerate(parts):
        in_string, reached = ends_in_string(text[reached:start], began=in_string), start
        if not in_string and stands_for_a_number(text[start:end], text[max(0, start - LOOK_BACK) : start]):
            parts[place] = (start, end, f'"{mark}"')
    return parts


def masked_between(text: str, parts: Sequence[tuple[int, int, str]], start: int, end: int) -> str:
    """A piece of a text with the marks of the parts that begin in it, and without what is masked.

    Args:
        text: The text.
        parts: Its masked parts.
        start: First character of the piece.
        end: Character after its last.
    """
    piece, reached = "", start
    for first, after, mark in parts:
        if first < end and after > start and start < end:
            piece += text[reached : max(first, reached)] + (mark if first >= start else "")
            reached = min(after, end)
    return piece + text[reached:end]
