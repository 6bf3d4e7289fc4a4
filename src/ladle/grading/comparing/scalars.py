"""Whether two single values are the same answer: equal, or a decimal that stands for the other, units considered."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from ladle.grading.comparing.evaluate import BARE_LOGARITHM, evaluate, symbols_of, walk
from ladle.grading.comparing.functions import apply_function
from ladle.grading.comparing.identity import are_identical
from ladle.grading.comparing.values import CONTEXT, Undefined, Value, add, is_real, is_within, multiply, real_part
from ladle.grading.reading.tree import Constant, Expression, Number, Product, Quantity
from ladle.grading.reading.units import Unit, conversion, is_same_unit

_PERCENT: Unit = {"%": 1}
_DEGREE: Unit = {"degree": 1}
_PER_CENT = Number(Fraction(1, 100))
_HUNDRED = Number(Fraction(100))


@dataclass(frozen=True, slots=True)
class Rules:
    """What the pair and the configuration say about closeness.

    Attributes:
        rounding_digits: as in `GraderConfig`.
        tolerance: largest absolute difference that counts as none, or None.
        unit: the unit that the question asks for; empty if it says none.
    """

    rounding_digits: int
    tolerance: Fraction | None
    unit: Unit


def are_equal_quantities(gold: Quantity, answer: Quantity, rules: Rules) -> bool | None:
    """Whether the answer is the gold: its unit may be left out, be added where the gold has none, never differ."""
    asked = gold.unit or rules.unit
    for value, other in _readings(gold.value, answer.value, asked, answer.unit):
        verdict = are_equal_values(value, other, rules)
        if verdict is not False:
            return verdict
    return False


def _readings(gold: Expression, answer: Expression, asked: Unit, given: Unit) -> list[tuple[Expression, Expression]]:
    """Return the pairs of plain values that the units allow to compare, the likeliest first; none if units differ."""
    if given and asked and not is_same_unit(asked, given):
        if (asked, given) == (_DEGREE, {"radian": 1}):
            return [(_in_radians(gold), answer)]
        factor = conversion(asked, given)
        return [] if factor is None else [(gold, Product([answer, Number(factor)]))]
    readings = [(gold, answer)]
    if asked == _PERCENT != given:
        readings.append((gold, Product([answer, _HUNDRED])))  # on the gold's scale, for the sake of its tolerance
    elif given == _PERCENT != asked:
        readings.append((gold, Product([answer, _PER_CENT])))
    elif asked == _DEGREE != given and _has_pi(answer):
        readings.append((_in_radians(gold), answer))
    elif given == _DEGREE != asked and _has_pi(gold):
        readings.append((gold, _in_radians(answer)))
    return readings


def _in_radians(value: Expression) -> Expression:
    return Product([value, Constant("pi"), Number(Fraction(1, 180))])


def _has_pi(value: Expression) -> bool:
    return any(isinstance(node, Constant) and node.name == "pi" for node in walk(value))


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
    return _is_rounding(gold, gold_value, answer, answer_value, rules.rounding_digits)


def _infinity_sign(value: Expression) -> int:
    """Return 1 for infinity, -1 for its negative, 0 for anything else."""
    if isinstance(value, Product) and len(value.factors) == 2 and isinstance(value.factors[0], Number):
        return -_infinity_sign(value.factors[1]) if value.factors[0].value == -1 else 0
    return 1 if value == Constant("infinity") else 0


def evaluate_constant(value: Expression) -> Value | None:
    """Return the value of an expression without symbols, with `\\log` natural; None where it has none."""
    try:
        return evaluate(value, {BARE_LOGARITHM: CONTEXT.mpf(1)})
    except Undefined:
        return None


def _is_rounding(gold: Expression, gold_value: Value, answer: Expression, answer_value: Value, digits: int) -> bool:
    gold_places = gold.places if isinstance(gold, Number) else None
    answer_places = answer.places if isinstance(answer, Number) else None
    if gold_places is None and answer_places is None:
        return False
    if gold_places is None or answer_places is None:
        decimal, other = (gold, answer_value) if answer_places is None else (answer, gold_value)
        return _rounds_to(decimal, other, digits, may_truncate=True)
    return answer_places > gold_places and _rounds_to(gold, answer_value, digits, may_truncate=False)


def _rounds_to(decimal: Expression, value: Value, digits: int, may_truncate: bool) -> bool:
    """Whether the value, rounded (or cut off) to the places of the decimal, is the decimal."""
    if not isinstance(decimal, Number) or decimal.places is None or not is_real(value):
        return False
    shown = abs(decimal.value) * 10**decimal.places
    if len(str(shown)) < digits or (real_part(value) < 0) != (decimal.value < 0):
        return False
    scaled = multiply(abs(real_part(value)), Fraction(10**decimal.places))
    rounded = apply_function("floor", [add(scaled, Fraction(1, 2))])
    return shown == rounded or (may_truncate and shown == apply_function("floor", [scaled]))
