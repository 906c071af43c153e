"""What a guardrail did, for answers and for the log: rule, action and figures, never the words that matched."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from poise.guardrail import GuardFinding
from poise.guardrail.schema import Source

__all__ = ["intervention_facts"]

log = logging.getLogger("poise.serve")


def intervention_facts(guardrail: str, findings: Sequence[GuardFinding], source: Source) -> list[dict[str, Any]]:
    """What was found, without the words that matched."""
    facts = []
    for f in findings:
        fact: dict[str, Any] = {"guardrail": guardrail, "source": source, "policy": f.policy, "kind": f.kind}
        fact |= {"rule": f.rule, "action": f.action}
        if f.score is not None:
            fact |= {"score": f.score, "threshold": f.threshold, "rate": f.rate}
        if f.note:
            fact |= {"judge": f.judge, "note": f.note}
        if f.reasoning:
            fact["reasoning"] = dict(f.reasoning)
        facts.append(fact)
        log.info("Guardrail %s: %s %s, %s of %s.", guardrail, f.action, f.rule, f.policy, source)
    return facts
