"""A guardrail's reasoning about an answer, in the shape of Bedrock's automated reasoning policy."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from poise.errors import InvalidArgument, InvalidStatement, JudgeUnavailable, TranslationFailed
from poise.guardrail.findings import GuardFinding
from poise.guardrail.reasoning_rule import ReasoningRule
from poise.guardrail.schema import RuleAction
from poise.reasoning import FactWriter, PolicyReasoner, ReasoningFinding, ReasoningPolicy, Translation
from poise.reasoning.expressions import single_comparison
from poise.reasoning.translation import translate_answer

__all__ = ["AnswerReasoner", "ReasonedAnswer"]

UNAVAILABLE = "UNAVAILABLE"
COMPARISONS_IN_WORDS = {
    "==": "is",
    "!=": "is not",
    "<": "is below",
    "<=": "is at most",
    ">": "is above",
    ">=": "is at least",
}
NO_SOURCE = "A guardrail's policy has not been read; load the guardrail from its file."


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasonedAnswer:
    """What a policy says of an answer.

    Attributes:
        policy: The policy.
        finding: What was found.
        action: What is done about it; ``None`` for nothing.
        unavailable: Whether nothing could be found, since the writer does not answer.
        note: What was done where the writer gave no answer.
    """

    policy: ReasoningPolicy
    finding: ReasoningFinding
    action: RuleAction | None = None
    unavailable: bool = False
    note: str = ""

    def findings(self, length: int) -> list[GuardFinding]:
        """What the guardrail finds, in an answer of so many characters."""
        if self.action is None:
            return []
        kind = UNAVAILABLE if self.unavailable else self.finding.kind
        return [
            GuardFinding(
                policy="reasoning",
                kind=kind,
                rule=self.policy.name,
                action=self.action,
                start=0,
                end=length,
                note=self.note,
                reasoning=self._details,
            )
        ]

    @property
    def _details(self) -> dict[str, Any]:
        """What Bedrock's shape has no place for."""
        finding = self.finding
        texts = {rule.name: rule.text for rule in self.policy.rules if rule.name in finding.rules}
        lists = {"correction": list(finding.correction), "assumptions": list(finding.assumptions)}
        more = {"rules": texts, **lists, "reason": finding.reason}
        return {name: value for name, value in more.items() if value}

    @property
    def assessment(self) -> dict[str, Any]:
        """Bedrock's findings, and beside them what its shape has no place for."""
        finding = self.finding
        more = {
            "policy": self.policy.name,
            "finding": UNAVAILABLE if self.unavailable else finding.kind,
            "action": "BLOCKED" if self.action == "BLOCK" else "NONE",
            **self._details,
        }
        return {"findings": [bedrock_finding(self.policy, finding)], "poise": more}


class AnswerReasoner:
    """Reasons about answers by a guardrail's rule.

    Args:
        rule: The rule, with its policy read.

    Raises:
        MissingExtra: z3 is not installed.
    """

    def __init__(self, rule: ReasoningRule) -> None:
        if rule.policy is None:
            raise InvalidArgument(NO_SOURCE)
        self.rule, self._policy = rule, rule.policy
        self._reasoner = PolicyReasoner(rule.policy)
        self._lock = threading.Lock()  # of z3's context, which one thread may use at a time

    def __call__(self, question: str, answer: str, write: FactWriter) -> ReasonedAnswer:
        """What the policy says of an answer.

        Args:
            question: What was asked; empty where nobody says.
            answer: What was answered.
            write: Model that turns both into statements.
        """
        rule, policy = self.rule, self._policy
        try:
            read = [translate_answer(policy, question, answer, write, seed=seed) for seed in range(rule.translations)]
            with self._lock:
                finding = self._reasoner.check(*dict.fromkeys(read))
        except (InvalidStatement, TranslationFailed) as error:
            finding = ReasoningFinding(kind="NO_TRANSLATION", reason=str(error))
        except JudgeUnavailable as error:
            finding = ReasoningFinding(kind="NO_TRANSLATION", reason=str(error))
            blocks = rule.action == "BLOCK" and rule.without_writer == "BLOCK"
            done = "blocks" if blocks else "lets the answer pass"
            says = "without_writer" if rule.action == "BLOCK" else "action"
            why = str(error).rstrip(".")
            return ReasonedAnswer(
                policy=policy,
                finding=finding,
                action="BLOCK" if blocks else "NONE",
                unavailable=True,
                note=f"The answer was not reasoned about ({why}); the guardrail {done}, as its `{says}` says.",
            )
        acts = finding.kind in rule.findings
        return ReasonedAnswer(policy=policy, finding=finding, action=rule.action if acts else None)


def bedrock_finding(policy: ReasoningPolicy, finding: ReasoningFinding) -> dict[str, Any]:
    """A finding as Bedrock's union has it, with the name of its kind for its only field."""
    first = {"translation": _translation(policy, finding.translations[0])} if finding.translations else {}
    rules = [{"identifier": name} for name in finding.rules]
    true, false = (_scenario(policy, facts) for facts in (finding.claims_true, finding.claims_false))
    match finding.kind:
        case "VALID":
            return {"valid": first | {"supportingRules": rules, "claimsTrueScenario": true}}
        case "INVALID":
            return {"invalid": first | {"contradictingRules": rules}}
        case "IMPOSSIBLE":
            return {"impossible": first | {"contradictingRules": rules}}
        case "SATISFIABLE":
            return {"satisfiable": first | {"claimsTrueScenario": true, "claimsFalseScenario": false}}
        case "TRANSLATION_AMBIGUOUS":
            options = [{"translations": [_translation(policy, each)]} for each in finding.translations]
            return {"translationAmbiguous": {"options": options, "differenceScenarios": []}}
        case "TOO_COMPLEX":
            return {"tooComplex": {}}
        case "NO_TRANSLATION":
            return {"noTranslations": {}}


def _translation(policy: ReasoningPolicy, translation: Translation) -> dict[str, Any]:
    premises, claims = (_statements(policy, texts) for texts in (translation.premises, translation.claims))
    return {"premises": premises, "claims": claims, "untranslatedPremises": [], "untranslatedClaims": []}


def _scenario(policy: ReasoningPolicy, facts: Sequence[str]) -> dict[str, Any]:
    return {"statements": _statements(policy, facts)}


def _statements(policy: ReasoningPolicy, texts: Iterable[str]) -> list[dict[str, str]]:
    return [{"logic": text, "naturalLanguage": _in_words(policy, text)} for text in texts]


def _in_words(policy: ReasoningPolicy, text: str) -> str:
    """A comparison of one variable, with the description of the variable in its place."""
    try:
        single = single_comparison(text, policy.kinds)
    except InvalidStatement:
        return text
    value = str(single.value).lower() if isinstance(single.value, bool) else single.value
    return (
        f"{policy.variables[single.variable].description.rstrip('.')}: {COMPARISONS_IN_WORDS[single.operator]} {value}"
    )
