"""The arithmetic against exact rationals: first the integer mean, then, by it, the kernel and its numpy twin."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ladle.soup import arithmetic
from ladle.soup.config import SoupConfig
from ladle.soup.exact import exact_mean
from ladle.soup.formats import FLOATS, FloatFormat
from ladle.soup.weights import Coefficients, make_coefficients, over

from .hard_numbers import KINDS, hard_rows

METHODS = ("uniform", "linear", "ema", "wsm_cosine")
COLUMNS = 512 + 77  # a whole block of the kernel, and a part of one


@pytest.fixture(params=["kernel", "portable"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "portable":
        monkeypatch.setattr(arithmetic, "_kernel", None)
    elif arithmetic._kernel is None:
        pytest.skip("the compiled kernel is not installed")
    return request.param


def coefficients_of(method: str, num_members: int) -> Coefficients:
    return make_coefficients(SoupConfig.model_validate({"method": method}), num_members)


def average(rows: np.ndarray, dtype: str, coefficients: Coefficients, target: str) -> np.ndarray:
    out = np.zeros(rows.shape[1], FLOATS[target].bits)
    data = [np.ascontiguousarray(row).data.cast("B") for row in rows]
    assert arithmetic.fill_mean(data, [dtype] * len(rows), coefficients, target, out.data.cast("B"))
    return out


def value_of(bits: int, form: FloatFormat) -> Fraction:
    exponent, fraction = divmod(bits & (form.sign - 1), 2**form.fraction)
    significand = fraction + (2**form.fraction if exponent else 0)
    size = Fraction(significand) * Fraction(2) ** (max(exponent, 1) - form.bias - form.fraction)
    return -size if bits & form.sign else size


def nearest(value: Fraction, form: FloatFormat) -> int:
    """Find the bits nearest to a rational by bisection: magnitudes grow with their bits. Ties go to the even bits."""
    low, high = 0, form.infinity - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if value_of(middle, form) <= abs(value) else (low, middle - 1)
    below, above = abs(value) - value_of(low, form), value_of(low + 1, form) - abs(value)
    magnitude = low + (above < below or (above == below and low % 2 == 1))
    return magnitude | (form.sign if value < 0 else 0)


@settings(max_examples=200, deadline=None)
@given(
    dtype=st.sampled_from(sorted(FLOATS)),
    method=st.sampled_from(METHODS),
    kind=st.sampled_from(KINDS),
    num_members=st.sampled_from([1, 2, 3, 7, 8]),
    seed=st.integers(0, 2**32),
)
def test_the_integer_mean_is_the_nearest_number_to_the_rational_mean(
    dtype: str, method: str, kind: str, num_members: int, seed: int
) -> None:
    form, coefficients = FLOATS[dtype], coefficients_of(method, num_members)
    rows = hard_rows(kind, dtype, num_members, 4, seed)
    for column, result in zip(rows.T.tolist(), exact_mean(rows, form, coefficients, form).tolist(), strict=True):
        terms = [n * value_of(bits, form) for n, bits in zip(coefficients.numerators, column, strict=True)]
        expected = nearest(sum(terms, Fraction(0)) / coefficients.denominator, form)
        if all(bits == form.sign for bits in column):
            expected = form.sign  # negative zeros make a negative zero
        assert result == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_members", [2, 3, 7, 8])
@pytest.mark.parametrize(("dtype", "target"), [("BF16", "BF16"), ("F16", "F16"), ("F32", "F32"), ("BF16", "F32")])
def test_every_element_is_the_exact_mean_rounded_once(
    way: str, dtype: str, target: str, num_members: int, kind: str
) -> None:
    for number, method in enumerate(METHODS):
        coefficients = coefficients_of(method, num_members)
        rows = hard_rows(kind, dtype, num_members, COLUMNS, seed=number)
        expected = exact_mean(rows, FLOATS[dtype], coefficients, FLOATS[target])
        np.testing.assert_array_equal(average(rows, dtype, coefficients, target), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_members", [2, 7])
def test_fp64_is_within_one_unit_and_the_same_in_any_order(num_members: int, kind: str) -> None:
    for method in METHODS:
        coefficients = coefficients_of(method, num_members)
        rows = hard_rows(kind, "F64", num_members, 300, seed=5)
        result = average(rows, "F64", coefficients, "F64")
        expected = exact_mean(rows, FLOATS["F64"], coefficients, FLOATS["F64"])
        np.testing.assert_array_equal(result & np.uint64(2**63), expected & np.uint64(2**63))
        magnitudes = [bits.astype(np.int64) & (2**63 - 1) for bits in (result, expected)]
        assert np.abs(magnitudes[0] - magnitudes[1]).max() <= 1
        order = np.random.default_rng(1).permutation(num_members)
        reordered = Coefficients(tuple(coefficients.numerators[j] for j in order), coefficients.denominator)
        np.testing.assert_array_equal(average(rows[order], "F64", reordered, "F64"), result)


def test_members_of_different_formats_are_averaged_in_one_that_holds_both(way: str) -> None:
    bf16, fp16 = hard_rows("checkpoints", "BF16", 1, 600, 1)[0], hard_rows("checkpoints", "F16", 1, 600, 2)[0]
    out = np.zeros(600, np.uint32)
    rows = [bf16.data.cast("B"), fp16.data.cast("B")]
    assert arithmetic.fill_mean(rows, ["BF16", "F16"], over([0, 1], 2), "F32", out.data.cast("B"))
    values = (bf16.astype(np.uint32) << 16).view(np.float32).astype(np.float64) + fp16.view(np.float16)
    np.testing.assert_array_equal(out.view(np.float32), (values / 2).astype(np.float32))


@pytest.mark.parametrize("dtype", sorted(FLOATS))
@pytest.mark.parametrize("position", [0, 512, 1700])
def test_nan_and_infinity_are_seen_and_found(way: str, dtype: str, position: int) -> None:
    form = FLOATS[dtype]
    for bad in (form.infinity, form.infinity | form.sign, form.infinity + 1, form.sign - 1):
        rows = hard_rows("checkpoints", dtype, 3, 1701, seed=3)
        rows[1, position] = bad
        data = [row.data.cast("B") for row in rows]
        out = np.zeros(1701, form.bits)
        assert not arithmetic.fill_mean(data, [dtype] * 3, over([0, 1, 2], 3), dtype, out.data.cast("B"))
        assert arithmetic.find_nonfinite(data, [dtype] * 3)[:2] == (1, position)


@pytest.mark.parametrize("dtype", sorted(FLOATS))
def test_nan_and_infinity_go_through_where_they_are_let(way: str, dtype: str) -> None:
    form = FLOATS[dtype]
    rows = hard_rows("checkpoints", dtype, 2, 5, seed=3)
    clean = average(rows, dtype, over([0, 1], 2), dtype)
    nan, inf, minus = form.infinity + 1, form.infinity, form.infinity | form.sign
    rows[:, 1:] = np.array([[nan, inf, minus, inf], [0, 1, 1, minus]], form.bits)
    out = np.zeros(5, form.bits)
    data = [np.ascontiguousarray(row).data.cast("B") for row in rows]
    assert arithmetic.fill_ieee_mean(data, [dtype] * 2, over([0, 1], 2), dtype, out.data.cast("B")) == 4
    quiet = form.infinity | 1 << (form.fraction - 1)
    assert out.tolist() == [clean[0], quiet, inf, minus, quiet]


@pytest.mark.skipif(arithmetic._kernel is None, reason="the compiled kernel is not installed")
@pytest.mark.parametrize(
    "arguments",
    [
        (7, [b"1234"], [1], 1, 7, bytearray(4)),
        (2, [b"1234"], [1], 1, 0, bytearray(4)),
        (2, [b"1234"], [1, 1], 1, 2, bytearray(4)),
        (2, [b"123"], [1], 1, 2, bytearray(4)),
        (2, [], [], 1, 2, bytearray(4)),
        (2, [b"1234"], [1], 0, 2, bytearray(4)),
        (2, [b"1234"], [1], 2**20 + 1, 2, bytearray(4)),
    ],
)
def test_the_kernel_refuses_what_it_cannot_do(arguments: tuple) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - seven different messages
        arithmetic._kernel.average(*arguments)


@pytest.mark.skipif(arithmetic._kernel is None, reason="the compiled kernel is not installed")
def test_the_kernel_releases_what_it_holds_when_it_fails() -> None:
    out, row = bytearray(4), bytearray(4)
    with pytest.raises(TypeError):
        arithmetic._kernel.average(2, [row, "text"], [1, 1], 2, 2, out)
    with pytest.raises(OverflowError):
        arithmetic._kernel.average(2, [row], [-1], 1, 2, out)
    out.append(0)  # would raise BufferError while a view is held
    row.append(0)
