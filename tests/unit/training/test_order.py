from __future__ import annotations

import pytest
from accelerate.data_loader import BatchSamplerShard
from hypothesis import given
from hypothesis import strategies as st

from ladle.training.order import RowOrder, places_of_step, rows_of_epoch


@given(st.integers(1, 60), st.integers(1, 9), st.integers(0, 5), st.integers(1, 3), st.data())
def test_starting_late_gives_the_rest_of_the_same_epoch(num_rows, batch_size, epoch, processes, data):
    order = RowOrder(num_rows, batch_size, seed=3, rows_are_shuffled=True)
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
    assert rows_of_epoch(50, 1, 0, rows_are_shuffled=True).tolist() == list(range(50))
    orders = [tuple(rows_of_epoch(50, 1, epoch, rows_are_shuffled=False)) for epoch in range(4)]
    assert len(set(orders)) == 4
    assert tuple(rows_of_epoch(50, 2, 0, rows_are_shuffled=False)) not in orders


def test_a_partial_last_batch_is_kept_or_dropped():
    assert [len(batch) for batch in RowOrder(10, 4, 1, True)] == [4, 4, 2]
    assert [len(batch) for batch in RowOrder(10, 4, 1, True, drop_last=True)] == [4, 4]


@pytest.mark.parametrize("drop_last", [False, True])
@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.data())
def test_the_rows_of_a_step_are_those_that_accelerate_hands_out(drop_last, num_rows, batch, accumulation, world, data):
    """Over two epochs, in every step; an epoch holds at least one round, as a training needs."""
    num_rows = max(num_rows, batch * world)
    orders = [RowOrder(num_rows, batch, 5, rows_are_shuffled=True, drop_last=drop_last) for _ in range(world)]
    steps = []
    for epoch in range(2):
        for order in orders:
            order.set_epoch(epoch)
        shards = [
            list(BatchSamplerShard(order, world, rank) if world > 1 else order) for rank, order in enumerate(orders)
        ]
        rounds = [[row for shard in shards for row in shard[index]] for index in range(len(shards[0]))]
        steps += [sum(rounds[first : first + accumulation], []) for first in range(0, len(rounds), accumulation)]
    step = data.draw(st.integers(1, len(steps)))
    epoch, places = places_of_step(step, num_rows, batch, accumulation, world, drop_last)
    assert rows_of_epoch(num_rows, 5, epoch, rows_are_shuffled=True)[places].tolist() == steps[step - 1]
