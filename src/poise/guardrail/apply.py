"""Texts and a guardrail to an answer in the shape of Amazon Bedrock's ApplyGuardrail."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from poise.arguments import check_choice
from poise.errors import InvalidArgument
from poise.guardrail.automated_reasoning import ReasonedAnswer
from poise.guardrail.checking import MOST_CHARACTERS, Checker, policies_on
from poise.guardrail.findings import GuardFinding, blocks, masked
from poise.guardrail.grounding_policy import GroundingReader, GroundingVerdict, grounding_findings
from poise.guardrail.schema import Guardrail, Source

__all__ = ["CheckedText", "GuardedText", "Qualifier", "apply_guardrail", "assessment_of"]

Qualifier = Literal["grounding_source", "query", "guard_content"]
TEXT_UNIT = 1000  # characters
ActivationFinder = Callable[[str, Source], list[GuardFinding]]
AnswerReader = Callable[[str, str], ReasonedAnswer]


@dataclass(frozen=True, slots=True)
class GuardedText:
    """A text of a request, and what it is.

    Attributes:
        text: The text.
        qualifiers: What it is; only ``guard_content`` is guarded where any text is called that, and a source or a
            query never is unless it is called that as well.
    """

    text: str
    qualifiers: tuple[Qualifier, ...] = ()


@dataclass(frozen=True, slots=True)
class CheckedText:
    """A text and what was found in it."""

    text: str
    findings: Sequence[GuardFinding] = field(default=())


def apply_guardrail(
    checker: Checker,
    texts: Sequence[GuardedText],
    source: Source,
    *,
    full: bool = False,
    show_matches: bool = True,
    activations: ActivationFinder | None = None,
    reason: AnswerReader | None = None,
    ground: GroundingReader | None = None,
    tell: Callable[[Sequence[GuardFinding]], None] | None = None,
) -> dict[str, Any]:
    """What a guardrail does to texts, as Bedrock's ApplyGuardrail answers it.

    Args:
        checker: The guardrail with its finders.
        texts: Texts of one request.
        source: ``INPUT`` for prompts, ``OUTPUT`` for answers.
        full: List rules that found nothing as well.
        show_matches: Say what matched, as Bedrock does; otherwise its mark alone.
        activations: Finds topics and content in a model's activations; without it these are not looked at.
        reason: Reasons about an answer, after what was asked; not called where the answer is blocked anyway.
        ground: Scores an answer over what is called a source and a query; without it neither is looked at.
        tell: Is told of all findings.

    Raises:
        InvalidArgument: no text, too much of it, or an unknown source.
    """
    check_choice("source", source, get_args(Source))
    began = time.perf_counter()
    _check_texts(texts)
    guarded = [_is_guarded(text, texts) for text in texts]
    checked = [
        CheckedText(text.text, _find(checker, text.text, source, activations))
        for text, g in zip(texts, guarded, strict=True)
        if g
    ]
    findings = [finding for text in checked for finding in text.findings]
    grounded, of_sources = _grounded(checker.guardrail, texts, checked, source, ground)
    findings += of_sources
    reasoned = _reasoned(texts, checked, reason) if reason and source == "OUTPUT" and not blocks(findings) else None
    findings += reasoned.findings(sum(len(text.text) for text in checked)) if reasoned else []
    if tell:
        tell(findings)
    action = "GUARDRAIL_INTERVENED" if any(f.action != "NONE" for f in findings) else "NONE"
    usage = _policy_units(checker.guardrail, source, checked, with_activations=activations is not None)
    coverage = {
        "textCharacters": {"guarded": sum(len(t.text) for t in checked), "total": sum(len(t.text) for t in texts)}
    }
    assessment = assessment_of(
        checker.guardrail, checked, source, full=full, show_matches=show_matches, looked=activations is not None
    )
    if grounded:
        assessment["contextualGroundingPolicy"] = grounded.assessment
        usage |= {"contextualGroundingPolicyUnits": -(-grounded.characters // TEXT_UNIT)}
    if reasoned:
        assessment["automatedReasoningPolicy"] = reasoned.assessment
        usage |= {"automatedReasoningPolicyUnits": _units(checked), "automatedReasoningPolicies": 1}
    assessment["invocationMetrics"] = {
        "guardrailProcessingLatency": round((time.perf_counter() - began) * 1000),
        "usage": usage,
        "guardrailCoverage": coverage,
    }
    return {
        "usage": usage,
        "action": action,
        "actionReason": _action_reason(findings),
        "outputs": _outgoing(checker.guardrail, source, checked, findings),
        "assessments": [assessment],
        "guardrailCoverage": coverage,
        **({"poise": {"grounding": grounded.sentences(show=show_matches)}} if grounded else {}),
    }


def _outgoing(
    guardrail: Guardrail, source: Source, checked: Sequence[CheckedText], findings: Sequence[GuardFinding]
) -> list[dict[str, str]]:
    """The message where anything blocks, the texts with marks where anything is masked, and nothing else."""
    if blocks(findings):
        return [{"text": guardrail.messages.input if source == "INPUT" else guardrail.messages.output}]
    if all(finding.action == "NONE" for finding in findings):
        return []
    return [{"text": masked(text.text, text.findings)} for text in checked]


def _grounded(
    guardrail: Guardrail,
    texts: Sequence[GuardedText],
    checked: Sequence[CheckedText],
    source: Source,
    read: GroundingReader | None,
) -> tuple[GroundingVerdict | None, list[GuardFinding]]:
    """What is made of all guarded texts together, over all that are called a source and a query."""
    if read is None or source != "OUTPUT":
        return None, []
    sources = [text.text for text in texts if "grounding_source" in text.qualifiers]
    query = "\n".join(text.text for text in texts if "query" in text.qualifiers)
    return grounding_findings(guardrail.grounding, sources, query, "\n".join(text.text for text in checked), read)


def _reasoned(
    texts: Sequence[GuardedText], checked: Sequence[CheckedText], reason: AnswerReader
) -> ReasonedAnswer | None:
    """What is found of all guarded texts together, as the answer to all that are called a query."""
    question = "\n".join(text.text for text in texts if "query" in text.qualifiers)
    answer = "\n".join(text.text for text in checked)
    return reason(question, answer) if answer.strip() else None


def _find(checker: Checker, text: str, source: Source, activations: ActivationFinder | None) -> list[GuardFinding]:
    return checker.find(text, source) + (activations(text, source) if activations and text.strip() else [])


def _check_texts(texts: Sequence[GuardedText]) -> None:
    if not texts:
        raise InvalidArgument("There is no text to check; give at least one.")
    total = sum(len(text.text) for text in texts)
    if total > MOST_CHARACTERS:
        raise InvalidArgument(
            f"The texts have {total:,} characters; at most {MOST_CHARACTERS:,} are checked at once; "
            "check them in parts."
        )


def _is_guarded(text: GuardedText, texts: Sequence[GuardedText]) -> bool:
    if any("guard_content" in each.qualifiers for each in texts):
        return "guard_content" in text.qualifiers
    return not text.qualifiers


def assessment_of(
    guardrail: Guardrail,
    checked: Sequence[CheckedText],
    source: Source,
    *,
    full: bool = False,
    show_matches: bool = True,
    looked: bool = True,
) -> dict[str, Any]:
    """What each policy found, in Bedrock's shape.

    Args:
        guardrail: The guardrail.
        checked: Texts with what was found in them.
        source: Which way they go.
        full: List topics and content that were not found as well.
        show_matches: Say what matched; otherwise its mark alone.
        looked: Whether activations were looked at.
    """
    entries: dict[str, list[dict[str, Any]]] = {}
    seen: set[tuple[Any, ...]] = set()  # an answer may have tens of thousands of matches
    for text in checked:
        for finding in text.findings:
            entry = _assessment_entry(guardrail, finding, text.text, source, show_matches=show_matches)
            place = PLACES[finding.kind][1]
            if (what := (place, *entry.values())) not in seen:
                seen.add(what)
                entries.setdefault(place, []).append(entry)
    if full and looked:
        _add_not_detected(guardrail, source, entries)
    out: dict[str, Any] = {}
    for policy, lists in POLICY_LISTS.items():
        if any(entries.get(name) for name in lists):
            out[policy] = {name: entries.get(name, []) for name in lists}
    return out


PLACES = {
    "TOPIC": ("topicPolicy", "topics"),
    "CONTENT": ("contentPolicy", "filters"),
    "CUSTOM": ("wordPolicy", "customWords"),
    "PROFANITY": ("wordPolicy", "managedWordLists"),
    "PII": ("sensitiveInformationPolicy", "piiEntities"),
    "REGEX": ("sensitiveInformationPolicy", "regexes"),
}
POLICY_LISTS: dict[str, list[str]] = {}
for _policy, _name in PLACES.values():
    POLICY_LISTS.setdefault(_policy, []).append(_name)
DONE = {"BLOCK": "BLOCKED", "ANONYMIZE": "ANONYMIZED", "NONE": "NONE"}


def _assessment_entry(
    guardrail: Guardrail, finding: GuardFinding, text: str, source: Source, *, show_matches: bool
) -> dict[str, Any]:
    match = text[finding.start : finding.end] if show_matches else finding.mark
    facts: dict[str, Any] = {"action": DONE[finding.action], "detected": True}
    if finding.kind == "TOPIC":
        return {"name": finding.rule, "type": "DENY", **facts}
    if finding.kind == "CONTENT":
        strength = next(rule.strength(source) for rule in guardrail.content if rule.type == finding.rule)
        return {"type": finding.rule, "confidence": finding.confidence, "filterStrength": strength, **facts}
    if finding.kind == "REGEX":
        rules = guardrail.sensitive.regexes if guardrail.sensitive else ()
        pattern = next(rule.pattern for rule in rules if rule.name == finding.rule)
        return {"name": finding.rule, "match": match, "regex": pattern, **facts}
    if finding.kind == "CUSTOM":
        return {"match": finding.rule, **facts}
    return {"match": match, "type": finding.rule if finding.kind == "PII" else "PROFANITY", **facts}


def _add_not_detected(guardrail: Guardrail, source: Source, entries: dict[str, list[dict[str, Any]]]) -> None:
    named = {entry["name"] for entry in entries.get("topics", ())}
    for topic in guardrail.topics:
        if topic.name not in named and topic.on(source) != "SKIP":
            entry = {"name": topic.name, "type": "DENY", "action": "NONE", "detected": False}
            entries.setdefault("topics", []).append(entry)
    types = {entry["type"] for entry in entries.get("filters", ())}
    for rule in guardrail.content:
        if rule.type not in types and rule.on(source) != "SKIP":
            facts = {"confidence": "NONE", "filterStrength": rule.strength(source), "action": "NONE", "detected": False}
            entries.setdefault("filters", []).append({"type": rule.type, **facts})


def _units(checked: Sequence[CheckedText]) -> int:
    return sum(-(-len(text.text) // TEXT_UNIT) for text in checked)


def _action_reason(findings: Sequence[GuardFinding]) -> str:
    """What was done, and what a judge had to do with it."""
    reason = "Guardrail detected, and acts on nothing of it." if findings else "No action."
    if blocks(findings):
        reason = "Guardrail blocked."
    elif any(f.action == "ANONYMIZE" for f in findings):
        reason = "Guardrail masked."
    return " ".join(dict.fromkeys([reason, *(f.note for f in findings if f.note)]))


def _policy_units(
    guardrail: Guardrail, source: Source, checked: Sequence[CheckedText], *, with_activations: bool
) -> dict[str, int]:
    """Units of a thousand characters that each policy has looked at, as Bedrock counts them."""
    units = _units(checked)
    on = policies_on(guardrail, source)
    sensitive = guardrail.sensitive
    types = bool(sensitive and any(rule.on(source) != "SKIP" for rule in sensitive.types))
    regexes = bool(sensitive and any(rule.on(source) != "SKIP" for rule in sensitive.regexes))
    return {
        "topicPolicyUnits": units * (with_activations and "topics" in on),
        "contentPolicyUnits": units * (with_activations and "content" in on),
        "wordPolicyUnits": units * ("words" in on),
        "sensitiveInformationPolicyUnits": units * types,
        "sensitiveInformationPolicyFreeUnits": units * regexes,
        "contextualGroundingPolicyUnits": 0,
    }
