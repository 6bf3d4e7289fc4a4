"""The order in which training takes rows, as arithmetic: it can start at any position of any epoch without a replay.

A mixture's rows are already shuffled, so the first epoch takes them in the order of the data; later ones (and data that
is not shuffled) in a keyed permutation of (seed, epoch).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat

import numpy as np
from torch.utils.data import Sampler


class RowOrder(Sampler[list[int]]):
    """Batches of row numbers.

    Args:
        num_rows: rows of the dataset.
        batch_size: rows of one microbatch of one process.
        seed: key of the permutations.
        rows_are_shuffled: the data is in random order already, so the first epoch takes it in that order.
        drop_last: leave out a last batch that is not full.
    """

    def __init__(
        self, num_rows: int, batch_size: int, seed: int, rows_are_shuffled: bool, drop_last: bool = False
    ) -> None:
        self.num_rows, self.batch_size, self.drop_last = num_rows, batch_size, drop_last
        self.seed, self.rows_are_shuffled = seed, rows_are_shuffled
        self.epoch = 0
        self.first_batch = self.num_real = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration takes."""
        self.epoch = epoch

    def start_at(self, batch: int, num_processes: int = 1) -> None:
        """Let the next iteration give placeholders up to `batch`, for a loader that skips that many, then real rows.

        The first batch of each process stays real: accelerate fills up an uneven last round of an epoch with those.
        """
        self.first_batch, self.num_real = batch, min(batch, num_processes)

    def __len__(self) -> int:
        return self.num_rows // self.batch_size if self.drop_last else -(-self.num_rows // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        first, num_real = self.first_batch, self.num_real
        self.first_batch = self.num_real = 0
        order = rows_of_epoch(self.num_rows, self.seed, self.epoch, self.rows_are_shuffled)
        yield from self._batches(order, 0, num_real)
        yield from repeat([0] * self.batch_size, first - num_real)
        yield from self._batches(order, first, len(self))

    def _batches(self, order: np.ndarray, first: int, last: int) -> Iterator[list[int]]:
        for start in range(first * self.batch_size, last * self.batch_size, self.batch_size):
            yield order[start : start + self.batch_size].tolist()


def rows_of_epoch(num_rows: int, seed: int, epoch: int, rows_are_shuffled: bool) -> np.ndarray:
    """Return the row numbers in the order of one epoch, int64, shape (num_rows,)."""
    if rows_are_shuffled and epoch == 0:
        return np.arange(num_rows)
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(num_rows)


def places_of_step(
    step: int, num_rows: int, batch_size: int, accumulation: int, num_processes: int, drop_last: bool
) -> tuple[int, np.ndarray]:
    """Return the epoch (from 0) of optimizer step `step` (from 1), and the places in its order of the rows it takes.

    Several processes fill the last round of an epoch up from its beginning; one process takes what is left.
    """
    per_round = batch_size * num_processes
    rounds = max(1, num_rows // batch_size // num_processes) if drop_last else -(-num_rows // per_round)
    epoch, index = divmod(step - 1, -(-rounds // accumulation))
    first, last = index * accumulation, min((index + 1) * accumulation, rounds)
    places = np.arange(first * per_round, last * per_round)
    return epoch, places % num_rows if num_processes > 1 else places[places < num_rows]
