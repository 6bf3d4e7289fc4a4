from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from tokenizers import Tokenizer

from ladle.data.config import MixConfig
from ladle.stages import mix

from .samples import make_texts, save_tokenizer, write_texts

settings.register_profile("compiled", deadline=None)  # the first call of a kernel loads or compiles it
settings.load_profile("compiled")


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))


@pytest.fixture
def two_sources(tmp_path: Path) -> dict[str, list[Path]]:
    return {
        "source:a": [write_texts(tmp_path / "a.jsonl", make_texts(1, 300))],
        "source:b": [write_texts(tmp_path / "b.jsonl", make_texts(2, 200))],
    }


RunMix = Callable[..., Path]


@pytest.fixture
def run_mix(tmp_path: Path, tokenizer_folder: Path) -> RunMix:
    """Run the stage into a folder of tmp_path and return the folder."""

    def run(config: MixConfig, inputs: dict[str, list[Path]], name: str = "mixed") -> Path:
        out = tmp_path / name
        out.mkdir(exist_ok=True)
        mix.run(config, {"tokenizer": [tokenizer_folder], **inputs}, out)
        return out

    return run
