r"""Grade what is stored: the answers of result files again (`ladle rescore`), and files of pairs (`ladle grade PAIRS`).

Result files may be Ladle's or of both upstream spellings. A file of Ladle's is graded as it was, by its own settings.
In another the known answer is read from the row's own fields by the benchmark's rule where they are there: the `gt`
that upstream stores has lost letters and braces (`\frac{ab}{2}` became `\frac{}{2}`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ladle.artifacts.files import make_folder
from ladle.data.rows import read_placed_rows
from ladle.errors import UserError
from ladle.evaluation.benchmark import Benchmark, Item, builtin_benchmarks, compared_by, load_items, read_first
from ladle.evaluation.evaluate import Task, grade_samples
from ladle.evaluation.results import ResultFile, find_results, read_result
from ladle.evaluation.statistics import Row, item_score
from ladle.generation.request import Sample
from ladle.grading.extract import bare_answer
from ladle.grading.grade import Grader, GraderConfig, Pair, Verdict
from ladle.grading.verdict import answer_type
from ladle.log import progress


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
        rows: items in it.
        num_answers: answers graded.
        accuracy_before: by the stored scores.
        accuracy_after: by the new verdicts.
        changes: every answer whose verdict differs, in order.
    """

    benchmark: str
    path: Path
    run_id: str
    rows: int
    num_answers: int
    accuracy_before: float
    accuracy_after: float
    changes: list[Change]


def rescore(path: Path, data: Path | None = None) -> list[Rescored]:
    """Grade a result file, or every one below a folder, again.

    Args:
        path: the file or folder.
        data: folder with `<benchmark>/test.jsonl`: known answers, units and tolerances as the benchmark itself has
            them.

    Raises:
        UserError: no result file, or rows that are not what `data` has under their idx.
    """
    return [_rescore_file(result, data) for result in find_results(path)]


def _rescore_file(result: ResultFile, data: Path | None) -> Rescored:
    stored = read_result(result)
    benchmark = builtin_benchmarks().get(result.benchmark)
    items = [_item_of(row, benchmark) for row in stored]
    if data is not None and benchmark is not None:
        known = {item.idx: item for item in load_items(benchmark, [data])}
        for item in items:
            if item.idx not in known or known[item.idx].question.split() != item.question.split():
                problem = f"item {item.idx} of {result.path} is not item {item.idx} of {benchmark.name} in {data}"
                raise UserError(problem, "give the data that the file was made from, or none")
        items = [known[item.idx] for item in items]
    samples = []
    for row in stored:
        # A row without completions is graded by its answers, in boxes.
        texts = row.get("code") or [f"\\boxed{{{answer}}}" for answer in row.get("pred") or []]
        reasons: list[Any] = row.get("finish_reason") or ["stop"] * len(texts)
        samples.append([Sample("", None, text, reason) for text, reason in zip(texts, reasons, strict=True)])
    settings = _settings_of(result)
    task, config = Task(result.benchmark, items), GraderConfig(**settings.get("grader", {}))
    grades = grade_samples(task, samples, config, settings.get("extraction", "ladle"))
    changes = [
        Change(row["idx"], sample, bool(was), str(grade.verdict), grade.reason, item.gold, grade.extracted)
        for row, item, several in zip(stored, items, grades, strict=True)
        for sample, (was, grade) in enumerate(zip(row["score"], several, strict=True))
        if bool(was) != (grade.verdict == "correct")
    ]
    return Rescored(
        benchmark=result.benchmark,
        path=result.path,
        run_id=result.run_id,
        rows=len(stored),
        num_answers=sum(map(len, samples)),
        accuracy_before=fmean(map(item_score, stored)),
        accuracy_after=fmean(fmean(grade.verdict == "correct" for grade in several) for several in grades),
        changes=changes,
    )


def _settings_of(result: ResultFile) -> Row:
    """Return the settings in the metrics beside a result file; none where upstream wrote them."""
    metrics = result.path.with_name(f"{result.run_id}_metrics.json")
    return json.loads(metrics.read_text(encoding="utf-8")).get("settings", {}) if metrics.is_file() else {}


