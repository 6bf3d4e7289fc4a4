"""A benchmark's items: rows read, and their question, known answer and way to compare found by its declaration."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ladle.errors import UserError
from ladle.evaluation.benchmark import Benchmark
from ladle.evaluation.gold import read_first, read_whole
from ladle.log import get_logger

logger = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Item:
    """One problem of a benchmark.

    Attributes:
        idx: its number in the benchmark, from 0; the row's own `idx` where it has one.
        question: the problem.
        solution: the reference solution, or nothing.
        gold: the known answer.
        type: answer type, or None to infer it from the gold answer.
        unit: unit that the answer is in.
        tolerance: absolute error that the answer may have.
        multiple: the gold answer lists several answers, in any order.
        row: the row as it was read.
    """

    idx: int
    question: str
    solution: str
    gold: str
    type: str | None = None
    unit: str | None = None
    tolerance: float | None = None
    multiple: bool = False
    row: dict[str, Any] = field(default_factory=dict, repr=False)


def load_items(benchmark: Benchmark, paths: list[Path], split: str = "test") -> list[Item]:
    """Read a benchmark's items, in order.

    Args:
        benchmark: its declaration.
        paths: a jsonl or parquet file, or a folder with one: a snapshot of its Hub repository, `<name>/test.jsonl`,
            or `<split>` files.
        split: split to look for in a folder.

    Raises:
        UserError: no such file, or a row without a question or an answer.
    """
    files = [file for path in paths for file in _files_of(benchmark, path, split)]
    rows = [(f"{file}, row {number}", row) for file in files for number, row in enumerate(read_rows(file), start=1)]
    items = [make_item(benchmark, index, row, where) for index, (where, row) in enumerate(rows)]
    if len({item.idx for item in items}) != len(items):
        raise UserError(f"{benchmark.name} has two items of the same idx", "remove the idx field, or make it unique")
    if benchmark.items is not None and len(items) != benchmark.items:
        logger.warning(
            "%s has %d items here, and %d in the published form", benchmark.name, len(items), benchmark.items
        )
    return items


def make_item(benchmark: Benchmark, index: int, row: dict[str, Any], where: str) -> Item:
    """Return the item that a row holds.

    Args:
        benchmark: the declaration of the fields.
        index: the row's number.
        row: the fields.
        where: what to call the row in an error.

    Raises:
        UserError: it has no question or no answer.
    """
    question = read_whole(row, benchmark.question)
    gold = read_first(row, benchmark.gold)
    for what, text, fields in (
        ("question", question, benchmark.question),
        ("answer", gold, [rule.field for rule in benchmark.gold]),
    ):
        if not text:
            raise UserError(
                f"{where} has no {what} (looked for {', '.join(dict.fromkeys(fields))}; it has {', '.join(row)})",
                f"name the field: benchmarks: [{{name: {benchmark.name}, {what}: FIELD}}]",
            )
    return Item(
        idx=row["idx"] if isinstance(row.get("idx"), int) else index,
        question=question,
        solution=read_first(row, benchmark.solution),
        gold=gold,
        type=benchmark.type or _optional(row, benchmark.type_field),
        unit=_optional(row, benchmark.unit_field),
        tolerance=_tolerance(row, benchmark.tolerance_field, where),
        multiple=bool(row.get(benchmark.multiple_field)) if benchmark.multiple_field else False,
        row=row,
    )


def take(items: list[Item], limit: int | None, start: int, end: int, name: str = "the benchmark") -> list[Item]:
    """Return part of the items: of the first `limit` (None is all), those from `start` to before `end` (-1 is all).

    Raises:
        UserError: that leaves none.
    """
    taken = items[:limit][start : None if end == -1 else end]
    if not taken:
        raise UserError(
            f"limit={limit}, start={start}, end={end} leave no item of the {len(items)} of {name}",
            "lower start, or raise limit and end",
        )
    return taken


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a jsonl or parquet file.

    Raises:
        UserError: another kind of file, or one that cannot be read.
    """
    if path.suffix == ".parquet":
        try:
            yield from pq.read_table(path).to_pylist()
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(f"{path} cannot be read as parquet ({error})", "replace the file") from error
        return
    if path.suffix not in (".jsonl", ".json"):
        raise UserError(f"{path} is neither jsonl nor parquet", "convert it to one of them")
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _parse_line(line, path, number)


def _parse_line(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"line {number} of {path} is not JSON ({error})", "mend or remove the line") from error
    if not isinstance(row, dict):
        raise UserError(f"line {number} of {path} is not a JSON object", 'write a row as {"question": …, "answer": …}')
    return row


def _files_of(benchmark: Benchmark, path: Path, split: str) -> list[Path]:
    if path.is_file():
        return [path]
    candidates = [path / benchmark.name / f"{split}.jsonl", path / f"{split}.jsonl"]
    if benchmark.hub is not None:
        candidates.insert(0, path / benchmark.hub.file)
    for candidate in candidates:
        if candidate.is_file():
            return [candidate]
    found = sorted(file for name in (f"{split}.parquet", f"{split}-*.parquet") for file in path.rglob(name))
    if not found:
        there = ", ".join(sorted(child.name for child in path.glob("*"))[:8]) or "nothing"
        raise UserError(
            f"there is no {benchmark.name} at {path} (no {split}.jsonl or {split}.parquet; there is {there})",
            "give the file, or the folder that holds it",
        )
    return found


def _optional(row: dict[str, Any], name: str | None) -> str | None:
    value = row.get(name) if name else None
    return None if value is None or value == "" else str(value)


def _tolerance(row: dict[str, Any], name: str | None, where: str) -> float | None:
    text = _optional(row, name)
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{where}: {name} is {text!r}, which is no number", "mend or remove it") from None
