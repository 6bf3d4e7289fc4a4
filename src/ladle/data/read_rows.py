"""Rows of a small dataset on disk, as dicts: what prompts, preference data and tokenizer training read.

(The mixture's documents go through `ladle.data.sources`, which reads in shards; these datasets fit in memory.)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import DatasetDict, load_from_disk

from ladle.errors import UserError

_SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")


def read_rows(paths: list[Path], split: str = "train") -> Iterator[dict[str, Any]]:
    """Yield the rows of files, of `<folder>/<split>.jsonl|parquet|csv`, or of a `save_to_disk` folder, in order.

    Raises:
        UserError: nothing there, an unknown kind of file, or a line that is not JSON.
    """
    for path in paths:
        for file in _files_of(path, split) if path.is_dir() else [path]:
            yield from _read_folder(file, split) if file.is_dir() else _read_file(file)


def _files_of(folder: Path, split: str) -> list[Path]:
    if (folder / "dataset_info.json").is_file() or (folder / "dataset_dict.json").is_file():
        return [folder]
    found = [
        file
        for suffix in _SUFFIXES
        for file in sorted(folder.glob(f"{split}{suffix}")) + sorted(folder.glob(f"{split}-*{suffix}"))
    ]
    if not found:
        there = ", ".join(sorted(file.name for file in folder.iterdir())) or "nothing"
        raise UserError(f"{folder} has no split {split!r} (there is {there})", "set `split:` to one that exists")
    return found


def _read_folder(folder: Path, split: str) -> Iterator[dict[str, Any]]:
    dataset = load_from_disk(folder)
    if isinstance(dataset, DatasetDict):
        if split not in dataset:
            raise UserError(
                f"{folder} has no split {split!r} (there is {', '.join(map(str, dataset))})",
                "set `split:` to one that exists",
            )
        dataset = dataset[split]
    yield from cast(Iterable[dict[str, Any]], dataset)  # the stub allows for other formats than plain Python


def _read_file(path: Path) -> Iterator[dict[str, Any]]:
    if path.suffix in (".jsonl", ".json"):
        yield from _read_jsonl(path)
    elif path.suffix == ".parquet":
        try:
            for batch in pq.ParquetFile(path).iter_batches():
                yield from batch.to_pylist()
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(f"{path} cannot be read as parquet ({error})", "replace the file") from error
    elif path.suffix == ".csv":
        from pyarrow import csv

        yield from csv.read_csv(path).to_pylist()
    else:
        raise UserError(f"{path} is none of {', '.join(_SUFFIXES)}", "convert it to one of them")


def _read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"line {number} of {path} is not JSON ({error})", "mend or remove the line") from error
            if not isinstance(row, dict):
                raise UserError(f"line {number} of {path} is not a JSON object", "write a row as {...}")
            yield row
