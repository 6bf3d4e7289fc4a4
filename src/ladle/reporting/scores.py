"""Each model's accuracy on each benchmark, and what each model changed over the one before it."""

from __future__ import annotations

from itertools import pairwise
from statistics import fmean
from typing import Any

from ladle.evaluation.compare import PairedResult, compare_runs
from ladle.reporting.records import Records, model_of, of_stage

Scores = dict[str, dict[str, dict[str, Any]]]
"""Benchmark → model → {accuracy, n, low, high}."""


def collect_scores(records: Records) -> Scores:
    """Return the scores of all evaluated models, in the recipe's order."""
    scores: Scores = {}
    for name, _, record in of_stage(records, "evaluate"):
        for benchmark, metrics in record["metrics"].items():
            scores.setdefault(benchmark, {})[model_of(name)] = metrics
    return scores


def mean_scores(scores: Scores) -> dict[str, float]:
    """Return each model's unweighted mean over the benchmarks, `final_acc` of the published results."""
    models = dict.fromkeys(model for by_model in scores.values() for model in by_model)
    return {
        model: fmean(by_model[model]["accuracy"] for by_model in scores.values() if model in by_model)
        for model in models
    }


def collect_changes(records: Records) -> list[tuple[str, str, PairedResult]]:
    """Return each model's paired difference to the model evaluated before it, over the items that both answered."""
    evaluated = [(model_of(name), folder) for name, folder, _ in of_stage(records, "evaluate")]
    return [
        (before, after, compare_runs(folder_before, folder_after).overall)
        for (before, folder_before), (after, folder_after) in pairwise(evaluated)
    ]
