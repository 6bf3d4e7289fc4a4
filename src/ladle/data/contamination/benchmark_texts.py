"""The text of benchmark items, for the search for contamination."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ladle.data.contamination.find import BenchmarkText
from ladle.errors import UserError
from ladle.evaluation.benchmark import builtin_benchmarks, load_items


def read_benchmark_texts(names: Sequence[str], paths: list[Path]) -> Iterator[BenchmarkText]:
    """Yield question and solution of every item of the named benchmarks.

    Args:
        names: built-in benchmarks.
        paths: the folder that holds `<name>/test.jsonl`, or the files.

    Raises:
        UserError: an unknown name, or a benchmark that is not there.
    """
    known = builtin_benchmarks()
    for name in names:
        if name not in known:
            raise UserError(f"there is no benchmark {name!r}", f"use {', '.join(known)}")
        for item in load_items(known[name], paths):
            yield BenchmarkText(name, str(item.idx), f"{item.question}\n{item.solution}")
