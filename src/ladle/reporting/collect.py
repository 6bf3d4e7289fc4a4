"""What the report says of a run, from the records, logs and result files of its artifacts."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from ladle.evaluation.compare import Comparison, PairedResult
    from ladle.reporting.plots import Chart

Record = dict[str, Any]
Records = Mapping[str, tuple[Path, Record]]
"""Step name to the artifact's folder and its record, parents first."""
Scores = dict[str, dict[str, dict[str, Any]]]
"""Benchmark → model → {accuracy, n, low, high, correct, wrong, unparsed, timeout, truncated, pass_at_k, …}."""

LOG_NAME = "training_log.jsonl"
NOT_DRAWN = ("step", "epoch", "train_loss")
"""What a log holds beside the values over the steps."""
SIGNIFICANT = 0.05
"""The p below which one model is called better than the other."""
EXAMPLES = 3
"""Items shown of each benchmark and each pattern of right and wrong."""
MACHINE = ("cpu", "cores", "gpus", "platform", "python", "commit")
"""What of a step's environment tells one machine and checkout from another."""


def collect_scores(records: Records) -> Scores:
    """Return the scores of all evaluated models, in the recipe's order."""
    scores: Scores = {}
    for name, _, record in of_stage(records, "evaluate"):
        for benchmark, metrics in record["metrics"].items():
            scores.setdefault(benchmark, {})[_model_of(name)] = metrics
    return scores


def mean_scores(scores: Scores) -> dict[str, float]:
    """Return each model's unweighted mean over the benchmarks, `final_acc` of the published results."""
    accuracies: dict[str, list[float]] = {}
    for model, score in (item for by_model in scores.values() for item in by_model.items()):
        accuracies.setdefault(model, []).append(score["accuracy"])
    return {model: fmean(own) for model, own in accuracies.items()}


# What was gained.


class Compared(NamedTuple):
    """Two models of one evaluation, its folders of both, and their comparison."""

    before: str
    after: str
    folders: tuple[Path, Path]
    comparison: Comparison
    is_gain: bool
    """Whether this is the evaluation's last: the last model over the first one behind it."""


class Change(NamedTuple):
    """What an evaluated model changed over another."""

    before: str
    after: str
    paired: PairedResult
    """The second less the first, over the items that both answered."""

    @property
    def finding(self) -> str:
        """Whether the second is `better`, `worse`, or `not shown to differ`, p adjusted for the other comparisons."""
        paired = self.paired
        p_value = paired.p_value if paired.holm_p_value is None else paired.holm_p_value
        return "not shown to differ" if p_value >= SIGNIFICANT else "better" if paired.difference > 0 else "worse"

    @property
    def verdict(self) -> str:
        """The change in one sentence."""
        paired = self.paired
        link = "from" if self.finding == "not shown to differ" else "than"
        low, high = 100 * paired.low, 100 * paired.high
        return (
            f"{self.after} is {self.finding} {link} {self.before}: it solves {paired.second:.1%} of {paired.n:,} items "
            f"and {self.before} {paired.first:.1%} ({100 * paired.difference:+.1f} points, 95 % interval {low:+.1f} to "
            f"{high:+.1f}, p = {paired.holm_p_value:.2g})."
        )


