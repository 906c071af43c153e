"""Messages and checks that a request itself names, answered in the shape of Bedrock's InvokeGuardrailChecks.

Sensitive information needs nothing but the request. Content and attacks are read by detectors, which somebody must have
fitted: a severity is 0.5 at the threshold of the rule that reads it, and rises with the standard deviations of ordinary
talk beyond that by a logistic curve.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from poise.errors import InvalidArgument
from poise.guardrail.apply import TEXT_UNIT
from poise.guardrail.checking import MOST_CHARACTERS, refuse_unusable
from poise.guardrail.guard_file import GuardDetector
from poise.guardrail.pii_types import PiiType
from poise.guardrail.schema import SensitivePolicy, Source
from poise.guardrail.sensitive import SensitiveFinder

__all__ = ["AttackCategory", "ContentCategory", "MessageToCheck", "RequestedChecks", "invoke_checks", "severity"]

ContentCategory = Literal["VIOLENCE", "HATE", "SEXUAL", "MISCONDUCT", "INSULTS"]
AttackCategory = Literal["JAILBREAK", "PROMPT_INJECTION", "PROMPT_LEAKAGE"]
ATTACK_RULE = "PROMPT_ATTACK"  # one rule reads all three
MOST_ENTITIES = 1000  # that are listed
ProjectionReader = Callable[[str, Source], Sequence[tuple[GuardDetector, float]]]
WAYS: Mapping[str, Source] = {"user": "INPUT", "assistant": "OUTPUT"}


@dataclass(frozen=True, slots=True)
class MessageToCheck:
    """A message.

    Attributes:
        role: Who says it; what systems say is looked through for sensitive information alone.
        texts: Its parts.
    """

    role: Literal["user", "assistant", "system"]
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RequestedChecks:
    """What messages are to be checked for.

    Attributes:
        content: Categories of content.
        attacks: Categories of attacks.
        types: Types of sensitive information.
    """

    content: tuple[ContentCategory, ...] = field(default=())
    attacks: tuple[AttackCategory, ...] = field(default=())
    types: tuple[PiiType, ...] = field(default=())

    @property
    def rules(self) -> list[str]:
        """Types of content rules that are read for them."""
        return [*dict.fromkeys([*self.content, *([ATTACK_RULE] if self.attacks else [])])]


def severity(detector: GuardDetector, projection: float) -> float:
    """How severe a reading is, from 0 to 1: 0.5 at the threshold."""
    beyond = projection - detector.centre - detector.point.value
    return round(1 / (1 + math.exp(-max(-30.0, min(30.0, beyond)))), 4)


def invoke_checks(
    messages: Sequence[MessageToCheck], checks: RequestedChecks, read: ProjectionReader | None
) -> dict[str, Any]:
    """What messages come to, as InvokeGuardrailChecks answers it.

    Args:
        messages: The messages.
        checks: What they are checked for.
        read: Reads content and attacks with detectors; not needed where neither is asked for.

    Raises:
        InvalidArgument: nothing is asked for, or there is too much text.
        MissingExtra: types need packages that are not installed.
    """
    texts = [text for message in messages for text in message.texts]
    if not (checks.rules or checks.types):
        raise InvalidArgument("`checks` names nothing; ask for contentFilter, promptAttack or sensitiveInformation.")
    for text in texts:
        refuse_unusable(text)
    if (total := sum(map(len, texts))) > MOST_CHARACTERS:
        raise InvalidArgument(
            f"The messages have {total:,} characters; at most {MOST_CHARACTERS:,} are checked at once; send them in "
            "parts."
        )
    severities = _severities(messages, checks.rules, read) if read and checks.rules else {}
    results: dict[str, Any] = {}
    if checks.content:
        by_category = {str(category): severities.get(category, 0.0) for category in checks.content}
        results["contentFilter"] = {"results": _severity_entries(by_category)}
    if checks.attacks:
        by_category = dict.fromkeys(map(str, checks.attacks), severities.get(ATTACK_RULE, 0.0))
        results["promptAttack"] = {"results": _severity_entries(by_category)}
    if checks.types:
        entities = _entities(messages, checks.types)
        results["sensitiveInformation"] = {
            "results": entities[:MOST_ENTITIES],
            "truncated": len(entities) > MOST_ENTITIES,
        }
    units = sum(-(-len(text) // TEXT_UNIT) for text in texts)
    return {"results": results, "usage": {name: {"textUnits": units} for name in results}}


def _severity_entries(by_category: Mapping[str, float]) -> list[dict[str, Any]]:
    return [{"category": category, "severityScore": score} for category, score in by_category.items()]


def _severities(messages: Sequence[MessageToCheck], rules: Sequence[str], read: ProjectionReader) -> dict[str, float]:
    """The highest severity of each rule."""
    highest: dict[str, float] = {}
    for message in messages:
        for text in message.texts if message.role in WAYS else ():
            for detector, projection in read(text, WAYS[message.role]) if text.strip() else ():
                if detector.kind == "CONTENT" and detector.rule in rules:
                    highest[detector.rule] = max(highest.get(detector.rule, 0.0), severity(detector, projection))
    return highest


def _entities(messages: Sequence[MessageToCheck], types: Sequence[PiiType]) -> list[dict[str, Any]]:
    rules = [{"type": kind, "action": "NONE"} for kind in dict.fromkeys(types)]
    finder = SensitiveFinder(SensitivePolicy.model_validate({"types": rules}))
    return [
        {
            "type": finding.rule,
            "confidenceScore": 1.0,
            "beginOffset": finding.start,
            "endOffset": finding.end,
            "messageIndex": place,
            "contentIndex": part,
        }
        for place, message in enumerate(messages)
        for part, text in enumerate(message.texts)
        for finding in finder.find(text, "INPUT")
    ]
