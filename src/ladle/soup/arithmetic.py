"""One chunk of a soup: raw bytes of the members in, raw bytes of their exact mean out.

The compiled kernel does nearly all of it; the numpy ways do fp64, and everything where the kernel is not installed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ladle.log import get_logger
from ladle.soup.double import double_mean
from ladle.soup.formats import FLOATS, as_dtype, widest
from ladle.soup.portable import portable_mean
from ladle.soup.weights import Coefficients

try:
    from ladle.soup import _kernel
except ImportError:  # built where there is a C compiler
    _kernel = None

KERNEL_FORMATS = {"BF16": 0, "F16": 1, "F32": 2}
COLUMNS = 2**14
"""Numbers that the numpy ways take at a time, to keep their temporaries, tens of bytes a number, small."""

logger = get_logger(__name__)


def say_how() -> None:
    """Warn the user when averaging will be slow."""
    if _kernel is None:
        logger.warning("soup: the compiled kernel is not installed; the result is the same, about ten times slower")


def fill_mean(
    rows: Sequence[memoryview], dtypes: Sequence[str], coefficients: Coefficients, target: str, out: memoryview
) -> bool:
    """Fill `out` with the weighted mean of the rows; False, with `out` undefined, when a number is NaN or infinite.

    Args:
        rows: the bytes of each member's numbers.
        dtypes: each row's floating-point dtype.
        coefficients: one numerator a row, none of them 0.
        target: dtype of the result, at least as wide as all of `dtypes`; F32 is allowed for F64 as well.
        out: the bytes of the result.
    """
    common = widest(set(dtypes))
    if common in KERNEL_FORMATS and _kernel is not None:
        if any(dtype != common for dtype in dtypes):
            rows = [as_dtype(_bits(row, dtype), dtype, common).data for row, dtype in zip(rows, dtypes, strict=True)]
        numerators, denominator = coefficients
        return _kernel.average(KERNEL_FORMATS[common], rows, numerators, denominator, KERNEL_FORMATS[target], out)
    for columns, part in _parts(rows, dtypes, common, target, out):
        if not np.isfinite(_numbers(columns, common)).all():
            return False
        part[:] = _mean(columns, common, coefficients, target)
    return True


def fill_ieee_mean(
    rows: Sequence[memoryview], dtypes: Sequence[str], coefficients: Coefficients, target: str, out: memoryview
) -> int:
    """Do the same, letting NaN and infinity through as IEEE arithmetic does; returns how many results are such."""
    common, count = widest(set(dtypes)), 0
    for columns, part in _parts(rows, dtypes, common, target, out):
        is_finite = np.isfinite(_numbers(columns, common))
        part[:] = _mean(np.where(is_finite, columns, columns.dtype.type(0)), common, coefficients, target)
        rough = np.flatnonzero(~is_finite.all(axis=0))
        part[rough] = _ieee_bits(_numbers(columns[:, rough], common), target)
        count += rough.size
    return count


def find_nonfinite(rows: Sequence[memoryview], dtypes: Sequence[str]) -> tuple[int, int, float]:
    """Return (row, position, value) of the first NaN or infinity of rows that hold one."""
    for index, (row, dtype) in enumerate(zip(rows, dtypes, strict=True)):
        numbers = _numbers(_bits(row, dtype), dtype)
        found = np.flatnonzero(~np.isfinite(numbers))
        if found.size:
            return index, int(found[0]), float(numbers[found[0]])
    raise ValueError("all numbers are finite")


def _bits(row: memoryview, dtype: str) -> np.ndarray:
    return np.frombuffer(row, FLOATS[dtype].bits)


def _parts(
    rows: Sequence[memoryview], dtypes: Sequence[str], common: str, target: str, out: memoryview
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (members, columns) arrays of bits in the common format, with the part of `out` that is theirs."""
    bits = [_bits(row, dtype) for row, dtype in zip(rows, dtypes, strict=True)]
    means = np.frombuffer(out, FLOATS[target].bits)
    for start in range(0, means.size, COLUMNS):
        part = slice(start, start + COLUMNS)
        columns = np.stack([as_dtype(row[part], dtype, common) for row, dtype in zip(bits, dtypes, strict=True)])
        yield columns, means[part]


def _numbers(bits: np.ndarray, dtype: str) -> np.ndarray:
    return as_dtype(bits, dtype, "F64").view(np.float64)


def _mean(columns: np.ndarray, common: str, coefficients: Coefficients, target: str) -> np.ndarray:
    if common != "F64":
        return portable_mean(columns, common, coefficients, target)
    means = double_mean(columns, coefficients)
    return means if target == "F64" else means.view(np.float64).astype(np.float32).view(np.uint32)


def _ieee_bits(numbers: np.ndarray, target: str) -> np.ndarray:
    form = FLOATS[target]
    with np.errstate(invalid="ignore"):
        # NaN or an infinity, whatever the finite terms and the coefficients are.
        sums = np.where(np.isfinite(numbers), 0.0, numbers).sum(axis=0)
    bits = np.where(sums < 0, form.bits(form.infinity | form.sign), form.bits(form.infinity))
    bits[np.isnan(sums)] = form.infinity | 1 << (form.fraction - 1)  # the quiet NaN
    return bits
