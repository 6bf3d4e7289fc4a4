"""Result files on disk, in the layout of the OpenSeek reports, and every upstream spelling when they are read.

    <out>/<benchmark>/<run_id>_result.jsonl     a row for each item, in item order
    <out>/<benchmark>/<run_id>_metrics.json     the benchmark's metrics
    <out>/final_result.json                     all benchmarks

Read as well: OpenSeek's `<run_id>qwen_result.jsonl` and Qwen2.5-Math's `<run_id>.jsonl`.

The fields idx, question, gt_cot, gt, code, pred, report and score of a row are upstream's (Qwen2.5-Math's
`evaluation/math_eval.py`), as are the item's own fields that it copies; verdict, method, finish_reason and num_tokens
are Ladle's, one entry for each completion like code. Nothing in a row depends on time, so equal runs give equal
bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ladle.artifacts.files import write_text_durably
from ladle.data.rows import read_rows
from ladle.errors import UserError
from ladle.evaluation.benchmark import Item
from ladle.generation.request import Sample
from ladle.grading.grade import Grade, Verdict

FINAL_NAME = "final_result.json"
COPIED_FIELDS = (
    *("level", "type", "unit", "solution_type", "choices", "solution", "ques_type", "ans_type"),
    *("answer_type", "dataset", "subfield", "filed", "theorem", "answer"),
)
"""Fields of an item that upstream keeps in its rows (`filed` is its spelling)."""

COMPARED_BY = ("type", "unit", "tolerance", "multiple")
"""Fields of an item, beside its known answer, that decide verdicts; kept in `compared_by` for grading the row again."""
OVER_LIMIT = "over a limit of the grader"

_RESULT_NAME = re.compile(r"(?P<run_id>[^_.][^_]*_.+_-?\d+_seed-?\d+_t[\d.]+_s\d+_e-?\d+)((qwen)?_result)?\.jsonl")
_LINE_BREAKS = {ord(character): f"\\u{ord(character):04x}" for character in "\x85\u2028\u2029"}
"""JSON allows these raw, and a question of gsm8k has one; written as escapes, `str.splitlines` gives whole rows too."""


@dataclass(frozen=True)
class ResultFile:
    """A result file, and the benchmark and run that its path names."""

    path: Path
    benchmark: str
    run_id: str


def make_row(item: Item, samples: Sequence[Sample], grades: Sequence[Grade]) -> dict[str, Any]:
    """Return the row of an item and its graded completions."""
    copied = {name: item.row.get(name) for name in COPIED_FIELDS}
    compared = {name: value for name in COMPARED_BY if (value := getattr(item, name)) not in (None, False)}
    return {
        "idx": item.idx,
        "question": item.question,
        "gt_cot": item.solution,
        "gt": item.gold,
        **{name: value for name, value in copied.items() if value is not None},
        **({"compared_by": compared} if compared else {}),
        "code": [sample.text for sample in samples],
        "pred": [grade.extracted for grade in grades],
        # Which of the grader's limits an answer meets first depends on the machine's load.
        "report": [OVER_LIMIT if grade.verdict == Verdict.TIMEOUT else grade.reason for grade in grades],
        "score": [grade.verdict == "correct" for grade in grades],
        "verdict": [str(grade.verdict) for grade in grades],
        "method": [grade.method for grade in grades],
        "finish_reason": ["length" if sample.finish_reason == "length" else "stop" for sample in samples],
        "num_tokens": [None if sample.token_ids is None else len(sample.token_ids) for sample in samples],
    }


def write_result(folder: Path, run: str, rows: Sequence[dict[str, Any]], metrics: dict[str, Any]) -> None:
    """Write a benchmark's rows and metrics; each file is there whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(row, ensure_ascii=False, default=str).translate(_LINE_BREAKS) + "\n" for row in rows)
    write_text_durably(folder / f"{run}_result.jsonl", "".join(lines))
    write_metrics(folder / f"{run}_metrics.json", metrics)


def write_metrics(path: Path, metrics: dict[str, Any]) -> None:
    """Write a metrics file, in the order of its keys."""
    write_text_durably(path, json.dumps(metrics, indent=4, ensure_ascii=False) + "\n")


def find_results(path: Path) -> list[ResultFile]:
    """Return the result file at `path`, or all of them below it, in order.

    Raises:
        UserError: there is none.
    """
    files = [path] if path.is_file() else sorted(path.rglob("*.jsonl"))
    named = [(file, _RESULT_NAME.fullmatch(file.name)) for file in files]
    found = [ResultFile(file, file.parent.name, match["run_id"]) for file, match in named if match]
    if not found:
        fix = "name BENCHMARK/RUN_ID_result.jsonl, or as upstream RUN_IDqwen_result.jsonl or RUN_ID.jsonl"
        raise UserError(f"there are no result files at {path}", fix)
    return found


def read_result(result: ResultFile) -> list[dict[str, Any]]:
    """Return a result file's rows.

    Raises:
        UserError: no rows, or one without what a result row needs.
    """
    rows = list(read_rows([result.path]))
    for number, row in enumerate(rows, start=1):
        missing = [name for name in ("idx", "gt", "score") if row.get(name) in (None, [])]
        answers, scores = row.get("code") or row.get("pred"), row.get("score")
        if missing or not isinstance(answers, list) or not isinstance(scores, list) or len(answers) != len(scores):
            what = f"no {missing[0]}" if missing else "another number of answers than of scores"
            raise UserError(f"row {number} of {result.path} has {what}", "give a file that an evaluation wrote")
    if not rows:
        raise UserError(f"{result.path} has no rows", "give a file that an evaluation wrote")
    return rows
