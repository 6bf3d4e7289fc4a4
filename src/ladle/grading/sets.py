"""Sets of real numbers: intervals, so that (-inf,2) u (3,inf) and "x<2 or x>3" are the same, and general solutions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

from ladle.grading.tree import (
    Call,
    Constant,
    Expression,
    Interval,
    Listing,
    Ordered,
    Quantity,
    Relation,
    Symbol,
    TooLarge,
    Tree,
    Union,
    Unordered,
    negative,
    symbols_of,
)
from ladle.grading.values import (
    INFINITY,
    Undefined,
    Value,
    as_float,
    evaluate,
    evaluate_constant,
    is_close,
    real_part,
)

FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}
"""Each comparison, read from right to left."""


# Intervals.


class Span(NamedTuple):
    """One interval; a point has equal, closed ends."""

    low: Value
    low_closed: bool
    high: Value
    high_closed: bool


class _NotASet(Exception):
    """The tree describes no set of real numbers."""


def are_same_real_sets(gold: Tree, answer: Tree) -> bool:
    """Whether both trees describe sets of real numbers, and the same."""
    try:
        golds, answers = _merge(_spans_of(gold)), _merge(_spans_of(answer))
    except _NotASet:
        return False
    return len(golds) == len(answers) and all(
        (one.low_closed, one.high_closed) == (other.low_closed, other.high_closed)
        and _is_same_end(one.low, other.low)
        and _is_same_end(one.high, other.high)
        for one, other in zip(golds, answers, strict=True)
    )


def _is_same_end(left: Value, right: Value) -> bool:
    return left == right if INFINITY in (abs(left), abs(right)) else is_close(left, right)


def _spans_of(tree: Tree) -> list[Span]:
    """Return the intervals that together are the set which the tree describes."""
    match tree:
        case Interval(low, high, low_closed, high_closed):
            return [_span(low, low_closed, high, high_closed)]
        case Ordered([low, high]):
            return [_span(low, False, high, False)]
        case Union():
            return [span for part in tree.parts for span in _spans_of(part)]
        case Unordered():
            return [_span(item, True, item, True) for item in tree.items]
        case Relation(_, ["in"]):
            return _spans_of(tree.sides[1])
        case Relation():  # a chain such as `-2 <= x < 7`, whose comparisons are of one symbol with constants
            if len({symbol.name for side in tree.sides if (symbol := _bounded_symbol(side)) is not None}) != 1:
                raise _NotASet
            pairs = zip(pairwise(tree.sides), tree.operators, strict=False)
            return _intersect(_solve(left, operator, right) for (left, right), operator in pairs)
        case Listing() if all(isinstance(item, Relation) for item in tree.items):
            sets = [_spans_of(item) for item in tree.items]
            return _intersect(sets) if tree.joined_by == "and" else sum(sets, [])
        case _:
            raise _NotASet


def _span(low: Tree, low_closed: bool, high: Tree, high_closed: bool) -> Span:
    start, end = _end(low), _end(high)
    if start > end:
        raise _NotASet
    return Span(start, low_closed and start != -INFINITY, end, high_closed and end != INFINITY)


def _end(tree: Tree) -> Value:
    value = tree.value if isinstance(tree, Quantity) else tree
    if not isinstance(value, Expression) or symbols_of(value):
        raise _NotASet
    if value == Constant("infinity"):
        return INFINITY
    if value == negative(Constant("infinity")):
        return -INFINITY
    found = evaluate_constant(value)
    real = None if found is None else real_part(found)
    if real is None:
        raise _NotASet
    return as_float(real)


def _solve(left: Tree, operator: str, right: Tree) -> list[Span]:
    """Return where a symbol, or its absolute value, compares so with a constant."""
    if operator not in FLIPPED:
        raise _NotASet
    if _bounded_symbol(right) is not None:
        left, operator, right = right, FLIPPED[operator], left
    end = _end(right)
    if isinstance(left, Symbol):
        return _half_lines(operator, end)
    if _bounded_symbol(left) is None or end < 0:
        raise _NotASet
    sets = [_half_lines(operator, end), _half_lines(FLIPPED[operator], -end)]
    return _intersect(sets) if operator in ("<", "<=") else sum(sets, [])


def _bounded_symbol(side: Tree) -> Symbol | None:
    """Return the symbol that a side is, or is the absolute value of."""
    if isinstance(side, Call) and side.function == "abs":
        side = side.arguments[0]
    return side if isinstance(side, Symbol) else None


def _half_lines(operator: str, end: Value) -> list[Span]:
    if operator == "=":
        return [Span(end, True, end, True)]
    below, above = Span(-INFINITY, False, end, operator == "<="), Span(end, operator == ">=", INFINITY, False)
    return [below] * (operator in ("<", "<=", "!=")) + [above] * (operator in (">", ">=", "!="))


def _intersect(sets: Iterable[list[Span]]) -> list[Span]:
    common = [Span(-INFINITY, False, INFINITY, False)]
    for one in sets:
        common = [met for left in common for right in one if (met := _common_part(left, right)) is not None]
    return common


def _common_part(left: Span, right: Span) -> Span | None:
    low = max(left.low, right.low)
    high = min(left.high, right.high)
    low_closed = all(span.low_closed for span in (left, right) if span.low == low)
    high_closed = all(span.high_closed for span in (left, right) if span.high == high)
    if low > high or low == high and not (low_closed and high_closed):
        return None
    return Span(low, low_closed, high, high_closed)


def _merge(spans: Sequence[Span]) -> list[Span]:
    merged: list[Span] = []
    for span in sorted(spans, key=lambda span: (span.low, not span.low_closed)):
        last = merged[-1] if merged else None
        if last is None or span.low > last.high or span.low == last.high and not (span.low_closed or last.high_closed):
            merged.append(span)
        elif (span.high, span.high_closed) > (last.high, last.high_closed):
            merged[-1] = Span(last.low, last.low_closed, span.high, span.high_closed)
    return merged


# General solutions: a + n b for every integer n, whatever the letter, and whichever of its members a is. Families are
# compared as sets: `\frac{\pi}{4} + n\pi` is `\frac{5\pi}{4} + k\pi`, and two families of period 2 pi may be one of
# period pi.

_MAX_MEMBERS = 400
_MAX_DENOMINATOR = 1000


class Family(NamedTuple):
    """The numbers `start + n * step` for all integers n."""

    start: Value
    step: Value


def are_same_families(gold: Tree, answer: Tree, letter: str) -> bool:
    """Whether both trees are general solutions in this letter, and hold the same numbers."""
    golds, answers = _families_of(gold, letter), _families_of(answer, letter)
    if not golds or not answers:
        return False
    unit = golds[0].step
    steps: list[Fraction] = []
    for family in (*golds, *answers):
        ratio = abs(family.step / unit)
        steps.append(Fraction(float(ratio)).limit_denominator(_MAX_DENOMINATOR))
        if not steps[-1] or not is_close(steps[-1], ratio):
            return False
    period = Fraction(math.lcm(*(step.numerator for step in steps)), math.gcd(*(step.denominator for step in steps)))
    if sum(period / step for step in steps) > _MAX_MEMBERS:
        return False
    ones = _members(golds, steps[: len(golds)], period, unit)
    others = _members(answers, steps[len(golds) :], period, unit)
    return _are_within(ones, others) and _are_within(others, ones)


def _families_of(tree: Tree, letter: str) -> list[Family] | None:
    if isinstance(tree, Relation):
        return _families_of(tree.sides[-1], letter) if set(tree.operators) <= {"=", "in"} else None
    if isinstance(tree, (Listing, Unordered)):
        found = [_families_of(item, letter) for item in tree.items]
        return None if None in found else [family for item in found if item for family in item]
    if not isinstance(tree, Expression) or symbols_of(tree) != {letter}:
        return None
    try:
        reals = [real_part(evaluate(tree, {letter: Fraction(n)})) for n in (0, 1, 2, 7)]
    except (Undefined, TooLarge):
        return None
    if None in reals:
        return None
    start, second, third, later = (as_float(real) for real in reals)
    step = second - start
    is_linear = is_close(third, start + 2 * step) and is_close(later, start + 7 * step)
    return [Family(start, step)] if is_linear and step != 0 else None


def _members(families: Sequence[Family], steps: Sequence[Fraction], period: Fraction, unit: Value) -> list[Value]:
    """Return the numbers of one period, in periods, between 0 and 1."""
    whole = unit * as_float(period)
    return [
        (family.start / whole + as_float(n / (period / step))) % 1
        for family, step in zip(families, steps, strict=True)
        for n in range(int(period / step))
    ]


def _are_within(some: Sequence[Value], others: Sequence[Value]) -> bool:
    closest = (min(min(abs(one - other), 1 - abs(one - other)) for other in others) for one in some)
    return all(distance < as_float(Fraction(1, 10**25)) for distance in closest)
