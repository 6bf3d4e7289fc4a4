r"""Grade the answers of a stored result file again, and say which verdicts differ from the stored scores and why.

Reads Ladle's files and both upstream spellings. The known answer is read from the row's own fields by the benchmark's
rule where they are there: the `gt` that upstream stores has lost letters and braces (`\frac{ab}{2}` became
`\frac{}{2}`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from ladle.errors import UserError
from ladle.evaluation.benchmark import Benchmark, builtin_benchmarks
from ladle.evaluation.gold import read_first
from ladle.evaluation.items import Item, load_items
from ladle.evaluation.results import (
    METRICS_SUFFIX,
    RESULT_SUFFIX,
    ResultFile,
    find_results,
    read_result,
    write_metrics,
    write_rows,
)
from ladle.evaluation.rows import completions_of, item_of, item_score, make_row
from ladle.evaluation.scoring import score_completions
from ladle.evaluation.summary import summarise
from ladle.grading.config import GraderConfig

Row = dict[str, Any]


@dataclass(frozen=True)
class Change:
    """One answer whose verdict differs from its stored score."""

    idx: int
    sample: int
    stored: bool
    verdict: str
    reason: str
    gold: str
    answer: str


@dataclass(frozen=True)
class Rescored:
    """A result file graded again.

    Attributes:
        benchmark: the benchmark's name.
        path: the file that was read.
        run_id: the name of its run.
        num_answers: answers graded.
        accuracy_before: by the stored scores.
        accuracy_after: by the new verdicts.
        changes: every answer whose verdict differs, in order.
        rows: the rows with new answers, verdicts and scores.
    """

    benchmark: str
    path: Path
    run_id: str
    num_answers: int
    accuracy_before: float
    accuracy_after: float
    changes: list[Change]
    rows: list[Row] = field(repr=False)


def rescore(path: Path, config: GraderConfig, data: Path | None = None) -> list[Rescored]:
    """Grade a result file, or every one below a folder, again.

    Args:
        path: the file or folder.
        config: the grader's limits.
        data: folder with `<benchmark>/test.jsonl`: known answers, units and tolerances as the benchmark itself has
            them.

    Raises:
        UserError: no result file, or rows that are not what `data` has under their idx.
    """
    return [_rescore_file(result, config, data) for result in find_results(path)]


def write_rescored(rescored: Sequence[Rescored], out: Path, seed: int = 0) -> None:
    """Write the new rows and their metrics in Ladle's layout.

    Args:
        rescored: what `rescore` returned.
        out: the folder to write to.
        seed: of the metrics' bootstrap.
    """
    for one in rescored:
        stem = out / one.benchmark / one.run_id
        write_rows(stem.with_name(stem.name + RESULT_SUFFIX), one.rows)
        metrics = summarise(one.rows, seed, 0.0, {"rescored": one.path.name})
        write_metrics(stem.with_name(stem.name + METRICS_SUFFIX), metrics)


def _rescore_file(result: ResultFile, config: GraderConfig, data: Path | None) -> Rescored:
    stored = read_result(result)
    benchmark = builtin_benchmarks().get(result.benchmark)
    items = [_item(row, benchmark) for row in stored]
    if data is not None and benchmark is not None:
        items = _from_data(items, benchmark, data, result.path)
    completions = [completions_of(row) for row in stored]
    scored = score_completions(items, completions, config, f"{result.benchmark}: grading")
    rows = [make_row(item, graded) for item, graded in zip(items, scored, strict=True)]
    return Rescored(
        benchmark=result.benchmark,
        path=result.path,
        run_id=result.run_id,
        num_answers=sum(map(len, completions)),
        accuracy_before=fmean(map(item_score, stored)),
        accuracy_after=fmean(map(item_score, rows)),
        changes=[change for before, after in zip(stored, rows, strict=True) for change in _changes(before, after)],
        rows=rows,
    )


def _item(row: Row, benchmark: Benchmark | None) -> Item:
    item = item_of(row, gold=read_first(row, benchmark.gold) if benchmark else "")
    if item.type is None and benchmark is not None and benchmark.type is not None:
        return item_of(row | {"answer_type": benchmark.type}, gold=item.gold)
    return item


def _from_data(items: list[Item], benchmark: Benchmark, data: Path, path: Path) -> list[Item]:
    known = {item.idx: item for item in load_items(benchmark, [data])}
    for item in items:
        if item.idx not in known or known[item.idx].question.split() != item.question.split():
            raise UserError(
                f"item {item.idx} of {path} is not item {item.idx} of {benchmark.name} in {data}",
                "give the data that the file was made from, or none",
            )
    return [known[item.idx] for item in items]


def _changes(before: Row, after: Row) -> list[Change]:
    return [
        Change(before["idx"], sample, bool(stored), verdict, reason, after["gt"], answer)
        for sample, (stored, now, verdict, reason, answer) in enumerate(
            zip(before["score"], after["score"], after["verdict"], after["report"], after["pred"], strict=True)
        )
        if bool(stored) != now
    ]
