"""The mix stage: documents from many sources, by exact ratio, as packed rows of tokens.

find files → cut into pieces → tokenize (the only costly step, kept by content) → choose documents → pack → describe.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from filelock import FileLock

from ladle.data.config import MixConfig
from ladle.data.contamination.benchmark_texts import read_benchmark_texts
from ladle.data.contamination.find import Contamination, find_contamination, write_finds
from ladle.data.mixing.assemble import Drawn, write_split
from ladle.data.mixing.describe import count_tokens, describe_mixture, write_mixture
from ladle.data.mixing.index_writer import SplitCounts
from ladle.data.mixing.selection import SourceSelection, select
from ladle.data.rows import Piece
from ladle.data.tokenizing.sources import choose_executor, find_pieces, tokenize_share, tokenize_sources
from ladle.data.vocabulary import Vocabulary, read_vocabulary
from ladle.executors import Shard
from ladle.stage import Inputs, StageResult

JOURNAL_FOLDER = "journal"
"""Finished token shards and a converted tokenizer, while the stage runs."""


def run(config: MixConfig, inputs: Inputs, out: Path) -> StageResult:
    """Write the mixed dataset: `tokens/` (shards), `train/` and `validation/` (indices), `mixture.json`.

    Args:
        config: the mixture.
        inputs: `tokenizer`: one folder; `source:<name>`: files and folders of each source; `benchmarks`: where
            `contamination` is set, the folder of benchmarks.
        out: where the dataset goes; leftovers of an earlier try of the same step are used or removed.

    Raises:
        UserError: an input that is missing, damaged, empty, too small, or not of the format that the config says.
    """
    journal = out / JOURNAL_FOLDER
    kept = Path(config.cache).expanduser() if config.cache else journal
    _remove_all_but(journal, out)
    kept.mkdir(parents=True, exist_ok=True)
    vocabulary = read_vocabulary(inputs["tokenizer"][0], journal / "tokenizer")
    pieces = [
        find_pieces(source, inputs[f"source:{source.name}"], config.shard_size_bytes) for source in config.sources
    ]
    with FileLock(kept / ".lock"):  # two mixtures must not write one shard at once
        sources = tokenize_sources(config, vocabulary, pieces, kept, out / "tokens")
        contamination = _search(config, inputs, vocabulary, pieces, kept / "finds")
    selections = select(sources, _documents_to_drop(config, contamination), config)
    splits = _write_splits(config, selections, out)
    mixture = describe_mixture(config, vocabulary, selections, splits, contamination)
    write_mixture(mixture, out)
    if contamination is not None:
        write_finds(contamination, out)
    shutil.rmtree(journal, ignore_errors=True)
    return StageResult(count_tokens(mixture), mixture["splits"])


def run_shard(config: MixConfig, inputs: Inputs, out: Path, shard: Shard) -> None:
    """Tokenize one share of the sources' pieces; `run` finds them finished."""
    journal = out / JOURNAL_FOLDER
    kept = Path(config.cache).expanduser() if config.cache else journal
    kept.mkdir(parents=True, exist_ok=True)
    vocabulary = read_vocabulary(inputs["tokenizer"][0], journal / f"tokenizer-{shard.index}")
    pieces = [
        find_pieces(source, inputs[f"source:{source.name}"], config.shard_size_bytes) for source in config.sources
    ]
    tokenize_share(config, vocabulary, pieces, kept, shard)


def _remove_all_but(kept: Path, out: Path) -> None:
    for path in out.iterdir():
        if path != kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _search(
    config: MixConfig, inputs: Inputs, vocabulary: Vocabulary, pieces: list[list[Piece]], kept: Path
) -> Contamination | None:
    wanted = config.contamination
    if wanted is None:
        return None
    texts = read_benchmark_texts(wanted.benchmarks, inputs["benchmarks"])
    sources = list(zip(config.sources, pieces, strict=True))
    return find_contamination(sources, texts, wanted.ngram_words, vocabulary, kept, choose_executor(config, pieces))


def _documents_to_drop(config: MixConfig, contamination: Contamination | None) -> list[np.ndarray]:
    if contamination is None or config.contamination is None or not config.contamination.drop:
        return [np.empty(0, np.int64) for _ in config.sources]
    return contamination.documents


def _write_splits(config: MixConfig, selections: list[SourceSelection], out: Path) -> dict[str, SplitCounts]:
    train = [Drawn(one.source, one.usable, one.train) for one in selections]
    splits = {"train": write_split(train, config, "train", out / "train")}
    if config.validation is not None:
        validation = [Drawn(one.source, one.usable, one.validation) for one in selections]
        splits["validation"] = write_split(validation, config, "validation", out / "validation")
    return splits
