"""The value of an expression, and whether two values are the same answer.

A value is exact while it is rational and small, and a 40-digit float otherwise. What would cost more than an answer is
worth (towers of powers) is refused by size before it is computed.

Formulas are compared as functions of their symbols, at points chosen by the symbols' names. Two different formulas of
the size of an answer agree to 30 digits at several such points with a probability that is nothing beside that of a
misprint in the gold answers (for polynomials: Schwartz 1980, doi:10.1145/322217.322225). No algebra is done, so no
answer is too hard to compare.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from functools import lru_cache, reduce
from hashlib import blake2b
from typing import Any, NamedTuple

import mpmath

from ladle.grading import nodes
from ladle.grading.normalise import FUNCTION_NAMES
from ladle.grading.units import Unit, conversion, is_same_unit

DIGITS = 40
MAX_EXACT_BITS = 20_000  # larger integers are carried as floats
MAX_MAGNITUDE_BITS = 200_000  # numbers beyond 2 to this power either way are refused
_MAX_EXACT_FACTORIAL = 1500
# The sine of a larger number has no digit left to compare, and its exponential is refused anyway.
_MAX_ARGUMENT_BITS = 1000

Value = Any  # A `Fraction`, or a real or complex mpmath number; mpmath has no types to name
Point = Mapping[str, Value]  # a value for each symbol
# Under this name a point holds the natural logarithm of the base that `\log` without one is taken to have.
BARE_LOGARITHM = "log"

CONTEXT: Any = mpmath.mp.clone()
CONTEXT.dps = DIGITS
INFINITY = CONTEXT.inf
_ZERO = CONTEXT.mpf("1e-35")
_EQUAL = CONTEXT.mpf("1e-30")  # ten digits less than are carried, for what rounding costs on the way


class Undefined(ArithmeticError):
    """No finite value: a pole, 0/0, or a function outside its domain."""


def evaluate(expression: nodes.Expression, point: Point) -> Value:
    """Return the value of the expression at a point.

    Raises:
        Undefined: it has none there.
        TooLarge: it is too large to compare.
    """
    try:
        return _evaluate(expression, point)
    except (ZeroDivisionError, ValueError, OverflowError, CONTEXT.NoConvergence) as error:
        raise Undefined(str(error)) from error


def evaluate_constant(expression: nodes.Expression) -> Value | None:
    """Return the value of an expression without symbols, with `\\log` natural; None where it has none."""
    try:
        return evaluate(expression, {BARE_LOGARITHM: CONTEXT.mpf(1)})
    except Undefined:
        return None


def _evaluate(node: nodes.Expression, point: Point) -> Value:
    match node:
        case nodes.Number():
            return node.value
        case nodes.Symbol():
            return point[node.name]
        case nodes.Sum():
            return reduce(add, (_evaluate(term, point) for term in node.terms), Fraction(0))
        case nodes.Product():
            return reduce(multiply, (_evaluate(factor, point) for factor in node.factors), Fraction(1))
        case nodes.Power():
            return power(_evaluate(node.base, point), _evaluate(node.exponent, point))
        case nodes.Constant("i"):
            return CONTEXT.mpc(0, 1)
        case nodes.Constant("infinity"):
            raise Undefined("infinity is not a number")
        case nodes.Constant():
            return +getattr(CONTEXT, node.name)
        case nodes.Call("log", [argument]):
            return _apply("ln", [_evaluate(argument, point)]) / point[BARE_LOGARITHM]
        case nodes.Call():
            return _apply(node.function, [_evaluate(argument, point) for argument in node.arguments])
        case _:
            raise TypeError(f"{node} is not an expression")


# Arithmetic.


def is_close(left: Value, right: Value) -> bool:
    """Whether two values are equal: exactly if both are exact, else to 30 digits, and within 1e-35 of an exact zero."""
    left, right = _same_kind(left, right)
    if isinstance(left, Fraction):
        return left == right
    if left == 0 or right == 0:
        return bool(abs(left - right) < _ZERO)
    return bool(abs(left - right) <= max(abs(left), abs(right)) * _EQUAL)


def _same_kind(left: Value, right: Value) -> tuple[Value, Value]:
    """Return both values as they are if both are exact, else both as floats."""
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return left, right
    return as_float(left), as_float(right)


def as_float(value: Value) -> Value:
    """Return an exact value as a float, any other as it is."""
    return CONTEXT.convert(value)


def real_part(value: Value) -> Value | None:
    """Return the value without an imaginary part that is only rounding; None if it has a larger one."""
    if isinstance(value, Fraction):
        return value
    return None if abs(value.imag) > abs(value) * _EQUAL else value.real


def add(left: Value, right: Value) -> Value:
    """Return the sum, exact if both are."""
    left, right = _same_kind(left, right)
    return bound(left + right)


def multiply(left: Value, right: Value) -> Value:
    """Return the product, exact if both are."""
    left, right = _same_kind(left, right)
    return bound(left * right)


def bound(value: Value) -> Value:
    """Return the value, as a float where it has outgrown exact arithmetic.

    Raises:
        Undefined: it is not finite.
        TooLarge: it is beyond `MAX_MAGNITUDE_BITS`.
    """
    if isinstance(value, Fraction):
        if max(value.numerator.bit_length(), value.denominator.bit_length()) <= MAX_EXACT_BITS:
            return value
        value = as_float(value)
    if not CONTEXT.isfinite(value):
        raise Undefined("not finite")
    if value and abs(CONTEXT.mag(value)) > MAX_MAGNITUDE_BITS:
        raise nodes.TooLarge("a number too large to compare")
    return value


def power(base: Value, exponent: Value) -> Value:
    """Return the principal value of the power, exact where it is rational and small."""
    if isinstance(base, Fraction) and isinstance(exponent, Fraction):
        exact = _exact_power(base, exponent)
        if exact is not None:
            return exact
    if base == 0 and not (real_part(exponent) or 0) > 0:
        raise Undefined("zero to a power that is not positive")
    base, exponent = as_float(base), as_float(exponent)
    if base != 0 and abs(exponent) * max(1, abs(CONTEXT.mag(base))) > MAX_MAGNITUDE_BITS:
        raise nodes.TooLarge("a power too large to compare")
    return bound(CONTEXT.power(base, exponent))


def _exact_power(base: Fraction, exponent: Fraction) -> Fraction | None:
    if exponent.denominator > 1:
        rational = _exact_root(base, exponent.denominator) if base >= 0 else None
        return None if rational is None else _exact_power(rational, Fraction(exponent.numerator))
    if abs(base) == 1:
        return base if exponent.numerator % 2 else Fraction(1)
    bits = max(base.numerator.bit_length(), base.denominator.bit_length()) * abs(exponent.numerator)
    return base**exponent.numerator if base == 0 or bits <= MAX_EXACT_BITS else None


def _root(value: Value, degree: Value) -> Value:
    """Return the root; of a negative number the real one where the degree is odd, else the principal one."""
    if not _is_integer(degree) or not 1 <= degree <= 1000:
        raise Undefined("a root of that degree")
    real = real_part(value)
    if real is not None and real < 0 and degree % 2:
        return -power(-real, 1 / degree)
    return power(value, 1 / degree)


def _exact_root(value: Fraction, degree: int) -> Fraction | None:
    """Return the non-negative root of a non-negative fraction where it is rational."""
    above, below = (_integer_root(part, degree) for part in value.as_integer_ratio())
    return None if above is None or below is None else Fraction(above, below)


def _integer_root(value: int, degree: int) -> int | None:
    if degree == 2 or value < 2:
        found = math.isqrt(value)
    elif degree < value.bit_length() <= 3 * DIGITS:  # so that the float below holds every digit of it
        found = int(CONTEXT.nint(CONTEXT.root(value, degree)))
    else:
        return None
    return found if found**degree == value else None


# Functions.


def _apply(name: str, arguments: list[Value]) -> Value:
    """Return the value of a function.

    Of a function that only has a name, equal arguments give equal values, and nothing more.

    Raises:
        Undefined: the arguments are outside its domain, or too many or too few.
        TooLarge: the value is too large to compare.
    """
    if name.startswith("apply "):
        seed = as_float(pseudo_random(name))
        terms = (CONTEXT.sin(as_float(argument) * index + seed) for index, argument in enumerate(arguments, start=1))
        return sum(terms, CONTEXT.mpf(1)) * seed
    try:
        return bound(_FUNCTIONS[name](*arguments))
    except TypeError as error:
        raise Undefined(f"{name} of {len(arguments)} values") from error


@lru_cache(maxsize=4096)
def pseudo_random_integer(name: str) -> int:
    """Return an integer between 0 and 2**64 that only the name decides."""
    return int.from_bytes(blake2b(name.encode("utf-8", "replace"), digest_size=8).digest(), "big")


def pseudo_random(name: str) -> Fraction:
    """Return a fraction between 1/2 and 3/2 that only the name decides."""
    return Fraction(1, 2) + Fraction(pseudo_random_integer(name) % 9973, 9973)


def _is_integer(value: Value) -> bool:
    return isinstance(value, Fraction) and value.denominator == 1


def _real(value: Value) -> Value:
    real = real_part(value)
    if real is None:
        raise Undefined("a function of real numbers")
    return real


def _integer(value: Value) -> int:
    if not _is_integer(value):
        raise Undefined("a function of integers")
    return value.numerator


def floor(value: Value) -> Fraction:
    """Return the largest integer that is not above a real value."""
    real = _real(value)
    return Fraction(math.floor(real) if isinstance(real, Fraction) else int(CONTEXT.floor(real)))


def _factorial(value: Value) -> Value:
    if _is_integer(value) and value < 0:
        raise Undefined("the factorial of a negative integer")
    if _is_integer(value) and value <= _MAX_EXACT_FACTORIAL:
        return Fraction(math.factorial(value.numerator))
    if abs(value + 1) > MAX_MAGNITUDE_BITS:
        raise nodes.TooLarge("a factorial too large to compare")
    return CONTEXT.gamma(as_float(value + 1))


def _double_factorial(value: Value) -> Value:
    if not 0 <= _integer(value) <= _MAX_EXACT_FACTORIAL:
        raise Undefined("a double factorial of that number")
    return Fraction(math.prod(range(value.numerator, 0, -2)))


def _binomial(above: Value, below: Value) -> Value:
    if _is_integer(above) and _is_integer(below) and 0 <= above <= _MAX_EXACT_FACTORIAL:
        return Fraction(math.comb(above.numerator, below.numerator) if below >= 0 else 0)
    if max(abs(above), abs(below)) > MAX_MAGNITUDE_BITS:
        raise nodes.TooLarge("a binomial coefficient too large to compare")
    return CONTEXT.binomial(as_float(above), as_float(below))


def _of_float(function: Callable[[Value], Value]) -> Callable[[Value], Value]:
    """Return a function of mpmath as one of any value."""

    def apply(value: Value) -> Value:
        argument = as_float(value)
        if argument and CONTEXT.mag(argument) > _MAX_ARGUMENT_BITS:
            raise nodes.TooLarge("a function of a number too large to compare")
        return function(argument)

    return apply


# Trigonometric functions and the exponential are mpmath's, where `arcsin`, `arsinh` and `asinh` begin with `a` alone.
_IN_MPMATH = {name: re.sub("^ar?c?(?=sin|cos|tan|cot|sec|csc)", "a", name) for name in FUNCTION_NAMES}
_FUNCTIONS: dict[str, Callable[..., Value]] = {
    name: _of_float(getattr(CONTEXT, other)) for name, other in _IN_MPMATH.items() if hasattr(CONTEXT, other)
} | {
    "root": _root,
    "abs": abs,
    "floor": floor,
    "ceil": lambda value: -floor(-value),
    "factorial": _factorial,
    "double factorial": _double_factorial,
    "mod": lambda value, modulus: value - modulus * floor(power(modulus, Fraction(-1)) * value),
    "gamma": lambda value: _factorial(value - 1),
    "binomial": _binomial,
    "permutation": lambda total, chosen: multiply(_factorial(total), power(_factorial(total - chosen), Fraction(-1))),
    "log": lambda value, base: CONTEXT.ln(as_float(value)) / CONTEXT.ln(as_float(base)),
    "ln": lambda value: CONTEXT.ln(as_float(value)),
    "gcd": lambda *values: Fraction(math.gcd(*map(_integer, values))),
    "lcm": lambda *values: Fraction(math.lcm(*map(_integer, values))),
    "max": lambda *values: max(map(_real, values), key=as_float),
    "min": lambda *values: min(map(_real, values), key=as_float),
}


# Whether two single values are the same answer: equal, or a decimal that rounds the other, units considered.


class Rules(NamedTuple):
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
_PI = nodes.Constant("pi")


def are_equal_quantities(gold: nodes.Quantity, answer: nodes.Quantity, rules: Rules) -> bool | None:
    """Whether the answer is the gold: its unit may be left out, be added where the gold has none, never differ."""
    for value, other in _readings(gold.value, answer.value, gold.unit or rules.unit, answer.unit):
        verdict = are_equal_values(value, other, rules)
        if verdict is not False:
            return verdict
    return False


def _readings(
    gold: nodes.Expression, answer: nodes.Expression, wanted: Unit, given: Unit
) -> list[tuple[nodes.Expression, nodes.Expression]]:
    """Return the pairs of plain values that the units allow to compare, the likeliest first; none if units differ."""
    if given and wanted and not is_same_unit(wanted, given):
        if (wanted, given) == (_DEGREE, {"radian": 1}):
            return [(_in_radians(gold), answer)]
        factor = conversion(wanted, given)
        return [] if factor is None else [(gold, _times(answer, factor))]
    readings = [(gold, answer)]
    if wanted == _PERCENT != given:
        readings.append((gold, _times(answer, Fraction(100))))  # on the gold's scale, as its tolerance is
    elif given == _PERCENT != wanted:
        readings.append((gold, _times(answer, Fraction(1, 100))))
    elif wanted == _DEGREE != given and _PI in nodes.walk(answer):
        readings.append((_in_radians(gold), answer))
    elif given == _DEGREE != wanted and _PI in nodes.walk(gold):
        readings.append((gold, _in_radians(answer)))
    return readings


def _times(value: nodes.Expression, factor: Fraction) -> nodes.Expression:
    return nodes.Product([value, nodes.Number(factor)])


def _in_radians(value: nodes.Expression) -> nodes.Expression:
    return _times(nodes.Product([value, _PI]), Fraction(1, 180))


# Values.


def are_equal_values(gold: nodes.Expression, answer: nodes.Expression, rules: Rules) -> bool | None:
    """Whether two values are equal, or one is a decimal that rounds the other; None where that cannot be decided.

    Raises:
        TooLarge: they are too large to compare.
    """
    infinite = [infinity_sign(side) for side in (gold, answer)]
    if infinite != [0, 0]:
        return infinite[0] == infinite[1]
    verdict = are_identical(gold, answer)
    if verdict is not False or nodes.symbols_of(gold) or nodes.symbols_of(answer):
        return verdict
    gold_value, answer_value = evaluate_constant(gold), evaluate_constant(answer)
    if gold_value is None or answer_value is None:
        return verdict
    if rules.tolerance is not None:
        difference, limit = _same_kind(abs(add(gold_value, -answer_value)), rules.tolerance)
        if difference <= limit:
            return True
    gold_places, answer_places = (side.places if isinstance(side, nodes.Number) else None for side in (gold, answer))
    if gold_places is None:
        return _rounds_to(answer, gold_value, rules.rounding_digits, may_truncate=True)
    has_more_places = answer_places is None or answer_places > gold_places
    return has_more_places and _rounds_to(gold, answer_value, rules.rounding_digits, may_truncate=answer_places is None)


def infinity_sign(value: nodes.Expression) -> int:
    """Return 1 for infinity, -1 for its negative, 0 for anything else."""
    if isinstance(value, nodes.Product) and len(value.factors) == 2 and isinstance(value.factors[0], nodes.Number):
        return -infinity_sign(value.factors[1]) if value.factors[0].value == -1 else 0
    return 1 if value == nodes.Constant("infinity") else 0


def _rounds_to(decimal: nodes.Expression, value: Value, digits: int, may_truncate: bool) -> bool:
    """Whether the value, rounded (or cut off) to the places of the decimal, is the decimal."""
    real = real_part(value)
    if not isinstance(decimal, nodes.Number) or decimal.places is None or real is None:
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


def are_identical(gold: nodes.Expression, answer: nodes.Expression) -> bool | None:
    """Whether the expressions are equal; None where too few points have values of both.

    Raises:
        TooLarge: the values are too large to compare.
    """
    parts = [*nodes.walk(gold), *nodes.walk(answer)]
    has_bare_logarithm = any(isinstance(part, nodes.Call) and part.function == "log" for part in parts)
    verdicts = [_agree(gold, answer, base) for base in _BARE_BASES[: 1 + has_bare_logarithm]]
    return True if True in verdicts else verdicts[0]


def _agree(gold: nodes.Expression, answer: nodes.Expression, bare_base: Value) -> bool | None:
    compared = 0
    for gold_value, answer_value in _sample(gold, answer, bare_base):
        if not is_close(gold_value, answer_value):
            return False
        compared += 1
    if compared >= _FEWEST_INTEGER_POINTS or not compared:
        return True if compared else None
    is_at_integers = any(map(_is_about_integers, [*nodes.walk(gold), *nodes.walk(answer)]))
    return None if is_at_integers and nodes.symbols_of(gold) | nodes.symbols_of(answer) else True


def are_proportional(gold: nodes.Expression, answer: nodes.Expression, positive: bool) -> bool:
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


def _sample(gold: nodes.Expression, answer: nodes.Expression, bare_base: Value) -> Iterator[tuple[Value, Value]]:
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
        except nodes.TooLarge as error:
            too_large = error
            continue
        found = True
        yield values
    if too_large is not None and not found:
        raise too_large


def _choose_points(gold: nodes.Expression, answer: nodes.Expression) -> Iterator[Point]:
    names = sorted(nodes.symbols_of(gold) | nodes.symbols_of(answer))
    parts = [*nodes.walk(gold), *nodes.walk(answer)] if names else []
    if not names:
        yield {}
    elif any(map(_is_about_integers, parts)):
        for step in range(_INTEGER_POINTS):
            yield {name: Fraction(1 + pseudo_random_integer(f"{step}{name}") % 20) for name in names}
    elif any(map(_is_rounding, parts)):
        for step in range(-_INTEGER_POINTS, _INTEGER_POINTS):
            yield {name: step * pseudo_random(f"{step}{name}") for name in names}
    else:
        # A gold answer with the root or the logarithm of a symbol takes it to be positive, as physics does.
        signs = _SIGNS[:1] * 3 if any(map(_is_root_of_symbol, nodes.walk(gold))) else _SIGNS
        for scale, pair in zip(_SCALES, signs, strict=True):
            yield {name: scale * pair[i % 2] * pseudo_random(f"{scale}{name}") for i, name in enumerate(names)}


def _is_rounding(node: nodes.Tree) -> bool:
    return isinstance(node, nodes.Call) and node.function in ("floor", "ceil")


def _is_about_integers(node: nodes.Tree) -> bool:
    """Whether its symbols are integers: in a factorial, a power of -1, and floors that are idle for them otherwise."""
    match node:
        case nodes.Call("floor" | "ceil", [argument]):
            return any(map(_is_uneven, nodes.walk(argument)))
        case nodes.Power(nodes.Number(base), exponent):
            return base < 0 and bool(nodes.symbols_of(exponent))
        case _:
            return isinstance(node, nodes.Call) and node.function in _INTEGER_FUNCTIONS


def _is_uneven(node: nodes.Tree) -> bool:
    """Whether it makes what it is a part of no integer, for integers."""
    match node:
        case nodes.Number(value):
            return value.denominator > 1
        case nodes.Power(base, _):
            return not nodes.symbols_of(base)
        case _:
            return isinstance(node, (nodes.Call, nodes.Constant))


def _is_root_of_symbol(node: nodes.Tree) -> bool:
    match node:
        case nodes.Call("root" | "ln" | "log"):
            return bool(nodes.symbols_of(node))
        case nodes.Power(base, nodes.Number(exponent)):
            return exponent.denominator > 1 and bool(nodes.symbols_of(base))
        case _:
            return isinstance(node, nodes.Power) and bool(nodes.symbols_of(node.base))
