"""Rows of a small dataset on disk, as dicts: what prompts, preference data and tokenizer training read.

(The documents of a mixture are read in pieces, by `pieces` and `rows`; these datasets fit in memory.)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import DatasetDict, load_from_disk

from ladle.artifacts.record import RECORD_NAME
from ladle.errors import UserError

_SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")


def read_rows(paths: list[Path], split: str = "train") -> Iterator[dict[str, Any]]:
    """Yield the rows of files, of a folder's `[data/]<split>[-*].jsonl|json|parquet|csv`, or of a saved dataset.

    Raises:
        UserError: nothing there, an unknown kind of file, or a line that is not JSON.
    """
    for path in paths:
        for file in _files_of(path, split) if path.is_dir() else [path]:
            yield from _read_folder(file, split) if file.is_dir() else _read_file(file)


def splits_of(paths: list[Path]) -> list[str]:
    """Return the names of the splits that folders hold, in order; a file is the split `train`."""
    names: dict[str, None] = {}
    for path in paths:
        if path.is_file():
            names["train"] = None
        elif (path / "dataset_dict.json").is_file():
            names |= dict.fromkeys(json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"])
        else:
            files = [file for place in _places(path) for file in sorted(place.iterdir()) if file.suffix in _SUFFIXES]
            # a fetched dataset is an artifact, whose record stands beside its rows
            files = [file for file in files if file.name != RECORD_NAME]
            names |= dict.fromkeys(file.name.split("-")[0].split(".")[0] for file in files)
    return list(names)


def _places(folder: Path) -> list[Path]:
    """Return the folders where a dataset's files stand: a Hub repository has them in `data/`."""
    return [folder, *([folder / "data"] if (folder / "data").is_dir() else [])]


def _files_of(folder: Path, split: str) -> list[Path]:
    if (folder / "dataset_info.json").is_file() or (folder / "dataset_dict.json").is_file():
        return [folder]
    found = [
        file
        for place in _places(folder)
        for suffix in _SUFFIXES
        for file in sorted(place.glob(f"{split}{suffix}")) + sorted(place.glob(f"{split}-*{suffix}"))
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
    if path.suffix == ".json" and (rows := _rows_of_json(path)) is not None:
        yield from rows
    elif path.suffix in (".jsonl", ".json"):
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


def _rows_of_json(path: Path) -> list[dict[str, Any]] | None:
    """Return the rows of a file that is one JSON value, a list of rows or lists by column; None where it is not."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    if isinstance(value, list) and all(isinstance(row, dict) for row in value):
        return value
    if isinstance(value, dict) and value and all(isinstance(column, list) for column in value.values()):
        if len({len(column) for column in value.values()}) > 1:
            sizes = ", ".join(f"{name} {len(column)}" for name, column in value.items())
            raise UserError(f"the columns of {path} differ in length ({sizes})", "make them equally long")
        return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
    return None


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
