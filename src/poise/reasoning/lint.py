"""What is wrong with a policy though each of its rules can be read."""

from __future__ import annotations

from poise.errors import SolverGaveUp
from poise.reasoning.expressions import names_of
from poise.reasoning.policy import ReasoningPolicy
from poise.reasoning.solving import PolicySolver

__all__ = ["lint_policy"]


def lint_policy(policy: ReasoningPolicy) -> list[str]:
    """Sentences on contradictory rules, rules that say nothing of their own, conditions that never hold, and variables
    that no rule names.

    Raises:
        MissingExtra: z3 is not installed.
    """
    solver = PolicySolver(policy)
    try:
        if (core := solver.core([])) is not None:
            return [f"The rules {', '.join(core)} contradict each other, so that nothing can be checked; change one."]
        return [*_idle_rules(policy, solver), *_unused_variables(policy)]
    except SolverGaveUp as error:
        return [
            f"The rules are too complex for z3 to compare ({error}); write simpler ones.",
            *_unused_variables(policy),
        ]


def _idle_rules(policy: ReasoningPolicy, solver: PolicySolver) -> list[str]:
    out = []
    for rule in policy.rules:
        parts = policy.parts_of(rule)
        if rule.condition and solver.model([solver.of(parts[rule.condition])]) is None:
            out.append(f"The rule {rule.name} never applies: what it says of {rule.condition} cannot be.")
        elif (
            len(policy.rules) > 1
            and solver.core([solver.opposite(solver.rules[rule.name])], without=rule.name) is not None
        ):
            out.append(f"The rule {rule.name} follows from the others; take it out, or change it.")
    return out


def _unused_variables(policy: ReasoningPolicy) -> list[str]:
    named = names_of([e for rule in policy.rules for e in policy.parts_of(rule).values()])
    unused = [name for name in policy.variables if name not in named]
    return [f"No rule names {name}, so that nothing can be said of it; use it or take it out." for name in unused]
