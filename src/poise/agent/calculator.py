"""Exact arithmetic on an expression that a model wrote: parsed, never evaluated as code, and bounded."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Annotated

from pydantic import Field

from poise.agent.function_tools import function_tool
from poise.agent.tool import AgentTool
from poise.errors import ToolFailed

__all__ = ["calculate", "calculator_tool"]

LONGEST_EXPRESSION = 4000  # characters
MOST_NODES = 2000
MOST_BITS = 4096  # of a numerator or denominator
MOST_EXPONENT = 512
DECIMAL_DIGITS = 12  # after the point, of what is no whole number

_Value = Fraction | list[Fraction]


def calculate(
    expression: Annotated[
        str,
        Field(description="Such as (12.5 + 3) * 4, sum([1, 2]), mean([1, 2]), round(2/3, 2), max(1, 2), sqrt(2)."),
    ],
) -> str:
    """Compute an arithmetic expression exactly: + - * / // % **, brackets, sum, mean, min, max, abs, round, sqrt."""
    if len(expression) > LONGEST_EXPRESSION:
        raise ToolFailed(f"The expression has {len(expression):,} characters; at most {LONGEST_EXPRESSION:,}.")
    try:
        tree = ast.parse(expression.strip(), mode="eval")
        if sum(1 for _ in ast.walk(tree)) > MOST_NODES:
            raise ToolFailed(f"The expression has too many parts; at most {MOST_NODES:,}.")
        value = _node_value(tree.body, expression.strip())
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ToolFailed(f"{expression[:200]!r} is no arithmetic expression.") from error
    except ZeroDivisionError as error:
        raise ToolFailed("The expression divides by zero.") from error
    if isinstance(value, list):
        raise ToolFailed("The expression is a list; take its sum, mean, min or max.")
    return decimal_text(value)


def _node_value(node: ast.expr, source: str) -> _Value:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return _bounded(_number_literal(number, ast.get_source_segment(source, node) or ""))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_number_of(operand, source)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _number_of(operand, source)
        case ast.BinOp(left=left, op=operator, right=right):
            return _bounded(_combine(operator, _number_of(left, source), _number_of(right, source)))
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_number_of(item, source) for item in items]
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
            return _bounded(_FUNCTIONS[name]([_node_value(argument, source) for argument in arguments]))
    raise ToolFailed(
        f"The calculator does not know {ast.unparse(node)[:80]!r}; it takes numbers, + - * / // % **, brackets and "
        f"{', '.join(_FUNCTIONS)}."
    )


def _number_literal(value: int | float, text: str) -> Fraction:
    """A number as it is written: of 0.1 a tenth, and not the nearest of binary fractions."""
    if isinstance(value, int):
        return Fraction(value)
    exponent = int(text.lower().partition("e")[2] or 0)
    if abs(exponent) > MOST_EXPONENT:
        raise ToolFailed("The number is too large to compute.")
    return Fraction(text.replace("_", ""))


def _number_of(node: ast.expr, source: str) -> Fraction:
    value = _node_value(node, source)
    if isinstance(value, list):
        raise ToolFailed("A list stands where a number belongs; take its sum, mean, min or max.")
    return value


def _combine(operator: ast.operator, left: Fraction, right: Fraction) -> Fraction:
    match operator:
        case ast.Add():
            return left + right
        case ast.Sub():
            return left - right
        case ast.Mult():
            return left * right
        case ast.Div():
            return left / right
        case ast.FloorDiv():
            return Fraction(left // right)
        case ast.Mod():
            return left % right
        case ast.Pow():
            return _power(left, right)
    raise ToolFailed("The calculator knows + - * / // % and **.")


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        if base < 0:
            raise ToolFailed("A power of a negative number needs a whole exponent.")
        return _rounded_root(lambda: float(base) ** float(exponent))
    size = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(exponent) > MOST_EXPONENT or size * abs(exponent) > MOST_BITS:
        raise ToolFailed("The power is too large to compute.")
    return base ** int(exponent)


def _rounded_root(compute: Callable[[], float]) -> Fraction:
    try:
        value = compute()
    except OverflowError as error:
        raise ToolFailed("The number is too large to compute.") from error
    if not math.isfinite(value):
        raise ToolFailed("The number is too large to compute.")
    return Fraction(value).limit_denominator(10**DECIMAL_DIGITS)


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MOST_BITS:
        raise ToolFailed("The number is too large to compute.")
    return value


def _flat_numbers(arguments: list[_Value]) -> list[Fraction]:
    numbers = [number for value in arguments for number in (value if isinstance(value, list) else [value])]
    if not numbers:
        raise ToolFailed("There are no numbers to take that of.")
    return numbers


def _one_number(arguments: list[_Value]) -> Fraction:
    numbers = _flat_numbers(arguments)
    if len(numbers) != 1:
        raise ToolFailed("That takes one number.")
    return numbers[0]


def _root(arguments: list[_Value]) -> Fraction:
    number = _one_number(arguments)
    if number < 0:
        raise ToolFailed("A negative number has no square root here.")
    top, bottom = math.isqrt(number.numerator), math.isqrt(number.denominator)
    if (top**2, bottom**2) == (number.numerator, number.denominator):
        return Fraction(top, bottom)
    return _rounded_root(lambda: math.sqrt(number))


def _rounding(arguments: list[_Value]) -> Fraction:
    """Half away from zero, as tables of money have it."""
    numbers = _flat_numbers(arguments)
    places = numbers[1] if len(numbers) == 2 else Fraction(0)
    if len(numbers) > 2 or places.denominator != 1 or not 0 <= places <= DECIMAL_DIGITS:
        raise ToolFailed(f"round takes a number and a count of digits from 0 to {DECIMAL_DIGITS}.")
    scaled = numbers[0] * 10 ** int(places)
    integer = (abs(scaled) + Fraction(1, 2)).__floor__()
    return Fraction(integer if scaled >= 0 else -integer, 10 ** int(places))


_FUNCTIONS: dict[str, Callable[[list[_Value]], Fraction]] = {
    "sum": lambda arguments: sum(_flat_numbers(arguments), Fraction(0)),
    "mean": lambda arguments: sum(_flat_numbers(arguments), Fraction(0)) / len(_flat_numbers(arguments)),
    "min": lambda arguments: min(_flat_numbers(arguments)),
    "max": lambda arguments: max(_flat_numbers(arguments)),
    "abs": lambda arguments: abs(_one_number(arguments)),
    "round": _rounding,
    "sqrt": _root,
}


def decimal_text(value: Fraction) -> str:
    """A fraction as a decimal number; with ≈ before it where digits are left out."""
    if value.denominator == 1:
        return str(value.numerator)
    scaled = _rounding([value, Fraction(DECIMAL_DIGITS)])
    sign = "-" if scaled < 0 else ""
    integer, part = divmod(abs(scaled.numerator * (10**DECIMAL_DIGITS // scaled.denominator)), 10**DECIMAL_DIGITS)
    digits = f"{part:0{DECIMAL_DIGITS}d}".rstrip("0")
    return f"{'' if scaled == value else '≈ '}{sign}{integer}{'.' + digits if digits else ''}"


def calculator_tool() -> AgentTool:
    """The calculator as a tool, which touches nothing."""
    return function_tool(calculate, touches=[], repeatable=True)
