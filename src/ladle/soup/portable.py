"""The same mean in numpy, for machines where the compiled kernel is not installed: same bits, a tenth of the speed.

The algorithm and its proof are those of _mean.h: sums in double where a column's exponents prove them exact, integers
elsewhere.
"""

from __future__ import annotations

import numpy as np

from ladle.soup.exact import exact_mean
from ladle.soup.formats import FLOATS, FloatFormat, as_dtype
from ladle.soup.weights import Coefficients

DOUBLE_BITS = 53


def portable_mean(rows: np.ndarray, source: str, coefficients: Coefficients, target: str) -> np.ndarray:
    """Return the bits of the mean of each column, rounded once.

    Args:
        rows: (members, columns), the bits of finite numbers of at most 32 bits.
        source: the dtype of `rows`: BF16, F16 or F32.
        coefficients: one numerator a row.
        target: `source`, or F32.
    """
    sums = np.full(rows.shape[1], -0.0)  # as in IEEE arithmetic, only a sum of negative zeros is one
    for row, numerator in zip(rows, coefficients.numerators, strict=True):
        sums += numerator * as_dtype(row, source, "F64").view(np.float64)
    means = _encode(sums / coefficients.denominator, target)
    hard = np.flatnonzero(~_is_proven(rows, FLOATS[source], coefficients.denominator))
    if hard.size:
        means[hard] = exact_mean(rows[:, hard], FLOATS[source], coefficients, FLOATS[target])
    return means


def _is_proven(rows: np.ndarray, source: FloatFormat, denominator: int) -> np.ndarray:
    magnitudes = rows & source.bits(source.sign - 1)
    largest = magnitudes.max(axis=0)
    smallest = (magnitudes - source.bits(1)).min(axis=0) + source.bits(
        1
    )  # zero wraps around, so it never is the smallest
    high = np.maximum(largest >> source.fraction, 1).astype(np.int64)
    low = np.maximum(smallest >> source.fraction, 1).astype(np.int64)
    return high - low + source.fraction + 1 + (denominator - 1).bit_length() <= DOUBLE_BITS


def _encode(values: np.ndarray, target: str) -> np.ndarray:
    if target == "F32":
        return values.astype(np.float32).view(np.uint32)
    if target == "F16":
        return values.astype(np.float16).view(np.uint16)
    bits = _round_to_odd(values)
    return ((bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def _round_to_odd(values: np.ndarray) -> np.ndarray:
    """Return the bits of the floats next to `values`, the last bit set where not equal, to be rounded once more."""
    nearest = values.astype(np.float32)
    bits = nearest.view(np.uint32)
    is_beyond = np.abs(nearest.astype(np.float64)) > np.abs(values)
    return (bits - is_beyond.astype(np.uint32)) | (nearest != values).astype(np.uint32)
