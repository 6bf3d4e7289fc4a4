"""Tokenizes the sources of a mixture: one shard a piece, made by worker processes, kept by content.

A shard depends on the piece, the tokenizer and the format alone, and is named by their hash; so the worker count cannot
show, and other ratios tokenize nothing again.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np

from ladle.artifacts.files import canonical_json, hash_bytes, link_or_copy
from ladle.artifacts.journal import ShardJournal
from ladle.data.config import MixConfig, SourceConfig
from ladle.data.documents import HARMLESS, Document, format_identity, read_documents
from ladle.data.encoders import Disagreement, Encoded, Engine, PieceEncoder, Vocabulary
from ladle.data.files import find_data_files
from ladle.data.rows import Piece, Unreadable, cut_file
from ladle.data.store import ShardWriter, TokenShard, open_shard
from ladle.errors import UserError
from ladle.executors import Executor, SerialExecutor, Shard, make_executor
from ladle.log import get_logger

logger = get_logger(__name__)

Pieces = Sequence[Sequence[Piece]]
"""The pieces of each source, in the order of the config's sources."""
SHARD_FORMAT = 1
CACHE = "rows-2"
"""Folder within a cache; another one where the same rows give other tokens. The shards' names stay as they are, since
the digest of a dataset is made of them."""
BUFFER_BYTES = 2**20
LONGEST_TAIL_CHARS = 100
"""White space and end token that are looked at behind a text."""
SMALL_INPUT_BYTES = 8 * 2**20
"""Below this, starting worker processes takes longer than the work."""


@dataclass(frozen=True)
class TokenizedSource:
    """The documents of one source, numbered from 0 in the order of its files; a dropped row keeps its number and has
    length 0."""

    config: SourceConfig
    shards: tuple[TokenShard, ...]
    origins: tuple[Path, ...]
    """The file that each shard was made from."""
    first_shard: int
    """Number of its first shard among those of all sources."""

    @property
    def name(self) -> str:
        """The source's name."""
        return self.config.name

    @cached_property
    def first_documents(self) -> np.ndarray:
        """(shards + 1,) number of the first document of each shard, then their total."""
        return np.cumsum([0, *(shard.num_rows for shard in self.shards)], dtype=np.int64)

    @cached_property
    def lengths(self) -> np.ndarray:
        """(documents,) u4 tokens of each document."""
        return np.concatenate([np.empty(0, "<u4"), *(shard.lengths() for shard in self.shards)])

    @cached_property
    def starts(self) -> np.ndarray:
        """(documents,) offset of each document's first token in its shard, as u4 where that is enough."""
        largest = max((shard.num_tokens for shard in self.shards), default=0)
        starts = np.empty(len(self.lengths), np.uint32 if largest < 2**32 else np.uint64)
        for first, last in pairwise(self.first_documents):
            lengths = self.lengths[first:last]
            starts[first:last] = np.cumsum(lengths, dtype=np.uint64) - lengths
        return starts

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents."""
        return sum(shard.num_tokens for shard in self.shards)

    @cached_property
    def dropped(self) -> dict[str, int]:
        """Rows that gave no document, by reason."""
        return dict(sorted(sum((Counter(shard.dropped) for shard in self.shards), Counter()).items()))

    def shards_of(self, documents: np.ndarray) -> np.ndarray:
        """Return the shard number, among those of all sources, of each document."""
        return self.first_shard + np.searchsorted(self.first_documents, documents, "right") - 1


@dataclass(frozen=True)
class TokenizeTask:
    """Everything that one shard is made of; picklable."""

    piece: Piece
    source: SourceConfig
    vocabulary: Vocabulary
    add_bos: bool
    engine: Engine

    def name(self) -> str:
        """Return the shard's file name, from the hash of all that decides its bytes."""
        identity = {
            "piece": self.piece.digest,
            "format": format_identity(self.source, self.vocabulary),
            "tokenizer": self.vocabulary.digest,
            "eos": self.vocabulary.eos_id,
            "bos": self.vocabulary.bos_id if self.add_bos else None,
            "dtype": self.vocabulary.token_dtype,
            "version": SHARD_FORMAT,
        }
        return hash_bytes(canonical_json(identity).encode())[:40] + ".tokens"


def find_pieces(source: SourceConfig, paths: Sequence[Path], size_bytes: int) -> list[Piece]:
    """Return the pieces of a source, in the order that numbers its documents.

    Raises:
        UserError: files or the split are missing, or a file cannot be opened.
    """
    files = find_data_files(paths, source.split, source.hub_subset())
    return [piece for file in files for piece in cut_file(file, size_bytes)]


