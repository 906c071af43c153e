"""What a rule or a claim says, as an expression in Python's syntax: read, and checked against the policy's variables.

employment == "full-time" and months_employed >= 12
not eligible or weeks_paid in (12, 16)
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from poise.errors import InvalidStatement

__all__ = [
    "Expression",
    "InvalidStatement",
    "VariableComparison",
    "VariableKind",
    "names_of",
    "parse_expression",
    "single_comparison",
]

VariableKind = Literal["boolean", "integer", "number"] | tuple[str, ...]
MOST_STATEMENT = 2000
MOST_STATEMENT_PARTS = 500
TRUTH_NAMES = {"true": True, "false": False, "True": True, "False": False}
ORDERINGS = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)
EQUALITY = (ast.Eq, ast.NotEq)
MEMBERSHIP = (ast.In, ast.NotIn)
COMPARISON_SIGNS: dict[type[ast.cmpop], str] = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
}
SUM_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div)


@dataclass(frozen=True, slots=True)
class Expression:
    """A statement that is true or false.

    Attributes:
        text: Statement as it was written.
        tree: Syntax tree that has been checked.
        variables: Variables that it names.
    """

    text: str
    tree: ast.expr = field(compare=False, repr=False)
    variables: frozenset[str] = field(compare=False, repr=False)


def parse_expression(text: str, variables: Mapping[str, VariableKind]) -> Expression:
    """Read a statement.

    Args:
        text: The statement.
        variables: Kind of each variable by name; for a choice, its values.

    Raises:
        InvalidStatement: it is no expression, names what there is not, or compares what cannot be compared.
    """
    if len(text) > MOST_STATEMENT:
        raise InvalidStatement(f"has {len(text)} characters; at most {MOST_STATEMENT} are read, so write two rules")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InvalidStatement(f"is {text!r}, which cannot be read: {_syntax_hint(text, error)}") from None
    parts = list(ast.walk(tree))
    if len(parts) > MOST_STATEMENT_PARTS:
        raise InvalidStatement(f"has {len(parts)} parts; at most {MOST_STATEMENT_PARTS} are read, so write two rules")
    if (kind := _Kinds(text, variables).of(tree)) != "boolean":
        raise InvalidStatement(f"is {text!r}, which is {_called(kind)} and neither true nor false; compare it")
    named = frozenset(part.id for part in parts if isinstance(part, ast.Name) and part.id not in TRUTH_NAMES)
    return Expression(text.strip(), tree, named)


@dataclass(frozen=True, slots=True)
class VariableComparison:
    """A variable compared with a value."""

    variable: str
    operator: str
    value: bool | int | float | str


def single_comparison(text: str, variables: Mapping[str, VariableKind]) -> VariableComparison:
    """Read a statement that compares one variable with one value: ``months >= 12``, ``eligible``, ``not eligible``.

    Raises:
        InvalidStatement: it is another statement.
    """
    match parse_expression(text, variables).tree:
        case ast.Name(id=name):
            return VariableComparison(name, "==", True)
        case ast.UnaryOp(op=ast.Not(), operand=ast.Name(id=name)):
            return VariableComparison(name, "==", False)
        case ast.Compare(left=ast.Name(id=name), ops=[op], comparators=[value]) if type(op) in COMPARISON_SIGNS:
            with contextlib.suppress(ValueError):
                return VariableComparison(name, COMPARISON_SIGNS[type(op)], ast.literal_eval(_as_python(value)))
    raise InvalidStatement(f"is {text!r}; write one variable, compared with one value")


def _as_python(value: ast.expr) -> ast.expr:
    """``true`` and ``false`` as Python has them."""
    return ast.Constant(TRUTH_NAMES[value.id]) if isinstance(value, ast.Name) and value.id in TRUTH_NAMES else value


def _syntax_hint(text: str, error: Exception) -> str:
    bare = text.replace("==", "").replace("!=", "").replace("<=", "").replace(">=", "")
    if "=" in bare:
        return "write == for is, and != for is not"
    if "&&" in text or "||" in text or "!" in bare:
        return "write and, or and not"
    where = f" near character {error.offset}" if isinstance(error, SyntaxError) and error.offset else ""
    return f"write comparisons joined by and, or and not{where}"


class _Kinds:
    """Kinds of the parts of an expression."""

    def __init__(self, text: str, variables: Mapping[str, VariableKind]) -> None:
        self.text, self.variables = text, variables

    def of(self, part: ast.expr) -> VariableKind:
        match part:
            case ast.BoolOp(values=values):
                for each in values:
                    self._want_truth(each)
                return "boolean"
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                self._want_truth(operand)
                return "boolean"
            case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
                return self._number(operand)
            case ast.Compare():
                return self._comparison(part)
            case ast.BinOp(left=left, op=op, right=right) if isinstance(op, SUM_OPERATORS):
                return self._sum(left, op, right)
            case ast.Name(id=name):
                return self._name(name)
            case ast.Constant(value=value):
                return self._constant(value)
        raise InvalidStatement(f"has {self._shown(part)}, which is not known here; {STATEMENT_FORMS}")

    def _name(self, name: str) -> VariableKind:
        if name in TRUTH_NAMES:
            return "boolean"
        if name not in self.variables:
            raise InvalidStatement(f"names {name}, which is no variable{_meant(name, self.variables)}")
        return self.variables[name]

    def _constant(self, value: object) -> VariableKind:
        match value:
            case bool():
                return "boolean"
            case int():
                return "integer"
            case float() if math.isfinite(value):
                return "number"
            case str():
                return (value,)
        raise InvalidStatement(f"has {value!r}, which is no number, text, true or false")

    def _want_truth(self, part: ast.expr) -> None:
        if (kind := self.of(part)) != "boolean":
            raise InvalidStatement(
                f"has {self._shown(part)} where something true or false is needed, and it is "
                f"{_called(kind)}; compare it"
            )

    def _number(self, part: ast.expr) -> VariableKind:
        kind = self.of(part)
        if kind not in ("integer", "number"):
            raise InvalidStatement(f"reckons with {self._shown(part)}, which is {_called(kind)}")
        return kind

    def _sum(self, left: ast.expr, op: ast.operator, right: ast.expr) -> VariableKind:
        kinds = {self._number(left), self._number(right)}
        if isinstance(op, ast.Div):
            if not (isinstance(right, ast.Constant) and right.value):
                raise InvalidStatement(f"divides by {self._shown(right)}; divide by a number that is not 0")
            return "number"
        return "integer" if kinds == {"integer"} else "number"

    def _comparison(self, part: ast.Compare) -> VariableKind:
        left = part.left
        for op, right in zip(part.ops, part.comparators, strict=True):
            if isinstance(op, MEMBERSHIP):
                self._check_members(left, right)
            elif isinstance(op, ORDERINGS):
                self._number(left)
                self._number(right)
            elif isinstance(op, EQUALITY):
                self._check_alike(left, right)
            else:
                raise InvalidStatement(
                    f"compares by a word that is not known here in {self._shown(part)}; {STATEMENT_FORMS}"
                )
            left = right
        return "boolean"

    def _check_members(self, left: ast.expr, right: ast.expr) -> None:
        if not isinstance(right, ast.Tuple | ast.List | ast.Set) or not right.elts:
            raise InvalidStatement(f"looks for {self._shown(left)} in {self._shown(right)}; write a list of values")
        for each in right.elts:
            self._check_alike(left, each)

    def _check_alike(self, left: ast.expr, right: ast.expr) -> None:
        kinds = (self.of(left), self.of(right))
        if {"integer", "number"} >= set(kinds) or kinds[0] == kinds[1] == "boolean":
            return
        if all(isinstance(kind, tuple) for kind in kinds):
            self._check_choice(left, right, *kinds)
            return
        raise InvalidStatement(
            f"compares {self._shown(left)}, which is {_called(kinds[0])}, with {self._shown(right)}, which is "
            f"{_called(kinds[1])}"
        )

    def _check_choice(self, left: ast.expr, right: ast.expr, first: Collection[str], second: Collection[str]) -> None:
        if not (isinstance(left, ast.Name) or isinstance(right, ast.Name)):
            raise InvalidStatement(f"compares {self._shown(left)} with {self._shown(right)}, and both are texts")
        if isinstance(left, ast.Name) and isinstance(right, ast.Name):
            if tuple(first) != tuple(second):
                raise InvalidStatement(f"compares {left.id} with {right.id}, which have other values")
            return
        (value,), values = (first, second) if isinstance(right, ast.Name) else (second, first)
        if value not in values:
            raise InvalidStatement(
                f"has the value {value!r}, and there are: {', '.join(map(repr, values))}{_meant(value, values)}"
            )

    def _shown(self, part: ast.expr) -> str:
        return ast.get_source_segment(self.text.strip(), part) or ast.unparse(part)


STATEMENT_FORMS = "write comparisons, joined by and, or and not, over variables, numbers and quoted values"


def _called(kind: VariableKind) -> str:
    if isinstance(kind, tuple):
        return "a text" if len(kind) == 1 else f"one of {', '.join(map(repr, kind))}"
    return {"boolean": "true or false", "integer": "a whole number", "number": "a number"}[kind]


def _meant(name: str, names: Collection[str]) -> str:
    close = difflib.get_close_matches(name, [*names], 1, 0.6)
    return f"; did you mean {close[0]}?" if close else ""


def names_of(expressions: Sequence[Expression]) -> frozenset[str]:
    """The variables that these name."""
    return frozenset(name for each in expressions for name in each.variables)
