"""General solutions: a + n b for every integer n, whatever the letter, and whichever of its members stands for a.

Families are compared as sets: `\\frac{\\pi}{4} + n\\pi` is `\\frac{5\\pi}{4} + k\\pi`, and two families of period 2 pi
may be one of period pi.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from ladle.grading.comparing.evaluate import evaluate, symbols_of
from ladle.grading.comparing.values import Undefined, Value, as_float, is_close, is_real, real_part
from ladle.grading.reading.tree import EXPRESSIONS, Expression, Listing, Relation, TooLarge, Tree, Unordered

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
    ratios = [_rational(family.step / unit) for family in (*golds, *answers)]
    if any(not ratio for ratio in ratios):
        return False
    exact = [abs(ratio) for ratio in ratios if ratio]
    period = Fraction(
        math.lcm(*(ratio.numerator for ratio in exact)), math.gcd(*(ratio.denominator for ratio in exact))
    )
    if sum(period / ratio for ratio in exact) > _MAX_MEMBERS:
        return False
    one = _members(golds, exact[: len(golds)], period, unit)
    other = _members(answers, exact[len(golds) :], period, unit)
    return _are_within(one, other) and _are_within(other, one)


def _families_of(tree: Tree, letter: str) -> list[Family] | None:
    if isinstance(tree, Relation):
        return _families_of(tree.sides[-1], letter) if set(tree.operators) <= {"=", "in"} else None
    if isinstance(tree, (Listing, Unordered)):
        found = [_families_of(item, letter) for item in tree.items]
        return None if any(item is None for item in found) else [family for item in found if item for family in item]
    if not isinstance(tree, EXPRESSIONS) or symbols_of(tree) != {letter}:
        return None
    family = _family(tree, letter)
    return None if family is None else [family]


def _family(expression: Expression, letter: str) -> Family | None:
    try:
        first, second, third, later = (evaluate(expression, {letter: Fraction(n)}) for n in (0, 1, 2, 7))
    except (Undefined, TooLarge):
        return None
    if not all(is_real(value) for value in (first, second, third, later)):
        return None
    start, step = as_float(real_part(first)), as_float(real_part(second)) - as_float(real_part(first))
    linear = is_close(third, start + 2 * step) and is_close(later, start + 7 * step)
    return Family(start, step) if linear and step != 0 else None


def _rational(value: Value) -> Fraction | None:
    found = Fraction(float(value)).limit_denominator(_MAX_DENOMINATOR)
    return found if is_close(found, value) else None


def _members(families: Sequence[Family], steps: Sequence[Fraction], period: Fraction, unit: Value) -> list[Value]:
    """Return the numbers of one period, in periods, between 0 and 1."""
    whole = unit * as_float(period)
    members: list[Value] = []
    for family, step in zip(families, steps, strict=True):
        count = period / step
        members.extend((family.start / whole + as_float(n / count)) % 1 for n in range(int(count)))
    return members


def _are_within(some: Sequence[Value], others: Sequence[Value]) -> bool:
    return all(any(_is_same_member(one, other) for other in others) for one in some)


def _is_same_member(one: Value, other: Value) -> bool:
    difference = abs(one - other)
    return bool(min(difference, 1 - difference) < as_float(Fraction(1, 10**25)))
