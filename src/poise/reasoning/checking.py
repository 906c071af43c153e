"""From what an answer claims to what a policy says of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from poise.errors import SolverGaveUp, TranslationFailed
from poise.reasoning.expressions import Expression, names_of
from poise.reasoning.findings import ReasoningFinding, Translation
from poise.reasoning.policy import ReasoningPolicy
from poise.reasoning.solving import PolicySolver, VariableValues, Z3Statement
from poise.reasoning.translation import FactWriter, translate_answer

__all__ = ["PolicyReasoner", "check_answer"]


class PolicyReasoner:
    """Says what follows from a policy's rules.

    Args:
        policy: The policy.
        most_work: Most work for a question, in z3's units.

    Raises:
        MissingExtra: z3 is not installed.
    """

    def __init__(self, policy: ReasoningPolicy, *, most_work: int | None = None) -> None:
        self.policy = policy
        rules = [policy.parts_of(rule) for rule in policy.rules]
        self._ruled = names_of([each for parts in rules for each in parts.values()])
        self._concluded = names_of([parts["then"] for parts in rules if "then" in parts])
        self.solver = PolicySolver(policy) if most_work is None else PolicySolver(policy, most_work=most_work)

    def check(self, *translations: Translation) -> ReasoningFinding:
        """What the policy says of an answer.

        Args:
            translations: The answer as statements, once or several times; those that say different things make the
                finding TRANSLATION_AMBIGUOUS.

        Raises:
            InvalidStatement: a statement that the policy's variables do not allow.
        """
        read = [_Statements(self.policy, each) for each in translations]
        if not any(each.claims for each in read):
            return ReasoningFinding(
                kind="NO_TRANSLATION", translations=translations, reason="nothing that the policy speaks of is claimed"
            )
        try:
            for other in read[1:]:
                if not self._same(read[0], other):
                    return ReasoningFinding(
                        kind="TRANSLATION_AMBIGUOUS",
                        translations=(read[0].translation, other.translation),
                        reason="two translations say different things",
                    )
            return self._decide(read[0])
        except SolverGaveUp as error:
            return ReasoningFinding(kind="TOO_COMPLEX", translations=translations[:1], reason=f"z3 gave up ({error})")

    def _same(self, first: _Statements, second: _Statements) -> bool:
        solver = self.solver
        return all(
            solver.same(solver.conjunction(one), solver.conjunction(other))
            for one, other in ((first.premises, second.premises), (first.claims, second.claims))
        )

    def _decide(self, statements: _Statements) -> ReasoningFinding:
        solver = self.solver
        premises, claims = solver.conjunction(statements.premises), solver.conjunction(statements.claims)
        translations = (statements.translation,)
        if (core := solver.core([premises])) is not None:
            return ReasoningFinding(kind="IMPOSSIBLE", rules=core, reason=_impossible(core), translations=translations)
        holding = solver.model([premises, claims])
        if holding is None:
            core = solver.core([premises, claims]) or ()
            correction = self._forced(premises, names_of(statements.claims))
            return ReasoningFinding(kind="INVALID", rules=core, correction=correction, translations=translations)
        failing = solver.model([premises, solver.opposite(claims)])
        named = names_of([*statements.premises, *statements.claims]) | self._ruled
        if failing is None:
            core = solver.core([premises, solver.opposite(claims)]) or ()
            return ReasoningFinding(
                kind="VALID", rules=core, claims_true=_as_statements(holding, named), translations=translations
            )
        return ReasoningFinding(
            kind="SATISFIABLE",
            assumptions=self._assumptions(premises, claims, holding, names_of(statements.claims)),
            claims_true=_as_statements(holding, named),
            claims_false=_as_statements(failing, named),
            translations=translations,
        )

    def _forced(self, premises: Z3Statement, names: Iterable[str]) -> tuple[str, ...]:
        """Values that the premises leave no choice in."""
        facts = self.solver.model([premises]) or {}
        chosen = [(name, facts[name]) for name in sorted(names) if name in facts]
        return tuple(
            f"{name} == {value}"
            for name, value in chosen
            if self.solver.follows(self.solver.fact(name, value), [premises])
        )

    def _assumptions(
        self, premises: Z3Statement, claims: Z3Statement, holding: VariableValues, claimed: frozenset[str]
    ) -> tuple[str, ...]:
        """Values in a case in which the claims hold, as few as they follow from; of variables that are not claimed."""
        solver = self.solver
        facts = {name: solver.fact(name, value) for name, value in holding.items() if name not in claimed}
        if not solver.follows(claims, [premises, *facts.values()]):
            return ()
        needed = dict(facts)
        for name in sorted(facts, key=lambda name: name not in self._concluded):  # those that rules settle go first
            fewer = {other: fact for other, fact in needed.items() if other != name}
            if solver.follows(claims, [premises, *fewer.values()]):
                needed = fewer
        return tuple(f"{name} == {holding[name]}" for name in needed)


def check_answer(
    reasoner: PolicyReasoner, question: str, answer: str, write: FactWriter, *, translations: int = 2
) -> ReasoningFinding:
    """Have an answer translated, and say what the policy says of it.

    Args:
        reasoner: The policy's reasoner.
        question: What was asked.
        answer: What was answered.
        write: Model that translates.
        translations: How many times it translates; where they say different things, nothing is decided.
    """
    try:
        read = [translate_answer(reasoner.policy, question, answer, write, seed=seed) for seed in range(translations)]
    except TranslationFailed as fault:
        return ReasoningFinding(kind="NO_TRANSLATION", reason=str(fault))
    return reasoner.check(*dict.fromkeys(read))


class _Statements:
    """A translation, read."""

    def __init__(self, policy: ReasoningPolicy, translation: Translation) -> None:
        self.translation = translation
        self.premises: tuple[Expression, ...] = policy.expressions(translation.premises)
        self.claims: tuple[Expression, ...] = policy.expressions(translation.claims)


def _impossible(core: Sequence[str]) -> str:
    return "the premises contradict these rules" if core else "the premises contradict each other"


def _as_statements(facts: VariableValues, names: frozenset[str]) -> tuple[str, ...]:
    return tuple(f"{name} == {value}" for name, value in facts.items() if name in names)
