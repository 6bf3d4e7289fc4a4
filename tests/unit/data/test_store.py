from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

from ladle.data.store import MixedDataset
from ladle.errors import UserError

from .samples import make_config


@pytest.fixture
def mixed(run_mix: Callable[..., Path], two_sources: dict[str, list[Path]]) -> Path:
    return run_mix(make_config({"a": 0.5, "b": 0.5}, validation={"fraction": 0.1}), two_sources)


def test_a_row_isolates_its_documents(mixed: Path):
    dataset = MixedDataset(mixed)
    for index in range(len(dataset)):
        row, lengths = dataset[index], dataset.lengths_of_row(index)
        padding = dataset.sequence_length - sum(lengths)
        assert set(row) == {"input_ids", "position_ids", "labels"}
        assert all(values.shape == (256,) and values.dtype == np.int64 for values in row.values())
        positions = [position for length in [*lengths, padding] for position in range(length)]
        assert row["position_ids"].tolist() == positions
        masked = (row["position_ids"] == 0) | (np.arange(256) >= sum(lengths))
        assert np.array_equal(row["labels"], np.where(masked, -100, row["input_ids"]))


def test_rows_can_be_changed_without_harm(mixed: Path):
    dataset = MixedDataset(mixed)
    before = dataset[0]["input_ids"].copy()
    dataset[0]["input_ids"][:] = 0
    assert np.array_equal(dataset[0]["input_ids"], before)


def test_negative_and_outside_indices(mixed: Path):
    dataset = MixedDataset(mixed)
    assert np.array_equal(dataset[-1]["input_ids"], dataset[len(dataset) - 1]["input_ids"])
    for index in (len(dataset), -len(dataset) - 1):
        with pytest.raises(IndexError):
            dataset[index]


def test_pickling_leaves_the_maps_behind(mixed: Path):
    dataset = MixedDataset(mixed)
    rows = [dataset[index] for index in range(len(dataset))]
    content = pickle.dumps(dataset)
    assert len(content) < 20_000
    copy = pickle.loads(content)
    assert all(np.array_equal(copy[i]["input_ids"], row["input_ids"]) for i, row in enumerate(rows))


def test_it_feeds_a_data_loader(mixed: Path):
    dataset = MixedDataset(mixed)
    batches = list(DataLoader(dataset, batch_size=4, num_workers=0))
    assert sum(len(batch["input_ids"]) for batch in batches) == len(dataset)


def test_splits(mixed: Path):
    assert len(MixedDataset(mixed, "validation")) < len(MixedDataset(mixed))
    with pytest.raises(UserError, match=r"has no split 'test' \(it has train, validation\)"):
        MixedDataset(mixed, "test")


def test_what_is_no_mixture_is_refused(tmp_path: Path, mixed: Path):
    with pytest.raises(UserError, match="there is no mixed dataset"):
        MixedDataset(tmp_path)
    mixture = json.loads((mixed / "mixture.json").read_text())
    (mixed / "mixture.json").write_text(json.dumps(mixture | {"format": 99}))
    with pytest.raises(UserError, match="mixture format 99"):
        MixedDataset(mixed)


def test_reading_needs_no_heavy_library():
    heavy = ["torch", "transformers", "datasets", "tokenizers"]
    code = f"import sys, ladle.data.store; print([name for name in {heavy!r} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
