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

from ladle.soups.weights import Coefficients

FLOATS = {"BF16": np.dtype("u2"), "F16": np.dtype("f2"), "F32": np.dtype("f4"), "F64": np.dtype("f8")}
"""The formats that are averaged, by safetensors' name, and their numpy dtypes; numpy has only the bits of bf16."""


def common_dtype(dtypes: set[str]) -> str:
    """Return the narrowest of the formats that holds every number of `dtypes`; bf16 and fp16 together need fp32."""
    if len(dtypes) == 1:
        return next(iter(dtypes))
    return "F64" if "F64" in dtypes else "F32"


class Averager:
    """Averages one block after the other by the same shares, in arrays that it keeps: new ones would cost page faults.

    Args:
        coefficients: the share of each row of a block.
    """

    def __init__(self, coefficients: Coefficients) -> None:
        self._numerators, self._denominator = coefficients
        self._doubles, self._words = np.empty((2, 0)), np.empty((2, 0), np.uint32)

    def average(self, rows: Sequence[bytes | memoryview], dtypes: Sequence[str], target: str) -> tuple[np.ndarray, int]:
        """Return the mean of one block (bf16 as its bits), and how many of its numbers are NaN or infinite.

        NaN and infinity go through as in IEEE arithmetic; every NaN of the result is the same quiet one.

        Args:
            rows: the bytes of each member's numbers.
            dtypes: the floating-point format of each row.
            target: the format of the result: one that holds every number of `dtypes`, or F32.
        """
        size = len(rows[0]) // FLOATS[dtypes[0]].itemsize
        if size > self._doubles.shape[1]:
            self._doubles, self._words = np.empty((2, size)), np.empty((2, size), np.uint32)
        means, terms = self._doubles[:, :size]
        with np.errstate(over="ignore", invalid="ignore"):
            for place, index in enumerate(self._in_order(rows, dtypes)):
                into = terms if place else means
                into[:] = decode(rows[index], dtypes[index], self._words[0, :size])
                if self._numerators[index] != 1:
                    into *= self._numerators[index]
                if place:
                    means += terms
            if self._denominator & (self._denominator - 1):
                means /= self._denominator
            else:
                means *= 1 / self._denominator  # exact for a power of two, and quicker
            if target == "BF16":
                result = _round_to_bf16(means, *self._words[:, :size])
            else:
                result = means = means.astype(FLOATS[target])
        num_nonfinite = means.size - int(np.count_nonzero(np.isfinite(means)))
        if num_nonfinite:
            result[np.isnan(means)] = 0x7FC0 if target == "BF16" else np.nan
        return result, num_nonfinite

    def _in_order(self, rows: Sequence[bytes | memoryview], dtypes: Sequence[str]) -> list[int]:
        """Return the rows' indices by share, format and bytes: the first 64 decide, unless two rows share them."""
        keys = [
            (share, dtype, bytes(row[:64])) for share, dtype, row in zip(self._numerators, dtypes, rows, strict=True)
        ]
        if len(set(keys)) < len(keys):
            keys = [(share, dtype, bytes(row)) for (share, dtype, _), row in zip(keys, rows, strict=True)]
        return sorted(range(len(rows)), key=keys.__getitem__)


def decode(row: bytes | memoryview, dtype: str, words: np.ndarray | None = None) -> np.ndarray:
    """Return the numbers that these bytes are; bf16 as fp32, in the memory of `words` (u4) if it is given."""
    numbers = np.frombuffer(row, FLOATS[dtype])
    if dtype != "BF16":
        return numbers
    words = np.empty(len(numbers), np.uint32) if words is None else words
    words[:] = numbers
    words <<= 16
    return words.view(np.float32)


def _round_to_bf16(means: np.ndarray, words: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Round by way of fp32, to odd there: its last bit says whether something was cut off, so a tie stays a tie.

    Args:
        means: (n,) f8.
        words: (n,) u4 to work in.
        last: (n,) u4, also to work in.
    """
    near = words.view(np.float32)
    near[:] = means
    cut = np.flatnonzero(near != means)
    words[cut] -= np.abs(near[cut].astype(np.float64)) > np.abs(means[cut])
    words[cut] |= 1
    np.right_shift(words, 16, out=last)
    last &= 1
    words += last
    words += 0x7FFF
    words >>= 16
    return words.astype(np.uint16)
