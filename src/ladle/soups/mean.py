"""The arithmetic of a soup: for each element a weighted sum in float64, divided and rounded once.

    mean = round((n_1 x_1 + n_2 x_2 + … + n_k x_k) / d)        shares n_j / d, integers of at most 2^20

Products, sum and quotient are float64. Members are added one after the other, in an order that follows from their
shares and their bytes in a block, not from the order in which they are named; so the result depends on the set of
members and their shares alone. `round` goes from float64 to the format of the result in one step, to the nearest
number, ties to even.

For members of at most 32 bits the result is the exact mean, correctly rounded, wherever no addition had to round. That
is certain where the exponents of an element's nonzero members span at most 53 - p - log2(d) binades, p being the bits
of a significand (bf16 8, fp16 11, fp32 24): then products are multiples of the smallest member's last place, and
partial sums stay below 2^53 of them. For equal shares of 8 members these are 42 binades of bf16, 26 of fp32 and
all of fp16; for d = 2^20, the worst, 25, 9 and 22. Rounding the quotient to float64 first does no harm: it is s / d
with integers s < 2^53 and d <= 2^20, which is either a tie between two numbers of the format or further from one than
float64 resolves. Where an addition does round, the sum is off by at most (k - 1) 2^-53 of the sum of the terms'
magnitudes, and the result may be the second nearest number, if the exact mean is that near to a tie.

For fp64 members no format holds the sum: each operation rounds, and a sum above 2^1024 is infinite.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit

from ladle.soups.weights import Coefficients

FLOATS = {"BF16": np.dtype("u2"), "F16": np.dtype("f2"), "F32": np.dtype("f4"), "F64": np.dtype("f8")}
"""The formats that are averaged, by safetensors' name, and their numpy dtypes; numpy has only the bits of bf16."""


def common_dtype(dtypes: set[str]) -> str:
    """Return the narrowest of the formats that holds every number of `dtypes`; bf16 and fp16 together need fp32."""
    if len(dtypes) == 1:
        return next(iter(dtypes))
    return "F64" if "F64" in dtypes else "F32"


def weighted_mean(
    rows: Sequence[bytes], dtypes: Sequence[str], coefficients: Coefficients, target: str
) -> tuple[np.ndarray, int]:
    """Return the mean of one block (bf16 as its bits), and how many of its numbers are NaN or infinite.

    NaN and infinity go through as in IEEE arithmetic; every NaN of the result is the same quiet one.

    Args:
        rows: the bytes of each member's numbers.
        dtypes: the floating-point format of each row.
        coefficients: the share of each row.
        target: the format of the result: one that holds every number of `dtypes`, or F32.
    """
    numerators, denominator = coefficients
    means = np.full(len(rows[0]) // FLOATS[dtypes[0]].itemsize, -0.0)  # a sum of negative zeros is negative
    with np.errstate(over="ignore", invalid="ignore"):
        for numerator, dtype, row in sorted(zip(numerators, dtypes, rows, strict=True)):
            if dtype == "BF16":
                _add_bf16(means, np.frombuffer(row, np.uint16), numerator)
            else:
                means += numerator * decode(row, dtype).astype(np.float64)
        means /= denominator  # in place: a second array of this size would cost page faults
        if target == "BF16":
            result = np.empty(means.size, np.uint16)
            _round_to_bf16(means, result)
        else:
            result = means = means.astype(FLOATS[target])
    is_finite = np.isfinite(means)
    if not is_finite.all():
        result[np.isnan(means)] = 0x7FC0 if target == "BF16" else np.nan
    return result, means.size - int(np.count_nonzero(is_finite))


def decode(row: bytes, dtype: str) -> np.ndarray:
    """Return the numbers that these bytes are; bf16 as fp32."""
    numbers = np.frombuffer(row, FLOATS[dtype])
    return (numbers.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else numbers


@njit(cache=True)
def _add_bf16(total: np.ndarray, bits: np.ndarray, numerator: float) -> None:
    for i in range(bits.size):
        total[i] += numerator * np.uint32(np.uint32(bits[i]) << np.uint32(16)).view(np.float32)


@njit(cache=True)
def _round_to_bf16(means: np.ndarray, result: np.ndarray) -> None:
    """Round by way of fp32, to odd there: its last bit says whether something was cut off, so a tie stays a tie."""
    for i in range(means.size):
        near = np.float32(means[i])
        bits = near.view(np.uint32)
        bits -= np.uint32(abs(np.float64(near)) > abs(means[i]))
        bits |= np.uint32(near != means[i])
        result[i] = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
