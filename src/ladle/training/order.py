"""The order in which training takes rows, as arithmetic: any position of any epoch can be started from without replaying what came before.

A mixture's rows are already shuffled, so the first epoch takes them as they stand; later ones (and data that is not shuffled) in a keyed
permutation of (seed, epoch).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice, repeat

import numpy as np
from torch.utils.data import Sampler


class RowOrder(Sampler[list[int]]):
    """Batches of row numbers.

    Args:
        num_rows: rows of the dataset.
        batch_size: rows of one microbatch of one process.
        seed: key of the permutations.
        shuffled: the rows stand in random order already, so the first epoch takes them as they are.
        drop_last: leave out a last batch that is not full.
    """

    def __init__(self, num_rows: int, batch_size: int, seed: int, shuffled: bool, drop_last: bool = False) -> None:
        self.num_rows, self.batch_size, self.seed, self.shuffled, self.drop_last = (
            num_rows,
            batch_size,
            seed,
            shuffled,
            drop_last,
        )
        self.epoch = 0
        self.first_batch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration takes."""
        self.epoch = epoch

    def start_at(self, batch: int) -> None:
        """Let the next iteration give placeholders up to `batch`, for a loader that skips that many, and real rows from there."""
        self.first_batch = batch

    def __len__(self) -> int:
        return self.num_rows // self.batch_size if self.drop_last else -(-self.num_rows // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        first, self.first_batch = self.first_batch, 0
        order = rows_of_epoch(self.num_rows, self.seed, self.epoch, self.shuffled)
        batches = (
            order[start : start + self.batch_size].tolist()
            for start in range(first * self.batch_size, self.num_rows, self.batch_size)
        )
        return chain(repeat([0] * self.batch_size, first), islice(batches, len(self) - first))


def rows_of_epoch(num_rows: int, seed: int, epoch: int, shuffled: bool) -> np.ndarray:
    """Return the row numbers in the order of one epoch, int64, shape (num_rows,)."""
    if shuffled and epoch == 0:
        return np.arange(num_rows)
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(num_rows)
