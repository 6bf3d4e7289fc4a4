"""Statistics of scores: intervals, pass@k, majority votes. Every random one takes a seed.

Shapes: n items, k samples an item. An item's score is the share of its samples that are correct, in [0, 1].
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

BOOTSTRAP_DRAWS = 10_000
_CONFIDENCE = 0.95
_Z = NormalDist().inv_cdf(0.5 + _CONFIDENCE / 2)


def wilson_interval(accuracy: float, num_items: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a proportion (Wilson 1927; Brown, Cai and DasGupta 2001, eq. 4).

    With several samples an item, `num_items` stays the number of items: samples of one item are not independent, and
    this is the cautious end of what they can add.

    Args:
        accuracy: the proportion observed.
        num_items: the number of items it was observed on, at least 1.
    """
    z2 = _Z * _Z / num_items
    centre = (accuracy + z2 / 2) / (1 + z2)
    half = _Z * math.sqrt(accuracy * (1 - accuracy) / num_items + z2 / (4 * num_items)) / (1 + z2)
    # At 0 and 1 the exact bound is 0 or 1; rounding must not put it outside.
    return max(0.0, centre - half) if accuracy > 0 else 0.0, min(1.0, centre + half) if accuracy < 1 else 1.0


def bootstrap_interval(groups: Sequence[Sequence[float]], seed: int) -> tuple[float, float]:
    """Return the 95 % percentile interval of the unweighted mean of the groups' means, items resampled in each group.

    Args:
        groups: item scores of each benchmark; one group gives the interval of its own mean.
        seed: of the resampling.
    """
    draws = np.mean(
        [_resampled_means(np.asarray(group, dtype=np.float64), seed, at) for at, group in enumerate(groups)], axis=0
    )
    tail = 100 * (1 - _CONFIDENCE) / 2
    low, high = np.percentile(draws, [tail, 100 - tail])
    return float(low), float(high)


def _resampled_means(scores_n: np.ndarray, seed: int, group: int) -> np.ndarray:
    rng = np.random.Generator(np.random.Philox(key=[seed % 2**64, group]))
    # A resample of n items is a multinomial count of each distinct score: the same distribution, without n × draws
    # indices.
    values, counts = np.unique(scores_n, return_counts=True)
    drawn = rng.multinomial(len(scores_n), counts / len(scores_n), size=BOOTSTRAP_DRAWS)
    return drawn @ values / len(scores_n)


def pass_at_k(num_correct: int, num_samples: int, k: int) -> float:
    """Return the unbiased pass@k of one item: 1 - C(n-c, k) / C(n, k) (Chen et al., arXiv 2107.03374, eq. 1).

    Raises:
        ValueError: `k` exceeds the number of samples.
    """
    if k > num_samples:
        raise ValueError(f"pass@{k} needs {k} samples, not {num_samples}")
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def majority_answer(answers: Sequence[str]) -> int | None:
    """Return the index of the first answer of the most frequent kind, or None where every answer is empty.

    Answers count as one kind when their texts are equal up to spaces; of equally frequent kinds the one that came
    first wins.
    """
    kinds = ["".join(answer.split()) for answer in answers]
    counts = Counter(kind for kind in kinds if kind)
    if not counts:
        return None
    return kinds.index(max(counts, key=lambda kind: counts[kind]))


def mcnemar_p_value(only_first: int, only_second: int) -> float:
    """Return the exact two-sided p-value of McNemar's test.

    It asks how likely a fair coin is to split so unevenly the items that one model got right and the other did not.

    Args:
        only_first: items that only the first model got right.
        only_second: items that only the second got right.
    """
    total = only_first + only_second
    tail = sum(math.comb(total, count) for count in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**total) if total else 1.0


def sign_flip_p_value(differences: Sequence[float], seed: int) -> float:
    """Return the two-sided p-value of the paired permutation test: how often random signs give a mean as far from 0.

    Args:
        differences: one for each item.
        seed: of the signs.
    """
    values = np.asarray([value for value in differences if value != 0], dtype=np.float64)
    if not len(values):
        return 1.0
    rng = np.random.Generator(np.random.Philox(key=seed % 2**64))
    signs = rng.integers(0, 2, size=(BOOTSTRAP_DRAWS, len(values)), dtype=np.int8) * 2 - 1
    as_far = np.abs(signs @ values) >= abs(values.sum()) - 1e-12
    return float((as_far.sum() + 1) / (BOOTSTRAP_DRAWS + 1))


def minimum_detectable_effect(differences: Sequence[float], power: float = 0.8) -> float | None:
    """Return the paired difference that a test at the 5 % level finds with the given power on items like these.

    (z_{0.975} + z_{power}) · sd / √n, sd being the standard deviation of the items' differences; None where it is
    unknown: for fewer than two items, and where no two of them differ.
    """
    values = np.asarray(differences, dtype=np.float64)
    if len(values) < 2 or not (spread := float(values.std(ddof=1))):
        return None
    return (_Z + NormalDist().inv_cdf(power)) * spread / math.sqrt(len(values))


def items_to_detect(differences: Sequence[float], effect: float, power: float = 0.8) -> int | None:
    """Return how many items like these a 5 % test needs to find `effect` with the given power; None for no effect."""
    if effect == 0 or len(differences) < 2:
        return None
    spread = float(np.std(np.asarray(differences, dtype=np.float64), ddof=1))
    return max(1, math.ceil(((_Z + NormalDist().inv_cdf(power)) * spread / effect) ** 2))
