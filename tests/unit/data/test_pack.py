from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ladle.data.mixing import best_fit, split_long, wrap

LENGTHS = st.lists(st.integers(1, 300), max_size=200).map(lambda values: np.array(values, np.int64))
ROW = st.integers(1, 140)


@given(lengths=LENGTHS, row_length=ROW)
def test_only_long_documents_are_cut_and_nothing_is_lost(lengths: np.ndarray, row_length: int):
    owners, offsets, sizes = split_long(lengths, row_length)
    assert np.array_equal(np.bincount(owners, sizes, len(lengths)), lengths)
    assert sizes.max(initial=0) <= row_length
    assert np.array_equal(np.bincount(owners, minlength=len(lengths)), -(-lengths // row_length))
    follows = owners[1:] == owners[:-1]
    assert np.array_equal(offsets[1:][follows], (offsets + sizes)[:-1][follows])


@given(lengths=LENGTHS, row_length=ROW)
def test_best_fit_places_every_fragment_once_and_overfills_no_row(lengths: np.ndarray, row_length: int):
    _, _, sizes = split_long(lengths, row_length)
    rows, num_rows = best_fit(sizes, row_length)
    filled = np.bincount(rows, sizes, num_rows)
    assert filled.max(initial=0) <= row_length
    assert filled.min(initial=1) > 0
    assert filled.sum() == lengths.sum()


@given(lengths=LENGTHS, row_length=ROW)
def test_a_row_is_closed_only_when_nothing_left_fits(lengths: np.ndarray, row_length: int):
    _, _, sizes = split_long(lengths, row_length)
    rows, num_rows = best_fit(sizes, row_length)
    filled = np.bincount(rows, sizes, num_rows)
    for row in range(num_rows - 1):
        assert sizes[rows > row].min() > row_length - filled[row]


@given(lengths=LENGTHS, row_length=ROW, filled=st.integers(0, 140))
def test_wrap_cuts_one_stream(lengths: np.ndarray, row_length: int, filled: int):
    filled = min(filled, row_length)
    owners, offsets, sizes, rows = wrap(lengths, row_length, filled)
    assert sizes.min(initial=1) > 0
    assert np.array_equal(np.bincount(owners, sizes, len(lengths)), lengths)
    starts = filled + np.cumsum(sizes) - sizes
    assert np.array_equal(starts // row_length, rows)
    assert np.array_equal((starts + sizes - 1) // row_length, rows)
    assert np.array_equal(starts - filled, (np.cumsum(lengths) - lengths)[owners] + offsets)


@pytest.mark.parametrize(("mean_log", "sigma"), [(6.2, 1.0), (6.0, 0.55), (7.7, 1.0)])
def test_padding_is_small_at_real_lengths(mean_log: float, sigma: float):
    """Log-normal lengths like those of web pages, math problems and long documents; the last row alone pads L / 2."""
    lengths = np.random.default_rng(0).lognormal(mean_log, sigma, 12_000).astype(np.int64).clip(1, 10**6)
    _, _, sizes = split_long(lengths, 4096)
    _, num_rows = best_fit(sizes, 4096)
    assert lengths.sum() > 5_000_000
    assert 1 - lengths.sum() / (num_rows * 4096) <= 0.001


def test_full_rows_keep_the_order_of_the_stream_among_equals():
    rows, num_rows = best_fit(np.full(6, 64, np.int64), 128)
    assert (rows.tolist(), num_rows) == ([0, 0, 1, 1, 2, 2], 3)
