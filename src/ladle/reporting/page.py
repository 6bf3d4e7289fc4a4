"""The report: one self-contained HTML page about a run, made from the records of its artifacts.

Results with intervals, what each model changed over the one that it was made from, curves, samples, mixtures, soups,
and where each part came from.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from importlib.resources import files
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from ladle.artifacts.record import read_record
from ladle.config import Config
from ladle.stage import Inputs, StageResult

if TYPE_CHECKING:
    from ladle.evaluation.compare import PairedResult

Records = Mapping[str, tuple[Path, dict[str, Any]]]
"""Step name to the artifact's folder and its record, in the recipe's order."""
Scores = dict[str, dict[str, dict[str, Any]]]
"""Benchmark → model → {accuracy, n, low, high, pass_at_k, token_entropy, …}."""

LOG_NAME = "training_log.jsonl"
CURVES = {"pretrain": ("loss", "eval_loss"), "kto": ("loss", "z0", "rewards/chosen", "rewards/rejected")}
"""Logged values to draw, by stage."""


class ReportConfig(Config):
    """The page that shows the run."""

    title: str | None = None
    """Heading of the page; unset is the recipe's name."""


def run(config: ReportConfig, inputs: Inputs, out: Path) -> StageResult:
    """Write the page, `index.html`, from the artifacts of every other step; each role is a step's name."""
    records = {name: (paths[0], read_record(paths[0])) for name, paths in inputs.items()}
    (out / "index.html").write_text(render_page(config.title or "", records), encoding="utf-8")
    return StageResult({"steps": len(records)}, collect_scores(records))


def render_page(title: str, records: Records) -> str:
    """Return the page's HTML."""
    from jinja2 import Environment, StrictUndefined

    from ladle.reporting.plots import accuracy_plot, curve_plot, length_plot, pass_plot

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["pretty"] = partial(json.dumps, indent=2, ensure_ascii=False)
    template = environment.from_string(files("ladle.reporting").joinpath("page.html").read_text(encoding="utf-8"))
    scores, mixtures = collect_scores(records), _details(records, "mix", "mixture.json")
    return template.render(
        title=title,
        scores=scores,
        means=mean_scores(scores) if len(scores) > 1 else {},
        changes=collect_changes(records),
        accuracy_plots=[draw(models, name) for name, models in scores.items() for draw in (accuracy_plot, pass_plot)],
        curves=[plot for name, log, keys in _logs(records) if (plot := curve_plot(name, log, keys))],
        mixtures=mixtures,
        length_plots=[length_plot(mixture["sources"], mixture["name"]) for mixture in mixtures],
        soups=_details(records, "soup", "merge_info.json"),
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
    accuracies: dict[str, list[float]] = {}
    for model, score in (item for by_model in scores.values() for item in by_model.items()):
        accuracies.setdefault(model, []).append(score["accuracy"])
    return {model: fmean(own) for model, own in accuracies.items()}


class Change(NamedTuple):
    """What an evaluated model changed over another."""

    before: str
    after: str
    paired: PairedResult
    """The second less the first, over the items that both answered."""


def collect_changes(records: Records) -> list[Change]:
    """Return each model's paired difference to the one that it was made from, over the items that both answered.

    That is the nearest evaluated one behind it (behind a soup its members' training), within its evaluation; where none
    is, the model before it.
    """
    from ladle.evaluation.compare import compare_runs

    by_fingerprint = {record["fingerprint"]: record for _, record in records.values()}
    evaluated: dict[str, dict[str, tuple[str, Path]]] = {}
    changes = []
    for name, folder, record in _of_stage(records, "evaluate"):
        own = record["inputs"]["model"][0].get("fingerprint", name)
        earlier = evaluated.setdefault(name.rpartition("/")[0], {})
        if earlier:
            before, folder_before = earlier[_nearest(own, earlier, by_fingerprint) or [*earlier][-1]]
            changes.append(Change(before, _model_of(name), compare_runs(folder_before, folder).overall))
        earlier.setdefault(own, (_model_of(name), folder))
    return changes


def _nearest(start: str, wanted: Collection[str], by_fingerprint: Mapping[str, dict[str, Any]]) -> str | None:
    """Return the first of the `wanted` artifacts that `start` was made from, the fewest steps away."""
    level, seen = [start], {start}
    while level:
        if found := next((one for one in reversed([*wanted]) if one in level), None):
            return found
        inputs = [used for one in level if one in by_fingerprint for used in by_fingerprint[one]["inputs"].values()]
        level = list({one["fingerprint"] for used in inputs for one in used if one.get("fingerprint")} - seen)
        seen.update(level)
    return None


def collect_samples(records: Records) -> list[dict[str, Any]]:
    """Return each model's answer to the first item of each benchmark, as its result file has it."""
    samples = []
    for name, folder, _ in _of_stage(records, "evaluate"):
        for path in sorted(folder.glob("*/*_result.jsonl")):
            with path.open(encoding="utf-8") as lines:
                samples += [json.loads(line) | {"model": _model_of(name)} for line in islice(lines, 1)]
    return samples


def _details(records: Records, stage: str, file: str) -> list[dict[str, Any]]:
    """Return what the artifacts of a stage say of themselves in a file, with their names."""
    return [{"name": name} | json.loads((folder / file).read_text()) for name, folder, _ in _of_stage(records, stage)]


def _logs(records: Records) -> Iterator[tuple[str, list[dict[str, Any]], tuple[str, ...]]]:
    """Yield the name, the log and the values to draw of each training."""
    for stage, keys in CURVES.items():
        for name, folder, _ in _of_stage(records, stage):
            lines = (folder / LOG_NAME).read_text(encoding="utf-8").splitlines()
            yield name, [json.loads(line) for line in lines], keys


def _of_stage(records: Records, stage: str) -> list[tuple[str, Path, dict[str, Any]]]:
    return [(name, folder, record) for name, (folder, record) in records.items() if record["stage"] == stage]


def _model_of(step_name: str) -> str:
    """Return what an evaluate step scored: `evaluate/kto` → `kto`, of several evaluations `greedy/kto`."""
    return step_name.removeprefix("evaluate/")
