"""Numbers as they are written: decimals, powers of ten, mixed numbers and repeating decimals, as exact fractions."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from ladle.grading.reading.tokens import Token
from ladle.grading.reading.tree import Number, TooLarge, Unreadable

MAX_POWER_OF_TEN = 4000
"""A number with a larger exponent is not an answer; it bounds the size of exact fractions."""


class Found(NamedTuple):
    """A value, and how many of the following tokens belong to it."""

    value: Fraction
    width: int


def read_literal(text: str) -> Number:
    """Return the exact value of `12`, `.35`, `-1.` or `4.5e33`, and how many decimals it shows.

    Raises:
        Unreadable: it has no digits, as what is left of `\\frac.9` after its first character.
        TooLarge: its power of ten is beyond `MAX_POWER_OF_TEN`.
    """
    if text.isdigit():
        return Number(Fraction(int(text)))
    mantissa, _, exponent = text.lower().partition("e")
    whole, _, decimals = mantissa.partition(".")
    shift = _read_exponent(exponent) - len(decimals)
    if not whole + decimals:
        raise Unreadable(f"{text!r} is not a number")
    digits = int(whole + decimals)
    value = Fraction(digits * 10**shift) if shift >= 0 else Fraction(digits, 10**-shift)
    return Number(value, None if exponent or not decimals else len(decimals))


def _read_exponent(text: str) -> int:
    if not text:
        return 0
    if len(text) > 6 or abs(int(text)) > MAX_POWER_OF_TEN:
        raise TooLarge(f"a power of ten beyond {MAX_POWER_OF_TEN}")
    return int(text)


def read_mixed(token: Token, following: Sequence[Token]) -> Found | None:
    """Return the value of a whole number and the fraction of numbers after it (`3\\frac{1}{2}`, `3 1/2`), if it is one.

    An improper fraction is added too: 1\\frac{9}{5} is a misprint of a mixed number more often than a product.
    """
    if not token.text.isdigit():
        return None
    texts = [piece.text for piece in following]
    if texts[:1] == ["\\frac"]:
        above, below, width = _read_fraction(texts)
    elif len(texts) >= 3 and texts[1] == "/" and following[0].kind == following[2].kind == "number":
        above, below, width = texts[0], texts[2], 3
    else:
        return None
    if not (above.isdigit() and below.isdigit() and int(below)):
        return None
    return Found(Fraction(int(token.text)) + Fraction(int(above), int(below)), width)


def _read_fraction(texts: Sequence[str]) -> tuple[str, str, int]:
    """Return what stands above and below the line, and the width of the whole; only forms of plain digits matter."""
    if len(texts) >= 7 and texts[1] == texts[4] == "{" and texts[3] == texts[6] == "}":
        return texts[2], texts[5], 7
    if len(texts) >= 2 and len(texts[1]) == 2:
        return texts[1][0], texts[1][1], 2
    if len(texts) >= 3 and len(texts[1]) == len(texts[2]) == 1:
        return texts[1], texts[2], 3
    return "", "", 0


def read_repeating(token: Token, following: Sequence[Token]) -> Found | None:
    """Return the value of a decimal whose last digits repeat (`0.1\\overline{6}`), if it is one."""
    texts = [piece.text for piece in following[:4]]
    if "." not in token.text or len(texts) < 4 or texts[0] not in ("\\overline", "\\bar") or not texts[2].isdigit():
        return None
    places, period = len(token.text.partition(".")[2]), len(texts[2])
    repeating = Fraction(int(texts[2]), 10**places * (10**period - 1))
    return Found(read_literal(token.text).value + repeating, 4)
