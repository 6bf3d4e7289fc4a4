"""Statistics of scores: intervals, paired tests, and the metrics files that result rows come to.

Everything random takes a seed. Shapes: n items, k samples an item. An item's score is the share of its samples that
are correct, in [0, 1].
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import NormalDist, fmean, median
from typing import Any

import numpy as np

Row = dict[str, Any]

BOOTSTRAP_DRAWS = 10_000
UPSTREAM_K = (1, 4, 8)
ONLY_DRAWN = "known only of tokens that the transformers backend draws"
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
    draws = []
    for number, group in enumerate(groups):
        rng = np.random.Generator(np.random.Philox(key=[seed % 2**64, number]))
        # A resample of n items is a multinomial count of each distinct score: the same distribution, without n × draws
        # indices.
        values, counts = np.unique(np.asarray(group, dtype=np.float64), return_counts=True)
        drawn = rng.multinomial(len(group), counts / len(group), size=BOOTSTRAP_DRAWS)
        draws.append(drawn @ values / len(group))
    tail = 100 * (1 - _CONFIDENCE) / 2
    low, high = np.percentile(np.mean(draws, axis=0), [tail, 100 - tail])
    return float(low), float(high)


def pass_at_k(num_correct: int, num_samples: int, k: int) -> float:
    """Return the unbiased pass@k of one item: 1 - C(n-c, k) / C(n, k) (Chen et al., arXiv 2107.03374, eq. 1)."""
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def pass_at(rows: Sequence[Row], k: int) -> float:
    """Return the mean pass@k of rows of at least k samples each."""
    return fmean(pass_at_k(sum(map(bool, row["score"])), len(row["score"]), k) for row in rows)


def ks_of_curve(num_samples: int) -> list[int]:
    """Return the k that a curve of pass@k is drawn at: 1, 2, 4, … and the number of samples."""
    return [*(2**power for power in range((num_samples - 1).bit_length())), num_samples]


def majority_answer(answers: Sequence[str]) -> int | None:
    """Return the index of the first answer of the most frequent kind, or None where every answer is empty.

    Answers count as one kind when their texts are equal up to spaces; of equally frequent kinds the one that came
    first wins.
    """
    kinds = ["".join(answer.split()) for answer in answers]
    most = Counter(kind for kind in kinds if kind).most_common(1)
    return kinds.index(most[0][0]) if most else None


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


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values adjusted for being several: Holm's step-down procedure (1979), in the order given.

    Calling those below α significant keeps the chance that any of the calls is wrong below α.
    """
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def minimum_detectable_effect(differences: Sequence[float], power: float = 0.8) -> float | None:
    """Return the paired difference that a test at the 5 % level finds with the given power on items like these.

    (z_{0.975} + z_{power}) · sd / √n, sd being the standard deviation of the items' differences; None where it is
    unknown: for fewer than two items, and where no two of them differ.
    """
    values = np.asarray(differences, dtype=np.float64)
    spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return (_Z + NormalDist().inv_cdf(power)) * spread / math.sqrt(len(values)) if spread else None


def items_to_detect(differences: Sequence[float], effect: float) -> int | None:
    """Return how many items like these a 5 % test needs to find `effect` with 80 % power; None where it is unknown."""
    detectable = minimum_detectable_effect(differences)
    return max(1, math.ceil(len(differences) * (detectable / effect) ** 2)) if detectable and effect else None


# What rows come to.


def item_score(row: Row) -> float:
    """Return the share of a row's completions that are correct."""
    return sum(map(bool, row["score"])) / len(row["score"])


