"""Whether an answer says the same as the gold: structures are taken apart until single values are left.

Not symmetric. The answer may add a name (`x = 5` for `5`), a unit or braces, and leave out a name, a unit or the
parentheses of a list. It may not reverse an order that the gold gives, nor open an interval that the gold closes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set
from fractions import Fraction
from itertools import pairwise

from ladle.grading import nodes, values

# Names that may differ without a difference.

_PI = nodes.Constant("pi")
_INTEGER_LETTERS = frozenset("nkmlj")  # where they multiply pi they are every integer, said or unsaid


def are_equivalent(gold: nodes.Tree, answer: nodes.Tree, rules: values.Rules) -> bool | None:
    """Whether the answer is the gold; None where that cannot be decided.

    Constants of integration (`C`, `c`) may have either name, and a derivative may leave its variable unsaid (`x'`).

    Raises:
        TooLarge: values are too large to compare.
    """
    golds, answers = nodes.symbols_of(gold), nodes.symbols_of(answer)
    if golds != answers:
        swapped = {name: name[0].swapcase() + name[1:] for name in answers - golds if name[0] in "cC"}
        constants = {name: nodes.Symbol(other) for name, other in swapped.items() if other in golds - answers}
        gold = nodes.substitute(gold, _short_derivatives(golds, answers))
        answer = nodes.substitute(answer, constants | _short_derivatives(answers, golds))
    return _compare(gold, answer, rules)


def _short_derivatives(names: Set[str], others: Set[str]) -> dict[str, nodes.Expression]:
    """Map `dx/dt` to `x'` where the other tree writes `x'`."""
    short = {name: name.partition(",")[0] + "]" for name in names if name.startswith("D") and "," in name}
    return {name: nodes.Symbol(shorter) for name, shorter in short.items() if shorter in others}


def align_bound_letter(gold: nodes.Tree, answer: nodes.Tree, bound: Set[str]) -> nodes.Tree:
    """Return the answer with the one letter that the gold lacks named as the one that the answer lacks.

    Only where one of the two is bound, or both are letters of integers beside pi: `n \\pi` for `k \\pi`.

    Args:
        gold: what the gold says.
        answer: what the answer says.
        bound: the letters that either declares.
    """
    golds, answers = nodes.symbols_of(gold), nodes.symbols_of(answer)
    letters = golds ^ answers
    if len(letters) != 2 or len(letters & golds) != 1:
        return answer
    is_periodic = letters <= _INTEGER_LETTERS and all(_PI in nodes.walk(tree) for tree in (gold, answer))
    if not is_periodic and not letters & bound:
        return answer
    return nodes.substitute(answer, {(letters & answers).pop(): nodes.Symbol((letters & golds).pop())})


def _align_argument(gold: nodes.Relation, answer: nodes.Relation) -> nodes.Relation:
    """Return the answer with the argument of its function named as in the gold: `f(x) = x^2` for `f(n) = n^2`."""
    one, other = gold.sides[0], answer.sides[0]
    if not (isinstance(one, nodes.Call) and isinstance(other, nodes.Call) and one.function == other.function):
        return answer
    mapping = {
        theirs.name: ours
        for ours, theirs in zip(one.arguments, other.arguments, strict=False)
        if isinstance(ours, nodes.Symbol) and isinstance(theirs, nodes.Symbol) and ours != theirs
    }
    is_taken = {ours.name for ours in mapping.values()} & nodes.symbols_of(answer)
    return answer if is_taken else nodes.substitute(answer, mapping)


# Structures.


def _compare(gold: nodes.Tree, answer: nodes.Tree, rules: values.Rules) -> bool | None:
    if isinstance(gold, nodes.Relation):
        return _compare_with_relation(gold, answer, rules)
    if isinstance(answer, nodes.Relation):
        stated = _stated_value(answer, rules)
        if stated is not None:
            return _compare(gold, stated, rules)
    has_own_items = isinstance(gold, (nodes.Unordered, nodes.Union))
    if isinstance(answer, nodes.Unordered) and len(answer.items) == 1 and not has_own_items:
        return _compare(gold, answer.items[0], rules)
    if isinstance(gold, (nodes.Ordered, nodes.Matrix)):
        answer = _as_vector(answer, gold) or answer
    elif isinstance(answer, (nodes.Ordered, nodes.Matrix)):
        gold = _as_vector(gold, answer) or gold
    verdict = _compare_structures(gold, answer, rules)
    return _are_same_real_sets(gold, answer) if verdict is False else verdict


def _compare_all(gold: Sequence[nodes.Tree], answer: Sequence[nodes.Tree], rules: values.Rules) -> bool | None:
    """Compare item by item, in order."""
    if len(gold) != len(answer):
        return False
    result: bool | None = True
    for one, other in zip(gold, answer, strict=True):
        if (verdict := _compare(one, other, rules)) is False:
            return False
        result = result and verdict
    return result


def _match_all(gold: Sequence[nodes.Tree], answer: Sequence[nodes.Tree], rules: values.Rules) -> bool | None:
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


def _compare_structures(gold: nodes.Tree, answer: nodes.Tree, rules: values.Rules) -> bool | None:
    match gold, answer:
        case nodes.Text(), _:
            return gold == answer
        case nodes.BaseNumeral(), nodes.Number():  # the base may be left out, as a unit may
            return answer.places is None and answer.value == int(gold.digits)
        case nodes.BaseNumeral(), nodes.BaseNumeral():
            one, other = gold.number(), answer.number()
            return gold == answer if gold.base == answer.base or None in (one, other) else one == other
        case nodes.ClockTime(), nodes.ClockTime():  # the half of the day may be left out
            same = (gold.hour, gold.minute) == (answer.hour, answer.minute)
            is_unsaid = same and None in (gold.half, answer.half)
            return is_unsaid or gold.minute_of_day() == answer.minute_of_day() is not None
        case nodes.ClockTime(hour, minute, None), nodes.Ratio([nodes.Number(first), nodes.Number(second)]):
            return (hour, minute) == (first, second)  # `9:10` may be both, but `18:20` is another time
        case nodes.ClockTime(), _:
            ratio = gold.ratio()
            return ratio is not None and _compare_single(ratio, answer, rules)
        case nodes.Date(), nodes.Date():  # the year may be added
            same = (gold.month, gold.day) == (answer.month, answer.day)
            return same and gold.year in (None, answer.year)
        case nodes.Ratio([_, _]), nodes.Expression() | nodes.ClockTime():
            return _compare_single(nodes.quotient(*gold.parts), answer, rules)
        case nodes.Ratio(golds), nodes.Ratio(answers):
            scaled = [nodes.Product([one, answers[0]]) for one in golds]
            return _compare_all(scaled, [nodes.Product([other, golds[0]]) for other in answers], rules)
        case nodes.Expression(), nodes.Ratio([first, second]):
            return _compare_single(gold, nodes.quotient(first, second), rules)
        case nodes.Expression(), nodes.Listing([nodes.Number(whole, None), nodes.Product() as part], "and"):
            value = values.evaluate_constant(part)
            is_mixed = isinstance(value, Fraction) and 0 < value < 1 <= whole  # 3 and 2/5
            return is_mixed and _compare_single(gold, nodes.Sum([nodes.Number(whole), part]), rules)
        case (
            (nodes.Listing(golds) | nodes.Unordered(golds), nodes.Listing(answers) | nodes.Unordered(answers))
            | (nodes.Union(golds), nodes.Union(answers))
        ):  # fmt: skip
            return _match_all(golds, answers, rules)
        case nodes.Listing(golds), nodes.Interval(low, high, True, True):  # [1, 2] as a list of two answers
            return _match_all(golds, [low, high], rules)
        case nodes.Unordered([item]), nodes.Expression():
            return bool(_compare(item, answer, rules))
        case nodes.Listing(golds) | nodes.Ordered(golds), nodes.Ordered(answers):
            return _compare_all(golds, answers, rules)
        case nodes.Ordered(golds), nodes.Listing(answers) | nodes.Call(_, [_, _, *_] as answers):
            return _compare_all(golds, answers, rules)  # a point may have a name: A(1, 2)
        case nodes.Ordered(golds), nodes.Matrix(rows) if 1 in (len(rows), len(rows[0])):
            return _compare_all(golds, sum(rows, []), rules)
        case nodes.Matrix(rows), nodes.Ordered(answers) if 1 in (len(rows), len(rows[0])):
            return _compare_all(sum(rows, []), answers, rules)
        case nodes.Matrix(rows), nodes.Matrix(others):
            same_shape = len(rows) == len(others) and len(rows[0]) == len(others[0])
            return same_shape and _compare_all(sum(rows, []), sum(others, []), rules)
        case nodes.Interval(), nodes.Interval(low, high, low_closed, high_closed):  # the ends may hold symbols
            same_kind = (gold.low_closed, gold.high_closed) == (low_closed, high_closed)
            return same_kind and _compare_all([gold.low, gold.high], [low, high], rules)
        case nodes.Expression() | nodes.Quantity(), _:
            return _compare_single(gold, answer, rules)
        case _:
            return False


_UNIT_VECTORS = [[f"{accent}{letter}" for accent in ("", "hat ", "vec ", "bar ")] for letter in "ijk"]


def _as_vector(tree: nodes.Tree, like: nodes.Ordered | nodes.Matrix) -> nodes.Ordered | None:
    """Return `4i - 3j + k`, or `x = 4, y = -3, z = 1`, as long as the other; None of anything else."""
    if isinstance(tree, nodes.Listing):
        sides = {
            name.name: value
            for item in tree.items
            if isinstance(item, nodes.Relation) and item.operators == ["="]
            for name, value in [item.sides]
            if isinstance(name, nodes.Symbol)
        }
        return nodes.Ordered([sides[name] for name in sorted(sides)]) if len(sides) == len(tree.items) else None
    size = len(like.items) if isinstance(like, nodes.Ordered) else len(sum(like.rows, []))
    names = nodes.symbols_of(tree)
    if not isinstance(tree, nodes.Expression) or not names or not names <= {*sum(_UNIT_VECTORS[:size], [])}:
        return None
    rest, *parts = (nodes.substitute(tree, _unit_vector(along)) for along in range(-1, size))
    return nodes.Ordered(parts) if values.evaluate_constant(rest) == 0 else None


def _unit_vector(along: int) -> dict[str, nodes.Expression]:
    return {name: nodes.Number(Fraction(along == at)) for at, names in enumerate(_UNIT_VECTORS) for name in names}


def _has_residue(*trees: nodes.Tree) -> bool:
    return any(isinstance(node, nodes.Call) and node.function == "mod" for tree in trees for node in nodes.walk(tree))


def _compare_single(gold: nodes.Quantity | nodes.Expression, answer: nodes.Tree, rules: values.Rules) -> bool | None:
    if isinstance(answer, nodes.BaseNumeral):
        answer = answer.number() or answer
    elif isinstance(answer, nodes.ClockTime):
        answer = answer.ratio() or answer
    if not isinstance(answer, (nodes.Quantity, nodes.Expression)):
        return False
    residues = [side for side in (gold, answer) if isinstance(side, nodes.Call) and side.function == "mod"]
    if len(residues) == 2 or residues and len(letters := nodes.symbols_of(gold) | nodes.symbols_of(answer)) == 1:
        return are_same_families(gold, answer, "".join(letters) if len(residues) == 1 else "")
    one, other = (side if isinstance(side, nodes.Quantity) else nodes.Quantity(side, {}) for side in (gold, answer))
    return values.are_equal_quantities(one, other, rules)


# Equations and inequalities.


def _compare_with_relation(gold: nodes.Relation, answer: nodes.Tree, rules: values.Rules) -> bool | None:
    if isinstance(answer, nodes.Relation):
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
    return _are_same_real_sets(gold, answer)


def _is_name(side: nodes.Tree) -> bool:
    """Whether a side of an equation names what the other side says: `x`, `f(x)`, `Area`."""
    is_unknown = isinstance(side, nodes.Call) and side.function.startswith("apply ")
    return is_unknown or isinstance(side, (nodes.Symbol, nodes.Text))


def _stated_value(relation: nodes.Relation, rules: values.Rules) -> nodes.Tree | None:
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
    is_contradicted = isinstance(last, nodes.Expression) and any(
        isinstance(side, nodes.Expression)
        and not nodes.symbols_of(side)
        and not values.are_equal_values(last, side, rules)
        for side in sides[:-1]
    )
    return None if is_contradicted else last


def _are_equivalent_conditions(gold: nodes.Relation, answer: nodes.Relation) -> bool:
    """Whether two equations or inequalities of two values say the same: their differences are proportional."""
    match gold, answer:
        case (
            nodes.Relation([nodes.Expression() as gold_left, nodes.Expression() as gold_right], [operator]),
            nodes.Relation([nodes.Expression() as left, nodes.Expression() as right], [given]),
        ) if operator in FLIPPED and given in (operator, FLIPPED[operator]) and not _has_residue(gold, answer):
            left, right = (left, right) if given == operator else (right, left)
            one, other = nodes.difference(gold_left, gold_right), nodes.difference(left, right)
            return values.are_proportional(one, other, positive=operator not in ("=", "!="))
    return False


# Sets of real numbers: intervals and inequalities, so that (-inf,2) u (3,inf) and "x<2 or x>3" are the same. A set is a
# test of its members and the ends of its parts. Two sets are the same if they agree at every end, between and beyond.

FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}  # each comparison, read from right to left
_ORDERS = {"<": (-1,), "<=": (-1, 0), "=": (0,), ">=": (0, 1), ">": (1,), "!=": (-1, 1)}  # below, at or above the end
_MEMBER = nodes.Symbol("x")
_Test = Callable[[values.Value], bool]


class _NotASet(Exception):
    """The tree describes no set of real numbers."""


def _are_same_real_sets(gold: nodes.Tree, answer: nodes.Tree) -> bool:
    """Whether both trees describe sets of real numbers, and the same."""
    if isinstance(gold, nodes.Ordered) and isinstance(answer, (nodes.Ordered, nodes.Unordered)):
        return False  # (2, 4) and (4, 2) as points, which only a condition on x turns into intervals
    names = nodes.symbols_of(gold), nodes.symbols_of(answer)
    if all(names) and names[0] != names[1]:
        return False  # x = 5 is not y = 5
    ends = {values.CONTEXT.mpf(0)}
    try:
        tests = [_membership(gold, ends), _membership(answer, ends)]
    except _NotASet:
        return False
    points = sorted(ends | {-end for end in ends})
    points += [(low + high) / 2 for low, high in pairwise(points)] + [points[0] - 1, points[-1] + 1]
    return all(tests[0](point) == tests[1](point) for point in points)


def _membership(tree: nodes.Tree, ends: set[values.Value]) -> _Test:
    """Return the test of a set's members, and add its finite ends to the others."""
    combine: Callable[[Iterable[bool]], bool] = any
    match tree:
        case nodes.Ordered([low, high]):
            return _membership(nodes.Interval(low, high, False, False), ends)
        case nodes.Interval(low, high, low_closed, high_closed) if _end(low) <= _end(high):
            operators = ["<=" if closed else "<" for closed in (low_closed, high_closed)]
            return _membership(nodes.Relation([low, _MEMBER, high], operators), ends)
        case nodes.Relation([_, members], ["in"]):
            return _membership(members, ends)
        case nodes.Relation(sides, operators):  # a chain such as `-2 <= x < 7`, of one symbol with constants
            if len({symbol.name for side in sides if (symbol := _bounded_symbol(side)) is not None}) != 1:
                raise _NotASet
            pairs = zip(pairwise(sides), operators, strict=False)
            tests = [_compare_member(left, operator, right, ends) for (left, right), operator in pairs]
            combine = all
        case nodes.Union(parts):
            tests = [_membership(part, ends) for part in parts]
        case nodes.Unordered(items):
            tests = [_compare_member(_MEMBER, "=", item, ends) for item in items]
        case nodes.Listing(items, joined_by) if (
            all(isinstance(item, nodes.Relation) for item in items) and len(nodes.symbols_of(tree)) == 1
        ):
            tests = [_membership(item, ends) for item in items]
            combine = all if joined_by == "and" else any
        case _:
            raise _NotASet
    return lambda member: combine(test(member) for test in tests)


