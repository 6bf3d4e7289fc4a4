from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ladle.data.mixing import apportion, draw


@given(total=st.integers(0, 10**12), weights=st.lists(st.integers(1, 10**6), min_size=1, max_size=40))
def test_parts_sum_to_the_total_and_are_within_one_of_their_share(total: int, weights: list[int]):
    shares = [Fraction(weight, sum(weights)) for weight in weights]
    parts = apportion(total, shares)
    assert sum(parts) == total
    assert all(abs(part - total * share) < 1 for part, share in zip(parts, shares, strict=True))


def test_ties_go_to_the_first():
    assert apportion(4, [Fraction(1, 3)] * 3) == [2, 1, 1]


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60),
    epochs=st.floats(0.01, 3.5),
    seed=st.integers(0, 2**32),
)
def test_a_drawing_has_exactly_the_budget_and_repeats_evenly(lengths: list[int], epochs: float, seed: int):
    table = np.array(lengths, np.uint32)
    budget = max(1, int(epochs * sum(lengths)))
    documents, used = draw(np.arange(len(lengths), dtype=np.uint32), table, budget, False, seed, "s", "train")
    assert used.sum() == budget
    assert np.array_equal(used[:-1], table[documents[:-1]])
    assert 0 < used[-1] <= table[documents[-1]]
    times = Counter(documents.tolist())
    whole = budget // sum(lengths)
    assert all(whole <= times[document] <= whole + 1 for document in range(len(lengths)))


def test_only_candidates_are_drawn():
    documents, _ = draw(np.array([1, 3], np.uint32), np.array([5, 5, 5, 5], np.uint32), 30, False, 0, "s", "train")
    assert set(documents.tolist()) == {1, 3}


def test_the_order_depends_on_seed_source_purpose_and_epoch():
    table, candidates = np.full(50, 3, np.uint32), np.arange(50, dtype=np.uint32)

    def orders(seed: int, name: str, purpose: str) -> list[tuple[int, ...]]:
        documents, _ = draw(candidates, table, 450, False, seed, name, purpose)
        return [tuple(epoch) for epoch in documents.reshape(3, 50).tolist()]

    first, second, _ = orders(1, "a", "train")
    others = (orders(1, "b", "train"), orders(2, "a", "train"), orders(1, "a", "validation"))
    assert len({first, second, *(order for order, *_ in others)}) == 5


@pytest.mark.parametrize("count", [1, 7, 10, 11, 25])
def test_whole_documents_can_be_drawn_by_number(count: int):
    table = np.arange(1, 11, dtype=np.uint32)
    documents, used = draw(np.arange(10, dtype=np.uint32), table, count, True, 0, "s", "train")
    assert len(documents) == count
    assert np.array_equal(used, table[documents])
