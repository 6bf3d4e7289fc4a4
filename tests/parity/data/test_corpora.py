"""Mixtures of the real corpora: exact ratios, the oracle's tokens, little padding, one result for every way of making
it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from ladle.data.config import MixConfig
from ladle.data.store import MixedDataset
from ladle.stages import mix
from tests.unit.data.samples import documents_of_row, read_tree

from .conftest import SOURCES

pytestmark = pytest.mark.slow

RATIOS = dict(zip(SOURCES, (0.3, 0.3, 0.25, 0.15), strict=True))
NUM_TOKENS = 5_000_011


def make_mix(shared_data: Path, tokenizer: Path, out: Path, **changes: Any) -> Path:
    sources = [{"name": name, "dataset": name, "ratio": ratio, "max_epochs": 9} for name, ratio in RATIOS.items()]
    settings = {"sources": sources, "budget": {"tokens": NUM_TOKENS}, "shard_size_bytes": 2**20, "workers": 1}
    out.mkdir()
    inputs = {f"source:{name}": [shared_data / "corpus" / f"{name}.parquet"] for name in SOURCES}
    mix.run(MixConfig.model_validate(settings | changes), {"tokenizer": [tokenizer], **inputs}, out)
    return out


@pytest.fixture(scope="module")
def mixed(shared_data: Path, openseek_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_mix(shared_data, openseek_tokenizer, tmp_path_factory.mktemp("mixed") / "out")


def test_ratios_are_exact_to_one_token_and_padding_is_small(mixed: Path):
    mixture = json.loads((mixed / "mixture.json").read_text())
    tokens = {source["name"]: source["train_tokens"] for source in mixture["sources"]}
    assert sum(tokens.values()) == NUM_TOKENS == mixture["splits"]["train"]["tokens"]
    assert all(abs(tokens[name] - ratio * NUM_TOKENS) <= 1 for name, ratio in RATIOS.items())
    assert mixture["splits"]["train"]["padding_share"] <= 0.001


def test_every_row_holds_the_oracles_tokens(mixed: Path, openseek_tokenizer: Path, corpus: dict[str, list[str]]):
    oracle = Tokenizer.from_file(str(openseek_tokenizer / "tokenizer.json"))
    expected = {
        name: [[*encoding.ids, 151850] for encoding in oracle.encode_batch(texts, add_special_tokens=False)]
        for name, texts in corpus.items()
    }
    dataset = MixedDataset(mixed)
    seen: Counter[str] = Counter()
    for index in range(len(dataset)):
        tokens, start = dataset[index]["input_ids"].tolist(), 0
        for part in documents_of_row(dataset, index):
            whole = expected[part.source][part.document]
            assert tokens[start : start + part.length] == whole[part.offset : part.offset + part.length]
            start += part.length
            seen[part.source] += part.length
    assert seen.total() == NUM_TOKENS


@pytest.mark.parametrize("changes", [{"workers": 2}, {"workers": 8}, {"engine": "hf"}], ids=str)
def test_workers_and_engines_do_not_show(
    mixed: Path,
    shared_data: Path,
    openseek_tokenizer: Path,
    tmp_path: Path,
    changes: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
):
    assert read_tree(make_mix(shared_data, openseek_tokenizer, tmp_path / "out", **changes)) == read_tree(mixed)
    assert not caplog.records
