"""Whether an answer says the same as the gold: structures are taken apart until single values are left.

Not symmetric. The answer may add a name (`x = 5` for `5`), a unit or braces, and leave out a name, a unit or the
parentheses of a list. It may not reverse an order that the gold gives, nor open an interval that the gold closes.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from fractions import Fraction
from itertools import pairwise, product
from typing import NamedTuple

from ladle.grading.equality import Rules, are_equal_quantities, are_equal_values, are_proportional
from ladle.grading.tree import (
    BaseNumeral,
    Call,
    ClockTime,
    Constant,
    Date,
    Expression,
    Interval,
    Listing,
    Matrix,
    Number,
    Ordered,
    Product,
    Quantity,
    Ratio,
    Relation,
    Sum,
    Symbol,
    Text,
    TooLarge,
    Tree,
    Union,
    Unordered,
    negative,
    quotient,
    substitute,
    symbols_of,
    walk,
)
from ladle.grading.values import (
    CONTEXT,
    INFINITY,
    Undefined,
    Value,
    as_float,
    evaluate,
    evaluate_constant,
    is_close,
    real_part,
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
            name: Symbol(other)
            for name in answers - golds
            if name[0] in "cC" and (other := name[0].swapcase() + name[1:]) in golds - answers
        }
        gold = substitute(gold, _short_derivatives(golds, answers))
        answer = substitute(answer, constants | _short_derivatives(answers, golds))
    return _compare(gold, answer, rules)


def _short_derivatives(names: Set[str], others: Set[str]) -> dict[str, Expression]:
    """Map `dx/dt` to `x'` where the other tree writes `x'`."""
    short = {name: name.partition(",")[0] + "]" for name in names if name.startswith("D") and "," in name}
    return {name: Symbol(shorter) for name, shorter in short.items() if shorter in others}


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
    return substitute(answer, {theirs.pop(): Symbol(ours.pop())}) if is_periodic or letters & bound else answer


def _align_argument(gold: Relation, answer: Relation) -> Relation:
    """Return the answer with the argument of its function named as in the gold: `f(x) = x^2` for `f(n) = n^2`."""
    one, other = gold.sides[0], answer.sides[0]
    if not (isinstance(one, Call) and isinstance(other, Call) and one.function == other.function):
        return answer
    mapping = {
        theirs.name: ours
        for ours, theirs in zip(one.arguments, other.arguments, strict=False)
        if isinstance(ours, Symbol) and isinstance(theirs, Symbol) and ours != theirs
    }
    is_taken = {ours.name for ours in mapping.values()} & symbols_of(answer)
    return answer if is_taken else substitute(answer, mapping)


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
    if isinstance(gold, (Ordered, Matrix)):
        answer = _as_vector(answer, gold) or answer
    elif isinstance(answer, (Ordered, Matrix)):
        gold = _as_vector(gold, answer) or gold
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


def _match_all(gold: Sequence[Tree], answer: Sequence[Tree], rules: Rules) -> bool | None:
    """Pair each item of the gold with another one of the answer, whatever their order."""
    left = list(answer)
    if len(gold) != len(left):
        return False
    for one in gold:
        verdicts: list[bool | None] = []
        while True not in verdicts and len(verdicts) < len(left):
            verdicts.append(_compare(one, left[len(verdicts)], rules))
        if True not in verdicts:
            return None if None in verdicts else False
        del left[verdicts.index(True)]
    return True


def _compare_real_sets(gold: Tree, answer: Tree) -> bool:
    if isinstance(gold, Ordered) and isinstance(answer, (Ordered, Unordered)):
        return False  # (2, 4) and (4, 2) as points, which only a condition on x turns into intervals
    if _has_residue(gold) or _has_residue(answer):
        return False
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
            is_unsaid = same and None in (gold.half, answer.half)
            return is_unsaid or gold.minute_of_day() == answer.minute_of_day() is not None
        case ClockTime(), Ratio([Number(first), Number(second)]):  # `9:10` may be both, but `18:20` is another time
            return gold.half is None and (gold.hour, gold.minute) == (first, second)
        case ClockTime(), _:
            ratio = gold.ratio()
            return ratio is not None and _compare_single(ratio, answer, rules)
        case Date(), Date():  # the year may be added
            same = (gold.month, gold.day) == (answer.month, answer.day)
            return same and gold.year in (None, answer.year)
        case Ratio([_, _]), Expression() | ClockTime():
            return _compare_single(quotient(*gold.parts), answer, rules)
        case Ratio(golds), Ratio(answers) if len(golds) == len(answers):
            scaled = [([one, answers[0]], [other, golds[0]]) for one, other in zip(golds, answers, strict=True)]
            return _compare_all([Product(one) for one, _ in scaled], [Product(other) for _, other in scaled], rules)
        case Expression(), Ratio([first, second]):
            return _compare_single(gold, quotient(first, second), rules)
        case Expression(), Listing([Number(whole, None), Product() as part], "and"):  # 3 and 2/5
            value = evaluate_constant(part)
            is_mixed = isinstance(value, Fraction) and 0 < value < 1 <= whole
            return is_mixed and _compare_single(gold, Sum([Number(whole), part]), rules)
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


_UNIT_VECTORS = [[f"{accent}{letter}" for accent in ("", "hat ", "vec ", "bar ")] for letter in "ijk"]


def _as_vector(tree: Tree, like: Ordered | Matrix) -> Ordered | None:
    """Return `4i - 3j + k`, or `x = 4, y = -3, z = 1`, as long as the other; None of anything else."""
    if isinstance(tree, Listing):
        sides = {
            name.name: value
            for item in tree.items
            if isinstance(item, Relation) and item.operators == ["="]
            for name, value in [item.sides]
            if isinstance(name, Symbol)
        }
        return Ordered([sides[name] for name in sorted(sides)]) if len(sides) == len(tree.items) else None
    size = len(like.items) if isinstance(like, Ordered) else len(_cells(like.rows))
    names = symbols_of(tree)
    if not isinstance(tree, Expression) or not names or not names <= {*sum(_UNIT_VECTORS[:size], [])}:
        return None
    parts = [
        substitute(tree, {name: Number(Fraction(along == at)) for at, own in enumerate(_UNIT_VECTORS) for name in own})
        for along in range(-1, size)
    ]
    return Ordered(parts[1:]) if evaluate_constant(parts[0]) == 0 else None


def _has_residue(tree: Tree) -> bool:
    return any(isinstance(node, Call) and node.function == "mod" for node in walk(tree))


def _cells(rows: Sequence[Sequence[Expression]]) -> list[Expression]:
    return [cell for row in rows for cell in row]


def _compare_single(gold: Quantity | Expression, answer: Tree, rules: Rules) -> bool | None:
    if isinstance(answer, BaseNumeral):
        answer = answer.number() or answer
    elif isinstance(answer, ClockTime):
        answer = answer.ratio() or answer
    if not isinstance(answer, (Quantity, Expression)):
        return False
    residues = [side for side in (gold, answer) if isinstance(side, Call) and side.function == "mod"]
    if len(residues) == 2 or residues and len(letters := symbols_of(gold) | symbols_of(answer)) == 1:
        return are_same_families(gold, answer, "".join(letters) if len(residues) == 1 else "")
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
    if isinstance(left, Expression) and isinstance(right, Expression) and not _has_residue(relation):
        return Sum([left, negative(right)])
    return None


# Sets of real numbers: intervals and inequalities, so that (-inf,2) u (3,inf) and "x<2 or x>3" are the same. A set is a
# choice of conditions that hold together. Two sets are the same if they agree at every end, between and beyond them.

FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}
"""Each comparison, read from right to left."""
_MEMBER = Symbol("x")


class _Comparison(NamedTuple):
    """A comparison of the members of a set, or of their absolute values, with a number."""

    operator: str
    end: Value
    is_absolute: bool

    def holds(self, member: Value) -> bool:
        """Whether the number compares so."""
        member = abs(member) if self.is_absolute else member
        is_end = member == self.end or CONTEXT.isfinite(self.end) and is_close(member, self.end)
        is_below, is_above = not is_end and member < self.end, not is_end and member > self.end
        return {"=": is_end, "!=": not is_end, "<": is_below, ">": is_above}.get(
            self.operator, is_end or (is_below if self.operator == "<=" else is_above)
        )


class _NotASet(Exception):
    """The tree describes no set of real numbers."""


def are_same_real_sets(gold: Tree, answer: Tree) -> bool:
    """Whether both trees describe sets of real numbers, and the same."""
    try:
        sets = [_choices(gold), _choices(answer)]
    except _NotASet:
        return False
    ends = {one.end for choices in sets for conditions in choices for one in conditions if CONTEXT.isfinite(one.end)}
    points = sorted(ends | {-end for end in ends} | {CONTEXT.mpf(0)})
    points += [(low + high) / 2 for low, high in pairwise(points)] + [points[0] - 1, points[-1] + 1]
    has = [
        [any(all(one.holds(point) for one in conditions) for conditions in choices) for point in points]
        for choices in sets
    ]
    return has[0] == has[1]


def _choices(tree: Tree) -> list[list[_Comparison]]:
    """Return the conditions of a set: any choice of them holds for its members, each with all its comparisons."""
    match tree:
        case Interval(low, high, low_closed, high_closed):
            return [_between(low, "<=" if low_closed else "<", high, "<=" if high_closed else "<")]
        case Ordered([low, high]):
            return [_between(low, "<", high, "<")]
        case Union():
            return [conditions for part in tree.parts for conditions in _choices(part)]
        case Unordered():
            return [[_compare_member(_MEMBER, "=", item)] for item in tree.items]
        case Relation(_, ["in"]):
            return _choices(tree.sides[1])
        case Relation():  # a chain such as `-2 <= x < 7`, whose comparisons are of one symbol with constants
            if len({symbol.name for side in tree.sides if (symbol := _bounded_symbol(side)) is not None}) != 1:
                raise _NotASet
            pairs = zip(pairwise(tree.sides), tree.operators, strict=False)
            return [[_compare_member(left, operator, right) for (left, right), operator in pairs]]
        case Listing() if all(isinstance(item, Relation) for item in tree.items) and len(symbols_of(tree)) == 1:
            sets = [_choices(item) for item in tree.items]
            if tree.joined_by != "and":
                return sum(sets, [])
            return [sum(chosen, []) for chosen in product(*sets)]
        case _:
            raise _NotASet


def _between(low: Tree, above: str, high: Tree, below: str) -> list[_Comparison]:
    conditions = [_compare_member(low, above, _MEMBER), _compare_member(_MEMBER, below, high)]
    if conditions[0].end > conditions[1].end:
        raise _NotASet
    return conditions


def _compare_member(left: Tree, operator: str, right: Tree) -> _Comparison:
    if _bounded_symbol(right) is not None:
        left, operator, right = right, FLIPPED.get(operator, ""), left
    if operator not in FLIPPED or _bounded_symbol(left) is None:
        raise _NotASet
    return _Comparison(operator, _end(right), is_absolute=isinstance(left, Call))


def _end(tree: Tree) -> Value:
    value = tree.value if isinstance(tree, Quantity) else tree
    if not isinstance(value, Expression) or symbols_of(value):
        raise _NotASet
    if value in (Constant("infinity"), negative(Constant("infinity"))):
        return INFINITY if isinstance(value, Constant) else -INFINITY
    found = evaluate_constant(value)
    real = None if found is None else real_part(found)
    if real is None:
        raise _NotASet
    return as_float(real)


def _bounded_symbol(side: Tree) -> Symbol | None:
    """Return the symbol that a side is, or is the absolute value of."""
    if isinstance(side, Call) and side.function == "abs":
        side = side.arguments[0]
    return side if isinstance(side, Symbol) else None


# General solutions: start + n step for every integer n, whatever the letter, and whichever of its members the start is.
# They are compared as sets: pi/4 + n pi is 5pi/4 + k pi, and two families of period 2 pi may be one of period pi.

_MEMBERS_COMPARED = range(-60, 61)


class Family(NamedTuple):
    """The numbers `start + n * step` for all integers n."""

    start: Value
    step: Value

    def has(self, value: Value) -> bool:
        """Whether the number is in the family."""
        count = (value - self.start) / self.step
        return bool(abs(count - CONTEXT.nint(count)) < CONTEXT.mpf("1e-25"))


def are_same_families(gold: Tree, answer: Tree, letter: str) -> bool:
    """Whether both trees are general solutions in this letter, or residues of a modulus, and hold the same numbers."""
    golds, answers = _families_of(gold, letter), _families_of(answer, letter)
    if not golds or not answers:
        return False
    return all(
        any(other.has(one.start + n * one.step) for other in others)
        for some, others in ((golds, answers), (answers, golds))
        for one in some
        for n in _MEMBERS_COMPARED
    )


def _families_of(tree: Tree, letter: str) -> list[Family] | None:
    if isinstance(tree, Relation):
        return _families_of(tree.sides[-1], letter) if set(tree.operators) <= {"=", "in"} else None
    if isinstance(tree, (Listing, Unordered)):
        found = [_families_of(item, letter) for item in tree.items]
        return None if None in found else [family for item in found if item for family in item]
    if isinstance(tree, Call) and tree.function == "mod":  # 4 mod 9 is every 4 + 9n
        tree, letter = Sum([tree.arguments[0], Product([tree.arguments[1], _MEMBER])]), _MEMBER.name
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
