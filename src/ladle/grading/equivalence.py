"""Whether an answer says the same as the gold: structures are taken apart until single values are left.

Not symmetric. The answer may add a name (`x = 5` for `5`), a unit or braces, and leave out a name, a unit or the
parentheses of a list. It may not reverse an order that the gold gives, nor open an interval that the gold closes.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from fractions import Fraction
from itertools import pairwise, product
from typing import NamedTuple

from ladle.grading import nodes, values

# Names that may differ without a difference.

_INTEGER_LETTERS = frozenset("nkmlj")  # where they multiply pi they are every integer, said or unsaid


def are_equivalent(gold: nodes.Tree, answer: nodes.Tree, rules: values.Rules) -> bool | None:
    """Whether the answer is the gold; None where that cannot be decided.

    Constants of integration (`C`, `c`) may have either name, and a derivative may leave its variable unsaid (`x'`).

    Raises:
        TooLarge: values are too large to compare.
    """
    golds, answers = nodes.symbols_of(gold), nodes.symbols_of(answer)
    if golds != answers:
        constants = {
            name: nodes.Symbol(other)
            for name in answers - golds
            if name[0] in "cC" and (other := name[0].swapcase() + name[1:]) in golds - answers
        }
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
    ours, theirs = golds - answers, answers - golds
    if len(ours) != 1 or len(theirs) != 1:
        return answer
    letters = ours | theirs
    is_periodic = letters <= _INTEGER_LETTERS and all(
        nodes.Constant("pi") in nodes.walk(tree) for tree in (gold, answer)
    )
    return (
        nodes.substitute(answer, {theirs.pop(): nodes.Symbol(ours.pop())}) if is_periodic or letters & bound else answer
    )


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
    if (
        isinstance(answer, nodes.Unordered)
        and len(answer.items) == 1
        and not isinstance(gold, (nodes.Unordered, nodes.Union))
    ):
        return _compare(gold, answer.items[0], rules)
    if isinstance(gold, (nodes.Ordered, nodes.Matrix)):
        answer = _as_vector(answer, gold) or answer
    elif isinstance(answer, (nodes.Ordered, nodes.Matrix)):
        gold = _as_vector(gold, answer) or gold
    verdict = _compare_structures(gold, answer, rules)
    return _compare_real_sets(gold, answer) if verdict is False else verdict


def _compare_all(gold: Sequence[nodes.Tree], answer: Sequence[nodes.Tree], rules: values.Rules) -> bool | None:
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


def _compare_real_sets(gold: nodes.Tree, answer: nodes.Tree) -> bool:
    if isinstance(gold, nodes.Ordered) and isinstance(answer, (nodes.Ordered, nodes.Unordered)):
        return False  # (2, 4) and (4, 2) as points, which only a condition on x turns into intervals
    names = nodes.symbols_of(gold), nodes.symbols_of(answer)
    if all(names) and names[0] != names[1]:
        return False  # x = 5 is not y = 5
    return are_same_real_sets(gold, answer)


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
        case nodes.ClockTime(), nodes.Ratio(
            [nodes.Number(first), nodes.Number(second)]
        ):  # `9:10` may be both, but `18:20` is another time
            return gold.half is None and (gold.hour, gold.minute) == (first, second)
        case nodes.ClockTime(), _:
            ratio = gold.ratio()
            return ratio is not None and _compare_single(ratio, answer, rules)
        case nodes.Date(), nodes.Date():  # the year may be added
            same = (gold.month, gold.day) == (answer.month, answer.day)
            return same and gold.year in (None, answer.year)
        case nodes.Ratio([_, _]), nodes.Expression() | nodes.ClockTime():
            return _compare_single(nodes.quotient(*gold.parts), answer, rules)
        case nodes.Ratio(golds), nodes.Ratio(answers) if len(golds) == len(answers):
            scaled = [([one, answers[0]], [other, golds[0]]) for one, other in zip(golds, answers, strict=True)]
            return _compare_all(
                [nodes.Product(one) for one, _ in scaled], [nodes.Product(other) for _, other in scaled], rules
            )
        case nodes.Expression(), nodes.Ratio([first, second]):
            return _compare_single(gold, nodes.quotient(first, second), rules)
        case nodes.Expression(), nodes.Listing(
            [nodes.Number(whole, None), nodes.Product() as part], "and"
        ):  # 3 and 2/5
            value = values.evaluate_constant(part)
            is_mixed = isinstance(value, Fraction) and 0 < value < 1 <= whole
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
        case nodes.Ordered(golds), nodes.Listing(answers) | nodes.Call(
            _, [_, _, *_] as answers
        ):  # a point may have a name: A(1, 2)
            return _compare_all(golds, answers, rules)
        case nodes.Ordered(golds), nodes.Matrix(rows) if 1 in (len(rows), len(rows[0])):
            return _compare_all(golds, _cells(rows), rules)
        case nodes.Matrix(rows), nodes.Ordered(answers) if 1 in (len(rows), len(rows[0])):
            return _compare_all(_cells(rows), answers, rules)
        case nodes.Matrix(rows), nodes.Matrix(others):
            same_shape = len(rows) == len(others) and len(rows[0]) == len(others[0])
            return same_shape and _compare_all(_cells(rows), _cells(others), rules)
        case nodes.Interval(low, high, low_closed, high_closed), nodes.Interval(
            start, end
        ):  # the ends may hold symbols
            same_kind = (low_closed, high_closed) == (answer.low_closed, answer.high_closed)
            return same_kind and _compare_all([low, high], [start, end], rules)
        case nodes.Interval(low, high, False, False), nodes.Ordered([_, _] as ends):
            return _compare_all([low, high], ends, rules)
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
    size = len(like.items) if isinstance(like, nodes.Ordered) else len(_cells(like.rows))
    names = nodes.symbols_of(tree)
    if not isinstance(tree, nodes.Expression) or not names or not names <= {*sum(_UNIT_VECTORS[:size], [])}:
        return None
    parts = [
        nodes.substitute(
            tree, {name: nodes.Number(Fraction(along == at)) for at, own in enumerate(_UNIT_VECTORS) for name in own}
        )
        for along in range(-1, size)
    ]
    return nodes.Ordered(parts[1:]) if values.evaluate_constant(parts[0]) == 0 else None


def _has_residue(tree: nodes.Tree) -> bool:
    return any(isinstance(node, nodes.Call) and node.function == "mod" for node in nodes.walk(tree))


def _cells(rows: Sequence[Sequence[nodes.Expression]]) -> list[nodes.Expression]:
    return [cell for row in rows for cell in row]


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
    return _compare_real_sets(gold, answer)


def _is_name(side: nodes.Tree) -> bool:
    """Whether a side of an equation names what the other side says: `x`, `f(x)`, `Area`."""
    return (
        isinstance(side, (nodes.Symbol, nodes.Text))
        or isinstance(side, nodes.Call)
        and side.function.startswith("apply ")
    )


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
    """Whether two equations or inequalities of two sides say the same: their differences are proportional."""
    if len(gold.sides) != 2 or len(answer.sides) != 2:
        return False
    one, other = _difference(gold), _difference(answer)
    operator = gold.operators[0]
    if one is None or other is None or operator not in FLIPPED:
        return False
    if operator == answer.operators[0]:
        return values.are_proportional(one, other, positive=operator not in ("=", "!="))
    return FLIPPED[operator] == answer.operators[0] and values.are_proportional(
        one, nodes.negative(other), positive=True
    )


def _difference(relation: nodes.Relation) -> nodes.Expression | None:
    left, right = relation.sides
    if isinstance(left, nodes.Expression) and isinstance(right, nodes.Expression) and not _has_residue(relation):
        return nodes.Sum([left, nodes.negative(right)])
    return None


# Sets of real numbers: intervals and inequalities, so that (-inf,2) u (3,inf) and "x<2 or x>3" are the same. A set is a
# choice of conditions that hold together. Two sets are the same if they agree at every end, between and beyond them.

FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}  # each comparison, read from right to left
_MEMBER = nodes.Symbol("x")


class _Comparison(NamedTuple):
    """A comparison of the members of a set, or of their absolute values, with a number."""

    operator: str
    end: values.Value
    is_absolute: bool

    def holds(self, member: values.Value) -> bool:
        """Whether the number compares so."""
        member = abs(member) if self.is_absolute else member
        is_end = member == self.end or values.CONTEXT.isfinite(self.end) and values.is_close(member, self.end)
        is_below, is_above = not is_end and member < self.end, not is_end and member > self.end
        return {"=": is_end, "!=": not is_end, "<": is_below, ">": is_above}.get(
            self.operator, is_end or (is_below if self.operator == "<=" else is_above)
        )


class _NotASet(Exception):
    """The tree describes no set of real numbers."""


def are_same_real_sets(gold: nodes.Tree, answer: nodes.Tree) -> bool:
    """Whether both trees describe sets of real numbers, and the same."""
    try:
        sets = [_choices(gold), _choices(answer)]
    except _NotASet:
        return False
    ends = {
        one.end for choices in sets for conditions in choices for one in conditions if values.CONTEXT.isfinite(one.end)
    }
    points = sorted(ends | {-end for end in ends} | {values.CONTEXT.mpf(0)})
    points += [(low + high) / 2 for low, high in pairwise(points)] + [points[0] - 1, points[-1] + 1]
    has = [
        [any(all(one.holds(point) for one in conditions) for conditions in choices) for point in points]
        for choices in sets
    ]
    return has[0] == has[1]


def _choices(tree: nodes.Tree) -> list[list[_Comparison]]:
    """Return the conditions of a set: any choice of them holds for its members, each with all its comparisons."""
    match tree:
        case nodes.Interval(low, high, low_closed, high_closed):
            return [_between(low, "<=" if low_closed else "<", high, "<=" if high_closed else "<")]
        case nodes.Ordered([low, high]):
            return [_between(low, "<", high, "<")]
        case nodes.Union():
            return [conditions for part in tree.parts for conditions in _choices(part)]
        case nodes.Unordered():
            return [[_compare_member(_MEMBER, "=", item)] for item in tree.items]
        case nodes.Relation(_, ["in"]):
            return _choices(tree.sides[1])
        case nodes.Relation():  # a chain such as `-2 <= x < 7`, whose comparisons are of one symbol with constants
            if len({symbol.name for side in tree.sides if (symbol := _bounded_symbol(side)) is not None}) != 1:
                raise _NotASet
            pairs = zip(pairwise(tree.sides), tree.operators, strict=False)
            return [[_compare_member(left, operator, right) for (left, right), operator in pairs]]
        case nodes.Listing() if (
            all(isinstance(item, nodes.Relation) for item in tree.items) and len(nodes.symbols_of(tree)) == 1
        ):
            sets = [_choices(item) for item in tree.items]
            if tree.joined_by != "and":
                return sum(sets, [])
            return [sum(chosen, []) for chosen in product(*sets)]
        case _:
            raise _NotASet


def _between(low: nodes.Tree, above: str, high: nodes.Tree, below: str) -> list[_Comparison]:
    conditions = [_compare_member(low, above, _MEMBER), _compare_member(_MEMBER, below, high)]
    if conditions[0].end > conditions[1].end:
        raise _NotASet
    return conditions


def _compare_member(left: nodes.Tree, operator: str, right: nodes.Tree) -> _Comparison:
    if _bounded_symbol(right) is not None:
        left, operator, right = right, FLIPPED.get(operator, ""), left
    if operator not in FLIPPED or _bounded_symbol(left) is None:
        raise _NotASet
    return _Comparison(operator, _end(right), is_absolute=isinstance(left, nodes.Call))


def _end(tree: nodes.Tree) -> values.Value:
    value = tree.value if isinstance(tree, nodes.Quantity) else tree
    if not isinstance(value, nodes.Expression) or nodes.symbols_of(value) or _has_residue(value):
        raise _NotASet
    if value in (nodes.Constant("infinity"), nodes.negative(nodes.Constant("infinity"))):
        return values.INFINITY if isinstance(value, nodes.Constant) else -values.INFINITY
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


class Family(NamedTuple):
    """The numbers `start + n * step` for all integers n."""

    start: values.Value
    step: values.Value

    def has(self, value: values.Value) -> bool:
        """Whether the number is in the family."""
        count = (value - self.start) / self.step
        return bool(abs(count - values.CONTEXT.nint(count)) < values.CONTEXT.mpf("1e-25"))


def are_same_families(gold: nodes.Tree, answer: nodes.Tree, letter: str) -> bool:
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


def _families_of(tree: nodes.Tree, letter: str) -> list[Family] | None:
    if isinstance(tree, nodes.Relation):
        return _families_of(tree.sides[-1], letter) if set(tree.operators) <= {"=", "in"} else None
    if isinstance(tree, (nodes.Listing, nodes.Unordered)):
        found = [_families_of(item, letter) for item in tree.items]
        return None if None in found else [family for item in found if item for family in item]
    if isinstance(tree, nodes.Call) and tree.function == "mod":  # 4 mod 9 is every 4 + 9n
        tree, letter = nodes.Sum([tree.arguments[0], nodes.Product([tree.arguments[1], _MEMBER])]), _MEMBER.name
    if not isinstance(tree, nodes.Expression) or nodes.symbols_of(tree) != {letter}:
        return None
    try:
        reals = [values.real_part(values.evaluate(tree, {letter: Fraction(n)})) for n in (0, 1, 2, 7)]
    except (values.Undefined, nodes.TooLarge):
        return None
    if None in reals:
        return None
    start, second, third, later = (values.as_float(real) for real in reals)
    step = second - start
    is_linear = values.is_close(third, start + 2 * step) and values.is_close(later, start + 7 * step)
    return [Family(start, step)] if is_linear and step != 0 else None
