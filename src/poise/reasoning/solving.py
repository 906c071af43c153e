"""Statements over a policy's variables, decided by z3.

The work of a question is bounded in z3's own units, so that the same question ends the same way on every machine, and
in seconds besides.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import Any

from poise.errors import MissingExtra, SolverGaveUp
from poise.reasoning.expressions import TRUTH_NAMES, Expression
from poise.reasoning.policy import PolicyRule, ReasoningPolicy

__all__ = ["PolicySolver", "VariableValues", "Z3Statement"]

MOST_Z3_WORK = 3_000_000  # z3's units: some seconds
MOST_Z3_SECONDS = 10
Z3_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
Z3_SUMS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
Z3Statement = Any  # a BoolRef; z3 has no types, and is imported when it is used
VariableValues = dict[str, str]  # a value for each variable, as it is written in an expression


class PolicySolver:
    """The rules of a policy as z3 knows them.

    Args:
        policy: The policy.
        most_work: Most work for a question, in z3's units.

    Raises:
        MissingExtra: z3 is not installed.
    """

    def __init__(self, policy: ReasoningPolicy, *, most_work: int = MOST_Z3_WORK) -> None:
        try:
            import z3
        except ImportError as error:
            raise MissingExtra.of("Reasoning about answers needs z3", "guardrail") from error
        self.policy, self.most_work, self._z3 = policy, most_work, z3
        self._context = z3.Context()
        self._values: dict[tuple[str, str], Any] = {}  # of each choice's values
        self._sorts: dict[tuple[str, ...], Any] = {}
        self._variables = {name: self._variable(name) for name in policy.variables}
        self.rules = {rule.name: self._rule(rule) for rule in policy.rules}
        self._bounds = list(self._bounds_of_variables())

    def conjunction(self, statements: Iterable[Expression]) -> Z3Statement:
        """All of these."""
        return self._z3.And([self._z3.BoolVal(True, self._context), *map(self.of, statements)])

    def of(self, statement: Expression) -> Z3Statement:
        """A statement as z3 has it."""
        return self._build(statement.tree)

    def model(self, statements: Iterable[Z3Statement]) -> VariableValues | None:
        """Values of all variables under which the rules and these hold; ``None`` where there are none.

        Raises:
            SolverGaveUp: nobody knows.
        """
        solver = self._solver([*self.rules.values(), *statements])
        if not self._holds(solver):
            return None
        model = solver.model()
        return {name: self._written(name, model.eval(v, True)) for name, v in self._variables.items()}

    def core(self, statements: Iterable[Z3Statement], *, without: str = "") -> tuple[str, ...] | None:
        """A least set of rules that cannot hold together with these; ``None`` where all of them can.

        Args:
            statements: The statements.
            without: Name of a rule that is left out.

        Raises:
            SolverGaveUp: nobody knows.
        """
        marks = {name: self._z3.Bool(f"rule {name}", self._context) for name in self.rules if name != without}
        solver = self._solver([self._z3.Implies(mark, self.rules[name]) for name, mark in marks.items()])
        solver.add(*statements)
        solver.set("core.minimize", True)
        if self._holds(solver, [*marks.values()]):
            return None
        core = {str(mark) for mark in solver.unsat_core()}
        return tuple(name for name in self.rules if f"rule {name}" in core)

    def follows(self, claim: Z3Statement, premises: Iterable[Z3Statement]) -> bool:
        """Whether a statement holds wherever the rules and the premises do.

        Raises:
            SolverGaveUp: nobody knows.
        """
        return not self._holds(self._solver([*self.rules.values(), *premises, self._z3.Not(claim)]))

    def opposite(self, statement: Z3Statement) -> Z3Statement:
        """Its negation."""
        return self._z3.Not(statement)

    def same(self, first: Z3Statement, second: Z3Statement) -> bool:
        """Whether two statements hold in the same cases, among those that the rules allow."""
        return self.follows(first == second, [])

    def fact(self, name: str, value: str) -> Z3Statement:
        """That a variable has a value, which is written as in an expression."""
        tree = ast.parse(f"{name} == {value}", mode="eval").body
        return self._build(tree)

    def _solver(self, statements: Iterable[Z3Statement]) -> Any:
        solver = self._z3.Solver(ctx=self._context)
        solver.set("timeout", 1000 * MOST_Z3_SECONDS)
        solver.set("rlimit", self.most_work)
        solver.add(*self._bounds, *statements)
        return solver

    def _holds(self, solver: Any, assumptions: Sequence[Z3Statement] = ()) -> bool:
        answer = solver.check(*assumptions)
        if answer == self._z3.unknown:
            raise SolverGaveUp(solver.reason_unknown())
        return bool(answer == self._z3.sat)

    def _variable(self, name: str) -> Any:
        variable = self.policy.variables[name]
        if variable.type == "choice":
            return self._z3.Const(name, self._sort(variable.values))
        make = {"boolean": self._z3.Bool, "integer": self._z3.Int, "number": self._z3.Real}[variable.type]
        return make(name, self._context)

    def _sort(self, values: tuple[str, ...]) -> Any:
        """The sort of a choice; choices of the same values have one, so that they can be compared."""
        if values not in self._sorts:
            name = f"choice {len(self._sorts)}"
            self._sorts[values], members = self._z3.EnumSort(name, [f"{name} {v}" for v in values], self._context)
            self._values |= {(name, value): member for value, member in zip(values, members, strict=True)}
        return self._sorts[values]

    def _rule(self, rule: PolicyRule) -> Z3Statement:
        parts = {name: self.of(each) for name, each in self.policy.parts_of(rule).items()}
        if rule.condition is None:
            return parts["always"]
        if rule.condition == "when":
            return self._z3.Implies(parts["when"], parts["then"])
        return parts["exactly_when"] == parts["then"]

    def _bounds_of_variables(self) -> Iterable[Z3Statement]:
        for name, variable in self.policy.variables.items():
            if variable.least is not None:
                yield self._variables[name] >= self._number(variable.least)
            if variable.most is not None:
                yield self._variables[name] <= self._number(variable.most)

    def _build(self, part: ast.expr) -> Any:
        match part:
            case ast.BoolOp(op=op, values=values):
                join = self._z3.And if isinstance(op, ast.And) else self._z3.Or
                return join([self._build(each) for each in values])
            case ast.UnaryOp(op=op, operand=operand):
                inner = self._build(operand)
                return self._z3.Not(inner) if isinstance(op, ast.Not) else -inner if isinstance(op, ast.USub) else inner
            case ast.Compare(left=left, ops=ops, comparators=rights):
                lefts = [left, *rights[:-1]]
                return self._z3.And([self._comparison(*each) for each in zip(lefts, ops, rights, strict=True)])
            case ast.BinOp(left=left, op=op, right=right):
                first, second = self._build(left), self._build(right)
                return Z3_SUMS[type(op)](self._real(first) if isinstance(op, ast.Div) else first, second)
            case ast.Name(id=name):
                return (
                    self._variables[name]
                    if name not in TRUTH_NAMES
                    else self._z3.BoolVal(TRUTH_NAMES[name], self._context)
                )
            case ast.Constant(value=bool(truth)):
                return self._z3.BoolVal(truth, self._context)
        return self._number(ast.literal_eval(part))

    def _comparison(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Any:
        if isinstance(op, ast.In | ast.NotIn):
            members = right.elts if isinstance(right, ast.Tuple | ast.List | ast.Set) else []
            any_of = self._z3.Or([self._comparison(left, ast.Eq(), each) for each in members])
            return self._z3.Not(any_of) if isinstance(op, ast.NotIn) else any_of
        first, second = self._side(left, right), self._side(right, left)
        return Z3_COMPARISONS[type(op)](first, second)

    def _side(self, part: ast.expr, other: ast.expr) -> Any:
        """A side of a comparison; a text is a value of the choice on the other side."""
        match part, other:
            case ast.Constant(value=str(value)), ast.Name(id=name):
                return self._values[str(self._variables[name].sort()), value]
        return self._build(part)

    def _number(self, value: Any) -> Any:
        exact = Fraction(str(value))
        if isinstance(value, int) or exact.denominator == 1:
            return self._z3.IntVal(int(exact), self._context)
        return self._z3.RealVal(f"{exact.numerator}/{exact.denominator}", self._context)

    def _real(self, number: Any) -> Any:
        return self._z3.ToReal(number) if number.is_int() else number

    def _written(self, name: str, value: Any) -> str:
        """A value as an expression has it."""
        variable = self.policy.variables[name]
        if variable.type == "choice":
            return repr(str(value).removeprefix(f"{value.sort()} "))
        if variable.type == "boolean":
            return str(value).lower()
        return str(value.as_fraction()) if variable.type == "number" else str(value.as_long())
