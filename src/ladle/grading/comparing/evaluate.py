"""The value of an expression at given values of its symbols."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from typing import Any

from mpmath import libmp

from ladle.grading.comparing.functions import apply_function, apply_unknown
from ladle.grading.comparing.values import CONTEXT, Undefined, Value, add, multiply, power
from ladle.grading.reading.tree import Call, Constant, Expression, Number, Power, Product, Sum, Symbol

BARE_LOGARITHM = "log"
"""Under this name stands the natural logarithm of the base that `\\log` without one is taken to have."""
Point = Mapping[str, Value]
"""A value for each symbol."""


def evaluate(expression: Expression, point: Point) -> Value:
    """Return the value of the expression at a point.

    Raises:
        Undefined: it has none there.
        TooLarge: it is too large to compare.
    """
    try:
        return _EVALUATORS[type(expression)](expression, point)
    except (ZeroDivisionError, ValueError, OverflowError, libmp.ComplexResult, libmp.NoConvergence) as error:
        raise Undefined(str(error)) from error


def walk(expression: Expression) -> Iterator[Expression]:
    """Yield the expression and everything in it."""
    pending: list[Expression] = [expression]
    while pending:
        node = pending.pop()
        yield node
        if isinstance(node, Sum):
            pending.extend(node.terms)
        elif isinstance(node, Product):
            pending.extend(node.factors)
        elif isinstance(node, Power):
            pending.extend((node.base, node.exponent))
        elif isinstance(node, Call):
            pending.extend(node.arguments)


def symbols_of(expression: Expression) -> set[str]:
    """Return the names of the symbols in an expression."""
    return {node.name for node in walk(expression) if isinstance(node, Symbol)}


def _number(number: Number, point: Point) -> Value:
    return number.value


def _constant(constant: Constant, point: Point) -> Value:
    if constant.name == "i":
        return CONTEXT.mpc(0, 1)
    if constant.name == "infinity":
        raise Undefined("infinity is not a number")
    return +getattr(CONTEXT, constant.name)


def _symbol(symbol: Symbol, point: Point) -> Value:
    return point[symbol.name]


def _sum(node: Sum, point: Point) -> Value:
    total: Value = Fraction(0)
    for term in node.terms:
        total = add(total, evaluate(term, point))
    return total


def _product(node: Product, point: Point) -> Value:
    total: Value = Fraction(1)
    for factor in node.factors:
        total = multiply(total, evaluate(factor, point))
    return total


def _power(node: Power, point: Point) -> Value:
    return power(evaluate(node.base, point), evaluate(node.exponent, point))


def _call(node: Call, point: Point) -> Value:
    arguments = [evaluate(argument, point) for argument in node.arguments]
    if node.function.startswith("apply "):
        return apply_unknown(node.function, arguments)
    if node.function == "log" and len(arguments) == 1:
        return apply_function("ln", arguments) / point[BARE_LOGARITHM]
    return apply_function(node.function, arguments)


_EVALUATORS: dict[type, Callable[[Any, Point], Value]] = {
    Number: _number,
    Constant: _constant,
    Symbol: _symbol,
    Sum: _sum,
    Product: _product,
    Power: _power,
    Call: _call,
}
