"""The order in which training takes rows, as arithmetic: it can start at any step of any epoch without a replay.

A mixture's rows are already shuffled, so the first epoch takes them in the order of the data; later ones (and data that
is not shuffled) in a keyed permutation of (seed, epoch).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class StepOrder:
    """Which rows each optimizer step takes, as transformers and accelerate deal them out.

    Attributes:
        num_rows: rows of the dataset.
        batch_size: rows of one microbatch of one process.
        accumulation: microbatches of a step, on each process; an epoch's last step takes what is left.
        seed: key of the permutations.
        rows_are_shuffled: the data is in random order already, so the first epoch takes it in that order.
        num_processes: processes, each with microbatches of its own. Several fill an epoch's last round up from its
            beginning; one takes what is left.
        drop_last: leave out a last round that is not full.
    """

    num_rows: int
    batch_size: int
    accumulation: int
    seed: int
    rows_are_shuffled: bool
    num_processes: int = 1
    drop_last: bool = False

    @property
    def rows_per_round(self) -> int:
        """Rows of one microbatch of every process."""
        return self.batch_size * self.num_processes

    @property
    def rows_per_step(self) -> int:
        """Rows of an optimizer step that is not an epoch's last."""
        return self.rows_per_round * self.accumulation

    @property
    def num_rounds(self) -> int:
        """Microbatches of each process in an epoch."""
        if self.drop_last:
            return max(1, self.num_rows // self.batch_size // self.num_processes)
        return -(-self.num_rows // self.rows_per_round)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return -(-self.num_rounds // self.accumulation)

    def epochs_after(self, step: int) -> float:
        """Return how many epochs are done after optimizer step `step` (from 1)."""
        epoch, _, last = self._place(step)
        return epoch + last / self.num_rounds

    def epoch_of(self, step: int) -> int:
        """Return the epoch (from 0) of optimizer step `step` (from 1)."""
        return self._place(step)[0]

    def microbatches(self, step: int, process: int = 0) -> list[list[int]]:
        """Return the row numbers of each microbatch that a process takes in optimizer step `step` (from 1)."""
        epoch, first, last = self._place(step)
        order = rows_of_epoch(self.num_rows, self.seed, epoch, self.rows_are_shuffled)
        found = []
        for start in range(first, last):
            places = start * self.rows_per_round + process * self.batch_size + np.arange(self.batch_size)
            places = places % self.num_rows if self.num_processes > 1 else places[places < self.num_rows]
            found.append(order[places].tolist())
        return found

    def rows(self, step: int) -> list[int]:
        """Return the row numbers of optimizer step `step` (from 1), over all processes."""
        rounds = zip(*(self.microbatches(step, process) for process in range(self.num_processes)), strict=True)
        return [row for one_round in rounds for microbatch in one_round for row in microbatch]

    def from_step(self, first: int, last: int, process: int = 0) -> Iterator[list[int]]:
        """Yield a process's microbatches of the steps from `first` to `last`, one after another."""
        for step in range(first, last + 1):
            yield from self.microbatches(step, process)

    def _place(self, step: int) -> tuple[int, int, int]:
        """Return a step's epoch, its first round there, and one past its last."""
        epoch, index = divmod(step - 1, self.steps_per_epoch)
        first = index * self.accumulation
        return epoch, first, min(first + self.accumulation, self.num_rounds)


@functools.lru_cache(maxsize=2)
def rows_of_epoch(num_rows: int, seed: int, epoch: int, rows_are_shuffled: bool) -> np.ndarray:
    """Return the row numbers in the order of one epoch, int64, shape (num_rows,)."""
    if rows_are_shuffled and epoch == 0:
        return np.arange(num_rows)
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(num_rows)
