from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ladle.data.mixing import permutation_key, permute


@given(size=st.integers(1, 5000), seed=st.integers(0, 2**64 - 1))
def test_it_is_a_permutation(size: int, seed: int):
    order = permute(np.arange(size), size, permutation_key(seed))
    assert np.array_equal(np.sort(order), np.arange(size))


def test_places_can_be_looked_up_in_any_order():
    key = permutation_key("x")
    whole = permute(np.arange(1000), 1000, key)
    assert np.array_equal(permute(np.array([7, 999, 0, 7]), 1000, key), whole[[7, 999, 0, 7]])


def test_it_is_frozen():
    """Recorded mixtures can be made again only while this order stays."""
    assert permute(np.arange(8), 8, permutation_key(233, "web", 0)).tolist() == [3, 7, 0, 5, 2, 1, 6, 4]


def test_keys_differ_by_every_part():
    keys = {permutation_key(*parts) for parts in [(1, "a", 0), (1, "a", 1), (1, "b", 0), (2, "a", 0), ("1", "a", 0)]}
    assert len(keys) == 5


@pytest.mark.parametrize("size", [3, 4, 5])
def test_all_orders_are_equally_likely(size: int):
    keys = 200 * math.factorial(size)
    orders = Counter(tuple(permute(np.arange(size), size, permutation_key(seed))) for seed in range(keys))
    chi_squared = sum((orders.get(order, 0) - 200) ** 2 / 200 for order in orders)
    freedom = math.factorial(size) - 1
    assert len(orders) == freedom + 1
    assert chi_squared < freedom + 4 * math.sqrt(2 * freedom)  # four standard deviations


def test_neighbours_do_not_stay_neighbours():
    order = permute(np.arange(100_000), 100_000, permutation_key("x")).astype(np.int64)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(order, np.arange(100_000))[0, 1]) < 0.02
