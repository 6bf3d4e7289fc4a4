"""Writes a mixed dataset in the form that `datasets.load_from_disk` reads, for trainers other than Ladle's.

Columns: `input_ids`, the sequence_length tokens of a row, and `seq_lengths`, which sum to sequence_length: the tokens
of each document part and last, where a row is not full, those of the padding. TRL and others isolate documents by
`seq_lengths`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import DatasetInfo, Features, List, Value
from datasets.arrow_writer import ArrowWriter

from ladle.artifacts.files import pretty_json
from ladle.data.store import MixedDataset, read_mixture
from ladle.errors import UserError
from ladle.log import progress

FEATURES = Features({"input_ids": List(Value("int32")), "seq_lengths": List(Value("int32"))})
ROWS_IN_BATCH = 1000
"""Rows of a record batch, as `datasets` writes them."""
FILE_TOKENS = 2**27
"""Tokens of a data file: 512 MiB, about `datasets`' own limit of 500 MB."""


def export_arrow(artifact: Path, out: Path) -> None:
    """Write a `save_to_disk` folder: a Dataset, or a DatasetDict where a validation split is held out.

    Args:
        artifact: what the mix stage wrote.
        out: new folder.

    Raises:
        UserError: `out` holds something already, or `artifact` is not a mixed dataset.
    """
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty", "name a new folder")
    splits = list(read_mixture(artifact)["splits"])
    if splits == ["train"]:
        _export_split(MixedDataset(artifact), out)
        return
    for split in splits:
        _export_split(MixedDataset(artifact, split), out / split)
    (out / "dataset_dict.json").write_text(pretty_json({"splits": splits}), encoding="utf-8")


def _export_split(dataset: MixedDataset, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    rows_in_file = max(ROWS_IN_BATCH, FILE_TOKENS // dataset.sequence_length)
    starts = range(0, len(dataset), rows_in_file)
    names = [f"data-{number:05d}-of-{len(starts):05d}.arrow" for number in range(len(starts))]
    with progress(total=len(dataset), description=f"exporting {dataset.split}", unit="rows") as bar:
        for name, start in zip(names, starts, strict=True):
            with ArrowWriter(features=FEATURES, path=str(out / name)) as writer:
                for table in _tables(dataset, start, min(start + rows_in_file, len(dataset))):
                    writer.write_table(table)
                    bar.advance(table.num_rows)
                writer.finalize()
    DatasetInfo(features=FEATURES).write_to_directory(str(out))
    (out / "state.json").write_text(pretty_json(_state(dataset, names)), encoding="utf-8")


def _tables(dataset: MixedDataset, start: int, stop: int) -> Iterator[pa.Table]:
    for first in range(start, stop, ROWS_IN_BATCH):
        rows = range(first, min(first + ROWS_IN_BATCH, stop))
        tokens = np.concatenate([dataset[row]["input_ids"] for row in rows]).astype(np.int32)
        lengths = [_covering(dataset.lengths_of_row(row), dataset.sequence_length) for row in rows]
        length_stops = np.cumsum([0, *(len(of_row) for of_row in lengths)])
        token_stops = np.arange(len(rows) + 1) * dataset.sequence_length
        columns = [_lists(token_stops, tokens), _lists(length_stops, np.concatenate(lengths))]
        yield pa.Table.from_arrays(columns, schema=FEATURES.arrow_schema)


def _covering(lengths: list[int], row_length: int) -> np.ndarray:
    padding = row_length - sum(lengths)
    return np.array([*lengths, *([padding] if padding else [])], np.int32)


def _lists(stops: np.ndarray, values: np.ndarray) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(stops, pa.int32()), pa.array(values, pa.int32()))


def _state(dataset: MixedDataset, names: list[str]) -> dict[str, object]:
    return {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": dataset.digest()[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": dataset.split,
    }
