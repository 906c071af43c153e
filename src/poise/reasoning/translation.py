"""A question and its answer as statements over a policy's variables, written by a model under a JSON schema.

The model writes facts, each a variable, a comparison and a value, so that whatever it writes can be read: what it may
get wrong is what was said, and not how a statement is written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from poise.data import Message
from poise.errors import TranslationFailed
from poise.reasoning.expressions import single_comparison
from poise.reasoning.findings import Translation
from poise.reasoning.policy import PolicyVariable, ReasoningPolicy

__all__ = ["FactWriter", "facts_schema", "translate_answer"]

MOST_FACTS = 12
FACT_COMPARISONS = ("==", "!=", "<", "<=", ">", ">=")
FACT_TASK = (
    "You write down what a conversation says about a few variables. Premises are what the user tells about the case, "
    "and conditions that the answer sets. Claims are what the answer concludes. Write a fact only if the text says it; "
    "leave out every variable that the text says nothing about. Numbers are in the unit that the variable names."
)


class FactWriter(Protocol):
    """A model that writes JSON."""

    def __call__(self, messages: Sequence[Message], schema: Mapping[str, Any], *, seed: int) -> str:
        """What it writes, held to the schema where it can be."""
        ...


def translate_answer(
    policy: ReasoningPolicy, question: str, answer: str, write: FactWriter, *, seed: int = 0
) -> Translation:
    """What an answer says, in the policy's variables.

    Args:
        policy: The policy.
        question: What was asked.
        answer: What was answered.
        write: Model that translates.
        seed: Seed of what it writes.

    Raises:
        TranslationFailed: it wrote no JSON of the schema.
    """
    text = write(messages_for(policy, question, answer), facts_schema(policy), seed=seed)
    try:
        facts = json.loads(text)
        premises, claims = (tuple(_statement(policy, fact) for fact in facts[part]) for part in ("premises", "claims"))
    except (ValueError, KeyError, TypeError) as error:
        raise TranslationFailed(f"the model's translation is no JSON of the schema ({error})") from error
    return Translation(premises=premises, claims=claims)


def messages_for(policy: ReasoningPolicy, question: str, answer: str) -> list[Message]:
    """What the model is asked: the variables, the examples of the policy, and the conversation."""
    listed = "\n".join(f"- {name} ({_values(v)}): {v.description}" for name, v in policy.variables.items())
    out = [Message(role="system", content=f"{FACT_TASK}\n\nVariables:\n{listed}")]
    for example in policy.examples:
        out.append(Message(role="user", content=_conversation(example.question, example.answer)))
        facts = {"premises": list(example.premises), "claims": list(example.claims)}
        written = {part: [_fact(policy, each) for each in texts] for part, texts in facts.items()}
        out.append(Message(role="assistant", content=json.dumps(written, ensure_ascii=False)))
    return [*out, Message(role="user", content=_conversation(question, answer))]


def facts_schema(policy: ReasoningPolicy) -> dict[str, Any]:
    """The JSON Schema of a translation."""
    fact = {"anyOf": [_fact_schema(name, variable) for name, variable in policy.variables.items()]}
    facts = {"type": "array", "items": fact, "maxItems": MOST_FACTS}
    return _closed({"premises": facts, "claims": facts})


def _fact_schema(name: str, variable: PolicyVariable) -> dict[str, Any]:
    if variable.type == "boolean":
        return _closed({"variable": {"const": name}, "value": {"type": "boolean"}})
    if variable.type == "choice":
        value: dict[str, Any] = {"enum": list(variable.values)}
        return _closed({"variable": {"const": name}, "comparison": {"enum": ["==", "!="]}, "value": value})
    value = {"type": variable.type}
    return _closed({"variable": {"const": name}, "comparison": {"enum": [*FACT_COMPARISONS]}, "value": value})


def _closed(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


def _statement(policy: ReasoningPolicy, fact: Mapping[str, Any]) -> str:
    """A fact as an expression."""
    name, value = fact["variable"], fact["value"]
    variable = policy.variables[name]
    if variable.type == "boolean":
        return f"{name} == {'true' if value else 'false'}"
    return f"{name} {fact['comparison']} {json.dumps(value, ensure_ascii=False)}"


def _fact(policy: ReasoningPolicy, statement: str) -> dict[str, Any]:
    """An expression that is one comparison, as a fact."""
    single = single_comparison(statement, policy.kinds)
    if policy.variables[single.variable].type == "boolean":
        return {"variable": single.variable, "value": single.value == (single.operator == "==")}
    return {"variable": single.variable, "comparison": single.operator, "value": single.value}


def _values(variable: PolicyVariable) -> str:
    return " or ".join(map(repr, variable.values)) if variable.values else variable.type


def _conversation(question: str, answer: str) -> str:
    return f"User: {question}\nAnswer: {answer}"
