"""A benchmark as a declaration, where its items are and which fields hold what, and its items as that reads them.

The built-in ones are the YAML files of `ladle/evaluation/benchmarks`; adding one is adding a file. Free of torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from ladle.config import Config
from ladle.data.formats import fill
from ladle.errors import BadRow, UserError
from ladle.grading.extract import last_boxes
from ladle.grading.verdict import Pair
from ladle.log import get_logger

logger = get_logger(__name__)

PromptStyle = Literal["cot", "openseek_sft", "qwen25-math-cot", "chat"]


class HubSource(Config):
    """A dataset of the Hugging Face Hub at one commit."""

    id: str
    revision: str
    """The pinned 40-digit commit."""
    file: str
    """The file of the repository that holds the items."""


class FieldRule(Config):
    """How a text is read from one field of an item."""

    field: str
    rule: Literal["whole", "first", "boxed", "before", "after"] = "whole"
    r"""`whole` value; `first` of a list; content of the last `\\boxed{}`; text `before` or `after` the last marker."""
    marker: str = ""

    def read(self, row: dict[str, Any]) -> str:
        """Return the text that the rule reads from a row, without spaces around it; nothing where there is none.

        Raises:
            UserError: the field holds what is neither text nor a number.
        """
        value = row.get(self.field)
        if isinstance(value, list) and (self.rule == "first" or len(value) == 1):
            value = value[0] if value else None
        if value is None or value != value:  # not a number
            return ""
        if type(value) not in (str, int, float):
            shown = json.dumps(value, ensure_ascii=False, default=str)[:60]
            problem = f"has {shown} in {self.field}, which is neither text nor a number"
            raise UserError(problem, "write it as text (several answers as `1, 2`), or name another field")
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # amc23 writes 27.0 for the integer 27
        text = str(value)
        if self.rule == "boxed":
            return last_boxes(text)
        if self.rule in ("before", "after"):
            before, marker, after = text.rpartition(self.marker)
            text = (before if self.rule == "before" else after) if marker else ""
        return text.strip()


class Benchmark(Config):
    """One benchmark. Where several fields are listed, an item's first non-empty one counts."""

    name: str
    hub: HubSource | None = None
    question: list[str] = ["question"]
    """Fields with the problem; one with braces is a template over the row's columns."""
    solution: list[FieldRule] = []
    """The reference solution, kept in results as `gt_cot`."""
    gold: list[FieldRule] = [FieldRule(field="answer")]
    """The known answer."""
    type: str | None = None
    """Answer type of every item, by the grader's names (`int`, `number`, `expression`, …); unset infers it."""
    type_field: str | None = None
    """Field with each item's own answer type."""
    unit_field: str | None = None
    """Field with the unit that an answer is in."""
    tolerance_field: str | None = None
    """Field with the absolute error that an answer may have."""
    multiple_field: str | None = None
    """Field that says whether the gold answer lists several answers, in any order."""
    prompt: PromptStyle = "cot"
    """Prompt format where the run sets none."""
    items: int | None = None
    """Number of items in the form that upstream's harness reads; another number is reported, not refused."""
    licence: str = "unknown"
    source: str = ""
    """Where the items come from and how editions differ."""


@cache
def builtin_benchmarks() -> dict[str, Benchmark]:
    """Return the built-in benchmarks by name."""
    files = sorted(resources.files("ladle.evaluation").joinpath("benchmarks").iterdir(), key=lambda file: file.name)
    loaded = [Benchmark.model_validate(yaml.safe_load(file.read_text(encoding="utf-8"))) for file in files]
    return {benchmark.name: benchmark for benchmark in loaded}


@dataclass(frozen=True, slots=True)
class Item:
    """One problem of a benchmark.

    Attributes:
        idx: its number in the benchmark, from 0; the row's own `idx` where it has one.
        question: the problem.
        gold: the known answer.
        solution: the reference solution, or nothing.
        type: answer type, or None to infer it from the gold answer.
        unit: unit that the answer is in.
        tolerance: absolute error that the answer may have.
        multiple: the gold answer lists several answers, in any order.
        row: the row as it was read.
    """

    idx: int
    question: str
    gold: str
    solution: str = ""
    type: str | None = None
    unit: str | None = None
    tolerance: float | None = None
    multiple: bool = False
    row: dict[str, Any] = field(default_factory=dict, repr=False)

    def pair(self, answer: str) -> Pair:
        """Return the known answer with one to grade by it."""
        return Pair(self.gold, answer, self.type, self.tolerance, self.unit, self.multiple)


