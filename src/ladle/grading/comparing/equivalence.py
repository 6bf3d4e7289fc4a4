"""Whether an answer says the same as the gold: structures are taken apart until single values are left.

Not symmetric. The answer may add a name (`x = 5` for `5`), a unit or braces, and leave out a name, a unit or the
parentheses of a list. It may not turn round an order that the gold gives, nor open an interval that the gold closes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from ladle.grading.comparing.domains import are_same_real_sets, as_real_set
from ladle.grading.comparing.equations import are_equivalent_conditions, is_name, stated_value
from ladle.grading.comparing.renaming import align_argument, align_names, all_symbols
from ladle.grading.comparing.scalars import Rules, are_equal_quantities
from ladle.grading.reading.tree import (
    EXPRESSIONS,
    BaseNumeral,
    Call,
    ClockTime,
    Expression,
    Interval,
    Listing,
    Matrix,
    Number,
    Ordered,
    Quantity,
    Relation,
    Text,
    Tree,
    Union,
    Unordered,
)


def are_equivalent(gold: Tree, answer: Tree, rules: Rules) -> bool | None:
    """Whether the answer is the gold; None where that cannot be decided.

    Raises:
        TooLarge: values are too large to compare.
    """
    return _compare(*align_names(gold, answer), rules)


def _compare(gold: Tree, answer: Tree, rules: Rules) -> bool | None:
    if isinstance(gold, Relation):
        return _compare_with_relation(gold, answer, rules)
    if isinstance(answer, Relation):
        stated = stated_value(answer, rules)
        if stated is not None:
            return _compare(gold, stated, rules)
    if isinstance(answer, Unordered) and len(answer.items) == 1 and not isinstance(gold, (Unordered, Union)):
        return _compare(gold, answer.items[0], rules)
    compare = _COMPARISONS.get(type(gold), _compare_single)
    verdict = compare(gold, answer, rules)
    return _compare_real_sets(gold, answer) if verdict is False else verdict


def _compare_all(gold: Sequence[Tree], answer: Sequence[Tree], rules: Rules) -> bool | None:
    """Compare item by item, in order."""
    if len(gold) != len(answer):
        return False
    undecided = False
    for one, other in zip(gold, answer, strict=True):
        verdict = _compare(one, other, rules)
        if verdict is False:
            return False
        undecided |= verdict is None
    return None if undecided else True


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
    names = all_symbols(gold), all_symbols(answer)
    if all(names) and names[0] != names[1]:
        return False  # x = 5 is not y = 5
    left = as_real_set(gold)
    right = as_real_set(answer) if left is not None else None
    return left is not None and right is not None and are_same_real_sets(left, right)


def _compare_single(gold: Any, answer: Tree, rules: Rules) -> bool | None:
    if isinstance(answer, BaseNumeral) and _has_valid_digits(answer):
        answer = Number(Fraction(int(answer.digits, answer.base)))
    if isinstance(answer, ClockTime) and answer.half is None and answer.minute > 0:
        answer = _as_ratio(answer)
    if isinstance(answer, (Quantity, *EXPRESSIONS)):
        return are_equal_quantities(_as_quantity(gold), _as_quantity(answer), rules)
    return False


def _as_quantity(value: Quantity | Expression) -> Quantity:
    return value if isinstance(value, Quantity) else Quantity(value, {})


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
    return gold.half is None and gold.minute > 0 and _compare_single(_as_ratio(gold), answer, rules)


def _as_ratio(time: ClockTime) -> Number:
    return Number(Fraction(time.hour, time.minute))


def _compare_text(gold: Text, answer: Tree, rules: Rules) -> bool:
    return isinstance(answer, Text) and answer.words == gold.words


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
        return _compare_all(gold.items, [cell for row in answer.rows for cell in row], rules)
    return False


def _compare_set(gold: Unordered, answer: Tree, rules: Rules) -> bool:
    if isinstance(answer, (Listing, Unordered)):
        return _match_all(gold.items, answer.items, rules)
    return len(gold.items) == 1 and isinstance(answer, EXPRESSIONS) and bool(_compare(gold.items[0], answer, rules))


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
        same_shape = [len(row) for row in gold.rows] == [len(row) for row in answer.rows]
        return same_shape and _compare_all(_cells(gold), _cells(answer), rules)
    if isinstance(answer, Ordered) and 1 in (len(gold.rows), len(gold.rows[0])):
        return _compare_all(_cells(gold), answer.items, rules)
    return False


def _cells(matrix: Matrix) -> list[Tree]:
    return [cell for row in matrix.rows for cell in row]


def _compare_with_relation(gold: Relation, answer: Tree, rules: Rules) -> bool | None:
    if not isinstance(answer, Relation):
        named = is_name(gold.sides[0]) and set(gold.operators) <= {"=", "in"}
        if named and _compare(gold.sides[-1], answer, rules):
            return True
        return _compare_real_sets(gold, answer)
    answer = align_argument(gold, answer)
    if _compare_sides(gold, answer, rules) or are_equivalent_conditions(gold, answer):
        return True
    return _compare_real_sets(gold, answer)


def _compare_sides(gold: Relation, answer: Relation, rules: Rules) -> bool | None:
    """Compare side by side; of two equations only what they begin and end with, the rest being the way there."""
    if {*gold.operators, *answer.operators} == {"="} and stated_value(answer, rules) is not None:
        ends = [[relation.sides[0], relation.sides[-1]] for relation in (gold, answer)]
        return _compare_all(ends[0], ends[1], rules)
    return gold.operators == answer.operators and _compare_all(gold.sides, answer.sides, rules)


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
