"""Reasoning about answers: a policy of typed variables and rules, and what follows from it, by z3.

expressions           what a rule or a claim says
policy                the YAML file
findings              what is found
solving, checking     a policy and claims to a finding
translation, writers  a question and its answer to claims, by a model
lint                  what is wrong with a policy though it can be read
"""

from poise.reasoning.checking import PolicyReasoner, check_answer
from poise.reasoning.findings import ReasoningFinding, Translation
from poise.reasoning.lint import lint_policy
from poise.reasoning.policy import ReasoningPolicy, load_policy
from poise.reasoning.translation import FactWriter
from poise.reasoning.writers import EndpointFactWriter, LocalFactWriter

__all__ = [
    "EndpointFactWriter",
    "FactWriter",
    "LocalFactWriter",
    "PolicyReasoner",
    "ReasoningFinding",
    "ReasoningPolicy",
    "Translation",
    "check_answer",
    "lint_policy",
    "load_policy",
]