def _item_of(row: Row, benchmark: Benchmark | None) -> Item:
    is_ours = "verdict" in row
    compared = row.get("compared_by") or (compared_by(benchmark, row) if benchmark else {})
    gold = "" if is_ours or benchmark is None else read_first(row, benchmark.gold)
    return Item(row["idx"], row.get("question", ""), gold or str(row["gt"]), row=row, **compared)


# `"gold": 18` says what `"18"` says.
_Text = Annotated[str, BeforeValidator(lambda value: repr(value) if type(value) in (int, float) else value)]

# A missing answer is an empty one, and so unparsed.
_Answer = Annotated[_Text, BeforeValidator(lambda value: "" if value is None else value)]

# Numbers and booleans are text in a CSV.
_OfText = BeforeValidator(lambda value: json.loads(value.lower()) if isinstance(value, str) else value)


class _Row(BaseModel):
    """What a row must hold to be a pair; its other columns are carried over."""

    model_config = ConfigDict(strict=True)

    gold: _Text
    answer: _Answer
    type: Annotated[str | None, AfterValidator(answer_type)] = None
    tolerance: Annotated[float, _OfText, Field(ge=0, allow_inf_nan=False)] | None = None
    unit: str | None = None
    multiple: Annotated[bool, _OfText] | None = None


def grade_file(pairs: Path, verdicts: Path) -> dict[str, int]:
    """Grade a file of pairs and write the same rows, in order, with `verdict`, `reason` and `seconds` added.

    Args:
        pairs: rows of `gold`, `answer`, and optionally `type`, `tolerance`, `unit` and `multiple`.
        verdicts: the JSON lines to write; the file appears when it is complete.

    Returns:
        How many answers got each verdict.

    Raises:
        UserError: a row is not a pair; the message names its line.
    """
    if not pairs.is_file():
        raise UserError(f"there is no file {pairs}", "name a file of rows with gold and answer")
    rows = [(row, _pair(row, place)) for place, row in read_placed_rows([pairs], any_text=True)]
    if not rows:
        raise UserError(f"{pairs} holds no rows", "name a file of rows with gold and answer")
    if verdicts.is_dir():
        raise UserError(f"{verdicts} is a folder", "name the file to write")
    if verdicts.exists() and verdicts.samefile(pairs):
        raise UserError(f"{verdicts} is the file to grade", "name another file for the verdicts with --out")
    make_folder(verdicts.parent)
    counts = dict.fromkeys(map(str, Verdict), 0)
    partial = verdicts.with_name(verdicts.name + ".partial")
    with (
        Grader() as grader,
        partial.open("w", encoding="utf-8", errors="backslashreplace") as out,  # half a surrogate pair, as JSON has it
        progress(len(rows), "grading", "answers") as bar,
    ):
        for (row, _), grade in zip(rows, grader.grade_many(pair for _, pair in rows), strict=True):
            counts[grade.verdict] += 1
            verdict = {"verdict": grade.verdict, "reason": grade.reason, "seconds": grade.seconds}
            out.write(json.dumps(row | verdict, ensure_ascii=False) + "\n")
            bar.advance(1)
    partial.replace(verdicts)
    return counts


def _pair(row: dict[str, Any], place: str) -> Pair:
    try:
        fields = _Row.model_validate(row)
    except ValidationError as error:
        first = error.errors()[0]
        name = first["loc"][0]
        problem = f"no {name!r}" if first["type"] == "missing" else f"{name} {first['input']!r} ({first['msg']})"
        fix = 'write a row as {"gold": "1/2", "answer": "0.5"}, with type, tolerance, unit and multiple only if needed'
        raise UserError(f"{place} has {problem}", fix) from error
    multiple = bool(fields.multiple)
    return Pair(**dict(fields) | {"answer": bare_answer(fields.answer, multiple), "multiple": multiple})
