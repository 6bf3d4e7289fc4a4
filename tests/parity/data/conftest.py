from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ladle.models.tokenizer import convert_tokenizer

SOURCES = ("web-en", "web-zh", "code", "math")


@pytest.fixture(scope="session")
def openseek_tokenizer(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OpenSeek's real vocabulary, converted."""
    folder = tmp_path_factory.mktemp("openseek")
    convert_tokenizer(shared_data / "openseek-tokenizer", folder)
    return folder


@pytest.fixture(scope="session")
def corpus(shared_data: Path) -> dict[str, list[str]]:
    """Every document of the real corpora, by source."""
    return {name: pq.read_table(shared_data / "corpus" / f"{name}.parquet")["text"].to_pylist() for name in SOURCES}
