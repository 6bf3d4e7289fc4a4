"""Whether an answer says the same as the gold: structures are taken apart until single values are left.

Not symmetric. The answer may add a name (`x = 5` for `5`), a unit or braces, and leave out a name, a unit or the
parentheses of a list. It may not reverse an order that the gold gives, nor open an interval that the gold closes.
"""

from __future__ import annotations

from collections.abc import Sequence, Set

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
    verdict = _compare_structures(gold, answer, rules)
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


def _compare_structures(gold: Tree, answer: Tree, rules: Rules) -> bool | None:
    match gold, answer:
        case Text(), _:
            return gold == answer
        case BaseNumeral(), Number():  # the base may be left out, as a unit may
            return answer.places is None and answer.value == int(gold.digits)
        case BaseNumeral(), BaseNumeral():
            one, other = gold.number(), answer.number()
            return gold == answer if gold.base == answer.base or None in (one, other) else one == other
        case ClockTime(), ClockTime():  # the half of the day may be left out
            same = (gold.hour, gold.minute) == (answer.hour, answer.minute)
            return same and (None in (gold.half, answer.half) or gold.half == answer.half)
        case ClockTime(), _:
            ratio = gold.ratio()
            return ratio is not None and _compare_single(ratio, answer, rules)
        case (
            (Listing(golds) | Unordered(golds), Listing(answers) | Unordered(answers))
            | (Union(golds), Union(answers))
        ):  # fmt: skip
            return _match_all(golds, answers, rules)
        case Listing(golds), Interval(low, high, True, True):  # [1, 2] as a list of two answers
            return _match_all(golds, [low, high], rules)
        case Unordered([item]), Expression():
            return bool(_compare(item, answer, rules))
        case Listing(golds) | Ordered(golds), Ordered(answers):
            return _compare_all(golds, answers, rules)
        case Ordered(golds), Listing(answers) | Call(_, [_, _, *_] as answers):  # a point may have a name: A(1, 2)
            return _compare_all(golds, answers, rules)
        case Ordered(golds), Matrix(rows) if 1 in (len(rows), len(rows[0])):
            return _compare_all(golds, _cells(rows), rules)
        case Matrix(rows), Ordered(answers) if 1 in (len(rows), len(rows[0])):
            return _compare_all(_cells(rows), answers, rules)
        case Matrix(rows), Matrix(others):
            same_shape = len(rows) == len(others) and len(rows[0]) == len(others[0])
            return same_shape and _compare_all(_cells(rows), _cells(others), rules)
        case Interval(low, high, low_closed, high_closed), Interval(start, end):  # the ends may hold symbols
            same_kind = (low_closed, high_closed) == (answer.low_closed, answer.high_closed)
            return same_kind and _compare_all([low, high], [start, end], rules)
        case Interval(low, high, False, False), Ordered([_, _] as ends):
            return _compare_all([low, high], ends, rules)
        case Expression() | Quantity(), _:
            return _compare_single(gold, answer, rules)
        case _:
            return False


def _cells(rows: Sequence[Sequence[Expression]]) -> list[Expression]:
    return [cell for row in rows for cell in row]


def _compare_single(gold: Quantity | Expression, answer: Tree, rules: Rules) -> bool | None:
    if isinstance(answer, BaseNumeral):
        answer = answer.number() or answer
    elif isinstance(answer, ClockTime):
        answer = answer.ratio() or answer
    if not isinstance(answer, (Quantity, Expression)):
        return False
    one, other = (side if isinstance(side, Quantity) else Quantity(side, {}) for side in (gold, answer))
    return are_equal_quantities(one, other, rules)


# Equations and inequalities.


def _compare_with_relation(gold: Relation, answer: Tree, rules: Rules) -> bool | None:
    if isinstance(answer, Relation):
        answer = _align_argument(gold, answer)
        if {*gold.operators, *answer.operators} == {"="} and _stated_value(answer, rules) is not None:
            # two equations by what they begin and end with, the rest being the way there
            same = _compare_all([gold.sides[0], gold.sides[-1]], [answer.sides[0], answer.sides[-1]], rules)
        else:
            same = gold.operators == answer.operators and _compare_all(gold.sides, answer.sides, rules)
        if same or _are_equivalent_conditions(gold, answer):
            return True
    elif _is_name(gold.sides[0]) and set(gold.operators) <= {"=", "in"} and _compare(gold.sides[-1], answer, rules):
        return True
    return _compare_real_sets(gold, answer)


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
