"""Result files on disk, in the seeds' layout, and every upstream spelling when they are read.

    <out>/<benchmark>/<run_id>_result.jsonl     a row for each item, in item order
    <out>/<benchmark>/<run_id>_metrics.json     the benchmark's metrics
    <out>/final_result.json                     all benchmarks

Read as well: OpenSeek's `<run_id>qwen_result.jsonl` and Qwen2.5-Math's `<run_id>.jsonl`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ladle.artifacts.files import write_text_durably
from ladle.errors import UserError
from ladle.evaluation.items import read_rows

RESULT_SUFFIX = "_result.jsonl"
METRICS_SUFFIX = "_metrics.json"
FINAL_NAME = "final_result.json"

_RUN_ID = re.compile(
    r"(?P<split>[^_]+)_(?P<prompt>.+)_(?P<num_test_sample>-?\d+)_seed(?P<seed>-?\d+)"
    r"_t(?P<temperature>[\d.]+)_s(?P<start>\d+)_e(?P<end>-?\d+)"
)
_LINE_BREAKS = {ord(character): f"\\u{ord(character):04x}" for character in "\x85\u2028\u2029"}
"""JSON allows these raw, and a question of gsm8k has one; written as escapes, `str.splitlines` gives whole rows too."""

_SPELLINGS = (RESULT_SUFFIX, "qwen" + RESULT_SUFFIX, ".jsonl")


@dataclass(frozen=True)
class ResultFile:
    """A result file and what its place says of it."""

    path: Path
    benchmark: str
    run_id: str


def run_id(split: str, prompt: str, limit: int | None, seed: int, temperature: float, start: int, end: int) -> str:
    """Return the name that upstream gives a run: `test_cot_-1_seed1_t0.6_s0_e-1`."""
    return f"{split}_{prompt}_{-1 if limit is None else limit}_seed{seed}_t{float(temperature)}_s{start}_e{end}"


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write a result file; it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_durably(
        path, "".join(json.dumps(row, ensure_ascii=False).translate(_LINE_BREAKS) + "\n" for row in rows)
    )


def write_metrics(path: Path, metrics: dict[str, Any]) -> None:
    """Write a metrics file, in the order of its keys."""
    write_text_durably(path, json.dumps(metrics, indent=4, ensure_ascii=False) + "\n")


def find_results(path: Path) -> list[ResultFile]:
    """Return the result file at `path`, or all of them below it, in order.

    Raises:
        UserError: there is none.
    """
    files = [path] if path.is_file() else sorted(path.rglob("*.jsonl"))
    found = [result for file in files if not file.name.startswith(".") and (result := _recognise(file))]
    if not found:
        raise UserError(
            f"there are no result files at {path}",
            f"name BENCHMARK/RUN_ID{RESULT_SUFFIX}, or as upstream RUN_IDqwen{RESULT_SUFFIX} or RUN_ID.jsonl",
        )
    return found


def read_result(result: ResultFile) -> list[dict[str, Any]]:
    """Return a result file's rows.

    Raises:
        UserError: a row without what a result row needs.
    """
    rows = list(read_rows(result.path))
    for number, row in enumerate(rows, start=1):
        missing = [name for name in ("idx", "gt", "score") if name not in row]
        if missing:
            raise UserError(
                f"row {number} of {result.path} has no {missing[0]}", "give a file that an evaluation wrote"
            )
        if not row["score"]:
            raise UserError(f"row {number} of {result.path} has an empty score", "evaluate that item again")
    if not rows:
        raise UserError(f"{result.path} has no rows", "give a file that an evaluation wrote")
    return rows


def _recognise(file: Path) -> ResultFile | None:
    for suffix in _SPELLINGS:
        match = _RUN_ID.fullmatch(file.name.removesuffix(suffix)) if file.name.endswith(suffix) else None
        if match:
            return ResultFile(file, file.parent.name, match.group())
    return None
