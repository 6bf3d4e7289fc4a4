from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ladle.training.order import RowOrder, rows_of_epoch


@given(st.integers(1, 60), st.integers(1, 9), st.integers(0, 5), st.integers(1, 3), st.data())
def test_starting_late_gives_the_rest_of_the_same_epoch(num_rows, batch_size, epoch, processes, data):
    order = RowOrder(num_rows, batch_size, seed=3, shuffled=True)
    order.set_epoch(epoch)
    whole = list(order)
    assert sorted(row for batch in whole for row in batch) == list(range(num_rows))
    first = data.draw(st.integers(0, len(whole)))
    order.start_at(first, processes)
    late = list(order)
    assert len(late) == len(whole) == len(order)
    assert late[: min(first, processes)] == whole[: min(first, processes)]
    assert late[first:] == whole[first:]
    assert list(order) == whole


def test_shuffled_rows_are_taken_as_they_stand_once_and_every_epoch_differs():
    assert rows_of_epoch(50, 1, 0, shuffled=True).tolist() == list(range(50))
    orders = [tuple(rows_of_epoch(50, 1, epoch, shuffled=False)) for epoch in range(4)]
    assert len(set(orders)) == 4
    assert tuple(rows_of_epoch(50, 2, 0, shuffled=False)) not in orders


def test_a_partial_last_batch_is_kept_or_dropped():
    assert [len(batch) for batch in RowOrder(10, 4, 1, True)] == [4, 4, 2]
    assert [len(batch) for batch in RowOrder(10, 4, 1, True, drop_last=True)] == [4, 4]
