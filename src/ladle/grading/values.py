"""The value of an expression: exact while it is rational and small, and a 40-digit float otherwise.

What would cost more than an answer is worth (towers of powers) is refused by size before it is computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import mpmath

from ladle.grading.tree import Call, Constant, Expression, Number, Power, Product, Sum, Symbol, TooLarge

DIGITS = 40
MAX_EXACT_BITS = 20_000
"""Larger integers are carried as floats."""
MAX_MAGNITUDE_BITS = 200_000
"""Numbers beyond 2 to this power either way are refused."""
_MAX_EXACT_FACTORIAL = 1500
_MAX_ARGUMENT_BITS = 1000
"""The sine of a larger number has no digit left to compare, and its exponential is refused anyway."""

Value = Any
"""A `Fraction`, or a real or complex mpmath number; mpmath has no types to name."""
Point = Mapping[str, Value]
"""A value for each symbol."""
BARE_LOGARITHM = "log"
"""Under this name a point holds the natural logarithm of the base that `\\log` without one is taken to have."""

CONTEXT: Any = mpmath.mp.clone()
CONTEXT.dps = DIGITS
INFINITY = CONTEXT.inf
_ZERO = CONTEXT.mpf("1e-35")
_EQUAL = CONTEXT.mpf("1e-30")  # ten digits less than are carried, for what rounding costs on the way


class Undefined(ArithmeticError):
    """No finite value: a pole, 0/0, or a function outside its domain."""


def evaluate(expression: Expression, point: Point) -> Value:
    """Return the value of the expression at a point.

    Raises:
        Undefined: it has none there.
        TooLarge: it is too large to compare.
    """
    try:
        return _evaluate(expression, point)
    except (ZeroDivisionError, ValueError, OverflowError, CONTEXT.NoConvergence) as error:
        raise Undefined(str(error)) from error


def evaluate_constant(expression: Expression) -> Value | None:
    """Return the value of an expression without symbols, with `\\log` natural; None where it has none."""
    try:
        return evaluate(expression, {BARE_LOGARITHM: CONTEXT.mpf(1)})
    except Undefined:
        return None


def _evaluate(node: Expression, point: Point) -> Value:
    match node:
        case Number():
            return node.value
        case Symbol():
            return point[node.name]
        case Sum():
            total: Value = Fraction(0)
            for term in node.terms:
                total = add(total, _evaluate(term, point))
            return total
        case Product():
            total = Fraction(1)
            for factor in node.factors:
                total = multiply(total, _evaluate(factor, point))
            return total
        case Power():
            return power(_evaluate(node.base, point), _evaluate(node.exponent, point))
        case Constant("i"):
            return CONTEXT.mpc(0, 1)
        case Constant("infinity"):
            raise Undefined("infinity is not a number")
        case Constant():
            return +getattr(CONTEXT, node.name)
        case Call():
            arguments = [_evaluate(argument, point) for argument in node.arguments]
            if node.function.startswith("apply "):
                return _apply_unknown(node.function, arguments)
            if node.function == "log" and len(arguments) == 1:
                return _apply("ln", arguments) / point[BARE_LOGARITHM]
            return _apply(node.function, arguments)
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


def is_within(left: Value, right: Value, limit: Fraction) -> bool:
    """Whether two values differ by no more than the limit, exactly if both are exact."""
    left, right = _same_kind(left, right)
    difference, most = _same_kind(abs(left - right), limit)
    return bool(difference <= most)


def _same_kind(left: Value, right: Value) -> tuple[Value, Value]:
    """Return both values as they are if both are exact, else both as floats."""
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return left, right
    return as_float(left), as_float(right)


def as_float(value: Value) -> Value:
    """Return an exact value as a float, any other as it is."""
    if isinstance(value, Fraction):
        return CONTEXT.mpf(value.numerator) / value.denominator
    return value


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
        raise TooLarge("a number too large to compare")
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
        raise TooLarge("a power too large to compare")
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
        return -_root(-real, degree)
    if isinstance(value, Fraction) and value >= 0:
        exact = _exact_root(value, degree.numerator)
        if exact is not None:
            return exact
    return CONTEXT.root(as_float(value), degree.numerator)


def _exact_root(value: Fraction, degree: int) -> Fraction | None:
    """Return the non-negative root of a non-negative fraction where it is rational."""
    above, below = _integer_root(value.numerator, degree), _integer_root(value.denominator, degree)
    return None if above is None or below is None else Fraction(above, below)


def _integer_root(value: int, degree: int) -> int | None:
    if value < 2:
        return value
    if degree == 2:
        found = math.isqrt(value)
    elif degree < value.bit_length() <= 3 * DIGITS:  # so that the float below holds every digit of it
        found = int(CONTEXT.nint(CONTEXT.root(value, degree)))
    else:
        return None
    return found if found**degree == value else None


# Functions.


def _apply(name: str, arguments: list[Value]) -> Value:
    """Return the value of a known function.

    Raises:
        Undefined: the arguments are outside its domain, or too many or too few.
        TooLarge: the value is too large to compare.
    """
    if name in _FUNCTIONS:
        try:
            return _FUNCTIONS[name](*arguments)
        except TypeError as error:
            raise Undefined(f"{name} of {len(arguments)} values") from error
    if len(arguments) != 1:
        raise Undefined(f"{name} of {len(arguments)} values")
    argument = as_float(arguments[0])
    if argument and CONTEXT.mag(argument) > _MAX_ARGUMENT_BITS:
        raise TooLarge(f"the {name} of a number too large to compare")
    return bound(_FLOAT_FUNCTIONS[name](argument))


def _apply_unknown(name: str, arguments: list[Value]) -> Value:
    """Return the value of a function of which only the name is known: equal arguments give equal values, no more."""
    seed = as_float(pseudo_random(name))
    total = CONTEXT.mpf(1)
    for index, argument in enumerate(arguments, start=1):
        total += CONTEXT.sin(as_float(argument) * index + seed)
    return total * seed


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


def _small(value: Value) -> int:
    """Return an integer of which a factorial can be computed."""
    if not 0 <= _integer(value) <= _MAX_EXACT_FACTORIAL:
        raise Undefined("a double factorial of that number")
    return value.numerator


def floor(value: Value) -> Fraction:
    """Return the largest integer that is not above a real value."""
    real = _real(value)
    return Fraction(math.floor(real) if isinstance(real, Fraction) else int(CONTEXT.floor(real)))


def _factorial(value: Value) -> Value:
    if _is_integer(value) and value < 0:
        raise Undefined("the factorial of a negative integer")
    if _is_integer(value) and value <= _MAX_EXACT_FACTORIAL:
        return bound(Fraction(math.factorial(value.numerator)))
    if abs(value + 1) > MAX_MAGNITUDE_BITS:
        raise TooLarge("a factorial too large to compare")
    return bound(CONTEXT.gamma(as_float(value + 1)))


def _binomial(above: Value, below: Value) -> Value:
    if _is_integer(above) and _is_integer(below) and 0 <= above <= _MAX_EXACT_FACTORIAL:
        return Fraction(math.comb(above.numerator, below.numerator) if below >= 0 else 0)
    if max(abs(above), abs(below)) > MAX_MAGNITUDE_BITS:
        raise TooLarge("a binomial coefficient too large to compare")
    return bound(CONTEXT.binomial(as_float(above), as_float(below)))


def _permutation(total: Value, chosen: Value) -> Value:
    if _is_integer(total) and _is_integer(chosen) and 0 <= chosen <= total <= _MAX_EXACT_FACTORIAL:
        return bound(Fraction(math.perm(total.numerator, chosen.numerator)))
    return bound(as_float(_factorial(total)) / as_float(_factorial(total - chosen)))


_FUNCTIONS: dict[str, Callable[..., Value]] = {
    "root": _root,
    "abs": abs,
    "floor": floor,
    "ceil": lambda value: -floor(-value),
    "factorial": _factorial,
    "double factorial": lambda value: bound(Fraction(math.prod(range(_small(value), 0, -2)))),
    "mod": lambda value, modulus: value - modulus * floor(power(modulus, Fraction(-1)) * value),
    "gamma": lambda value: _factorial(value - 1),
    "binomial": _binomial,
    "permutation": _permutation,
    "log": lambda value, base: bound(CONTEXT.ln(as_float(value)) / CONTEXT.ln(as_float(base))),
    "ln": lambda value: bound(CONTEXT.ln(as_float(value))),
    "gcd": lambda *values: Fraction(math.gcd(*map(_integer, values))),
    "lcm": lambda *values: Fraction(math.lcm(*map(_integer, values))),
    "max": lambda *values: max(map(_real, values), key=as_float),
    "min": lambda *values: min(map(_real, values), key=as_float),
}
_FLOAT_FUNCTIONS: dict[str, Callable[[Value], Value]] = {
    prefix + name: getattr(CONTEXT, "a" * bool(prefix) + name)
    for prefix, names in {
        "": "sin cos tan cot sec csc sinh cosh tanh exp",
        "arc": "sin cos tan cot sec csc sinh cosh tanh",
        "ar": "sinh cosh tanh",
        "a": "sin cos tan sinh cosh tanh",
    }.items()
    for name in names.split()
}
