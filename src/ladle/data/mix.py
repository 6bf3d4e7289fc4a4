"""The mix stage: documents from many sources, by exact ratio, as packed rows of tokens.

find files → cut into pieces → tokenize (the only costly step, kept by content) → choose documents → pack → describe.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from filelock import FileLock

from ladle.artifacts.files import pretty_json
from ladle.data.config import MixConfig
from ladle.data.contamination import find_contamination, read_benchmark_texts
from ladle.data.encoders import Vocabulary, read_vocabulary
from ladle.data.mixing.choose import select
from ladle.data.mixing.write import count_tokens, describe_mixture, write_split
from ladle.data.rows import Piece
from ladle.data.store import MIXTURE_FILE
from ladle.data.tokenize import CACHE, choose_executor, find_pieces, tokenize_share, tokenize_sources
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
    for path in out.iterdir():
        if path != journal:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    kept, vocabulary, pieces = _prepare(config, inputs, journal, "tokenizer")
    with FileLock(kept / ".lock"):  # two mixtures must not write one shard at once
        sources = tokenize_sources(config, vocabulary, pieces, kept, out / "tokens")
        contamination = None
        if config.contamination is not None:
            texts = read_benchmark_texts(config.contamination.benchmarks, inputs["benchmarks"])
            contamination = find_contamination(
                list(zip(config.sources, pieces, strict=True)),
                texts,
                config.contamination.ngram_words,
                vocabulary,
                kept / "finds",
                choose_executor(config, pieces),
            )
            contamination.write(out)
    dropped = [np.empty(0, np.int64) for _ in sources]
    if contamination is not None and config.contamination is not None and config.contamination.drop:
        dropped = contamination.documents
    selections = select(sources, dropped, config)
    purposes = ["train"] if config.validation is None else ["train", "validation"]
    splits = {purpose: write_split(selections, config, purpose, out / purpose) for purpose in purposes}
    mixture = describe_mixture(config, vocabulary, selections, splits, contamination)
    (out / MIXTURE_FILE).write_text(pretty_json(mixture), encoding="utf-8")
    shutil.rmtree(journal, ignore_errors=True)
    read = {
        f"source:{one.name}": {piece.path for piece in of_source}
        for one, of_source in zip(config.sources, pieces, strict=True)
    }
    return StageResult(count_tokens(mixture), mixture["splits"], files_read=read)


def run_shard(config: MixConfig, inputs: Inputs, out: Path, shard: Shard) -> None:
    """Tokenize one share of the sources' pieces; `run` finds them finished."""
    kept, vocabulary, pieces = _prepare(config, inputs, out / JOURNAL_FOLDER, f"tokenizer-{shard.index}")
    tokenize_share(config, vocabulary, pieces, kept, shard)


def _prepare(
    config: MixConfig, inputs: Inputs, journal: Path, converted: str
) -> tuple[Path, Vocabulary, list[list[Piece]]]:
    """Return the folder where shards are kept, the tokenizer, and the pieces of each source."""
    kept = Path(config.cache).expanduser() / CACHE if config.cache else journal
    kept.mkdir(parents=True, exist_ok=True)
    vocabulary = read_vocabulary(inputs["tokenizer"][0], journal / converted)
    pieces = [
        find_pieces(source, inputs[f"source:{source.name}"], config.shard_size_bytes) for source in config.sources
    ]
    return kept, vocabulary, pieces