def _compare_member(left: nodes.Tree, operator: str, right: nodes.Tree, ends: set[values.Value]) -> _Test:
    """Return the comparison of a member, or of its absolute value, with a number."""
    if _bounded_symbol(right) is not None:
        left, operator, right = right, FLIPPED.get(operator, ""), left
    if operator not in FLIPPED or _bounded_symbol(left) is None:
        raise _NotASet
    end = _end(right)
    if values.CONTEXT.isfinite(end):
        ends.add(end)

    def holds(member: values.Value) -> bool:
        member = abs(member) if isinstance(left, nodes.Call) else member
        is_end = values.CONTEXT.isfinite(end) and values.is_close(member, end)
        return (0 if is_end else -1 if member < end else 1) in _ORDERS[operator]

    return holds


def _end(tree: nodes.Tree) -> values.Value:
    value = tree.value if isinstance(tree, nodes.Quantity) else tree
    if not isinstance(value, nodes.Expression) or nodes.symbols_of(value) or _has_residue(value):
        raise _NotASet
    if sign := values.infinity_sign(value):
        return sign * values.INFINITY
    found = values.evaluate_constant(value)
    real = None if found is None else values.real_part(found)
    if real is None:
        raise _NotASet
    return values.as_float(real)


def _bounded_symbol(side: nodes.Tree) -> nodes.Symbol | None:
    """Return the symbol that a side is, or is the absolute value of."""
    if isinstance(side, nodes.Call) and side.function == "abs":
        side = side.arguments[0]
    return side if isinstance(side, nodes.Symbol) else None