def summarise(
    rows: Sequence[Row],
    gold_unreadable: int,
    seed: int,
    seconds: float,
    settings: Mapping[str, Any],
    token_entropy: float | None = None,
) -> dict[str, Any]:
    """Return the metrics file of one benchmark.

    The first fields are upstream's, spelling included; accuracies there are percentages. Ladle's follow: proportions
    in [0, 1], each accuracy with its 95 % interval.

    Args:
        rows: its result rows, at least one.
        gold_unreadable: items whose known answer the grader cannot read.
        seed: of the bootstrap.
        seconds: time spent on generating.
        settings: how the completions were made, to be kept beside the numbers.
        token_entropy: mean entropy of the sampled tokens in nats, if it is known.
    """
    scores = [item_score(row) for row in rows]
    accuracy = fmean(scores)
    verdicts = Counter(verdict for row in rows for verdict in row["verdict"])
    types = sorted({str(row.get("type")) for row in rows}) if "type" in rows[0] else []
    by_type = {name: 100 * fmean(item_score(row) for row in rows if str(row.get("type")) == name) for name in types}
    fewest = min(len(row["score"]) for row in rows)
    majorities = [(row["score"], majority_answer(row["pred"])) for row in rows]
    lengths = [length for row in rows for length in row["num_tokens"] if length is not None]
    return {
        "num_samples": len(rows),
        "num_scores": sum(len(row["score"]) for row in rows),
        "timeout_samples": verdicts["timeout"],
        "empty_samples": sum(not row["pred"][-1] for row in rows),
        "acc": 100 * accuracy,
        "pass@k": {
            f"pass@{k}": 100 * pass_at(rows, k) if k <= fewest else "Not enough samples (n < k)"
            for k in sorted({*UPSTREAM_K, *ks_of_curve(fewest)})
        },
        **({"type_acc": by_type} if by_type else {}),
        "time_use_in_second": seconds,
        "time_use_in_minite": f"{int(seconds // 60)}:{int(seconds % 60):02d}",
        "accuracy": accuracy,
        "interval_wilson": list(wilson_interval(accuracy, len(rows))),
        "interval_bootstrap": list(bootstrap_interval([scores], seed)),
        "maj@k": {
            f"maj@{len(rows[0]['score'])}": fmean(at is not None and bool(score[at]) for score, at in majorities)
        },
        "verdicts": {name: verdicts[name] for name in ("correct", "wrong", "unparsed", "timeout")},
        "gold_unreadable": gold_unreadable,
        "truncated_samples": sum(reason == "length" for row in rows for reason in row["finish_reason"]),
        "methods": dict(sorted(Counter(method for row in rows for method in row["method"]).items())),
        "tokens": {"total": sum(lengths), "mean": fmean(lengths), "median": median(lengths), "max": max(lengths)}
        if lengths
        else None,
        "token_entropy": ONLY_DRAWN if token_entropy is None else token_entropy,
        "settings": dict(settings),
    }


def summarise_all(
    rows_of: Mapping[str, Sequence[Row]], metrics: Mapping[str, Mapping[str, Any]], seed: int
) -> dict[str, Any]:
    """Return `final_result.json`: upstream's accuracies and unweighted mean, and what they are worth.

    Args:
        rows_of: result rows by benchmark.
        metrics: what `summarise` returned, by benchmark.
        seed: of the bootstrap.
    """
    scores_of = [[item_score(row) for row in rows] for rows in rows_of.values()]
    every_score = [score for scores in scores_of for score in scores]
    weighted = fmean(every_score)
    accuracies = {name: one["acc"] for name, one in metrics.items()}
    shared = (
        "accuracy interval_wilson interval_bootstrap pass@k maj@k verdicts gold_unreadable truncated_samples tokens "
        "token_entropy"
    )
    return {
        "dataset_acc": accuracies,
        "final_acc": fmean(accuracies.values()),
        "final_acc_interval_bootstrap": [100 * bound for bound in bootstrap_interval(scores_of, seed)],
        "item_weighted_acc": 100 * weighted,
        "item_weighted_acc_interval_wilson": [100 * bound for bound in wilson_interval(weighted, len(every_score))],
        "num_samples": len(every_score),
        "benchmarks": {
            name: {"n": one["num_samples"], **{key: one[key] for key in shared.split()}}
            for name, one in metrics.items()
        },
        "settings": next(iter(metrics.values()))["settings"],
    }
