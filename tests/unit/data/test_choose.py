from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ladle.data.mixing.choose import Drawing, apportion


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
    candidates = np.arange(len(lengths), dtype=np.uint32)
    budget = max(1, int(epochs * sum(lengths)))
    drawing = Drawing("s", seed, "train", candidates).of_tokens(table, budget)
    documents = drawing.documents(np.arange(drawing.num_documents, dtype=np.uint64))
    used = table[documents].astype(int)
    assert 0 < drawing.last_length <= used[-1]
    used[-1] = drawing.last_length
    assert used.sum() == budget == drawing.num_tokens
    times = Counter(documents.tolist())
    whole = budget // sum(lengths)
    assert all(whole <= times[document] <= whole + 1 for document in range(len(lengths)))


def test_only_candidates_are_drawn():
    table = np.array([5, 5, 5, 5], np.uint32)
    drawing = Drawing("s", 0, "train", np.array([1, 3], np.uint32)).of_tokens(table, 30)
    assert set(drawing.documents(np.arange(drawing.num_documents, dtype=np.uint64)).tolist()) == {1, 3}


def test_the_order_depends_on_seed_source_purpose_and_epoch():
    table, candidates = np.full(50, 3, np.uint32), np.arange(50, dtype=np.uint32)
    numbers = np.arange(50, dtype=np.uint64)

    def order(name: str, seed: int, purpose: str, epoch: int = 0) -> tuple[int, ...]:
        drawing = Drawing(name, seed, purpose, candidates).of_tokens(table, 450)
        return tuple(drawing.documents(numbers + np.uint64(50 * epoch)).tolist())

    orders = {order("a", 1, "train"), order("a", 1, "train", 1), order("b", 1, "train"), order("a", 2, "train")}
    assert len(orders | {order("a", 1, "validation")}) == 5


@pytest.mark.parametrize("count", [1, 7, 10, 11, 25])
def test_whole_documents_can_be_drawn_by_number(count: int):
    table = np.arange(1, 11, dtype=np.uint32)
    drawing = Drawing("s", 0, "train", np.arange(10, dtype=np.uint32)).of_documents(table, count)
    documents = drawing.documents(np.arange(count, dtype=np.uint64))
    assert drawing.num_documents == count
    assert drawing.num_tokens == table[documents].sum()
    assert drawing.last_length == table[documents[-1]]
