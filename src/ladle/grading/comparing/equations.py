"""Equations and inequalities: what they name, what they state, and when two of them are the same condition."""

from __future__ import annotations

from fractions import Fraction

from ladle.grading.comparing.evaluate import symbols_of
from ladle.grading.comparing.identity import are_proportional
from ladle.grading.comparing.scalars import Rules, are_equal_values
from ladle.grading.reading.tree import EXPRESSIONS, Call, Expression, Number, Product, Relation, Sum, Symbol, Text, Tree

FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}
"""Each comparison, read from right to left."""


def is_name(side: Tree) -> bool:
    """Whether a side of an equation names what the other side says: `x`, `f(x)`, `Area`."""
    if isinstance(side, (Symbol, Text)):
        return True
    return isinstance(side, Call) and side.function.startswith("apply ")


def stated_value(relation: Relation, rules: Rules) -> Tree | None:
    """Return what an equation says a value is: its last side, or the one before an approximation; None for conditions.

    A side without symbols that differs from it, as in `1 = 2 = 5`, makes the equation say nothing.
    """
    sides, operators = relation.sides, relation.operators
    if "~" in operators:
        cut = operators.index("~") + 1
        cut += is_name(sides[0]) and cut == 1
        sides, operators = sides[:cut], operators[: cut - 1]
    if not all(operator in ("=", "in", "~") for operator in operators):
        return None
    last = sides[-1]
    contradicted = isinstance(last, EXPRESSIONS) and any(
        isinstance(side, EXPRESSIONS) and not symbols_of(side) and not are_equal_values(last, side, rules)
        for side in sides[:-1]
    )
    return None if contradicted else last


def are_equivalent_conditions(gold: Relation, answer: Relation) -> bool:
    """Whether two equations or inequalities of two sides say the same: their differences are proportional."""
    if len(gold.sides) != 2 or len(answer.sides) != 2:
        return False
    one, other = _difference(gold), _difference(answer)
    if one is None or other is None:
        return False
    operator = gold.operators[0]
    if operator == answer.operators[0] and operator in FLIPPED:
        return bool(are_proportional(one, other, positive=operator not in ("=", "!=")))
    if FLIPPED.get(operator) == answer.operators[0]:
        return bool(are_proportional(one, Product([Number(Fraction(-1)), other]), positive=True))
    return False


def _difference(relation: Relation) -> Expression | None:
    left, right = relation.sides
    if isinstance(left, EXPRESSIONS) and isinstance(right, EXPRESSIONS):
        return Sum([left, Product([Number(Fraction(-1)), right])])
    return None