def choose_executor(config: MixConfig, pieces: Pieces) -> Executor:
    """Return where to work the pieces: the executor that the config names, or this process where there is little to
    do."""
    size_bytes = sum(piece.size_bytes for of_source in pieces for piece in of_source)
    if config.executor == "processes" and size_bytes < SMALL_INPUT_BYTES:
        return SerialExecutor()
    return make_executor(config.executor, config.workers)


def tokenize_sources(
    config: MixConfig, vocabulary: Vocabulary, pieces: Pieces, kept: Path, out: Path
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
    by_name = dict(task for of_source in tasks for task in of_source)
    finished = ShardJournal(kept).run(by_name, tokenize_piece, choose_executor(config, pieces), "tokenizing")
    out.mkdir()
    for path in finished.values():
        link_or_copy(path, out / path.name)
    sources, first_shard = [], 0
    for source, of_source in zip(config.sources, tasks, strict=True):
        shards = tuple(open_shard(out / name) for name, _ in of_source)
        sources.append(TokenizedSource(source, shards, tuple(task.piece.path for _, task in of_source), first_shard))
        _require_usable(sources[-1], config.max_bad_fraction, vocabulary.vocab_size)
        first_shard += len(shards)
    return sources


def tokenize_share(config: MixConfig, vocabulary: Vocabulary, pieces: Pieces, kept: Path, shard: Shard) -> None:
    """Tokenize one share of the pieces into `kept`, where `tokenize_sources` finds them."""
    tasks = dict(task for of_source in _tasks(config, vocabulary, pieces) for task in of_source)
    share = {name: tasks[name] for name in shard.of(sorted(tasks))}
    ShardJournal(kept).run(share, tokenize_piece, choose_executor(config, pieces), "tokenizing")


def _tasks(config: MixConfig, vocabulary: Vocabulary, pieces: Pieces) -> list[list[tuple[str, TokenizeTask]]]:
    """Return the tasks of each source, by the names of their shards."""
    if config.add_bos and vocabulary.bos_id is None:
        raise UserError("add_bos is set and the tokenizer names no bos_token", "set add_bos=false, or add the token")
    tasks = [
        [TokenizeTask(piece, source, vocabulary, config.add_bos, config.engine) for piece in of_source]
        for source, of_source in zip(config.sources, pieces, strict=True)
    ]
    return [[(task.name(), task) for task in of_source] for of_source in tasks]


def tokenize_piece(task: TokenizeTask, out: Path) -> None:
    """Write the token shard of one piece.

    An engine that disagrees with the oracle anywhere in the sample is not used for the piece, and a warning says so.

    Raises:
        UserError: a damaged file, a missing column, no chat template.
    """
    try:
        _tokenize_with(task.engine, task, out)
    except Disagreement as difference:
        logger.warning(
            "%s is not used for %s of source %s: %s. `tokenizers` is, which is slower",
            task.engine, task.piece.path, task.source.name, difference,
        )  # fmt: skip
        _tokenize_with("hf", task, out)


def _tokenize_with(engine: Engine, task: TokenizeTask, out: Path) -> None:
    vocabulary = task.vocabulary
    encoder = PieceEncoder(engine, vocabulary.folder)
    bos_id = vocabulary.bos_id if task.add_bos else None
    padding = [vocabulary.pad_id] * 2
    with out.open("wb", buffering=BUFFER_BYTES) as stream:
        writer = ShardWriter(stream, vocabulary.token_dtype)
        for documents in read_documents(task.piece, task.source, vocabulary.folder):
            for index, document in enumerate(documents):
                if isinstance(document, list) and padding in (document[:2], document[-2:]):
                    documents[index] = Unreadable("padded")
            texts = [document for document in documents if isinstance(document, str)]
            ended = [index for index, document in enumerate(documents) if _is_ended(document, vocabulary.eos_text)]
            ids, lengths = _in_place(documents, encoder.encode(texts))
            encoded = add_boundaries(ids, lengths, vocabulary.eos_id, bos_id, ended)
            for index in np.flatnonzero(encoded.lengths == 0).tolist():
                document = documents[index]
                reason = document.reason if isinstance(document, Unreadable) else "empty"
                writer.note_dropped(writer.num_rows + index, reason)
            writer.write(*encoded)
        writer.finish()


def _is_ended(document: Document, eos_text: str) -> bool:
    """Tell whether a text has its eos already and white space behind it, as chat templates write."""
    if not isinstance(document, str) or not eos_text or not document[-1:].isspace():
        return False
    return document[-LONGEST_TAIL_CHARS:].rstrip().endswith(eos_text)


def _in_place(documents: Sequence[Document], texts: Encoded) -> Encoded:
    """Return the ids of all documents, given those of the texts; the rows of a source are all texts or all ids."""
    lengths = np.zeros(len(documents), np.int64)
    lengths[[isinstance(document, str) for document in documents]] = texts.lengths
    given = [np.array(document, np.uint32) for document in documents if isinstance(document, list)]
    lengths[[isinstance(document, list) for document in documents]] = [len(ids) for ids in given]
    return Encoded(np.concatenate([texts.ids, *given]), lengths)


def add_boundaries(
    ids: np.ndarray, lengths: np.ndarray, eos_id: int, bos_id: int | None, ended: Sequence[int] = ()
) -> Encoded:
    """Put eos after each document (unless it ends with one) and bos before it (unless it begins with one).

    Args:
        ids: (sum of lengths,) ids of the documents, end to end.
        lengths: (documents,) their lengths; a document of length 0 stays so.
        eos_id: token that ends a document.
        bos_id: token that begins one, or None for none.
        ended: indices of further documents that need no eos.
    """
    stops = np.cumsum(lengths)
    there = np.flatnonzero(lengths)
    ends, begins = np.zeros(len(lengths), np.int64), np.zeros(len(lengths), np.int64)
    ends[there] = ids[stops[there] - 1] != eos_id
    ends[[*ended]] = 0
    if bos_id is not None:
        begins[there] = ids[(stops - lengths)[there]] != bos_id
    bounded = lengths + begins + ends
    bounded_stops = np.cumsum(bounded)
    result = np.empty(bounded.sum(), ids.dtype)
    is_text = np.ones(len(result), bool)
    at_end, at_begin = (bounded_stops - 1)[ends == 1], (bounded_stops - bounded)[begins == 1]
    is_text[at_end] = is_text[at_begin] = False
    result[is_text], result[at_end] = ids, eos_id
    if bos_id is not None:
        result[at_begin] = bos_id
    return Encoded(result, bounded)


def _require_usable(source: TokenizedSource, max_bad_fraction: float, vocab_size: int) -> None:
    """Refuse a source that cannot be trained on: no documents, too many unreadable rows, or ids that the model does not
    have; say which rows are left out of one that can."""
    rows = int(source.first_documents[-1])
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in source.dropped.items())
    bad = sum(count for reason, count in source.dropped.items() if reason not in HARMLESS)
    if bad > max_bad_fraction * rows:
        step = 10.0 ** (math.floor(math.log10(bad / rows)) - 1)
        allowing = min(1.0, math.ceil(round(bad / rows / step, 6)) * step)  # in two digits, never below the share
        problem = f"{bad:,} of the {rows:,} rows of source {source.name} are unusable ({reasons})"
        fix = f"correct the data or the source's `format`, or allow it with mix.max_bad_fraction={allowing:.2g}"
        raise UserError(f"{problem}, such as {_example(source)}", fix)
    if source.num_tokens == 0:
        seen = f"{rows:,} rows read" + (f", {reasons}" if reasons else "")
        problem = f"source {source.name} (split {source.config.split}) holds no documents ({seen})"
        raise UserError(problem, "check its `dataset` and `split`")
    largest = max(shard.max_token for shard in source.shards)
    if largest >= vocab_size:
        problem = f"source {source.name} holds token id {largest} and the model's vocab_size is {vocab_size}"
        raise UserError(problem, "mix with the tokenizer that belongs to the model")
    if bad:
        left_out = sum(source.dropped.values())
        message = "%s of the %s rows of source %s are left out (%s), such as %s"
        logger.warning(message, f"{left_out:,}", f"{rows:,}", source.name, reasons, _example(source))
    elif reasons:
        logger.info("rows of source %s left out: %s of %s", source.name, reasons, f"{rows:,}")


def _example(source: TokenizedSource) -> str:
    """Name the first bad row by file and its number among the file's rows, from 1."""
    rows_before: Counter[Path] = Counter()
    for shard, origin in zip(source.shards, source.origins, strict=True):
        for row, reason in shard.examples:
            if reason not in HARMLESS:
                return f"row {rows_before[origin] + row + 1} of {origin} ({reason})"
        rows_before[origin] += shard.num_rows
    return "rows further on"
