"""Contextual grounding as a policy: an answer over its sources and its query, with thresholds as Bedrock has them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from poise.errors import InvalidArgument, RequestError
from poise.guardrail.findings import GuardFinding
from poise.guardrail.schema import GroundingRule

if TYPE_CHECKING:
    from poise.grounding import Grounding
    from poise.model import Model

__all__ = [
    "NO_SCORES",
    "GroundingReader",
    "GroundingVerdict",
    "grounding_findings",
    "grounding_reader",
    "ungrounded_answer",
]

NO_SCORES = "answers are scored over a source by Poise's own engine alone; serve the model without vLLM"
GroundingReader = Callable[[Sequence[str], str, str], "Grounding"]
"""Scores an answer over sources and a query: (sources, query, answer)."""


@dataclass(frozen=True, slots=True)
class GroundingVerdict:
    """What the policy makes of an answer.

    Attributes:
        rules: The policy's rules.
        grounding: The answer's scores.
        characters: Characters of sources, query and answer.
        length: Characters of the answer.
    """

    rules: tuple[GroundingRule, ...]
    grounding: Grounding
    characters: int
    length: int

    @property
    def assessment(self) -> dict[str, Any]:
        """``contextualGroundingPolicy`` of Bedrock's answer: each rule's score, whether or not it acts."""
        filters = []
        for rule in self.rules:
            if (score := self._score(rule)) is not None:
                detected = score < rule.threshold
                action = "BLOCKED" if detected and rule.action == "BLOCK" else "NONE"
                facts = {"threshold": rule.threshold, "score": round(score, 4), "action": action, "detected": detected}
                filters.append({"type": rule.type, **facts})
        return {"filters": filters}

    @property
    def findings(self) -> list[GuardFinding]:
        """The rules whose threshold the answer does not reach."""
        scores = [(rule, score) for rule in self.rules if (score := self._score(rule)) is not None]
        return [
            GuardFinding(
                policy="grounding",
                kind="GROUNDING",
                rule=rule.type,
                action=rule.action,
                start=0,
                end=self.length,
                score=round(score, 4),
                threshold=rule.threshold,
            )
            for rule, score in scores
            if score < rule.threshold
        ]

    def sentences(self, *, show: bool = True) -> list[dict[str, Any]]:
        """Each sentence with its place, its score, the passage that carries it, and what the source lacks of it.

        Args:
            show: Say what is lacking; otherwise how much of it.
        """
        return [
            {
                "start": sentence.start,
                "end": sentence.end,
                "score": round(sentence.score, 4),
                "passage": sentence.passage,
                "missing": {
                    kind: list(values) if show else len(values)
                    for kind, values in (
                        ("numbers", sentence.missing.numbers),
                        ("names", sentence.missing.names),
                        ("quotes", sentence.missing.quotes),
                    )
                },
            }
            for sentence in self.grounding.sentences
        ]

    def _score(self, rule: GroundingRule) -> float | None:
        return self.grounding.score if rule.type == "GROUNDING" else self.grounding.relevance


def grounded_answer(
    rules: tuple[GroundingRule, ...], sources: Sequence[str], query: str, answer: str, read: GroundingReader
) -> GroundingVerdict | None:
    """What the policy makes of an answer; ``None`` where there is no source or no answer.

    Raises:
        InvalidArgument: query and answer do not fit the model's window.
    """
    sources = [source for source in sources if source.strip()]
    if not rules or not sources or not answer.strip():
        return None
    characters = sum(map(len, sources)) + len(query) + len(answer)
    return GroundingVerdict(rules, read(sources, query, answer), characters, len(answer))


def grounding_findings(
    rules: tuple[GroundingRule, ...], sources: Sequence[str], query: str, answer: str, read: GroundingReader
) -> tuple[GroundingVerdict | None, list[GuardFinding]]:
    """What the policy makes of an answer, and what it finds; where it cannot be scored, as ``on_failure`` says."""
    try:
        verdict = grounded_answer(rules, sources, query, answer, read)
    except (InvalidArgument, RequestError) as error:
        return None, ungrounded_answer(rules, str(error), len(answer))
    return verdict, verdict.findings if verdict else []


def ungrounded_answer(rules: tuple[GroundingRule, ...], why: str, length: int) -> list[GuardFinding]:
    """What the policy makes of an answer that could not be scored, and says so.

    Args:
        rules: The policy's rules.
        why: Why there is no score.
        length: Characters of the answer.
    """
    findings = []
    for rule in rules:
        stops = rule.action == "BLOCK" and rule.on_failure == "BLOCK"
        done = "blocks" if stops else "lets the answer pass"
        says = "on_failure" if rule.action == "BLOCK" else "action"
        text = f"The answer was not held against its source ({why.rstrip('.')[:300]}); the guardrail {done}"
        findings.append(
            GuardFinding(
                policy="grounding",
                kind="GROUNDING",
                rule=rule.type,
                action="BLOCK" if stops else "NONE",
                start=0,
                end=length,
                note=f"{text}, as its `{says}` says.",
            )
        )
    return findings


def grounding_reader(
    model: Model, between: Callable[[Callable[[], Any]], Any] = lambda work: work()
) -> GroundingReader:
    """Scores answers with a model.

    Args:
        model: Reads them.
        between: Runs one pass of the model after the other; by default here and now.
    """
    from poise.grounding import ground, split_passages  # torch, which words and patterns do without

    def read(sources: Sequence[str], query: str, answer: str) -> Grounding:
        passages = [passage for source in sources for passage in split_passages(source)]
        return ground(model, passages, query, answer, between=between)

    return read
