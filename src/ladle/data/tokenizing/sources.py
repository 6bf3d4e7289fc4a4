"""Tokenizes all sources of a mixture: pieces to worker processes, shards into a folder kept by content, links into
the artifact."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from ladle.artifacts.journal import ShardJournal
from ladle.data.config import MixConfig, SourceConfig
from ladle.data.files import find_data_files
from ladle.data.rows import Piece, cut_file
from ladle.data.store.shards import open_shard
from ladle.data.tokenizing.piece import TokenizeTask, tokenize_piece
from ladle.data.tokenizing.tokenized import TokenizedSource
from ladle.data.vocabulary import Vocabulary
from ladle.errors import UserError
from ladle.executors import Executor, SerialExecutor, Shard, make_executor

SMALL_INPUT_BYTES = 8 * 2**20
"""Below this, starting worker processes takes longer than the work."""


def find_pieces(source: SourceConfig, paths: Sequence[Path], size_bytes: int) -> list[Piece]:
    """Return the pieces of a source, in the order that numbers its documents.

    Raises:
        UserError: files or the split are missing, or a file cannot be opened.
    """
    files = find_data_files(paths, source.split, source.hub_subset())
    return [piece for file in files for piece in cut_file(file, size_bytes)]


def choose_executor(config: MixConfig, pieces: Sequence[Sequence[Piece]]) -> Executor:
    """Return where to work the pieces: the executor that the config names, or this process where there is little to
    do."""
    size_bytes = sum(piece.size_bytes for of_source in pieces for piece in of_source)
    if config.executor == "processes" and size_bytes < SMALL_INPUT_BYTES:
        return SerialExecutor()
    return make_executor(config.executor, config.workers)


def tokenize_sources(
    config: MixConfig, vocabulary: Vocabulary, pieces: Sequence[Sequence[Piece]], kept: Path, out: Path
) -> list[TokenizedSource]:
    """Tokenize every piece that is not in `kept` yet and link the shards into `out`.

    Args:
        config: the mixture.
        vocabulary: the tokenizer.
        pieces: the pieces of each source, in the order of the config's sources.
        kept: folder of finished shards by content, which other mixtures may share.
        out: folder of the artifact's shards; made here.

    Raises:
        UserError: a source that cannot be read or trained on.
    """
    tasks = _tasks(config, vocabulary, pieces)
    by_name = {task.name(): task for of_source in tasks for task in of_source}
    finished = ShardJournal(kept).run(by_name, tokenize_piece, choose_executor(config, pieces), "tokenizing")
    out.mkdir()
    for path in finished.values():
        _link(path, out / path.name)
    sources = _tokenized(config, tasks, out)
    for source in sources:
        source.check(config.max_bad_fraction, vocabulary.vocab_size)
    return sources


def tokenize_share(
    config: MixConfig, vocabulary: Vocabulary, pieces: Sequence[Sequence[Piece]], kept: Path, shard: Shard
) -> None:
    """Tokenize one share of the pieces into `kept`, where `tokenize_sources` finds them."""
    by_name = {task.name(): task for of_source in _tasks(config, vocabulary, pieces) for task in of_source}
    share = {name: by_name[name] for name in shard.of(sorted(by_name))}
    ShardJournal(kept).run(share, tokenize_piece, choose_executor(config, pieces), "tokenizing")


def _tasks(config: MixConfig, vocabulary: Vocabulary, pieces: Sequence[Sequence[Piece]]) -> list[list[TokenizeTask]]:
    if config.add_bos and vocabulary.bos_id is None:
        raise UserError("add_bos is set and the tokenizer names no bos_token", "set add_bos=false, or add the token")
    return [
        [TokenizeTask(piece, source, vocabulary, config.add_bos, config.engine) for piece in of_source]
        for source, of_source in zip(config.sources, pieces, strict=True)
    ]


def _tokenized(config: MixConfig, tasks: Sequence[Sequence[TokenizeTask]], folder: Path) -> list[TokenizedSource]:
    first_shards = accumulate((len(of_source) for of_source in tasks), initial=0)
    return [
        TokenizedSource(
            config=source,
            shards=tuple(open_shard(folder / task.name()) for task in of_source),
            origins=tuple(task.piece.path for task in of_source),
            first_shard=first,
        )
        for source, of_source, first in zip(config.sources, tasks, first_shards, strict=False)
    ]


def _link(path: Path, target: Path) -> None:
    """Give the shard a second name, without a second copy where the file system allows."""
    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)
