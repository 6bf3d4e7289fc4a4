"""The floating-point formats by their bits: exact values, correct rounding, and numbers that are hard to average."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import numpy as np


class Format(NamedTuple):
    """IEEE-like: a sign, an exponent biased by `bias`, and `fraction` bits, in an unsigned integer."""

    bits: type[np.unsignedinteger]
    fraction: int
    bias: int

    @property
    def sign(self) -> int:
        return 1 << (8 * np.dtype(self.bits).itemsize - 1)

    @property
    def infinity(self) -> int:
        """The bits of positive infinity; larger magnitudes are NaN."""
        return self.sign - (1 << self.fraction)

    def value(self, bits: int) -> Fraction:
        exponent, fraction = divmod(bits & (self.sign - 1), 2**self.fraction)
        significand = fraction + (2**self.fraction if exponent else 0)
        size = Fraction(significand) * Fraction(2) ** (max(exponent, 1) - self.bias - self.fraction)
        return -size if bits & self.sign else size

    def nearest(self, value: Fraction) -> int:
        """Return the bits of the nearest number; ties go to the even one, as Python rounds rationals."""
        if value == 0:
            return 0
        smallest = 1 - self.bias - self.fraction  # exponent of the last place of subnormal numbers
        top = abs(value).numerator.bit_length() - value.denominator.bit_length()
        top -= Fraction(2) ** top > abs(value)
        last = max(top - self.fraction, smallest)
        # The significand brings the leading one, which is the last unit of the exponent.
        magnitude = ((last - smallest) << self.fraction) + round(abs(value) / Fraction(2) ** last)
        return min(magnitude, self.infinity) | (self.sign if value < 0 else 0)


FORMATS = {
    "BF16": Format(np.uint16, 7, 127),
    "F16": Format(np.uint16, 10, 15),
    "F32": Format(np.uint32, 23, 127),
    "F64": Format(np.uint64, 52, 1023),
}
KINDS = ("checkpoints", "any", "near", "cancelling", "subnormal", "ties", "tiny and large", "zeros")
"""Bit patterns that are hard to average."""


def hard_rows(kind: str, dtype: str, num_members: int, columns: int, seed: int) -> np.ndarray:
    """Return (members, columns) bits of finite numbers."""
    form, rng = FORMATS[dtype], np.random.default_rng(seed)
    shape = (num_members, columns)

    def magnitudes(low: int, high: int) -> np.ndarray:
        return rng.integers(low, high, shape, dtype=np.uint64)

    base = rng.integers(0, form.infinity, columns, dtype=np.uint64)
    signs = rng.integers(0, 2, shape, dtype=np.uint64) * np.uint64(form.sign)
    one = np.uint64(form.bias << form.fraction)  # the bits of 1.0
    if kind == "checkpoints":
        return to_bits(rng.normal(0, 0.02, columns) + rng.normal(0, 0.0008, shape), dtype)
    if kind == "any":
        bits = magnitudes(0, form.infinity) | signs
    elif kind == "near":  # neighbours of one number: means fall on and between the numbers of the format
        bits = np.clip(base.astype(np.int64) + rng.integers(-3, 4, shape), 0, form.infinity - 1).astype(np.uint64)
    elif kind == "cancelling":  # a pair that cancels, and far smaller numbers that then decide
        bits = np.where(rng.random(shape) < 0.5, magnitudes(0, one), magnitudes(0, 1 << (form.fraction + 2))) | signs
        bits[0], bits[-1] = base, base | np.uint64(form.sign)
    elif kind == "subnormal":
        bits = magnitudes(0, 1 << (form.fraction + 1)) | signs
    elif kind == "ties":  # small integers: their means are often halfway between two numbers
        return to_bits(rng.integers(-(2**form.fraction), 2**form.fraction, shape).astype(np.float64), dtype)
    elif kind == "tiny and large":
        bits = np.where(rng.random(shape) < 0.5, magnitudes(0, 8), magnitudes(form.infinity - 8, form.infinity)) | signs
    else:
        bits = np.where(rng.random(shape) < 0.9, np.uint64(0), magnitudes(0, 3)) | signs
    return bits.astype(form.bits)


def to_bits(values: np.ndarray, dtype: str) -> np.ndarray:
    """Round to a format, not correctly everywhere for bf16, which numbers of this kind do not mind."""
    if dtype == "BF16":
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return values.astype({"F16": np.float16, "F32": np.float32, "F64": np.float64}[dtype]).view(FORMATS[dtype].bits)
