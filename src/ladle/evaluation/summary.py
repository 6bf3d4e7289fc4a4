"""What a benchmark's rows come to, and what all benchmarks of a model come to.

The first fields of each are upstream's, spelling included; accuracies there are percentages. Ladle's follow:
proportions in [0, 1], each accuracy with its 95 % interval.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

from ladle.evaluation.metrics import bootstrap_interval, majority_answer, pass_at_k, wilson_interval
from ladle.evaluation.rows import item_score

UPSTREAM_K = (1, 4, 8)

Row = dict[str, Any]


def summarise(rows: Sequence[Row], seed: int, seconds: float, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics of one benchmark.

    Args:
        rows: its result rows, at least one.
        seed: of the bootstrap.
        seconds: time spent on generating.
        settings: how the completions were made, to be kept beside the numbers.
    """
    scores = [item_score(row) for row in rows]
    accuracy = fmean(scores)
    verdicts = Counter(verdict for row in rows for verdict in row["verdict"])
    return {
        "num_samples": len(rows),
        "num_scores": sum(len(row["score"]) for row in rows),
        "timeout_samples": verdicts["timeout"],
        "empty_samples": sum(not row["pred"][-1] for row in rows),
        "acc": 100 * accuracy,
        "pass@k": _pass_at(rows, UPSTREAM_K),
        **_by_type(rows),
        "time_use_in_second": seconds,
        "time_use_in_minite": f"{int(seconds // 60)}:{int(seconds % 60):02d}",
        "accuracy": accuracy,
        "interval_wilson": list(wilson_interval(accuracy, len(rows))),
        "interval_bootstrap": list(bootstrap_interval([scores], seed)),
        "maj@k": {f"maj@{len(rows[0]['score'])}": fmean(_majority_is_right(row) for row in rows)},
        "verdicts": {name: verdicts[name] for name in ("correct", "wrong", "unparsed", "timeout")},
        "truncated_samples": sum(reason == "length" for row in rows for reason in row["finish_reason"]),
        "methods": dict(sorted(Counter(method for row in rows for method in row["method"]).items())),
        "tokens": _lengths(rows),
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
        "accuracy",
        "interval_wilson",
        "interval_bootstrap",
        "pass@k",
        "maj@k",
        "verdicts",
        "truncated_samples",
        "tokens",
    )
    return {
        "dataset_acc": accuracies,
        "final_acc": fmean(accuracies.values()),
        "final_acc_interval_bootstrap": [100 * bound for bound in bootstrap_interval(scores_of, seed)],
        "item_weighted_acc": 100 * weighted,
        "item_weighted_acc_interval_wilson": [100 * bound for bound in wilson_interval(weighted, len(every_score))],
        "num_samples": len(every_score),
        "benchmarks": {
            name: {"n": one["num_samples"], **{key: one[key] for key in shared}} for name, one in metrics.items()
        },
        "settings": next(iter(metrics.values()))["settings"],
    }


def _pass_at(rows: Sequence[Row], ks: Sequence[int]) -> dict[str, float | str]:
    fewest = min(len(row["score"]) for row in rows)
    return {
        f"pass@{k}": 100 * fmean(pass_at_k(sum(row["score"]), len(row["score"]), k) for row in rows)
        if k <= fewest
        else "Not enough samples (n < k)"
        for k in dict.fromkeys([*ks, fewest])
    }


def _by_type(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    if "type" not in rows[0]:
        return {}
    scores: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        scores[str(row.get("type"))].append(item_score(row))
    return {"type_acc": {name: 100 * fmean(values) for name, values in sorted(scores.items())}}


def _majority_is_right(row: Row) -> bool:
    chosen = majority_answer(row["pred"])
    return chosen is not None and bool(row["score"][chosen])


def _lengths(rows: Sequence[Row]) -> dict[str, float] | None:
    lengths = [length for row in rows for length in row["num_tokens"] if length is not None]
    if not lengths:
        return None
    return {"total": sum(lengths), "mean": fmean(lengths), "median": median(lengths), "max": max(lengths)}
