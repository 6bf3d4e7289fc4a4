"""Whether two single values are the same answer: equal, or a decimal that rounds the other, units considered.

Formulas are compared as functions of their symbols, at points chosen by the symbols' names. Two different formulas of
the size of an answer agree to 30 digits at several such points with a probability that is nothing beside that of a
misprint in the gold answers (for polynomials: Schwartz 1980, doi:10.1145/322217.322225). No algebra is done, so no
answer is too hard to compare.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from ladle.grading.tree import (
    Call,
    Constant,
    Expression,
    Number,
    Power,
    Product,
    Quantity,
    Symbol,
    TooLarge,
    symbols_of,
    walk,
)
from ladle.grading.units import Unit, conversion, is_same_unit
from ladle.grading.values import (
    BARE_LOGARITHM,
    CONTEXT,
    Point,
    Undefined,
    Value,
    add,
    evaluate,
    evaluate_constant,
    floor,
    is_close,
    is_within,
    multiply,
    pseudo_random,
    pseudo_random_integer,
    real_part,
)


@dataclass(frozen=True, slots=True)
class Rules:
    """What the pair and the configuration say about closeness.

    Attributes:
        rounding_digits: as in `GraderConfig`.
        tolerance: largest absolute difference that counts as none, or None.
        unit: the unit that the question names; empty if it names none.
    """

    rounding_digits: int
    tolerance: Fraction | None
    unit: Unit


# Quantities.

_PERCENT: Unit = {"%": 1}
_DEGREE: Unit = {"degree": 1}


def are_equal_quantities(gold: Quantity, answer: Quantity, rules: Rules) -> bool | None:
    """Whether the answer is the gold: its unit may be left out, be added where the gold has none, never differ."""
    for value, other in _readings(gold.value, answer.value, gold.unit or rules.unit, answer.unit):
        verdict = are_equal_values(value, other, rules)
        if verdict is not False:
            return verdict
    return False


def _readings(gold: Expression, answer: Expression, wanted: Unit, given: Unit) -> list[tuple[Expression, Expression]]:
    """Return the pairs of plain values that the units allow to compare, the likeliest first; none if units differ."""
    if given and wanted and not is_same_unit(wanted, given):
        if (wanted, given) == (_DEGREE, {"radian": 1}):
            return [(_in_radians(gold), answer)]
        factor = conversion(wanted, given)
        return [] if factor is None else [(gold, Product([answer, Number(factor)]))]
    readings = [(gold, answer)]
    if wanted == _PERCENT != given:
        readings.append((gold, Product([answer, Number(Fraction(100))])))  # on the gold's scale, as its tolerance is
    elif given == _PERCENT != wanted:
        readings.append((gold, Product([answer, Number(Fraction(1, 100))])))
    elif wanted == _DEGREE != given and Constant("pi") in walk(answer):
        readings.append((_in_radians(gold), answer))
    elif given == _DEGREE != wanted and Constant("pi") in walk(gold):
        readings.append((gold, _in_radians(answer)))
    return readings


def _in_radians(value: Expression) -> Expression:
    return Product([value, Constant("pi"), Number(Fraction(1, 180))])


# Values.


def are_equal_values(gold: Expression, answer: Expression, rules: Rules) -> bool | None:
    """Whether two values are equal, or one is a decimal that rounds the other; None where that cannot be decided.

    Raises:
        TooLarge: they are too large to compare.
    """
    infinite = [_infinity_sign(side) for side in (gold, answer)]
    if infinite != [0, 0]:
        return infinite[0] == infinite[1]
    verdict = are_identical(gold, answer)
    if verdict is not False or symbols_of(gold) or symbols_of(answer):
        return verdict
    gold_value, answer_value = evaluate_constant(gold), evaluate_constant(answer)
    if gold_value is None or answer_value is None:
        return verdict
    if rules.tolerance is not None and is_within(gold_value, answer_value, rules.tolerance):
        return True
    gold_places = gold.places if isinstance(gold, Number) else None
    answer_places = answer.places if isinstance(answer, Number) else None
    if gold_places is None and answer_places is None:
        return False
    if gold_places is None:
        return _rounds_to(answer, gold_value, rules.rounding_digits, may_truncate=True)
    if answer_places is None:
        return _rounds_to(gold, answer_value, rules.rounding_digits, may_truncate=True)
    return answer_places > gold_places and _rounds_to(gold, answer_value, rules.rounding_digits, may_truncate=False)


def _infinity_sign(value: Expression) -> int:
    """Return 1 for infinity, -1 for its negative, 0 for anything else."""
    if isinstance(value, Product) and len(value.factors) == 2 and isinstance(value.factors[0], Number):
        return -_infinity_sign(value.factors[1]) if value.factors[0].value == -1 else 0
    return 1 if value == Constant("infinity") else 0


def _rounds_to(decimal: Expression, value: Value, digits: int, may_truncate: bool) -> bool:
    """Whether the value, rounded (or cut off) to the places of the decimal, is the decimal."""
    real = real_part(value)
    if not isinstance(decimal, Number) or decimal.places is None or real is None:
        return False
    shown = abs(decimal.value) * 10**decimal.places
    if len(str(shown)) < digits or (real < 0) != (decimal.value < 0):
        return False
    scaled = multiply(abs(real), Fraction(10**decimal.places))
    return shown == floor(add(scaled, Fraction(1, 2))) or (may_truncate and shown == floor(scaled))


# Formulas.

_SCALES = (Fraction(1, 4), Fraction(1), Fraction(3))  # below 1 and above, for roots of 1 - x^2 and of x^2 - 1
_SIGNS = ((1, 1), (-1, 1), (-1, -1))
_INTEGER_POINTS = 20  # enough for the residues that tell floors of small quotients apart, and for both k < n and n < k
_FEWEST_INTEGER_POINTS = 3  # where fewer have a value, d!/(d-k)! has been seen at d = k only
_INTEGER_FUNCTIONS = frozenset({"factorial", "double factorial", "gamma", "binomial", "permutation", "gcd", "lcm"})
_BARE_BASES = (CONTEXT.mpf(1), CONTEXT.ln(10))  # `\log` without a base is natural or decimal: either reading may match


def are_identical(gold: Expression, answer: Expression) -> bool | None:
    """Whether the expressions are equal; None where too few points have values of both.

    Raises:
        TooLarge: the values are too large to compare.
    """
    has_bare_logarithm = any(
        isinstance(node, Call) and node.function == "log" and len(node.arguments) == 1
        for side in (gold, answer)
        for node in walk(side)
    )
    verdicts = [_agree(gold, answer, base) for base in _BARE_BASES[: 1 + has_bare_logarithm]]
    return True if True in verdicts else verdicts[0]


def _agree(gold: Expression, answer: Expression, bare_base: Value) -> bool | None:
    compared = 0
    for gold_value, answer_value in _sample(gold, answer, bare_base):
        if not is_close(gold_value, answer_value):
            return False
        compared += 1
    nodes = [*walk(gold), *walk(answer)]
    is_at_integers = any(map(_is_about_integers, nodes)) and any(isinstance(node, Symbol) for node in nodes)
    return True if compared >= (_FEWEST_INTEGER_POINTS if is_at_integers else 1) else None


def are_proportional(gold: Expression, answer: Expression, positive: bool) -> bool:
    """Whether one expression is a constant multiple of the other, as the two sides of equal equations are.

    Args:
        gold: an expression, zero where its equation holds.
        answer: another.
        positive: whether the multiple must be positive, as for inequalities.
    """
    pairs = list(_sample(gold, answer, _BARE_BASES[0]))
    if not pairs:
        return False
    first_gold, first_answer = pairs[0]
    if is_close(first_gold, Fraction(0)) or is_close(first_answer, Fraction(0)):
        return False
    if positive and not (first_gold / first_answer).real > 0:
        return False
    return all(is_close(multiply(one, first_answer), multiply(other, first_gold)) for one, other in pairs)


def _sample(gold: Expression, answer: Expression, bare_base: Value) -> Iterator[tuple[Value, Value]]:
    """Yield the values of both expressions at each point where both have one.

    Raises:
        TooLarge: at no point do they, and at one they are too large.
    """
    found, too_large = False, None
    for point in _choose_points(gold, answer):
        try:
            at = {**point, BARE_LOGARITHM: bare_base}
            values = evaluate(gold, at), evaluate(answer, at)
        except Undefined:
            continue
        except TooLarge as error:
            too_large = error
            continue
        found = True
        yield values
    if too_large is not None and not found:
        raise too_large


def _choose_points(gold: Expression, answer: Expression) -> Iterator[Point]:
    names = sorted(symbols_of(gold) | symbols_of(answer))
    nodes = [*walk(gold), *walk(answer)]
    if not names:
        yield {}
    elif any(_is_about_integers(node) for node in nodes):
        for step in range(_INTEGER_POINTS):
            yield {name: Fraction(1 + pseudo_random_integer(f"{step}{name}") % 20) for name in names}
    elif any(isinstance(node, Call) and node.function in ("floor", "ceil") for node in nodes):
        for step in range(-_INTEGER_POINTS, _INTEGER_POINTS):
            yield {name: step * pseudo_random(f"{step}{name}") for name in names}
    else:
        # A gold answer with the root or the logarithm of a symbol takes it to be positive, as physics does.
        signs = _SIGNS[:1] * 3 if any(_is_root_of_symbol(node) for node in walk(gold)) else _SIGNS
        for scale, pair in zip(_SCALES, signs, strict=True):
            yield {name: scale * pair[i % 2] * pseudo_random(f"{scale}{name}") for i, name in enumerate(names)}


def _is_about_integers(node: object) -> bool:
    """Whether its symbols are integers: in a factorial, a power of -1, and floors that are idle for them otherwise."""
    if isinstance(node, Call) and node.function in ("floor", "ceil"):
        return any(
            isinstance(part, (Call, Constant))
            or isinstance(part, Number)
            and part.value.denominator > 1
            or isinstance(part, Power)
            and not symbols_of(part.base)
            for part in walk(node.arguments[0])
        )
    if isinstance(node, Power):
        return isinstance(node.base, Number) and node.base.value < 0 and bool(symbols_of(node.exponent))
    return isinstance(node, Call) and node.function in _INTEGER_FUNCTIONS


def _is_root_of_symbol(node: object) -> bool:
    if isinstance(node, Call):
        return node.function in ("root", "ln", "log") and bool(symbols_of(node))
    if isinstance(node, Power) and symbols_of(node.base):
        return not (isinstance(node.exponent, Number) and node.exponent.value.denominator == 1)
    return False
