"""Tokenizes the sources of a mixture: one shard a piece, made by worker processes, kept by content.

A shard depends on the piece, the tokenizer and the format alone, and is named by their hash; so the worker count cannot
show, and other ratios tokenize nothing again.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
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
from ladle.executors import WHOLE, Executor, ProcessExecutor, Shard, make_executor
from ladle.log import get_logger

logger = get_logger(__name__)

# The pieces of each source, in the order of the config's sources.
Pieces = Sequence[Sequence[Piece]]
SHARD_FORMAT = 1
BATCH_DOCUMENTS = 256
BATCH_CHARS = 2**20
BUFFER_BYTES = 2**20
# White space and end token that are looked at behind a text.
LONGEST_TAIL_CHARS = 100
# Below this, starting worker processes takes longer than the work.
SMALL_INPUT_BYTES = 8 * 2**20


@dataclass(frozen=True)
class TokenizedSource:
    """The documents of one source, numbered from 0 in the order of its files; a dropped row keeps its number and has
    length 0.

    Attributes:
        config: the source.
        shards: one a piece.
        origins: the file that each shard was made from.
        first_shard: number of its first shard among those of all sources.
    """

    config: SourceConfig
    shards: tuple[TokenShard, ...]
    origins: tuple[Path, ...]
    first_shard: int

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

    @cached_property
    def unwritten(self) -> dict[str, int]:
        """Rows of which the chat template left something out, per key of a turn or `tools`."""
        return dict(sorted(sum((Counter(shard.unwritten) for shard in self.shards), Counter()).items()))

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
        return ProcessExecutor(1)
    return make_executor(config.executor, config.workers)


def tokenize_pieces(
    config: MixConfig, vocabulary: Vocabulary, pieces: Pieces, kept: Path, share: Shard = WHOLE
) -> list[list[str]]:
    """Tokenize every piece of a share that is not in `kept` yet; return the names of all shards, source by source.

    Args:
        config: the mixture.
        vocabulary: the tokenizer.
        pieces: the pieces of each source, in the order of the config's sources.
        kept: folder of finished shards by content, which other mixtures may share.
        share: which of them.

    Raises:
        UserError: a file that cannot be read, or a column, chat template or token that is not there.
    """
    if config.add_bos and vocabulary.bos_id is None:
        raise UserError("add_bos is set and the tokenizer names no bos_token", "set add_bos=false, or add the token")
    tasks: dict[str, TokenizeTask] = {}
    names: list[list[str]] = []
    for source, of_source in zip(config.sources, pieces, strict=True):
        made = [TokenizeTask(piece, source, vocabulary, config.add_bos, config.engine) for piece in of_source]
        names.append([task.name() for task in made])
        tasks |= zip(names[-1], made, strict=True)
    chosen = {name: tasks[name] for name in share.of([*tasks])}
    ShardJournal(kept).run(chosen, tokenize_piece, choose_executor(config, pieces), "tokenizing")
    return names


def open_sources(
    config: MixConfig, vocabulary: Vocabulary, pieces: Pieces, names: Sequence[Sequence[str]], kept: Path, out: Path
) -> list[TokenizedSource]:
    """Link finished shards from `kept` into the new folder `out` and return the sources.

    Raises:
        UserError: a source that cannot be trained on.
    """
    out.mkdir()
    for name in {name for of_source in names for name in of_source}:
        link_or_copy(kept / name, out / name)
    sources: list[TokenizedSource] = []
    for source, of_source, shard_names in zip(config.sources, pieces, names, strict=True):
        shards = tuple(open_shard(out / name) for name in shard_names)
        first_shard = sum(len(before.shards) for before in sources)
        sources.append(TokenizedSource(source, shards, tuple(piece.path for piece in of_source), first_shard))
        _require_usable(sources[-1], config.max_bad_fraction, vocabulary.vocab_size)
    return sources


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
    with out.open("wb", buffering=BUFFER_BYTES) as stream:
        writer = ShardWriter(stream, vocabulary.token_dtype)
        found = read_documents(task.piece, task.source, vocabulary.folder, writer.unwritten)
        for documents in _in_batches(found, vocabulary.pad_id):
            texts = [document for document in documents if isinstance(document, str)]
            ended = [index for index, document in enumerate(documents) if _is_ended(document, vocabulary.eos_text)]
            encoded = _in_place(documents, encoder.encode(texts))
            encoded = add_boundaries(*encoded, vocabulary.eos_id, bos_id, ended)
            for index in np.flatnonzero(encoded.lengths == 0).tolist():
                document = documents[index]
                reason = document.reason if isinstance(document, Unreadable) else "empty"
                writer.note_dropped(writer.num_rows + index, reason)
            writer.write(*encoded)
        writer.finish()


def _in_batches(documents: Iterable[Document], pad_id: int) -> Iterator[list[Document]]:
    batch: list[Document] = []
    held = 0
    for document in documents:
        if isinstance(document, list) and [pad_id] * 2 in (document[:2], document[-2:]):
            document = Unreadable("padded")
        batch.append(document)
        held += 0 if isinstance(document, Unreadable) else len(document)
        if len(batch) == BATCH_DOCUMENTS or held >= BATCH_CHARS:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


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
    starts = stops - lengths
    holds_some = lengths > 0
    lacks_eos, lacks_bos = holds_some.copy(), holds_some & (bos_id is not None)
    lacks_eos[holds_some] = ids[stops[holds_some] - 1] != eos_id
    lacks_eos[[*ended]] = False
    lacks_bos[lacks_bos] = ids[starts[lacks_bos]] != bos_id
    # at equal places what comes first is put first: the end of one document, then the beginning of the next
    places = np.concatenate([stops[lacks_eos], starts[lacks_bos]])
    tokens = np.repeat([eos_id, bos_id or 0], [lacks_eos.sum(), lacks_bos.sum()])
    return Encoded(np.insert(ids, places, tokens), lengths + lacks_eos + lacks_bos)


def _require_usable(source: TokenizedSource, max_bad_fraction: float, vocab_size: int) -> None:
    """Refuse a source that cannot be trained on: no documents, too many unreadable rows, or ids that the model does not
    have; say which rows are left out of one that can."""
    name, rows = source.config.name, int(source.first_documents[-1])
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in source.dropped.items())
    bad = sum(count for reason, count in source.dropped.items() if reason not in HARMLESS)
    if bad > max_bad_fraction * rows:
        step = 10.0 ** (math.floor(math.log10(bad / rows)) - 1)
        allowing = min(1.0, math.ceil(round(bad / rows / step, 6)) * step)  # in two digits, never below the share
        problem = f"{bad:,} of the {rows:,} rows of source {name} are unusable ({reasons}), such as {_example(source)}"
        fix = f"correct the data or the source's `format`, or allow it with mix.max_bad_fraction={allowing:.2g}"
        raise UserError(problem, fix)
    if source.num_tokens == 0:
        seen = f"{rows:,} rows read" + (f", {reasons}" if reasons else "")
        problem = f"source {name} (split {source.config.split}) holds no documents ({seen})"
        raise UserError(problem, "check its `dataset` and `split`")
    largest = max(shard.max_token for shard in source.shards)
    if largest >= vocab_size:
        problem = f"source {name} holds token id {largest} and the model's vocab_size is {vocab_size}"
        raise UserError(problem, "mix with the tokenizer that belongs to the model")
    for key, count in source.unwritten.items():
        message = "the chat template does not write all of %s in %s of the %s rows of source %s"
        logger.warning(message, key, f"{count:,}", f"{rows:,}", name)
    if bad:
        left_out = sum(source.dropped.values())
        message = "%s of the %s rows of source %s are left out (%s), such as %s"
        logger.warning(message, f"{left_out:,}", f"{rows:,}", name, reasons, _example(source))
    elif reasons:
        logger.info("rows of source %s left out: %s of %s", name, reasons, f"{rows:,}")


def _example(source: TokenizedSource) -> str:
    """Name the first bad row by file and its number among the file's rows, from 1."""
    rows_before: Counter[Path] = Counter()
    for shard, origin in zip(source.shards, source.origins, strict=True):
        for row, reason in shard.examples:
            if reason not in HARMLESS:
                return f"row {rows_before[origin] + row + 1} of {origin} ({reason})"
        rows_before[origin] += shard.num_rows
    return "rows further on"
