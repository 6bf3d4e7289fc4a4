"""The mean of fp64 numbers, within one unit in the last place and the same for any order of the members.

No wider format holds the sum, so it is kept as an unevaluated pair, total + error, by error-free additions (Knuth's
TwoSum; Ogita, Rump and Oishi, "Accurate sum and dot product", 2005). While no error of the errors is lost the pair is
the exact sum, and its normal form, hence the result, does not depend on the order. The few columns where one is lost
are done in integers.
"""

from __future__ import annotations

import numpy as np

from ladle.soup.exact import exact_mean
from ladle.soup.formats import FLOATS
from ladle.soup.weights import Coefficients

SMALLEST_SAFE = 2.0**-900
"""Below this the errors of errors could underflow; such columns are done in integers."""


def double_mean(rows: np.ndarray, coefficients: Coefficients) -> np.ndarray:
    """Return the bits of the mean of each column.

    Args:
        rows: (members, columns), the bits of finite fp64 numbers.
        coefficients: one numerator a row, below 2^26.
    """
    numbers = rows.view(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        total, error, is_exact = _sum(numbers, coefficients)
        means = _divide(total, error, coefficients.denominator)
    sizes = np.abs(numbers)
    is_zero = ~sizes.any(axis=0)
    smallest = np.where(sizes == 0, np.inf, sizes).min(axis=0)
    is_safe = is_exact & np.isfinite(total) & (smallest > SMALLEST_SAFE) & (np.abs(total) > SMALLEST_SAFE)
    means[is_zero & np.signbit(numbers).all(axis=0)] = -0.0
    bits = means.view(np.uint64)
    hard = np.flatnonzero(~is_safe & ~is_zero)
    if hard.size:
        bits[hard] = exact_mean(rows[:, hard], FLOATS["F64"], coefficients, FLOATS["F64"])
    return bits


def _sum(numbers: np.ndarray, coefficients: Coefficients) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return total, error and whether total + error is exactly sum_j numerator[j] * numbers[j]."""
    total = np.zeros(numbers.shape[1])
    error = np.zeros_like(total)
    is_exact = np.ones(numbers.shape[1], dtype=bool)
    for row, numerator in zip(numbers, coefficients.numerators, strict=True):
        for part in _split(row):
            total, lost = _two_sum(total, numerator * part)
            error, lost = _two_sum(error, lost)
            is_exact &= lost == 0
    return *_two_sum(total, error), is_exact


def _divide(total: np.ndarray, error: np.ndarray, denominator: int) -> np.ndarray:
    """Return (total + error) / denominator: a quotient, plus the quotient of what it leaves."""
    quotient = total / denominator
    high, low = _split(quotient)
    rest = (total - high * denominator) - low * denominator
    return quotient + (rest + error) / denominator


def _split(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return two parts that sum to `numbers`, each of at most 27 bits, so that times a coefficient they stay exact."""
    high = (numbers.view(np.uint64) & np.uint64(0xFFFF_FFFF_F800_0000)).view(np.float64)
    return high, numbers - high


def _two_sum(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rounded sum, and what rounding lost: exactly a + b together."""
    total = a + b
    b_seen = total - a
    return total, (a - (total - b_seen)) + (b - b_seen)
