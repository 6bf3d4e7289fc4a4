"""Whether an answer says the same as the gold: structures are taken apart until single values are left.

Not symmetric. The answer may add a name (`x = 5` for `5`), a unit or braces, and leave out a name, a unit or the
parentheses of a list. It may not reverse an order that the gold gives, nor open an interval that the gold closes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from fractions import Fraction
from typing import Any

from ladle.grading.equality import Rules, are_equal_quantities, are_equal_values, are_proportional
from ladle.grading.sets import FLIPPED, are_same_real_sets
from ladle.grading.tree import (
    BaseNumeral,
    Call,
    ClockTime,
    Constant,
    Expression,
    Interval,
    Listing,
    Matrix,
    Number,
    Ordered,
    Quantity,
    Relation,
    Sum,
    Symbol,
    Text,
    Tree,
    Union,
    Unordered,
    negative,
    rename,
    symbols_of,
    walk,
)

# Names that may differ without a difference.

_INTEGER_LETTERS = frozenset("nkmlj")  # where they multiply pi they are every integer, said or unsaid


def are_equivalent(gold: Tree, answer: Tree, rules: Rules) -> bool | None:
    """Whether the answer is the gold; None where that cannot be decided.

    Constants of integration (`C`, `c`) may have either name, and a derivative may leave its variable unsaid (`x'`).

    Raises:
        TooLarge: values are too large to compare.
    """
    golds, answers = symbols_of(gold), symbols_of(answer)
    if golds != answers:
        constants = {
            name: other
            for name in answers - golds
            if name[0] in "cC" and (other := name[0].swapcase() + name[1:]) in golds - answers
        }
        gold = rename(gold, _short_derivatives(golds, answers))
        answer = rename(answer, constants | _short_derivatives(answers, golds))
    return _compare(gold, answer, rules)


def _short_derivatives(names: Set[str], others: Set[str]) -> dict[str, str]:
    """Map `dx/dt` to `x'` where the other tree writes `x'`."""
    short = {name: name.partition(",")[0] + "]" for name in names if name.startswith("D") and "," in name}
    return {name: shorter for name, shorter in short.items() if shorter in others}


def align_bound_letter(gold: Tree, answer: Tree, bound: Set[str]) -> Tree:
    """Return the answer with the one letter that the gold lacks named as the one that the answer lacks.

    Only where one of the two is bound, or both are letters of integers beside pi: `n \\pi` for `k \\pi`.

    Args:
        gold: what the gold says.
        answer: what the answer says.
        bound: the letters that either declares.
    """
    golds, answers = symbols_of(gold), symbols_of(answer)
    ours, theirs = golds - answers, answers - golds
    if len(ours) != 1 or len(theirs) != 1:
        return answer
    letters = ours | theirs
    is_periodic = letters <= _INTEGER_LETTERS and all(Constant("pi") in walk(tree) for tree in (gold, answer))
    return rename(answer, {theirs.pop(): ours.pop()}) if is_periodic or letters & bound else answer


def _align_argument(gold: Relation, answer: Relation) -> Relation:
    """Return the answer with the argument of its function named as in the gold: `f(x) = x^2` for `f(n) = n^2`."""
    one, other = gold.sides[0], answer.sides[0]
    if not (isinstance(one, Call) and isinstance(other, Call) and one.function == other.function):
        return answer
    mapping = {
        theirs.name: ours.name
        for ours, theirs in zip(one.arguments, other.arguments, strict=False)
        if isinstance(ours, Symbol) and isinstance(theirs, Symbol) and ours != theirs
    }
    return answer if set(mapping.values()) & symbols_of(answer) else rename(answer, mapping)


# Structures.


def _compare(gold: Tree, answer: Tree, rules: Rules) -> bool | None:
    if isinstance(gold, Relation):
        return _compare_with_relation(gold, answer, rules)
    if isinstance(answer, Relation):
        stated = _stated_value(answer, rules)
        if stated is not None:
            return _compare(gold, stated, rules)
    if isinstance(answer, Unordered) and len(answer.items) == 1 and not isinstance(gold, (Unordered, Union)):
        return _compare(gold, answer.items[0], rules)
    verdict = _COMPARISONS.get(type(gold), _compare_single)(gold, answer, rules)
    return _compare_real_sets(gold, answer) if verdict is False else verdict


def _compare_all(gold: Sequence[Tree], answer: Sequence[Tree], rules: Rules) -> bool | None:
    """Compare item by item, in order."""
    if len(gold) != len(answer):
        return False
    is_undecided = False
    for one, other in zip(gold, answer, strict=True):
        verdict = _compare(one, other, rules)
        if verdict is False:
            return False
        is_undecided |= verdict is None
    return None if is_undecided else True


def _match_all(gold: Sequence[Tree], answer: Sequence[Tree], rules: Rules) -> bool:
    """Pair each item of the gold with another one of the answer, whatever their order."""
    left = list(answer)
    for one in gold:
        index = next((i for i, other in enumerate(left) if _compare(one, other, rules)), None)
        if index is None:
            return False
        del left[index]
    return not left


def _compare_real_sets(gold: Tree, answer: Tree) -> bool:
    if isinstance(gold, Ordered) and isinstance(answer, (Ordered, Unordered)):
        return False  # (2, 4) and (4, 2) as points, which only a condition on x turns into intervals
    names = symbols_of(gold), symbols_of(answer)
    if all(names) and names[0] != names[1]:
        return False  # x = 5 is not y = 5
    return are_same_real_sets(gold, answer)


def _compare_single(gold: Any, answer: Tree, rules: Rules) -> bool | None:
    if isinstance(answer, BaseNumeral) and _has_valid_digits(answer):
        answer = Number(Fraction(int(answer.digits, answer.base)))
    if isinstance(answer, ClockTime) and answer.half is None and answer.minute > 0:
        answer = Number(Fraction(answer.hour, answer.minute))
    if not isinstance(answer, (Quantity, Expression)):
        return False
    one, other = (side if isinstance(side, Quantity) else Quantity(side, {}) for side in (gold, answer))
    return are_equal_quantities(one, other, rules)


def _compare_numeral(gold: BaseNumeral, answer: Tree, rules: Rules) -> bool:
    """The base may be left out, as a unit may; two bases that are both stated compare by value."""
    if isinstance(answer, Number):
        return answer.places is None and answer.value == int(gold.digits)
    if not isinstance(answer, BaseNumeral):
        return False
    if gold.base == answer.base or not (_has_valid_digits(gold) and _has_valid_digits(answer)):
        return gold == answer
    return int(gold.digits, gold.base) == int(answer.digits, answer.base)


def _has_valid_digits(numeral: BaseNumeral) -> bool:
    return 2 <= numeral.base <= 36 and all(int(digit) < numeral.base for digit in numeral.digits)


def _compare_time(gold: ClockTime, answer: Tree, rules: Rules) -> bool | None:
    """The half of the day may be left out; two numbers and a colon may be a ratio, which a fraction can be equal to."""
    if isinstance(answer, ClockTime):
        same = (gold.hour, gold.minute) == (answer.hour, answer.minute)
        return same and (None in (gold.half, answer.half) or gold.half == answer.half)
    if gold.half is not None or gold.minute == 0:
        return False
    return _compare_single(Number(Fraction(gold.hour, gold.minute)), answer, rules)


def _compare_text(gold: Text, answer: Tree, rules: Rules) -> bool:
    return gold == answer


def _compare_listing(gold: Listing, answer: Tree, rules: Rules) -> bool | None:
    if isinstance(answer, (Listing, Unordered)):
        return _match_all(gold.items, answer.items, rules)
    if isinstance(answer, Ordered):
        return _compare_all(gold.items, answer.items, rules)
    if isinstance(answer, Interval) and answer.low_closed and answer.high_closed:
        return _match_all(gold.items, [answer.low, answer.high], rules)  # [1, 2] as a list of two answers
    return False


def _compare_ordered(gold: Ordered, answer: Tree, rules: Rules) -> bool | None:
    if isinstance(answer, (Ordered, Listing)):
        return _compare_all(gold.items, answer.items, rules)
    if isinstance(answer, Call) and len(answer.arguments) > 1:  # a point with its name: A(1, 2)
        return _compare_all(gold.items, answer.arguments, rules)
    if isinstance(answer, Matrix) and 1 in (len(answer.rows), len(answer.rows[0])):
        return _compare_all(gold.items, sum(answer.rows, []), rules)
    return False


def _compare_set(gold: Unordered, answer: Tree, rules: Rules) -> bool:
    if isinstance(answer, (Listing, Unordered)):
        return _match_all(gold.items, answer.items, rules)
    return len(gold.items) == 1 and isinstance(answer, Expression) and bool(_compare(gold.items[0], answer, rules))


def _compare_interval(gold: Interval, answer: Tree, rules: Rules) -> bool | None:
    """Compare interval with interval by their ends, which may hold symbols; anything else as sets of reals."""
    if isinstance(answer, Ordered) and len(answer.items) == 2:
        ends, closed = answer.items, (False, False)
    elif isinstance(answer, Interval):
        ends, closed = [answer.low, answer.high], (answer.low_closed, answer.high_closed)
    else:
        return False
    return closed == (gold.low_closed, gold.high_closed) and _compare_all([gold.low, gold.high], ends, rules)


def _compare_union(gold: Union, answer: Tree, rules: Rules) -> bool:
    return isinstance(answer, Union) and _match_all(gold.parts, answer.parts, rules)


def _compare_matrix(gold: Matrix, answer: Tree, rules: Rules) -> bool | None:
    if isinstance(answer, Matrix):
        if [len(row) for row in gold.rows] != [len(row) for row in answer.rows]:
            return False
        cells = sum(answer.rows, [])
    elif isinstance(answer, Ordered) and 1 in (len(gold.rows), len(gold.rows[0])):
        cells = answer.items
    else:
        return False
    return _compare_all(sum(gold.rows, []), cells, rules)


_COMPARISONS: dict[type, Callable[[Any, Tree, Rules], bool | None]] = {
    BaseNumeral: _compare_numeral,
    ClockTime: _compare_time,
    Text: _compare_text,
    Listing: _compare_listing,
    Ordered: _compare_ordered,
    Unordered: _compare_set,
    Interval: _compare_interval,
    Union: _compare_union,
    Matrix: _compare_matrix,
}

# Equations and inequalities.


def _compare_with_relation(gold: Relation, answer: Tree, rules: Rules) -> bool | None:
    if isinstance(answer, Relation):
        answer = _align_argument(gold, answer)
        if _compare_sides(gold, answer, rules) or _are_equivalent_conditions(gold, answer):
            return True
    elif _is_name(gold.sides[0]) and set(gold.operators) <= {"=", "in"} and _compare(gold.sides[-1], answer, rules):
        return True
    return _compare_real_sets(gold, answer)


def _compare_sides(gold: Relation, answer: Relation, rules: Rules) -> bool | None:
    """Compare side by side; of two equations only what they begin and end with, the rest being the way there."""
    if {*gold.operators, *answer.operators} == {"="} and _stated_value(answer, rules) is not None:
        return _compare_all([gold.sides[0], gold.sides[-1]], [answer.sides[0], answer.sides[-1]], rules)
    return gold.operators == answer.operators and _compare_all(gold.sides, answer.sides, rules)


def _is_name(side: Tree) -> bool:
    """Whether a side of an equation names what the other side says: `x`, `f(x)`, `Area`."""
    return isinstance(side, (Symbol, Text)) or isinstance(side, Call) and side.function.startswith("apply ")


def _stated_value(relation: Relation, rules: Rules) -> Tree | None:
    """Return what an equation says a value is: its last side, or the one before an approximation; None for conditions.

    A side without symbols that differs from it, as in `1 = 2 = 5`, makes the equation say nothing.
    """
    sides, operators = relation.sides, relation.operators
    if "~" in operators:
        cut = operators.index("~") + 1
        cut += _is_name(sides[0]) and cut == 1
        sides, operators = sides[:cut], operators[: cut - 1]
    if not set(operators) <= {"=", "in", "~"}:
        return None
    last = sides[-1]
    is_contradicted = isinstance(last, Expression) and any(
        isinstance(side, Expression) and not symbols_of(side) and not are_equal_values(last, side, rules)
        for side in sides[:-1]
    )
    return None if is_contradicted else last


def _are_equivalent_conditions(gold: Relation, answer: Relation) -> bool:
    """Whether two equations or inequalities of two sides say the same: their differences are proportional."""
    if len(gold.sides) != 2 or len(answer.sides) != 2:
        return False
    one, other = _difference(gold), _difference(answer)
    operator = gold.operators[0]
    if one is None or other is None or operator not in FLIPPED:
        return False
    if operator == answer.operators[0]:
        return are_proportional(one, other, positive=operator not in ("=", "!="))
    return FLIPPED[operator] == answer.operators[0] and are_proportional(one, negative(other), positive=True)


def _difference(relation: Relation) -> Expression | None:
    left, right = relation.sides
    if isinstance(left, Expression) and isinstance(right, Expression):
        return Sum([left, negative(right)])
    return None
