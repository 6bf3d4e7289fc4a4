"""Steps take the rows that transformers and accelerate deal out, and can begin anywhere."""

from __future__ import annotations

import pytest
from accelerate.data_loader import BatchSamplerShard
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler

from ladle.training.order import StepOrder, rows_of_epoch


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 4))
def test_an_epoch_takes_every_row_once_and_its_last_step_what_is_left(num_rows, batch_size, accumulation):
    order = StepOrder(num_rows, batch_size, accumulation, seed=3, rows_are_shuffled=False)
    for epoch in range(2):
        steps = range(epoch * order.steps_per_epoch + 1, (epoch + 1) * order.steps_per_epoch + 1)
        assert sorted(row for step in steps for row in order.rows(step)) == list(range(num_rows))
        assert order.epochs_after(steps[-1]) == epoch + 1
        assert {order.epoch_of(step) for step in steps} == {epoch}


def test_shuffled_rows_are_taken_as_they_stand_once_and_every_epoch_differs():
    assert rows_of_epoch(50, 1, 0, rows_are_shuffled=True).tolist() == list(range(50))
    orders = [tuple(rows_of_epoch(50, 1, epoch, rows_are_shuffled=False)) for epoch in range(4)]
    assert len(set(orders)) == 4
    assert tuple(rows_of_epoch(50, 2, 0, rows_are_shuffled=False)) not in orders


@pytest.mark.parametrize("drop_last", [False, True])
@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3))
def test_the_rows_of_a_step_are_those_that_accelerate_hands_out(drop_last, num_rows, batch, accumulation, world):
    """Over two epochs, in every step and process; an epoch holds at least one round, as a training needs."""
    num_rows = max(num_rows, batch * world)
    order = StepOrder(num_rows, batch, accumulation, 5, True, world, drop_last)
    step = 0
    for epoch in range(2):
        rows = rows_of_epoch(num_rows, 5, epoch, rows_are_shuffled=True).tolist()
        batches = BatchSampler(rows, batch, drop_last)
        shards = [list(BatchSamplerShard(batches, world, rank) if world > 1 else batches) for rank in range(world)]
        for first in range(0, len(shards[0]), accumulation):
            step += 1
            for rank, shard in enumerate(shards):
                assert order.microbatches(step, rank) == shard[first : first + accumulation]
    assert step == 2 * order.steps_per_epoch
