"""The functions that answers name, on the values of `ladle.grading.comparing.values`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache
from hashlib import blake2b

from ladle.grading.comparing.values import (
    CONTEXT,
    MAX_MAGNITUDE_BITS,
    Undefined,
    Value,
    as_float,
    bound,
    bound_exact,
    is_integer,
    is_real,
    real_part,
    root,
)
from ladle.grading.reading.tree import TooLarge

_MAX_EXACT_FACTORIAL = 1500
_MAX_ARGUMENT_BITS = 1000
"""The sine of a larger number has no digit left to compare, and its exponential is refused anyway."""


def apply_function(name: str, arguments: Sequence[Value]) -> Value:
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


def apply_unknown(name: str, arguments: Sequence[Value]) -> Value:
    """Return the value of a function of which only the name is known: equal arguments give equal values, no more."""
    seed = pseudo_random(name)
    total = CONTEXT.mpf(1)
    for index, argument in enumerate(arguments, start=1):
        total += CONTEXT.sin(as_float(argument) * index + as_float(seed))
    return total * as_float(seed)


@lru_cache(maxsize=4096)
def pseudo_random_integer(name: str) -> int:
    """Return an integer between 0 and 2**64 that only the name decides."""
    return int.from_bytes(blake2b(name.encode("utf-8", "replace"), digest_size=8).digest(), "big")


def pseudo_random(name: str) -> Fraction:
    """Return a fraction between 1/2 and 3/2 that only the name decides."""
    return Fraction(1, 2) + Fraction(pseudo_random_integer(name) % 9973, 9973)


def _absolute(value: Value) -> Value:
    return abs(value)


def _floor(value: Value) -> Value:
    if not is_real(value):
        raise Undefined("the floor of a complex number")
    return Fraction(math.floor(value)) if isinstance(value, Fraction) else Fraction(int(CONTEXT.floor(value.real)))


def _ceiling(value: Value) -> Value:
    return -_floor(-value)


def _factorial(value: Value) -> Value:
    if is_integer(value) and value < 0:
        raise Undefined("the factorial of a negative integer")
    if is_integer(value) and value <= _MAX_EXACT_FACTORIAL:
        return bound_exact(Fraction(math.factorial(value.numerator)))
    return _gamma(value + 1)


def _gamma(value: Value) -> Value:
    if abs(value) > MAX_MAGNITUDE_BITS:
        raise TooLarge("a factorial too large to compare")
    return bound(CONTEXT.gamma(as_float(value)))


def _binomial(above: Value, below: Value) -> Value:
    if is_integer(above) and is_integer(below) and 0 <= above <= _MAX_EXACT_FACTORIAL:
        return Fraction(math.comb(above.numerator, below.numerator) if below >= 0 else 0)
    if max(abs(above), abs(below)) > MAX_MAGNITUDE_BITS:
        raise TooLarge("a binomial coefficient too large to compare")
    return bound(CONTEXT.binomial(as_float(above), as_float(below)))


def _permutation(total: Value, chosen: Value) -> Value:
    if is_integer(total) and is_integer(chosen) and 0 <= chosen <= total <= _MAX_EXACT_FACTORIAL:
        return bound_exact(Fraction(math.perm(total.numerator, chosen.numerator)))
    return bound(as_float(_factorial(total)) / as_float(_factorial(total - chosen)))


def _logarithm(value: Value, base: Value) -> Value:
    return bound(CONTEXT.ln(as_float(value)) / CONTEXT.ln(as_float(base)))


def _natural_logarithm(value: Value) -> Value:
    return bound(CONTEXT.ln(as_float(value)))


def _of_integers(function: Callable[..., int]) -> Callable[..., Value]:
    def apply(*arguments: Value) -> Value:
        if not all(is_integer(argument) for argument in arguments):
            raise Undefined("a function of integers")
        return Fraction(function(*(argument.numerator for argument in arguments)))

    return apply


def _of_reals(choose: Callable[..., Value]) -> Callable[..., Value]:
    def apply(*arguments: Value) -> Value:
        if not arguments or not all(is_real(argument) for argument in arguments):
            raise Undefined("an order of complex numbers")
        return choose([real_part(argument) for argument in arguments], key=as_float)

    return apply


_FUNCTIONS: dict[str, Callable[..., Value]] = {
    "root": root,
    "abs": _absolute,
    "floor": _floor,
    "ceil": _ceiling,
    "factorial": _factorial,
    "gamma": lambda value: _factorial(value - 1),
    "binomial": _binomial,
    "permutation": _permutation,
    "log": _logarithm,
    "ln": _natural_logarithm,
    "gcd": _of_integers(math.gcd),
    "lcm": _of_integers(math.lcm),
    "max": _of_reals(max),
    "min": _of_reals(min),
}
_MPMATH_NAMES = {name: name for name in ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "exp")} | {
    prefix + name: "a" + name
    for prefix, names in (
        ("arc", "sin cos tan cot sec csc sinh cosh tanh"),
        ("ar", "sinh cosh tanh"),
        ("a", "sin cos tan sinh cosh tanh"),
    )
    for name in names.split()
}
_FLOAT_FUNCTIONS: dict[str, Callable[[Value], Value]] = {
    name: getattr(CONTEXT, theirs) for name, theirs in _MPMATH_NAMES.items()
}
