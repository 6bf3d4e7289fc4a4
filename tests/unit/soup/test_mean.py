"""The arithmetic against Python's floats and exact rationals, on numbers made to be hard."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest

from ladle.soups.config import SoupConfig
from ladle.soups.mean import Averager, decode
from ladle.soups.weights import Coefficients, make_coefficients, over

from .formats import FORMATS, KINDS, hard_rows

METHODS = ("uniform", "linear", "ema", "wsm_cosine")
COLUMNS = 600
WAYS = [("BF16", "BF16"), ("F16", "F16"), ("F32", "F32"), ("BF16", "F32"), ("F64", "F64"), ("F64", "F32")]


def coefficients_of(method: str, num_members: int) -> Coefficients:
    return make_coefficients(SoupConfig.model_validate({"method": method}), num_members)


def average(rows: np.ndarray, dtype: str, coefficients: Coefficients, target: str) -> np.ndarray:
    """Return the mean of rows of bits as bits."""
    result, _ = Averager(coefficients).average([row.tobytes() for row in rows], [dtype] * len(rows), target)
    return result.view(FORMATS[target].bits)


def float_mean(rows: np.ndarray, dtype: str, coefficients: Coefficients) -> list[float]:
    """Return what the docstring promises before rounding: Python's sums, in the order of shares and bytes."""
    values = [decode(row.tobytes(), dtype).astype(np.float64).tolist() for row in rows]
    order = sorted(range(len(rows)), key=lambda j: (coefficients.numerators[j], rows[j].tobytes()))
    sums = [-0.0] * rows.shape[1]
    for j in order:
        sums = [total + coefficients.numerators[j] * value for total, value in zip(sums, values[j], strict=True)]
    return [total / coefficients.denominator for total in sums]


def sums_are_exact(column: list[int], dtype: str, denominator: int) -> bool:
    """Tell whether the docstring promises the correctly rounded mean: the span of exponents of nonzero members."""
    form = FORMATS[dtype]
    exponents = [max((bits & (form.sign - 1)) >> form.fraction, 1) for bits in column if bits & (form.sign - 1)]
    span = max(exponents, default=0) - min(exponents, default=0)
    return span + form.fraction + 1 + math.log2(denominator) <= 53


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_members", [1, 2, 3, 7, 8])
@pytest.mark.parametrize(("dtype", "target"), WAYS)
def test_every_element_is_the_float64_sum_rounded_once(dtype: str, target: str, num_members: int, kind: str) -> None:
    form = FORMATS[target]
    for number, method in enumerate(METHODS):
        coefficients = coefficients_of(method, num_members)
        rows = hard_rows(kind, dtype, num_members, COLUMNS, seed=number)
        for mean, bits in zip(
            float_mean(rows, dtype, coefficients), average(rows, dtype, coefficients, target).tolist(), strict=True
        ):
            if math.isfinite(mean):
                assert bits == form.nearest(Fraction(mean)) | (form.sign if math.copysign(1, mean) < 0 else 0)
            else:  # a sum that is too large
                assert dtype == "F64"
                assert bits & (form.sign - 1) >= form.infinity


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_members", [2, 3, 7, 8])
@pytest.mark.parametrize(("dtype", "target"), WAYS[:4])
def test_an_element_whose_members_are_near_is_the_exact_mean_rounded_correctly(
    dtype: str, target: str, num_members: int, kind: str
) -> None:
    source, form, num_checked = FORMATS[dtype], FORMATS[target], 0
    for number, method in enumerate(METHODS):
        coefficients = coefficients_of(method, num_members)
        rows = hard_rows(kind, dtype, num_members, COLUMNS, seed=number)
        results = average(rows, dtype, coefficients, target).tolist()
        for column, result in zip(rows.T.tolist(), results, strict=True):
            if sums_are_exact(column, dtype, coefficients.denominator):
                terms = [n * source.value(bits) for n, bits in zip(coefficients.numerators, column, strict=True)]
                expected = form.nearest(sum(terms, Fraction(0)) / coefficients.denominator)
                if all(bits == source.sign for bits in column):
                    expected = form.sign  # negative zeros make a negative zero
                assert result == expected
                num_checked += 1
    if kind == "checkpoints":
        assert num_checked > (0.99 if dtype != "F32" else 0.9) * COLUMNS * len(METHODS)


@pytest.mark.parametrize("dtype", sorted(FORMATS))
@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_the_members_does_not_matter(dtype: str, kind: str) -> None:
    for method in METHODS:
        coefficients, rows = coefficients_of(method, 7), hard_rows(kind, dtype, 7, COLUMNS, seed=5)
        result = average(rows, dtype, coefficients, dtype)
        for seed in range(3):
            order = np.random.default_rng(seed).permutation(7)
            reordered = Coefficients(tuple(coefficients.numerators[j] for j in order), coefficients.denominator)
            np.testing.assert_array_equal(average(rows[order], dtype, reordered, dtype), result)


@pytest.mark.parametrize("num_equal", [0, 31, 599])
def test_the_order_of_members_does_not_matter_however_many_numbers_are_equal(num_equal: int) -> None:
    rows = hard_rows("checkpoints", "F64", 3, 600, seed=4)
    rows[:, :num_equal] = rows[0, :num_equal]
    coefficients = coefficients_of("uniform", 3)
    results = [average(rows[[*order]], "F64", coefficients, "F64").tolist() for order in permutations(range(3))]
    assert all(result == results[0] for result in results)


def test_blocks_of_other_sizes_do_not_disturb_each_other() -> None:
    averager, sizes = Averager(coefficients_of("uniform", 3)), (5, 600, 0, 7)
    for seed, size in enumerate(sizes):
        rows = hard_rows("checkpoints", "BF16", 3, 600, seed)[:, :size]
        result, _ = averager.average([row.tobytes() for row in rows], ["BF16"] * 3, "BF16")
        np.testing.assert_array_equal(result, average(rows, "BF16", coefficients_of("uniform", 3), "BF16"))


def test_members_of_different_formats_are_averaged_in_one_that_holds_both() -> None:
    bf16, fp16 = hard_rows("checkpoints", "BF16", 1, 600, 1)[0], hard_rows("checkpoints", "F16", 1, 600, 2)[0]
    result, _ = Averager(over([0, 1], 2)).average([bf16.tobytes(), fp16.tobytes()], ["BF16", "F16"], "F32")
    values = (bf16.astype(np.uint32) << 16).view(np.float32).astype(np.float64) + fp16.view(np.float16)
    np.testing.assert_array_equal(result, (values / 2).astype(np.float32))


@pytest.mark.parametrize("dtype", sorted(FORMATS))
def test_nan_and_infinity_go_through_as_in_ieee_arithmetic_and_are_counted(dtype: str) -> None:
    form = FORMATS[dtype]
    rows = hard_rows("checkpoints", dtype, 2, 7, seed=3)
    clean = average(rows, dtype, over([0, 1], 2), dtype)
    inf, minus = form.infinity, form.infinity | form.sign
    nans = [inf + 1, form.sign - 1, minus + 1]
    rows[:, 1:] = np.array([[*nans, inf, minus, inf], [0, 1, 1, 1, 1, minus]], form.bits)
    result, num_nonfinite = Averager(over([0, 1], 2)).average([row.tobytes() for row in rows], [dtype] * 2, dtype)
    quiet = inf | 1 << (form.fraction - 1)
    assert num_nonfinite == 6
    assert result.view(form.bits).tolist() == [clean[0], quiet, quiet, quiet, inf, minus, quiet]