# General solutions: start + n step for every integer n, whatever the letter, and whichever of its members the start is.
# They are compared as sets: pi/4 + n pi is 5pi/4 + k pi, and two families of period 2 pi may be one of period pi.

_MEMBERS_COMPARED = range(-60, 61)
_Families = list[tuple[values.Value, values.Value]]  # their starts and steps


def are_same_families(gold: nodes.Tree, answer: nodes.Tree, letter: str) -> bool:
    """Whether both trees are general solutions in this letter, or residues of a modulus, and hold the same numbers."""
    golds, answers = _families_of(gold, letter), _families_of(answer, letter)
    return bool(golds and answers) and _hold(golds, answers) and _hold(answers, golds)


def _hold(families: _Families, others: _Families) -> bool:
    """Whether the families hold the members of the others."""
    members = (start + n * step for start, step in others for n in _MEMBERS_COMPARED)
    return all(any(_is_whole((member - start) / step) for start, step in families) for member in members)


def _is_whole(count: values.Value) -> bool:
    return bool(abs(count - values.CONTEXT.nint(count)) < values.CONTEXT.mpf("1e-25"))


def _families_of(tree: nodes.Tree, letter: str) -> _Families:
    """Return the families that a tree lists; none if anything in it is something else."""
    if isinstance(tree, nodes.Relation):
        return _families_of(tree.sides[-1], letter) if set(tree.operators) <= {"=", "in"} else []
    if isinstance(tree, (nodes.Listing, nodes.Unordered)):
        found = [_families_of(item, letter) for item in tree.items]
        return sum(found, []) if all(found) else []
    if isinstance(tree, nodes.Call) and tree.function == "mod":  # 4 mod 9 is every 4 + 9n
        tree, letter = nodes.Sum([tree.arguments[0], nodes.Product([tree.arguments[1], _MEMBER])]), _MEMBER.name
    if not isinstance(tree, nodes.Expression) or nodes.symbols_of(tree) != {letter}:
        return []
    try:
        reals = [values.real_part(values.evaluate(tree, {letter: Fraction(n)})) for n in (0, 1, 2, 7)]
    except (values.Undefined, nodes.TooLarge):
        return []
    if None in reals:
        return []
    start, second, third, later = (values.as_float(real) for real in reals)
    step = second - start
    is_linear = values.is_close(third, start + 2 * step) and values.is_close(later, start + 7 * step)
    return [(start, step)] if is_linear and step != 0 else []
