from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import load_from_disk

from ladle.data import arrow
from ladle.data.arrow import export_arrow
from ladle.data.store import MixedDataset
from ladle.errors import UserError

from .samples import make_config, read_tree

RunMix = Callable[..., Path]
HALVES = {"a": 0.5, "b": 0.5}


@pytest.mark.parametrize("packing", ["best_fit", "wrapped", "none"])
def test_rows_are_the_same_in_both_forms(
    run_mix: RunMix, two_sources: dict[str, list[Path]], tmp_path: Path, packing: str
):
    mixed = run_mix(make_config(HALVES, packing=packing), two_sources)
    export_arrow(mixed, tmp_path / "arrow")
    exported, dataset = load_from_disk(str(tmp_path / "arrow")), MixedDataset(mixed)
    assert exported.column_names == ["input_ids", "seq_lengths"]
    assert len(exported) == len(dataset)
    for index, row in enumerate(exported):
        assert row["input_ids"] == dataset[index]["input_ids"].tolist()
        lengths = dataset.lengths_of_row(index)
        assert row["seq_lengths"][: len(lengths)] == lengths
        assert sum(row["seq_lengths"]) == 256
        assert len(row["seq_lengths"]) == len(lengths) + (sum(lengths) < 256)


def test_large_exports_are_cut_into_files(
    run_mix: RunMix, two_sources: dict[str, list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    mixed = run_mix(make_config(HALVES), two_sources)
    export_arrow(mixed, tmp_path / "whole")
    monkeypatch.setattr(arrow, "ROWS_IN_BATCH", 3)
    monkeypatch.setattr(arrow, "FILE_TOKENS", 10 * 256)
    export_arrow(mixed, tmp_path / "cut")
    assert len(list((tmp_path / "cut").glob("*.arrow"))) == -(-len(MixedDataset(mixed)) // 10)
    assert load_from_disk(str(tmp_path / "cut"))[:] == load_from_disk(str(tmp_path / "whole"))[:]


def test_both_splits_are_exported(run_mix: RunMix, two_sources: dict[str, list[Path]], tmp_path: Path):
    mixed = run_mix(make_config(HALVES, validation={"fraction": 0.1}), two_sources)
    export_arrow(mixed, tmp_path / "arrow")
    exported = load_from_disk(str(tmp_path / "arrow"))
    assert {name: len(split) for name, split in exported.items()} == {
        name: len(MixedDataset(mixed, name)) for name in ("train", "validation")
    }


def test_the_same_mixture_exports_the_same_bytes(run_mix: RunMix, two_sources: dict[str, list[Path]], tmp_path: Path):
    mixed = run_mix(make_config(HALVES), two_sources)
    export_arrow(mixed, tmp_path / "one")
    export_arrow(mixed, tmp_path / "two")
    assert read_tree(tmp_path / "one") == read_tree(tmp_path / "two")


def test_an_occupied_folder_is_refused(run_mix: RunMix, two_sources: dict[str, list[Path]], tmp_path: Path):
    mixed = run_mix(make_config(HALVES), two_sources)
    with pytest.raises(UserError, match="is not empty"):
        export_arrow(mixed, mixed)


def test_exporting_again_keeps_what_is_there(run_mix: RunMix, two_sources: dict[str, list[Path]], tmp_path: Path):
    mixed = run_mix(make_config(HALVES), two_sources)
    (tmp_path / "arrow.partial").mkdir()  # as a killed export leaves it
    (tmp_path / "arrow.partial" / "half.arrow").write_bytes(b"half")
    export_arrow(mixed, tmp_path / "arrow")
    before = (tmp_path / "arrow" / "state.json").stat().st_mtime_ns
    export_arrow(mixed, tmp_path / "arrow")
    assert (tmp_path / "arrow" / "state.json").stat().st_mtime_ns == before
    assert not (tmp_path / "arrow.partial").exists()


def test_another_mixture_in_the_folder_is_refused(run_mix: RunMix, two_sources: dict[str, list[Path]], tmp_path: Path):
    export_arrow(run_mix(make_config(HALVES), two_sources, "one"), tmp_path / "arrow")
    other = run_mix(make_config(HALVES, seed=1), two_sources, "other")
    with pytest.raises(UserError, match="is not empty"):
        export_arrow(other, tmp_path / "arrow")