def load_items(benchmark: Benchmark, paths: Sequence[Path], split: str = "test") -> list[Item]:
    """Read a benchmark's items, in order.

    Args:
        benchmark: its declaration.
        paths: files of rows, or folders with some: a snapshot of its Hub repository, `<name>/<split>.jsonl`, or
            `<split>` files.
        split: split to look for in a folder.

    Raises:
        UserError: no such file, none or two of the same item in it, or a row without a question or an answer.
    """
    from ladle.data.rows import read_placed_rows  # needs pyarrow, which a recipe that is only read does not

    inside = [benchmark.hub.file, benchmark.name] if benchmark.hub else [benchmark.name]
    places = [next((path / name for name in inside if (path / name).exists()), path) for path in paths]
    items: list[Item] = []
    for index, (where, row) in enumerate(read_placed_rows(places, split)):
        try:
            items.append(_read_item(benchmark, index, row))
        except UserError as error:
            raise UserError(f"{where} {error.problem}", error.fix) from error
    if not items:
        raise UserError(f"{benchmark.name} has no items in {places[0]}", "name a file with a problem in each row")
    if len({item.idx for item in items}) != len(items):
        raise UserError(f"{benchmark.name} has two items of the same idx", "remove the idx field, or make it unique")
    if repeats := len(items) - len({item.question for item in items}):
        text = "%s repeats %d of its %d questions: each counts, and intervals are narrower than they should be"
        logger.warning(text, benchmark.name, repeats, len(items))
    if benchmark.items not in (None, len(items)):
        text = "%s has %d items here, and %d in the published form"
        logger.warning(text, benchmark.name, len(items), benchmark.items)
    return items


def take(items: list[Item], limit: int | None, start: int, end: int, name: str) -> list[Item]:
    """Return part of the items: of the first `limit` (None is all), those from `start` to before `end` (-1 is all).

    Raises:
        UserError: that leaves none.
    """
    taken = items[:limit][start : None if end == -1 else end]
    if not taken:
        problem = f"limit={limit}, start={start}, end={end} leave no item of the {len(items)} of {name}"
        raise UserError(problem, "lower start, or raise limit and end")
    return taken


def read_first(row: dict[str, Any], rules: Sequence[FieldRule]) -> str:
    """Return what the first rule that finds anything finds; nothing where none does."""
    return next((text for rule in rules if (text := rule.read(row))), "")


def _read_item(benchmark: Benchmark, index: int, row: dict[str, Any]) -> Item:
    question = next((text for field in benchmark.question if (text := _read_question(field, row))), "")
    gold = read_first(row, benchmark.gold)
    if not question or not gold:
        what = "answer" if question else "question"
        fields = [rule.field for rule in benchmark.gold] if question else benchmark.question
        looked_for = ", ".join(dict.fromkeys(fields))
        if empty := [name for name in fields if name in row and not str(row[name] or "").strip()]:
            raise UserError(f"has no {what}: {empty[0]} is empty", "fill it in, or take the row out")
        problem = f"has no {what} (looked for {looked_for}; it has {', '.join(row)})"
        raise UserError(problem, f"name the field: benchmarks: [{{name: {benchmark.name}, {what}: FIELD}}]")
    return Item(
        idx=row["idx"] if type(row.get("idx")) is int else index,
        question=question,
        gold=gold,
        solution=read_first(row, benchmark.solution),
        row=row,
        **compared_by(benchmark, row),
    )


def _read_question(field: str, row: dict[str, Any]) -> str:
    if "{" not in field:
        return FieldRule(field=field).read(row)
    try:
        return fill(field, row, "question").strip()
    except BadRow as fault:
        raise UserError(f"does not fit the template of the question: {fault.problem}", fault.fix) from fault


def compared_by(benchmark: Benchmark, row: dict[str, Any]) -> dict[str, Any]:
    """Return what an item's answers are compared by beside the known one: `type`, `unit`, `tolerance` and `multiple`.

    Raises:
        UserError: the tolerance is not a number of at least 0.
    """

    def optional(name: str | None) -> str | None:
        return (FieldRule(field=name).read(row) or None) if name else None

    tolerance = optional(benchmark.tolerance_field)
    try:
        number = None if tolerance is None else float(tolerance)
    except ValueError:
        number = math.nan
    if number is not None and not 0 <= number < math.inf:
        raise UserError(f"has {tolerance!r} in {benchmark.tolerance_field}, not a number", "fix or remove it")
    return {
        "type": benchmark.type or optional(benchmark.type_field),
        "unit": optional(benchmark.unit_field),
        "tolerance": number,
        "multiple": str(row.get(benchmark.multiple_field or "")).lower() in ("true", "1"),
    }
