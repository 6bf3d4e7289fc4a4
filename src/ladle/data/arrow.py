"""Writes a mixed dataset in the form that `datasets.load_from_disk` reads, for trainers other than Ladle's.

Columns: `input_ids`, the sequence_length tokens of a row, and `seq_lengths`, which sum to sequence_length: the tokens
of each document part and last, where a row is not full, those of the padding. TRL and others isolate documents by
`seq_lengths`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import DatasetInfo, Features, List, Value
from datasets.arrow_writer import ArrowWriter

from ladle.artifacts.files import fsync_tree, hash_bytes, pretty_json, replace_durably
from ladle.data.store import MixedDataset, read_mixture
from ladle.errors import UserError
from ladle.log import progress

FEATURES = Features({"input_ids": List(Value("int32")), "seq_lengths": List(Value("int32"))})
# Rows of a record batch, as `datasets` writes them.
ROWS_IN_BATCH = 1000
# Tokens of a data file: 512 MiB, about `datasets`' own limit of 500 MB.
FILE_TOKENS = 2**27


def export_arrow(artifact: Path, out: Path) -> None:
    """Write a `save_to_disk` folder: a Dataset, or a DatasetDict where a validation split is held out.

    The folder appears when it is whole; where this very mixture is exported already, nothing is done.

    Args:
        artifact: what the mix stage wrote.
        out: new folder.

    Raises:
        UserError: `out` holds something else already, or `artifact` is not a mixed dataset.
    """
    datasets = [MixedDataset(artifact, split) for split in read_mixture(artifact)["splits"]]
    folders = {dataset.split: Path(dataset.split if len(datasets) > 1 else "") for dataset in datasets}
    if all(_is_exported(dataset, out / folders[dataset.split]) for dataset in datasets):
        return
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty", "remove it, or name a new folder")
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for dataset in datasets:
        _export_split(dataset, partial / folders[dataset.split])
    if len(datasets) > 1:
        (partial / "dataset_dict.json").write_text(pretty_json({"splits": list(folders)}), encoding="utf-8")
    fsync_tree(partial)
    replace_durably(partial, out)


def _is_exported(dataset: MixedDataset, folder: Path) -> bool:
    state = folder / "state.json"
    return state.is_file() and json.loads(state.read_text(encoding="utf-8"))["_fingerprint"] == _fingerprint(dataset)


def _fingerprint(dataset: MixedDataset) -> str:
    """Return a name of the rows, padding included."""
    return hash_bytes(f"{dataset.digest()} {dataset.sequence_length} {dataset.pad_id}".encode())[:16]


def _export_split(dataset: MixedDataset, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    rows_in_file = max(ROWS_IN_BATCH, FILE_TOKENS // dataset.sequence_length)
    starts = range(0, len(dataset), rows_in_file)
    names = [f"data-{number:05d}-of-{len(starts):05d}.arrow" for number in range(len(starts))]
    with progress(total=len(dataset), description=f"exporting {dataset.split}", unit="rows") as bar:
        for name, start in zip(names, starts, strict=True):
            stop = min(start + rows_in_file, len(dataset))
            with ArrowWriter(features=FEATURES, path=str(out / name)) as writer:
                for first in range(start, stop, ROWS_IN_BATCH):
                    table = _table(dataset, range(first, min(first + ROWS_IN_BATCH, stop)))
                    writer.write_table(table)
                    bar.advance(table.num_rows)
                writer.finalize()
    DatasetInfo(features=FEATURES).write_to_directory(str(out))
    state = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": _fingerprint(dataset),
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": dataset.split,
    }
    (out / "state.json").write_text(pretty_json(state), encoding="utf-8")


def _table(dataset: MixedDataset, rows: range) -> pa.Table:
    lengths = [dataset.lengths_of_row(row) for row in rows]
    paddings = [dataset.sequence_length - sum(of_row) for of_row in lengths]
    columns = {
        "input_ids": [dataset[row]["input_ids"].astype(np.int32) for row in rows],
        "seq_lengths": [of_row + [padding] * (padding > 0) for of_row, padding in zip(lengths, paddings, strict=True)],
    }
    return pa.table(columns, schema=FEATURES.arrow_schema)
