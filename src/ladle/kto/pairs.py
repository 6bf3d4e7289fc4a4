"""Which rows each epoch of a KTO training takes, whose completion each is mismatched with, and which estimate z0.

All of it follows from (seeds, epoch, number of rows), so the reference pass can compute beforehand exactly the
log-probabilities that training will need; batches, processes, workers and packing cannot change it.

z0 needs log-ratios of completions under prompts they do not belong to. Examples are grouped by prompt, the groups and
the examples in each are put into a keyed random order, and each example takes the completion that comes as many
places later as the largest group is big. So every completion serves exactly once; an example is never paired with
itself, nor with another completion of its own prompt (unless one prompt holds more than half of the data).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ladle.kto.config import KtoReferenceConfig
from ladle.training.order import rows_of_epoch

PAIR_STREAM = 1
"""Counter word of the generator, so that pairs and the order of rows (word 0) never share random numbers."""


def mismatched_partners(prompt_of: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Return for each example the index of the one whose completion it is mismatched with.

    Args:
        prompt_of: number of each example's prompt, int, shape (N,), N at least 2.
        seed: key of the pairing.
        epoch: which pairing of this seed.

    Returns:
        int64, shape (N,), a permutation without fixed points.
    """
    count = len(prompt_of)
    assert count >= 2, "a mismatched pair needs two examples"
    _, group_of, sizes = np.unique(prompt_of, return_inverse=True, return_counts=True)
    random = np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[0, 0, 0, PAIR_STREAM]))
    group_rank = random.permutation(len(sizes))
    order = np.lexsort((random.permutation(count), group_rank[group_of]))
    largest_group = int(sizes.max())
    partner = np.empty(count, dtype=np.int64)
    partner[order] = np.roll(order, -largest_group if largest_group < count else -1)
    return partner


@dataclass(frozen=True, eq=False)
class KtoPlan:
    """Order, pairs and KL rows of every epoch.

    Attributes:
        prompt_of: number of each example's prompt.
        num_epochs: epochs begun.
        order_seed: key of the order of rows.
        pair_seed: key of the pairs.
        pairs_per_epoch: each epoch has pairs of its own.
        kl_fraction: share of the rows whose mismatched pair enters z0; 0 for a loss without z0.
        max_steps: optimizer steps in all; None for whole epochs.
        rows_per_step: examples of an optimizer step, where `max_steps` counts them.
    """

    prompt_of: np.ndarray
    num_epochs: int
    order_seed: int
    pair_seed: int
    pairs_per_epoch: bool
    kl_fraction: float
    max_steps: int | None = None
    rows_per_step: int = 1

    @property
    def num_rows(self) -> int:
        """Rows of the data."""
        return len(self.prompt_of)

    @property
    def num_pairings(self) -> int:
        """Different pairings over all epochs; none where the loss has no z0."""
        if self.kl_fraction == 0:
            return 0
        return self.num_epochs if self.pairs_per_epoch else 1

    def pairing_of(self, epoch: int) -> int:
        """Return the number of the pairing that an epoch uses."""
        return epoch if self.pairs_per_epoch else 0

    def partners(self, epoch: int) -> np.ndarray:
        """Return for each row the one whose completion it is mismatched with, int64, shape (N,)."""
        return _partners(self, self.pairing_of(epoch))

    def used_rows(self, epoch: int) -> np.ndarray:
        """Return the rows that training takes in an epoch, in its order."""
        order = rows_of_epoch(self.num_rows, self.order_seed, epoch, rows_are_shuffled=False)
        if self.max_steps is None:
            return order
        steps_left = self.max_steps - epoch * steps_in_epoch(self.num_rows, self.rows_per_step)
        return order[: max(0, steps_left) * self.rows_per_step]

    def estimates_kl(self, epoch: int) -> np.ndarray:
        """Return for each row whether its pair enters z0, bool, shape (N,): every 1/kl_fraction-th in the order."""
        return _estimates_kl(self, epoch)

    def rows_of_pairing(self, pairing: int) -> np.ndarray:
        """Return the rows whose mismatched log-probability some epoch with this pairing needs, sorted."""
        epochs = [epoch for epoch in range(self.num_epochs) if self.pairing_of(epoch) == pairing]
        return np.flatnonzero(np.any([self.estimates_kl(epoch) for epoch in epochs], axis=0))


def make_plan(config: KtoReferenceConfig, prompt_of: np.ndarray, is_training: bool) -> KtoPlan:
    """Return the plan of a training, or of evaluations, which take all rows in one pairing."""
    if not is_training:
        fraction = 1.0 if config.kl_fraction else 0.0
        return KtoPlan(prompt_of, 1, 0, config.seed, pairs_per_epoch=False, kl_fraction=fraction)
    num_epochs, rows_per_step = config.epochs, config.rows_per_step or 1
    if num_epochs is None:
        assert config.max_steps is not None  # one of the two is given
        num_epochs = -(-config.max_steps // steps_in_epoch(len(prompt_of), rows_per_step))
    return KtoPlan(
        prompt_of,
        num_epochs,
        config.order_seed or 0,
        config.seed,
        config.pairs == "per_epoch",
        config.kl_fraction,
        config.max_steps,
        rows_per_step,
    )


def steps_in_epoch(num_rows: int, rows_per_step: int) -> int:
    """Return the optimizer steps of an epoch, the last of which may not be full."""
    return -(-num_rows // rows_per_step)


@lru_cache(maxsize=2)
def _partners(plan: KtoPlan, pairing: int) -> np.ndarray:
    return mismatched_partners(plan.prompt_of, plan.pair_seed, pairing)


@lru_cache(maxsize=2)
def _estimates_kl(plan: KtoPlan, epoch: int) -> np.ndarray:
    rows = plan.used_rows(epoch)
    chosen = np.zeros(plan.num_rows, dtype=bool)
    place = np.arange(len(rows))
    chosen[rows[np.floor((place + 1) * plan.kl_fraction) > np.floor(place * plan.kl_fraction)]] = True
    return chosen
