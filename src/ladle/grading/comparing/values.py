"""Numbers that are exact while they are rational and small, and 40-digit floats otherwise; powers and roots of them.

What would cost more than an answer is worth (towers of powers) is refused by size before it is computed.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import mpmath

from ladle.grading.reading.tree import TooLarge

DIGITS = 40
MAX_EXACT_BITS = 20_000
"""Larger integers are carried as floats."""
MAX_MAGNITUDE_BITS = 200_000
"""Numbers beyond 2 to this power either way are refused."""

Value = Any
"""A `Fraction`, or a real or complex mpmath number; mpmath has no types to name."""

CONTEXT: Any = mpmath.mp.clone()
CONTEXT.dps = DIGITS
_ZERO = CONTEXT.mpf("1e-35")
_EQUAL = CONTEXT.mpf("1e-30")  # ten digits less than are carried, for what rounding costs on the way


class Undefined(ArithmeticError):
    """There is no finite value: a pole, 0/0, or a function outside its domain."""


def is_close(left: Value, right: Value) -> bool:
    """Whether two values are equal: exactly if both are exact, else to 30 digits, and within 1e-35 of an exact zero."""
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return left == right
    left, right = as_float(left), as_float(right)
    if left == 0 or right == 0:
        return bool(abs(left - right) < _ZERO)
    return bool(abs(left - right) <= max(abs(left), abs(right)) * _EQUAL)


def as_float(value: Value) -> Value:
    """Return an exact value as a float, any other as it is."""
    if isinstance(value, Fraction):
        return CONTEXT.mpf(value.numerator) / value.denominator
    return value


def is_within(left: Value, right: Value, limit: Fraction) -> bool:
    """Whether two values differ by no more than the limit, exactly if both are exact."""
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return abs(left - right) <= limit
    return bool(abs(as_float(left) - as_float(right)) <= as_float(limit))


def is_integer(value: Value) -> bool:
    """Whether the value is an exact integer."""
    return isinstance(value, Fraction) and value.denominator == 1


def is_real(value: Value) -> bool:
    """Whether the value has no imaginary part, up to rounding."""
    return isinstance(value, Fraction) or not abs(value.imag) > abs(value) * _EQUAL


def real_part(value: Value) -> Value:
    """Return the value without its imaginary part."""
    return value if isinstance(value, Fraction) else value.real


def add(left: Value, right: Value) -> Value:
    """Return the sum, exact if both are."""
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return bound_exact(left + right)
    return bound(as_float(left) + as_float(right))


def multiply(left: Value, right: Value) -> Value:
    """Return the product, exact if both are."""
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return bound_exact(left * right)
    return bound(as_float(left) * as_float(right))


def bound_exact(value: Fraction) -> Value:
    """Return the fraction, or a float in its place where it has outgrown exact arithmetic."""
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_EXACT_BITS:
        return bound(as_float(value))
    return value


def bound(value: Value) -> Value:
    """Return the float.

    Raises:
        Undefined: it is not finite.
        TooLarge: it is beyond `MAX_MAGNITUDE_BITS`.
    """
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
    if base == 0 and not (is_real(exponent) and real_part(exponent) > 0):
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


def root(value: Value, degree: Value) -> Value:
    """Return the root; of a negative number the real one where the degree is odd, else the principal one."""
    if not is_integer(degree) or not 1 <= degree <= 1000:
        raise Undefined("a root of that degree")
    if is_real(value) and real_part(value) < 0 and degree % 2:
        return -root(-real_part(value), degree)
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
