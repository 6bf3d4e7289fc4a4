"""The report: one self-contained HTML page about a run, made from the records of its artifacts.

Results with intervals, what each model changed over the one before it, curves, samples, mixtures, soups, and where each
part came from.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from fractions import Fraction
from functools import partial
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ladle.artifacts.record import read_record
from ladle.config import Config
from ladle.stage import Inputs, StageResult

if TYPE_CHECKING:
    from ladle.evaluation.compare import PairedResult

Records = Mapping[str, tuple[Path, dict[str, Any]]]
"""Step name to the artifact's folder and its record, in the recipe's order."""
Scores = dict[str, dict[str, dict[str, Any]]]
"""Benchmark → model → {accuracy, n, low, high}."""

LOG_NAME = "training_log.jsonl"
CURVES = {"pretrain": ("loss", "eval_loss"), "kto": ("loss", "z0", "rewards/chosen", "rewards/rejected")}
"""Logged values to draw, by stage."""


class PageConfig(Config):
    """The page of one run."""

    title: str


def run(config: PageConfig, inputs: Inputs, out: Path) -> StageResult:
    """Write the page, `index.html`, from the artifacts of every other step; each role is a step's name."""
    records = {name: (paths[0], read_record(paths[0])) for name, paths in inputs.items()}
    (out / "index.html").write_text(render_page(config.title, records), encoding="utf-8")
    return StageResult({"steps": len(records)}, collect_scores(records))


def render_page(title: str, records: Records) -> str:
    """Return the page's HTML."""
    from jinja2 import Environment, StrictUndefined

    from ladle.reporting.plots import accuracy_plot, curve_plot, length_plot

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["pretty"] = partial(json.dumps, indent=2, ensure_ascii=False)
    template = environment.from_string(files("ladle.reporting").joinpath("page.html").read_text(encoding="utf-8"))
    scores, mixtures = collect_scores(records), collect_mixtures(records)
    return template.render(
        title=title,
        scores=scores,
        means=mean_scores(scores) if len(scores) > 1 else {},
        changes=collect_changes(records),
        accuracy_plots=[accuracy_plot(models, benchmark) for benchmark, models in scores.items()],
        curves=[plot for name, log, keys in _logs(records) if (plot := curve_plot(name, log, keys))],
        mixtures=mixtures,
        length_plots=[length_plot(mixture["sources"], mixture["name"]) for mixture in mixtures],
        soups=collect_soups(records),
        samples=collect_samples(records),
        records={name: record for name, (_, record) in records.items()},
        environment=next(iter(records.values()))[1]["environment"] if records else {},
    )


def collect_scores(records: Records) -> Scores:
    """Return the scores of all evaluated models, in the recipe's order."""
    scores: Scores = {}
    for name, _, record in _of_stage(records, "evaluate"):
        for benchmark, metrics in record["metrics"].items():
            scores.setdefault(benchmark, {})[_model_of(name)] = metrics
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
    from ladle.evaluation.compare import compare_runs

    evaluated = [(_model_of(name), folder) for name, folder, _ in _of_stage(records, "evaluate")]
    return [
        (before, after, compare_runs(folder_before, folder_after).overall)
        for (before, folder_before), (after, folder_after) in pairwise(evaluated)
    ]


def collect_samples(records: Records) -> list[dict[str, Any]]:
    """Return each model's completion of the first item of each benchmark."""
    samples = []
    for name, folder, _ in _of_stage(records, "evaluate"):
        for path in sorted(folder.glob("*/*_result.jsonl")):
            with path.open(encoding="utf-8") as lines:
                row = json.loads(next(lines, "null"))
            if row is not None:
                verdict = "right" if row["score"][0] else "wrong"
                sample = {"question": row["question"], "completion": row["code"][0], "gold": row["gt"]}
                samples.append(sample | {"model": _model_of(name), "verdict": verdict})
    return samples


def collect_mixtures(records: Records) -> list[dict[str, Any]]:
    """Return each mixture's name, splits and sources, as its `mixture.json` has them, with the sources' shares."""
    mixtures = []
    for name, folder, _ in _of_stage(records, "mix"):
        mixture = json.loads((folder / "mixture.json").read_text(encoding="utf-8"))
        total = max(1, mixture["splits"]["train"]["tokens"])
        for source in mixture["sources"]:
            source["share"] = source["train_tokens"] / total
            source["dropped_rows"] = sum(source["dropped_rows"].values())
        mixtures.append({"name": name, "sources": mixture["sources"], "splits": mixture["splits"]})
    return mixtures


def collect_soups(records: Records) -> list[dict[str, Any]]:
    """Return each soup's name, method and selection, as its `merge_info.json` has them, and the members with weight."""
    soups = []
    for name, folder, _ in _of_stage(records, "soup"):
        info = json.loads((folder / "merge_info.json").read_text(encoding="utf-8"))
        members = [member for member in info["members"] if Fraction(member["coefficient"])]
        soups.append(info | {"name": name, "members": members})
    return soups


def _logs(records: Records) -> Iterator[tuple[str, list[dict[str, Any]], tuple[str, ...]]]:
    """Yield the name, the log and the values to draw of each training."""
    for stage, keys in CURVES.items():
        for name, folder, _ in _of_stage(records, stage):
            lines = (folder / LOG_NAME).read_text(encoding="utf-8").splitlines()
            yield name, [json.loads(line) for line in lines], keys


def _of_stage(records: Records, stage: str) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    for name, (folder, record) in records.items():
        if record["stage"] == stage:
            yield name, folder, record


def _model_of(step_name: str) -> str:
    """Return the model that an evaluate step scored: `evaluate/kto` → `kto`."""
    return step_name.rsplit("/", 1)[-1]