def compare_models(records: Records) -> list[Compared]:
    """Compare each evaluated model with the one that it was made from, over the items that both answered.

    That is the nearest evaluated one behind it (behind a soup its members' training), within its evaluation; where none
    is, the model before it. Last in each evaluation is what the run gained: its last model over the first behind it.
    """
    from ladle.evaluation.compare import compare_runs

    by_fingerprint = {record["fingerprint"]: record for _, record in records.values()}
    evaluated: dict[str, dict[str, tuple[str, Path]]] = defaultdict(dict)
    pairs: dict[str, list[tuple[tuple[str, Path], tuple[str, Path]]]] = defaultdict(list)
    for name, folder, record in of_stage(records, "evaluate"):
        own, group = record["inputs"]["model"][0].get("fingerprint", name), name.rpartition("/")[0]
        if earlier := evaluated[group]:
            behind = _levels_behind(own, by_fingerprint)
            nearest = next((one for level in behind for one in reversed([*earlier]) if one in level), [*earlier][-1])
            pairs[group].append((earlier[nearest], (_model_of(name), folder)))
        earlier.setdefault(own, (_model_of(name), folder))
    for group, models in evaluated.items():
        last = [*models][-1]
        behind = set().union(*_levels_behind(last, by_fingerprint)) - {last}
        if first := next((one for one in models if one in behind), None):
            gain = models[first], models[last]
            pairs[group] = [*(pair for pair in pairs[group] if pair != gain), gain]
    return [
        Compared(before, after, (first, second), compare_runs(first, second), is_gain=place == len(own))
        for own in pairs.values()
        for place, ((before, first), (after, second)) in enumerate(own, start=1)
    ]


def _levels_behind(start: str, by_fingerprint: Mapping[str, Record]) -> Iterator[set[str]]:
    """Yield the fingerprints of what an artifact was made from, itself first, then by the number of steps between."""
    level, seen = {start}, {start}
    while level:
        yield level
        inputs = [used for one in level if one in by_fingerprint for used in by_fingerprint[one]["inputs"].values()]
        level = {one["fingerprint"] for used in inputs for one in used if one.get("fingerprint")} - seen
        seen |= level


def collect_changes(records: Records) -> list[Change]:
    """Return what each model changed over the one it was made from and, last in each evaluation, what was gained."""
    return changes_of(compare_models(records))


def changes_of(compared: Sequence[Compared], by_benchmark: bool = False) -> list[Change]:
    """Return the changes over all items, or on each benchmark, their p-values adjusted for each other."""
    from ladle.evaluation.statistics import holm

    paired = [one.comparison.benchmarks if by_benchmark else [one.comparison.overall] for one in compared]
    changes = [Change(*pair[:2], one) for pair, own in zip(compared, paired, strict=True) for one in own]
    adjusted = holm([change.paired.p_value for change in changes])
    return [one._replace(paired=replace(one.paired, holm_p_value=p)) for one, p in zip(changes, adjusted, strict=True)]


# What the models say.


class Answers(NamedTuple):
    """Items of a benchmark that the same models answered right.

    Attributes:
        benchmark: its name.
        models: names of the models.
        right: whether each was right.
        num_items: such items.
        examples: result rows of the first of them, one for each model.
    """

    benchmark: str
    models: list[str]
    right: tuple[bool, ...]
    num_items: int
    examples: list[tuple[Record, ...]]


def collect_answers(models: Mapping[str, Path]) -> list[Answers]:
    """Return items with each model's first completion, by benchmark; those on which the models differ come first.

    Args:
        models: folders of evaluations by the model's name.
    """
    from ladle.evaluation.results import find_results, read_result

    rows_of = [
        {(file.benchmark, row["idx"]): row for file in find_results(folder) for row in read_result(file)}
        for folder in models.values()
    ]
    found: dict[str, dict[tuple[bool, ...], list[tuple[Record, ...]]]] = {}
    for benchmark, idx in rows_of[0] if rows_of else ():
        rows = tuple(rows[benchmark, idx] for rows in rows_of if (benchmark, idx) in rows)
        if len(rows) == len(models):
            right = tuple(bool(row["score"][0]) for row in rows)
            found.setdefault(benchmark, defaultdict(list))[right].append(rows)
    return [
        Answers(benchmark, [*models], right, len(items), items[:EXAMPLES])
        for benchmark, patterns in found.items()
        for right, items in sorted(patterns.items(), key=lambda pattern: (len({*pattern[0]}) == 1, pattern[0]))
    ]


# How the models were made.


