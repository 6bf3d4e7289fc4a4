"""Which completion each prompt is mismatched with: decided by (seed, epoch, example) alone.

z0 needs log-ratios of completions under prompts they do not belong to. Examples are grouped by prompt, the groups and
the examples in each are put into a keyed random order, and each example takes the completion that stands as many
places further as the largest group is big. So every completion serves exactly once; an example is never paired with
itself, nor with another completion of its own prompt (unless one prompt holds more than half of the data); and
batches, processes, workers and packing cannot change it.
"""

from __future__ import annotations

import numpy as np

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
    partner = np.empty(count, dtype=np.int64)
    partner[order] = np.roll(order, -_shift(int(sizes.max()), count))
    return partner


def _shift(largest_group: int, count: int) -> int:
    """Return how far a partner stands: past the largest group, or at the next place where all are one group."""
    return largest_group if largest_group < count else 1
