"""Sets of real numbers as sorted intervals, so that (-inf,2) u (3,inf) and "x<2 or x>3" are the same."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from ladle.grading.comparing.equations import FLIPPED
from ladle.grading.comparing.evaluate import symbols_of
from ladle.grading.comparing.scalars import evaluate_constant
from ladle.grading.comparing.values import CONTEXT, Value, as_float, is_close, is_real, real_part
from ladle.grading.reading.tree import (
    EXPRESSIONS,
    Call,
    Constant,
    Interval,
    Listing,
    Number,
    Ordered,
    Product,
    Quantity,
    Relation,
    Symbol,
    Tree,
    Union,
    Unordered,
)

_INFINITY = CONTEXT.inf


class Span(NamedTuple):
    """One interval; a point has equal, closed ends."""

    low: Value
    low_closed: bool
    high: Value
    high_closed: bool


_EVERYTHING = Span(-_INFINITY, False, _INFINITY, False)


def as_real_set(tree: Tree) -> list[Span] | None:
    """Return the set of reals that the tree describes, sorted and merged; None where it describes none."""
    spans = _spans_of(tree)
    return None if spans is None else _merge(spans)


def are_same_real_sets(gold: Sequence[Span], answer: Sequence[Span]) -> bool:
    """Whether two sorted and merged sets have the same spans."""
    return len(gold) == len(answer) and all(
        one.low_closed == other.low_closed
        and one.high_closed == other.high_closed
        and _is_same_end(one.low, other.low)
        and _is_same_end(one.high, other.high)
        for one, other in zip(gold, answer, strict=True)
    )


def _is_same_end(left: Value, right: Value) -> bool:
    return left == right if _INFINITY in (abs(left), abs(right)) else is_close(left, right)


def _spans_of(tree: Tree) -> list[Span] | None:
    if isinstance(tree, Interval):
        return _span(tree.low, tree.low_closed, tree.high, tree.high_closed)
    if isinstance(tree, Ordered) and len(tree.items) == 2:
        low, high = tree.items
        return _span(low, False, high, False)
    if isinstance(tree, Union):
        return _unite([_spans_of(part) for part in tree.parts])
    if isinstance(tree, Unordered):
        return _unite([_span(item, True, item, True) for item in tree.items])
    if isinstance(tree, Relation):
        return _solve(tree)
    if isinstance(tree, Listing) and all(isinstance(item, Relation) for item in tree.items):
        sets = [_spans_of(item) for item in tree.items]
        return _unite(sets) if tree.joined_by != "and" else _intersect_all(sets)
    return None


def _span(low: Tree, low_closed: bool, high: Tree, high_closed: bool) -> list[Span] | None:
    start, end = _end(low), _end(high)
    if start is None or end is None or start > end:
        return None
    return [Span(start, low_closed and start != -_INFINITY, end, high_closed and end != _INFINITY)]


def _end(tree: Tree) -> Value | None:
    value = tree.value if isinstance(tree, Quantity) else tree
    if not isinstance(value, EXPRESSIONS) or symbols_of(value):
        return None
    if value == Constant("infinity"):
        return _INFINITY
    if value == Product([Number(Fraction(-1)), Constant("infinity")]):
        return -_INFINITY
    found = evaluate_constant(value)
    return as_float(real_part(found)) if found is not None and is_real(found) else None


def _unite(sets: Sequence[list[Span] | None]) -> list[Span] | None:
    spans: list[Span] = []
    for one in sets:
        if one is None:
            return None
        spans.extend(one)
    return spans


def _solve(relation: Relation) -> list[Span] | None:
    """Return the solutions of a chain such as `-2 <= x < 7`, whose comparisons are of one symbol with constants."""
    if relation.operators == ["in"]:
        return _spans_of(relation.sides[1])
    names = {symbol.name for side in relation.sides if (symbol := _bounded_symbol(side)) is not None}
    if len(names) != 1:
        return None
    return _intersect_all(
        [
            _solve_one(left, operator, right)
            for left, operator, right in zip(relation.sides, relation.operators, relation.sides[1:], strict=False)
        ]
    )


def _solve_one(left: Tree, operator: str, right: Tree) -> list[Span] | None:
    if operator not in FLIPPED:
        return None
    if _bounded_symbol(right) is not None:
        left, operator, right = right, FLIPPED[operator], left
    end = _end(right)
    if _bounded_symbol(left) is None or end is None:
        return None
    if isinstance(left, Call):
        return _solve_absolute(operator, end)
    return _half_line(operator, end)


def _bounded_symbol(side: Tree) -> Symbol | None:
    """Return the symbol that a side is, or is the absolute value of."""
    if isinstance(side, Call) and side.function == "abs" and isinstance(side.arguments[0], Symbol):
        return side.arguments[0]
    return side if isinstance(side, Symbol) else None


def _solve_absolute(operator: str, end: Value) -> list[Span] | None:
    """Return where the absolute value compares so with the end: on both sides of zero."""
    if end < 0:
        return None
    sets = [_half_line(operator, end), _half_line(FLIPPED[operator], -end)]
    return _intersect_all(sets) if operator in ("<", "<=") else _unite(sets)


def _half_line(operator: str, end: Value) -> list[Span]:
    below, above = Span(-_INFINITY, False, end, operator == "<="), Span(end, operator == ">=", _INFINITY, False)
    return {
        "<": [below],
        "<=": [below],
        ">": [above],
        ">=": [above],
        "=": [Span(end, True, end, True)],
        "!=": [below, above],
    }[operator]


def _intersect_all(sets: Sequence[list[Span] | None]) -> list[Span] | None:
    common = [_EVERYTHING]
    for one in sets:
        if one is None:
            return None
        common = [met for left in common for right in one if (met := _intersect(left, right)) is not None]
    return common


def _intersect(left: Span, right: Span) -> Span | None:
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