class Training(NamedTuple):
    """A training, or the rounds of an alignment, as one: the steps' records by name, and the charts of their logs."""

    name: str
    stage: str
    rounds: dict[str, Record]
    charts: list[Chart]


def collect_trainings(records: Records) -> list[Training]:
    """Return the trainings; the rounds of an alignment are drawn one after the other, values by the part before `/`."""
    from ladle.reporting.plots import draw

    rounds: dict[str, dict[str, Record]] = defaultdict(dict)
    for name, (folder, record) in records.items():
        if (folder / LOG_NAME).is_file():
            rounds[re.sub(r"/training-\d+$", "", name)][name] = record
    trainings = []
    for whole, own in rounds.items():
        entries, ends = [], [0]
        for folder in (records[name][0] for name in own):
            lines = (folder / LOG_NAME).read_text(encoding="utf-8").splitlines()
            log = [entry for entry in map(json.loads, lines) if "step" in entry]
            entries += [entry | {"step": ends[-1] + entry["step"]} for entry in log]
            ends.append(max((entry["step"] for entry in entries), default=0))
        groups: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
        for entry in entries:
            for name in entry.keys() - NOT_DRAWN:
                group = name.removeprefix("eval_").partition("/")[0]
                groups[group][name].append((entry["step"], entry[name]))
        in_order = sorted(groups.items(), key=lambda one: (one[0] != "loss", one[0]))
        charts = [draw(group, dict(sorted(curves.items())), ends=ends[1:-1]) for group, curves in in_order]
        trainings.append(Training(whole, [*own.values()][-1]["stage"], own, [*filter(None, charts)]))
    return trainings


def details_of(records: Records, stage: str, file: str) -> list[Record]:
    """Return what the artifacts of a stage say of themselves in a file, with their names."""
    return [{"name": name} | json.loads((folder / file).read_text()) for name, folder, _ in of_stage(records, stage)]


# Where it was made.


def group_by_machine(records: Records) -> list[list[Record]]:
    """Return the records of the steps of each machine and checkout."""
    steps: dict[str, list[Record]] = defaultdict(list)
    for _, record in records.values():
        steps[json.dumps([record["environment"].get(fact) for fact in MACHINE])].append(record)
    return list(steps.values())


class Step(NamedTuple):
    """A step in the lineage.

    Attributes:
        name: its name.
        made_from: the steps that it read.
        nearest: those of them that no other of them was made from.
        scores: mean accuracies of its evaluations.
    """

    name: str
    made_from: list[str]
    nearest: list[str]
    scores: list[float]


def collect_lineage(records: Records) -> list[Step]:
    """Return the steps, each after all that it was made from."""
    names = {record["fingerprint"]: name for name, (_, record) in records.items()}
    behind: dict[str, set[str]] = {}
    steps: dict[str, Step] = {}
    for name, (_, record) in records.items():
        read = (one.get("fingerprint") for own in record["inputs"].values() for one in own)
        used = list(dict.fromkeys(names[one] for one in read if one in names))
        behind[name] = {*used}.union(*(behind[one] for one in used))
        nearest = [one for one in used if not any(one in behind[other] for other in used)]
        steps[name] = Step(name, used, nearest, [])
        if record["stage"] == "evaluate" and (model := names.get(record["inputs"]["model"][0].get("fingerprint"))):
            steps[model].scores.append(fmean(score["accuracy"] for score in record["metrics"].values()))
    return list(steps.values())


def of_stage(records: Records, stage: str) -> list[tuple[str, Path, Record]]:
    """Return the name, folder and record of each step of a stage."""
    return [(name, folder, record) for name, (folder, record) in records.items() if record["stage"] == stage]


def _model_of(step_name: str) -> str:
    """Return what an evaluate step scored: `evaluate/kto` → `kto`, of several evaluations `greedy/kto`."""
    return step_name.removeprefix("evaluate/")
